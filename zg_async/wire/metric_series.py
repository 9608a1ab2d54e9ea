"""The figures of one training in order: loss, learning rate, step, epoch, speed, and how long it may still take. Pure.

Today's trainer's figures come in one piece when it has ended, so there is a curve and no speed of arrival; the speed is
the closing summary's. Older trainers write live: speed and time left follow from when the lines came.
"""

from typing import Final

from zg_async.showing import curve_svg
from zg_async.wire.strict_json import BadJsonError, decode_json
from zg_async.wire.task_log import LogEntry, Metric, TrainSummary

_PARAMS_LIMIT: Final = 64 * 1024
_MOST: Final = 100_000
"""Points that are kept; a longer series loses every other one."""


class MetricSeries:
    """A series that grows; feed it each log entry with the time at which it came."""

    def __init__(self) -> None:
        """Begin empty."""
        self.points: list[Metric] = []
        """In the log's order. A step that comes again, after the provider tried again, is there twice."""
        self.summary: TrainSummary | None = None
        """The closing figures."""
        self.malformed = 0
        """Lines that should have held figures and couldn't be read; they are left out."""
        self.total_epochs: float | None = None
        self.total_steps: int | None = None
        self._first: tuple[float, Metric] | None = None
        self._last: tuple[float, Metric] | None = None

    def _repr_html_(self) -> str:
        return curve_svg([metric.loss for metric in self.points], title="loss")

    def expect(self, training_params: str) -> None:
        """Learn from a task's parameters how long the training is; without them there is no time left."""
        try:
            params = decode_json(training_params, limit=_PARAMS_LIMIT)  # the provider tells them
            epochs, steps = params.get("num_train_epochs"), params.get("max_steps")
        except (BadJsonError, AttributeError):
            return
        self.total_epochs = float(epochs) if _is_positive(epochs) else None
        self.total_steps = int(steps) if _is_positive(steps) else None

    def add(self, entry: LogEntry, at: float) -> bool:
        """Take in a line; returns whether it held figures.

        Args:
            entry: As parsed.
            at: When it came, in unix seconds.
        """
        self.malformed += entry.malformed
        if entry.summary is not None:
            self.summary = entry.summary
        elif entry.metric is not None:
            if len(self.points) >= _MOST:
                del self.points[1::2]
            self.points.append(entry.metric)
            if self._first is None or entry.metric.step <= self._first[1].step:
                self._first = (at, entry.metric)  # the first, or it began anew
            self._last = (at, entry.metric)
        return entry.summary is not None or entry.metric is not None

    @property
    def last(self) -> Metric | None:
        """The newest figures."""
        return self.points[-1] if self.points else None

    @property
    def steps_per_second(self) -> float | None:
        """The speed at which lines came live, else the closing summary's; None: neither is known."""
        if (rate := self._rate("step")) is not None:
            return rate
        return None if self.summary is None else self.summary.steps_per_second

    @property
    def eta(self) -> float | None:
        """Seconds until the training ends, at the speed so far; None: not known. 0 once it has ended."""
        if self.summary is not None:
            return 0.0
        if self._last is None:
            return None
        left = []
        for field, total in (("epoch", self.total_epochs), ("step", self.total_steps)):
            rate, done = self._rate(field), getattr(self._last[1], field)
            if rate is not None and total is not None and done is not None:
                left.append(max(total - done, 0.0) / rate)
        return min(left, default=None)

    def _rate(self, field: str) -> float | None:
        """Return by how much a figure grew per second, if lines came at different times."""
        if self._first is None or self._last is None:
            return None
        first, last = (getattr(metric, field) for _, metric in (self._first, self._last))
        seconds = self._last[0] - self._first[0]
        if first is None or last is None or seconds <= 0 or not last > first:
            return None
        return float((last - first) / seconds)


def _is_positive(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < float("inf")
