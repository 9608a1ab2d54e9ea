"""The chain under the development node, without sockets: blocks, pool, clock, ways back."""

import subprocess
import sys

import pytest
from eth_abi import encode
from eth_utils import keccak

from tests.clock import FakeClock
from tests.devnet.node_kit import NEW, OTHER, OWNER, PROBE, calldata, sign
from zg_async.devnet.evm import Evm
from zg_async.devnet.evm_records import BadTransactionError, CallRequest, ExecutionFailedError, revert_message
from zg_async.devnet.node_chain import NodeChain

COIN = 10**18
START = 1_800_000_000
BURN = b"\xfe"
"""Init code that uses up all gas."""


def account(key: object) -> bytes:
    return bytes.fromhex(key.address[2:])  # type: ignore[attr-defined]


def raw(key: object = OWNER, **fields: object) -> bytes:
    return bytes.fromhex(sign(key, **fields)[2:])


def make_evm() -> Evm:
    return Evm({account(OWNER): 10 * COIN, account(OTHER): 10 * COIN}, timestamp=START)


@pytest.fixture
def evm() -> Evm:
    return make_evm()


@pytest.fixture
def chain(evm: Evm, clock: FakeClock) -> NodeChain:
    return NodeChain(evm, clock)


def deploy(chain: NodeChain, lock: int = 0) -> bytes:
    nonce = chain.evm.nonce(account(OWNER))
    code = PROBE["bytecode"] + encode(["uint256"], [lock]).hex()
    chain.accept(raw(nonce=nonce, to=None, data=code, gas=2_000_000))
    contract = chain.mine().added[0].mined[0].contract
    assert contract is not None
    return contract


def test_the_same_genesis_gives_the_same_blocks() -> None:
    hashes = []
    for _ in range(2):
        evm = make_evm()
        evm.build([evm.decode(raw(nonce=0, value=1))], timestamp=START)
        hashes.append(evm.head.hash)
    assert hashes[0] == hashes[1]


@pytest.mark.slow
def test_importing_py_evm_leaves_a_recursion_limit_that_json_survives() -> None:
    code = "import sys, zg_async.devnet.evm; print(sys.getrecursionlimit())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert int(done.stdout) < 20_000


def test_two_blocks_may_have_the_same_time(chain: NodeChain) -> None:
    chain.mine(50)
    assert chain.head.timestamp == START


def test_the_chain_s_clock_follows_wall_time_and_offset(chain: NodeChain, clock: FakeClock) -> None:
    clock.advance(10)
    chain.mine()
    assert chain.head.timestamp == START + 10
    assert chain.increase_time(100) == 100
    chain.mine()
    assert chain.head.timestamp == START + 110
    chain.set_next_timestamp(START + 500)
    chain.mine()
    clock.advance(5)
    chain.mine()
    assert chain.head.timestamp == START + 505


def test_the_clock_never_goes_back(chain: NodeChain, clock: FakeClock) -> None:
    chain.increase_time(100)
    chain.mine()
    chain.set_time(START)
    chain.mine()
    assert chain.head.timestamp == START + 100
    with pytest.raises(ValueError, match="lower than"):
        chain.set_next_timestamp(START)


def test_a_call_sees_the_time_the_next_block_would_have(chain: NodeChain, clock: FakeClock) -> None:
    probe = deploy(chain, lock=60)
    call = CallRequest(sender=account(OWNER), to=probe, data=bytes.fromhex(calldata("withdraw")[2:]))
    with pytest.raises(ExecutionFailedError, match="still locked"):
        chain.evm.call(call, chain.head, timestamp=chain.next_timestamp())
    clock.advance(60)
    chain.evm.call(call, chain.head, timestamp=chain.next_timestamp())
    with pytest.raises(ExecutionFailedError, match="still locked"):
        chain.evm.call(call, chain.head)


def test_calls_change_nothing(chain: NodeChain) -> None:
    probe = deploy(chain)
    call = CallRequest(sender=account(OWNER), to=probe, data=bytes.fromhex(calldata("count")[2:]))
    assert [int.from_bytes(chain.evm.call(call, chain.head), "big") for _ in range(2)] == [1, 1]


def test_a_call_that_never_ends_is_cut_off(chain: NodeChain) -> None:
    probe = deploy(chain)
    call = CallRequest(to=probe, data=bytes.fromhex(calldata("spin")[2:]), gas=200_000)
    with pytest.raises(ExecutionFailedError, match="out of gas") as caught:
        chain.evm.call(call, chain.head)
    assert caught.value.data is None


