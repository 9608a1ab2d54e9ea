"""A task's log: what the trainer printed, line by line, with the figures in it.

Two forms carry figures: today's trainer prints one Python dict per logged step after the training has ended, older
ones wrote `Step: N, Logs: {...}` live. Numbers may be quoted (transformers 5) and `nan` occurs. Container output may
hold 8-byte Docker frame headers, which are dropped.
Source: 0g-serving-broker execution/transformer; fine-tuning.md 11.
"""

import datetime as dt
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

LINE_LIMIT: Final = 16 * 1024
_FRAME: Final = re.compile(rb"[\x01\x02]\x00{5}(?:\xef\xbf\xbd|[\x00-\xff]){2}")
_CUT_FRAME: Final = re.compile(rb"[\x01\x02]\x00{0,5}(?:\xef\xbf\xbd|[\x00-\xff])?\Z")
_PREFIX: Final = re.compile(r"\[(\d{4}-\d\d-\d\d[T ][^\]]{5,30})\] ?(.*)", re.DOTALL)
_DICT: Final = re.compile(r"\{('[^{}]*)\}")
_PAIR: Final = re.compile(r"'(\w+)': *'?([-+]?(?:\d[\d.]*(?:[eE][-+]?\d+)?|nan|inf))'?")
_HOLDS_FIGURES: Final = re.compile(r"'(?:train_)?loss'|Step: \d+, Logs:")
_STEP: Final = re.compile(r"Step: (\d{1,12}), Logs:")
_FAILURE: Final = re.compile(r"(?:setup failed: |Error executing task [0-9a-f-]+: )(.+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """The figures of one logged step. A figure may be `nan`; None: not printed."""

    step: int
    """The trainer's own number in the older form, else counted from 1 in lines."""
    loss: float
    grad_norm: float | None = None
    learning_rate: float | None = None
    epoch: float | None = None
    tokens_per_second: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainSummary:
    """The closing figures of a training."""

    loss: float
    runtime: float | None = None
    """Seconds."""
    samples_per_second: float | None = None
    steps_per_second: float | None = None
    epoch: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LogEntry:
    """One line."""

    text: str
    """Without its time; as it came, not made printable."""
    time: dt.datetime | None = None
    metric: Metric | None = None
    summary: TrainSummary | None = None
    malformed: bool = False
    """It should hold figures, and they can't be read."""


_BLANK: Final = LogEntry(text="")
"""One for all, so that a flood of empty lines costs next to nothing."""


class LogParser:
    """Turns a growing log into entries; feed it each new part."""

    def __init__(self) -> None:
        self._held = b""
        self._skipping = False  # the rest of a line that was cut
        self._steps = 0

    def feed(self, data: bytes | str) -> list[LogEntry]:
        """Read more; returns the lines that are complete now."""
        raw = self._held + (data.encode("utf-8", "replace") if isinstance(data, str) else data)
        raw = _FRAME.sub(b"", raw)
        cut = _CUT_FRAME.search(raw, max(0, len(raw) - 9))
        whole, tail = (raw[: cut.start()], raw[cut.start() :]) if cut else (raw, b"")
        *lines, rest = whole.split(b"\n")
        if lines and self._skipping:
            self._skipping = False
            del lines[0]
        entries = [
            _BLANK if line in (b"", b"\r") else self._entry(line) for line in lines
        ]  # a flood of them costs next to nothing
        if len(rest) > LINE_LIMIT:
            if not self._skipping:
                entries.append(self._entry(rest[:LINE_LIMIT]))
            self._skipping, rest = True, b""
        self._held = rest + tail
        return entries

    def finish(self) -> list[LogEntry]:
        """Return the last line, if the log doesn't end with a line feed."""
        held, self._held = self._held, b""
        if self._skipping:
            self._skipping, held = False, b""
        return [self._entry(held)] if held else []

    def _entry(self, raw: bytes) -> LogEntry:
        text = raw[:LINE_LIMIT].decode("utf-8", "replace").removesuffix("\r")
        if "'" not in text and "Step" not in text and text[:1] != "[":  # most lines hold neither figures nor a time
            return LogEntry(text=text)
        time = None
        if match := _PREFIX.fullmatch(text):
            time = _time(match[1])
            text = match[2] if time else text
        figures = _figures(text)
        if "train_loss" in figures:
            return LogEntry(text=text, time=time, summary=_summary(figures))
        if "loss" not in figures:
            return LogEntry(text=text, time=time, malformed=_HOLDS_FIGURES.search(text) is not None)
        step = _STEP.search(text)
        self._steps = int(step[1]) if step else self._steps + 1
        return LogEntry(text=text, time=time, metric=_metric(self._steps, figures))


def parse_log(data: bytes | str) -> tuple[LogEntry, ...]:
    """Read a whole log."""
    parser = LogParser()
    return (*parser.feed(data), *parser.finish())


def failure_reason(log: str) -> str:
    """Find why a task failed: the last cause the provider wrote, or an empty text."""
    found = _FAILURE.findall(log)
    return found[-1].strip() if found else ""


def _figures(text: str) -> Mapping[str, float]:
    found = _DICT.search(text)
    if found is None:
        return {}
    try:
        return {key: float(value) for key, value in _PAIR.findall(found[1])}
    except ValueError:  # `1.2.3`
        return {}


def _metric(step: int, figures: Mapping[str, float]) -> Metric:
    return Metric(
        step=step,
        loss=figures["loss"],
        grad_norm=figures.get("grad_norm"),
        learning_rate=figures.get("learning_rate"),
        epoch=figures.get("epoch"),
        tokens_per_second=figures.get("tokens_per_second"),
    )


def _summary(figures: Mapping[str, float]) -> TrainSummary:
    return TrainSummary(
        loss=figures["train_loss"],
        runtime=figures.get("train_runtime"),
        samples_per_second=figures.get("train_samples_per_second"),
        steps_per_second=figures.get("train_steps_per_second"),
        epoch=figures.get("epoch"),
    )


def _time(text: str) -> dt.datetime | None:
    try:
        found = dt.datetime.fromisoformat(text)
        return (found if found.tzinfo else found.replace(tzinfo=dt.UTC)).astimezone(dt.UTC)
    except (ValueError, OverflowError):
        return None
