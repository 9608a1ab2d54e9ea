"""InferenceServing: services, access tokens and fee batches; refunds are the shared code of the fine-tuning tests."""

import pytest

from tests.devnet.evm_harness import (
    INFERENCE_NAME,
    ZG,
    Contract,
    Receipt,
    World,
    base_world,
    inference_offer,
    malleated,
    refused,
    sign_tee_settlement,
)
from zg_async.devnet.accounts import dev_account
from zg_async.devnet.deploy import create_address

USER, PROVIDER, SIGNER, OTHER = (dev_account(index) for index in (1, 2, 3, 4))
A_USER, A_PROVIDER = USER.address, PROVIDER.address
NOBODY = "0x" + "0" * 40
DAY = 86_400
SUCCESS, PARTIAL, PROVIDER_MISMATCH, NO_TEE_SIGNER, INVALID_NONCE, INVALID_SIGNATURE = range(6)
SIGNATURE_C = bytes.fromhex(
    "c0b816741b42347162f022c95989ece57654133c3bb4a2f8b7d91a7064f5a056"
    "7246f9d0b31ef4dd780979fd463b47580eae8a0c95bb44c22be0efd8839a90391b"
)


@pytest.fixture
def world() -> World:
    """A registered, approved provider and a user with 4 of 10 0G in the sub-account."""
    world = base_world().fork()
    world.register_inference(PROVIDER, SIGNER)
    world.open_ledger(USER)
    world.transfer(USER, PROVIDER, 4 * ZG, INFERENCE_NAME)
    return world


def item(world: World, **fields):
    user, provider = fields.pop("user", USER), fields.pop("provider", PROVIDER)
    return sign_tee_settlement(world, fields.pop("signer", SIGNER), user, provider, **fields)


def settle(world: World, *items) -> Receipt:
    return world.inference.send(PROVIDER, "settleFeesWithTEE", list(items))


def statuses(world: World, receipt: Receipt) -> list[int]:
    listed = world.inference.decode("settleFeesWithTEE", receipt.output)[0]
    assert [event["status"] for event in receipt.named("TEESettlementResult")] == listed
    return listed


def account(world: World):
    return world.inference.call("getAccount", A_USER, A_PROVIDER)


# --- settings and services ---


def test_initialising_checks_the_lock_and_announces_itself(world):
    deployed = base_world()
    assert deployed.inference.call("ledgerAddress") == deployed.ledger.address
    fresh = Contract(world, "InferenceServing", "0x" + "77" * 20)
    beacon = bytes.fromhex(create_address(world.owner.address, 5)[2:])
    slot = 0xA3F0AD74E5423AEBFD80D3EF4346578335A9A72AEAEE59FF6CB3582B35133D50
    world.machine.put(fresh.address, code=world.machine.code(world.inference.address))
    world.machine.put(fresh.address, slots={slot: int.from_bytes(beacon, "big")})
    for lock_time in (3599, 604_801):
        with refused("LockTimeOutOfRange", lock_time, 3600, 604_800):
            fresh.send(USER, "initialize", lock_time, NOBODY, A_USER)
    receipt = fresh.send(USER, "initialize", 3600, NOBODY, A_USER)
    event = {"owner": A_USER, "lockTime": 3600, "ledgerAddress": NOBODY}
    assert receipt.named("ContractInitialized") == [event]


def test_the_lock_time_change_is_always_announced(world):
    with refused("Error", "Ownable: caller is not the owner"):
        world.inference.send(USER, "updateLockTime", 3600)
    with refused("LockTimeOutOfRange", 3599, 3600, 604_800):
        world.inference.send(world.owner, "updateLockTime", 3599)
    receipt = world.inference.send(world.owner, "updateLockTime", DAY)
    assert receipt.named("LockTimeUpdated") == [{"oldLockTime": DAY, "newLockTime": DAY}]


def test_only_the_ledger_moves_sub_accounts_and_the_refusal_names_the_caller(world):
    for name in ("requestRefundAll", "processRefund", "deleteAccount"):
        with refused("CallerNotLedger", A_USER):
            world.inference.send(USER, name, A_USER, A_PROVIDER)
    with refused("CallerNotLedger", A_USER):
        world.inference.send(USER, "addAccount", NOBODY, A_PROVIDER, "")
    with refused("CallerNotLedger", A_USER):
        world.inference.send(USER, "depositFund", NOBODY, A_PROVIDER, 0)


def test_sub_accounts_need_two_different_parties(world):
    ledger, contract = world.ledger.address, world.inference
    cases = (
        ("InvalidAddress", (NOBODY,), (NOBODY, A_PROVIDER)),
        ("InvalidAddress", (NOBODY,), (A_USER, NOBODY)),
        ("ProviderCannotBeUser", (), (A_USER, A_USER)),
        ("AccountExists", (A_USER, A_PROVIDER), (A_USER, A_PROVIDER)),
    )
    for name, arguments, pair in cases:
        with refused(name, *arguments):
            world.machine.send(ledger, contract.address, contract.data("addAccount", *pair, ""), ZG)


