"""LedgerManager: the user's money and the registry, with every refusal in the deployed contracts' words."""

import pytest

from tests.devnet.evm_harness import (
    FINE_TUNING_NAME,
    INFERENCE_NAME,
    ZG,
    Contract,
    RevertedError,
    World,
    base_world,
    refused,
)
from zg_async.devnet.accounts import dev_account
from zg_async.devnet.deploy import create_address

NOBODY = "0x" + "0" * 40
USER, OTHER, PROVIDER = dev_account(1), dev_account(2), dev_account(3)
A_USER = USER.address
DAY = 86_400

RE_ENTERING_WALLET = bytes.fromhex(
    "638d0d8cb660e01b600052"  # depositFund()
    "60206000600460006000335af150"  # called back at whom the coin comes from
    "60005160005500"  # the first word of the answer is kept in slot 0
)


@pytest.fixture
def world() -> World:
    return base_world().fork()


def test_a_ledger_opens_with_its_deposit_available_and_without_an_event(world):
    receipt = world.ledger.send(USER, "addLedger", "hello", value=3 * ZG)
    assert receipt.events == ()
    assert world.ledger.decode("addLedger", receipt.output) == (3 * ZG, 0)
    ledger = world.ledger.call("getLedger", A_USER)
    assert (ledger.user, ledger.availableBalance, ledger.totalBalance) == (A_USER, 3 * ZG, 3 * ZG)
    assert ledger.additionalInfo == "hello"


def test_opening_a_ledger_is_refused_in_the_order_minimum_info_existing(world):
    with refused("MinimumDepositRequired", 3 * ZG - 1, 3 * ZG):
        world.ledger.send(USER, "addLedger", "x" * 4097, value=3 * ZG - 1)
    world.ledger.send(USER, "addLedger", "x" * 4096, value=3 * ZG)
    with refused("AdditionalInfoTooLong", 4097, 4096):
        world.ledger.send(USER, "addLedger", "x" * 4097, value=3 * ZG)
    with refused("LedgerExists", A_USER):
        world.ledger.send(USER, "addLedger", "", value=3 * ZG)


