"""One suite for every chain engine: what the SDK, ethers and web3.py need of a node, over real sockets."""

import json
from collections.abc import AsyncGenerator

import aiohttp
import anyio
import anyio.lowlevel
import pytest
from eth_abi import decode, encode
from eth_utils import keccak

from tests.devnet.node_kit import GENESIS, NEW, OTHER, OWNER, PROBE, Client, RpcAnswerError, calldata, sign, uint
from zg_async.devnet.anvil import find_anvil
from zg_async.devnet.engine import Engine
from zg_async.devnet.engines import make_engine

pytestmark = pytest.mark.slow
TOPIC = "0x" + keccak(text="Deposited(address,uint256,string,uint256)").hex()
LONG = 3600 * 24


@pytest.fixture(params=["pyevm", "anvil"])
async def engine(request: pytest.FixtureRequest) -> AsyncGenerator[Engine, None]:
    if request.param == "anvil" and find_anvil() is None:
        pytest.skip("anvil is not installed; set ZG_ANVIL to its binary")
    async with make_engine(request.param, GENESIS) as running:
        yield running


@pytest.fixture
async def client(engine: Engine) -> AsyncGenerator[Client, None]:
    async with aiohttp.ClientSession() as session:
        yield Client(session, engine.url)


# --- the plain things ---


async def test_chain_id_version_and_accounts_are_told(client: Client) -> None:
    assert await client.number("eth_chainId") == 31337
    assert await client.ask("net_version") == "31337"
    assert await client.ask("eth_accounts") == []
    assert await client.ask("eth_syncing") is False
    assert isinstance(await client.ask("web3_clientVersion"), str)


async def test_the_genesis_funds_the_accounts_given(client: Client) -> None:
    assert await client.number("eth_getBalance", OWNER.address, "latest") == 100_000 * 10**18
    assert await client.number("eth_getBalance", OTHER.address.lower(), "earliest") in (0, 100_000 * 10**18)
    assert await client.number("eth_getBalance", NEW.address, "latest") == 0


async def test_blocks_have_60_million_gas_and_a_base_fee(client: Client) -> None:
    block = await client.head()
    assert int(block["gasLimit"], 16) == 60_000_000
    assert int(block["baseFeePerGas"], 16) == 10**9
    needed = {"number", "parentHash", "timestamp", "difficulty", "extraData", "gasLimit", "gasUsed", "transactions"}
    assert needed <= block.keys()


@pytest.mark.parametrize("fields", [{"gasPrice": 3 * 10**9}, {"gasPrice": 3 * 10**9, "type": 1}, {}], ids="012")
async def test_each_transaction_type_moves_value(client: Client, fields: dict) -> None:
    access = {"accessList": []} if fields.get("type") == 1 else {}
    receipt = await client.mined(to=NEW.address, value=5, gas=25_000, **fields, **access)
    assert (receipt["status"], int(receipt["gasUsed"], 16)) == ("0x1", 21_000)
    assert await client.number("eth_getBalance", NEW.address, "latest") == 5
    assert int(receipt["type"], 16) == (2 if not fields else fields.get("type", 0))


async def test_a_receipt_and_its_transaction_have_what_ethers_insists_on(client: Client) -> None:
    raw = await client.sign(value=7)
    tx_hash = await client.ask("eth_sendRawTransaction", raw)
    assert tx_hash == "0x" + keccak(hexstr=raw).hex()
    receipt = await client.receipt(tx_hash)
    needed = {"transactionIndex", "blockHash", "blockNumber", "gasUsed", "cumulativeGasUsed", "logs", "from", "to"}
    assert all(receipt[field] is not None for field in needed)
    assert receipt["transactionHash"] == tx_hash
    assert receipt["contractAddress"] is None
    with anyio.fail_after(10):  # anvil's pool keeps it a moment longer
        while (tx := await client.ask("eth_getTransactionByHash", tx_hash))["blockHash"] is None:
            await anyio.lowlevel.checkpoint()
    assert (tx["hash"], tx["blockHash"], tx["value"]) == (tx_hash, receipt["blockHash"], "0x7")
    assert tx["from"].lower() == OWNER.address.lower()
    assert {"nonce", "gas", "input", "v", "r", "s", "maxFeePerGas", "gasPrice", "chainId"} <= tx.keys()
    block = await client.ask("eth_getBlockByHash", receipt["blockHash"], True)
    assert block["transactions"][0]["hash"] == tx_hash
    assert await client.ask("eth_getTransactionByBlockHashAndIndex", receipt["blockHash"], "0x0") == tx
    assert await client.ask("eth_getTransactionByBlockNumberAndIndex", receipt["blockNumber"], "0x0") == tx
    assert await client.ask("eth_getTransactionByBlockNumberAndIndex", receipt["blockNumber"], "0x1") is None
    [again] = await client.ask("eth_getBlockReceipts", receipt["blockNumber"])
    assert again["transactionHash"] == tx_hash


