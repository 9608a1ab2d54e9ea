"""The audit log says each thing once, whatever was cut short, and holds nothing that was signed."""

import json
import os
import stat
import sys

import pytest

from tests.unit.test_outbox import LANE, bumped, mined, sign, signed
from zg_async.errors import ConfigError, JournalError
from zg_async.transport.audit import read_audit
from zg_async.transport.outbox import MemoryOutbox
from zg_async.transport.rows import mark_entry
from zg_async.transport.sqlite_outbox import SqliteOutbox


def lines(outbox):
    return [json.loads(line) for line in outbox.audit_path(LANE).read_text().splitlines()]


@pytest.fixture
async def outbox(tmp_path):
    made = SqliteOutbox(tmp_path / "state" / "o.sqlite")
    yield made
    await made.aclose()


async def fill(outbox, keys=("a", "b", "c")):
    for nonce, key in enumerate(keys, start=5):
        assert await outbox.append(LANE, [sign(key, nonce, value=7)])
        book = await outbox.open_lane(LANE)
        assert await outbox.append(LANE, [mined(book.find(key), block=nonce)])


async def test_each_entry_of_the_outbox_is_one_line_in_order(outbox):
    await fill(outbox)
    found = lines(outbox)
    assert [(line["height"], line["kind"], line["key"]) for line in found] == [
        (1, "signed", "a"), (2, "mined", "a"), (3, "signed", "b"), (4, "mined", "b"), (5, "signed", "c"),
        (6, "mined", "c"),
    ]  # fmt: skip
    assert {line["wallet"] for line in found} == {LANE.address}
    trail = read_audit(outbox.audit_path(LANE))
    assert [(t.key, t.tx_hash, t.value, t.gas_cost, t.status) for t in trail.transactions] == [
        (key, signed(nonce).tx_hash, 7, 200, 1) for nonce, key in enumerate("abc", start=5)
    ]
    assert trail.paid == 3 * 207


async def test_neither_signed_bytes_nor_calldata_are_in_it(outbox):
    await fill(outbox)
    text = outbox.audit_path(LANE).read_text()
    assert signed(5).raw.hex() not in text
    assert b"data".hex() not in text


@pytest.mark.skipif(sys.platform == "win32", reason="modes are POSIX")
async def test_only_its_owner_can_read_it(outbox):
    await fill(outbox)
    assert stat.S_IMODE(outbox.audit_path(LANE).stat().st_mode) == 0o600


@pytest.mark.parametrize("cut", [0, 1, 40, 400, 900, 10_000])
async def test_what_a_crash_left_out_is_written_at_the_next_start_and_nothing_twice(tmp_path, cut):
    path = tmp_path / "o.sqlite"
    one = SqliteOutbox(path)
    await fill(one)
    await one.aclose()
    file = one.audit_path(LANE)
    os.truncate(file, max(file.stat().st_size - cut, 0))
    two = SqliteOutbox(path)
    await two.open_lane(LANE)
    await two.aclose()
    trail = read_audit(file)
    assert [t.key for t in trail.transactions] == ["a", "b", "c"]
    heights = [json.loads(line)["height"] for line in file.read_text().splitlines() if line.endswith("}")]
    assert heights == sorted(set(heights)) == [1, 2, 3, 4, 5, 6]


async def test_two_programs_write_each_line_once(tmp_path):
    one, two = (SqliteOutbox(tmp_path / "o.sqlite") for _ in range(2))
    for nonce in range(5, 25, 2):
        assert await one.append(LANE, [sign(f"k{nonce}", nonce)])
        assert await two.append(LANE, [sign(f"k{nonce + 1}", nonce + 1)])
    await one.refresh(LANE)
    assert [line["height"] for line in lines(one)] == list(range(1, 21))
    for outbox in (one, two):
        await outbox.aclose()


async def test_a_log_that_is_longer_than_one_look_back_is_gone_on_with(outbox):
    for nonce in range(300):
        assert await outbox.append(LANE, [sign(f"{nonce}-{'x' * 400}", nonce)])
    again = SqliteOutbox(outbox.audit_path(LANE).with_name("o.sqlite"))
    await again.open_lane(LANE)
    await again.aclose()
    assert [line["height"] for line in lines(outbox)] == list(range(1, 301))


async def test_a_reorganisation_takes_a_transaction_back_and_a_fee_bump_counts_once(outbox):
    await outbox.append(LANE, [sign("k", 5)])
    book = await outbox.open_lane(LANE)
    await outbox.append(LANE, [bumped(book.find("k"), 11)])
    await outbox.append(LANE, [mined(book.find("k"))])
    await outbox.append(LANE, [mark_entry("unmined", book.find("k"))])
    assert read_audit(outbox.audit_path(LANE)).transactions == ()
    await outbox.append(LANE, [mined(book.find("k"), tx_hash=signed(5).tx_hash, block=9, status=0)])
    [transaction] = read_audit(outbox.audit_path(LANE)).transactions
    assert (transaction.tx_hash, transaction.block_number, transaction.paid) == (signed(5).tx_hash, 9, 200)


async def test_an_outbox_begun_anew_adds_to_the_log(tmp_path):
    path = tmp_path / "o.sqlite"
    one = SqliteOutbox(path)
    await fill(one, ("a", "b"))
    await one.aclose()
    for file in [*tmp_path.glob("o.sqlite*")]:
        file.unlink()
    two = SqliteOutbox(path)
    assert await two.append(LANE, [sign("a", 9)])
    book = await two.open_lane(LANE)
    assert await two.append(LANE, [mined(book.find("a"))])
    await two.aclose()
    trail = read_audit(two.audit_path(LANE))
    assert [(t.key, t.account_nonce) for t in trail.transactions] == [("a", 5), ("b", 6), ("a", 9)]


async def test_other_signatures_stand_in_it_by_purpose(outbox):
    fields = {"purpose": "task", "provider": LANE.address, "digest": "0x" + "12" * 32}
    await outbox.note_signature(LANE, 1e9, fields)
    await fill(outbox)
    trail = read_audit(outbox.audit_path(LANE))
    [signature] = trail.signatures
    assert (signature.purpose, signature.provider, signature.digest) == ("task", LANE.address, fields["digest"])
    assert signature.at.isoformat() == "2001-09-09T01:46:40+00:00"
    assert len(trail.transactions) == 3


async def test_nothing_is_signed_that_could_not_be_noted(tmp_path):
    outbox = SqliteOutbox(tmp_path / "o.sqlite")
    outbox.audit_path(LANE).mkdir()
    with pytest.raises(JournalError, match="can't be used"):
        await outbox.note_signature(LANE, 1e9, {"purpose": "task", "digest": "0x"})
    with pytest.raises(JournalError, match="can't be used"):
        await outbox.append(LANE, [sign("k", 5)])
    await outbox.aclose()


async def test_damaged_lines_are_counted_and_a_missing_log_is_empty(tmp_path):
    assert read_audit(tmp_path / "none").transactions == ()
    path = tmp_path / "log"
    path.write_bytes(b'{"kind":"mined"}\n\xff\n[]\n{"kind":"signature"}\n')
    assert read_audit(path).unreadable == 4
    with pytest.raises(ConfigError, match="can't be read"):
        read_audit(tmp_path)


async def test_an_outbox_in_memory_has_none():
    assert MemoryOutbox().audit_path(LANE) is None
