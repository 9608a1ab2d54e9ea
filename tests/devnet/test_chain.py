"""Writes and reads over a real socket, against the embedded node."""

import dataclasses
import itertools

import anyio
import pytest

from tests.devnet.chain_kit import ENGINE, LEDGER, LOCAL, OTHER, QUICK, USER, ZG, open_rig
from zg_async.errors import (
    ConfigError,
    ContractRevertedError,
    FeeCapError,
    InsufficientGasFundsError,
    LedgerExistsError,
    LedgerNotFoundError,
    MinimumDepositError,
    RefusedToSignError,
    TransactionTimeoutError,
    WrongChainError,
)
from zg_async.transport.fees import GWEI, FeePolicy
from zg_async.transport.heads import parse_block
from zg_async.transport.sqlite_outbox import SqliteOutbox
from zg_async.wire.contracts import Call
from zg_async.wire.records import Address

pytestmark = pytest.mark.slow
DEPOSIT = LEDGER.deposit_fund(value=ZG)


async def balance_of(chain):
    return (await chain.call(LEDGER.get_ledger(USER.address))).total_balance


async def pool(rig):
    return int((await rig.engine.request("txpool_status"))["pending"], 16)


async def in_pool(rig, number):
    for _ in range(1000):
        if await pool(rig) >= number:
            return
        await anyio.sleep(0.01)
    pytest.fail("they never came")


async def mine_now_and_then(rig):
    while True:
        await anyio.sleep(0.1)
        await rig.engine.mine()


async def test_a_write_is_mined_and_the_same_key_never_pays_twice():
    async with open_rig() as rig, rig.chain() as chain:
        first = await chain.write(DEPOSIT, wallet=USER.address, key="job/fund")
        again = await chain.write(DEPOSIT, wallet=USER.address, key="job/fund")
        assert (first.status, first.tx_hash) == (1, again.tx_hash)
        assert await balance_of(chain) == 6 * ZG


async def test_a_key_with_another_effect_is_an_error():
    async with open_rig() as rig, rig.chain() as chain:
        await chain.write(DEPOSIT, wallet=USER.address, key="job/fund")
        with pytest.raises(ConfigError, match="was used for another transaction"):
            await chain.write(LEDGER.deposit_fund(value=2 * ZG), wallet=USER.address, key="job/fund")


async def test_a_write_takes_three_round_trips():
    async with open_rig() as rig, rig.chain() as chain:
        await chain.write(DEPOSIT, wallet=USER.address)
        rig.asked.clear()
        await chain.write(DEPOSIT, wallet=USER.address)
        assert len(rig.asked) == 3


@pytest.mark.goal("TX-11")
async def test_what_would_revert_raises_its_reason_and_costs_nothing():
    async with open_rig() as rig, rig.chain() as chain:
        before = await chain.balance(USER.address), await rig.account_nonce()
        with pytest.raises(LedgerExistsError) as caught:
            await chain.write(LEDGER.add_ledger("", value=3 * ZG), wallet=USER.address)
        assert caught.value.error_name == "LedgerExists"
        assert [str(a).lower() for a in caught.value.arguments] == [USER.address.lower()]
        assert (await chain.balance(USER.address), await rig.account_nonce("pending")) == before
        assert not any("eth_sendRawTransaction" in asked for asked in rig.asked)


@pytest.mark.goal("TX-01")
async def test_fifty_concurrent_writes_get_consecutive_nonces_and_a_dropped_one_is_sent_again():
    async with open_rig() as rig, rig.chain() as chain:
        await rig.engine.set_automine(False)
        start = await rig.account_nonce()
        receipts = []

        async def write():
            receipts.append(await chain.write(DEPOSIT, wallet=USER.address))

        async with anyio.create_task_group() as group:
            for _ in range(50):
                group.start_soon(write)
            await in_pool(rig, 16)
            assert await pool(rig) == 16  # no more than that are ever unmined
            lane = chain._lanes[USER.address]
            assert await rig.engine.drop(lane.book.open_rows()[7].tx_hash)
            for _ in range(1000):
                await anyio.sleep(0.05)
                await rig.engine.mine()
                if len(receipts) == 50:
                    break
        nonces = sorted(lane.book.find_hash(r.tx_hash).account_nonce for r in receipts)
        assert nonces == list(range(start, start + 50))
        assert await rig.account_nonce() == start + 50
        assert await balance_of(chain) == 55 * ZG


