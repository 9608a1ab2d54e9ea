"""How many small requests go out at once and how fast: per host and over all hosts, with less for a host that says 429.

A 429 halves what a host gets at once, down to one, and nobody goes there until the time it names, or for a pause that
doubles while it goes on refusing. Each answer that is none gives a part of a place back, so a host that has
recovered is asked as before after some hundred requests. Refusals of requests that were under way already count once.

Files and streams aren't counted here: they have the limits of `limiter` and `Http.transfers`.
"""

import contextlib
import dataclasses
from collections.abc import AsyncGenerator
from typing import Final

import anyio

from zg_async.clock import Clock
from zg_async.errors import ConfigError

_FIRST_PAUSE: Final = 1.0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RequestLimits:
    """Bounds for requests that carry no file, JSON-RPC included. Rates are requests per second; None: no such limit."""

    per_host: int = 32
    """Requests to one host at once."""
    at_once: int = 96
    """Requests to all hosts at once."""
    host_rate: float | None = None
    """Most begun per second at one host."""
    rate: float | None = None
    """Most begun per second at all hosts."""
    max_pause: float = 60.0
    """Longest a host that refuses is left alone; a longer wish of it is cut."""

    def __post_init__(self) -> None:
        """Refuse limits that let nothing through."""
        if self.per_host < 1 or self.at_once < 1 or any(r is not None and r <= 0 for r in (self.host_rate, self.rate)):
            raise ConfigError("request limits have to let something through", hint="Use numbers above 0, or None")


class RequestGate:
    """Lets requests out in turn; first come, first served at each host."""

    def __init__(self, clock: Clock, limits: RequestLimits | None = None) -> None:
        """Begin with every host trusted."""
        self._clock = clock
        self._limits = limits or RequestLimits()
        self._hosts: dict[str, _Host] = {}
        self._places = anyio.CapacityLimiter(self._limits.at_once)
        self._pace = _Pace(clock, self._limits.rate)

    @contextlib.asynccontextmanager
    async def turn(self, host: str) -> AsyncGenerator["Turn", None]:
        """Wait for a turn at a host and hold it while the request is under way.

        Args:
            host: `host:port`.

        Yields:
            The turn; tell it what the host said of being asked.
        """
        place, token = self._hosts.setdefault(host, _Host(self._clock, self._limits)), object()
        async with place.queue:
            await place.wait()
            await self._places.acquire_on_behalf_of(token)
            try:
                await self._pace.wait()
            except BaseException:
                self._places.release_on_behalf_of(token)
                raise
            turn = place.begin()
        try:
            yield turn
        finally:
            self._places.release_on_behalf_of(token)
            place.leave()

    def allowed(self, host: str) -> int:
        """Return how many requests a host gets at once now."""
        place = self._hosts.get(host)
        return self._limits.per_host if place is None else int(place.allowed)


class Turn:
    """One request's turn at a host."""

    def __init__(self, host: "_Host") -> None:
        """Begin; `host` learns from it."""
        self._host = host
        self._number = host.begun

    def refused(self, retry_after: float | None) -> None:
        """Say that the host answered 429."""
        self._host.refuse(self._number, retry_after)

    def answered(self) -> None:
        """Say that it answered anything else."""
        self._host.welcome()


class _Host:
    def __init__(self, clock: Clock, limits: RequestLimits) -> None:
        self._clock = clock
        self._limits = limits
        self.allowed = float(limits.per_host)
        self.begun = 0
        self._refused_up_to = 0
        self._in_flight = 0
        self._pause = _FIRST_PAUSE
        self._blocked_until = clock.monotonic()
        self._interval = 0.0 if limits.host_rate is None else 1 / limits.host_rate
        self._next = self._blocked_until
        self.queue = anyio.Lock()
        self._left = anyio.Event()

    async def wait(self) -> None:
        while True:
            if self._in_flight >= int(self.allowed):
                await self._left.wait()
            elif (delay := max(self._blocked_until, self._next) - self._clock.monotonic()) > 0:
                await self._clock.sleep(delay)
            else:
                return

    def begin(self) -> Turn:
        self._in_flight += 1
        self.begun += 1
        self._next = self._clock.monotonic() + self._interval
        return Turn(self)

    def leave(self) -> None:
        self._in_flight -= 1
        self._wake()

    def refuse(self, number: int, retry_after: float | None) -> None:
        wish = retry_after if retry_after is not None and retry_after > 0 else self._pause
        until = self._clock.monotonic() + min(wish, self._limits.max_pause)
        self._blocked_until = max(self._blocked_until, until)
        if number > self._refused_up_to:
            self._refused_up_to = self.begun
            self.allowed = max(1.0, self.allowed / 2)
            self._pause = min(self._pause * 2, self._limits.max_pause)

    def welcome(self) -> None:
        self.allowed = min(float(self._limits.per_host), self.allowed + 1 / self.allowed)
        self._pause = _FIRST_PAUSE
        self._wake()

    def _wake(self) -> None:
        self._left.set()
        self._left = anyio.Event()


class _Pace:
    """A steady rate, without a stock."""

    def __init__(self, clock: Clock, rate: float | None) -> None:
        self._clock = clock
        self._interval = 0.0 if rate is None else 1 / rate
        self._next = clock.monotonic()
        self._queue = anyio.Lock()

    async def wait(self) -> None:
        if not self._interval:
            return
        async with self._queue:
            if (delay := self._next - self._clock.monotonic()) > 0:
                await self._clock.sleep(delay)
            self._next = self._clock.monotonic() + self._interval
