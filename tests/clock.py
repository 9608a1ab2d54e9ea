"""A clock that tests move by hand."""

import anyio
import anyio.lowlevel

from zg_async.clock import Clock


class FakeClock(Clock):
    """Time stands still until somebody sleeps or `advance` is called; a sleep returns at once and moves it."""

    def __init__(self, now: float = 1_800_000_000.0) -> None:
        self._now = now
        self._monotonic = 0.0
        self.slept: list[float] = []

    def now(self) -> float:
        return self._now

    def monotonic(self) -> float:
        return self._monotonic

    def advance(self, seconds: float) -> None:
        self._now += seconds
        self._monotonic += seconds

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.advance(max(seconds, 0.0))
        await anyio.lowlevel.checkpoint()
