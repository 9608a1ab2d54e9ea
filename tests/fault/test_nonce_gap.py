"""A gap of nonces that a wrong count left: closed with transfers of nothing, within the caps, where nobody is."""

import dataclasses

import anyio
import pytest

from tests.devnet.chain_kit import LEDGER, QUICK, USER, ZG, open_rig
from zg_async.transport.audit import read_audit
from zg_async.transport.budget import Budget, SpendLimits
from zg_async.transport.recovery import fill
from zg_async.transport.rows import RowStatus
from zg_async.transport.sqlite_outbox import SqliteOutbox

pytestmark = pytest.mark.slow
DEPOSIT = LEDGER.deposit_fund(value=ZG)
GAP = 3


async def leave_gap(chain):
    """Record a deposit three nonces too far, as after a node's wrong count."""
    lane = await chain._lane(USER.address)
    honest = lane.quote

    async def wrong(call):
        price = await honest(call)
        return dataclasses.replace(price, pending=price.pending + GAP)

    lane.quote = wrong
    row = await lane.submit(DEPOSIT, "job/fund", named=True)
    lane.quote = honest
    return lane, row


def fillers(lane):
    return [row for row in lane.book._rows.values() if row.name == "transfer of nothing"]


class Crash(BaseException):
    pass


async def test_a_gap_is_closed_and_a_crash_between_record_and_send_neither_loses_nor_doubles_a_nonce(tmp_path):
    async with open_rig() as rig:
        start = await rig.account_nonce()
        async with rig.chain(outbox=SqliteOutbox(tmp_path / "outbox")) as chain:
            lane, row = await leave_gap(chain)

            async def die():
                raise Crash

            lane.sweep = die
            lane.monitor._gap = (start, -1e9)  # it has been there for long
            with pytest.raises(Crash):
                await lane.monitor._close_gap(start, row)
            assert [filler.status for filler in fillers(lane)] == [RowStatus.SIGNED] * GAP
            assert await rig.account_nonce("pending") == start  # recorded, and nothing was sent
        async with rig.chain(outbox=SqliteOutbox(tmp_path / "outbox")) as chain:
            with anyio.fail_after(30):
                assert (await chain.write(DEPOSIT, wallet=USER.address, key="job/fund")).status == 1
            assert await rig.account_nonce() == start + GAP + 1
            assert (await chain.call(LEDGER.get_ledger(USER.address))).total_balance == 6 * ZG
            lane = await chain._lane(USER.address)
            assert [r.account_nonce for r in fillers(lane)] == [start, start + 1, start + 2]
            for filler in fillers(lane):
                assert (filler.to, filler.value, filler.data) == (USER.address, 0, b"")
                assert filler.versions[0].max_fee_per_gas <= QUICK.max_fee_per_gas
            trail = read_audit(chain.audit_path(USER.address))
            assert [t.name for t in trail.transactions].count("transfer of nothing") == GAP


async def test_the_next_write_closes_the_gap_by_itself():
    async with open_rig() as rig, rig.chain() as chain:
        start = await rig.account_nonce()
        lane, row = await leave_gap(chain)
        with anyio.fail_after(30):
            assert (await lane.wait_mined(row)).status is RowStatus.MINED
        assert await rig.account_nonce() == start + GAP + 1
        assert {filler.status for filler in fillers(lane)} == {RowStatus.MINED}


async def test_a_nonce_that_a_recorded_transaction_has_is_never_signed_again():
    async with open_rig() as rig, rig.chain() as chain:
        lane, _ = await leave_gap(chain)
        await chain.write(LEDGER.deposit_fund(value=2 * ZG), wallet=USER.address, key="later")
        signed = []

        async def noted(transaction):
            signed.append(transaction.account_nonce)
            raise AssertionError

        lane.signed = noted
        taken = [known.account_nonce for known in lane.book._rows.values()]
        for account_nonce in taken:
            await fill(lane, account_nonce)
        assert (len(taken), signed) == (GAP + 2, [])
        with pytest.raises(AssertionError):
            await fill(lane, max(taken) + 1)


@pytest.mark.parametrize("limit", ["max_gas_cost_per_day", "wallet_per_day", "balance"])
async def test_a_gap_is_not_closed_beyond_a_cap_and_that_is_said(limit):
    async with open_rig() as rig, rig.chain() as chain:
        lane, row = await leave_gap(chain)
        cap = row.gas_cost + 21_000 * row.versions[0].max_fee_per_gas  # one filler
        if limit == "max_gas_cost_per_day":
            lane.parts = dataclasses.replace(lane.parts, fees=dataclasses.replace(QUICK, max_gas_cost_per_day=cap))
        elif limit == "wallet_per_day":
            budget = Budget(SpendLimits(wallet_per_day=cap), lane.parts.watcher.time)
            budget.watch(USER.address, lane.book.totals)
            lane.parts = dataclasses.replace(lane.parts, budget=budget)
        else:
            await rig.foreign(await chain.balance(USER.address) - row.reserved)
        used = await rig.account_nonce()
        lane.monitor._gap = (used, -1e9)  # it has been there for long
        await lane.monitor._close_gap(used, row)
        assert len(fillers(lane)) == (limit != "balance")
        assert f"nonce {used}, before it, is used by nobody and can't be closed" in lane.monitor.refusal(row)
