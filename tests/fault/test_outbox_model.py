"""Nonce lanes against a model of a faulty node: whatever happens, each key has its effect once."""

import dataclasses
import random

import anyio
import anyio.lowlevel
import pytest

from tests.clock import FakeClock
from tests.fault.pool_model import PoolModel
from zg_async.devnet.accounts import dev_account
from zg_async.errors import ChainUnavailableError, TransactionReplacedError, TransactionTimeoutError
from zg_async.networks import NETWORKS
from zg_async.transport.chain import Chain
from zg_async.transport.fees import FeePolicy
from zg_async.transport.outbox import MemoryOutbox
from zg_async.transport.signer import LocalSigner
from zg_async.transport.transaction import Transaction
from zg_async.wire.contracts import LedgerContract

pytestmark = pytest.mark.slow
USER = dev_account(1)
LOCAL = NETWORKS["local"]
LEDGER = LedgerContract(LOCAL.ledger)
FEES = FeePolicy(bump_after=5, resend_after=3, wait_seconds=600)


class Outlast(MemoryOutbox):
    """Lives on when its chain is closed, as a file does."""


def open_chain(model, clock, outbox, confirmations=6):
    network = dataclasses.replace(LOCAL, confirmations=confirmations)
    return Chain(
        network, model, outbox=outbox, signers=[LocalSigner.from_key(USER.private_key)], fees=FEES, clock=clock
    )


async def persist(chain, model, number):
    """What a caller does: the same key until it is done."""
    call = LEDGER.deposit_fund(value=number + 1)
    for _ in range(30):
        try:
            return await chain.write(call, wallet=USER.address, key=f"job/{number}")
        except (ChainUnavailableError, TransactionTimeoutError):
            await model.clock.sleep(1.0)
        except TransactionReplacedError:
            await model.clock.sleep(10.0)  # looks at the state, then goes on
    raise AssertionError("never done")


def effects(model):
    return [tx.value for block in model.blocks for tx in block.txs if tx.sender == USER.address and tx.data]


async def settle(chain, model, numbers):
    for number in numbers:
        for _ in range(30):
            try:
                await chain.wait_final(f"job/{number}")
                break
            except (ChainUnavailableError, TransactionTimeoutError):
                await model.clock.sleep(1.0)
            except TransactionReplacedError:
                await persist(chain, model, number)


@pytest.mark.goal("TX-01", part="model of a faulty node")
@pytest.mark.goal("TX-04", part="faulty node")
@pytest.mark.parametrize("seed", range(80))
async def test_each_key_has_its_effect_once_whatever_the_node_does(seed):
    rng, clock = random.Random(seed), FakeClock()
    model = PoolModel(clock, rng, faults=rng.choice([0.0, 0.02, 0.05, 0.1]))
    outbox, count = Outlast(), 12
    async with open_chain(model, clock, outbox) as chain:
        async with anyio.create_task_group() as group:
            for number in range(count):
                group.start_soon(persist, chain, model, number)
        model.faults = 0.0
        await settle(chain, model, range(count))
    assert sorted(effects(model)) == list(range(1, count + 1))
    by_nonce = {}
    for tx in model.sent:
        by_nonce.setdefault(tx.nonce, set()).add((tx.to, tx.value, tx.data))
    assert all(len(kinds) == 1 for kinds in by_nonce.values())  # a nonce is shared by versions only


@pytest.mark.parametrize("seed", range(12))
async def test_strangers_on_our_nonces_cost_no_payment_and_double_none(seed):
    rng, clock = random.Random(seed), FakeClock()
    model = PoolModel(clock, rng, faults=rng.choice([0.0, 0.03]))
    outbox, count = Outlast(), 6
    stranger = LocalSigner.from_key(USER.private_key)
    async with open_chain(model, clock, outbox, confirmations=5) as chain:
        stranger.arm(chain._guard)

        async def interfere():
            for _ in range(3):
                for _ in range(10_000):
                    if model.pool:
                        break
                    await anyio.lowlevel.checkpoint()
                nonce = model.count(USER.address) + rng.randrange(2)
                fields = {"chain_id": 31337, "data": b"", "value": 0, "gas": 21_000, "to": USER.address}
                fees = {"max_fee_per_gas": 90 * 10**9, "max_priority_fee_per_gas": 10**9}
                signed = await stranger.sign_transaction(Transaction(account_nonce=nonce, **fields, **fees))
                model.take_nonce(signed.raw)
                model.mine()

        async with anyio.create_task_group() as group:
            group.start_soon(interfere)
            for number in range(count):
                group.start_soon(persist, chain, model, number)
        model.faults = 0.0
        await settle(chain, model, range(count))
    assert sorted(effects(model)) == list(range(1, count + 1))


@pytest.mark.goal("DUR-03", part="restarts")
@pytest.mark.parametrize("seed", range(12))
async def test_programs_that_stop_anywhere_leave_one_effect_for_each_key(seed):
    rng, clock = random.Random(seed), FakeClock()
    model = PoolModel(clock, rng, faults=0.03)
    outbox, count = Outlast(), 6
    for _ in range(6):
        async with open_chain(model, clock, outbox) as chain, anyio.create_task_group() as group:
            for number in range(count):
                group.start_soon(persist, chain, model, number)
            for _ in range(rng.randrange(1, 60)):
                await anyio.lowlevel.checkpoint()
            group.cancel_scope.cancel()
    async with open_chain(model, clock, outbox) as chain:
        model.faults = 0.0
        for number in range(count):
            await persist(chain, model, number)
        await settle(chain, model, range(count))
    assert sorted(effects(model)) == list(range(1, count + 1))
