"""The one retry policy: named errors, bounded attempts and time, full jitter, and a budget per host.

What is retried is only what says it may be (`ZgError.retryable`), and only calls the caller knows to be idempotent.
A wish of the other side (`retry_after`) is a lower bound, honoured up to a limit; beyond it, it is noise.
"""

import dataclasses
import random
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

import tenacity

from zg_async.clock import Clock
from zg_async.errors import ChainUnavailableError, ProviderUnavailableError, StorageUnavailableError, ZgError
from zg_async.metrics import Metrics

T = TypeVar("T")

UNAVAILABLE: Final = (ProviderUnavailableError, ChainUnavailableError, StorageUnavailableError)
"""What is worth a second try by itself: nobody answered, or too much was asked."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """How often and how long. Waits are drawn from 0 to `base * 2 ** n`, at most `cap` seconds."""

    attempts: int = 4
    """Tries in all, the first included."""
    max_elapsed: float = 60.0
    """No try starts later than this many seconds after the first."""
    base: float = 0.5
    cap: float = 10.0
    max_retry_after: float = 60.0
    """A longer wish of the other side is ignored."""
    on: tuple[type[ZgError], ...] = UNAVAILABLE


DEFAULT: Final = RetryPolicy()
ONCE: Final = RetryPolicy(attempts=1)
_EARNED: Final = 0.2


class RetryBudget:
    """What a host may cost in retries, over all calls: each takes one of `size`, one is back every `refill` seconds.

    Every success gives `_EARNED` of one back, so that a host that many calls go to, and that fails some of them, can be
    asked again as often as it is of use, while one that answers nothing gets what time gives.
    """

    def __init__(self, clock: Clock, *, size: int = 20, refill: float = 3.0, metrics: Metrics | None = None) -> None:
        """Start with a full budget; `metrics` counts the retries."""
        self._metrics = metrics or Metrics()
        self._clock = clock
        self._size = size
        self._refill = refill
        self._left = float(size)
        self._at = clock.monotonic()

    def earn(self) -> None:
        """Note a success."""
        self._left = min(self._size, self._left + _EARNED)

    def spend(self) -> bool:
        """Take one retry; False when none is left."""
        now = self._clock.monotonic()
        self._left = min(self._size, self._left + (now - self._at) / self._refill)
        self._at = now
        if self._left < 1:
            return False
        self._left -= 1
        self._metrics.count("retries")
        return True


async def retry(
    work: Callable[[], Awaitable[T]],
    *,
    clock: Clock,
    policy: RetryPolicy = DEFAULT,
    budget: RetryBudget | None = None,
    rng: random.Random | None = None,
) -> T:
    """Call something until it succeeds, fails for good, or the policy has had enough.

    Args:
        work: Makes one attempt. Must be idempotent, or raise a retryable error only when nothing has happened.
        clock: Counts and waits.
        policy: Bounds and waits.
        budget: Shared by all calls to one host; None means no shared bound.
        rng: The source of jitter; None means the process's own.

    Returns:
        What `work` returned.

    Raises:
        ZgError: What the last attempt raised, unchanged.
    """
    started = clock.monotonic()
    first: ZgError | None = None

    async def counted() -> T:
        result = await work()
        if budget is not None:
            budget.earn()
        return result

    try:
        return await counted()
    except policy.on as error:
        first = error  # only now is there anything to work out: most calls end above
    draw = (rng or random).uniform

    def wait(state: tenacity.RetryCallState) -> float:
        ceiling = min(policy.cap, policy.base * 2 ** min(state.attempt_number - 1, 30))
        return max(draw(0.0, ceiling), _wished(state, policy))

    def stop(state: tenacity.RetryCallState) -> bool:
        over = clock.monotonic() - started + _wished(state, policy) > policy.max_elapsed
        return state.attempt_number >= policy.attempts or over or (budget is not None and not budget.spend())

    retrying = tenacity.AsyncRetrying(
        sleep=clock.sleep,
        wait=wait,
        stop=stop,
        retry=tenacity.retry_if_exception(lambda e: isinstance(e, policy.on)),
        reraise=True,
    )

    async def attempt() -> T:
        nonlocal first
        if first is not None:
            error, first = first, None
            raise error
        return await counted()

    return await retrying(attempt)


def _wished(state: tenacity.RetryCallState, policy: RetryPolicy) -> float:
    error = state.outcome.exception() if state.outcome is not None else None
    wish = error.retry_after if isinstance(error, ZgError) else None
    return wish if wish is not None and 0 < wish <= policy.max_retry_after else 0.0
