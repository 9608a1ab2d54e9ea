"""Faults strike where they should, in front of the node and in front of any URL."""

from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack

import aiohttp
import anyio
import pytest
from aiohttp import web

from tests.clock import FakeClock
from tests.devnet.node_kit import GENESIS, OTHER, OWNER, Client, RpcAnswerError
from zg_async.devnet.anvil import find_anvil
from zg_async.devnet.engines import make_engine
from zg_async.devnet.faults import Fault, FaultProxy, Faults
from zg_async.errors import ClosedError

pytestmark = pytest.mark.slow
PIECE = b"0123456789" * 10_000


class Struck:
    """A client whose requests the faults strike, and the same node without them."""

    def __init__(self, client: Client, plain: Client, faults: Faults, clock: FakeClock) -> None:
        self.client, self.plain, self.faults, self.clock = client, plain, faults, clock


@pytest.fixture(params=["middleware", "proxy", "anvil"])
async def struck(request: pytest.FixtureRequest, clock: FakeClock) -> AsyncGenerator[Struck, None]:
    if request.param == "anvil" and find_anvil() is None:
        pytest.skip("anvil is not installed; set ZG_ANVIL to its binary")
    faults = Faults(clock=clock)
    middlewares = (faults.middleware,) if request.param == "middleware" else ()
    async with AsyncExitStack() as stack:
        kind = "anvil" if request.param == "anvil" else "pyevm"
        engine = await stack.enter_async_context(make_engine(kind, GENESIS, middlewares=middlewares))
        url = engine.url
        if not middlewares:
            url = (await stack.enter_async_context(FaultProxy(engine.url, faults))).url
        session = await stack.enter_async_context(aiohttp.ClientSession())
        yield Struck(Client(session, url), Client(session, engine.url), faults, clock)


async def test_a_lost_answer_leaves_its_effect(struck: Struck) -> None:
    struck.faults.add(Fault(kind="lose_answer", operation="eth_sendRawTransaction"))
    raw = await struck.client.sign(nonce=0)
    with pytest.raises(aiohttp.ClientError):
        await struck.client.ask("eth_sendRawTransaction", raw)
    with anyio.fail_after(5):
        while await struck.client.number("eth_getTransactionCount", OWNER.address, "latest") == 0:
            await anyio.lowlevel.checkpoint()
    assert struck.faults.hits == [("eth_sendRawTransaction", "lose_answer")]


async def test_a_lost_request_has_no_effect(struck: Struck) -> None:
    struck.faults.add(Fault(kind="lose_request", operation="eth_send*", times=2))
    raw = await struck.client.sign(nonce=0)
    for _ in range(2):
        with pytest.raises(aiohttp.ClientError):
            await struck.client.ask("eth_sendRawTransaction", raw)
    assert await struck.client.number("eth_getTransactionCount", OWNER.address, "pending") == 0
    await struck.client.receipt(await struck.client.ask("eth_sendRawTransaction", raw))


async def test_a_refusal_has_status_body_and_retry_after(struck: Struck) -> None:
    struck.faults.add(Fault(kind="status", status=429, body="slow down", retry_after="7"))
    async with struck.client.session.post(struck.client.url, json={}) as reply:
        assert (reply.status, await reply.text(), reply.headers["Retry-After"]) == (429, "slow down", "7")
    assert await struck.client.ask("net_version") == "31337"


async def test_a_delay_waits_by_the_clock(struck: Struck) -> None:
    struck.faults.add(Fault(kind="delay", operation="net_version", seconds=30, times=None))
    for _ in range(2):
        assert await struck.client.ask("net_version") == "31337"
    assert struck.clock.slept[-2:] == [30, 30]
    struck.faults.clear()
    await struck.client.ask("net_version")
    assert len(struck.faults.hits) == 2


async def test_an_rpc_error_answers_every_request_of_a_batch(struck: Struck) -> None:
    struck.faults.add(Fault(kind="rpc_error", operation="eth_chainId", code=-32005, message="limit exceeded"))
    batch = [
        {"jsonrpc": "2.0", "id": n, "method": m, "params": []} for n, m in ((1, "net_version"), (2, "eth_chainId"))
    ]
    answers = await struck.client.post(batch)
    assert [(one["id"], one["error"]["code"]) for one in answers] == [(1, -32005), (2, -32005)]
    struck.faults.add(Fault(kind="rpc_error", message="no"))
    with pytest.raises(RpcAnswerError, match="no"):
        await struck.client.ask("eth_chainId")


async def test_a_result_can_be_a_lie(struck: Struck) -> None:
    struck.faults.add(Fault(kind="result", operation="eth_blockNumber", result="0xff"))
    assert await struck.client.ask("eth_blockNumber") == "0xff"
    assert await struck.client.ask("eth_blockNumber") == "0x0"


