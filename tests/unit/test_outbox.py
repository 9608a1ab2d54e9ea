"""The outbox's promises, for both stores."""

import os
import stat
import sys

import anyio
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from zg_async.errors import ClosedError, ConfigError, JournalError
from zg_async.transport.book import LaneBook, Misfit
from zg_async.transport.outbox import MemoryOutbox
from zg_async.transport.rows import (
    Found,
    Inclusion,
    LaneId,
    RowStatus,
    claimed_entry,
    found_entry,
    mark_entry,
    mined_entry,
    signed_entry,
    version_entry,
)
from zg_async.transport.sqlite_outbox import SqliteOutbox
from zg_async.transport.transaction import SignedTransaction, Transaction, intent_digest
from zg_async.wire.hashing import hex0x, keccak256
from zg_async.wire.records import Address

TO = Address("0x9fE46736679d2D9a65F0992F2272dE9f3c7fa6e0")
LANE = LaneId(31337, "0x" + "ab" * 32, Address("0x70997970C51812dc3A010C7d01b50e0d17dc79C8"))


def transaction(nonce, fee=10, value=1):
    return Transaction(
        chain_id=31337,
        account_nonce=nonce,
        to=TO,
        data=b"data",
        value=value,
        gas=100,
        max_fee_per_gas=fee,
        max_priority_fee_per_gas=1,
    )


def signed(nonce, fee=10):
    raw = f"{nonce}/{fee}".encode()
    return SignedTransaction(raw=raw, tx_hash=hex0x(keccak256(raw)))


def sign(key, nonce, *, attempt=1, at=100.0, **fields):
    return signed_entry(transaction(nonce, **fields), signed(nonce), key=key, attempt=attempt, name="A.b", at=at)


def bumped(row, fee):
    return version_entry(row, transaction(row.account_nonce, fee), signed(row.account_nonce, fee), at=200.0)


def mined(row, *, tx_hash=None, block=7, status=1, block_hash="0x07"):
    inclusion = Inclusion(
        tx_hash=tx_hash or row.tx_hash,
        block_number=block,
        block_hash=block_hash,
        status=status,
        gas_used=50,
        gas_price=4,
    )
    return mined_entry(row, inclusion)


@pytest.fixture(params=["memory", "sqlite"])
async def outbox(request, tmp_path):
    made = MemoryOutbox() if request.param == "memory" else SqliteOutbox(tmp_path / "state" / "o.sqlite")
    yield made
    await made.aclose()


async def test_a_row_goes_from_signed_over_mined_to_final_and_keeps_all_hashes(outbox):
    book = await outbox.open_lane(LANE)
    assert await outbox.append(LANE, [sign("k", 5)])
    row = book.find("k")
    assert (row.status, row.account_nonce, row.versions[0].raw) == (RowStatus.SIGNED, 5, b"5/10")
    assert await outbox.append(LANE, [bumped(row, 11)])
    row = book.find("k")
    assert row.hashes == (signed(5).tx_hash, signed(5, 11).tx_hash)
    assert await outbox.append(LANE, [mined(row, tx_hash=row.hashes[0])])
    row = book.find("k")
    assert (row.status, row.tx_hash) == (RowStatus.MINED, row.hashes[0])
    assert await outbox.append(LANE, [mark_entry("final", row)])
    row = book.find("k")
    assert row.final
    assert book.find_hash(row.hashes[1]) == row
    assert book.unsettled() == []


