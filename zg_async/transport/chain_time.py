"""What time deadlines and limits count by: this machine's and the chain's, and neither one's leaps.

A clock that is set wrong for a minute must not make a delivery look as if its window were closing. It is caught
by two witnesses: it once agreed with the chain, and since then the chain has moved on as monotonic time has, and the
clock hasn't. One witness alone proves nothing: after a suspension monotonic time is behind, behind a node that lags the
chain is. So no node can hold back a clock that is right.

A limit for a day, though, must not begin anew because one of the two leapt: for it a day is over when both say so.
"""

import datetime as dt
from typing import Final

from zg_async.clock import Clock
from zg_async.logs import get_logger

_log = get_logger("zg_async.chain")
_AGREE: Final = 15 * 60.0
"""Seconds up to which this machine's clock and the chain's agree."""
_LEAP: Final = 30 * 60.0
"""Seconds from which on this machine's clock has leapt ahead; more than `_AGREE` and `_UNEVEN` together."""
_UNEVEN: Final = 60.0
"""Seconds by which blocks may come unevenly: their interval, and how long it takes until one is seen."""


class ChainTime:
    """The time, by this machine's clock and the newest blocks."""

    def __init__(self, clock: Clock) -> None:
        """Begin with nothing seen."""
        self._clock = clock
        self._block = 0.0
        """When the newest block was made, by the chain."""
        self._seen_at: float | None = None
        """When it was first seen, in monotonic time."""
        self._right: tuple[float, float] | None = None
        """Both of the last block with which this machine's clock agreed; None: it has moved unevenly since."""
        self._leapt = False

    def saw(self, timestamp: dt.datetime) -> None:
        """Take in the newest block's time."""
        block, at = timestamp.timestamp(), self._clock.monotonic()
        if self._seen_at is not None and block == self._block:
            return
        self._block, self._seen_at = block, at
        if abs(self._clock.now() - block) <= _AGREE:
            self._right = block, at
        elif self._right is not None and abs((block - self._right[0]) - (at - self._right[1])) > _UNEVEN:
            self._right = None

    @property
    def is_known(self) -> bool:
        """Whether any block was seen."""
        return self._seen_at is not None

    def now(self) -> dt.datetime:
        """Return the time by which deadlines count."""
        return dt.datetime.fromtimestamp(self.unix(), dt.UTC)

    def unix(self) -> float:
        """Return the same in unix seconds; what is spent is stamped with it."""
        own, chain = self._both()
        leapt = self._right is not None and own - chain > _LEAP
        if leapt and not self._leapt:
            _log.warning("this machine's clock has leapt %.0f s ahead of the chain; the chain's counts", own - chain)
        self._leapt = leapt
        return chain if leapt else max(own, chain)

    def earliest(self) -> float:
        """Return the unix time that has come by both clocks: from there a limit's day is counted back."""
        return min(self._both())

    def _both(self) -> tuple[float, float]:
        own = self._clock.now()
        return own, own if self._seen_at is None else self._block + self._clock.monotonic() - self._seen_at
