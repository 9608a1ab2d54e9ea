"""The acknowledgement window of a delivery: when reminders are due, and when it is time to decide. Pure."""

import dataclasses
import datetime as dt
from typing import Final

from zg_async.jobs.events import AckDeadlineNear
from zg_async.jobs.state import JobState
from zg_async.managers.task_changes import MARKS
from zg_async.units import format_amount

_STRICTEST: Final = 6 * 3600
"""Seconds, for journals that don't say: the shortest time-out providers have as a default (fine-tuning.md 10.2)."""
LAST_CALL: Final = MARKS[-1]
"""Per cent of the window after which no copy is waited for any longer."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class AckWindow:
    """One delivery's window."""

    deadline: dt.datetime
    length: dt.timedelta

    @property
    def last_call(self) -> dt.datetime:
        """From when on the delivery is acknowledged or forfeited, copy or not."""
        return self.at(LAST_CALL)

    def at(self, percent: int) -> dt.datetime:
        """Return when a part of the window is over."""
        return self.deadline - self.length * (100 - percent) / 100

    def due(self, told: int, now: dt.datetime) -> list[int]:
        """Return the marks passed and not told yet."""
        return [mark for mark in MARKS if mark > told and now >= self.at(mark)]

    def next_mark(self, now: dt.datetime) -> dt.datetime | None:
        """Return when the next mark passes; None: all have."""
        return next((self.at(mark) for mark in MARKS if now < self.at(mark)), None)

    def longest_pause(self, now: dt.datetime) -> float:
        """Return how many seconds may pass between two attempts, so that many fit into what is left."""
        mark = self.next_mark(now)
        ends = [] if mark is None else [(mark - now).total_seconds()]
        left = (self.deadline - now).total_seconds()
        return max(1.0, min([left / 50 if left > 0 else 60.0, *ends]))


def window_of(state: JobState) -> AckWindow | None:
    """Return the window in which a job's delivery has to be acknowledged; None: there is nothing to acknowledge."""
    delivered = state.delivered
    if delivered is None or delivered.ack_deadline is None or state.deliverable_acknowledged:
        return None
    length = _STRICTEST if delivered.window is None else delivered.window
    return AckWindow(deadline=delivered.ack_deadline, length=dt.timedelta(seconds=length))


def reminders(state: JobState, now: dt.datetime) -> list[AckDeadlineNear]:
    """Return the reminders that are due; none for a delivery that nobody wants any more."""
    window = window_of(state)
    if window is None or state.forfeited:
        return []
    cost = _cost(state)
    return [
        AckDeadlineNear(percent=mark, ack_deadline=window.deadline, cost=cost)
        for mark in window.due(state.ack_mark, now)
    ]


def _cost(state: JobState) -> str:
    percent = state.delivered.penalty_percentage if state.delivered is not None else None
    if percent is None:
        return "the penalty and the decryption key"
    fee = f" ({format_amount(state.fee * percent // 100)})" if state.fee else ""
    return f"{percent} % of the fee{fee} and the decryption key"
