"""The rate limit that a provider sets per client address, kept from our side.

`GET /quote`, dataset upload and model download share one token bucket per client address: 0.1 requests a second, two
in stock (0g-serving-broker api/common/middleware/ratelimit.go). All wallets of a process share it, so they share this
limiter. A request takes its token when it *arrives*, which we learn only from the answer: until then it counts as in
flight, and after that as arrived just now. So we never run ahead of the other side's bucket, whatever the network's
delays.
"""

import contextlib
import dataclasses
from collections.abc import AsyncGenerator

import anyio

from zg_async.clock import Clock


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ProviderLimits:
    """What a provider lets one client address do on its limited routes."""

    rate: float | None = 0.1
    """Requests per second; None: not known to be limited, wait only when told to."""
    burst: int = 2
    """Requests at once after a pause."""
    pause: float = 10.0
    """Seconds to wait after a 429 that names no time."""
    max_pause: float = 120.0
    """A longer wish of the provider is ignored."""


UNLIMITED = ProviderLimits(rate=None)


class Limiter:
    """One token bucket per provider host; first come, first served."""

    def __init__(self, clock: Clock, limits: ProviderLimits | None = None) -> None:
        """Start with full buckets; None means the providers' default limit."""
        self._clock = clock
        self._limits = limits or ProviderLimits()
        self._buckets: dict[str, _Bucket] = {}

    @contextlib.asynccontextmanager
    async def slot(self, host: str) -> AsyncGenerator["Slot", None]:
        """Wait for a turn at a host and hold it while the request is in flight.

        Args:
            host: What owns the bucket: a provider's `host:port`.

        Yields:
            The turn; call `landed` once the answer's first byte is here.
        """
        bucket = self._buckets.setdefault(host, _Bucket(self._clock, self._limits))
        await bucket.take()
        slot = Slot(bucket)
        try:
            yield slot
        finally:
            slot.landed()


class Slot:
    """One request's turn."""

    def __init__(self, bucket: "_Bucket") -> None:
        """Start in flight."""
        self._bucket: _Bucket | None = bucket

    def landed(self) -> None:
        """Say that the request has reached the provider, or never will. Idempotent."""
        if self._bucket is not None:
            self._bucket.land()
            self._bucket = None

    def refused(self, retry_after: float | None) -> None:
        """Say that the provider answered 429: the request is over, and nobody goes there for a while."""
        if self._bucket is not None:
            self._bucket.refuse(retry_after)
            self._bucket = None


class _Bucket:
    """A token bucket as the time at which it will be full again (generic cell rate algorithm)."""

    def __init__(self, clock: Clock, limits: ProviderLimits) -> None:
        self._clock = clock
        self._limits = limits
        self._interval = 0.0 if limits.rate is None else 1.005 / limits.rate  # clocks differ
        self._full_at = clock.monotonic()
        self._blocked_until = self._full_at
        self._in_flight = 0
        self._turn = anyio.Lock()
        self._landing = anyio.Event()

    async def take(self) -> None:
        async with self._turn:
            while True:
                if self._interval and self._in_flight >= self._limits.burst:
                    await self._landing.wait()
                elif (delay := self._delay()) > 0:
                    await self._clock.sleep(delay)
                else:
                    break
            self._in_flight += 1

    def _delay(self) -> float:
        now = self._clock.monotonic()
        ready = self._full_at + (self._in_flight - (self._limits.burst - 1)) * self._interval
        return max(ready, self._blocked_until) - now

    def land(self) -> None:
        self._full_at = max(self._clock.monotonic(), self._full_at) + self._interval
        self._leave()

    def refuse(self, retry_after: float | None) -> None:
        wish = retry_after if retry_after is not None and 0 < retry_after <= self._limits.max_pause else 0.0
        self._blocked_until = self._clock.monotonic() + max(self._limits.pause, wish)
        self._leave()  # a refused request takes no token

    def _leave(self) -> None:
        self._in_flight -= 1
        self._landing.set()
        self._landing = anyio.Event()