async def test_the_newest_final_rows_keep_their_bytes_and_can_be_taken_back(outbox, monkeypatch):
    monkeypatch.setattr("zg_async.transport.book.KEPT_FINAL", 2)
    book = await outbox.open_lane(LANE)
    for nonce in range(3):
        await outbox.append(LANE, [sign(f"k{nonce}", nonce)])
        await outbox.append(LANE, [mined(book.find(f"k{nonce}"))])
        await outbox.append(LANE, [mark_entry("final", book.find(f"k{nonce}"))])
    first, second, third = (book.find(f"k{nonce}") for nonce in range(3))
    assert [row.versions[0].raw for row in (first, second, third)] == [b"", b"1/10", b"2/10"]
    assert (book.final_rows(), book.final_count()) == ([second, third], 3)
    assert await outbox.append(LANE, [mark_entry("unmined", second, deep=True)])
    assert not await outbox.append(LANE, [mark_entry("unmined", second, deep=True)])
    taken = book.find("k1")
    assert (taken.status, taken.final, taken.was_final) == (RowStatus.SIGNED, False, True)
    assert (book.unsettled(), book.final_rows(), book.removals) == ([taken], [third], 1)
    assert not await outbox.append(LANE, [mined(third, block_hash="0x99", status=0)])
    assert await outbox.append(LANE, [{**mined(third, block_hash="0x99", status=0), "deep": True}])
    assert (book.find("k2").status, book.removals) == (RowStatus.REVERTED, 2)
    assert book.final_rows() == []


async def test_a_key_is_signed_once_and_a_nonce_is_used_once(outbox):
    book = await outbox.open_lane(LANE)
    assert await outbox.append(LANE, [sign("k", 5)])
    assert not await outbox.append(LANE, [sign("k", 6)])
    assert not await outbox.append(LANE, [sign("k", 6, attempt=2)])
    assert not await outbox.append(LANE, [sign("other", 5)])
    assert not await outbox.append(LANE, [sign("other", 4)])
    assert not await outbox.append(LANE, [sign("x", 6), sign("x", 7)])
    assert await outbox.append(LANE, [sign("other", 6)])
    assert (book.next_nonce, book.height) == (7, 2)


async def test_of_two_bumps_of_one_version_one_is_refused(outbox):
    book = await outbox.open_lane(LANE)
    await outbox.append(LANE, [sign("k", 5)])
    row = book.find("k")
    assert await outbox.append(LANE, [bumped(row, 11)])
    assert not await outbox.append(LANE, [bumped(row, 12)])


async def test_only_a_replaced_row_may_be_signed_anew_with_a_higher_nonce(outbox):
    book = await outbox.open_lane(LANE)
    await outbox.append(LANE, [sign("k", 5)])
    assert await outbox.append(LANE, [mark_entry("replaced", book.find("k"), by="0x" + "ee" * 32)])
    assert book.find("k").replaced_by == "0x" + "ee" * 32
    assert not await outbox.append(LANE, [sign("k", 5, attempt=2)])
    assert await outbox.append(LANE, [sign("k", 6, attempt=2)])
    assert book.find("k").attempt == 2
    assert book.find_hash(signed(5).tx_hash).attempt == 1  # never forgotten


async def test_a_reorganisation_moves_or_removes_a_receipt(outbox):
    book = await outbox.open_lane(LANE)
    await outbox.append(LANE, [sign("k", 5)])
    await outbox.append(LANE, [mined(book.find("k"))])
    assert not await outbox.append(LANE, [mined(book.find("k"))])
    assert await outbox.append(LANE, [mined(book.find("k"), block=8, block_hash="0x08", status=0)])
    assert book.find("k").status is RowStatus.REVERTED
    assert await outbox.append(LANE, [mark_entry("unmined", book.find("k"))])
    row = book.find("k")
    assert (row.status, row.inclusion, row.versions[-1].raw) == (RowStatus.SIGNED, None, b"5/10")
    assert not await outbox.append(LANE, [mark_entry("final", row)])


async def test_what_is_final_stays_so_for_who_has_not_looked_deep(outbox):
    book = await outbox.open_lane(LANE)
    await outbox.append(LANE, [sign("k", 5)])
    await outbox.append(LANE, [mined(book.find("k"))])
    await outbox.append(LANE, [mark_entry("final", book.find("k"))])
    for kind in ("final", "unmined", "replaced"):
        assert not await outbox.append(LANE, [mark_entry(kind, book.find("k"))])
    assert not await outbox.append(LANE, [mined(book.find("k"), block=9, block_hash="0x09")])
    assert not await outbox.append(LANE, [bumped(book.find("k"), 99)])


