"""Many callers that need money of one wallet at the same time: one deposit, exact sums, no limit broken, no loss."""

import sys

import anyio
import anyio.lowlevel
import pytest

from tests.devnet.conftest import new_key, open_broker
from zg_async import FeePolicy, InsufficientGasFundsError, LimitError, SpendLimits, ZgError
from zg_async.file_lock import take_lock
from zg_async.transport.lane import Lane
from zg_async.units import NEURON_PER_0G as OG

pytestmark = pytest.mark.slow
AMOUNT = 15 * OG // 10


def providers(count):
    return [f"0x{number:040x}" for number in range(1, count + 1)]


async def fund_all(broker, wanted, amount=AMOUNT):
    """Fund all at once under keys of their own; the receipts or the error of each."""
    found = {}

    async def one(provider):
        try:
            found[provider] = await broker.ledger.ensure_funded(
                provider, "fine-tuning", amount, key=f"job-{provider[-2:]}/fund"
            )
        except ZgError as error:
            found[provider] = error

    async with anyio.create_task_group() as group:
        for provider in wanted:
            group.start_soon(one, provider)
    return [found[provider] for provider in wanted]


async def balances(broker, wanted):
    return [(await broker.fine_tuning.get_account(provider)).balance for provider in wanted]


async def test_twenty_callers_at_once_share_a_deposit_and_the_sum_is_exact(broker):
    wanted = providers(20)
    found = await fund_all(broker, wanted)
    assert await balances(broker, wanted) == [AMOUNT] * 20
    ledger = await broker.ledger.get_ledger()
    assert (ledger.total_balance, ledger.available_balance) == (20 * AMOUNT, 0)
    sent = sum(map(len, found))
    assert sent == await broker.chain.transaction_count(broker.address) <= 22  # whoever comes first may pay alone
    assert await fund_all(broker, wanted) == found
    assert await broker.chain.transaction_count(broker.address) == sent


async def test_a_back_end_that_lags_by_more_than_what_makes_a_payment_final_moves_nothing_twice(broker, monkeypatch):
    """Behind one URL another back-end answers for a while, which hasn't seen the first payment."""
    [provider], rpc = providers(1), broker.chain.rpc
    old = hex((await broker.chain.block()).number)
    for receipt in await broker.ledger.ensure_funded(provider, "fine-tuning", AMOUNT):
        await broker.chain.wait_final(receipt.tx_hash)
    exchange, asked = rpc._exchange, 0

    async def lagging(index, asks):
        nonlocal asked
        asked += 1
        if asked <= 4:
            asks = [ask._replace(params=[old if p == "latest" else p for p in ask.params]) for ask in asks]
        return await exchange(index, asks)

    monkeypatch.setattr(rpc, "_exchange", lagging)
    assert await broker.ledger.ensure_funded(provider, "fine-tuning", AMOUNT, key="second") == ()
    assert asked > 4
    assert await balances(broker, [provider]) == [AMOUNT]


async def test_a_limit_that_refuses_the_shared_deposit_lets_each_through_that_fits(devnet, key, tmp_path):
    """6 0G a day are four of 1.5, and 4 0G a call are fewer than all."""
    limits = SpendLimits(per_call="4", bound_per_day="6")
    async with open_broker(devnet, key, tmp_path, limits=limits) as broker:
        wanted = providers(5)
        found = await fund_all(broker, wanted)
        assert [isinstance(one, LimitError) for one in found] == [False] * 4 + [True]
        assert await balances(broker, wanted[:4]) == [AMOUNT] * 4
        assert (await broker.ledger.get_ledger()).total_balance == 6 * OG


async def test_a_wallet_that_can_pay_some_pays_those_and_keeps_its_reserve(devnet, tmp_path):
    async with open_broker(devnet, new_key(devnet, 5 * OG), tmp_path) as broker:
        found = await fund_all(broker, providers(5))
        assert [isinstance(one, InsufficientGasFundsError) for one in found] == [False] * 3 + [True] * 2
        assert (await broker.ledger.get_ledger()).total_balance == 3 * AMOUNT
        assert await broker.chain.transaction_count(broker.address) == sum(len(one) for one in found[:3])


