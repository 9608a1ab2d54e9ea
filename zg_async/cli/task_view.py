"""`zg task watch` and `zg task wait`, and a log that is followed. Leaving them never touches the task."""

import contextlib
import datetime as dt
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, Self

import anyio
from cyclopts import Parameter

from zg_async.cli.opening import HERE, Where, open_broker
from zg_async.cli.output import emit, leaving, moment, print_json, to_plain
from zg_async.cli.params import AnyTask, Provider
from zg_async.cli.render import duration_text, short, sparkline
from zg_async.cli.tasks import task_id_of
from zg_async.errors import ProviderError
from zg_async.text import printable
from zg_async.units import format_amount
from zg_async.wire.task_log import LogParser, Metric

if TYPE_CHECKING:
    from rich.table import Table

    from zg_async.broker import Broker
    from zg_async.managers.task_changes import TaskChange
    from zg_async.wire.records import Task

State = Literal[
    "Init",
    "SettingUp",
    "SetUp",
    "Training",
    "Trained",
    "Delivering",
    "Delivered",
    "UserAcknowledged",
    "Finished",
    "Failed",
    "InProgress",
    "UserAckDelivered",
    "Completed",
]
"""A task's states, and the words earlier documents have for some."""
_LOG_SECONDS: Final = 5.0
"""How long the end of a watch waits for the rest of the log."""


async def watch(
    *,
    provider: Provider,
    task: AnyTask = None,
    cursor: str | None = None,
    exit_status: bool = False,
    where: Where = HERE,
) -> int:
    """Watch a task until nothing more can happen: states, loss, cost, and the time left to acknowledge it.

    Ctrl-C ends the watch; the task goes on.

    Args:
        provider: The provider's address.
        task: The task's id. Default: the newest.
        cursor: Go on after the change that carried it.
        exit_status: Exit with 1 if the task failed.
        where: Network, wallet and output.
    """
    async with open_broker(where) as broker:
        task_id = await task_id_of(broker, provider, task)
        screen = TaskScreen(where, provider, task_id)
        with leaving("the task goes on", f"zg task watch --provider {provider} --task {task_id}"), screen:
            await _watch(broker, screen, provider, task_id, cursor)
        return 1 if exit_status and screen.failed else 0


async def wait(
    *,
    provider: Provider,
    task: AnyTask = None,
    until: Annotated[State | None, Parameter(name="--for")] = None,
    timeout_seconds: Annotated[float | None, Parameter(name="--timeout")] = None,
    exit_status: bool = False,
    where: Where = HERE,
) -> int:
    """Wait until a task has reached a state, or a later one; exits with 1 if it can't any more, with 6 if it is late.

    Args:
        provider: The provider's address.
        task: The task's id. Default: the newest.
        until: The state, for example Delivered. Default: any end.
        timeout_seconds: How long to wait, in seconds.
        exit_status: Without --for: exit with 1 if the task failed.
        where: Network, wallet and output.
    """
    from zg_async.wire.records import PROGRESS_ALIASES, TERMINAL, TaskProgress

    async with open_broker(where) as broker:
        task_id = await task_id_of(broker, provider, task)
        again = f"zg task wait --provider {provider} --task {task_id}" + (f" --for {until}" if until else "")
        state: TaskProgress | None = None
        try:
            with leaving("the task goes on", again), anyio.fail_after(timeout_seconds):
                if until is not None:
                    wanted = PROGRESS_ALIASES.get(until) or TaskProgress(until)
                    state = (await broker.fine_tuning.wait_task(provider, task_id, wanted)).state
                else:
                    async with broker.fine_tuning.watch_task(provider, task_id) as changes:
                        async for change in changes:
                            state = getattr(change, "state", state)
                            if state in TERMINAL:
                                break
        except TimeoutError:
            what = f"reached {until}" if until else "ended"
            raise TimeoutError(f"task {task_id} hasn't {what} within {timeout_seconds:g} s; it goes on") from None
    text = state.value if state else "Unknown"
    if where.as_json:
        print_json("task_state", {"task_id": task_id, "provider": provider, "state": text})
    else:
        print(text)
    return 1 if exit_status and until is None and text in ("Failed", "Cancelled") else 0