@pytest.mark.goal("TX-02")
async def test_a_stuck_write_is_bumped_until_it_is_mined_and_never_above_the_cap():
    fees = dataclasses.replace(QUICK, max_fee_per_gas=10 * GWEI)
    async with open_rig() as rig, rig.chain(fees=fees) as chain:
        await rig.engine.set_automine(False)
        sent = await chain.submit(DEPOSIT, wallet=USER.address, key="k")
        lane = chain._lanes[USER.address]
        row = lane.book.find("k")
        estimate = int(
            await rig.engine.request(
                "eth_estimateGas",
                {"from": USER.address, "to": DEPOSIT.to, "data": "0x" + DEPOSIT.data.hex(), "value": hex(ZG)},
            ),
            16,
        )
        assert row.gas == estimate + -(-estimate // 5)
        async with anyio.create_task_group() as group:

            async def spike():
                for _ in range(100):  # blocks whose base fee the first version can't pay
                    await anyio.sleep(0.1)
                    fee = 9 * GWEI if len(lane.book.find("k").versions) < 3 else GWEI // 100
                    await rig.engine.set_next_base_fee(fee)
                    await rig.engine.mine()

            group.start_soon(spike)
            receipt = await chain.wait_mined("k")
            group.cancel_scope.cancel()
        versions = lane.book.find("k").versions
        assert receipt.status == 1
        assert len(versions) >= 2
        assert {v.max_fee_per_gas <= 10 * GWEI for v in versions} == {True}
        for old, new in itertools.pairwise(versions):
            assert new.max_fee_per_gas >= max(old.max_fee_per_gas + 1, -(-old.max_fee_per_gas * 110 // 100))
            assert new.max_priority_fee_per_gas >= -(-old.max_priority_fee_per_gas * 110 // 100)
        assert await chain.wait_mined(sent.tx_hash) == receipt  # any version's hash leads there
        assert await balance_of(chain) == 6 * ZG


@pytest.mark.goal("TX-03", part="cancel")
async def test_waiting_is_cancelled_within_100_ms():
    async with open_rig() as rig, rig.chain() as chain:
        await rig.engine.set_automine(False)
        sent = await chain.submit(DEPOSIT, wallet=USER.address)
        began = 0.0
        with anyio.move_on_after(0.3) as scope:
            await chain.wait_mined(sent.tx_hash)
        assert scope.cancelled_caught
        async with anyio.create_task_group() as group:
            group.start_soon(chain.wait_mined, sent.tx_hash)
            await anyio.sleep(0.2)
            began = anyio.current_time()
            group.cancel_scope.cancel()
        assert anyio.current_time() - began < 0.1


@pytest.mark.goal("TX-03", part="resume")
async def test_waiting_goes_on_in_another_process_from_the_hash(tmp_path):
    async with open_rig() as rig:
        await rig.engine.set_automine(False)
        async with rig.chain(outbox=SqliteOutbox(tmp_path / "o.sqlite")) as chain:
            sent = await chain.submit(DEPOSIT, wallet=USER.address, key="job/fund/2")
        await rig.engine.mine()
        async with rig.chain(outbox=SqliteOutbox(tmp_path / "o.sqlite")) as chain:
            (row,) = await chain.mined_of("job", wallet=USER.address, wait_for=["job/fund"])
            assert (row.tx_hash, row.gas_cost > 0) == (sent.tx_hash, True)
            assert (await chain.wait_mined(sent.tx_hash)).status == 1
        async with rig.chain() as chain:  # and with nothing but the hash
            assert (await chain.wait_mined(sent.tx_hash)).status == 1
            assert (await chain.wait_receipt(sent.tx_hash)).tx_hash == sent.tx_hash


@pytest.mark.goal("TX-03", part="reorg")
@pytest.mark.parametrize("depth", [1, 3, 12])
async def test_a_reorganisation_neither_loses_nor_doubles_a_write(depth):
    async with open_rig() as rig, rig.chain(confirmations=13) as chain:
        await chain.write(DEPOSIT, wallet=USER.address, key="k")
        await rig.engine.mine(depth - 1)
        await rig.engine.reorg(depth)
        async with anyio.create_task_group() as group:
            group.start_soon(mine_now_and_then, rig)
            final = await chain.wait_final("k")
            group.cancel_scope.cancel()
        assert final.status == 1
        block = parse_block(await rig.engine.request("eth_getBlockByNumber", hex(final.block_number), False))
        assert block.hash == final.block_hash
        assert await balance_of(chain) == 6 * ZG


async def test_a_stranger_on_our_nonce_is_found_and_the_write_is_signed_anew():
    async with open_rig() as rig, rig.chain() as chain:
        await chain.open()
        await rig.engine.set_automine(False)
        sent = await chain.submit(DEPOSIT, wallet=USER.address, key="k")
        assert await rig.engine.drop(sent.tx_hash)
        await rig.engine.set_automine(True)
        stranger = await rig.foreign()
        receipt = await chain.write(DEPOSIT, wallet=USER.address, key="k")
        row = chain._lanes[USER.address].book.find("k")
        assert (row.attempt, row.account_nonce) == (2, sent.account_nonce + 1)
        assert receipt.tx_hash not in (sent.tx_hash, stranger)
        assert chain._lanes[USER.address].book.found[sent.account_nonce].tx_hash == stranger
        assert await balance_of(chain) == 6 * ZG


@pytest.mark.skipif(ENGINE == "anvil", reason="it simulates on top of its pool, so the second is refused unsent")
async def test_a_write_that_is_mined_and_reverts_raises_its_reason():
    async with open_rig() as rig, rig.chain() as chain:
        await rig.engine.set_automine(False)
        call = LEDGER.refund(2 * ZG)
        await chain.submit(call, wallet=USER.address, key="one")
        await chain.submit(call, wallet=USER.address, key="two")  # alone it would pass
        await rig.engine.mine()
        assert (await chain.wait_mined("one")).status == 1
        with pytest.raises(MinimumDepositError) as caught:
            await chain.wait_mined("two")
        assert caught.value.tx_hash is not None
        with pytest.raises(ContractRevertedError):  # the same key: the same failure for ever
            await chain.write(call, wallet=USER.address, key="two")


async def test_a_wallet_that_cannot_pay_is_told_so_before_anything_is_signed():
    async with open_rig() as rig, rig.chain() as chain:
        await rig.engine.set_balance(USER.address, ZG)
        with pytest.raises(InsufficientGasFundsError, match=r"holds 1 0G") as caught:
            await chain.write(LEDGER.deposit_fund(value=2 * ZG), wallet=USER.address)
        assert "nothing was signed" in str(caught.value)
        with pytest.raises(InsufficientGasFundsError):
            await chain.write(DEPOSIT, wallet=USER.address)  # value fits, gas doesn't
        assert chain._lanes[USER.address].book.height == 0


@pytest.mark.goal("HRD-05", part="nothing is signed")
@pytest.mark.parametrize(
    ("policy", "words"),
    [
        (FeePolicy(max_fee_per_gas=5), "gas costs at least"),
        (FeePolicy(max_gas=30_000), "the cap is 30000"),
        (FeePolicy(max_cost_per_tx=ZG // 2), "the transaction may cost"),
        (FeePolicy(max_gas_cost_per_day=1), "24 hours"),
    ],
)
async def test_a_cap_is_an_error_with_the_numbers(policy, words):
    async with open_rig() as rig, rig.chain(fees=policy) as chain:
        with pytest.raises(FeeCapError, match=words):
            await chain.write(DEPOSIT, wallet=USER.address)
        assert chain._lanes[USER.address].book.height == 0


async def test_a_fixed_gas_price_is_honoured():
    async with open_rig() as rig, rig.chain(fees=FeePolicy(gas_price=7 * GWEI)) as chain:
        receipt = await chain.write(DEPOSIT, wallet=USER.address)
        assert receipt.effective_gas_price == 7 * GWEI


@pytest.mark.goal("SEC-09", part="chain id")
async def test_a_node_on_another_chain_is_refused_before_anything_is_signed():
    async with open_rig(contracts=False) as rig:
        chain = rig.chain(network=dataclasses.replace(LOCAL, chain_id=16661, name="mainnet"))
        with pytest.raises(WrongChainError, match="31337"):
            await chain.open()
        with pytest.raises(WrongChainError):
            await chain.write(DEPOSIT, wallet=USER.address)
        await chain.aclose()


async def test_the_guard_refuses_a_contract_that_is_not_pinned():
    async with open_rig() as rig, rig.chain() as chain:
        call = Call(to=Address(OTHER.address), data=b"", name="a gift", decode=lambda _: None, value=1)
        with pytest.raises(RefusedToSignError, match="never calls"):
            await chain.write(call, wallet=USER.address)
        assert await rig.account_nonce("pending") == await rig.account_nonce()


@pytest.mark.goal("TX-08", part="batch")
async def test_many_calls_take_one_round_trip_and_errors_stay_in_place():
    async with open_rig() as rig, rig.chain() as chain:
        rig.asked.clear()
        calls = [LEDGER.get_ledger(USER.address)] * 20 + [LEDGER.get_ledger(OTHER.address)]
        answers = await chain.call_many(calls)
        assert len(rig.asked) == 1
        assert [a.total_balance for a in answers[:20]] == [5 * ZG] * 20
        assert isinstance(answers[20], LedgerNotFoundError)


async def test_a_timeout_names_the_hash_and_the_write_goes_on_later():
    async with open_rig() as rig, rig.chain(fees=dataclasses.replace(QUICK, wait_seconds=0.2)) as chain:
        await rig.engine.set_automine(False)
        with pytest.raises(TransactionTimeoutError) as caught:
            await chain.write(DEPOSIT, wallet=USER.address, key="k")
        await rig.engine.mine()
        assert (await chain.wait_mined("k")).tx_hash == caught.value.tx_hash


async def test_two_programs_share_a_wallet_through_one_file(tmp_path):
    async with open_rig() as rig:
        start = await rig.account_nonce()
        one = rig.chain(outbox=SqliteOutbox(tmp_path / "o.sqlite"))
        two = rig.chain(outbox=SqliteOutbox(tmp_path / "o.sqlite"))
        async with one, two, anyio.create_task_group() as group:
            for number in range(6):
                group.start_soon(lambda n=number: (one, two)[n % 2].write(DEPOSIT, wallet=USER.address))
                group.start_soon(lambda n=number: (one, two)[n % 2].write(DEPOSIT, wallet=USER.address, key="same"))
        async with rig.chain() as chain:
            assert await balance_of(chain) == 12 * ZG
        assert await rig.account_nonce() == start + 7


async def test_web3_goes_through_the_same_transport():
    async with open_rig() as rig, rig.chain() as chain:
        rig.asked.clear()
        w3 = chain.web3()
        assert await w3.eth.chain_id == 31337
        assert await w3.eth.get_balance(USER.address) == await chain.balance(USER.address)
        abi = [{"type": "function", "name": "MIN_ACCOUNT_BALANCE", "inputs": [], "stateMutability": "view"}]
        abi[0]["outputs"] = [{"type": "uint256", "name": ""}]
        contract = w3.eth.contract(address=LEDGER.address, abi=abi)
        rig.asked.clear()
        assert await contract.functions.MIN_ACCOUNT_BALANCE().call() == 3 * ZG
        assert rig.asked == ["eth_call"]
        async with w3.batch_requests() as batch:
            batch.add(w3.eth.get_block("latest"))
            batch.add(w3.eth.get_balance(USER.address))
            assert len(await batch.async_execute()) == 2
        assert rig.asked[1:] == ["eth_getBlockByNumber+eth_getBalance"]


async def test_amounts_spent_are_summed_up():
    async with open_rig() as rig, rig.chain() as chain:
        assert await chain.spent(USER.address) == (0, 0)
        receipt = await chain.write(DEPOSIT, wallet=USER.address)
        assert await chain.spent(USER.address) == (ZG + receipt.gas_cost, receipt.gas_cost)
        assert await chain.spent(USER.address, since=4e9) == (0, 0)


async def test_a_chain_can_wait_for_the_next_block():
    async with open_rig(contracts=False) as rig, rig.chain() as chain:
        head = await chain.heads.wait_next(-1)
        async with anyio.create_task_group() as group:
            group.start_soon(rig.engine.mine)
            assert (await chain.heads.wait_next(head.number)).number == head.number + 1
