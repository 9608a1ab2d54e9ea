"""How a running job looks: a line per finished stage and a live one below, or one JSON object per event."""

import datetime as dt
import sys
import time
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self

import anyio
from rich.console import Console, Group
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from zg_async.cli.output import JSON_VERSION
from zg_async.cli.render import duration_text, short, size_text, sparkline
from zg_async.errors import ZgError
from zg_async.jobs import events as ev
from zg_async.jobs.live import follow_losses
from zg_async.text import json_text, printable
from zg_async.units import format_amount
from zg_async.wire.task_log import parse_log

_WIDTH = 100
"""Columns a line takes at most."""
_LONGEST = 4000

if TYPE_CHECKING:
    from zg_async.broker import Broker
    from zg_async.jobs.handle import JobHandle
    from zg_async.jobs.state import JobResult, JobState


async def show_job(job: "JobHandle", broker: "Broker", screen: "Screen") -> "JobState":
    """Show a job until it has ended, and return how.

    Args:
        job: Which.
        broker: What it runs on.
        screen: Where; a live one also gets the losses while the task trains.
    """
    async with anyio.create_task_group() as group, job.events() as events:
        async for event in events:
            await screen.event(event, broker)
            provider = events.state.provider
            if screen.is_live and isinstance(event, ev.TaskCreated) and provider is not None:
                group.start_soon(follow_losses, broker.fine_tuning, provider, event.task_id, screen.loss)
        group.cancel_scope.cancel()
    return events.state


class Screen(Protocol):
    """Where a job's course is shown."""

    @property
    def is_live(self) -> bool:
        """Whether it can use losses while the task still trains."""
        ...

    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
    def devnet(self, info: Mapping[str, Any]) -> None:
        """Show the network that was started."""
        ...

    def working(self, name: str, text: str) -> None:
        """Show what is going on now."""
        ...

    async def event(self, event: ev.Event, broker: "Broker") -> None:
        """Show one event."""
        ...

    def loss(self, value: float) -> None:
        """Take one more loss out of the log."""
        ...

    def chat(self, question: str, answer: str, expected: str | None) -> None:
        """Show a chat with the adapter."""
        ...

    def end(self, result: "JobResult", *, elapsed: float, good: bool) -> None:
        """Show the sum."""
        ...


class JsonLines:
    """One JSON object per line on standard output; the job's last event comes last."""

    is_live = False

    def __init__(self) -> None:
        """Hold back nothing yet."""
        self._last: ev.Event | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._last is not None:
            self._print(ev.event_to_json(self._last))
            self._last = None

    def devnet(self, info: Mapping[str, Any]) -> None:
        """Print the network without its keys."""
        public = {
            k: v for k, v in info.items() if k not in ("accounts", "control_token", "control_url", "kind", "version")
        }
        self._print({"kind": "devnet_started", **public})

    def working(self, name: str, text: str) -> None:
        """Say nothing: machines wait for facts."""

    async def event(self, event: ev.Event, broker: "Broker") -> None:  # noqa: ARG002  the protocol's
        """Print an event; the closing one waits for the chat."""
        if isinstance(event, ev.JobSucceeded | ev.JobFailed | ev.JobCancelled):
            self._last = event
        else:
            self._print(ev.event_to_json(event))

    def loss(self, value: float) -> None:
        """Say nothing: the log has them."""

    def chat(self, question: str, answer: str, expected: str | None) -> None:
        """Print question and answer."""
        self._print({"kind": "chat_answered", "question": question, "answer": answer, "expected": expected})

    def end(self, result: "JobResult", *, elapsed: float, good: bool) -> None:
        """Say nothing more: the job's last event holds the sum."""

    def _print(self, value: Mapping[str, Any]) -> None:
        print(json_text({"version": JSON_VERSION, **value}), flush=True)


class _Errors(Console):
    """Standard error; nobody reading it is told like any other output that nobody reads."""

    def on_broken_pipe(self) -> None:
        """Let the program's edge end it."""
        raise BrokenPipeError