def test_the_stake_is_tested_before_the_length_of_the_info(world):
    long = inference_offer(SIGNER, additionalInfo="x" * 4097)
    with refused("InsufficientStake", 1, 100 * ZG):
        world.inference.send(OTHER, "addOrUpdateService", long, value=1)
    with refused("CannotAddStakeWhenUpdating"):
        world.inference.send(PROVIDER, "addOrUpdateService", long, value=1)
    with refused("AdditionalInfoTooLong"):
        world.inference.send(PROVIDER, "addOrUpdateService", long)


@pytest.mark.parametrize(
    ("field", "value", "kept"),
    [
        ("serviceType", "speech-to-text", False),
        ("model", "n", False),
        ("verifiability", "", False),
        ("additionalInfo", "{ }", False),
        ("teeSignerAddress", OTHER.address, False),
        ("url", "http://new.example", True),
        ("inputPrice", 1, True),
        ("outputPrice", 1, True),
    ],
)
def test_a_change_of_what_the_owner_looked_at_clears_the_approval(world, field, value, kept):
    world.pass_time(9)
    receipt = world.inference.send(PROVIDER, "addOrUpdateService", inference_offer(SIGNER, **{field: value}))
    service = world.inference.call("getService", A_PROVIDER)
    assert service.teeSignerAcknowledged is kept
    assert getattr(service, field) == value
    assert service.updatedAt == world.machine.now
    assert receipt.names == ["ServiceUpdated"]


def test_a_removed_service_gives_the_stake_back(world):
    before = world.machine.balance(A_PROVIDER)
    assert world.inference.call("serviceExists", A_PROVIDER)
    assert world.inference.send(PROVIDER, "removeService").names == ["ProviderStakeReturned", "ServiceRemoved"]
    assert world.machine.balance(A_PROVIDER) == before + 100 * ZG
    assert not world.inference.call("serviceExists", A_PROVIDER)
    for call in (lambda: world.inference.send(PROVIDER, "removeService"), lambda: _service(world)):
        with refused("ServiceNotExist", A_PROVIDER):
            call()


def _service(world: World):
    return world.inference.call("getService", A_PROVIDER)


def test_a_provider_that_takes_no_coin_gets_neither_stake_nor_fee(world):
    world.machine.put(A_PROVIDER, code=bytes.fromhex("60006000fd"))
    with refused("TransferFailed"):
        world.inference.send(PROVIDER, "removeService")
    with refused("TransferFailed"):
        settle(world, item(world))


def test_services_and_accounts_are_paged_by_fifty_at_most(world):
    world.register_inference(OTHER, SIGNER)
    world.transfer(USER, OTHER, ZG, INFERENCE_NAME)
    contract = world.inference
    providers = [A_PROVIDER, OTHER.address]
    assert [s.provider for s in contract.call("getAllServices", 0, 0)[0]] == providers
    assert [s.provider for s in contract.call("getAllServices", 1, 50)[0]] == providers[1:]
    assert contract.call("getAllServices", 2, 50) == ([], 2)
    assert [a.provider for a in contract.call("getAccountsByUser", A_USER, 0, 50)[0]] == providers
    assert [a.provider for a in contract.call("getAccountsByProvider", OTHER.address, 0, 1)[0]] == providers[1:]
    assert [a.provider for a in contract.call("getAllAccounts", 0, 1)[0]] == providers[:1]
    for name, key in (("getAllServices", ()), ("getAllAccounts", ()), ("getAccountsByUser", (A_USER,))):
        with refused("LimitTooLarge", 51, 50):
            contract.call(name, *key, 0, 51)


def test_a_batch_is_read_as_the_calling_provider_up_to_five_hundred(world):
    batch = world.inference.call("getBatchAccountsByUsers", [OTHER.address, A_USER], sender=A_PROVIDER)
    assert [(a.user, a.balance) for a in batch] == [(NOBODY, 0), (A_USER, 4 * ZG)]
    with refused("BatchSizeTooLarge", 501, 500):
        world.inference.call("getBatchAccountsByUsers", [A_USER] * 501, sender=A_PROVIDER)


# --- access tokens ---


def test_tokens_are_revoked_one_by_one_several_or_all(world):
    send, revoked = world.inference.send, lambda n: world.inference.call("isTokenRevoked", A_USER, A_PROVIDER, n)
    pair = {"user": A_USER, "provider": A_PROVIDER}
    assert send(USER, "revokeToken", A_PROVIDER, 255).named("TokenRevoked") == [{**pair, "tokenId": 255}]
    receipt = send(USER, "revokeTokens", A_PROVIDER, [0, 7, 7])
    assert receipt.named("TokensRevoked") == [{**pair, "tokenIds": [0, 7, 7]}]
    assert [n for n in (0, 1, 7, 254, 255) if revoked(n)] == [0, 7, 255]
    assert account(world).revokedBitmap == 1 | 1 << 7 | 1 << 255
    assert send(USER, "revokeAllTokens", A_PROVIDER).named("AllTokensRevoked") == [{**pair, "newGeneration": 1}]
    assert (account(world).generation, account(world).revokedBitmap) == (1, 0)


