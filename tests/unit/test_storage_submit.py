"""Who is paid for storage, how much, and in which layout."""

import pytest
from eth_abi.abi import encode

from zg_async.errors import ContractRevertedError, FeeCapError, InsufficientGasFundsError, StorageError
from zg_async.networks import NETWORKS
from zg_async.transport.fees import FeePolicy
from zg_async.transport.guard import network_guard
from zg_async.transport.storage_submit import Cashier
from zg_async.transport.transaction import Transaction
from zg_async.wire.contracts import TOPIC
from zg_async.wire.hashing import checksum_address
from zg_async.wire.merkle import MerkleHasher
from zg_async.wire.records import Address, Log, Receipt, TxHash
from zg_async.wire.submission import LEGACY_SUBMIT, decode_submission

WALLET = Address("0x70997970C51812dc3A010C7d01b50e0d17dc79C8")
MARKET = checksum_address("0x" + "11" * 20)
PRICE = 5


def tree_of(data):
    hasher = MerkleHasher()
    hasher.update(data)
    return hasher.tree()


class Flow:
    """A chain with a flow contract that speaks one layout, or none, and logs what it took."""

    def __init__(self, *, speaks, balance=10**18, price=PRICE, logs=True):
        self.network = NETWORKS["local"]
        self.speaks, self.money, self.price, self.logs = speaks, balance, price, logs
        self.sent = []

    async def call(self, call):
        return {"FixedPriceFlow.market": MARKET, "FixedPriceMarket.pricePerSector": self.price}[call.name]

    async def balance(self, _):
        return self.money

    async def write(self, call, *, wallet, key):
        del wallet, key
        layout = "old" if call.data[:4] == LEGACY_SUBMIT.selector else "new"
        if layout != self.speaks:
            raise ContractRevertedError("execution reverted")
        self.sent.append(call)
        (entry,) = decode_submission(call.data)
        nodes = tuple((n.root, n.height) for n in entry.nodes)
        rows = ("uint256", "uint256", "uint256", "(uint256,bytes,(bytes32,uint256)[])")
        data = encode(rows, (0, 4, 4, (entry.size, b"", nodes)))
        identity = tree_of(b"x" * 1000).identity
        topics = (TOPIC["Submit"], bytes(12) + bytes.fromhex(WALLET[2:]), identity)
        log = Log(
            address=checksum_address(self.network.flow),
            topics=topics,
            data=data,
            block_number=1,
            block_hash="0x" + "00" * 32,
            tx_hash=TxHash("0x" + "01" * 32),
            log_index=0,
        )
        return Receipt(
            tx_hash=TxHash("0x" + "01" * 32),
            block_number=1,
            block_hash="0x" + "00" * 32,
            status=1,
            gas_used=1,
            effective_gas_price=1,
            logs=(log,) if self.logs else (),
        )


@pytest.mark.goal("STO-03", part="both layouts")
@pytest.mark.parametrize("speaks", ["new", "old"])
async def test_the_layout_that_the_contract_speaks_is_found(speaks):
    chain = Flow(speaks=speaks)
    cashier = Cashier(chain, max_price=10)
    (place,), fee = await cashier.pay([tree_of(b"x" * 1000)], wallet=WALLET)
    assert (place.start_entry, fee, chain.sent[0].value) == (4, 4 * PRICE, 4 * PRICE)
    await cashier.pay([tree_of(b"x" * 1000)], wallet=WALLET)
    assert len(chain.sent) == 2


@pytest.mark.goal("STO-03", part="an empty revert is explained")
async def test_a_contract_that_speaks_neither_is_told_with_the_likely_cause():
    with pytest.raises(StorageError, match="speaks either submission layout") as caught:
        await Cashier(Flow(speaks="neither"), max_price=10).pay([tree_of(b"x" * 1000)], wallet=WALLET)
    assert "another contract" in str(caught.value.hint)


async def test_nothing_is_signed_when_the_fee_is_above_the_cap_or_the_balance():
    dear, poor = Flow(speaks="new", price=11), Flow(speaks="new", balance=4 * PRICE - 1)
    with pytest.raises(FeeCapError):
        await Cashier(dear, max_price=10).pay([tree_of(b"x" * 1000)], wallet=WALLET)
    with pytest.raises(InsufficientGasFundsError):
        await Cashier(poor, max_price=10).pay([tree_of(b"x" * 1000)], wallet=WALLET)
    assert dear.sent == poor.sent == []


async def test_a_receipt_without_the_submission_is_an_error():
    with pytest.raises(StorageError, match="doesn't show"):
        await Cashier(Flow(speaks="new", logs=False), max_price=10).pay([tree_of(b"x" * 1000)], wallet=WALLET)


def test_the_guard_lets_both_layouts_pay_the_pinned_contract_only():
    guard = network_guard(NETWORKS["local"], FeePolicy())

    def transaction(to):
        return Transaction(
            chain_id=31337,
            account_nonce=0,
            to=checksum_address(to),
            data=LEGACY_SUBMIT.selector,
            value=5,
            gas=100_000,
            max_fee_per_gas=1,
            max_priority_fee_per_gas=1,
        )

    guard.check(transaction(NETWORKS["local"].flow), sender=WALLET)
    with pytest.raises(Exception, match="never calls"):
        guard.check(transaction(MARKET), sender=WALLET)