@pytest.mark.parametrize("lost", [1, 2, 4])
async def test_a_death_between_record_and_broadcast_pays_nothing_twice(devnet, key, tmp_path, monkeypatch, lost):
    """The deposit is recorded first, then the transfers; the process dies with the last of them unsent."""
    wanted, recorded, send = providers(5), [], Lane.send

    async def stops(lane, row):
        recorded.append(row.key)
        if len(recorded) >= lost:
            group.cancel_scope.cancel()
            await anyio.sleep_forever()
        await send(lane, row)

    async with open_broker(devnet, key, tmp_path) as broker:
        with monkeypatch.context() as patch:
            patch.setattr(Lane, "send", stops)
            async with anyio.create_task_group() as group:
                await fund_all(broker, wanted)
    async with open_broker(devnet, key, tmp_path) as broker:
        found = await fund_all(broker, wanted)
        assert await balances(broker, wanted) == [AMOUNT] * 5
        ledger = await broker.ledger.get_ledger()
        assert (ledger.total_balance, ledger.available_balance) == (5 * AMOUNT, 0)
        assert await broker.chain.transaction_count(broker.address) == sum(map(len, found)) <= 7


async def test_when_the_caller_that_serves_is_cancelled_the_others_go_on(devnet, key, tmp_path, monkeypatch):
    """It is cancelled with a deposit recorded: the next in line adds what is missing besides."""
    wanted, first, send = providers(4), anyio.CancelScope(), Lane.send

    async def begin():
        with first:
            await broker.ledger.ensure_funded(wanted[0], "fine-tuning", AMOUNT, key="first/fund")

    async def cancels(lane, row):
        if not first.cancel_called:
            for provider in wanted[1:]:
                group.start_soon(broker.ledger.ensure_funded, provider, "fine-tuning", AMOUNT)
            await anyio.lowlevel.checkpoint()
            first.cancel()
        await send(lane, row)

    monkeypatch.setattr(Lane, "send", cancels)
    async with open_broker(devnet, key, tmp_path, fees=FeePolicy(resend_after=0.2)) as broker:
        async with anyio.create_task_group() as group:
            group.start_soon(begin)
        assert first.cancelled_caught
        assert await balances(broker, wanted[1:]) == [AMOUNT] * 3
        assert (await broker.ledger.get_ledger()).total_balance == 3 * AMOUNT


async def test_two_programs_of_one_wallet_fund_one_after_the_other(devnet, key, tmp_path):
    """Both miss the same at the same time: what is bound is what one of them planned."""
    wanted = providers(2)
    async with open_broker(devnet, key, tmp_path) as one, open_broker(devnet, key, tmp_path) as two:
        await one.ledger.add_ledger("3")
        async with anyio.create_task_group() as group:
            for broker in (one, two):
                for provider in wanted:
                    group.start_soon(broker.ledger.ensure_funded, provider, "fine-tuning", 2 * AMOUNT)
        assert await balances(one, wanted) == [2 * AMOUNT] * 2
        ledger = await two.ledger.get_ledger()
        assert (ledger.total_balance, ledger.available_balance) == (4 * AMOUNT, 0)


HOLD = """
import pathlib, sys
from zg_async.file_lock import take_lock
lock = take_lock(pathlib.Path(sys.argv[1]))
print(lock is not None, flush=True)
sys.stdin.read()
"""


async def test_while_another_process_plans_nothing_is_sent_and_when_it_is_killed_it_goes_on(devnet, key, tmp_path):
    (provider,) = providers(1)
    async with open_broker(devnet, key, tmp_path) as broker:
        await broker.ledger.ensure_funded(provider, "fine-tuning", AMOUNT)
        sent = await broker.chain.transaction_count(broker.address)
        (lock,) = (broker.state_dir / "funding").glob("*.lock")
        async with await anyio.open_process([sys.executable, "-c", HOLD, str(lock)]) as other:
            assert (await other.stdout.receive()).strip() == b"True"
            assert take_lock(lock) is None  # asking doesn't drop it
            with anyio.move_on_after(0.5) as scope:
                await broker.ledger.ensure_funded(provider, "fine-tuning", 2 * AMOUNT)
            assert scope.cancelled_caught
            assert await broker.chain.transaction_count(broker.address, block="pending") == sent
            other.kill()
        with anyio.fail_after(60):
            await broker.ledger.ensure_funded(provider, "fine-tuning", 2 * AMOUNT)
        assert await balances(broker, [provider]) == [2 * AMOUNT]


async def test_a_refused_look_does_not_drop_a_lock_of_the_same_process(tmp_path):
    path = tmp_path / "lock"
    lock = take_lock(path)
    assert take_lock(path) is None
    async with await anyio.open_process([sys.executable, "-c", HOLD, str(path)]) as other:
        assert (await other.stdout.receive()).strip() == b"False"
        other.kill()
    lock.close()
