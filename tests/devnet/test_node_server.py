"""What only the package's own node promises: answers held back, guarded doors, clean ends."""

import io
import json
from collections.abc import AsyncGenerator

import aiohttp
import anyio
import pytest

from tests.devnet.node_kit import GENESIS, NEW, OWNER, Client, RpcAnswerError, calldata, sign
from zg_async.devnet.engines import make_engine
from zg_async.devnet.evm import Evm
from zg_async.devnet.node import Node
from zg_async.errors import ClosedError, RpcError

pytestmark = pytest.mark.slow


def make_node(**options: object) -> Node:
    node = make_engine("pyevm", GENESIS, **options)  # type: ignore[arg-type]
    assert isinstance(node, Node)
    return node


@pytest.fixture
async def node() -> AsyncGenerator[Node, None]:
    async with make_node() as running:
        yield running


@pytest.fixture
async def client(node: Node) -> AsyncGenerator[Client, None]:
    async with aiohttp.ClientSession() as session:
        yield Client(session, node.url)


async def test_the_receipt_is_there_when_the_send_is_answered(client: Client) -> None:
    for _ in range(5):
        tx_hash = await client.send()
        assert (await client.ask("eth_getTransactionReceipt", tx_hash))["status"] == "0x1"


async def test_transactions_sent_together_share_blocks(client: Client) -> None:
    async with anyio.create_task_group() as group:
        for nonce in range(20):
            group.start_soon(client.ask, "eth_sendRawTransaction", sign(OWNER, nonce=nonce))
    assert await client.number("eth_getTransactionCount", OWNER.address, "latest") == 20
    assert await client.number("eth_blockNumber") < 20


async def test_quick_blocks_do_not_drive_the_clock(node: Node, client: Client) -> None:
    await node.mine(300)
    assert int((await client.head())["timestamp"], 16) <= await node.now()


async def test_other_requests_are_answered_during_a_long_call(node: Node, client: Client) -> None:
    probe = await client.deploy()
    order = []

    async def spin() -> None:
        with pytest.raises(RpcAnswerError, match="out of gas"):
            await client.call(probe, "spin", gas=hex(1_000_000))
        order.append("spin")

    async with anyio.create_task_group() as group:
        group.start_soon(spin)
        await anyio.lowlevel.checkpoint()
        for _ in range(5):
            await client.ask("eth_blockNumber")
        order.append("numbers")
    assert order == ["numbers", "spin"]


async def test_mining_by_the_clock_shows_what_waits() -> None:
    async with make_node(block_time=3600) as node, aiohttp.ClientSession() as session:
        client = Client(session, node.url)
        tx_hash = await client.send(nonce=0)
        assert await client.number("eth_getTransactionCount", OWNER.address, "pending") == 1
        assert (await client.ask("eth_getTransactionByHash", tx_hash))["blockNumber"] is None
        assert tx_hash in (await client.ask("eth_getBlockByNumber", "pending", False))["transactions"]
        assert await client.ask("txpool_status") == {"pending": "0x1", "queued": "0x0"}
        await client.ask("evm_mine")
        assert (await client.receipt(tx_hash))["status"] == "0x1"


async def test_mining_by_the_clock_mines_what_waits() -> None:
    async with make_node(block_time=0.1) as node, aiohttp.ClientSession() as session:
        client = Client(session, node.url)
        assert (await client.receipt(await client.send(nonce=0)))["status"] == "0x1"


async def test_automine_mines_what_waited_when_it_is_switched_on(node: Node, client: Client) -> None:
    await node.set_automine(False)
    tx_hash = await client.send(nonce=0)
    await node.set_automine(True)
    assert await client.ask("eth_getTransactionReceipt", tx_hash) is not None
    assert await node.request("anvil_getAutomine") is True


async def test_a_batch_of_sends_is_mined_in_order(client: Client) -> None:
    requests = [
        {"jsonrpc": "2.0", "id": nonce, "method": "eth_sendRawTransaction", "params": [sign(OWNER, nonce=nonce)]}
        for nonce in range(3)
    ]
    answers = await client.post(requests)
    assert [len(answer["result"]) for answer in answers] == [66, 66, 66]
    assert await client.number("eth_blockNumber") == 3


# --- what comes in ---


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[" * 100_000, b'{"a":1,"a":2}', b"\xff\xfe", b"NaN"],
    ids=["empty", "cut", "deep", "twice", "binary", "nan"],
)
async def test_what_is_no_json_is_a_parse_error(client: Client, body: bytes) -> None:
    async with client.session.post(client.url, data=body) as reply:
        assert reply.status == 200
        assert json.loads(await reply.read())["error"]["code"] == -32700