async def test_an_answer_can_be_cut(struck: Struck) -> None:
    struck.faults.add(Fault(kind="cut", operation="eth_getBlockByNumber", after=20))
    with pytest.raises((aiohttp.ClientError, ValueError)):
        await struck.client.head()
    assert await struck.client.head()


async def test_some_may_be_spared_first(struck: Struck) -> None:
    number = struck.faults.add(Fault(kind="status", operation="net_version", skip=2, times=1))
    for _ in range(2):
        await struck.client.ask("net_version")
    async with struck.client.session.post(struck.client.url, json={"method": "net_version", "id": 1}) as reply:
        assert reply.status == 503
    assert struck.faults.remove(number) is False


async def test_websockets_go_through(struck: Struck) -> None:
    url = struck.client.url.replace("http", "ws")
    async with struck.client.session.ws_connect(url) as socket:
        await socket.send_json({"jsonrpc": "2.0", "id": 1, "method": "eth_subscribe", "params": ["newHeads"]})
        number = (await socket.receive_json())["result"]
        await struck.plain.mined(OTHER)
        assert (await socket.receive_json())["params"]["subscription"] == number


def test_chance_strikes_the_same_way_for_the_same_seed() -> None:
    def draw() -> list[bool]:
        faults = Faults(seed=7)
        faults.add(Fault(kind="delay", chance=0.5, times=None))
        return [bool(faults.take(["x"])) for _ in range(50)]

    assert draw() == draw()
    assert 10 < sum(draw()) < 40


# --- the proxy in front of something that isn't JSON-RPC ---


async def upload(request: web.Request) -> web.Response:
    size = 0
    async for piece in request.content.iter_any():
        size += len(piece)
    return web.json_response({"size": size, "type": request.content_type, "query": request.rel_url.raw_query_string})


async def download(request: web.Request) -> web.StreamResponse:
    reply = web.StreamResponse(headers={"X-Kind": "model"})
    reply.content_length = 20 * len(PIECE)
    await reply.prepare(request)
    for _ in range(20):
        await reply.write(PIECE)
    return reply


async def moved(request: web.Request) -> web.Response:
    return web.Response(status=307, headers={"Location": "http://127.0.0.1:1/elsewhere"})


@pytest.fixture
async def proxy() -> AsyncGenerator[FaultProxy, None]:
    app = web.Application(client_max_size=2**30)
    app.add_routes([web.post("/up", upload), web.get("/down", download), web.get("/moved", moved)])
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    async with FaultProxy(f"http://127.0.0.1:{runner.addresses[0][1]}") as running:
        yield running
    await runner.cleanup()


@pytest.fixture
async def session() -> AsyncGenerator[aiohttp.ClientSession, None]:
    async with aiohttp.ClientSession() as running:
        yield running


async def test_uploads_pass_with_length_and_query(proxy: FaultProxy, session: aiohttp.ClientSession) -> None:
    async def body() -> AsyncGenerator[bytes, None]:
        for _ in range(20):
            yield PIECE

    headers = {"Content-Length": str(20 * len(PIECE)), "Content-Type": "text/plain"}
    for chosen in (headers, {"Content-Type": "text/plain"}):
        async with session.post(f"{proxy.url}/up?a=1%262", data=body(), headers=chosen) as reply:
            assert await reply.json() == {"size": 20 * len(PIECE), "type": "text/plain", "query": "a=1%262"}


async def test_downloads_pass_with_their_headers(proxy: FaultProxy, session: aiohttp.ClientSession) -> None:
    async with session.get(f"{proxy.url}/down") as reply:
        assert (reply.headers["X-Kind"], reply.content_length) == ("model", 20 * len(PIECE))
        assert await reply.read() == PIECE * 20


async def test_a_download_is_cut_where_asked(proxy: FaultProxy, session: aiohttp.ClientSession) -> None:
    proxy.faults.add(Fault(kind="cut", operation="GET /down", after=150_001))
    got = bytearray()

    async def read() -> None:
        async with session.get(f"{proxy.url}/down") as reply:
            async for piece in reply.content.iter_any():
                got.extend(piece)

    with pytest.raises(aiohttp.ClientPayloadError):
        await read()
    assert bytes(got) == (PIECE * 20)[:150_001]


async def test_redirects_are_handed_on(proxy: FaultProxy, session: aiohttp.ClientSession) -> None:
    async with session.get(f"{proxy.url}/moved", allow_redirects=False) as reply:
        assert (reply.status, reply.headers["Location"]) == (307, "http://127.0.0.1:1/elsewhere")


async def test_a_target_that_is_gone_hangs_up(session: aiohttp.ClientSession) -> None:
    async with FaultProxy("http://127.0.0.1:9") as proxy:
        with pytest.raises(aiohttp.ClientError):
            await session.get(proxy.url)
    with pytest.raises(ClosedError):
        _ = proxy.url
