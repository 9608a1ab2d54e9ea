"""The JSON-RPC transport against a real HTTP server that answers as the test says."""

import contextlib
import gzip
import json

import aiohttp
import pytest
from aiohttp import web

from zg_async.errors import (
    ChainUnavailableError,
    ConfigError,
    ContractRevertedError,
    RpcError,
    WrongChainError,
)
from zg_async.transport.http import Http
from zg_async.transport.rpc import MAX_BATCH, Ask, Rpc, RpcSettings, blob, quantity, retry_after

SECRET = "s3cr3t-api-key"


@contextlib.asynccontextmanager
async def serve(handler, clock, *, more=(), settings=None):
    """Yield an Rpc to a server whose answers are `handler(decoded body)`: JSON, or a web.Response."""
    bodies = []

    async def on_post(request):
        body = json.loads(await request.read())
        bodies.append(body)
        answer = handler(body)
        return answer if isinstance(answer, web.StreamResponse) else web.json_response(answer)

    app = web.Application()
    app.router.add_post("/{path:.*}", on_post)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}/v3/{SECRET}?key={SECRET}"
    try:
        async with Http(clock=clock) as http:
            rpc = Rpc([*more, url], http, clock=clock, settings=settings)
            rpc.bodies = bodies
            yield rpc
    finally:
        await runner.cleanup()


def echo(body):
    if isinstance(body, list):
        return [echo(one) for one in reversed(body)]
    return {"jsonrpc": "2.0", "id": body["id"], "result": body["params"][0] if body["params"] else "0x1"}


def fixed(answer):
    return lambda body: {"jsonrpc": "2.0", "id": body["id"], **answer}


async def test_answers_of_a_batch_are_matched_by_id_not_by_place(clock):
    async with serve(echo, clock) as rpc:
        assert await rpc.batch([("eth_call", [n]) for n in range(5)]) == [0, 1, 2, 3, 4]
        assert len(rpc.bodies) == 1


async def test_a_large_batch_is_split_at_a_hundred(clock):
    async with serve(echo, clock) as rpc:
        assert await rpc.batch([("eth_call", [n]) for n in range(250)]) == list(range(250))
        assert [len(body) for body in rpc.bodies] == [MAX_BATCH, MAX_BATCH, 50]


async def test_a_batch_keeps_errors_in_their_places(clock):
    def handler(body):
        answers = [echo(one) for one in body]
        answers[1] = {"jsonrpc": "2.0", "id": body[1]["id"], "error": {"code": 3, "message": "execution reverted"}}
        return answers[:2]

    async with serve(handler, clock) as rpc:
        good, reverted, missing = await rpc.batch([Ask("eth_call", [n], "X.y", "0x" + "11" * 20) for n in range(3)])
        assert good == 0
        assert isinstance(reverted, ContractRevertedError)
        assert isinstance(missing, ChainUnavailableError)  # worth another try
        assert "unanswered" in str(missing)


@pytest.mark.parametrize(("refusals", "asked"), [(2, 3), (99, 4)])
async def test_a_read_that_the_node_is_too_busy_for_is_asked_again_and_a_write_is_not(clock, refusals, asked):
    busy, left = {"error": {"code": -32005, "message": "rate limit exceeded"}}, [refusals]

    def handler(body):
        left[0] -= 1
        answers = [echo(one) for one in body]
        if left[0] >= 0:
            answers[1] = {"jsonrpc": "2.0", "id": body[1]["id"], **busy}
        return answers

    async with serve(handler, clock) as rpc:
        told = await rpc.batch([("eth_call", [n]) for n in range(3)])
        assert len(rpc.bodies) == asked
        assert (told[0], told[2]) == (0, 2)
        assert told[1] == 1 if refusals == 2 else isinstance(told[1], ChainUnavailableError)
        left[0] = 1
        written = await rpc.batch([("eth_sendRawTransaction", [n]) for n in range(3)])
        assert len(rpc.bodies) == asked + 1
        assert isinstance(written[1], ChainUnavailableError)


async def test_a_node_without_batches_is_asked_one_by_one(clock):
    def handler(body):
        if isinstance(body, list):
            return {"jsonrpc": "2.0", "id": None, "error": {"code": -32600, "message": "batches are not supported"}}
        return echo(body)

    async with serve(handler, clock) as rpc:
        assert await rpc.batch([("eth_call", [n]) for n in range(3)]) == [0, 1, 2]
        assert await rpc.batch([("eth_call", [n]) for n in range(2)]) == [0, 1]
        assert [isinstance(body, list) for body in rpc.bodies] == [True] + [False] * 5


