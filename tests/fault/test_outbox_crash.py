"""Crash at every outward call of a write, before and after it, then go on with the same outbox: one effect each."""

import pytest

from tests.devnet.chain_kit import LEDGER, USER, ZG, open_rig
from zg_async.errors import ChainUnavailableError, ClosedError
from zg_async.transport.audit import read_audit
from zg_async.transport.sqlite_outbox import SqliteOutbox

pytestmark = pytest.mark.slow
DEPOSIT = LEDGER.deposit_fund(value=ZG)


class Crash(BaseException):
    """The process is gone: nothing may catch this."""


class Script:
    """Counts outward calls of all kinds and ends the world at one of them."""

    def __init__(self, at, when, error=Crash):
        self.at, self.when, self.error = at, when, error
        self.count = 0

    def wrap(self, owner, name):
        original = getattr(owner, name)

        async def call(*arguments, **more):
            here, self.count = self.count, self.count + 1
            if here == self.at and self.when == "before":
                raise self.error("before")
            result = await original(*arguments, **more)
            if here == self.at and self.when == "after":
                raise self.error("after")
            return result

        setattr(owner, name, call)


async def crashed_write(rig, path, script, key):
    outbox = SqliteOutbox(path)
    chain = rig.chain(outbox=outbox)
    script.wrap(chain.rpc, "_exchange")
    script.wrap(outbox, "append")
    try:
        async with chain:
            await chain.write(DEPOSIT, wallet=USER.address, key=key)
    except (Crash, ClosedError):  # the latter where the watcher's background task crashed
        return True
    return False


@pytest.mark.goal("DUR-03", part="crash at each call")
@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_crash_at_any_outward_call_leaves_one_effect_and_one_nonce(tmp_path, when):
    async with open_rig() as rig:
        start, crashes = await rig.account_nonce(), 0
        async with rig.chain() as chain:
            balance = await chain.balance(USER.address)
        while crashes < 40:
            key = f"job/{crashes}"
            # the watcher's own calls run in a background task, which a crash ends with the chain
            if not await crashed_write(rig, tmp_path / "o.sqlite", Script(crashes, when), key):
                break
            async with rig.chain(outbox=SqliteOutbox(tmp_path / "o.sqlite")) as chain:
                receipt = await chain.write(DEPOSIT, wallet=USER.address, key=key)
                assert receipt.status == 1
                again = await chain.write(DEPOSIT, wallet=USER.address, key=key)
                assert again.tx_hash == receipt.tx_hash
            crashes += 1
        assert crashes >= 4  # open, quote, append, send
        async with rig.chain(outbox=SqliteOutbox(tmp_path / "o.sqlite")) as chain:
            trail = read_audit(chain.audit_path(USER.address))
            assert await chain.balance(USER.address) == balance - trail.paid
            assert [t.key for t in trail.transactions] == [f"job/{n}" for n in range(crashes + 1)]
            total = (await chain.call(LEDGER.get_ledger(USER.address))).total_balance
        assert total == 5 * ZG + (crashes + 1) * ZG
        assert await rig.account_nonce() == start + crashes + 1


@pytest.mark.goal("DUR-03", part="same bytes")
async def test_after_a_crash_between_record_and_broadcast_the_same_bytes_are_sent(tmp_path):
    async with open_rig() as rig:
        outbox = SqliteOutbox(tmp_path / "o.sqlite")
        chain = rig.chain(outbox=outbox)
        original = chain.rpc.batch

        async def batch(asks, **more):
            asks = list(asks)
            if any(ask[0] == "eth_sendRawTransaction" for ask in asks):
                raise Crash
            return await original(asks, **more)

        chain.rpc.batch = batch
        with pytest.raises(Crash):
            async with chain:
                await chain.write(DEPOSIT, wallet=USER.address, key="k")
        recorded = chain._lanes[USER.address].book.find("k").tx_hash
        assert await rig.engine.request("eth_getTransactionByHash", recorded) is None
        async with rig.chain(outbox=SqliteOutbox(tmp_path / "o.sqlite")) as chain:
            assert await chain.sweep() <= 1  # opening the lane sends it; a second sweep may still see it unmined
            assert (await chain.wait_mined("k")).tx_hash == recorded


@pytest.mark.goal("TX-04", part="lost answers of sends")
@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_lost_answer_to_the_broadcast_is_neither_failure_nor_success(when):
    async with open_rig() as rig, rig.chain() as chain:
        start, sends = await rig.account_nonce(), []
        original = chain.rpc._exchange

        async def exchange(index, asks):
            if asks[0].method != "eth_sendRawTransaction":
                return await original(index, asks)
            sends.append(asks[0].params[0])
            if len(sends) > 1:
                return await original(index, asks)
            if when == "after":
                await original(index, asks)
            raise ChainUnavailableError("the answer is lost")

        chain.rpc._exchange = exchange
        receipt = await chain.write(DEPOSIT, wallet=USER.address)
        assert receipt.status == 1
        assert await rig.account_nonce() == start + 1
        assert len(set(sends)) == 1  # sent again perhaps, signed once