@pytest.mark.slow
def test_a_contract_that_calls_itself_ends_in_an_answer(chain: NodeChain) -> None:
    probe = deploy(chain)
    call = CallRequest(to=probe, data=bytes.fromhex(calldata("dive", 1_000)[2:]))
    with pytest.raises(ExecutionFailedError):
        chain.evm.call(call, chain.head)


def test_a_call_needs_a_sender_that_can_pay_its_value(evm: Evm) -> None:
    with pytest.raises(BadTransactionError, match="insufficient funds"):
        evm.call(CallRequest(sender=account(NEW), to=account(OWNER), value=1), evm.head)


def test_an_estimate_above_what_the_sender_can_pay_is_refused(evm: Evm) -> None:
    with pytest.raises(BadTransactionError, match="exceeds allowance"):
        evm.estimate(CallRequest(sender=account(NEW), to=account(OWNER), gas_price=1), evm.head)


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"chainId": 1}, "chain id"),
        ({"gas": 20_999}, "intrinsic gas too low"),
        ({"gas": 60_000_001}, "exceeds block gas limit"),
        ({"maxPriorityFeePerGas": 4 * 10**9}, "max priority fee per gas higher"),
        ({"to": None, "data": bytes(49_153), "gas": 3_000_000}, "max initcode size"),
        ({"data": b"\1" * 200, "gas": 25_000}, "floor data gas"),
    ],
)
def test_a_transaction_no_block_can_hold_is_refused(evm: Evm, fields: dict, text: str) -> None:
    with pytest.raises(BadTransactionError, match=text):
        evm.decode(raw(nonce=0, **fields))


def test_what_is_no_transaction_is_refused(evm: Evm) -> None:
    good = raw(nonce=0)
    for bad in (b"", b"\0", b"\2", b"\3" + good[1:], b"\x7f", good[:-1], good + b"\0", b"\xc0", b"\xf8" * 100):
        with pytest.raises(BadTransactionError):
            evm.decode(bad)


def test_a_legacy_transaction_without_a_chain_id_is_refused(evm: Evm) -> None:
    unprotected = bytes.fromhex(
        sign(OWNER, nonce=0, gasPrice=10**9, chainId=None)[2:],
    )
    with pytest.raises(BadTransactionError, match="replay-protected"):
        evm.decode(unprotected)


def test_what_does_not_fit_waits_with_all_that_follows_it(chain: NodeChain) -> None:
    chain.accept(raw(OTHER, nonce=0, to=None, data=BURN, gas=40_000_000))
    for nonce in range(2):
        chain.accept(raw(nonce=nonce, gas=30_000_000 if nonce == 0 else 21_000))
    first = chain.mine().added[0]
    assert [one.tx.sender for one in first.mined] == [account(OTHER)]
    second = chain.mine().added[0]
    assert [one.tx.nonce for one in second.mined] == [0, 1]


def test_a_sender_whose_money_is_gone_meanwhile_loses_the_transaction(chain: NodeChain) -> None:
    chain.accept(raw(nonce=0, value=9 * COIN))
    lost = chain.accept(raw(nonce=1, value=9 * COIN))
    chain.mine()
    chain.mine()
    assert chain.pool.get(lost.hash) is None
    assert chain.mined(lost.hash) is None


def test_a_balance_can_be_set_and_later_blocks_build_on_it(chain: NodeChain) -> None:
    chain.set_balance(account(NEW), COIN)
    chain.accept(raw(NEW, nonce=0, value=5))
    chain.mine()
    assert chain.evm.balance(account(NEW)) == COIN - 5 - 21_000 * chain.head.mined[0].gas_price
    assert chain.block_by_hash(chain.head.hash) is chain.head


def test_blocks_are_chained_by_their_hashes(chain: NodeChain) -> None:
    chain.set_balance(account(NEW), COIN)
    chain.mine(3)
    blocks = chain.evm.blocks
    assert [block.header.parent_hash for block in blocks[1:]] == [block.hash for block in blocks[:-1]]


def test_a_reorg_can_return_transactions_to_the_pool(chain: NodeChain) -> None:
    tx = chain.accept(raw(nonce=0))
    chain.mine(2)
    old = chain.head.hash
    change = chain.reorg(2, keep=True)
    assert [len(change.removed), len(change.added)] == [2, 2]
    assert (chain.head.number, chain.head.hash == old) == (2, False)
    assert chain.pool.get(tx.hash) is tx
    chain.mine()
    assert chain.mined(tx.hash) is not None