async def get_log(
    *,
    provider: Provider,
    task: AnyTask = None,
    follow: Annotated[bool, Parameter(name=("--follow", "-f"))] = False,
    tail: int | None = None,
    output: Path | None = None,
    where: Where = HERE,
) -> None:
    """Print a task's log.

    Args:
        provider: The provider's address.
        task: The task's id. Default: the newest.
        follow: Go on until the task has ended.
        tail: Only this many lines of its end.
        output: Save the whole log to this file as well.
        where: Network, wallet and output.
    """
    async with open_broker(where) as broker:
        task_id = task or (await broker.fine_tuning.get_task(provider)).id
        text = await broker.fine_tuning.get_log(provider, task_id, tail=tail, save_to=output)
        if not follow:
            lines = [printable(line, limit=4000) for line in text.splitlines()]
            emit(where, "task_log", {"task_id": task_id, "text": text}, lambda: lines)
            return
        await follow_log(broker, where, provider, task_id, tail=tail)


async def follow_log(broker: "Broker", where: Where, provider: str, task_id: str, *, tail: int | None = None) -> None:
    """Print a log's text as it comes, until the task has ended."""
    first = True
    again = f"zg get-task-log --follow --provider {provider} --task {task_id}"
    with leaving("the task goes on", again):
        async with broker.fine_tuning.follow_log(provider, task_id) as pieces:
            async for piece in pieces:
                if where.as_json:
                    print_json(piece.kind, _fields(piece))
                    continue
                lines = piece.text.splitlines()
                if first and tail is not None:
                    lines = lines[-tail:] if tail else []
                first = False
                for line in lines:
                    print(printable(line, limit=4000), flush=True)


async def _watch(broker: "Broker", screen: "TaskScreen", provider: str, task_id: str, cursor: str | None) -> None:
    with contextlib.suppress(ProviderError):  # who has lost the task may still have delivered it
        screen.known(await broker.fine_tuning.get_task(provider, task_id))
    read = anyio.Event()
    async with anyio.create_task_group() as group:
        group.start_soon(_read_log, broker, screen, provider, task_id, read)
        async with broker.fine_tuning.watch_task(provider, task_id, cursor=cursor) as changes:
            async for change in changes:
                screen.change(change)
        with anyio.move_on_after(_LOG_SECONDS):
            await read.wait()
        group.cancel_scope.cancel()


async def _read_log(broker: "Broker", screen: "TaskScreen", provider: str, task_id: str, read: anyio.Event) -> None:
    """Feed the screen with losses; a log that can't be read any more ends only this."""
    parser = LogParser()
    with contextlib.suppress(ProviderError):
        async with broker.fine_tuning.follow_log(provider, task_id) as pieces:
            async for piece in pieces:
                screen.metrics([e.metric for e in parser.feed(piece.text) if e.metric is not None])
    read.set()