async def test_what_is_unknown_is_null(client: Client) -> None:
    nowhere = "0x" + "ab" * 32
    assert await client.ask("eth_getTransactionReceipt", nowhere) is None
    assert await client.ask("eth_getTransactionByHash", nowhere) is None
    assert await client.ask("eth_getBlockByHash", nowhere, False) is None
    assert await client.ask("eth_getBlockByNumber", "0xfffff", False) is None


@pytest.mark.parametrize("tag", ["latest", "pending", "earliest", "safe", "finalized"])
async def test_every_block_tag_gives_a_block(client: Client, tag: str) -> None:
    await client.mined()
    block = await client.ask("eth_getBlockByNumber", tag, False)
    assert {"latest": 1, "pending": 2}.get(tag, int(block["number"], 16)) == int(block["number"], 16)


async def test_a_batch_is_answered_by_id_with_status_200(client: Client) -> None:
    answers = await client.post(
        [
            {"jsonrpc": "2.0", "id": 7, "method": "eth_chainId", "params": []},
            {"jsonrpc": "2.0", "id": 3, "method": "eth_blockNumber", "params": []},
            {"jsonrpc": "2.0", "id": 5, "method": "no_such_thing", "params": []},
        ]
    )
    by_id = {answer["id"]: answer for answer in answers}
    assert by_id[7]["result"] == "0x7a69"
    assert by_id[3]["result"] == "0x0"
    assert by_id[5]["error"]["code"] == -32601


# --- fees ---


async def test_the_gas_price_covers_the_next_base_fee(client: Client) -> None:
    assert await client.number("eth_maxPriorityFeePerGas") > 0
    price = await client.number("eth_gasPrice")
    receipt = await client.mined(maxFeePerGas=price, maxPriorityFeePerGas=price)
    assert receipt["status"] == "0x1"


async def test_the_fee_history_has_one_base_fee_more_than_blocks(client: Client) -> None:
    await client.mined()
    await client.mined()
    history = await client.ask("eth_feeHistory", "0x2", "latest", [25, 75])
    assert int(history["oldestBlock"], 16) == 1
    assert (len(history["baseFeePerGas"]), len(history["gasUsedRatio"])) == (3, 2)
    assert [len(row) for row in history["reward"]] == [2, 2]
    assert int(history["reward"][0][0], 16) == 10**9


async def test_the_base_fee_sinks_by_an_eighth_in_empty_blocks(engine: Engine, client: Client) -> None:
    await engine.mine()
    before = int((await client.head())["baseFeePerGas"], 16)
    await engine.mine()
    assert int((await client.head())["baseFeePerGas"], 16) == before - before // 8


async def test_calldata_costs_at_least_the_floor(engine: Engine, client: Client) -> None:
    data = b"\1" * 1_000
    floor = 21_000 + 40 * len(data)
    call = {"from": OWNER.address, "to": NEW.address, "data": "0x" + data.hex()}
    assert await client.number("eth_estimateGas", call) >= floor
    receipt = await client.mined(to=NEW.address, data=data, gas=100_000)
    assert int(receipt["gasUsed"], 16) == floor
    if engine.name == "pyevm":  # anvil takes it and never mines it
        with pytest.raises(RpcAnswerError, match="floor data gas"):
            await client.send(to=NEW.address, data=data, gas=floor - 1)


# --- contracts ---


async def test_a_contract_is_deployed_called_and_read(client: Client) -> None:
    probe = await client.deploy()
    assert len(await client.ask("eth_getCode", probe, "latest")) > 1_000
    assert await client.ask("eth_getCode", probe, "0x0") == "0x"
    receipt = await client.mined(to=probe, data=calldata("deposit", 3, "note"), value=1_500, gas=300_000)
    assert receipt["status"] == "0x1"
    assert uint(await client.call(probe, "balances", OWNER.address)) == 1_500
    (items,) = decode(["(string,uint256)[]"], await client.call(probe, "all"))
    assert items == (("note", 1_500),)
    assert await client.number("eth_getBalance", probe, "latest") == 1_500
    assert int(await client.ask("eth_getStorageAt", probe, "0x1", "latest"), 16) == 0


