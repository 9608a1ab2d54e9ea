"""FineTuningServing: deliverables and their settlement."""

import pytest

from tests.devnet.contract_kit import (
    A_PROVIDER,
    A_USER,
    DAY,
    NOBODY,
    OTHER,
    PROVIDER,
    ROOT,
    SECRET,
    SIGNER,
    USER,
    acknowledge,
    add_money,
    deliver,
    deliverable,
    settle,
    task_world,
)
from tests.devnet.evm_harness import ZG, World, malleated, offer, refused, sign_settlement

VECTOR_ID = "6b607314-88b0-4fef-91e7-43227a54de57"
VECTOR_NONCE = 17_000_000_000_000_040
VECTOR_FEE = 179_668_154
SIGNATURE_A = bytes.fromhex(
    "2697a551e994c3412a8c5320b1485c56e09618fce00284c5148ad90e9dec0c07"
    "61ad94f466e7c848a0368c6c2f6a90e4f322083058bc327fe49576b6284387ad1c"
)
SIGNATURE_B = bytes.fromhex(
    "bf1e8cd10171e68261eec0eddd4086ac141da211b42e54abfe884f4b4ba1db53"
    "04c2c310967bdb27ec644d60315cee1e7ccfa2d3d6e40d7078f1401a95884b931c"
)


@pytest.fixture
def world() -> World:
    return task_world()


# --- deliverables ---


def test_adding_a_deliverable_is_refused_in_order(world):
    for task_id in ("", "x" * 257):
        with refused("DeliverableIdInvalidLength", len(task_id)):
            world.fine_tuning.send(PROVIDER, "addDeliverable", OTHER.address, task_id, b"")
    with refused("AccountNotExists", OTHER.address, A_PROVIDER):
        world.fine_tuning.send(PROVIDER, "addDeliverable", OTHER.address, "task", b"")
    receipt = deliver(world)
    event = {"user": A_USER, "provider": A_PROVIDER, "deliverableId": "task", "modelRootHash": ROOT}
    assert receipt.named("DeliverableAdded") == [{**event, "timestamp": world.machine.now}]
    with refused("DeliverableAlreadyExists", "task"):
        deliver(world)
    with refused("PreviousDeliverableNotAcknowledged", "task"):
        deliver(world, "next")


def test_a_deliverable_is_acknowledged_as_often_as_wished_until_settled(world):
    with refused("AccountNotExists", A_USER, OTHER.address):
        world.fine_tuning.send(USER, "acknowledgeDeliverable", OTHER.address, "task")
    with refused("DeliverableNotExists", "task"):
        acknowledge(world)
    deliver(world)
    assert acknowledge(world).names == acknowledge(world).names == ["DeliverableAcknowledged"]
    settle(world, secret=SECRET)
    with refused("CannotAcknowledgeSettledDeliverable", "task"):
        acknowledge(world)


def test_a_settled_acknowledged_deliverable_holds_the_secret_and_cost_the_full_fee(world):
    deliver(world)
    acknowledge(world)
    before = world.machine.balance(A_PROVIDER)
    receipt = settle(world, secret=SECRET, nonce=7)
    assert receipt.names == ["FeesSettled", "FundSpent", "BalanceUpdated"]
    event = {"user": A_USER, "provider": A_PROVIDER, "deliverableId": "task", "fee": ZG, "acknowledged": True}
    assert receipt.named("FeesSettled") == [{**event, "nonce": 7}]
    stored = deliverable(world)
    assert (stored.acknowledged, stored.settled, stored.encryptedSecret) == (True, True, SECRET)
    assert world.machine.balance(A_PROVIDER) == before + ZG
    assert world.money(USER) == (6 * ZG, 9 * ZG)
    account = world.account(USER, PROVIDER)
    assert (account.balance, account.nonce) == (3 * ZG, 7)