@pytest.mark.parametrize("body", [1, "x", [], [[]], [1], {}, {"method": 3, "id": 1}, {"method": "a", "id": {}}])
async def test_what_is_no_request_is_invalid(client: Client, body: object) -> None:
    answer = await client.post(body)
    one = answer[0] if isinstance(answer, list) else answer
    assert one["error"]["code"] == -32600


async def test_a_notification_gets_no_answer(client: Client) -> None:
    async with client.session.post(client.url, json={"jsonrpc": "2.0", "method": "eth_chainId"}) as reply:
        assert (reply.status, await reply.read()) == (200, b"")


@pytest.mark.parametrize(
    ("method", "params"),
    [
        ("eth_getBalance", []),
        ("eth_getBalance", ["0x12", "latest"]),
        ("eth_getBalance", [OWNER.address, "newest"]),
        ("eth_getBalance", [OWNER.address, "latest", 1]),
        ("eth_getBalance", {"address": OWNER.address}),
        ("eth_getBalance", [7, "latest"]),
        ("eth_getTransactionReceipt", ["0x1"]),
        ("eth_getBlockByNumber", [True, False]),
        ("eth_getBlockByNumber", ["0x" + "f" * 70, False]),
        ("eth_sendRawTransaction", ["abc"]),
        ("eth_sendRawTransaction", ["0x0"]),
        ("eth_sendRawTransaction", ["0x 1"]),
        ("eth_call", ["latest"]),
        ("eth_call", [{"to": OWNER.address, "data": "0x00", "input": "0x01"}]),
        ("eth_call", [{"to": OWNER.address}, "latest", {OWNER.address: {}}]),
        ("eth_getLogs", [{"topics": [1]}]),
        ("eth_getLogs", [{"address": {}}]),
        ("eth_getLogs", [{"blockHash": "0x" + "0" * 64, "fromBlock": "0x0"}]),
        ("eth_getLogs", ["x"]),
        ("evm_increaseTime", ["soon"]),
        ("evm_setAutomine", [1]),
        ("evm_setIntervalMining", [-1]),
        ("anvil_mine", ["0xffffff"]),
        ("anvil_reorg", [1, []]),
        ("eth_feeHistory", ["0x1", "latest", ["x"]]),
    ],
)
async def test_bad_parameters_are_named_as_such(client: Client, method: str, params: object) -> None:
    answer = await client.post({"jsonrpc": "2.0", "id": 1, "method": method, "params": params})
    assert answer["error"]["code"] == -32602


async def test_a_block_that_is_not_there_has_no_state(client: Client) -> None:
    with pytest.raises(RpcAnswerError, match="header not found"):
        await client.ask("eth_getBalance", OWNER.address, "0x10")


@pytest.mark.parametrize(
    "headers",
    [{"Host": "evil.example"}, {"Host": "evil.example:8545"}, {"Origin": "http://localhost"}, {"Origin": "null"}],
)
async def test_a_browser_is_kept_out(client: Client, headers: dict[str, str]) -> None:
    body = {"jsonrpc": "2.0", "id": 1, "method": "eth_chainId"}
    async with client.session.post(client.url, json=body, headers=headers) as reply:
        assert reply.status == 403


async def test_a_name_can_be_let_in() -> None:
    evm = Evm({}, timestamp=0)
    async with Node(evm, allow_hosts=["devnet.internal"]) as node, aiohttp.ClientSession() as session:
        body = {"jsonrpc": "2.0", "id": 1, "method": "eth_chainId"}
        async with session.post(node.url, json=body, headers={"Host": "devnet.internal:1"}) as reply:
            assert reply.status == 200


async def test_a_body_that_is_too_large_is_refused(client: Client) -> None:
    async with client.session.post(client.url, data=io.BytesIO(bytes(9 * 2**20))) as reply:
        assert reply.status == 413


async def test_get_is_told_to_post(client: Client) -> None:
    async with client.session.get(client.url) as reply:
        assert reply.status == 405


# --- in process ---


async def test_requests_work_without_a_socket(node: Node) -> None:
    assert await node.request("eth_chainId") == "0x7a69"
    with pytest.raises(RpcError) as caught:
        await node.request("eth_nothing")
    assert caught.value.rpc_code == -32601


async def test_a_closed_node_has_no_url() -> None:
    node = make_node()
    with pytest.raises(ClosedError):
        _ = node.url
    await node.start()
    await node.aclose()
    await node.aclose()
    with pytest.raises(ClosedError):
        _ = node.url


async def test_a_taken_port_is_an_error_that_leaves_nothing(node: Node) -> None:
    other = Node(Evm({}, timestamp=0), port=int(node.url.rsplit(":", 1)[1]))
    with pytest.raises(OSError, match="in use"):
        await other.start()
    assert await node.request("net_version") == "31337"