async def test_old_blocks_keep_their_state(client: Client) -> None:
    probe = await client.deploy()
    first = await client.mined(to=probe, data=calldata("count"), gas=100_000)
    await client.mined(to=probe, data=calldata("count"), gas=100_000)
    assert uint(await client.call(probe, "counter")) == 2
    assert uint(await client.call(probe, "counter", block=first["blockNumber"])) == 1
    assert uint(await client.call(probe, "counter", block={"blockHash": first["blockHash"]})) == 1
    assert uint(await client.call(probe, "counter", block={"blockNumber": first["blockNumber"]})) == 1
    assert await client.number("eth_getTransactionCount", OWNER.address, first["blockNumber"]) == 2


async def test_custom_errors_come_as_hex_data_with_code_3(client: Client) -> None:
    probe = await client.deploy()
    call = {"from": OWNER.address, "to": probe, "data": calldata("deposit", 1, ""), "value": "0x5"}
    expected = "0x" + (keccak(text="TooLittle(address,uint256,uint256)")[:4]).hex()
    for method, params in (("eth_call", [call, "latest"]), ("eth_estimateGas", [call])):
        with pytest.raises(RpcAnswerError, match="execution reverted") as caught:
            await client.ask(method, *params)
        assert caught.value.code == 3
        assert caught.value.data.startswith(expected)
        assert decode(["address", "uint256", "uint256"], bytes.fromhex(caught.value.data[10:]))[1:] == (5, 1_000)


async def test_a_string_revert_says_its_reason(client: Client) -> None:
    probe = await client.deploy(lock=LONG)
    with pytest.raises(RpcAnswerError, match="still locked") as caught:
        await client.call(probe, "withdraw")
    assert caught.value.data.startswith("0x08c379a0")


async def test_a_panic_has_its_code(client: Client) -> None:
    probe = await client.deploy()
    with pytest.raises(RpcAnswerError) as caught:
        await client.call(probe, "divide", 0)
    assert caught.value.data == "0x4e487b71" + f"{0x12:064x}"


async def test_a_reverted_transaction_is_mined_with_status_0(client: Client) -> None:
    probe = await client.deploy()
    receipt = await client.mined(to=probe, data=calldata("deposit", 1, ""), value=5, gas=200_000)
    assert (receipt["status"], receipt["logs"]) == ("0x0", [])


async def test_an_estimate_is_enough_and_not_much_more(client: Client) -> None:
    probe = await client.deploy()
    fields = {"to": probe, "data": calldata("deposit", 1, "some text"), "value": hex(2_000)}
    estimate = await client.number("eth_estimateGas", {"from": OWNER.address, **fields, "maxFeePerGas": hex(3 * 10**9)})
    receipt = await client.mined(to=probe, data=fields["data"], value=2_000, gas=estimate)
    assert receipt["status"] == "0x1"
    assert int(receipt["gasUsed"], 16) <= estimate <= int(receipt["gasUsed"], 16) * 1.15


async def test_an_estimate_of_nested_calls_is_enough(client: Client) -> None:
    probe = await client.deploy()
    data = calldata("dive", 30)
    estimate = await client.number("eth_estimateGas", {"from": OWNER.address, "to": probe, "data": data})
    assert (await client.mined(to=probe, data=data, gas=estimate))["status"] == "0x1"


async def test_code_may_have_24576_bytes_and_no_more(client: Client) -> None:
    for size, status in ((24_576, "0x1"), (24_577, "0x0")):
        init = bytes.fromhex("62") + size.to_bytes(3, "big") + bytes.fromhex("6000f3")
        receipt = await client.mined(to=None, data=init, gas=6_000_000)
        assert receipt["status"] == status


async def test_init_code_may_have_49152_bytes_and_no_more(client: Client) -> None:
    assert (await client.mined(to=None, data=bytes(49_152), gas=3_000_000))["status"] == "0x1"
    with pytest.raises(RpcAnswerError):
        await client.send(to=None, data=bytes(49_153), gas=3_000_000)
    assert (await client.mined())["status"] == "0x1"


async def test_the_hash_of_an_old_block_is_known_inside_the_evm(client: Client) -> None:
    probe = await client.deploy()
    deployed = await client.head()
    await client.mined()
    seen = await client.call(probe, "hashOf", 1)
    assert "0x" + seen.hex() == deployed["hash"]


