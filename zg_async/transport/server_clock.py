"""What time it is on the other side, by the `Date` of its answers: signed timestamps have to be right there.

A provider takes an upload's or a download's timestamp from a minute ahead to five minutes behind its own clock, so a
machine whose clock is wrong could neither upload nor download. The difference is believed up to a quarter of an hour:
a signature dated further ahead than that would be a blank cheque, and a clock that is further off is for the user to
set right.
"""

import email.utils
import math
from typing import Final

from zg_async.clock import Clock
from zg_async.logs import get_logger

_log = get_logger("zg_async.http")
NEGLIGIBLE: Final = 5.0
"""Seconds: below that it is delays and rounding."""
_MOST: Final = 900.0


class ServerClocks:
    """How far the clocks of hosts are from ours."""

    def __init__(self, clock: Clock) -> None:
        """Begin with nothing known."""
        self._clock = clock
        self._ahead: dict[str, float] = {}

    def saw(self, host: str, date: str | None, sent_at: float) -> None:
        """Take in an answer's `Date`.

        Args:
            host: `host:port`.
            date: The header, whatever it holds.
            sent_at: When the request was sent, by our clock.
        """
        told = _seconds(date)
        if told is None:
            return
        ahead = told + 0.5 - (sent_at + self._clock.now()) / 2
        if abs(ahead) > _MOST:
            if self._ahead.get(host, 1.0) != 0.0:
                _log.warning("the clock of %s is %.0f s from ours, which is too much to follow", host, ahead)
            ahead = 0.0
        elif abs(ahead) <= NEGLIGIBLE:
            ahead = 0.0
        elif host not in self._ahead:
            _log.warning("the clock of %s is %.0f s from ours; what is signed for it follows its clock", host, ahead)
        self._ahead[host] = ahead

    def knows(self, host: str) -> bool:
        """Return whether a host has told its time."""
        return host in self._ahead

    def ahead(self, host: str) -> float:
        """Return by how many seconds a host is ahead of us, as far as that is followed."""
        return self._ahead.get(host, 0.0)

    def now(self, host: str) -> float:
        """Return the unix time at a host; our own if it hasn't told, or tells nonsense."""
        return self._clock.now() + self.ahead(host)


def _seconds(date: str | None) -> float | None:
    try:
        told = email.utils.parsedate_to_datetime(date or "").timestamp()
    except (ValueError, OverflowError, TypeError):
        return None
    return told if math.isfinite(told) else None