def test_an_unacknowledged_deliverable_settles_for_the_penalty_rounded_down_without_secret(world):
    deliver(world)
    receipt = settle(world, fee=101)
    assert receipt.named("FeesSettled")[0]["fee"] == 30
    assert not receipt.named("FeesSettled")[0]["acknowledged"]
    stored = deliverable(world)
    assert (stored.acknowledged, stored.settled, stored.encryptedSecret) == (False, True, b"")
    assert world.account(USER, PROVIDER).balance == 4 * ZG - 30


def test_abandoning_needs_an_unsettled_deliverable_and_costs_nothing(world):
    abandon = lambda user=A_USER: world.fine_tuning.send(PROVIDER, "abandonDeliverable", user, "task")  # noqa: E731
    with refused("AccountNotExists", OTHER.address, A_PROVIDER):
        abandon(OTHER.address)
    with refused("DeliverableNotExists", "task"):
        abandon()
    deliver(world)
    assert abandon().names == ["DeliverableAbandoned"]
    stored = deliverable(world)
    assert (stored.acknowledged, stored.settled) == (True, True)
    assert world.account(USER, PROVIDER).balance == 4 * ZG
    with refused("CannotAbandonSettledDeliverable", "task"):
        abandon()
    deliver(world, "next")


def test_a_penalty_settlement_blocks_the_queue_until_the_sub_account_is_deleted(world):
    deliver(world)
    settle(world, fee=0)
    with refused("CannotAcknowledgeSettledDeliverable", "task"):
        acknowledge(world)
    with refused("CannotAbandonSettledDeliverable", "task"):
        world.fine_tuning.send(PROVIDER, "abandonDeliverable", A_USER, "task")
    with refused("PreviousDeliverableNotAcknowledged", "task"):
        deliver(world, "next")
    world.retrieve(USER, PROVIDER)
    world.pass_time(DAY)
    world.retrieve(USER, PROVIDER)
    deleted = world.ledger.send(USER, "refund", 10 * ZG)
    assert deleted.named("AccountDeleted") == [{"user": A_USER, "provider": A_PROVIDER, "refundedAmount": 0}]
    world.open_ledger(USER)
    world.transfer(USER, PROVIDER, ZG)
    account = world.account(USER, PROVIDER)
    assert (account.nonce, account.deliverables, account.refunds) == (1, [], [])
    deliver(world, "next")
    with refused("InvalidVerifierInput", "nonce should larger than the current nonce"):
        settle(world, id="next", nonce=1)


@pytest.mark.slow
def test_the_ring_keeps_twenty_and_drops_the_oldest_settled_one(world):
    for number in range(20):
        deliver(world, f"task-{number}")
        acknowledge(world, f"task-{number}")
    with refused("CannotEvictUnsettledDeliverable", "task-0"):
        deliver(world, "task-20")
    for number in range(2):
        settle(world, id=f"task-{number}", nonce=number + 1, fee=1, secret=SECRET)
    receipt = deliver(world, "task-20")
    assert receipt.names == ["DeliverableEvicted", "DeliverableAdded"]
    evicted = receipt.named("DeliverableEvicted")[0]
    assert (evicted["evictedDeliverableId"], evicted["newDeliverableId"]) == ("task-0", "task-20")
    account = world.account(USER, PROVIDER)
    assert (account.deliverablesHead, account.deliverablesCount) == (1, 20)
    assert [d.id for d in account.deliverables] == [f"task-{number}" for number in range(1, 21)]
    listed = world.fine_tuning.call("getDeliverables", A_USER, A_PROVIDER)
    assert [d.id for d in listed] == [d.id for d in account.deliverables]
    with refused("DeliverableNotExists", "task-0"):
        deliverable(world, "task-0")
    acknowledge(world, "task-20")
    deliver(world, "task-0")
    assert deliverable(world, "task-0").encryptedSecret == b""


def test_reading_deliverables_needs_the_account(world):
    with refused("AccountNotExists", A_USER, OTHER.address):
        world.fine_tuning.call("getDeliverable", A_USER, OTHER.address, "task")
    with refused("AccountNotExists", A_USER, OTHER.address):
        world.fine_tuning.call("getDeliverables", A_USER, OTHER.address)


