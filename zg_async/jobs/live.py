"""A job in a notebook: a table of its steps with the loss curve, which goes on while the cell waits for it."""

import datetime as dt
import importlib
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

import anyio

from zg_async.errors import ZgError
from zg_async.jobs.state import JobResult, JobState
from zg_async.logs import get_logger
from zg_async.showing import curve_svg, escaped, table_html
from zg_async.units import format_amount

if TYPE_CHECKING:
    from anyio.abc import TaskGroup

    from zg_async.jobs.handle import JobHandle
    from zg_async.managers.fine_tuning import FineTuningManager

_log = get_logger("zg_async.jobs")
_DONE: Final = "✓"
_OPEN: Final = "·"
_REDRAW: Final = 0.25
Show = Callable[[str], None]


def notebook_display() -> "Callable[[], Show] | None":
    """Return what opens a place for HTML under the running cell; None: this is no notebook.

    IPython is never imported for it: where there is a notebook, it has been.
    """
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    if shell is None or not hasattr(shell, "kernel"):
        return None

    def open_place() -> Show:
        module: Any = importlib.import_module("IPython.display")
        place = module.display(module.HTML(""), display_id=True)
        return lambda text: place.update(module.HTML(text))

    return open_place


def state_html(state: JobState, losses: Sequence[float] = (), *, now: dt.datetime | None = None) -> str:
    """Return a job as HTML: its steps, what it has cost, and its losses.

    Args:
        state: What is known of it.
        losses: In order.
        now: For the time that is left to acknowledge; None: the deadline is shown instead.
    """
    rows = [(_DONE if done else _OPEN, escaped(name), escaped(text)) for name, done, text in _steps(state, now)]
    if state.retry is not None:
        rows.append(("!", escaped(state.retry.stage), f"{escaped(state.retry.message)}; trying again"))
    if state.failure is not None:
        rows.append(("✗", escaped(state.failure.stage), escaped(state.failure.message, limit=1000)))
    if state.cancel_requested or state.cancel_reason:
        rows.append(("✗", "cancel", escaped(state.cancel_reason or "asked for")))
    rows.append(("", "gone", f"{format_amount(state.fee)} fee, {format_amount(sum(p.gas for p in state.paid))} gas"))
    return table_html(rows, title=f"job {state.job_id}: {state.status.value}") + curve_svg(losses, title="loss")


def _steps(state: JobState, now: dt.datetime | None) -> list[tuple[str, bool, str]]:
    """Return each step's name, whether it is done, and what is known of it."""
    data, terms, model, adapter = state.dataset, state.terms, state.model, state.deployed
    folder = state.decrypted.path if state.decrypted else ""
    steps = [
        ("check", data is not None, f"{data.rows:,} rows, {data.size:,} bytes, {data.row_format}" if data else ""),
        (
            "provider",
            terms is not None,
            f"{terms.provider} at {format_amount(terms.price_per_token)} per token" if terms else "",
        ),
        ("fund", bool(state.funded), ", ".join(sorted(state.funded))),
        ("upload", state.dataset_hash is not None, state.dataset_hash or ""),
        ("train", state.delivered is not None, f"task {state.task_id}: {_word(state)}" if state.task_id else ""),
        ("download", model is not None, f"{model.size:,} bytes, {model.matched} equals the chain's" if model else ""),
        ("acknowledge", state.deliverable_acknowledged, _deadline(state, now)),
        ("decrypt", state.decrypted is not None, folder),
    ]
    if adapter is not None or (state.spec is not None and state.spec.deploy):
        steps.append(("deploy", adapter is not None, f"{adapter.adapter_name} {adapter.state}" if adapter else ""))
    return steps


def _word(state: JobState) -> str:
    return state.progress.value if state.progress is not None else "waiting"


def _deadline(state: JobState, now: dt.datetime | None) -> str:
    deadline = state.delivered.ack_deadline if state.delivered is not None else None
    if deadline is None or state.deliverable_acknowledged or state.status.is_terminal:
        return ""
    if now is None:
        return f"before {deadline:%Y-%m-%d %H:%M} UTC"
    minutes = max(int((deadline - now).total_seconds() // 60), 0)
    return f"{minutes // 60} h {minutes % 60} min left"


async def follow(handle: "JobHandle", show: Show) -> JobResult:
    """Wait for a job's end and show it all the while; errors as `JobHandle.result`.

    Args:
        handle: Which job.
        show: Takes the HTML as it is now.
    """
    view = _View(handle, show)
    failure: ZgError | None = None
    async with anyio.create_task_group() as group:
        try:
            await view.follow(group)
        except ZgError as error:
            failure = error
        finally:
            group.cancel_scope.cancel()
    if failure is not None:
        raise failure
    return await handle.result()


async def follow_losses(tuning: "FineTuningManager", provider: str, task: str, add: Callable[[float], None]) -> None:
    """Follow a task's log to its end. A view without its curve is better than none, so an error ends only this.

    Args:
        tuning: The manager of the wallet that ordered the task.
        provider: Who trains it.
        task: Which.
        add: Takes each loss, in order.
    """
    try:
        async with tuning.follow_metrics(provider, task) as metrics:
            async for change in metrics:
                if change.metric is not None:
                    add(change.metric.loss)
    except ZgError as error:
        _log.info("no loss curve: %s", error.message)


class _View:
    def __init__(self, handle: "JobHandle", show: Show) -> None:
        self._handle, self._show = handle, show
        self._broker = handle._runner.broker
        self._state = JobState()
        self._losses: list[float] = []
        self._task: str | None = None
        self._shown = float("-inf")

    async def follow(self, group: "TaskGroup") -> None:
        async with self._handle.events() as events:
            async for _ in events:
                self._state = events.state
                if events.state.task_id != self._task:  # another provider's task begins anew
                    self._task, self._losses = events.state.task_id, []
                    group.start_soon(self._figures, self._task, name="loss curve")
                self._draw()
        if self._task is not None:
            await self._read(self._task)
        self._draw()

    def _draw(self) -> None:
        clock = self._broker.clock
        self._shown = clock.monotonic()
        self._show(state_html(self._state, self._losses, now=dt.datetime.fromtimestamp(clock.now(), dt.UTC)))

    async def _figures(self, task: str | None) -> None:
        provider = self._state.provider

        def add(loss: float) -> None:
            if self._task == task:
                self._losses.append(loss)
                if self._broker.clock.monotonic() - self._shown >= _REDRAW:
                    self._draw()

        if provider is not None and task is not None:
            await follow_losses(self._tuning(), provider, task, add)

    def _tuning(self) -> "FineTuningManager":
        """Return the manager of the wallet that ordered the task."""
        wallet = self._state.wallet
        return (self._broker if wallet is None else self._broker.using(wallet)).fine_tuning

    async def _read(self, task: str) -> None:
        """Read all figures once more: the last ones may have come after the job had ended."""
        if self._state.provider is None:
            return
        try:
            series = await self._tuning().get_metrics(self._state.provider, task)
        except ZgError as error:
            _log.info("no loss curve: %s", error.message)
            return
        self._losses = [metric.loss for metric in series.points]
