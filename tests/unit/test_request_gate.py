"""Requests go out within bounds, and a host that says 429 gets less until it says so no more."""

import contextlib
import itertools

import anyio
import pytest
from aiohttp import web

from tests.http_server import serving
from zg_async.errors import ChainUnavailableError, ConfigError, ProviderUnavailableError
from zg_async.transport.http import Http, HttpSettings
from zg_async.transport.request_gate import RequestGate, RequestLimits
from zg_async.transport.retry import RetryPolicy
from zg_async.transport.rpc import Rpc


class Meter:
    """Counts what is under way, per host and in all, and when each began."""

    def __init__(self, clock):
        self.clock, self.now, self.most, self.began = clock, {}, {}, []

    async def request(self, gate, host, answer=None):
        async with gate.turn(host) as turn:
            self.began.append((host, self.clock.monotonic()))
            for name in (host, "all"):
                self.now[name] = self.now.get(name, 0) + 1
                self.most[name] = max(self.most.get(name, 0), self.now[name])
            for _ in range(30):
                await anyio.lowlevel.checkpoint()
            refusal = answer() if answer else None
            for name in (host, "all"):
                self.now[name] -= 1
            if refusal is None:
                turn.answered()
            else:
                turn.refused(refusal)
        return refusal is None


@pytest.mark.goal("SCL-04", part="concurrency per host and in all")
async def test_no_host_and_not_all_together_get_more_than_their_share_and_all_get_through(clock):
    gate, meter = RequestGate(clock, RequestLimits(per_host=4, at_once=10)), Meter(clock)
    async with anyio.create_task_group() as group:
        for n in range(150):
            group.start_soon(meter.request, gate, "a" if n < 90 else f"h{n % 15}")
    async with anyio.create_task_group() as group:
        for _ in range(20):
            group.start_soon(meter.request, gate, "alone")
    assert len(meter.began) == 170
    assert (meter.most["all"], meter.most["alone"]) == (10, 4)
    assert max(most for host, most in meter.most.items() if host != "all") == 4
    assert clock.slept == []


@pytest.mark.goal("SCL-04", part="rates per host and in all")
async def test_requests_begin_no_faster_than_the_rates(clock):
    gate, meter = RequestGate(clock, RequestLimits(host_rate=2.0, rate=5.0)), Meter(clock)
    async with anyio.create_task_group() as group:
        for n in range(40):
            group.start_soon(meter.request, gate, f"h{n % 4}")
    for host, rate in [(f"h{n}", 2.0) for n in range(4)]:
        times = [at for h, at in meter.began if h == host]
        assert len(times) == 10
        assert min(b - a for a, b in itertools.pairwise(times)) >= 1 / rate - 1e-9
    times = sorted(at for _, at in meter.began)
    assert all(times[n + 5] - times[n] >= 1 - 1e-9 for n in range(len(times) - 5))


@pytest.mark.goal("SCL-04", part="adapts to 429")
async def test_a_host_that_refuses_is_asked_less_at_once_and_later_and_recovers(clock):
    gate, meter = RequestGate(clock, RequestLimits(per_host=16)), Meter(clock)
    assert gate.allowed("h") == 16
    assert not await meter.request(gate, "h", lambda: 7.0)
    assert gate.allowed("h") == 8
    at = clock.monotonic()
    assert await meter.request(gate, "h")
    assert meter.began[-1][1] - at == pytest.approx(7.0)
    await meter.request(gate, "other")  # others go on as before
    assert gate.allowed("other") == 16

    async with contextlib.AsyncExitStack() as stack:  # refusals of requests that went out together count once
        for turn in [await stack.enter_async_context(gate.turn("h")) for _ in range(8)]:
            turn.refused(1.0)
    assert gate.allowed("h") == 4
    for _ in range(6):
        assert not await meter.request(gate, "h", lambda: 1.0)
    assert gate.allowed("h") == 1
    for _ in range(150):
        await meter.request(gate, "h")
    assert gate.allowed("h") == 16


@pytest.mark.parametrize(("wish", "pauses"), [(None, [1, 2, 4, 8]), (500.0, [20] * 4), (-3.0, [1, 2, 4, 8])])
async def test_pauses_follow_the_hosts_wish_within_limits_and_double_without_one(clock, wish, pauses):
    gate, meter = RequestGate(clock, RequestLimits(max_pause=20.0)), Meter(clock)
    for _ in range(5):
        async with gate.turn("h") as turn:
            turn.refused(wish)
    assert [pytest.approx(pause) for pause in pauses] == clock.slept
    assert meter.began == []


async def test_who_leaves_the_queue_takes_no_place(clock):
    gate, meter = RequestGate(clock, RequestLimits(per_host=1, at_once=1)), Meter(clock)
    async with gate.turn("h"):
        with anyio.move_on_after(0.01) as left:
            await meter.request(gate, "h")
        assert left.cancelled_caught
    assert await meter.request(gate, "h")


@pytest.mark.parametrize("bad", [{"per_host": 0}, {"at_once": 0}, {"rate": 0.0}, {"host_rate": -1.0}])
def test_limits_that_let_nothing_through_are_refused(bad):
    with pytest.raises(ConfigError):
        RequestLimits(**bad)


class Busy:
    """A server that takes three requests at a time and refuses the rest."""

    def __init__(self):
        self.inside = self.refused = self.served = self.most = 0

    async def __call__(self, request):
        if self.inside >= 3:
            self.refused += 1
            return web.Response(status=429)
        self.inside += 1
        self.most = max(self.most, self.inside)
        await anyio.sleep(0.002)
        self.inside -= 1
        body = await request.json() if request.method == "POST" else {}
        calls = body if isinstance(body, list) else [body]
        self.served += len(calls)
        answers = [{"jsonrpc": "2.0", "id": call.get("id"), "result": "0x1"} for call in calls]
        return web.json_response(answers if isinstance(body, list) else answers[0])


@pytest.mark.goal("SCL-04", part="adapts to 429")
@pytest.mark.parametrize("door", ["http", "rpc"])
async def test_a_hundred_calls_all_succeed_at_a_server_that_takes_three_at_a_time(clock, door):
    busy = Busy()
    policy = RetryPolicy(attempts=30, max_elapsed=1e6)
    async with serving(busy) as url, Http(settings=HttpSettings(allow_hosts=(url,), retry=policy), clock=clock) as http:

        async def call():
            rpc = Rpc(url, http, clock=clock)  # one of its own: calls of one would share round trips
            while True:
                try:
                    if door == "http":
                        await http.request("GET", f"{url}/x")
                    else:
                        await rpc.request("eth_blockNumber")
                except (ProviderUnavailableError, ChainUnavailableError):
                    continue
                return

        async with anyio.create_task_group() as group:
            for _ in range(100):
                group.start_soon(call)
        host = http.host_of(url)
        assert busy.served == 100
        assert http.gate.allowed(host) < 8
        first_wave = 32 - 3
        assert busy.refused < first_wave + 60
