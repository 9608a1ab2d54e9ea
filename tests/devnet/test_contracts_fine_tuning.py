"""FineTuningServing: refunds, services, accounts, and the whole way of the money."""

import pytest

from tests.devnet.contract_kit import (
    A_PROVIDER,
    A_USER,
    DAY,
    NOBODY,
    OTHER,
    PROVIDER,
    REJECTING_WALLET,
    ROOT,
    SECRET,
    SIGNER,
    USER,
    acknowledge,
    add_money,
    deliver,
    settle,
    task_world,
)
from tests.devnet.evm_harness import FINE_TUNING_NAME, ZG, Contract, World, base_world, offer, refused, sign_settlement
from zg_async.devnet.deploy import create_address


@pytest.fixture
def world() -> World:
    return task_world()


# --- refunds ---


def test_a_refund_is_collected_at_the_second_the_lock_ends_and_not_one_before(world):
    world.retrieve(USER, PROVIDER)
    world.pass_time(DAY - 1)
    world.retrieve(USER, PROVIDER)
    assert world.money(USER) == (6 * ZG, 10 * ZG)
    world.pass_time(1)
    receipt = world.retrieve(USER, PROVIDER)
    updated = {"user": A_USER, "provider": A_PROVIDER, "amount": 0, "pendingRefund": 0}
    assert receipt.named("BalanceUpdated") == [updated]
    assert world.money(USER) == (10 * ZG, 10 * ZG)


def test_a_refund_request_is_announced_again_even_when_nothing_new_is_asked_back(world):
    first = world.retrieve(USER, PROVIDER).named("RefundRequested")
    world.pass_time(5)
    again = world.retrieve(USER, PROVIDER).named("RefundRequested")
    assert first == [{"user": A_USER, "provider": A_PROVIDER, "index": 0, "timestamp": world.machine.now - 5}]
    assert again == [{**first[0], "timestamp": world.machine.now}]
    assert world.account(USER, PROVIDER).validRefundsLength == 1


def test_collected_entries_stay_behind_as_stale_storage(world):
    world.retrieve(USER, PROVIDER)
    world.pass_time(DAY)
    world.retrieve(USER, PROVIDER)
    account = world.account(USER, PROVIDER)
    assert (account.balance, account.pendingRefund, account.validRefundsLength) == (0, 0, 0)
    assert [entry.amount for entry in account.refunds] == [4 * ZG]


def test_a_top_up_cancels_the_newest_requests_first_and_keeps_the_date_of_a_cut_one(world):
    started = world.machine.now
    world.retrieve(USER, PROVIDER)
    world.pass_time(10)
    add_money(world, ZG)
    world.retrieve(USER, PROVIDER)
    world.transfer(USER, PROVIDER, 2 * ZG)
    account = world.account(USER, PROVIDER)
    assert (account.balance, account.pendingRefund, account.validRefundsLength) == (5 * ZG, 3 * ZG, 1)
    assert (account.refunds[0].amount, account.refunds[0].createdAt) == (3 * ZG, started)


def test_the_lock_time_in_force_now_decides_over_old_requests(world):
    world.retrieve(USER, PROVIDER)
    world.pass_time(3600)
    changed = world.fine_tuning.send(world.owner, "updateLockTime", 3600)
    assert changed.named("LockTimeUpdated") == [{"oldLockTime": DAY, "newLockTime": 3600}]
    assert world.fine_tuning.send(world.owner, "updateLockTime", 3600).events == ()
    world.retrieve(USER, PROVIDER)
    assert world.money(USER) == (10 * ZG, 10 * ZG)


def test_the_pending_refund_is_public_for_existing_accounts(world):
    world.retrieve(USER, PROVIDER)
    assert world.fine_tuning.call("getPendingRefund", A_USER, A_PROVIDER) == 4 * ZG
    with refused("AccountNotExists", A_USER, OTHER.address):
        world.fine_tuning.call("getPendingRefund", A_USER, OTHER.address)


# --- settings and services ---


def test_initialising_checks_ledger_penalty_and_lock_in_that_order(world):
    bare = Contract(world, "FineTuningServing", create_address(world.owner.address, 10))
    ledger = world.ledger.address
    for address in (NOBODY, A_USER):
        with refused("InvalidLedgerAddress"):
            bare.send(USER, "initialize", 0, address, A_USER, 101)
    with refused("PenaltyPercentageTooHigh", 101):
        bare.send(USER, "initialize", 0, ledger, A_USER, 101)
    for lock_time in (3599, 604_801):
        with refused("LockTimeOutOfRange", lock_time):
            bare.send(USER, "initialize", lock_time, ledger, A_USER, 100)
    bare.send(USER, "initialize", 604_800, ledger, A_USER, 100)
    assert (bare.call("initialized"), bare.call("ledgerAddress"), bare.call("owner")) == (True, ledger, A_USER)


