"""The live lines of a running job: what stands in them, and when."""

import datetime as dt

import pytest
from rich.console import Console

from zg_async.cli.job_view import JobView
from zg_async.jobs import events as ev
from zg_async.wire.records import RootHash, TaskId, TaskProgress

HEAD = {"job_id": "job-1", "seq": 1, "at": None}


def drawn(view: JobView) -> dict[str, str]:
    console = Console(width=100, force_terminal=True, color_system=None, highlight=False)
    with console.capture() as capture:
        console.print(view._picture())
    words = [line.lstrip("⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏ ").split() for line in capture.get().splitlines() if line.strip()]
    return {first: " ".join(rest) for first, *rest in words}


class Broker:
    """One whose provider's log can't be read."""

    class fine_tuning:
        @staticmethod
        async def get_log(provider, task):
            return ""


@pytest.mark.goal("CLI-05", part="a job's live lines")
async def test_a_jobs_lines_tell_losses_cost_and_deadline_as_soon_as_they_are_known(capsys):
    view, broker = JobView(), Broker()
    assert drawn(view) == {}
    await view.event(ev.TaskCreated(**HEAD, task_id=TaskId("t")), broker)
    await view.event(ev.TaskProgressed(**HEAD, progress=TaskProgress.TRAINING, fee=10**16, source="provider"), broker)
    now = drawn(view)
    assert (list(now), now["train"], now["cost"]) == (["train", "cost", "time"], "Training", "0.01 0G")
    assert now["time"].endswith("Ctrl-C leaves it running")
    for loss in (2.5, 1.5, 0.5):
        view.loss(loss)
    assert drawn(view)["loss"] == "2.50 █▅▁ 0.50"
    deadline = dt.datetime.now(dt.UTC) + dt.timedelta(hours=5, minutes=30)
    delivered = ev.TaskDelivered(
        **HEAD, root_hash=RootHash("0x" + "11" * 32), ack_deadline=deadline, cursor="c", window=6 * 3600.0
    )
    await view.event(delivered, broker)
    now = drawn(view)
    assert now["deadline"].startswith("5 h 2")
    assert "loss" not in now
    await view.event(ev.DeliverableAcknowledged(**HEAD), broker)
    assert list(drawn(view)) == ["decrypt", "cost", "time"]