def test_the_minimums_are_what_the_deployment_asks_for():
    world = World(min_account_balance=ZG // 10, min_transfer_amount=ZG // 100, lock_time=3600, penalty_percentage=55)
    assert world.ledger.call("MIN_ACCOUNT_BALANCE") == ZG // 10
    assert world.ledger.call("MIN_TRANSFER_AMOUNT") == ZG // 100
    assert world.fine_tuning.call("lockTime") == world.inference.call("lockTime") == 3600
    assert world.fine_tuning.call("penaltyPercentage") == 55
    world.open_ledger(USER, ZG // 10)


def test_the_limits_are_public(world):
    names = (
        "MAX_PROVIDERS_PER_BATCH",
        "MAX_PROVIDERS_PER_USER_PER_SERVICE",
        "MAX_SERVICES",
        "MAX_ADDITIONAL_INFO_LENGTH",
    )
    assert [world.ledger.call(name) for name in names] == [20, 50, 500, 4096]


def test_a_deposit_of_nothing_is_refused(world):
    with refused("ZeroAmountNotAllowed"):
        world.ledger.send(USER, "depositFund")
    with refused("ZeroAddressNotAllowed"):
        world.ledger.send(USER, "depositFundFor", NOBODY)
    with refused("ZeroAmountNotAllowed"):
        world.ledger.send(USER, "depositFundFor", OTHER.address)


def test_a_deposit_opens_a_missing_ledger_from_the_minimum_on_and_tops_up_any_amount(world):
    with refused("MinimumDepositRequired", ZG, 3 * ZG):
        world.ledger.send(USER, "depositFund", value=ZG)
    assert world.ledger.send(USER, "depositFund", value=3 * ZG).events == ()
    world.ledger.send(USER, "depositFund", value=1)
    assert world.money(USER) == (3 * ZG + 1, 3 * ZG + 1)


def test_anyone_may_open_and_fund_the_ledger_of_another(world):
    with refused("MinimumDepositRequired", 1, 3 * ZG):
        world.ledger.send(USER, "depositFundFor", OTHER.address, value=1)
    world.ledger.send(USER, "depositFundFor", OTHER.address, value=3 * ZG)
    world.ledger.send(USER, "depositFundFor", OTHER.address, value=1)
    assert world.money(OTHER) == (3 * ZG + 1, 3 * ZG + 1)


def test_info_is_replaced_with_an_event_and_only_on_a_ledger(world):
    with refused("AdditionalInfoTooLong", 4097, 4096):
        world.ledger.send(USER, "updateAdditionalInfo", "x" * 4097)
    with refused("LedgerNotExists", A_USER):
        world.ledger.send(USER, "updateAdditionalInfo", "new")
    world.open_ledger(USER)
    world.transfer(USER, PROVIDER, ZG)
    receipt = world.ledger.send(USER, "updateAdditionalInfo", "new")
    assert receipt.named("LedgerInfoUpdated") == [{"user": A_USER, "additionalInfo": "new"}]
    assert world.account(USER, PROVIDER).additionalInfo == ""


def test_a_refund_needs_a_ledger_the_amount_and_a_rest_of_nothing_or_the_minimum(world):
    with refused("LedgerNotExists", A_USER):
        world.ledger.send(USER, "refund", 0)
    world.open_ledger(USER, 10 * ZG)
    with refused("InsufficientBalance", A_USER):
        world.ledger.send(USER, "refund", 10 * ZG + 1)
    with refused("MinimumDepositRequired", 2 * ZG, 3 * ZG):
        world.ledger.send(USER, "refund", 8 * ZG)
    world.transfer(USER, PROVIDER, 8 * ZG)
    with refused("MinimumDepositRequired", 2 * ZG, 3 * ZG):
        world.ledger.send(USER, "refund", 0)
    before = world.machine.balance(A_USER)
    assert world.ledger.send(USER, "refund", 2 * ZG).events == ()
    assert world.machine.balance(A_USER) == before + 2 * ZG
    assert world.money(USER) == (0, 8 * ZG)


def test_refunding_everything_deletes_the_ledger_and_its_sub_accounts(world):
    world.open_ledger(USER)
    world.transfer(USER, PROVIDER, ZG)
    world.transfer(USER, PROVIDER, ZG, INFERENCE_NAME)
    for name in (FINE_TUNING_NAME, INFERENCE_NAME):
        world.retrieve(USER, PROVIDER, name=name)
    world.pass_time(DAY)
    for name in (FINE_TUNING_NAME, INFERENCE_NAME):
        world.retrieve(USER, PROVIDER, name=name)
    receipt = world.ledger.send(USER, "refund", 10 * ZG)
    assert receipt.names == ["AccountDeleted", "AccountDeleted"]
    with refused("LedgerNotExists", A_USER):
        world.ledger.call("getLedger", A_USER)
    assert not world.fine_tuning.call("accountExists", A_USER, PROVIDER.address)
    assert not world.inference.call("accountExists", A_USER, PROVIDER.address)
    assert world.ledger.call("getLedgerProviders", A_USER, FINE_TUNING_NAME) == []


def test_a_transfer_needs_a_ledger_a_known_full_name_the_minimum_and_the_money(world):
    with refused("LedgerNotExists", A_USER):
        world.transfer(USER, PROVIDER, ZG, "unknown")
    world.open_ledger(USER, 3 * ZG)
    with refused("ServiceNotFound", NOBODY):
        world.transfer(USER, PROVIDER, ZG, "fine-tuning")
    for amount in (0, ZG - 1):
        with refused("MinimumDepositRequired", amount, ZG):
            world.transfer(USER, PROVIDER, amount)
    with refused("InsufficientAvailableBalance", 3 * ZG, 4 * ZG):
        world.transfer(USER, PROVIDER, 4 * ZG)
    world.transfer(USER, PROVIDER, ZG)
    world.transfer(USER, PROVIDER, 0)
    world.transfer(USER, PROVIDER, 1)
    assert world.money(USER) == (2 * ZG - 1, 3 * ZG)


def test_what_the_serving_contract_refuses_comes_out_as_call_failed(world):
    world.open_ledger(USER)
    for provider in (A_USER, NOBODY):
        with refused("CallFailed"):
            world.ledger.send(USER, "transferFund", provider, INFERENCE_NAME, ZG)
    world.ledger.send(USER, "transferFund", A_USER, FINE_TUNING_NAME, ZG)
    assert world.money(USER) == (9 * ZG, 10 * ZG)


@pytest.mark.slow
def test_fifty_providers_a_user_and_service_are_the_most(world):
    world.open_ledger(USER, 60 * ZG)
    for number in range(50):
        world.ledger.send(USER, "transferFund", f"0x{number + 1:040x}", FINE_TUNING_NAME, ZG)
    with refused("TooManyProvidersForService", 50, 50):
        world.transfer(USER, PROVIDER, ZG)
    world.transfer(USER, PROVIDER, ZG, INFERENCE_NAME)


def test_retrieving_checks_the_batch_the_name_and_the_ledger_in_that_order(world):
    with refused("TooManyProviders", 21, 20):
        world.retrieve(USER, *[PROVIDER] * 21, name="unknown")
    with refused("ServiceNotFound", NOBODY):
        world.retrieve(USER, PROVIDER, name="inference")
    with refused("LedgerNotExists", A_USER):
        world.retrieve(USER, PROVIDER)


def test_retrieving_skips_unknown_providers_and_accepts_an_empty_list(world):
    world.open_ledger(USER)
    assert world.retrieve(USER).events == ()
    assert world.retrieve(USER, PROVIDER).events == ()
    world.transfer(USER, PROVIDER, ZG)
    assert world.retrieve(USER, OTHER, PROVIDER).names == ["RefundRequested"]


def test_one_provider_with_five_live_refunds_undoes_the_whole_batch(world):
    world.open_ledger(USER, 20 * ZG)
    world.transfer(USER, OTHER, ZG)
    for _ in range(5):
        _grow(world, ZG)
        world.retrieve(USER, PROVIDER)
    _grow(world, ZG)
    with refused("TooManyRefunds", A_USER, PROVIDER.address):
        world.retrieve(USER, OTHER, PROVIDER)
    assert world.account(USER, OTHER).pendingRefund == 0


def _grow(world: World, amount: int) -> None:
    """New money in the sub-account beside what is pending (a top-up through the ledger would cancel that first)."""
    if not world.fine_tuning.call("accountExists", A_USER, PROVIDER.address):
        world.transfer(USER, PROVIDER, amount)
        return
    data = world.fine_tuning.data("depositFund", A_USER, PROVIDER.address, 0)
    world.machine.send(world.ledger.address, world.fine_tuning.address, data, amount)


def test_deleting_a_ledger_needs_it_empty(world):
    with refused("LedgerNotExists", A_USER):
        world.ledger.send(USER, "deleteLedger")
    world.open_ledger(USER)
    with refused("MustWithdrawAllFundsFirst", 10 * ZG):
        world.ledger.send(USER, "deleteLedger")


def test_only_registered_services_spend_and_not_more_than_is_committed(world):
    with refused("CallerNotRegisteredService", A_USER):
        world.ledger.send(USER, "spendFund", A_USER, 1)
    service, ledger = world.fine_tuning.address, world.ledger
    with refused("LedgerNotExists", A_USER):
        world.machine.send(service, ledger.address, ledger.data("spendFund", A_USER, 1))
    world.open_ledger(USER)
    world.transfer(USER, PROVIDER, ZG)
    with refused("InsufficientAvailableBalance", ZG, ZG + 1):
        world.machine.send(service, ledger.address, ledger.data("spendFund", A_USER, ZG + 1))
    receipt = world.machine.send(service, ledger.address, ledger.data("spendFund", A_USER, ZG))
    assert receipt.named("FundSpent") == [{"user": A_USER, "service": service, "amount": ZG}]
    assert world.money(USER) == (9 * ZG, 9 * ZG)


def test_plain_coin_is_refused_by_all_three(world):
    for contract in (world.ledger, world.fine_tuning, world.inference):
        with refused("DirectDepositsDisabled"):
            world.machine.send(A_USER, contract.address, b"", 1)


def test_a_wallet_that_re_enters_meets_its_own_lock(world):
    wallet = OTHER.address
    world.machine.put(wallet, code=RE_ENTERING_WALLET)
    world.open_ledger(OTHER)
    world.ledger.send(OTHER, "refund", 10 * ZG)
    assert world.machine.storage(wallet, 0) >> 224 == 0x689E300A  # LedgerLocked()


def test_a_wallet_that_takes_no_coin_gets_no_refund(world):
    world.open_ledger(OTHER)
    world.machine.put(OTHER.address, code=bytes.fromhex("60006000fd"))
    with refused("TransferFailed"):
        world.ledger.send(OTHER, "refund", 10 * ZG)


def test_registration_is_the_owners_and_refused_in_order(world):
    owner, ledger, service = world.owner, world.ledger, create_address(world.owner.address, 10)
    with refused("Error", "Ownable: caller is not the owner"):
        ledger.send(USER, "registerService", "x", "v1", service, "")
    with refused("InvalidServiceAddress", NOBODY):
        ledger.send(owner, "registerService", "", "", NOBODY, "")
    with refused("ServiceTypeRequired"):
        ledger.send(owner, "registerService", "", "", service, "")
    with refused("VersionRequired"):
        ledger.send(owner, "registerService", "x", "", service, "")
    with refused("ServiceAlreadyRegistered", world.inference.address):
        ledger.send(owner, "registerService", "inference", "v1.0", world.inference.address, "")
    with refused("ServiceNameExists", INFERENCE_NAME):
        ledger.send(owner, "registerService", "inference", "v1.0", ledger.address, "")
    for address in (A_USER, ledger.address):
        with refused("ServiceMustImplementIServing", address):
            ledger.send(owner, "registerService", "x", "v1", address, "")


def test_the_registry_holds_five_hundred_services(world):
    slots = [slot for slot in range(20) if world.machine.storage(world.ledger.address, slot) == 2]
    world.machine.put(world.ledger.address, slots=dict.fromkeys(slots, 500))
    with refused("ServiceRegistryLimitReached", 500):
        world.ledger.send(world.owner, "registerService", "x", "v1", create_address(world.owner.address, 10), "")


def test_a_second_version_is_listed_and_can_become_the_recommended_one(world):
    owner, ledger, service = world.owner, world.ledger, create_address(world.owner.address, 10)
    receipt = ledger.send(owner, "registerService", "fine-tuning", "v1.1", service, "next")
    assert receipt.named("ServiceRegistered") == [{"serviceAddress": service, "serviceName": "fine-tuning-v1.1"}]
    info = ledger.call("getServiceInfo", service)
    assert (info.fullName, info.description, info.isRecommended) == ("fine-tuning-v1.1", "next", False)
    assert info.registeredAt == world.machine.now
    receipt = ledger.send(owner, "setRecommendedService", "fine-tuning", "v1.1")
    assert receipt.names == ["RecommendedServiceUpdated"]
    assert ledger.call("getRecommendedService", "fine-tuning") == ("v1.1", service)
    former = world.fine_tuning.address
    assert ledger.call("getAllVersions", "fine-tuning") == (["v1.0", "v1.1"], [former, service], [False, True])
    assert not ledger.call("isRecommendedVersion", "fine-tuning", "v1.0")
    assert [i.fullName for i in ledger.call("getAllActiveServices")] == [
        INFERENCE_NAME,
        FINE_TUNING_NAME,
        info.fullName,
    ]


def test_recommending_needs_the_owner_and_a_known_version(world):
    with refused("Error", "Ownable: caller is not the owner"):
        world.ledger.send(USER, "setRecommendedService", "inference", "v1.0")
    with refused("ServiceNotFound", NOBODY):
        world.ledger.send(world.owner, "setRecommendedService", "inference", "v9")


def test_unknown_names_and_addresses_answer_as_the_deployed_registry_does(world):
    ledger = world.ledger
    assert ledger.call("getServiceAddressByName", "fine-tuning") == NOBODY
    assert ledger.call("getServiceAddressByName", FINE_TUNING_NAME) == world.fine_tuning.address
    assert ledger.call("getServiceInfo", A_USER).fullName == ""
    assert not ledger.call("isRecommendedVersion", "nothing", "v1.0")
    with refused("NoRecommendedService", "nothing"):
        ledger.call("getRecommendedService", "nothing")
    with refused("ServiceNotFound", NOBODY):
        ledger.call("getLedgerProviders", A_USER, "fine-tuning")


def test_ledgers_are_paged_with_fifty_as_default_and_no_cap(world):
    accounts = [dev_account(index) for index in range(1, 4)]
    for account in accounts:
        world.open_ledger(account)
    page = lambda *range_: [ledger.user for ledger in world.ledger.call("getAllLedgers", *range_)[0]]  # noqa: E731
    addresses = [account.address for account in accounts]
    assert page(0, 0) == page(0, 1000) == addresses
    assert page(1, 1) == addresses[1:2]
    assert world.ledger.call("getAllLedgers", 3, 10) == ([], 3)


def test_a_contract_is_initialised_once_and_two_implementations_never(world):
    with refused("AlreadyInitialized"):
        world.ledger.send(USER, "initialize", A_USER)
    with refused("AlreadyInitialized"):
        world.inference.send(USER, "initialize", 3600, world.ledger.address, A_USER)
    with refused("AlreadyInitialized"):
        world.fine_tuning.send(USER, "initialize", 3600, world.ledger.address, A_USER, 0)
    bare = [Contract(world, name, create_address(world.owner.address, nonce)) for name, nonce in _IMPLEMENTATIONS]
    with refused("AlreadyInitialized"):
        bare[0].send(USER, "initialize", A_USER)
    with refused("AlreadyInitialized"):
        bare[1].send(USER, "initialize", 3600, world.ledger.address, A_USER)
    bare[2].send(USER, "initialize", 3600, world.ledger.address, A_USER, 0)
    with refused("AlreadyInitialized"):
        bare[2].send(USER, "initialize", 3600, world.ledger.address, A_USER, 0)


_IMPLEMENTATIONS = (("LedgerManager", 0), ("InferenceServing", 4), ("FineTuningServing", 10))


def test_ownership_moves_and_ends(world):
    for contract in (world.ledger, world.inference, world.fine_tuning):
        assert contract.call("owner") == world.owner.address
        with refused("Error", "Ownable: caller is not the owner"):
            contract.send(USER, "transferOwnership", A_USER)
        with refused("Error", "Ownable: new owner is the zero address"):
            contract.send(world.owner, "transferOwnership", NOBODY)
        moved = contract.send(world.owner, "transferOwnership", A_USER).named("OwnershipTransferred")
        assert moved == [{"previousOwner": world.owner.address, "newOwner": A_USER}]
        contract.send(USER, "renounceOwnership")
        assert contract.call("owner") == NOBODY


def test_the_beacon_slot_is_set_and_its_owner_upgrades_the_proxy(world):
    slot = 0xA3F0AD74E5423AEBFD80D3EF4346578335A9A72AEAEE59FF6CB3582B35133D50
    beacon = Contract(world, "UpgradeableBeacon", create_address(world.owner.address, 1))
    assert world.machine.storage(world.ledger.address, slot) == int(beacon.address, 16)
    next_code = create_address(world.owner.address, 4)
    with refused("Error", "Ownable: caller is not the owner"):
        beacon.send(USER, "upgradeTo", next_code)
    with refused("Error", "UpgradeableBeacon: implementation is not a contract"):
        beacon.send(world.owner, "upgradeTo", A_USER)
    assert beacon.send(world.owner, "upgradeTo", next_code).named("Upgraded") == [{"implementation": next_code}]
    with pytest.raises(RevertedError):
        world.ledger.call("MIN_ACCOUNT_BALANCE")