# --- settlement ---


@pytest.mark.parametrize(
    ("acknowledged", "secret", "signature"), [(True, SECRET, SIGNATURE_A), (False, b"", SIGNATURE_B)], ids=["A", "B"]
)
def test_the_published_settlement_signatures_are_accepted(world, acknowledged, secret, signature):
    deliver(world, VECTOR_ID)
    if acknowledged:
        acknowledge(world, VECTOR_ID)
    vector = {"id": VECTOR_ID, "secret": secret, "nonce": VECTOR_NONCE, "fee": VECTOR_FEE, "signature": signature}
    receipt = settle(world, **vector)
    assert receipt.named("FeesSettled")[0]["fee"] == (VECTOR_FEE if acknowledged else VECTOR_FEE * 30 // 100)


def test_other_spellings_of_a_signature_and_other_signers_are_refused(world):
    deliver(world)
    right = sign_settlement(world, SIGNER, USER, root=ROOT)
    wrong = {**malleated(right[4]), "another signer": sign_settlement(world, OTHER, USER, root=ROOT)[4]}
    for signature in wrong.values():
        with refused("InvalidVerifierInput", "TEE settlement validation failed"):
            settle(world, signature=signature)
    settle(world)


def test_settlement_needs_the_account_the_users_word_and_the_owners(world):
    deliver(world)
    with refused("AccountNotExists", OTHER.address, A_PROVIDER):
        world.fine_tuning.send(PROVIDER, "settleFees", sign_settlement(world, SIGNER, OTHER))
    world.fine_tuning.send(world.owner, "revokeTEESignerAcknowledgement", A_PROVIDER)
    with refused("InvalidVerifierInput", "TEE signer not acknowledged"):
        settle(world)
    world.fine_tuning.send(PROVIDER, "addOrUpdateService", *offer(SIGNER)[:-1], NOBODY)
    world.fine_tuning.send(world.owner, "acknowledgeTEESignerByOwner", A_PROVIDER)
    with refused("InvalidVerifierInput", "TEE signer not acknowledged"):
        settle(world)


def test_the_rest_of_settlement_is_refused_in_order(world):
    deliver(world)
    with refused("InvalidVerifierInput", "nonce should larger than the current nonce"):
        settle(world, nonce=0, fee=5 * ZG)
    with refused("InvalidVerifierInput", "insufficient balance"):
        settle(world, fee=4 * ZG + 1, id="unknown")
    with refused("DeliverableNotExists", "unknown"):
        settle(world, id="unknown", root=b"other")
    with refused("InvalidVerifierInput", "model root hash mismatch"):
        settle(world, root=b"other", signature=b"")
    with refused("InvalidVerifierInput", "TEE settlement validation failed"):
        settle(world, secret=SECRET, signature=b"")
    with refused("SecretShouldBeEmpty"):
        settle(world, secret=SECRET)
    acknowledge(world)
    with refused("SecretShouldNotBeEmpty"):
        settle(world)
    settle(world, secret=SECRET, fee=0)
    with refused("DeliverableAlreadySettled", "task"):
        settle(world, nonce=2, root=b"other")


def test_settlement_eats_pending_refunds_newest_first(world):
    world.retrieve(USER, PROVIDER)
    add_money(world, 2 * ZG)
    world.retrieve(USER, PROVIDER)
    deliver(world)
    acknowledge(world)
    add_money(world, ZG)
    receipt = settle(world, secret=SECRET, fee=4 * ZG)
    account = world.account(USER, PROVIDER)
    assert (account.balance, account.pendingRefund, account.validRefundsLength) == (3 * ZG, 3 * ZG, 1)
    assert account.refunds[0].amount == 3 * ZG
    assert receipt.named("BalanceUpdated")[0]["pendingRefund"] == 3 * ZG
