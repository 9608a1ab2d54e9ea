"""Damage to the outbox is noticed before anything is signed, and never leads to a second payment."""

import contextlib
import shutil
import sqlite3

import pytest

from tests.devnet.chain_kit import LEDGER, USER, ZG, open_rig
from zg_async.errors import JournalError
from zg_async.transport.rows import LaneId, signed_entry
from zg_async.transport.sqlite_outbox import SqliteOutbox
from zg_async.transport.transaction import SignedTransaction, Transaction
from zg_async.wire.hashing import hex0x, keccak256
from zg_async.wire.records import Address

DEPOSIT = LEDGER.deposit_fund(value=ZG)
LANE = LaneId(31337, "0x" + "ab" * 32, Address(USER.address))


def entry(nonce, key=None, value=1):
    transaction = Transaction(
        chain_id=31337,
        account_nonce=nonce,
        to=DEPOSIT.to,
        data=b"data",
        value=value,
        gas=21_000,
        max_fee_per_gas=10,
        max_priority_fee_per_gas=1,
    )
    raw = keccak256(bytes([nonce])) + b"signed"  # as any hash looks: some test has the key 0101...01
    signed = SignedTransaction(raw=raw, tx_hash=hex0x(keccak256(raw)))
    return signed_entry(transaction, signed, key=key or f"k{nonce}", attempt=1, name="n", at=1e9)


async def filled(path, count=6):
    outbox = SqliteOutbox(path)
    for nonce in range(count):
        assert await outbox.append(LANE, [entry(nonce)])
    await outbox.aclose()


async def is_lost(path):
    outbox = SqliteOutbox(path)
    book = await outbox.open_lane(LANE)
    lost = book.loss is not None
    if lost:
        with pytest.raises(JournalError, match="lost"):
            await outbox.append(LANE, [entry(200, "new")])
    await outbox.aclose()
    return lost


async def test_a_sound_outbox_has_no_loss(tmp_path):
    await filled(tmp_path / "o.sqlite")
    assert not await is_lost(tmp_path / "o.sqlite")


async def test_an_older_copy_of_the_database_is_noticed(tmp_path):
    path = tmp_path / "o.sqlite"
    await filled(path, 3)
    shutil.copy(path, tmp_path / "backup")
    outbox = SqliteOutbox(path)
    assert await outbox.append(LANE, [entry(3)])
    await outbox.aclose()
    shutil.copy(tmp_path / "backup", path)
    assert await is_lost(path)


async def test_a_deleted_database_is_noticed_and_stays_noticed(tmp_path):
    path = tmp_path / "o.sqlite"
    await filled(path)
    path.unlink()
    assert await is_lost(path)
    assert await is_lost(path)


async def test_a_changed_entry_is_noticed(tmp_path):
    path = tmp_path / "o.sqlite"
    await filled(path)
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("UPDATE entry SET body = replace(body, '\"n\"', '\"m\"') WHERE height = 3")
        db.commit()
    assert await is_lost(path)


async def test_a_removed_entry_is_noticed(tmp_path):
    path = tmp_path / "o.sqlite"
    await filled(path)
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("DELETE FROM entry WHERE height = 6")
        db.commit()
    assert await is_lost(path)


async def test_a_head_file_that_cannot_be_read_is_noticed(tmp_path):
    path = tmp_path / "o.sqlite"
    await filled(path)
    head = next(tmp_path.glob("o.sqlite.head-*"))
    head.write_bytes(b"x" * len(head.read_bytes()))
    assert await is_lost(path)


async def test_a_database_that_is_no_database_is_put_aside(tmp_path):
    path = tmp_path / "o.sqlite"
    await filled(path)
    path.write_bytes(b"junk" * 5000)
    for ending in ("-wal", "-shm"):
        (tmp_path / f"o.sqlite{ending}").unlink(missing_ok=True)
    assert await is_lost(path)
    assert (tmp_path / "o.damaged-1").exists()