# --- WebSocket ---


class Socket:
    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.socket = socket
        self.news: list[dict] = []

    async def ask(self, method: str, *params: object) -> object:
        await self.socket.send_json({"jsonrpc": "2.0", "id": 1, "method": method, "params": params})
        with anyio.fail_after(5):
            while (message := await self.socket.receive_json()).get("id") != 1:
                self.news.append(message["params"])
        if "error" in message:
            raise RpcAnswerError(message["error"])
        return message["result"]

    async def next(self) -> dict:
        with anyio.fail_after(5):
            return self.news.pop(0) if self.news else (await self.socket.receive_json())["params"]


@pytest.fixture
async def socket(client: Client) -> AsyncGenerator[Socket, None]:
    async with client.session.ws_connect(client.url.replace("http", "ws")) as open_socket:
        yield Socket(open_socket)


async def test_a_reorg_takes_logs_back(node: Node, client: Client, socket: Socket) -> None:
    probe = await client.deploy()
    await socket.ask("eth_subscribe", "logs", {"address": probe})
    receipt = await client.mined(to=probe, data=calldata("deposit", 1, ""), value=1_000, gas=300_000)
    assert (await socket.next())["result"]["removed"] is False
    await node.request("zg_reorg", 1, {"keep": True})
    gone = (await socket.next())["result"]
    assert (gone["removed"], gone["transactionHash"]) == (True, receipt["transactionHash"])
    await node.mine()
    again = (await socket.next())["result"]
    assert (again["removed"], again["blockHash"] == receipt["blockHash"]) == (False, False)


async def test_a_revert_takes_logs_back(node: Node, client: Client, socket: Socket) -> None:
    probe = await client.deploy()
    here = await node.snapshot()
    await socket.ask("eth_subscribe", "logs", {"address": probe})
    await client.mined(to=probe, data=calldata("deposit", 1, ""), value=1_000, gas=300_000)
    await node.revert(here)
    assert [(await socket.next())["result"]["removed"] for _ in range(2)] == [False, True]


async def test_waiting_transactions_are_pushed(client: Client, socket: Socket) -> None:
    number = await socket.ask("eth_subscribe", "newPendingTransactions")
    tx_hash = await client.send()
    assert await socket.next() == {"subscription": number, "result": tx_hash}


async def test_an_ended_subscription_is_quiet(node: Node, socket: Socket) -> None:
    number = await socket.ask("eth_subscribe", "newHeads")
    assert await socket.ask("eth_unsubscribe", number) is True
    assert await socket.ask("eth_unsubscribe", number) is False
    await node.mine()
    await socket.ask("eth_blockNumber")
    assert socket.news == []


@pytest.mark.parametrize("kind", ["newBlockHashes", "syncing", 1])
async def test_unknown_subscriptions_are_refused(socket: Socket, kind: object) -> None:
    with pytest.raises(RpcAnswerError):
        await socket.ask("eth_subscribe", kind)


async def test_subscriptions_need_a_websocket(client: Client) -> None:
    with pytest.raises(RpcAnswerError, match="does not exist"):
        await client.ask("eth_subscribe", "newHeads")


async def test_closing_the_node_ends_its_websockets() -> None:
    node = make_node()
    await node.start()
    async with aiohttp.ClientSession() as session, session.ws_connect(node.url.replace("http", "ws")) as socket:
        with anyio.fail_after(5):
            await node.aclose()
            assert (await socket.receive()).type == aiohttp.WSMsgType.CLOSE


async def test_a_client_that_is_gone_disturbs_nobody(node: Node, client: Client) -> None:
    gone = await client.session.ws_connect(client.url.replace("http", "ws"))
    await gone.send_json({"jsonrpc": "2.0", "id": 1, "method": "eth_subscribe", "params": ["newHeads"]})
    await gone.receive_json()
    await gone.close()
    await node.mine(3)
    assert await client.number("eth_blockNumber") == 3


async def test_filters_see_waiting_transactions_and_removed_logs(node: Node, client: Client) -> None:
    waiting = await client.ask("eth_newPendingTransactionFilter")
    tx_hash = await client.send(to=NEW.address, value=1)
    assert await client.ask("eth_getFilterChanges", waiting) == [tx_hash]
    probe = await client.deploy()
    logs = await client.ask("eth_newFilter", {"address": probe})
    await client.mined(to=probe, data=calldata("deposit", 1, ""), value=1_000, gas=300_000)
    assert len(await client.ask("eth_getFilterLogs", logs)) == 1
    await node.reorg(1)
    assert [log["removed"] for log in await client.ask("eth_getFilterChanges", logs)] == [False, True]
