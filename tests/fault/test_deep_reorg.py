"""Reorganisations deeper than the network's confirmations: what was final is taken back, and has its effect once."""

import logging
import random

import anyio
import pytest

from tests.clock import FakeClock
from tests.fault.pool_model import Block, PoolModel, Tx
from tests.fault.test_outbox_model import LEDGER, USER, Outlast, open_chain, persist
from zg_async.errors import ChainUnavailableError, ContractRevertedError
from zg_async.transport.rows import RowStatus
from zg_async.transport.sqlite_outbox import SqliteOutbox

pytestmark = pytest.mark.slow


class ReorgModel(PoolModel):
    """A node without other faults, whose chain is reorganised on demand; a transaction may come back reverted."""

    def __init__(self, clock, rng):
        super().__init__(clock, rng, faults=0.0)
        self.reverted = set()

    def replace(self, depth, fate):
        """Replace the newest blocks; this becomes of most of the transactions in them."""
        removed = self.blocks[-depth:]
        del self.blocks[-depth:]
        for tx in (tx for block in removed for tx in block.txs):
            match self.rng.choice([fate, fate, fate, "gone"]):
                case "elsewhere":
                    self.pool[tx.sender, tx.nonce] = tx
                case "reverted":
                    self.pool[tx.sender, tx.nonce] = tx
                    self.reverted.add(tx.tx_hash)
        for _ in range(depth - 1):
            self.salt += 1
            self.blocks.append(Block(len(self.blocks), hash_of(self.salt), "0x", 10**9, []))
        self.mine()

    def eth_getTransactionReceipt(self, tx_hash):
        answer = super().eth_getTransactionReceipt(tx_hash)
        return answer and {**answer, "status": "0x0" if tx_hash in self.reverted else "0x1"}

    def eth_call(self, *_):
        return "0x"


def hash_of(salt):
    return f"0x{salt:064x}"


def ours(model):
    return [tx for block in model.blocks for tx in block.txs if tx.sender == USER.address and tx.data]


async def done(chain, model, number):
    """What a caller does until its effect is final or has failed for good."""
    for _ in range(20):
        try:
            await persist(chain, model, number)
            await chain.wait_final(f"job/{number}")
        except ContractRevertedError:
            return False
        except ChainUnavailableError:
            continue
        return True
    raise AssertionError("never done")


async def agree(chain, model, count):
    """Have the book and the chain say the same of every key; return each effect's status."""
    lane = await chain._lane(USER.address)
    status = {tx.value - 1: tx.tx_hash not in model.reverted for tx in ours(model)}
    assert sorted(tx.value for tx in ours(model)) == list(range(1, count + 1))  # none lost, none doubled
    for number in range(count):
        row = lane.book.find(f"job/{number}")
        block, tx = model.find(row.tx_hash)
        assert row.final
        assert (row.inclusion.block_hash, row.account_nonce) == (block.hash, tx.nonce)
        assert (row.status is RowStatus.MINED) == status[number]
    return status


@pytest.mark.goal("RLB-11")
@pytest.mark.parametrize("confirmations", range(1, 13))
async def test_a_reorganisation_of_any_depth_doubles_and_loses_nothing(confirmations):
    for depth in range(1, 13):
        for fate in ("gone", "elsewhere", "reverted"):
            rng, clock = random.Random(f"{confirmations} {depth} {fate}"), FakeClock()
            model, outbox = ReorgModel(clock, rng), Outlast()
            model.blocks += [Block(n, hash_of(n), "0x", 10**9, []) for n in range(1, 14)]  # a chain that is deep enough
            model.salt = 100
            async with open_chain(model, clock, outbox, confirmations=confirmations) as chain:
                async with anyio.create_task_group() as group:
                    for number in range(3):
                        group.start_soon(done, chain, model, number)
                for _ in range(rng.randrange(3)):
                    model.mine()
                model.replace(depth, fate)
                await done(chain, model, 3)  # the lane is used again, and notices by itself
                for number in range(3):
                    await done(chain, model, number)
                await agree(chain, model, 4)
            signed = {}
            for tx in model.sent:
                signed.setdefault(tx.nonce, set()).add((tx.to, tx.value, tx.data))
            assert all(len(kinds) == 1 for kinds in signed.values())


def quick_chain(clock, model, outbox):
    return open_chain(model, clock, outbox, confirmations=2)