@pytest.mark.slow
@pytest.mark.parametrize("what", ["database", "wal"])
async def test_a_flipped_bit_never_passes_for_a_shorter_truth(tmp_path, what):
    path = tmp_path / "o.sqlite"
    outbox = SqliteOutbox(path)
    for nonce in range(6):
        assert await outbox.append(LANE, [entry(nonce)])
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in tmp_path.glob("o.sqlite*"):  # as a crash leaves it: with its write-ahead log
        shutil.copy(file, copy / file.name)
    await outbox.aclose()
    if what == "database":
        with contextlib.closing(sqlite3.connect(copy / "o.sqlite")) as db:
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    target = "o.sqlite" if what == "database" else "o.sqlite-wal"
    data = (copy / target).read_bytes()
    assert len(data) > 4096
    noticed = 0
    for number, place in enumerate(range(7, len(data), max(len(data) // 60, 1))):
        trial = tmp_path / f"trial{number}"
        shutil.copytree(copy, trial)
        changed = bytearray(data)
        changed[place] ^= 1 << (number % 8)
        (trial / target).write_bytes(changed)
        outbox = SqliteOutbox(trial / "o.sqlite")
        try:
            book = await outbox.open_lane(LANE)
            whole = book.loss is None
            assert not whole or (book.height == 6 and book.next_nonce == 6)
            noticed += not whole
        except JournalError:
            noticed += 1
        finally:
            await outbox.aclose()
    assert noticed > 0


@pytest.mark.slow
async def test_a_lost_payment_is_found_on_the_chain_and_not_paid_again(tmp_path):
    path = tmp_path / "o.sqlite"
    async with open_rig() as rig:
        async with rig.chain(outbox=SqliteOutbox(path)) as chain:
            await chain.write(DEPOSIT, wallet=USER.address, key="before")
        shutil.copy(path, tmp_path / "backup")
        async with rig.chain(outbox=SqliteOutbox(path)) as chain:
            paid = await chain.write(DEPOSIT, wallet=USER.address, key="job/fund")
        shutil.copy(tmp_path / "backup", path)
        async with rig.chain(outbox=SqliteOutbox(path)) as chain:
            start = await rig.account_nonce()
            again = await chain.write(DEPOSIT, wallet=USER.address, key="job/fund")
            assert again.tx_hash == paid.tx_hash
            assert await rig.account_nonce() == start
            fresh = await chain.write(DEPOSIT, wallet=USER.address, key="job/other")
            assert fresh.tx_hash != paid.tx_hash
            assert (await chain.call(LEDGER.get_ledger(USER.address))).total_balance == 8 * ZG


@pytest.mark.slow
async def test_a_lost_unmined_payment_is_settled_before_anything_is_signed(tmp_path):
    path = tmp_path / "o.sqlite"
    async with open_rig() as rig:
        async with rig.chain(outbox=SqliteOutbox(path)) as chain:
            await chain.write(DEPOSIT, wallet=USER.address, key="before")
        shutil.copy(path, tmp_path / "backup")
        await rig.engine.set_automine(False)
        async with rig.chain(outbox=SqliteOutbox(path)) as chain:
            lost = await chain.submit(DEPOSIT, wallet=USER.address, key="job/fund")
        assert await rig.engine.drop(lost.tx_hash)  # nobody has it any more
        await rig.engine.set_automine(True)
        shutil.copy(tmp_path / "backup", path)
        async with rig.chain(outbox=SqliteOutbox(path)) as chain:
            receipt = await chain.write(DEPOSIT, wallet=USER.address, key="job/fund")
            row = chain._lanes[USER.address].book.find("job/fund")
            assert row.account_nonce == lost.account_nonce + 1  # the lost nonce went to a transfer of nothing
            assert receipt.status == 1
            assert (await chain.call(LEDGER.get_ledger(USER.address))).total_balance == 7 * ZG


@pytest.mark.slow
async def test_a_whole_state_folder_put_back_does_not_pay_again(tmp_path):
    state, backup = tmp_path / "state", tmp_path / "backup"
    async with open_rig() as rig:
        async with rig.chain(outbox=SqliteOutbox(state / "o.sqlite")) as chain:
            await chain.write(DEPOSIT, wallet=USER.address, key="before")
        shutil.copytree(state, backup)
        async with rig.chain(outbox=SqliteOutbox(state / "o.sqlite")) as chain:
            paid = await chain.write(DEPOSIT, wallet=USER.address, key="job/fund")
        shutil.rmtree(state)
        shutil.copytree(backup, state)
        async with rig.chain(outbox=SqliteOutbox(state / "o.sqlite")) as chain:
            again = await chain.write(DEPOSIT, wallet=USER.address, key="job/fund")
            assert again.tx_hash == paid.tx_hash
