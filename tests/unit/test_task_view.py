"""The live lines of a watched task: what stands in them, and when."""

import datetime as dt

import pytest
from rich.console import Console

from zg_async.cli.opening import Where
from zg_async.cli.task_view import TaskScreen
from zg_async.managers.task_changes import AckDeadlineNear, DeliveredProviderLostState, TaskSettled, TaskStateChanged
from zg_async.wire.records import Address, TaskId, TaskProgress
from zg_async.wire.task_log import Metric

PROVIDER = Address("0x" + "ab" * 20)
TASK = TaskId("6b607314-88b0-4fef-91e7-43227a54de57")
NOW = dt.datetime.now(dt.UTC)
COMMON = {"id": "x", "at": NOW, "provider": PROVIDER, "task_id": TASK, "cursor": "c"}


def drawn(screen: TaskScreen) -> dict[str, str]:
    console = Console(width=100, force_terminal=True, color_system=None, highlight=False)
    with console.capture() as capture:
        console.print(screen.picture())
    return {line.split()[0]: " ".join(line.split()[1:]) for line in capture.get().splitlines()}


def state(progress: TaskProgress, deadline: dt.datetime | None = None) -> TaskStateChanged:
    return TaskStateChanged(
        **COMMON,
        source="chain",
        state=progress,
        previous=None,
        state_text=progress.value,
        task=None,
        ack_deadline=deadline,
    )


@pytest.fixture
def screen(capsys) -> TaskScreen:
    return TaskScreen(Where(), PROVIDER, TASK)


@pytest.mark.goal("CLI-05", part="live lines")
def test_the_lines_tell_state_cost_deadline_and_losses_as_soon_as_they_are_known(screen):
    assert list(drawn(screen)) == ["task", "state", "cost", "age"]
    screen.change(state(TaskProgress.TRAINING))
    screen.metrics([Metric(step=n, loss=loss) for n, loss in enumerate((2.5, 1.5, 0.5), 1)])
    now = drawn(screen)
    assert now["state"].startswith("Training, for ")
    assert now["loss"] == "2.5 █▅▁ 0.5 step 3"
    assert "deadline" not in now
    screen.change(state(TaskProgress.DELIVERED, dt.datetime.now(dt.UTC) + dt.timedelta(hours=5, minutes=30)))
    assert drawn(screen)["deadline"].startswith("acknowledge within 5 h 2")
    screen.change(TaskSettled(**COMMON, source="chain", fee=10**16, acknowledged=True))
    now = drawn(screen)
    assert (now["cost"], "deadline" in now) == ("0.01 0G", False)


def test_a_failure_that_the_chain_contradicts_is_none(screen, capsys):
    screen.change(state(TaskProgress.FAILED))
    assert screen.failed
    screen.change(
        DeliveredProviderLostState(**COMMON, source="chain", state_text="Failed", acknowledged=False, settled=False)
    )
    assert not screen.failed
    screen.change(AckDeadlineNear(**COMMON, source="clock", percent=80, ack_deadline=NOW, cost="30 % of the fee"))
    told = capsys.readouterr().out.splitlines()
    assert told[0].endswith("  Failed")
    assert told[1].endswith("  the provider has lost the task, but its delivery stands on chain")
    assert told[2].endswith("  80 % of the time to acknowledge is over; missing it costs 30 % of the fee")