async def test_a_call_may_be_long_but_ends(client: Client) -> None:
    probe = await client.deploy()
    with pytest.raises(RpcAnswerError, match=r"(?i)out ?of ?gas"):
        await client.call(probe, "spin", gas=hex(500_000))


# --- logs ---


async def test_logs_are_found_by_address_topic_range_and_block(client: Client) -> None:
    first, second = await client.deploy(), await client.deploy()
    receipts = [
        await client.mined(who, to=to, data=calldata("deposit", mark, "x"), value=1_000, gas=300_000)
        for who, to, mark in ((OWNER, first, 1), (OWNER, second, 2), (OTHER, first, 3))
    ]

    async def found(**options: object) -> list[int]:
        logs = await client.ask("eth_getLogs", {"fromBlock": "0x0", "toBlock": "latest"} | options)
        return [int(log["topics"][2], 16) for log in logs]

    marks = ["0x" + f"{mark:064x}" for mark in range(4)]
    sender = "0x" + encode(["address"], [OTHER.address]).hex()
    assert await found() == [1, 2, 3]
    assert await found(address=first) == [1, 3]
    assert await found(address=[first, second]) == [1, 2, 3]
    assert await found(topics=[TOPIC]) == [1, 2, 3]
    assert await found(topics=[None, sender]) == [3]
    assert await found(topics=[[TOPIC], None, [marks[1], marks[2]]]) == [1, 2]
    assert await found(topics=[marks[0]]) == []
    assert await found(fromBlock=receipts[1]["blockNumber"]) == [2, 3]
    assert await found(toBlock=receipts[0]["blockNumber"]) == [1]
    assert await found(fromBlock="latest") == [3]
    logs = await client.ask("eth_getLogs", {"blockHash": receipts[1]["blockHash"]})
    assert [log["transactionHash"] for log in logs] == [receipts[1]["transactionHash"]]
    assert logs[0] == receipts[1]["logs"][0] | {"removed": False}
    needed = "address topics data blockNumber blockHash transactionHash transactionIndex logIndex removed"
    assert set(needed.split()) <= logs[0].keys()


async def test_filters_give_what_came_since_the_last_time(client: Client) -> None:
    probe = await client.deploy()
    logs = await client.ask("eth_newFilter", {"address": probe, "fromBlock": "latest"})
    blocks = await client.ask("eth_newBlockFilter")
    await client.ask("eth_getFilterChanges", logs)
    receipt = await client.mined(to=probe, data=calldata("deposit", 4, ""), value=1_000, gas=300_000)
    assert [log["transactionHash"] for log in await client.ask("eth_getFilterChanges", logs)] == [
        receipt["transactionHash"]
    ]
    assert await client.ask("eth_getFilterChanges", blocks) == [receipt["blockHash"]]
    assert await client.ask("eth_getFilterChanges", logs) == []
    assert await client.ask("eth_uninstallFilter", logs) is True
    with pytest.raises(RpcAnswerError):
        await client.ask("eth_getFilterLogs", logs)


# --- the pool ---


async def test_the_pending_nonce_counts_what_waits(engine: Engine, client: Client) -> None:
    await engine.set_automine(False)
    tx_hash = await client.send(nonce=0)
    assert await client.number("eth_getTransactionCount", OWNER.address, "latest") == 0
    assert await client.number("eth_getTransactionCount", OWNER.address, "pending") == 1
    assert await client.ask("eth_getTransactionReceipt", tx_hash) is None
    waiting = await client.ask("eth_getTransactionByHash", tx_hash)
    assert (waiting["hash"], waiting["blockNumber"], waiting["blockHash"]) == (tx_hash, None, None)
    await engine.mine()
    assert (await client.receipt(tx_hash))["status"] == "0x1"


async def test_a_transaction_after_a_gap_waits_for_the_one_before(client: Client) -> None:
    later = await client.send(nonce=1)
    assert await client.ask("eth_getTransactionReceipt", later) is None
    assert await client.number("eth_getTransactionCount", OWNER.address, "pending") == 0
    await client.mined(nonce=0)
    assert (await client.receipt(later))["status"] == "0x1"


async def test_a_used_nonce_is_too_low(client: Client) -> None:
    raw = await client.sign(nonce=0)
    await client.receipt(await client.ask("eth_sendRawTransaction", raw))
    for again in (raw, await client.sign(nonce=0, value=1)):
        with pytest.raises(RpcAnswerError, match="nonce too low"):
            await client.ask("eth_sendRawTransaction", again)