async def test_sums_count_what_is_reserved_and_then_what_was_taken(outbox):
    book = await outbox.open_lane(LANE)
    await outbox.append(LANE, [sign("k", 5, value=1000)])
    assert book.spent() == (1000 + 100 * 10, 100 * 10)
    await outbox.append(LANE, [bumped(book.find("k"), 20)])
    assert book.spent() == (1000 + 100 * 20, 100 * 20)
    await outbox.append(LANE, [mined(book.find("k"))])
    assert book.spent() == (1000 + 50 * 4, 50 * 4)
    assert book.spent(since=101.0) == (0, 0)
    await outbox.append(LANE, [mined(book.find("k"), status=0, block_hash="0x08")])
    assert book.spent() == (50 * 4, 50 * 4)


async def test_a_found_transaction_is_claimed_by_one_key_only(outbox):
    book = await outbox.open_lane(LANE)
    found = Found(
        account_nonce=5,
        tx_hash="0x" + "ee" * 32,
        intent=intent_digest(TO, b"data", 1),
        block_number=3,
        block_hash="0x3",
    )
    assert await outbox.append(LANE, [found_entry(found)])
    assert book.next_nonce == 6
    assert book.unclaimed(found.intent) == found
    fields = {"attempt": 1, "name": "A.b", "to": TO, "data": b"data", "value": 1, "at": 9.0}
    assert await outbox.append(LANE, [claimed_entry(found, key="k", **fields)])
    assert not await outbox.append(LANE, [claimed_entry(found, key="other", **fields)])
    assert book.unclaimed(found.intent) is None
    assert book.find("k").tx_hash == found.tx_hash


async def test_lanes_of_other_chains_with_the_same_id_are_apart(outbox):
    other = LaneId(31337, "0x" + "cd" * 32, LANE.address)
    await outbox.append(LANE, [sign("k", 5)])
    assert (await outbox.open_lane(other)).next_nonce == 0
    assert await outbox.append(other, [sign("k", 0)])


# --- the file --------------------------------------------------------------------------------------------------------


async def test_a_file_opened_again_holds_the_same_rows(tmp_path):
    path = tmp_path / "o.sqlite"
    one = SqliteOutbox(path)
    book = await one.open_lane(LANE)
    await one.append(LANE, [sign("k", 5), sign("l", 6)])
    await one.append(LANE, [mined(book.find("k"))])
    rows = book.unsettled()
    await one.aclose()
    two = SqliteOutbox(path)
    again = await two.open_lane(LANE)
    assert again.unsettled() == rows
    assert (again.height, again.head, again.loss) == (book.height, book.head, None)
    await two.aclose()


async def test_two_openers_see_each_others_rows_and_race_soundly(tmp_path):
    path = tmp_path / "o.sqlite"
    one, two = SqliteOutbox(path), SqliteOutbox(path)
    a, b = await one.open_lane(LANE), await two.open_lane(LANE)
    assert await one.append(LANE, [sign("k", 5)])
    assert not await two.append(LANE, [sign("l", 5)])
    assert b.find("k") == a.find("k")  # the loser has looked again
    wins = []

    async def race(outbox, book, name):
        for number in range(20):
            while not await outbox.append(LANE, [sign(f"{name}{number}", book.next_nonce)]):
                pass
            wins.append(name)

    async with anyio.create_task_group() as group:
        group.start_soon(race, one, a, "a")
        group.start_soon(race, two, b, "b")
    await one.refresh(LANE)
    assert a.next_nonce == 46
    assert [row.account_nonce for row in a.open_rows()] == list(range(5, 46))
    for outbox in (one, two):
        await outbox.aclose()
    three = SqliteOutbox(path)
    assert (await three.open_lane(LANE)).loss is None
    await three.aclose()


@pytest.mark.skipif(sys.platform == "win32", reason="no modes there")
async def test_file_and_folder_are_for_their_owner_only(tmp_path):
    path = tmp_path / "state" / "o.sqlite"
    outbox = SqliteOutbox(path)
    await outbox.append(LANE, [sign("k", 5)])
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    for file in path.parent.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600, file
    await outbox.aclose()