def test_a_reorg_can_leave_a_shorter_chain(chain: NodeChain) -> None:
    chain.mine(5)
    change = chain.reorg(3, refill=False)
    assert (chain.head.number, len(change.added)) == (2, 0)


@pytest.mark.parametrize("depth", [0, 3])
def test_a_reorg_stays_above_the_genesis(chain: NodeChain, depth: int) -> None:
    chain.mine(2)
    with pytest.raises(ValueError, match="reorg"):
        chain.reorg(depth)


def test_a_reorg_to_other_transactions_with_the_same_nonce_drops_the_old(chain: NodeChain) -> None:
    old = chain.accept(raw(nonce=0, value=1))
    chain.mine()
    chain.reorg(1)
    new = chain.accept(raw(nonce=0, value=2))
    chain.mine()
    assert chain.mined(new.hash) is not None
    with pytest.raises(BadTransactionError, match="nonce too low"):
        chain.accept(old.raw)


def test_a_snapshot_keeps_clock_pool_and_balances(chain: NodeChain) -> None:
    chain.set_balance(account(NEW), COIN)
    tx = chain.accept(raw(nonce=0))
    here = chain.snapshot()
    chain.mine()
    chain.increase_time(1_000)
    chain.set_balance(account(NEW), 0)
    change = chain.revert(here)
    assert len(change.removed) == 1
    assert chain.offset == 0
    assert chain.evm.balance(account(NEW)) == COIN
    assert chain.pool.get(tx.hash) is tx
    assert chain.revert(here).found is False


def test_a_snapshot_is_found_again_after_a_reorg_below_it(chain: NodeChain) -> None:
    tx = chain.accept(raw(nonce=0))
    chain.mine(2)
    head, here = chain.head.hash, chain.snapshot()
    chain.reorg(2)
    change = chain.revert(here)
    assert [block.number for block in change.added] == [1, 2]
    assert chain.head.hash == head
    assert chain.mined(tx.hash) is not None


def test_waiting_transactions_come_in_order_of_nonce_and_arrival(chain: NodeChain) -> None:
    for key, nonce in ((OWNER, 1), (OTHER, 0), (OWNER, 0)):
        chain.accept(raw(key, nonce=nonce))
    assert [(tx.sender == account(OWNER), tx.nonce) for tx in chain.ready()] == [(False, 0), (True, 0), (True, 1)]


def test_a_replacement_takes_the_place_of_the_old(chain: NodeChain) -> None:
    old = chain.accept(raw(nonce=0))
    with pytest.raises(BadTransactionError, match="underpriced"):
        chain.accept(raw(nonce=0, maxFeePerGas=33 * 10**8 - 1, maxPriorityFeePerGas=11 * 10**8))
    new = chain.accept(raw(nonce=0, maxFeePerGas=33 * 10**8, maxPriorityFeePerGas=11 * 10**8))
    assert [tx.hash for tx in chain.pool] == [new.hash]
    assert chain.pool.get(old.hash) is None


def test_a_gap_closed_by_dropping_its_first_stays_open(chain: NodeChain) -> None:
    first, second = chain.accept(raw(nonce=0)), chain.accept(raw(nonce=1))
    assert chain.pending_nonce(account(OWNER)) == 2
    assert chain.drop(first.hash)
    assert chain.pending_nonce(account(OWNER)) == 0
    assert chain.mine().added[0].mined == ()
    chain.accept(first.raw)
    assert [one.tx.hash for one in chain.mine().added[0].mined] == [first.hash, second.hash]


def test_the_base_fee_rises_with_full_blocks(chain: NodeChain) -> None:
    before = chain.next_base_fee()
    chain.accept(raw(nonce=0, to=None, data=BURN, gas=60_000_000))
    chain.mine()
    assert chain.head.header.gas_used == 60_000_000
    assert chain.next_base_fee() == before * 9 // 8
    chain.set_next_base_fee(123)
    chain.mine()
    assert chain.head.base_fee == 123


def test_a_block_s_hash_is_that_of_its_header(chain: NodeChain) -> None:
    import rlp

    chain.accept(raw(nonce=0))
    chain.mine()
    assert chain.head.hash == keccak(rlp.encode(chain.head.header))


@pytest.mark.parametrize("data", [b"", b"\x08\xc3\x79\xa0", b"\x08\xc3\x79\xa0" + b"\xff" * 64, b"\1\2\3\4"])
def test_odd_revert_data_has_a_plain_message(data: bytes) -> None:
    assert revert_message(data).startswith("execution reverted")
