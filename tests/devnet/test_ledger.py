"""Money between wallet, ledger and sub-accounts."""

import dataclasses

import pytest

from tests.devnet.conftest import new_key
from zg_async import (
    AccountNotFoundError,
    InsufficientGasFundsError,
    LedgerExistsError,
    LedgerNotFoundError,
    LimitError,
    create_broker,
)
from zg_async.managers.funding import GAS_ACKNOWLEDGE, GAS_RETRIEVE
from zg_async.units import NEURON_PER_0G as OG

pytestmark = pytest.mark.slow
DAY = 86_400


async def test_a_brand_new_wallet_has_no_ledger(broker):
    with pytest.raises(LedgerNotFoundError) as caught:
        await broker.ledger.get_ledger()
    assert caught.value.error_name == "LedgerNotExists"
    assert caught.value.arguments == (broker.address,)


@pytest.mark.goal("LED-01", part="every operation, exact")
async def test_every_operation_moves_exact_amounts(broker, provider, devnet):
    ledger = broker.ledger
    await ledger.add_ledger("5.1")
    assert (await ledger.get_ledger()).available_balance == 51 * 10**17
    await ledger.deposit_fund(10**17)
    await ledger.deposit_fund("0.000000000000000001")
    assert (await ledger.get_ledger()).available_balance == 52 * 10**17 + 1
    await ledger.transfer_fund(provider, "fine-tuning", "1.1")
    await ledger.transfer_fund(provider, "inference", OG)
    assert (await broker.fine_tuning.get_account(provider)).balance == 11 * 10**17
    assert (await broker.inference.get_account(provider)).balance == OG
    other = create_broker(private_key=new_key(devnet), network="local").address
    await ledger.deposit_fund_for(other, "3")
    found = {row.user: row for row in await ledger.list_ledger()}
    assert found[other].total_balance == 3 * OG
    assert found[broker.address].available_balance == 52 * 10**17 + 1 - 21 * 10**17
    await ledger.refund("0.1")
    assert (await ledger.get_ledger()).available_balance == 3 * OG + 1


@pytest.mark.parametrize("amount", [0.1, 3.0, True, None])
@pytest.mark.goal("LED-01", part="a float is a TypeError")
async def test_a_float_never_reaches_the_chain(broker, provider, amount):
    for call in (
        broker.ledger.add_ledger(amount),
        broker.ledger.deposit_fund(amount),
        broker.ledger.refund(amount),
        broker.ledger.transfer_fund(provider, "fine-tuning", amount),
        broker.ledger.ensure_funded(provider, "fine-tuning", amount),
    ):
        with pytest.raises(TypeError):
            await call


@pytest.mark.goal("LED-02")
async def test_limits_of_the_contract_are_checked_before_sending(broker, provider):
    nonce = await broker.chain.transaction_count(broker.address)
    with pytest.raises(LimitError, match=r"at least 3 0G, not 1 0G.*MIN_ACCOUNT_BALANCE"):
        await broker.ledger.add_ledger("1")
    with pytest.raises(LimitError, match="at least 3 0G"):
        await broker.ledger.deposit_fund("1")
    assert await broker.chain.transaction_count(broker.address) == nonce
    await broker.ledger.add_ledger("4")
    with pytest.raises(LimitError, match=r"at least 1 0G, not 0.5 0G.*MIN_TRANSFER_AMOUNT"):
        await broker.ledger.transfer_fund(provider, "fine-tuning", "0.5")
    with pytest.raises(LimitError, match=r"would leave 2 0G.*Take 4 0G, or at most 1 0G"):
        await broker.ledger.refund("2")
    with pytest.raises(LimitError, match="has 4 0G available, not 5 0G"):
        await broker.ledger.refund("5")
    with pytest.raises(LimitError, match="Deposit 1 0G more"):
        await broker.ledger.transfer_fund(provider, "fine-tuning", "5")
    assert await broker.chain.transaction_count(broker.address) == nonce + 1


async def test_a_second_ledger_is_refused_by_name(broker):
    await broker.ledger.add_ledger("3")
    with pytest.raises(LedgerExistsError):
        await broker.ledger.add_ledger("3")


@pytest.mark.goal("LED-03")
async def test_ensure_funded_moves_exactly_what_is_missing_and_then_nothing(broker, provider):
    first = await broker.ledger.ensure_funded(provider, "fine-tuning", "1.5")
    assert len(first) == 2
    ledger, account = await broker.ledger.get_ledger(), await broker.fine_tuning.get_account(provider)
    assert (ledger.total_balance, account.balance, account.acknowledged) == (3 * OG, 15 * 10**17, True)
    assert await broker.ledger.ensure_funded(provider, "fine-tuning", "1.5") == ()
    more = await broker.ledger.ensure_funded(provider, "fine-tuning", "2")
    assert len(more) == 1
    assert (await broker.fine_tuning.get_account(provider)).balance == 2 * OG
    large = await broker.ledger.ensure_funded(provider, "fine-tuning", "9")
    assert len(large) == 2
    ledger = await broker.ledger.get_ledger()
    assert (ledger.available_balance, ledger.total_balance) == (0, 9 * OG)


async def test_the_same_key_is_never_paid_twice(broker, provider):
    first = await broker.ledger.ensure_funded(provider, "fine-tuning", "1.5", key="job/fund")
    again = await broker.ledger.ensure_funded(provider, "fine-tuning", "1.5", key="job/fund")
    assert [r.tx_hash for r in again] == [r.tx_hash for r in first]


