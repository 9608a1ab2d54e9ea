import dataclasses

import pytest

from zg_async.devnet.accounts import dev_account
from zg_async.errors import RefusedToSignError
from zg_async.networks import NETWORKS
from zg_async.transport.fees import FeePolicy
from zg_async.transport.guard import SENT, network_guard
from zg_async.transport.transaction import Transaction
from zg_async.wire.contracts import FUNCTIONS, FineTuningContract, InferenceContract, LedgerContract

LOCAL = NETWORKS["local"]
USER, OTHER = dev_account(1).address, dev_account(2).address
LEDGER = LedgerContract(LOCAL.ledger)
SERVING = FineTuningContract(LOCAL.fine_tuning)
INFERENCE = InferenceContract(LOCAL.inference)
GUARD = network_guard(LOCAL, FeePolicy(max_cost_per_tx=100 * 10**18))


def made(call=None, **changes):
    fields = {
        "chain_id": 31337,
        "account_nonce": 0,
        "to": call.to if call else USER,
        "data": call.data if call else b"",
        "value": call.value if call else 0,
        "gas": 100_000,
        "max_fee_per_gas": 10**9,
        "max_priority_fee_per_gas": 10**9,
    }
    return Transaction(**(fields | changes))


@pytest.mark.parametrize(
    "call",
    [
        LEDGER.add_ledger("", value=3 * 10**18),
        LEDGER.deposit_fund(value=1),
        LEDGER.deposit_fund_for(OTHER, value=1),
        LEDGER.refund(1),
        LEDGER.transfer_fund(OTHER, "fine-tuning-v1.0", 1),
        LEDGER.retrieve_fund([OTHER], "fine-tuning-v1.0"),
        LEDGER.delete_ledger(),
        SERVING.acknowledge_tee_signer(OTHER, True),
        SERVING.acknowledge_deliverable(OTHER, "6f9619ff-8b86-d011-b42d-00c04fc964ff"),
        INFERENCE.acknowledge_tee_signer(OTHER, True),
        INFERENCE.revoke_all_tokens(OTHER),
    ],
    ids=lambda call: call.name,
)
def test_what_this_package_sends_passes(call):
    GUARD.check(made(call), sender=USER)


def test_every_name_on_the_list_is_a_function_of_its_contract():
    for contract, names in SENT.items():
        functions = {function.name: function for function in FUNCTIONS[contract].values()}
        for name, payable in names.items():
            assert (functions[name].mutability == "payable") == payable


@pytest.mark.parametrize(
    ("transaction", "words"),
    [
        (made(LEDGER.refund(1), chain_id=1), "chain 1"),
        (made(LEDGER.refund(1), to=OTHER), "never calls"),
        (made(LEDGER.refund(1), to=LOCAL.fine_tuning), "never calls"),
        (made(LEDGER.refund(1), data=b""), "never calls"),
        (made(LEDGER.refund(1), data=bytes.fromhex("f2fde38b") + bytes(32)), "never calls"),
        (made(LEDGER.refund(1), value=1), "never takes money"),
        (made(LEDGER.deposit_fund(value=1), value=-1), "never takes money"),
        (made(LEDGER.deposit_fund(value=101 * 10**18)), "the cap is 100 0G"),
        (made(LEDGER.refund(1), gas=10**8), "gas is outside"),
        (made(LEDGER.refund(1), gas=20_999), "gas is outside"),
        (made(LEDGER.refund(1), max_fee_per_gas=10**12), "above the cap"),
        (made(LEDGER.refund(1), max_priority_fee_per_gas=2 * 10**9), "inconsistent"),
        (made(to=OTHER, value=1), "never calls"),
        (made(value=1), "never calls"),
    ],
)
def test_everything_else_is_refused_whoever_asks(transaction, words):
    with pytest.raises(RefusedToSignError, match=words):
        GUARD.check(transaction, sender=USER)


def test_a_transfer_of_nothing_to_oneself_passes():
    GUARD.check(made(), sender=USER)


def test_storage_is_paid_only_where_a_flow_contract_is_pinned():
    flow = NETWORKS["testnet"].flow
    assert not any(to == flow for to, _ in GUARD.calls)
    assert any(to == flow for to, _ in network_guard(NETWORKS["testnet"], FeePolicy()).calls)


def test_a_guard_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        GUARD.chain_id = 1