async def settled(clock, seed, outbox):
    """A chain on which one effect is final."""
    model = ReorgModel(clock, random.Random(seed))
    model.blocks += [Block(n, hash_of(n), "0x", 10**9, []) for n in range(1, 9)]
    model.salt = 100
    async with quick_chain(clock, model, outbox) as chain:
        assert await done(chain, model, 0)
    return model


class Crash(BaseException):
    pass


async def test_a_crash_between_taking_back_and_sending_loses_nothing(tmp_path):
    clock = FakeClock()
    model = await settled(clock, 1, SqliteOutbox(tmp_path / "o"))
    model.replace(6, "gone")
    async with quick_chain(clock, model, SqliteOutbox(tmp_path / "o")) as chain:
        lane = await chain._lane(USER.address)

        async def die():
            raise Crash

        lane.sweep = die
        with pytest.raises(Crash):
            await chain.recall("job/0", wallet=USER.address)
        row = lane.book.find("job/0")
        assert (row.status, row.was_final, ours(model)) == (RowStatus.SIGNED, True, [])
    async with quick_chain(clock, model, SqliteOutbox(tmp_path / "o")) as chain:
        assert await done(chain, model, 0)
        assert (await chain._lane(USER.address)).book.find("job/0").hashes == row.hashes
    assert len(ours(model)) == len({tx.tx_hash for tx in model.sent}) == 1


@pytest.mark.parametrize("ask", ["recall", "wait_final", "wait_unmoved"])
async def test_whoever_asks_for_what_was_final_learns_the_truth(ask, caplog):
    clock, outbox = FakeClock(), Outlast()
    model = await settled(clock, 2, outbox)
    model.replace(6, "gone")
    async with quick_chain(clock, model, outbox) as chain:
        with caplog.at_level(logging.ERROR, "zg_async.chain"):
            if ask == "wait_unmoved":
                since = await chain.removals(USER.address)
                assert await chain.wait_unmoved(USER.address, LEDGER.address, since=since)
            elif ask == "recall":
                receipt = await chain.recall("job/0", wallet=USER.address)
                assert receipt.block_hash == model.find(receipt.tx_hash)[0].hash
            else:
                receipt = await chain.wait_final("job/0")
                assert receipt.block_hash == model.find(receipt.tx_hash)[0].hash
        assert [tx.value for tx in ours(model)] == [1]
        assert "was final and is gone: sending it again" in caplog.text


async def test_what_a_reorganisation_leaves_alone_stays_final(caplog):
    clock, outbox = FakeClock(), Outlast()
    model = await settled(clock, 3, outbox)
    for _ in range(4):
        model.mine()
    model.replace(3, "gone")
    model.eth_getTransactionReceipt = lambda _: None  # an old one: the node has forgotten it
    async with quick_chain(clock, model, outbox) as chain:
        since = await chain.removals(USER.address)
        assert not await chain.wait_unmoved(USER.address, LEDGER.address, since=since)
        assert (await chain.recall("job/0", wallet=USER.address)).status == 1
    assert len(model.sent) == 1


@pytest.mark.parametrize("is_shown", [True, False])
async def test_after_a_final_effect_a_key_is_signed_anew_only_if_the_taker_of_its_nonce_is_seen(is_shown):
    clock, outbox = FakeClock(), Outlast()
    model = await settled(clock, 4, outbox)
    model.replace(6, "gone")
    model.eth_sendRawTransaction = lambda _: "0x"  # and it doesn't come back
    stranger = {"raw": b"", "tx_hash": hash_of(7), "sender": USER.address, "nonce": 0, "fee": 10**12, "tip": 10**12}
    async with quick_chain(clock, model, outbox) as chain:
        lane = await chain._lane(USER.address)
        while await lane.monitor.dig():
            await clock.sleep(1.0)
        model.pool[USER.address, 0] = Tx(**stranger, to=USER.address, value=0, data=b"")
        model.mine()
        if not is_shown:
            model.shown = lambda *_: {}
        async with lane.watched():
            for _ in range(60):
                await lane.monitor.wait_change()
        known = lane.book.find("job/0")
        assert (known.status is RowStatus.REPLACED) == is_shown
        if is_shown:
            assert known.replaced_by == stranger["tx_hash"]
        else:
            assert "that the node can't show" in lane.monitor.refusal(known)