@pytest.mark.skipif(sys.platform == "win32", reason="modes are of POSIX")
@pytest.mark.goal("SEC-04", part="outbox")
async def test_a_file_that_others_can_read_is_refused_with_the_fix(tmp_path):
    path = tmp_path / "outbox.sqlite"
    first = SqliteOutbox(path)
    await first.refresh(LANE)
    await first.aclose()
    path.chmod(0o644)
    second = SqliteOutbox(path)
    with pytest.raises(ConfigError, match=f"chmod 600 {path}"):
        await second.refresh(LANE)
    await second.aclose()


async def test_what_cannot_be_recorded_is_an_error_and_leaves_no_trace(tmp_path, monkeypatch):
    path = tmp_path / "o.sqlite"
    outbox = SqliteOutbox(path)
    book = await outbox.open_lane(LANE)
    outbox._db.execute("PRAGMA query_only=ON")  # as a full or read-only disk
    with pytest.raises(JournalError, match="Nothing was signed or sent"):
        await outbox.append(LANE, [sign("k", 5)])
    assert book.find("k") is None
    outbox._db.execute("PRAGMA query_only=OFF")
    real = os.fsync

    def broken(file):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(JournalError, match="No space left"):
        await outbox.append(LANE, [sign("k", 5)])
    monkeypatch.setattr(os, "fsync", real)
    assert not await outbox.append(LANE, [sign("k", 6)])  # it is recorded, and was never sent
    assert book.find("k").account_nonce == 5
    await outbox.aclose()


async def test_use_after_close_says_so(tmp_path):
    outbox = SqliteOutbox(tmp_path / "o.sqlite")
    await outbox.aclose()
    await outbox.aclose()
    with pytest.raises(ClosedError):
        await outbox.open_lane(LANE)


async def test_a_torn_head_leaves_the_one_before(tmp_path):
    path = tmp_path / "o.sqlite"
    outbox = SqliteOutbox(path)
    for nonce in range(4):
        await outbox.append(LANE, [sign(f"k{nonce}", nonce)])
    await outbox.aclose()
    head = next(tmp_path.glob("*.head-*"))
    data = bytearray(head.read_bytes())
    assert len(data) == 512
    data[:100] = bytes(100)
    head.write_bytes(data)
    outbox = SqliteOutbox(path)
    assert (await outbox.open_lane(LANE)).loss is None
    await outbox.aclose()


# --- any sequence ----------------------------------------------------------------------------------------------------

STEPS = st.lists(
    st.tuples(
        st.sampled_from(["signed", "version", "mined", "unmined", "final", "replaced"]),
        st.integers(0, 3),
        st.integers(-1, 2),
    ),
    max_size=40,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(STEPS)
def test_no_sequence_of_entries_breaks_the_invariants_of_a_book(steps):
    book, stored = LaneBook(LANE), []
    for kind, number, offset in steps:
        key = f"k{number}"
        row = book.find(key)
        if kind == "signed":
            entry = sign(
                key, max(book.next_nonce + offset, 0), attempt=1 if row is None else row.attempt + (offset != 2)
            )
        elif row is None:
            continue
        elif kind == "version":
            entry = bumped(row, 10 + len(row.versions) + offset)
        elif kind == "mined":
            entry = mined(row, block=offset + 5, block_hash=hex(offset + 5), status=number % 2)
        else:
            entry = mark_entry(kind, row)
        try:
            planned = book.plan([entry])
        except Misfit:
            continue
        for part in planned:
            book.take(*part)
        stored += planned
    rows = [book.find_hash(h) for h in book._hashes]
    live = [r for r in rows if r.status is not RowStatus.REPLACED]
    assert len({r.account_nonce for r in live}) == len({(r.key, r.attempt) for r in live})
    assert all(r.account_nonce < book.next_nonce for r in rows)
    assert {(r.key, r.attempt) for r in book.unsettled()} == {
        (r.key, r.attempt) for r in rows if not r.final and r.status is not RowStatus.REPLACED
    }
    again = LaneBook(LANE)
    for part in stored:
        again.take(*part)
    assert (again.head, again.unsettled(), again.spent()) == (book.head, book.unsettled(), book.spent())