async def test_a_waiting_transaction_is_already_known(engine: Engine, client: Client) -> None:
    await engine.set_automine(False)
    raw = await client.sign(nonce=0)
    await client.ask("eth_sendRawTransaction", raw)
    with pytest.raises(RpcAnswerError, match=r"already (known|imported)"):
        await client.ask("eth_sendRawTransaction", raw)


async def test_a_replacement_needs_ten_percent_more_of_both_fees(engine: Engine, client: Client) -> None:
    await engine.set_automine(False)
    old = await client.send(nonce=0, maxFeePerGas=3 * 10**9, maxPriorityFeePerGas=10**9)
    if engine.name == "pyevm":  # anvil takes any higher fee
        for cap, tip in ((3 * 10**9 + 1, 10**9 + 1), (33 * 10**8, 10**9), (3 * 10**9, 11 * 10**8)):
            with pytest.raises(RpcAnswerError, match="replacement transaction underpriced"):
                await client.send(nonce=0, maxFeePerGas=cap, maxPriorityFeePerGas=tip)
    new = await client.send(nonce=0, maxFeePerGas=33 * 10**8, maxPriorityFeePerGas=11 * 10**8)
    await engine.mine()
    assert (await client.receipt(new))["status"] == "0x1"
    assert await client.ask("eth_getTransactionReceipt", old) is None
    assert await client.ask("eth_getTransactionByHash", old) is None


async def test_who_cannot_pay_hears_of_insufficient_funds(client: Client) -> None:
    with pytest.raises(RpcAnswerError, match=r"(?i)insufficient funds"):
        await client.send(NEW, nonce=0, value=1)


async def test_a_transaction_of_another_chain_is_refused(client: Client) -> None:
    with pytest.raises(RpcAnswerError, match="chain id"):
        await client.send(nonce=0, chainId=1)


async def test_a_dropped_transaction_is_gone_and_can_be_sent_again(engine: Engine, client: Client) -> None:
    await engine.set_automine(False)
    raw = await client.sign(nonce=0)
    tx_hash = await client.ask("eth_sendRawTransaction", raw)
    assert await engine.drop(tx_hash) is True
    assert await engine.drop(tx_hash) is False
    await engine.mine()
    assert await client.ask("eth_getTransactionByHash", tx_hash) is None
    assert await client.ask("eth_sendRawTransaction", raw) == tx_hash
    await engine.mine()
    assert (await client.receipt(tx_hash))["status"] == "0x1"


async def test_a_fee_below_the_base_fee_waits_or_is_refused(engine: Engine, client: Client) -> None:
    await engine.set_automine(False)
    raw = await client.sign(nonce=0, maxFeePerGas=10, maxPriorityFeePerGas=1)
    if engine.name == "anvil":
        with pytest.raises(RpcAnswerError, match="fee"):
            await client.ask("eth_sendRawTransaction", raw)
        return
    tx_hash = await client.ask("eth_sendRawTransaction", raw)
    await engine.mine()
    assert await client.ask("eth_getTransactionReceipt", tx_hash) is None
    await engine.set_next_base_fee(5)
    await engine.mine()
    assert (await client.receipt(tx_hash))["status"] == "0x1"


async def test_many_at_once_are_all_mined_in_order(client: Client) -> None:
    hashes: dict[int, str] = {}

    async def one(nonce: int) -> None:
        hashes[nonce] = await client.ask("eth_sendRawTransaction", sign(OWNER, nonce=nonce))

    async with anyio.create_task_group() as group:
        for nonce in range(20):
            group.start_soon(one, nonce)
    places = []
    for nonce in range(20):
        receipt = await client.receipt(hashes[nonce])
        places.append((int(receipt["blockNumber"], 16), int(receipt["transactionIndex"], 16)))
    assert places == sorted(places)


async def test_blocks_come_by_the_clock_when_asked_to(engine: Engine, client: Client) -> None:
    await engine.set_block_time(1)
    tx_hash = await client.send(nonce=0)
    receipt = await client.receipt(tx_hash)
    assert receipt["status"] == "0x1"
    assert await client.number("eth_blockNumber") >= 1


# --- the clock ---


