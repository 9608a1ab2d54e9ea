"""One RPC endpoint that lies: whatever it says and for however long, an effect asked for once is paid once."""

import copy

import aiohttp
import anyio
import pytest
from aiohttp import web

from tests.devnet.chain_kit import LEDGER, OTHER, USER, ZG, open_rig
from tests.devnet.conftest import broker, dataset, devnet, key, open_broker, provider, task, zg_devnet
from tests.devnet.conftest import zg_devnet_options as zg_devnet_options
from tests.http_server import serving
from zg_async.errors import FeeCapError, HashMismatchError, RpcError, ZgError
from zg_async.transport.rows import RowStatus

__all__ = ["broker", "dataset", "devnet", "key", "provider", "task", "zg_devnet"]
DEPOSIT = LEDGER.deposit_fund(value=ZG)
HUGE = hex(2**200)


def says(method, value):
    """Answer a method with something else."""
    return lambda ask, answer, _: value if ask.method == method else answer


def changed(method, **fields):
    """Change fields of what a method answers, where it answers with an object."""

    def lie(ask, answer, _):
        return {**answer, **fields} if ask.method == method and isinstance(answer, dict) else answer

    return lie


def counted(tag, by):
    """Count the wallet's transactions wrong."""

    def lie(ask, answer, _):
        if ask.method != "eth_getTransactionCount" or ask.params[1] not in tag:
            return answer
        return hex(max(int(answer, 16) + by, 0))

    return lie


def fails(method, message, code=-32000):
    return lambda ask, answer, _: {"error": {"code": code, "message": message}} if ask.method == method else answer


def in_block(**fields):
    return changed("eth_getBlockByNumber", **fields)


def another_receipt(_ask, answer, seen):
    """A receipt of an earlier transaction for the one asked for."""
    if _ask.method != "eth_getTransactionReceipt" or not isinstance(answer, dict):
        return answer
    seen.setdefault("receipt", copy.deepcopy(answer))
    return seen["receipt"]


def mined_at_once(ask, answer, seen):
    """A receipt of success before anything is mined."""
    if ask.method == "eth_getTransactionReceipt" and answer is None and "receipt" in seen:
        return {**seen["receipt"], "transactionHash": ask.params[0]}
    return answer


SEND, RECEIPT = "eth_sendRawTransaction", "eth_getTransactionReceipt"
LIES = {
    "no transaction was ever sent": counted(("latest", "pending"), -10_000),
    "the last one wasn't mined": counted(("latest", "pending"), -1),
    "more was sent than was": counted(("latest", "pending"), 3),
    "only the pool is behind": counted(("pending",), -1),
    "the mined count is ahead": counted(("latest",), 1),
    "a count beyond all": says("eth_getTransactionCount", HUGE),
    "a nonce too low": fails(SEND, "nonce too low"),
    "known already": fails(SEND, "already known"),
    "underpriced": fails(SEND, "replacement transaction underpriced"),
    "refused after taking it": fails(SEND, "internal error", -32603),
    "taken under another hash": says(SEND, "0x" + "11" * 32),
    "taken under no hash": says(SEND, None),
    "never mined": says(RECEIPT, None),
    "reverted": changed(RECEIPT, status="0x0"),
    "no status": changed(RECEIPT, status=None),
    "another's receipt": another_receipt,
    "mined before it is": mined_at_once,
    "mined in the future": changed(RECEIPT, blockNumber="0xffffff"),
    "mined in an unknown block": changed(RECEIPT, blockHash="0x" + "22" * 32),
    "logs of another": changed(RECEIPT, logs=[{"address": OTHER.address}]),
    "another chain": says("eth_chainId", "0x1"),
    "no coins": says("eth_getBalance", "0x0"),
    "coins without end": says("eth_getBalance", HUGE),
    "an old head": in_block(number="0x1"),
    "a head of the future": in_block(number="0xffffff"),
    "time stands still": in_block(timestamp="0x1"),
    "time runs ahead": in_block(timestamp="0xffffffff"),
    "gas that costs everything": says("eth_gasPrice", HUGE),
    "a base fee beyond all": in_block(baseFeePerGas=HUGE),
    "a tip beyond all": says("eth_maxPriorityFeePerGas", HUGE),
    "gas without end": says("eth_estimateGas", hex(2**63)),
    "it would be reverted": fails("eth_estimateGas", "execution reverted", 3),
}
BEYOND_CAPS = {"a base fee beyond all", "a tip beyond all", "gas without end"}