@pytest.mark.parametrize("status", [400, 401, 403, 500, 503])
async def test_a_json_rpc_error_with_an_http_error_status_keeps_its_body(clock, status):
    def handler(body):
        error = {"code": 3, "message": "execution reverted", "data": "0xdeadbeef"}
        return web.json_response({"jsonrpc": "2.0", "id": body["id"], "error": error}, status=status)

    async with serve(handler, clock) as rpc:
        with pytest.raises(ContractRevertedError) as caught:
            await rpc.request("eth_call", what="X.y")
        assert caught.value.data.hex() == "deadbeef"


@pytest.mark.goal("ERR-03", part="rpc")
@pytest.mark.parametrize(
    ("status", "body", "kind", "excerpt"),
    [
        (200, b"<html><h1>Welcome</h1></html>", RpcError, "Welcome"),
        (200, b"", RpcError, "answered no JSON-RPC"),
        (200, b"null", RpcError, "no JSON-RPC"),
        (200, b'{"jsonrpc": "2.0"}', RpcError, "no JSON-RPC"),
        (200, b'{"id": 1, "result": 1, "result": 2}', RpcError, "no JSON-RPC"),
        (200, b'{"result": NaN}', RpcError, "no JSON-RPC"),
        (200, b"[" * 100_000, RpcError, "no JSON-RPC"),
        (404, b"not here", RpcError, "status 404"),
        (403, b"<html>key</html>", RpcError, "Check the RPC URL and its key"),
        (302, b"", RpcError, "status 302"),
        (502, b"<html>Bad Gateway</html>", ChainUnavailableError, "Bad Gateway"),
        (503, b"", ChainUnavailableError, "status 503"),
        (503, b'{"error": "busy"}', ChainUnavailableError, "status 503"),
    ],
)
async def test_bodies_that_are_no_json_rpc_give_status_host_and_excerpt(clock, status, body, kind, excerpt):
    async with serve(lambda _: web.Response(status=status, body=body), clock) as rpc:
        with pytest.raises(kind, match=excerpt) as caught:
            await rpc.request("eth_call", retries=False)
        assert "127.0.0.1" in str(caught.value)
        assert SECRET not in str(caught.value)


@pytest.mark.goal("TX-04", part="reads")
async def test_a_read_is_retried_within_bounds_and_honours_retry_after(clock):
    def handler(body):
        if len(rpc.bodies) < 3:
            return web.Response(status=429, headers={"Retry-After": "7"})
        return echo(body)

    async with serve(handler, clock) as rpc:
        assert await rpc.request("eth_blockNumber") == "0x1"
        assert len(rpc.bodies) == 3
        assert all(slept >= 7 for slept in clock.slept)
        rpc.bodies.clear()

    async with serve(lambda _: web.Response(status=503), clock) as rpc:
        with pytest.raises(ChainUnavailableError):
            await rpc.request("eth_blockNumber")
        assert len(rpc.bodies) == 4


@pytest.mark.goal("TX-04", part="sends")
@pytest.mark.parametrize("asks", [1, 2])
async def test_a_send_is_never_repeated_by_the_transport(clock, asks):
    async with serve(lambda _: web.Response(status=503), clock) as rpc:
        with pytest.raises(ChainUnavailableError):
            await rpc.batch([("eth_sendRawTransaction", ["0x02"]), ("eth_blockNumber", [])][:asks])
        assert len(rpc.bodies) == 1


async def test_a_reply_above_the_cap_is_refused(clock):
    settings = RpcSettings(reply_limit=1000, list_limit=2000)
    async with serve(lambda body: fixed({"result": "0x" + "ab" * 700})(body), clock, settings=settings) as rpc:
        with pytest.raises(RpcError, match="more than 1000 bytes"):
            await rpc.request("eth_call")
        assert len(await rpc.request("eth_getLogs")) == 1402


async def test_a_compressed_reply_is_not_unpacked(clock):
    bomb = gzip.compress(b" " * 10_000_000)
    handler = lambda _: web.Response(body=bomb, headers={"Content-Encoding": "gzip"})  # noqa: E731
    async with serve(handler, clock) as rpc:
        with pytest.raises(ChainUnavailableError):
            await rpc.request("eth_call", retries=False)


@pytest.mark.goal("SEC-03", part="rpc urls")
async def test_no_message_shows_path_or_query_of_the_url(clock):
    async with Http(clock=clock) as http:
        rpc = Rpc(f"http://127.0.0.1:9/{SECRET}", http, clock=clock)
        with pytest.raises(ChainUnavailableError) as caught:
            await rpc.request("eth_chainId")
        error = caught.value
        assert SECRET not in str(error) + repr(error) + repr(error.__cause__) + repr(error.__context__) + rpc.host


