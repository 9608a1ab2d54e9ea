"""Reading events over a real socket: cursors, empty blocks, reorganisations, lying nodes."""

import contextlib
import dataclasses

import anyio
import pytest

from tests.devnet.chain_kit import FINE_TUNING, LEDGER, USER, ZG, open_rig
from zg_async.transport.logs import Cursor, LogBatch, Resync, Rewound
from zg_async.wire.contracts import TOPIC, RefundRequested, decode_log

pytestmark = pytest.mark.slow
NAME = "fine-tuning-v1.0"


async def take(events, kind=None):
    """Return the next event, or the next of a kind; batches without logs are skipped when looking for logs."""
    with anyio.fail_after(10):
        async for event in events:
            if kind is None or (isinstance(event, kind) and (not isinstance(event, LogBatch) or event.logs)):
                return event
    raise AssertionError("a follow never ends")


@contextlib.asynccontextmanager
async def following():
    async with (
        open_rig() as rig,
        rig.chain() as chain,
        chain.logs.follow(addresses=[FINE_TUNING.address], topics=BALANCE) as events,
    ):
        yield rig, chain, events


async def some_event(rig, provider):
    """Make logs of the fine-tuning contract: a balance update for a new sub-account."""
    async with rig.chain() as chain:
        return await chain.write(LEDGER.transfer_fund(provider, NAME, ZG), wallet=USER.address)


PROVIDER = "0x" + "77" * 20
BALANCE = [[TOPIC["BalanceUpdated"]]]


async def test_a_follower_gets_the_logs_of_its_contracts_once_and_in_order():
    async with following() as (rig, _, events):
        receipt = await some_event(rig, PROVIDER)
        batch = await take(events, LogBatch)
        assert [log.tx_hash for log in batch.logs] == [receipt.tx_hash]
        event = decode_log(batch.logs[0])
        assert (event.user, event.balance) == (USER.address, ZG)
        assert batch.cursor.block_number >= receipt.block_number


async def test_the_cursor_moves_on_empty_blocks():
    async with following() as (rig, chain, events):
        head = await chain.block()
        await rig.engine.mine(3)
        batch = await take(events)
        while batch.cursor.block_number < head.number + 3:
            batch = await take(events)
        assert batch.logs == ()
        assert batch.cursor.block_hash == (await chain.block(head.number + 3)).hash


async def test_a_later_follow_goes_on_from_the_cursor():
    async with open_rig() as rig, rig.chain() as chain:
        head = await chain.block()
        cursor = Cursor(block_number=head.number, block_hash=head.hash)
        receipt = await some_event(rig, PROVIDER)
        await rig.engine.mine(2)
        async with chain.logs.follow(addresses=[FINE_TUNING.address], topics=BALANCE, cursor=cursor) as events:
            batch = await take(events)
            assert [log.tx_hash for log in batch.logs] == [receipt.tx_hash]
        async with chain.logs.follow(addresses=[FINE_TUNING.address], topics=BALANCE, cursor=batch.cursor) as events:
            await rig.engine.mine()
            assert (await take(events)).logs == ()


async def test_a_cursor_of_another_history_is_answered_with_resync():
    async with open_rig() as rig, rig.chain() as chain:
        head = await chain.block()
        for cursor in (
            Cursor(block_number=head.number, block_hash="0x" + "00" * 32),
            Cursor(block_number=head.number + 1000, block_hash=head.hash),
        ):
            async with chain.logs.follow(addresses=[FINE_TUNING.address], topics=BALANCE, cursor=cursor) as events:
                event = await take(events)
                assert event == Resync(cursor=Cursor(block_number=head.number, block_hash=head.hash))


@pytest.mark.parametrize("depth", [1, 5, 12])
async def test_a_reorganisation_rewinds_and_reads_on(depth):
    async with following() as (rig, chain, events):
        await some_event(rig, PROVIDER)
        first = await take(events, LogBatch)
        await rig.engine.mine(depth - 1)
        while first.cursor.block_number < (await chain.block()).number:
            first = await take(events)
        await rig.engine.reorg(depth)
        rewound = await take(events, Rewound)
        assert rewound.cursor.block_number <= first.cursor.block_number - depth
        known = await chain.block(rewound.cursor.block_number)
        assert known.hash == rewound.cursor.block_hash
        receipt = await some_event(rig, "0x" + "78" * 20)
        again = await take(events, LogBatch)
        assert again.logs[-1].tx_hash == receipt.tx_hash


async def test_many_followers_cost_one_request_a_round():
    async with open_rig() as rig, rig.chain() as chain:  # noqa: SIM117
        async with (
            chain.logs.follow(addresses=[FINE_TUNING.address], topics=BALANCE) as one,
            chain.logs.follow(addresses=[FINE_TUNING.address, LEDGER.address]) as two,
            chain.logs.follow(addresses=[FINE_TUNING.address], topics=[[TOPIC["RefundRequested"]]]) as three,
        ):
            await take_round(rig, one, two, three)
            rig.asked.clear()
            await some_event(rig, PROVIDER)
            got = [await take(one, LogBatch), await take(two, LogBatch)]
            assert {log.address for log in got[0].logs} == {FINE_TUNING.address}
            assert set(got[0].logs) <= set(got[1].logs)
            assert [asked for asked in rig.asked if "getLogs" in asked].count("eth_getLogs") <= 3
            await rig.engine.mine()
            assert (await take(three)).logs == ()


async def take_round(rig, *followers):
    await rig.engine.mine()
    for events in followers:
        await take(events)


async def test_logs_of_others_are_dropped_whatever_the_node_sends():
    async with open_rig() as rig, rig.chain() as chain:
        await some_event(rig, PROVIDER)
        head = await chain.block()
        honest = await chain.get_logs([FINE_TUNING.address], BALANCE, 0, head.number)
        original = chain.rpc.request

        async def lying(method, params=(), **more):
            answer = await original(method, params, **more)
            if method == "eth_getLogs":
                return [
                    *answer,
                    {**answer[0], "address": PROVIDER},
                    {**answer[0], "topics": ["0x" + "00" * 32]},
                    {**answer[0], "topics": []},
                    {**answer[0], "blockNumber": hex(head.number + 5)},
                    {**answer[0], "removed": True},
                ]
            return answer

        chain.rpc.request = lying
        assert await chain.get_logs([FINE_TUNING.address], BALANCE, 0, head.number) == honest
        assert len(honest) == 1


async def test_a_node_that_refuses_large_ranges_is_asked_for_smaller_ones():
    async with open_rig() as rig, rig.chain() as chain:
        await rig.engine.mine(60)
        await some_event(rig, PROVIDER)
        head = (await chain.block()).number
        original, ranges = chain.rpc._exchange, []

        async def exchange(index, asks):
            if asks[0].method == "eth_getLogs":
                fields = asks[0].params[0]
                size = int(fields["toBlock"], 16) - int(fields["fromBlock"], 16) + 1
                ranges.append(size)
                if size > 10:
                    return [{"error": {"code": -32602, "message": "query exceeds max block range 10"}}]
            return await original(index, asks)

        chain.rpc._exchange = exchange
        logs = await chain.get_logs([FINE_TUNING.address], BALANCE, 0, head)
        assert len(logs) == 1
        assert min(ranges) <= 10
        assert dataclasses.is_dataclass(logs[0])
        assert not isinstance(decode_log(logs[0]), RefundRequested)