class Liar:
    """Stands between a chain and its node."""

    def __init__(self, chain) -> None:
        self.lie, self.left, self.told, self.seen = None, 0, 0, {}
        self._honest = chain.rpc._exchange
        chain.rpc._exchange = self.exchange

    async def exchange(self, index, asks):
        answers = [dict(answer) for answer in await self._honest(index, asks)]
        for ask, answer in zip(asks, answers, strict=True):
            if "result" not in answer:
                continue
            if ask.method == RECEIPT and isinstance(answer["result"], dict):
                self.seen.setdefault("receipt", answer["result"])
            said = self.lie(ask, answer["result"], self.seen) if self.lie and self.left else answer["result"]
            if said != answer["result"]:
                self.left, self.told = self.left - 1, self.told + 1
                if isinstance(said, dict) and "error" in said:
                    del answer["result"]
                    answer.update(said)
                else:
                    answer["result"] = said
        return answers


@pytest.mark.slow
@pytest.mark.goal("HRD-21", part="never a second payment")
async def test_no_lie_makes_an_effect_happen_twice():
    assert len(LIES) >= 25
    async with open_rig() as rig, rig.chain() as chain:
        liar = Liar(chain)
        await chain.write(DEPOSIT, wallet=USER.address)
        start = (await chain.call(LEDGER.get_ledger(USER.address))).total_balance
        done, errors, untold = 0, {}, []
        for name, lie in LIES.items():
            for often in (1, 4):
                key = f"{name}/{often}"
                liar.lie, liar.left, liar.told = lie, often, 0
                with anyio.move_on_after(1.0):
                    try:
                        await chain.write(DEPOSIT, wallet=USER.address, key=key)
                    except ZgError as error:
                        errors[name] = error
                liar.left = 0
                if not liar.told:
                    untold.append(name)
                with anyio.fail_after(30):  # the truth again: what was asked for happens, once
                    await chain.write(DEPOSIT, wallet=USER.address, key=key)
                done += 1
                balance = (await chain.call(LEDGER.get_ledger(USER.address))).total_balance
                assert balance == start + done * ZG, key
        assert set(untold) <= {"mined before it is", "another chain"}, untold
        for name in BEYOND_CAPS:
            assert isinstance(errors[name], FeeCapError), name
        assert isinstance(errors["a count beyond all"], RpcError)
        book = chain._lanes[USER.address].book
        paid = [row for row in book._rows.values() if row.value]
        assert (len(paid), {row.value for row in paid}) == (done + 1, {ZG})
        fillers = [row for row in book._rows.values() if row.name == "transfer of nothing"]
        assert {row.status for row in [*paid, *fillers]} == {RowStatus.MINED}
        assert 0 < len(fillers) < 16  # what a wrong count left open is closed; nothing else was sent


@pytest.mark.slow
@pytest.mark.goal("HRD-21", part="never an acknowledgement of a wrong root; with two endpoints the lie is named")
async def test_a_wrong_root_is_never_acknowledged_and_of_two_endpoints_both_are_named(
    devnet, broker, key, provider, task, tmp_path
):
    await broker.fine_tuning.wait_task(provider, task)
    model = await broker.fine_tuning.download_model(provider, task, tmp_path)
    root = bytes.fromhex(model.root_hash[2:])

    async def liar(request):
        async with aiohttp.ClientSession() as session, session.post(devnet.rpc_url, data=await request.read()) as reply:
            text = await reply.text()
        return web.Response(text=text.replace(root.hex(), "66" * 32), content_type="application/json")

    async with serving(liar) as lying:
        state = tmp_path / "state"
        async with open_broker(devnet, key, state / "one", rpc_url=lying) as alone:
            with pytest.raises(HashMismatchError):
                await alone.fine_tuning.acknowledge_deliverable(provider, task, verified=model)
        for urls in ([devnet.rpc_url, lying], [lying, devnet.rpc_url]):
            async with open_broker(devnet, key, state / "two", rpc_url=urls) as both:
                with pytest.raises(RpcError, match="different things") as caught:
                    await both.fine_tuning.acknowledge_deliverable(provider, task, verified=model)
            assert all(url.removeprefix("http://").rstrip("/") in str(caught.value) for url in urls)
    assert not (await broker.fine_tuning.get_deliverable(provider, task)).acknowledged
    async with open_broker(devnet, key, state / "three", rpc_url=[devnet.rpc_url, devnet.rpc_url]) as honest:
        assert (await honest.fine_tuning.acknowledge_deliverable(provider, task, verified=model)).receipt
