import random

import pytest

from zg_async.errors import ProviderRejectedError, ProviderUnavailableError
from zg_async.transport.retry import ONCE, RetryBudget, RetryPolicy, retry


class Flaky:
    def __init__(self, *errors):
        self.errors = list(errors)
        self.calls = 0

    async def __call__(self):
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return "done"


def unavailable(retry_after=None):
    return ProviderUnavailableError("away", retry_after=retry_after)


async def test_an_unavailable_provider_is_asked_again(clock):
    work = Flaky(unavailable(), unavailable())
    assert await retry(work, clock=clock) == "done"
    assert work.calls == 3


async def test_a_refusal_is_not_repeated(clock):
    work = Flaky(ProviderRejectedError("no", status=400))
    with pytest.raises(ProviderRejectedError):
        await retry(work, clock=clock)
    assert work.calls == 1


async def test_an_unknown_error_is_not_repeated(clock):
    work = Flaky(ValueError("bug"))
    with pytest.raises(ValueError, match="bug"):
        await retry(work, clock=clock)
    assert work.calls == 1


async def test_attempts_are_bounded_and_the_last_error_is_raised_as_it_is(clock):
    errors = [unavailable() for _ in range(9)]
    work = Flaky(*errors)
    with pytest.raises(ProviderUnavailableError) as caught:
        await retry(work, clock=clock, policy=RetryPolicy(attempts=3))
    assert work.calls == 3
    assert caught.value is errors[2]


async def test_once_means_once(clock):
    work = Flaky(unavailable())
    with pytest.raises(ProviderUnavailableError):
        await retry(work, clock=clock, policy=ONCE)
    assert work.calls == 1


async def test_time_is_bounded(clock):
    class Slow(Flaky):
        async def __call__(self):
            clock.advance(25)
            return await super().__call__()

    work = Slow(*(unavailable() for _ in range(9)))
    with pytest.raises(ProviderUnavailableError):
        await retry(work, clock=clock, policy=RetryPolicy(attempts=100, max_elapsed=60))
    assert work.calls == 3


async def test_waits_are_drawn_from_zero_to_a_doubling_ceiling(clock):
    class Ceiling(random.Random):
        def uniform(self, a, b):
            assert a == 0.0
            return b

    work = Flaky(*(unavailable() for _ in range(5)))
    policy = RetryPolicy(attempts=6, base=1, cap=4, max_elapsed=999)
    await retry(work, clock=clock, policy=policy, rng=Ceiling())
    assert clock.slept == [1, 2, 4, 4, 4]


@pytest.mark.parametrize(("wish", "least"), [(7.5, 7.5), (61, 0), (1e300, 0), (float("nan"), 0), (-5, 0), (0, 0)])
async def test_retry_after_is_honoured_within_limits_and_noise_beyond(clock, wish, least):
    await retry(Flaky(unavailable(wish)), clock=clock, policy=RetryPolicy(base=0.5, max_retry_after=60))
    assert least <= clock.slept[0] <= least + 0.5


async def test_a_wish_beyond_the_time_bound_ends_the_retries(clock):
    work = Flaky(unavailable(30))
    with pytest.raises(ProviderUnavailableError):
        await retry(work, clock=clock, policy=RetryPolicy(max_elapsed=20))
    assert clock.slept == []


async def test_a_hosts_budget_bounds_the_retries_of_all_calls(clock):
    budget = RetryBudget(clock, size=5, refill=1e9)
    calls = 0
    for _ in range(10):
        work = Flaky(*(unavailable() for _ in range(9)))
        with pytest.raises(ProviderUnavailableError):
            await retry(work, clock=clock, budget=budget)
        calls += work.calls
    assert calls == 10 + 5


async def test_a_budget_comes_back_with_time(clock):
    budget = RetryBudget(clock, size=2, refill=3)
    assert [budget.spend() for _ in range(3)] == [True, True, False]
    clock.advance(3)
    assert [budget.spend() for _ in range(2)] == [True, False]
    clock.advance(1e6)
    assert [budget.spend() for _ in range(3)] == [True, True, False]


async def test_a_first_attempt_costs_no_budget(clock):
    budget = RetryBudget(clock, size=1)
    for _ in range(5):
        await retry(Flaky(), clock=clock, budget=budget)
    assert budget.spend()


async def test_a_busy_host_that_fails_some_calls_is_asked_again_and_never_more_than_a_fifth_more(clock):
    budget, sent, useful, rng = RetryBudget(clock, size=20, refill=1e9), 0, 0, random.Random(1)
    lost = 0
    for _ in range(2000):
        work = Flaky(*([unavailable()] * (rng.random() < 0.1)))
        try:
            useful += await retry(work, clock=clock, budget=budget) == "done"
        except ProviderUnavailableError:
            lost += 1
        sent += work.calls
    assert lost == 0
    for _ in range(500):  # now every second one is lost for good
        work = Flaky(unavailable(), unavailable(), unavailable(), unavailable())
        with pytest.raises(ProviderUnavailableError):
            await retry(work, clock=clock, budget=budget)
        useful += await retry(Flaky(), clock=clock, budget=budget) == "done"
        sent += work.calls + 1
        lost += 1
    assert sent - lost <= 1.2 * useful + 20
