"""Whatever a provider, a storage node, a collateral service or an RPC endpoint sends is cut off at a cap of its own."""

import contextlib

import pytest
from aiohttp import web

from tests.http_server import serving
from tests.tee_kit import fields, good_report
from zg_async.errors import ChainError, ProviderReplyError, StorageError
from zg_async.managers import provider_client
from zg_async.managers.provider_client import ProviderClient
from zg_async.transport import tee
from zg_async.transport.http import Http, HttpSettings
from zg_async.transport.limiter import UNLIMITED
from zg_async.transport.retry import RetryPolicy
from zg_async.transport.rpc import Rpc, RpcSettings
from zg_async.transport.storage_nodes import NodeClient
from zg_async.wire import provider_api, storage_api
from zg_async.wire.records import Address, TaskId

USER = Address("0x70997970C51812dc3A010C7d01b50e0d17dc79C8")
TASK = TaskId("11111111-2222-3333-4444-555555555555")
QUOTE = bytes.fromhex(fields(good_report().body)["quote"])
MIB = 2**20
IN_FLIGHT = 24 * MIB
"""What may lie in the sockets' and the client's buffers when it hangs up."""


class Flood:
    """Sends JSON that doesn't end, and counts it."""

    def __init__(self) -> None:
        self.sent = 0

    async def __call__(self, request: web.Request) -> web.StreamResponse:
        await request.read()
        answer = web.StreamResponse(headers={"Content-Type": "application/json"})
        await answer.prepare(request)
        with contextlib.suppress(ConnectionError):
            await answer.write(b'{"jsonrpc":"2.0","id":1,"result":"')
            for _ in range(256):
                await answer.write(b"a" * MIB)
                self.sent += MIB
        return answer


def provider(http: Http, base: str) -> ProviderClient:
    return ProviderClient(http, base, USER, http.clock)


CALLS = {
    "quote": (lambda h, b: provider(h, b).get_quote(), provider_api.QUOTE_LIMIT, ProviderReplyError),
    "task": (lambda h, b: provider(h, b).get_task(USER, TASK), provider_api.TASK_LIMIT, ProviderReplyError),
    "tasks": (lambda h, b: provider(h, b).list_tasks(USER), provider_api.LIST_LIMIT, ProviderReplyError),
    "models": (lambda h, b: provider(h, b).models(), provider_api.LIST_LIMIT, ProviderReplyError),
    "model": (lambda h, b: provider(h, b).model("0x" + "ab" * 32), provider_api.TASK_LIMIT, ProviderReplyError),
    "pending": (lambda h, b: provider(h, b).pending(), provider_api.TASK_LIMIT, ProviderReplyError),
    "created": (lambda h, b: provider(h, b).create_task(USER, {}), provider_api.TASK_LIMIT, ProviderReplyError),
    "any other": (lambda h, b: h.request("GET", b), MIB, ProviderReplyError),
    "collateral": (lambda h, b: tee.fetch_collateral(h, b, QUOTE), 4 * MIB, ProviderReplyError),
    "node": (lambda h, b: NodeClient(h, b).call(storage_api.get_status()), storage_api.REPLY_LIMIT, StorageError),
    "nodes": (lambda h, b: NodeClient(h, b).call(storage_api.sharded_nodes()), storage_api.LIST_LIMIT, StorageError),
    "segment": (
        lambda h, b: NodeClient(h, b).call(storage_api.download_segment_with_proof(b"\1" * 32, 0)),
        storage_api.SEGMENT_LIMIT,
        StorageError,
    ),
    "rpc": (lambda h, b: Rpc(b, h, clock=h.clock).request("eth_call", []), RpcSettings().list_limit, ChainError),
}


@pytest.mark.goal("HRD-12", part="caps")
@pytest.mark.goal("HRD-10", part="caps per endpoint")
@pytest.mark.goal("SEC-07", part="JSON and quotes")
@pytest.mark.parametrize("name", CALLS)
async def test_an_endless_answer_is_cut_off_at_its_cap(clock, name):
    ask, limit, error = CALLS[name]
    flood = Flood()
    settings = HttpSettings(allow_hosts=("127.0.0.1",), limits=UNLIMITED, retry=RetryPolicy(attempts=1))
    async with serving(flood) as base, Http(settings=settings, clock=clock) as http:
        with pytest.raises(error):
            await ask(http, base)
    assert flood.sent < limit + IN_FLIGHT


@pytest.mark.goal("HRD-12", part="caps")
@pytest.mark.goal("SEC-07", part="logs")
async def test_of_an_endless_log_the_beginning_is_kept(clock, monkeypatch):
    monkeypatch.setattr(provider_api, "LOG_LIMIT", 3 * MIB)
    flood = Flood()
    settings = HttpSettings(allow_hosts=("127.0.0.1",), limits=UNLIMITED)
    async with serving(flood) as base, Http(settings=settings, clock=clock) as http:
        log = await provider(http, base).get_log_bytes(USER, TASK)
    assert len(log) == 3 * MIB
    assert flood.sent < 3 * MIB + IN_FLIGHT


async def test_a_model_document_has_a_cap_and_leaves_nothing(clock, monkeypatch, tmp_path):
    monkeypatch.setattr(provider_client, "USAGE_LIMIT", 3 * MIB)
    flood = Flood()
    settings = HttpSettings(allow_hosts=("127.0.0.1",), limits=UNLIMITED)
    async with serving(flood) as base, Http(settings=settings, clock=clock) as http:
        with pytest.raises(ProviderReplyError, match="more than"):
            await provider(http, base).model_usage("0x" + "ab" * 32, tmp_path)
    assert list(tmp_path.iterdir()) == []