class JobView:
    """Lines for people, on standard error; with a live line on a terminal."""

    def __init__(self, *, leave: str = "Ctrl-C leaves it running") -> None:
        """Look at the terminal; nothing is shown yet.

        Args:
            leave: What Ctrl-C does.
        """
        self._leave = leave
        self._console = _Errors(stderr=True, highlight=False)
        self._spinner = Spinner("dots")
        self._since = time.monotonic()
        self._provider = self._task = self._name = self._text = ""
        self._fee = 0
        self._losses: list[float] = []
        self._deadline: dt.datetime | None = None
        self._live = Live(get_renderable=self._picture, console=self._console, transient=True, refresh_per_second=8)

    @property
    def is_live(self) -> bool:
        """Whether there is a terminal to draw on."""
        return self._console.is_terminal

    def __enter__(self) -> Self:
        if self.is_live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def devnet(self, info: Mapping[str, Any]) -> None:
        """Show the network's head line."""
        count = len(info["providers"])
        self._line(f"0G devnet   chain {info['chain_id']}   {count} provider{'s' if count != 1 else ''}")
        self._since = time.monotonic()

    def working(self, name: str, text: str) -> None:
        """Show in the live lines what goes on; nothing: they are empty."""
        self._name, self._text = name, printable(text)

    def loss(self, value: float) -> None:
        """Show the losses so far in the live lines."""
        self._losses.append(value)

    def _picture(self) -> Group:
        """Draw the live lines: what goes on, its losses, what it costs, and the time left to acknowledge."""
        if not self._name:
            return Group()
        self._spinner.update(text=Text(f"{self._name:<12} {self._text}"))
        rows = {}
        if self._losses and self._name == "train":
            rows["loss"] = f"{self._losses[0]:.2f} {sparkline(self._losses)} {self._losses[-1]:.2f}"
        if self._fee:
            rows["cost"] = format_amount(self._fee)
        if self._deadline is not None:
            rows["deadline"] = self._window()
        rows["time"] = f"{duration_text(time.monotonic() - self._since)}; {self._leave}"
        return Group(self._spinner, *(Text(f"  {name:<12} {value}", "dim") for name, value in rows.items()))

    def done(self, name: str, text: str) -> None:
        """Put a finished stage into the list, with the time it took."""
        took = time.monotonic() - self._since
        self._since = time.monotonic()
        self._row(("✓", "green"), name, text, duration_text(took))

    async def event(self, event: ev.Event, broker: "Broker") -> None:
        """Show one event."""
        match event:
            case ev.DatasetChecked():
                plural = "s" if event.rows != 1 else ""
                self.done("check", f"{event.rows:,} row{plural} · {size_text(event.size)} · {event.row_format}")
                for warning in event.warnings:
                    self._warn(warning)
            case ev.ProviderChosen():
                self._provider = event.provider
                price = format_amount(event.price_per_token)
                self.done("plan", f"{short(event.provider)} · {price} per token · signer {short(event.signer)}")
                self.working("fund", "moving money to the provider's sub-account")
            case ev.ProviderFunded():
                transactions = len(event.transactions)
                text = f"{format_amount(event.amount)} ready for {event.service_type} at {short(event.provider)}"
                self.done("fund", f"{text} · {transactions} transaction{'s' if transactions != 1 else ''}")
                self.working("provider", "checking the quote")
            case ev.ProviderAcknowledged():
                self.done("provider", "TEE signer acknowledged, quote checked")
                self.working("upload", "sending the dataset")
            case ev.DatasetUploaded():
                size = size_text(event.size) if event.size is not None else "there already"
                self.done("upload", f"{size}, keccak {short(event.root_hash)} equals the provider's")
            case ev.TaskCreated():
                self._task, self._losses = event.task_id, []
                self.working("train", f"task {event.task_id}")
            case ev.TaskProgressed():
                self._fee = event.fee or self._fee
                self.working("train", event.progress.value)
            case ev.TaskDelivered():
                self._deadline = event.ack_deadline
                self.done("train", await self._training(broker))
                self.working("download", "fetching the encrypted model")
            case ev.ModelDownloaded():
                self.done("download", f"{size_text(event.size)}, {event.matched} equals the hash on chain")
                self.working("acknowledge", "sending the acknowledgement")
            case ev.DeliverableAcknowledged():
                self.done("acknowledge", self._window())
                self._deadline = None
                self.working("decrypt", "waiting for the provider to settle and release the key")
            case ev.ModelDecrypted():
                self.done("decrypt", f"{event.path}: {', '.join(event.files)}")
                self.working("deploy", "waiting for the adapter to be served")
            case ev.AdapterDeployed():
                self.done("deploy", f"{event.adapter_name} {event.state}")
                self.working("chat", "asking the adapter")
            case ev.StageRetrying():
                self._warn(f"{event.stage}: {event.message}; trying again")
            case ev.JobFailed():
                self._row(("✗", "red"), "failed", f"{event.stage}: {event.message}")
            case ev.JobCancelled():
                self._row(("✗", "red"), "cancelled", event.reason)
            case _:
                pass  # the others tell people nothing

    async def _training(self, broker: "Broker") -> str:
        try:
            log = await broker.fine_tuning.get_log(self._provider, self._task)
        except ZgError:
            return "Trained; its log can't be read"
        losses = [e.metric.loss for e in parse_log(log) if e.metric is not None and e.metric.loss is not None]
        if not losses:
            return "Trained; the log holds no loss"
        return f"Trained, loss {losses[0]:.2f} {sparkline(losses)} {losses[-1]:.2f}"

    def _window(self) -> str:
        if self._deadline is None:
            return "in time"
        left = (self._deadline - dt.datetime.now(dt.UTC)).total_seconds()
        return f"{duration_text(max(left, 0))} before the window closes"

    def chat(self, question: str, answer: str, expected: str | None) -> None:
        """Show question and answer."""
        self.working("", "")
        self._row(("", ""), "chat", f"> {question}")
        self._row(("", ""), "", answer)
        if expected is not None and answer.strip() != expected:
            self._warn(f"expected: {expected}")

    def end(self, result: "JobResult", *, elapsed: float, good: bool) -> None:
        """Show what it cost and how long it took."""
        paid = f"paid {format_amount(result.fee)} fee, {format_amount(result.gas, decimals=6)} gas"
        self._line(f"   {paid} · {duration_text(elapsed)}")
        self._line(f"   adapter in {result.adapter_path}" if good else "   something above is not as it should be")
        if not sys.stdout.isatty():
            print(result.adapter_path, file=sys.stdout)

    def _row(self, mark: tuple[str, str], name: str, text: str, time: str = "") -> None:
        """Print mark, name, text and time; on a terminal as columns, where long text goes on below itself."""
        text = printable(text, limit=600)
        if not self._console.is_terminal:
            self._line(f" {mark[0]:<1} {name:<12} {text:<62} {time:>10}".rstrip())
            return
        grid = Table.grid()
        grid.add_column(width=3)
        grid.add_column(width=13)
        grid.add_column(width=max(min(self._console.width, _WIDTH) - 26, 20), overflow="fold")
        grid.add_column(width=10, justify="right", style="dim")
        grid.add_row(Text(f" {mark[0]}", mark[1]), Text(name), Text(text), Text(time))
        self._console.print(grid)

    def _warn(self, text: str) -> None:
        self._row(("!", "yellow"), "", text)

    def _line(self, text: str) -> None:
        self._console.print(Text(printable(text, limit=_LONGEST)), soft_wrap=True)