def test_settings_are_the_owners_and_stay_in_range(world):
    contract, owner = world.fine_tuning, world.owner
    for name in ("updateLockTime", "updatePenaltyPercentage"):
        with refused("Error", "Ownable: caller is not the owner"):
            contract.send(USER, name, 1)
    with refused("LockTimeOutOfRange", 3599):
        contract.send(owner, "updateLockTime", 3599)
    with refused("PenaltyPercentageTooHigh", 101):
        contract.send(owner, "updatePenaltyPercentage", 101)
    assert contract.send(owner, "updatePenaltyPercentage", 0).events == ()
    assert contract.call("penaltyPercentage") == 0
    assert (contract.call("MIN_LOCKTIME"), contract.call("MAX_LOCKTIME")) == (3600, 604_800)
    assert contract.call("MIN_PROVIDER_STAKE") == 100 * ZG


def test_only_the_ledger_moves_sub_accounts(world):
    pair = (A_USER, A_PROVIDER)
    calls = {
        "addAccount": (*pair, ""),
        "depositFund": (*pair, 0),
        "requestRefundAll": pair,
        "processRefund": pair,
        "deleteAccount": pair,
    }
    for name, arguments in calls.items():
        with refused("CallerNotLedger"):
            world.fine_tuning.send(USER, name, *arguments)


def test_both_interfaces_are_announced(world):
    for contract in (world.fine_tuning, world.inference):
        supported = {
            i: contract.call("supportsInterface", bytes.fromhex(i)) for i in ("160841b1", "01ffc9a7", "ffffffff")
        }
        assert supported == {"160841b1": True, "01ffc9a7": True, "ffffffff": False}


def test_the_stake_is_paid_once_and_may_be_more_than_the_minimum(world):
    with refused("InsufficientStake", 100 * ZG - 1, 100 * ZG):
        world.fine_tuning.send(OTHER, "addOrUpdateService", *offer(SIGNER), value=100 * ZG - 1)
    receipt = world.fine_tuning.send(OTHER, "addOrUpdateService", *offer(SIGNER), value=150 * ZG)
    assert receipt.names == ["ProviderStaked", "ServiceUpdated"]
    with refused("CannotAddStakeWhenUpdating"):
        world.fine_tuning.send(OTHER, "addOrUpdateService", *offer(SIGNER), value=1)
    before = world.machine.balance(OTHER.address)
    receipt = world.fine_tuning.send(OTHER, "removeService")
    assert receipt.named("ProviderStakeReturned") == [{"provider": OTHER.address, "amount": 150 * ZG}]
    assert receipt.names == ["ProviderStakeReturned", "ServiceRemoved"]
    assert world.machine.balance(OTHER.address) == before + 150 * ZG


def test_only_a_new_signer_clears_the_owners_approval(world):
    contract = world.fine_tuning
    approved = lambda: contract.call("getService", A_PROVIDER).teeSignerAcknowledged  # noqa: E731
    changed = ("http://new.example", (1, 2, 3, 4, "L4"), 5, True, ["a", "b"], SIGNER.address)
    contract.send(PROVIDER, "addOrUpdateService", *changed)
    assert approved()
    service = contract.call("getAllServices")[0]
    assert (service.url, service.models, service.occupied) == ("http://new.example", ["a", "b"], True)
    assert (service.quota.gpuType, service.pricePerToken) == ("L4", 5)
    contract.send(PROVIDER, "addOrUpdateService", *changed[:-1], OTHER.address)
    assert not approved()


def test_approval_is_the_owners_and_needs_a_service(world):
    for name, approved in (("acknowledgeTEESignerByOwner", True), ("revokeTEESignerAcknowledgement", False)):
        with refused("Error", "Ownable: caller is not the owner"):
            world.fine_tuning.send(USER, name, A_PROVIDER)
        with refused("ServiceNotExist", OTHER.address):
            world.fine_tuning.send(world.owner, name, OTHER.address)
        event = {"provider": A_PROVIDER, "teeSignerAddress": SIGNER.address, "acknowledged": approved}
        receipt = world.fine_tuning.send(world.owner, name, A_PROVIDER)
        assert receipt.named("ProviderTEESignerAcknowledged") == [event]


def test_without_a_service_it_cant_be_read_removed_or_settled(world):
    world.fine_tuning.send(PROVIDER, "removeService")
    deliver(world)
    for name, arguments in (("removeService", ()), ("settleFees", (sign_settlement(world, SIGNER, USER, root=ROOT),))):
        with refused("ServiceNotExist", A_PROVIDER):
            world.fine_tuning.send(PROVIDER, name, *arguments)
    with refused("ServiceNotExist", A_PROVIDER):
        world.fine_tuning.call("getService", A_PROVIDER)


def test_a_provider_that_takes_no_coin_gets_neither_stake_nor_fee(world):
    deliver(world)
    world.machine.put(A_PROVIDER, code=REJECTING_WALLET)
    with refused("ETHTransferFailed"):
        world.fine_tuning.send(PROVIDER, "removeService")
    with refused("ETHTransferFailed"):
        settle(world)