async def test_the_clock_can_be_moved_ahead(engine: Engine, client: Client) -> None:
    probe = await client.deploy(lock=LONG)
    with pytest.raises(RpcAnswerError, match="still locked"):
        await client.call(probe, "withdraw")
    before = await engine.now()
    assert await engine.increase_time(LONG + 5) >= LONG
    assert await engine.now() - before >= LONG
    await engine.mine()
    assert int((await client.head())["timestamp"], 16) >= before + LONG
    await client.call(probe, "withdraw")
    assert (await client.mined(to=probe, data=calldata("withdraw"), gas=100_000))["status"] == "0x1"


async def test_the_next_block_can_be_given_a_time(engine: Engine, client: Client) -> None:
    at = int((await client.head())["timestamp"], 16) + 1_000
    await engine.request("evm_setNextBlockTimestamp", at)
    await engine.mine()
    assert int((await client.head())["timestamp"], 16) == at


# --- ways back ---


async def test_a_snapshot_is_gone_back_to_once(engine: Engine, client: Client) -> None:
    await client.mined(to=NEW.address, value=1)
    here = await engine.snapshot()
    later = await client.mined(to=NEW.address, value=1)
    assert await engine.revert(here) is True
    assert await client.number("eth_blockNumber") == 1
    assert await client.number("eth_getBalance", NEW.address, "latest") == 1
    assert await client.ask("eth_getTransactionReceipt", later["transactionHash"]) is None
    assert await engine.revert(here) is False
    assert (await client.mined(to=NEW.address, value=1))["status"] == "0x1"


async def test_a_reorg_replaces_blocks_and_loses_their_transactions(engine: Engine, client: Client) -> None:
    probe = await client.deploy()
    kept = await client.head()
    gone = await client.mined(to=probe, data=calldata("deposit", 1, ""), value=1_000, gas=300_000)
    await client.mined()
    await engine.reorg(2)
    head = await client.head()
    assert int(head["number"], 16) == 3
    assert await client.ask("eth_getBlockByHash", gone["blockHash"], False) is None
    assert await client.ask("eth_getTransactionReceipt", gone["transactionHash"]) is None
    assert await client.ask("eth_getLogs", {"fromBlock": "0x0", "address": probe}) == []
    assert (await client.ask("eth_getBlockByNumber", "0x2", False))["parentHash"] == kept["hash"]
    assert await client.number("eth_getTransactionCount", OWNER.address, "latest") == 1
    again = await client.mined(to=probe, data=calldata("deposit", 1, ""), value=1_000, gas=300_000)
    assert again["status"] == "0x1"


async def test_a_balance_can_be_given(engine: Engine, client: Client) -> None:
    await engine.set_balance(NEW.address, 10**18)
    assert await client.number("eth_getBalance", NEW.address, "latest") == 10**18
    assert (await client.mined(NEW, value=1))["status"] == "0x1"
    assert await client.number("eth_getBalance", NEW.address, "latest") < 10**18


# --- WebSocket ---


async def test_heads_and_logs_are_pushed(client: Client) -> None:
    probe = await client.deploy()
    async with client.session.ws_connect(client.url.replace("http", "ws")) as socket:

        async def ask(number: int, *params: object) -> str:
            await socket.send_str(
                json.dumps({"jsonrpc": "2.0", "id": number, "method": "eth_subscribe", "params": params})
            )
            answer = await socket.receive_json()
            assert answer["id"] == number
            return answer["result"]

        heads, logs = await ask(1, "newHeads"), await ask(2, "logs", {"address": probe, "topics": [TOPIC]})
        receipt = await client.mined(to=probe, data=calldata("deposit", 6, ""), value=1_000, gas=300_000)
        news = {}
        with anyio.fail_after(5):
            while len(news) < 2:
                message = await socket.receive_json()
                assert message["method"] == "eth_subscription"
                news[message["params"]["subscription"]] = message["params"]["result"]
        assert news[heads]["hash"] == receipt["blockHash"]
        assert news[logs]["transactionHash"] == receipt["transactionHash"]
        await socket.send_json({"jsonrpc": "2.0", "id": 3, "method": "eth_unsubscribe", "params": [heads]})
        assert (await socket.receive_json())["result"] is True


async def test_a_websocket_answers_requests(client: Client) -> None:
    async with client.session.ws_connect(client.url.replace("http", "ws")) as socket:
        await socket.send_json({"jsonrpc": "2.0", "id": "a", "method": "eth_chainId", "params": []})
        assert (await socket.receive_json())["result"] == "0x7a69"


def test_the_probe_contract_is_here() -> None:
    assert len(PROBE["bytecode"]) > 4_000