def test_token_calls_need_the_sub_account(world):
    calls = {"revokeToken": (1,), "revokeTokens": ([1],), "revokeAllTokens": ()}
    for name, rest in calls.items():
        with refused("AccountNotExists", A_USER, OTHER.address):
            world.inference.send(USER, name, OTHER.address, *rest)
    with refused("AccountNotExists", A_USER, OTHER.address):
        world.inference.call("isTokenRevoked", A_USER, OTHER.address, 1)


def test_generation_and_nonce_survive_the_deletion_of_the_sub_account_and_the_bitmap_doesnt(world):
    world.inference.send(USER, "revokeAllTokens", A_PROVIDER)
    world.inference.send(USER, "revokeToken", A_PROVIDER, 3)
    settle(world, item(world, nonce=9, fee=4 * ZG))
    world.ledger.send(USER, "refund", 6 * ZG)
    with refused("AccountNotExists", A_USER, A_PROVIDER):
        account(world)
    world.open_ledger(USER)
    world.transfer(USER, PROVIDER, ZG, INFERENCE_NAME)
    again = account(world)
    assert (again.generation, again.nonce, again.revokedBitmap) == (1, 9, 0)


# --- settlement ---


def test_a_batch_has_one_to_fifty_items(world):
    for name in ("settleFeesWithTEE", "previewSettlementResults"):
        with refused("NoSettlementsProvided"):
            world.inference.call(name, [], sender=A_PROVIDER)
        with refused("TooManySettlements", 51, 50):
            world.inference.call(name, [item(world)] * 51, sender=A_PROVIDER)


def test_the_published_settlement_signature_is_accepted(world):
    receipt = settle(world, item(world, requests=b"\x11" * 32, nonce=7, fee=ZG, signature=SIGNATURE_C))
    assert statuses(world, receipt) == [SUCCESS]
    assert receipt.named("FundSpent") == [{"user": A_USER, "service": world.inference.address, "amount": ZG}]
    assert (account(world).balance, account(world).nonce) == (3 * ZG, 7)


def test_each_status_has_its_cause_and_failed_items_cost_nothing(world):
    world.transfer(USER, OTHER, ZG, INFERENCE_NAME)
    items = [
        item(world, provider=OTHER),
        item(world, user=OTHER),
        item(world, nonce=0),
        item(world, signer=OTHER),
        item(world, fee=3 * ZG),
        item(world, fee=3 * ZG, nonce=2),
        item(world, fee=ZG, nonce=3),
    ]
    preview = world.inference.call("previewSettlementResults", items[:6], sender=A_PROVIDER)
    failed = [PROVIDER_MISMATCH, INVALID_SIGNATURE, INVALID_NONCE, INVALID_SIGNATURE]
    assert preview == ([A_USER, OTHER.address, A_USER, A_USER], failed, [], [])
    earned = world.machine.balance(A_PROVIDER)
    receipt = settle(world, *items)
    assert statuses(world, receipt) == [*failed, SUCCESS, PARTIAL, PARTIAL]
    unsettled = [event["unsettledAmount"] for event in receipt.named("TEESettlementResult")]
    assert unsettled == [ZG, ZG, ZG, ZG, 0, 2 * ZG, ZG]
    assert world.machine.balance(A_PROVIDER) == earned + 4 * ZG
    assert world.money(USER) == (5 * ZG, 6 * ZG)


def test_the_preview_lists_partly_paid_users(world):
    preview = world.inference.call("previewSettlementResults", [item(world, fee=5 * ZG)], sender=A_PROVIDER)
    assert preview == ([], [], [A_USER], [ZG])


def test_without_approval_service_or_account_the_status_says_so(world):
    world.inference.send(world.owner, "revokeTEESignerAcknowledgement", A_PROVIDER)
    assert statuses(world, settle(world, item(world))) == [NO_TEE_SIGNER]
    world.inference.send(PROVIDER, "removeService")
    assert statuses(world, settle(world, item(world), item(world, user=OTHER))) == [
        PROVIDER_MISMATCH,
        INVALID_SIGNATURE,
    ]


def test_a_user_who_took_back_the_acknowledgement_isnt_charged(world):
    settle(world, item(world, fee=4 * ZG))
    world.inference.send(USER, "acknowledgeTEESigner", A_PROVIDER, False)
    assert statuses(world, settle(world, item(world, nonce=2))) == [NO_TEE_SIGNER]


def test_other_spellings_of_a_signature_are_invalid(world):
    wrong = malleated(item(world)[5]).values()
    items = [item(world, signature=signature) for signature in wrong]
    assert statuses(world, settle(world, *items)) == [INVALID_SIGNATURE] * len(items)


def test_a_fee_eats_pending_refunds_newest_first(world):
    world.retrieve(USER, PROVIDER, name=INFERENCE_NAME)
    receipt = settle(world, item(world, fee=3 * ZG))
    assert receipt.named("BalanceUpdated")[0]["pendingRefund"] == ZG
    left = account(world)
    assert (left.balance, left.pendingRefund, left.refunds[0].amount) == (ZG, ZG, ZG)