# --- acknowledging the signer ---


def test_a_transfer_acknowledges_the_signer_and_a_revoke_needs_an_empty_account(world):
    with refused("AccountNotExists", A_USER, OTHER.address):
        world.fine_tuning.send(USER, "acknowledgeTEESigner", OTHER.address, True)
    assert world.account(USER, PROVIDER).acknowledged
    with refused("CannotRevokeWithNonZeroBalance", A_USER, A_PROVIDER, 4 * ZG):
        world.fine_tuning.send(USER, "acknowledgeTEESigner", A_PROVIDER, False)
    world.retrieve(USER, PROVIDER)
    world.pass_time(DAY)
    world.retrieve(USER, PROVIDER)
    assert world.fine_tuning.send(USER, "acknowledgeTEESigner", A_PROVIDER, False).events == ()
    world.fine_tuning.send(USER, "acknowledgeTEESigner", A_PROVIDER, False)
    assert not world.account(USER, PROVIDER).acknowledged
    world.transfer(USER, PROVIDER, 0)
    assert world.account(USER, PROVIDER).acknowledged


# --- paging ---


def test_accounts_are_paged_by_all_by_user_and_by_provider(world):
    world.open_ledger(OTHER)
    world.transfer(OTHER, PROVIDER, ZG)
    world.transfer(USER, SIGNER, ZG)
    contract = world.fine_tuning
    pairs = lambda answer: [(a.user, a.provider) for a in answer[0]]  # noqa: E731
    everyone = [(A_USER, A_PROVIDER), (OTHER.address, A_PROVIDER), (A_USER, SIGNER.address)]
    assert pairs(contract.call("getAllAccounts", 0, 0)) == everyone
    assert pairs(contract.call("getAllAccounts", 1, 1)) == everyone[1:2]
    assert contract.call("getAllAccounts", 3, 50) == ([], 3)
    assert pairs(contract.call("getAccountsByProvider", A_PROVIDER, 0, 50)) == everyone[:2]
    assert pairs(contract.call("getAccountsByUser", A_USER, 0, 50)) == [everyone[0], everyone[2]]
    for name, key in (("getAllAccounts", ()), ("getAccountsByUser", (A_USER,)), ("getAccountsByProvider", (A_USER,))):
        with refused("LimitTooLarge", 51):
            contract.call(name, *key, 0, 51)


def test_a_batch_is_read_as_the_calling_provider_with_zeros_for_strangers(world):
    users = [OTHER.address, A_USER]
    batch = world.fine_tuning.call("getBatchAccountsByUsers", users, sender=A_PROVIDER)
    assert [(a.user, a.balance) for a in batch] == [(NOBODY, 0), (A_USER, 4 * ZG)]
    with refused("BatchSizeTooLarge", 51, 50):
        world.fine_tuning.call("getBatchAccountsByUsers", [A_USER] * 51, sender=A_PROVIDER)


# --- the whole way of the money ---


def test_money_flows_as_published(world):
    world = base_world().fork()
    world.register(PROVIDER, SIGNER)
    start = world.machine.balance(A_USER)
    earned = world.machine.balance(A_PROVIDER)

    def at() -> tuple[int, ...]:
        account = world.account(USER, PROVIDER)
        amounts = (*world.money(USER), account.balance, account.pendingRefund)
        return tuple(amount // ZG for amount in (*amounts, world.machine.balance(A_USER) - start))

    world.open_ledger(USER, 10 * ZG)
    world.transfer(USER, PROVIDER, 4 * ZG)
    assert at() == (6, 10, 4, 0, -10)
    world.retrieve(USER, PROVIDER)
    assert at() == (6, 10, 4, 4, -10)
    world.transfer(USER, PROVIDER, ZG)
    assert at() == (6, 10, 4, 3, -10)
    world.transfer(USER, PROVIDER, 4 * ZG)
    assert at() == (5, 10, 5, 0, -10)
    deliver(world)
    acknowledge(world)
    settle(world, secret=SECRET)
    assert at() == (5, 9, 4, 0, -10)
    assert world.machine.balance(A_PROVIDER) == earned + ZG
    world.retrieve(USER, PROVIDER)
    assert at() == (5, 9, 4, 4, -10)
    world.pass_time(DAY)
    world.retrieve(USER, PROVIDER)
    assert at() == (9, 9, 0, 0, -10)
    world.ledger.send(USER, "refund", 6 * ZG)
    assert at() == (3, 3, 0, 0, -4)
    world.ledger.send(USER, "refund", 3 * ZG)
    assert world.machine.balance(A_USER) == start - ZG
    assert world.ledger.call("getAllLedgers", 0, 0) == ([], 0)
    assert world.ledger.call("getServiceAddressByName", FINE_TUNING_NAME) == world.fine_tuning.address