@pytest.mark.goal("LED-10", part="plans keep the gas back, a drained wallet is refused")
async def test_a_plan_keeps_back_the_gas_of_acknowledgements_and_a_retrieve(devnet, provider, tmp_path):
    key = new_key(devnet, 3 * OG + 2 * 10**15)
    async with create_broker(key, "local", rpc_url=devnet.rpc_url, state_dir=tmp_path) as broker:
        plan = await broker.ledger.plan_funding(provider, "fine-tuning", "1")
        assert plan.gas_reserve > 0
        with pytest.raises(InsufficientGasFundsError, match="kept for acknowledging"):
            await broker.ledger.ensure_funded(provider, "fine-tuning", "3.0015")
        assert await broker.chain.transaction_count(broker.address) == 0


@pytest.mark.goal("LED-10", part="open acknowledgements count")
async def test_a_plan_keeps_back_the_gas_of_each_open_acknowledgement(broker, devnet, task, tmp_path):
    """A provider has at most one unfinished task of a wallet, so that each sub-account stands for one."""
    async with create_broker(new_key(devnet), "local", rpc_url=devnet.rpc_url, state_dir=tmp_path / "new") as fresh:
        for wallet, acknowledgements in ((fresh, 1), (broker, 2)):
            for provider in devnet.providers:
                plan = await wallet.ledger.plan_funding(provider["address"], "fine-tuning", "1.5")
                assert plan.gas_reserve == plan.gas_price * (acknowledgements * GAS_ACKNOWLEDGE + GAS_RETRIEVE)


@pytest.mark.goal("LED-04", part="values")
async def test_the_account_view_lists_sub_accounts_and_refunds(broker, provider, devnet):
    await broker.ledger.add_ledger("10")
    await broker.ledger.transfer_fund(provider, "fine-tuning", "4")
    await broker.ledger.transfer_fund(provider, "inference", "1")
    await broker.ledger.retrieve_fund("fine-tuning", [provider])
    detail = await broker.ledger.get_ledger_with_detail()
    assert (detail.ledger.total_balance, detail.ledger.locked_balance) == (10 * OG, 5 * OG)
    [row] = detail.fine_tuning
    assert (row.provider, row.balance, row.pending_refund, row.refund_count) == (provider, 4 * OG, 4 * OG, 1)
    assert [r.balance for r in detail.inference] == [OG]
    account = await broker.fine_tuning.get_account_with_detail(provider)
    [refund] = account.refunds
    assert account.lock_time == await broker.fine_tuning.get_locked_time() == DAY
    assert 0 < refund.remaining(account.as_of).total_seconds() <= DAY
    devnet.control("increase_time", seconds=2 * DAY)
    later = await broker.fine_tuning.get_account_with_detail(provider)
    assert later.refunds[0].remaining(later.as_of).total_seconds() == 0
    await broker.ledger.retrieve_fund("fine-tuning")
    assert (await broker.fine_tuning.get_account(provider)).balance == 0
    assert (await broker.ledger.get_ledger()).available_balance == 9 * OG


@pytest.mark.goal("LED-08")
async def test_a_sixth_open_refund_is_refused_with_the_date_of_the_first(broker, provider):
    await broker.ledger.add_ledger("10")
    await broker.ledger.transfer_fund(provider, "fine-tuning", "4")
    await broker.ledger.retrieve_fund("fine-tuning")
    for amount in ("1", "0.5", "0.25", "0.125"):  # each cancels a part of the newest refund, then asks for it anew
        await broker.ledger.transfer_fund(provider, "fine-tuning", amount)
        await broker.ledger.retrieve_fund("fine-tuning")
    account = await broker.fine_tuning.get_account_with_detail(provider)
    assert len(account.refunds) == 5
    await broker.ledger.transfer_fund(provider, "fine-tuning", "0.01")
    sent = await broker.chain.transaction_count(broker.address)
    with pytest.raises(LimitError) as caught:
        await broker.ledger.retrieve_fund("fine-tuning")
    assert f"{account.refunds[0].unlocks_at:%Y-%m-%d %H:%M:%S} UTC" in str(caught.value)
    assert await broker.chain.transaction_count(broker.address) == sent


async def test_deleting_needs_an_empty_ledger(broker):
    await broker.ledger.add_ledger("3")
    with pytest.raises(LimitError, match="still accounts for 3 0G"):
        await broker.ledger.delete_ledger()
    await broker.ledger.refund("3")
    with pytest.raises(LedgerNotFoundError):
        await broker.ledger.get_ledger()


async def test_no_sub_account_is_a_class_of_its_own(broker, provider):
    with pytest.raises(AccountNotFoundError):
        await broker.fine_tuning.get_account(provider)


@pytest.mark.goal("TX-08", part="the view takes one trip")
async def test_the_account_view_takes_one_round_trip(broker, provider, monkeypatch):
    await broker.ledger.add_ledger("10")
    for n in range(1, 4):
        await broker.ledger.transfer_fund(f"0x{n:040x}", "fine-tuning", "1")
    batches = []
    exchange = broker.chain.rpc.batch

    async def counted(asks, **kwargs):
        batches.append(1)
        return await exchange(asks, **kwargs)

    monkeypatch.setattr(broker.chain.rpc, "batch", counted)
    detail = await broker.ledger.get_ledger_with_detail()
    assert len(detail.fine_tuning) == 3
    assert len(batches) == 1


def test_records_are_frozen():
    from zg_async import Ledger

    ledger = Ledger(user="0x", available_balance=1, total_balance=2, additional_info="")
    with pytest.raises(dataclasses.FrozenInstanceError):
        ledger.total_balance = 3