class TaskScreen:
    """How a watched task looks: live lines on a terminal, one line per change elsewhere, or JSON lines."""

    def __init__(self, where: Where, provider: str, task_id: str) -> None:
        """Look at the terminal; nothing is shown yet."""
        self._where = where
        self._provider, self._task_id = provider, task_id
        self._state, self._since, self._began = "…", dt.datetime.now(dt.UTC), dt.datetime.now(dt.UTC)
        self._fee = 0
        self._deadline: dt.datetime | None = None
        self._metrics: list[Metric] = []
        self._live: Any = None
        self.failed = False
        """Whether the task ended as failed, with nothing delivered."""

    def __enter__(self) -> Self:
        if not self._where.as_json:
            from rich.console import Console
            from rich.live import Live

            console = Console(stderr=True, highlight=False)
            if console.is_terminal:
                self._live = Live(get_renderable=self.picture, console=console, refresh_per_second=4)
                self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def known(self, task: "Task") -> None:
        """Take over what the provider says at the beginning."""
        self._fee = task.fee
        self._began = task.created_at

    def change(self, change: "TaskChange") -> None:
        """Show a change."""
        from zg_async.managers import task_changes as tc

        text = ""
        match change:
            case tc.TaskStateChanged():
                self._state, self._since = printable(change.state_text), dt.datetime.now(dt.UTC)
                self._deadline = change.ack_deadline if self._state == "Delivered" else None
                self._fee = change.task.fee if change.task is not None and change.task.fee else self._fee
                self.failed = change.state.value in ("Failed", "Cancelled")
                text = self._state + (f", fee {format_amount(self._fee)}" if self._fee else "")
                if self._deadline is not None:
                    text += f", acknowledge before {moment(self._deadline)}"
            case tc.TaskSettled():
                self._fee, self._deadline = change.fee, None
                text = f"settled for {format_amount(change.fee)}"
                text += "" if change.acknowledged else ": the window was missed, no key will come"
            case tc.AckDeadlineNear():
                self._deadline = change.ack_deadline
                text = f"{change.percent} % of the time to acknowledge is over; missing it costs {change.cost}"
            case tc.DeliveredProviderLostState():
                self.failed = False
                text = "the provider has lost the task, but its delivery stands on chain"
            case tc.WatchWarning():
                text = f"warning: {printable(change.message, limit=500)}"
            case tc.TaskQueueMoved():
                text = f"{change.ahead} tasks ahead" if change.ahead else "no task ahead"
            case tc.TaskStuck():
                text = f"warning: {change.state.value} for {duration_text(change.seconds)}; the log's last line: "
                text += printable(change.log_line, limit=500) or "none"
            case tc.WatchResynced() | tc.TaskMetric() | tc.TaskLogAppended():
                text = "read anew"
        if self._where.as_json:
            print_json(change.kind, _fields(change))
        elif self._live is None:
            print(f"{moment(change.at)}  {text}", flush=True)
        elif not isinstance(change, tc.TaskStateChanged):
            self._live.console.print(text, markup=False)

    def metrics(self, new: list[Metric]) -> None:
        """Take losses out of the log."""
        if not new:
            return
        self._metrics += new
        if self._where.as_json:
            for metric in new:
                print_json("task_metric", {"task_id": self._task_id, **to_plain(metric)})
        elif self._live is None:
            print(self._losses(), flush=True)

    def _losses(self) -> str:
        losses = [m.loss for m in self._metrics]
        return f"loss {losses[0]:.4g} {sparkline(losses)} {losses[-1]:.4g}   step {self._metrics[-1].step}"

    def picture(self) -> "Table":
        """Draw the live lines."""
        from rich.table import Table
        from rich.text import Text

        now = dt.datetime.now(dt.UTC)
        rows = {
            "task": f"{self._task_id} at {short(self._provider)}",
            "state": f"{self._state}, for {duration_text((now - self._since).total_seconds())}",
            "cost": format_amount(self._fee) if self._fee else "not known before the tokens are counted",
        }
        if self._deadline is not None:
            left = max((self._deadline - now).total_seconds(), 0)
            rows["deadline"] = f"acknowledge within {duration_text(left)}"
        if self._metrics:
            rows["loss"] = self._losses().removeprefix("loss ")
        rows["age"] = f"{duration_text(max((now - self._began).total_seconds(), 0))}; Ctrl-C leaves it running"
        grid = Table.grid(padding=(0, 2))
        for name, value in rows.items():
            grid.add_row(Text(name, "bold"), Text(value))
        return grid


def _fields(change: "TaskChange") -> dict[str, Any]:
    fields: dict[str, Any] = to_plain(change)
    fields.pop("kind")
    return fields