async def test_a_second_endpoint_takes_over_after_its_chain_was_checked(clock):
    def handler(body):
        return fixed({"result": "0x7a69" if body["method"] == "eth_chainId" else "0x5"})(body)

    async with serve(handler, clock, more=["http://127.0.0.1:9/"]) as rpc:
        rpc.expect_chain(31337)
        assert await rpc.request("eth_blockNumber") == "0x5"
        assert [body["method"] for body in rpc.bodies] == ["eth_chainId", "eth_blockNumber"]

    async with serve(handler, clock, more=["http://127.0.0.1:9/"]) as rpc:
        rpc.expect_chain(16661)
        with pytest.raises(WrongChainError, match="isn't on chain 16661"):
            await rpc.request("eth_blockNumber")


@pytest.mark.parametrize("status", [403, 404, 502])
async def test_an_endpoint_that_refuses_everything_is_left_for_the_other(clock, status):
    async with serve(lambda _: web.Response(status=status), clock) as bad, serve(echo, clock) as good:
        rpc = Rpc([str(bad._urls[0]), str(good._urls[0])], bad._http, clock=clock)
        assert await rpc.request("eth_call", [7]) == 7
        assert (len(bad.bodies), len(good.bodies), rpc.switches) == (1, 1, 1)
        assert await rpc.request("eth_call", [8]) == 8
        assert len(bad.bodies) == 1


async def test_an_endpoint_on_another_chain_is_left_again(clock):
    def wrong(body):
        return fixed({"result": "0x1"})(body)

    def right(body):
        return fixed({"result": "0x7a69"})(body)

    async with serve(wrong, clock) as other, serve(right, clock) as ours:
        rpc = Rpc([str(other._urls[0]), str(ours._urls[0])], other._http, clock=clock)
        rpc._chain_id = 31337
        with pytest.raises(WrongChainError):
            await rpc.request("eth_blockNumber")
        assert await rpc.request("eth_blockNumber") == "0x7a69"


async def test_redirects_are_not_followed(clock):
    async with serve(lambda _: web.Response(status=307, headers={"Location": "http://127.0.0.1:9/"}), clock) as rpc:
        with pytest.raises(RpcError, match="status 307"):
            await rpc.request("eth_sendRawTransaction", ["0x"])


@pytest.mark.parametrize("url", ["", "evmrpc.0g.ai", "ftp://x", "http://", "http://[::1", "ws://x"])
async def test_what_is_no_http_url_is_refused(clock, url):
    with pytest.raises(ConfigError, match="http URL"):
        Rpc(url, Http(clock=clock))


async def test_a_session_of_the_callers_is_used_and_left_open(clock):
    async with aiohttp.ClientSession() as session, serve(echo, clock) as other:
        http = Http(session=session, clock=clock)
        rpc = Rpc(str(other._urls[0]), http, clock=clock)
        assert await rpc.request("eth_call", [7]) == 7
        await http.aclose()
        assert not session.closed


@pytest.mark.parametrize("value", [None, 5, True, "", "0x", "5", "0xzz", "0x" + "1" * 65, "-0x1", [], {}])
def test_what_is_no_quantity_is_an_error(value):
    with pytest.raises(RpcError):
        quantity(value)


@pytest.mark.parametrize("value", [None, 5, "", "ab", "0xa", "0xzz", []])
def test_what_is_no_hex_is_an_error(value):
    with pytest.raises(RpcError):
        blob(value)


def test_quantities_and_bytes_are_read():
    assert quantity("0x0") == 0
    assert quantity("0x" + "f" * 64) == 2**256 - 1
    assert blob("0x") == b""
    assert blob("0xAb") == b"\xab"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("7", 7.0), ("0", 0.0), ("", None), ("-5", None), ("soon", None), ("9" * 40, None), ("1.5", None)]
    + [(f"Fri, 20 Nov {year} 18:00:00 GMT", None) for year in ("9" * 20, "99999")]
    + [("Fri, 20 Nov 2026 18:99999999999999999999", None), ("Fri, 20 Nov 2026 18:00:00 +9999999999999999", None)],
)
def test_retry_after_is_read_and_noise_ignored(text, seconds):
    assert retry_after({"retry-after": text}) == seconds


def test_a_past_retry_after_date_is_zero():
    assert retry_after({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}) == 0.0


@pytest.mark.parametrize("number", [[], {}, 1.0, True, "1"])
async def test_an_answer_whose_id_is_no_number_answers_nothing(clock, number):
    async with serve(lambda _: {"jsonrpc": "2.0", "id": number, "result": "0x1"}, clock) as rpc:
        with pytest.raises(ChainUnavailableError, match="unanswered"):
            await rpc.request("eth_blockNumber", [])
