import anyio
import pytest

from zg_async.transport.limiter import UNLIMITED, Limiter, ProviderLimits


class GoBucket:
    """The provider's own limiter, by arrival times."""

    def __init__(self, rate=0.1, burst=2):
        self.rate, self.burst, self.tokens, self.at = rate, burst, float(burst), 0.0

    def allow(self, now):
        assert now >= self.at
        self.tokens = min(self.burst, self.tokens + (now - self.at) * self.rate)
        self.at = now
        if self.tokens < 1:
            return False
        self.tokens -= 1
        return True


async def test_two_requests_go_at_once_and_the_third_waits_ten_seconds(clock):
    limiter = Limiter(clock)
    for _ in range(3):
        async with limiter.slot("a:1"):
            pass
    assert clock.slept == [pytest.approx(10, abs=0.1)]
    assert clock.slept[0] >= 10


async def test_a_hundred_requests_meet_no_429(clock):
    limiter, server = Limiter(clock), GoBucket()
    refused = []

    async def one(i):
        async with limiter.slot("a:1") as slot:
            clock.advance(0.1 * (i % 7))  # on the way there
            refused.append(not server.allow(clock.monotonic()))
            clock.advance(0.3 * (i % 5))  # and back
            slot.landed()
            await anyio.lowlevel.checkpoint()

    async with anyio.create_task_group() as group:
        for i in range(100):
            group.start_soon(one, i)
    assert refused == [False] * 100
    assert clock.monotonic() < 1200  # and little is left unused


async def test_hosts_do_not_share_a_bucket(clock):
    limiter = Limiter(clock)
    for port in range(10):
        async with limiter.slot(f"a:{port}"), limiter.slot(f"a:{port}"):
            pass
    assert clock.slept == []


async def test_a_request_on_its_way_counts_until_its_answer_is_here(clock):
    limiter = Limiter(clock)
    async with limiter.slot("a:1"), limiter.slot("a:1"):
        with anyio.move_on_after(0.02) as scope:
            async with limiter.slot("a:1"):
                pass
        assert scope.cancelled_caught
        assert clock.slept == []


async def test_a_long_answer_does_not_hold_the_bucket(clock):
    limiter = Limiter(clock)
    async with limiter.slot("a:1") as first, limiter.slot("a:1") as second:
        first.landed()
        second.landed()
        async with limiter.slot("a:1"):
            assert clock.monotonic() == pytest.approx(10.05)


async def test_after_a_429_nobody_goes_for_ten_seconds(clock):
    limiter = Limiter(clock)
    async with limiter.slot("a:1") as slot:
        slot.refused(None)
    async with limiter.slot("a:1"):
        assert clock.monotonic() == 10


@pytest.mark.parametrize(
    ("wish", "pause"), [(30, 30), (3, 10), (-1, 10), (1e9, 10), (float("nan"), 10), (float("inf"), 10)]
)
async def test_a_429s_wish_is_honoured_within_limits(clock, wish, pause):
    limiter = Limiter(clock, UNLIMITED)
    async with limiter.slot("a:1") as slot:
        slot.refused(wish)
    async with limiter.slot("a:1"):
        assert clock.monotonic() == pause


async def test_without_a_limit_nobody_waits(clock):
    limiter = Limiter(clock, UNLIMITED)
    for _ in range(50):
        async with limiter.slot("a:1"):
            pass
    assert clock.slept == []


async def test_a_faster_provider_can_be_told(clock):
    limiter = Limiter(clock, ProviderLimits(rate=10, burst=5))
    for _ in range(6):
        async with limiter.slot("a:1"):
            pass
    assert clock.slept == [pytest.approx(0.1, abs=0.001)]


async def test_leaving_the_queue_costs_no_turn(clock):
    limiter = Limiter(clock)
    async with limiter.slot("a:1"), limiter.slot("a:1"):
        with anyio.move_on_after(0.01):
            async with limiter.slot("a:1"):
                pass
    async with limiter.slot("a:1"):
        assert clock.monotonic() == pytest.approx(10.05)
