import dataclasses
import random

import pytest

from zg_async.devnet.accounts import dev_account
from zg_async.errors import RefusedToSignError
from zg_async.networks import NETWORKS
from zg_async.transport.fees import FeePolicy
from zg_async.transport.guard import SENT, network_guard
from zg_async.transport.transaction import Transaction
from zg_async.wire.contracts import FUNCTIONS, FineTuningContract, InferenceContract, LedgerContract
from zg_async.wire.hashing import keccak256
from zg_async.wire.submission import LEGACY_BATCH_SUBMIT, LEGACY_SUBMIT

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


MAY_SEND = {
    LOCAL.ledger: (
        "addLedger(string)", "depositFund()", "depositFundFor(address)", "refund(uint256)", "deleteLedger()",
        "transferFund(address,string,uint256)", "retrieveFund(address[],string)",
    ),
    LOCAL.fine_tuning: (
        "acknowledgeTEESigner(address,bool)", "acknowledgeDeliverable(address,string)", "removeService()",
        "acknowledgeTEESignerByOwner(address)", "revokeTEESignerAcknowledgement(address)",
    ),
    LOCAL.inference: (
        "acknowledgeTEESigner(address,bool)", "revokeToken(address,uint8)", "revokeTokens(address,uint8[])",
        "revokeAllTokens(address)", "acknowledgeTEESignerByOwner(address)", "revokeTEESignerAcknowledgement(address)",
        "addOrUpdateService((string,string,string,string,uint256,uint256,string,address))", "removeService()",
    ),
}  # fmt: skip
"""By hand, so that the list in the code is held to another one."""
MAY_PAY = {"addLedger(string)", "depositFund()", "depositFundFor(address)"} | {MAY_SEND[LOCAL.inference][6]}
SELECTORS = {(to, keccak256(s.encode())[:4]): s in MAY_PAY for to, names in MAY_SEND.items() for s in names}
FLOW = dev_account(3).address
STORES = [s for s, f in FUNCTIONS["FixedPriceFlow"].items() if f.name in ("submit", "batchSubmit")]
SELECTORS |= {(FLOW, selector): True for selector in (*STORES, LEGACY_SUBMIT.selector, LEGACY_BATCH_SUBMIT.selector)}


@pytest.mark.goal("HRD-04")
def test_of_5000_random_transactions_only_those_on_the_list_are_signed():
    rng, signed = random.Random(20261120), 0
    guard = network_guard(dataclasses.replace(LOCAL, flow=FLOW), FeePolicy(max_cost_per_tx=100 * 10**18))
    known = [function for functions in FUNCTIONS.values() for function in functions]
    contracts = [LOCAL.ledger, LOCAL.fine_tuning, LOCAL.inference, FLOW]
    for _ in range(5000):
        to = rng.choice([*contracts * 3, OTHER, USER, "0x" + rng.randbytes(20).hex()])
        selector = rng.choice([rng.choice(list(SELECTORS))[1], rng.choice(known), rng.randbytes(4), b""])
        chain = rng.choice([31337] * 9 + [1, 16602, 0])
        value = rng.choice([0, 0, 0, 1, 10**18, 99 * 10**18, 101 * 10**18, 2**255])
        gas, price = rng.choice([21_000, 100_000, 10**6, 10**9]), rng.choice([1, 10**9, 10**30])
        transaction = made(
            to=to,
            data=selector + rng.randbytes(rng.randrange(100)) if selector else b"",
            chain_id=chain,
            value=value,
            gas=gas,
            max_fee_per_gas=price,
            max_priority_fee_per_gas=min(price, 10**9),
        )
        filler = to == USER and not transaction.data and not value
        listed = SELECTORS.get((to, transaction.data[:4]))
        right = chain == 31337 and (filler or (listed is not None and (listed or not value)))
        right = right and gas <= guard.fees.max_gas and price <= guard.fees.max_fee_per_gas
        right = right and transaction.max_cost <= 100 * 10**18
        if right:
            guard.check(transaction, sender=USER)
            signed += 1
        else:
            with pytest.raises(RefusedToSignError):
                guard.check(transaction, sender=USER)
    assert 50 < signed < 2000


def test_a_transfer_of_nothing_to_oneself_passes():
    GUARD.check(made(), sender=USER)


def test_storage_is_paid_only_where_a_flow_contract_is_pinned():
    flow = NETWORKS["testnet"].flow
    assert not any(to == flow for to, _ in GUARD.calls)
    assert any(to == flow for to, _ in network_guard(NETWORKS["testnet"], FeePolicy()).calls)


def test_a_guard_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        GUARD.chain_id = 1
