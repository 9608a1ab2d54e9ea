"""What every store promises, and what the file keeps through damage."""

import dataclasses
import json
import sqlite3
import stat

import anyio
import pytest

from tests.clock import FakeClock
from tests.unit.jobs_events import ALL, AT, SPEC, WALLET
from zg_async.errors import ClosedError, JournalError
from zg_async.jobs import events as e
from zg_async.jobs.sqlite import SqliteStore
from zg_async.jobs.state import fold
from zg_async.jobs.store import Journal, MemoryStore, Owner

OWNER = Owner(chain_id=31337, genesis="0x" + "ab" * 32, wallets=(WALLET,))
JOB, OTHER = "job-1", "job-2"
FIRST = e.JobSubmitted(spec=SPEC, wallet=WALLET, at=AT)
EVENTS = tuple(dataclasses.replace(event, at=AT) for event in ALL)


@pytest.fixture(params=["memory", "sqlite"])
def make(request, tmp_path):
    """Make one more store on the same journal, as another process would."""
    if request.param == "memory":
        journal = Journal()
        return lambda: MemoryStore(journal)
    return lambda: SqliteStore(tmp_path / "private" / "jobs.sqlite", clock=FakeClock())


@pytest.fixture
async def store(make):
    one = make()
    await one.open(OWNER)
    yield one
    await one.aclose()


async def test_events_come_back_as_they_were_and_numbered(store):
    appended = await store.append(JOB, *EVENTS)
    assert [event.seq for event in appended] == list(range(1, len(EVENTS) + 1))
    assert await store.read(JOB) == appended
    assert await store.read(JOB, after=5) == appended[5:]
    assert tuple(dataclasses.replace(event, seq=0, job_id="") for event in appended) == EVENTS


async def test_each_job_counts_for_itself(store):
    await store.append(JOB, *EVENTS[:3])
    (event,) = await store.append(OTHER, FIRST)
    assert (event.seq, event.job_id) == (1, OTHER)
    assert await store.list_jobs() == (JOB, OTHER)


async def test_a_job_is_created_once(store):
    assert await store.create(JOB, FIRST, EVENTS[1]) is not None
    assert await store.create(JOB, FIRST) is None
    assert len(await store.read(JOB)) == 2


async def test_of_two_creators_at_the_same_time_one_wins(store):
    results = []

    async def create():
        results.append(await store.create(JOB, FIRST))

    async with anyio.create_task_group() as group:
        for _ in range(5):
            group.start_soon(create)
    assert sum(result is not None for result in results) == 1
    assert len(await store.read(JOB)) == 1


async def test_what_was_appended_is_there_for_the_next_process(make, store):
    appended = await store.append(JOB, *EVENTS)
    await store.aclose()
    again = make()
    await again.open(OWNER)
    assert again.damage is None
    assert await again.read(JOB) == appended
    assert (await again.append(JOB, FIRST))[0].seq == len(appended) + 1
    await again.aclose()


async def test_a_second_process_reads_but_does_not_write(make, store):
    await store.append(JOB, FIRST)
    other = make()
    await other.open(OWNER)
    assert store.is_writer
    assert not other.is_writer
    assert len(await other.read(JOB)) == 1
    with pytest.raises(JournalError, match="another process"):
        await other.append(JOB, FIRST)
    await other.aclose()


@pytest.mark.parametrize(
    "stranger",
    [
        dataclasses.replace(OWNER, chain_id=1),
        dataclasses.replace(OWNER, genesis="0x" + "cd" * 32),
        dataclasses.replace(OWNER, wallets=("0xf39Fd6e51aad88F6F4ce6aB8827279cffFb92266",)),
    ],
    ids=["chain", "genesis", "wallet"],
)
async def test_a_journal_of_somebody_else_is_refused(make, store, stranger):
    await store.aclose()
    other = make()
    with pytest.raises(JournalError, match="belongs to"):
        await other.open(stranger)
    await other.aclose()
    again = make()
    await again.open(OWNER)
    assert again.is_writer
    await again.aclose()


async def test_waiting_ends_with_the_next_append(store):
    version, woken = store.version(JOB), anyio.Event()

    async def wait():
        await store.wait_change(JOB, version)
        woken.set()

    async with anyio.create_task_group() as group:
        group.start_soon(wait)
        await anyio.wait_all_tasks_blocked()
        assert not woken.is_set()
        await store.append(JOB, FIRST)
    assert woken.is_set()


async def test_an_append_wakes_nobody_who_waits_for_another_job_but_a_notice_to_all_does(store):
    woken: list[str] = []

    async def wait(job):
        await store.wait_change(job, store.version(job))
        woken.append(job)

    async with anyio.create_task_group() as group:
        group.start_soon(wait, JOB)
        group.start_soon(wait, OTHER)
        await anyio.wait_all_tasks_blocked()
        await store.append(OTHER, FIRST)
        await anyio.wait_all_tasks_blocked()
        assert woken == [OTHER]
        store.notify()
    assert woken == [OTHER, JOB]


async def test_an_append_between_looking_and_waiting_is_not_missed(store):
    version = store.version(JOB)
    await store.append(JOB, FIRST)
    await store.wait_change(JOB, version)


async def test_closing_ends_all_waiting(store):
    async with anyio.create_task_group() as group:

        async def wait():
            with pytest.raises(ClosedError):
                await store.wait_change(JOB, store.version(JOB))

        group.start_soon(wait)
        await anyio.wait_all_tasks_blocked()
        await store.aclose()
    with pytest.raises(ClosedError):
        await store.append(JOB, FIRST)
    await store.aclose()


async def test_a_cancelled_append_is_whole_or_absent(store):
    for turns in range(6):
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as group:
                group.start_soon(store.append, JOB, FIRST, EVENTS[1])
                for _ in range(turns):
                    await anyio.lowlevel.checkpoint()
                scope.cancel()
        assert len(await store.read(JOB)) % 2 == 0
        assert [event.seq for event in await store.read(JOB)] == list(range(1, len(await store.read(JOB)) + 1))


# ---- the file


@pytest.fixture
def path(tmp_path):
    return tmp_path / "private" / "jobs.sqlite"


async def opened(path) -> SqliteStore:
    store = SqliteStore(path, clock=FakeClock())
    await store.open(OWNER)
    return store


async def test_the_files_are_readable_only_by_this_user(path):
    store = await opened(path)
    await store.append(JOB, FIRST)
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    modes = {entry.name: stat.S_IMODE(entry.stat().st_mode) for entry in path.parent.iterdir()}
    assert set(modes) >= {"jobs.sqlite", "jobs.sqlite-wal", "jobs.sqlite.head", "jobs.sqlite.lock"}
    assert set(modes.values()) == {0o600}
    await store.aclose()


async def test_the_default_file_is_one_per_chain_and_wallet(tmp_path):
    store = SqliteStore(folder=tmp_path / "jobs")
    await store.open(OWNER)
    assert store.path == tmp_path / "jobs" / f"31337-{'ab' * 8}-{WALLET.lower()}.sqlite"
    await store.aclose()


async def test_appends_that_wait_together_share_a_commit(path, monkeypatch):
    store = await opened(path)
    commits = []
    write = store._write
    monkeypatch.setattr(store, "_write", lambda batch: (commits.append(len(batch)), write(batch)))
    async with anyio.create_task_group() as group:
        for n in range(50):
            group.start_soon(store.append, f"job-{n}", FIRST)
    assert sum(commits) == 50
    assert len(commits) <= 3
    await store.aclose()


async def test_commits_are_synced_to_disk(path):
    store = await opened(path)
    assert store._db.execute("pragma journal_mode").fetchone() == ("wal",)
    assert store._db.execute("pragma synchronous").fetchone() == (2,)
    await store.aclose()


async def test_a_taken_over_writer_fails_at_its_next_record(path):
    store = await opened(path)
    await store.append(JOB, FIRST)
    with sqlite3.connect(path) as db:
        db.execute("update meta set value = '99' where name = 'epoch'")
    db.close()
    with pytest.raises(JournalError, match="taken it over"):
        await store.append(JOB, FIRST)
    with pytest.raises(JournalError):
        await store.append(JOB, FIRST)
    assert len(await store.read(JOB)) == 1
    await store.aclose()


@pytest.mark.parametrize("what", ["_write_head", "_columns"], ids=["after the commit", "before the commit"])
async def test_when_the_disk_fails_nothing_more_is_recorded(path, monkeypatch, what):
    store = await opened(path)
    await store.append(JOB, FIRST)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store, what, full)
    with pytest.raises(JournalError, match="No space left"):
        await store.append(JOB, EVENTS[1])
    monkeypatch.undo()
    with pytest.raises(JournalError, match="No space left"):
        await store.append(JOB, EVENTS[1])
    await store.aclose()
    again = await opened(path)
    assert again.damage is None
    assert len(await again.read(JOB)) in (1, 2)
    await again.aclose()


async def filled(path, count: int = 6) -> None:
    store = await opened(path)
    await store.create(JOB, FIRST, EVENTS[1])
    for event in EVENTS[2:count]:
        await store.append(JOB, event)
    await store.aclose()


def change(path, *statements: str) -> None:
    db = sqlite3.connect(path)
    for statement in statements:
        db.execute(statement)
    db.commit()
    db.close()


DAMAGES = {
    "last row gone": lambda path: change(path, "delete from event where height = 6"),
    "row in the middle gone": lambda path: change(path, "delete from event where height = 3"),
    "body changed": lambda path: change(path, "update event set body = '{}' where height = 4"),
    "rows swapped": lambda path: change(
        path,
        "update event set height = -2 where height = 2",
        "update event set height = 2 where height = 3",
        "update event set height = 3 where height = -2",
    ),
    "all rows gone": lambda path: change(path, "delete from event"),
    "table gone": lambda path: change(path, "drop table event"),
    "database gone": lambda path: path.unlink(),
    "database emptied": lambda path: path.write_bytes(b""),
    "database overwritten": lambda path: path.write_bytes(b"x" * 8192),
    "head gone": lambda path: path.with_name(path.name + ".head").unlink(),
    "head of another history": lambda path: path.with_name(path.name + ".head").write_text(
        json.dumps({"height": 6, "hash": "00" * 32})
    ),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
async def test_damage_is_noticed_and_stops_all_writing_until_reconciled(path, damage):
    await filled(path)
    damage(path)
    store = await opened(path)
    assert store.damage
    with pytest.raises(JournalError, match="damaged"):
        await store.append(JOB, FIRST)
    before = {}
    await store.reconcile()
    assert store.damage is None
    assert store.was_reconciled
    for job in await store.list_jobs():
        before[job] = await store.read(job)
        assert fold(before[job]).suspect
    await store.append(JOB, EVENTS[3])
    await store.aclose()
    again = await opened(path)
    assert again.damage is None
    assert again.was_reconciled
    await again.aclose()


async def test_reconciling_keeps_the_sound_beginning_and_sets_the_file_aside(path):
    await filled(path)
    change(path, "update event set body = '{}' where height = 4")
    store = await opened(path)
    await store.reconcile()
    kinds = [event.kind for event in await store.read(JOB)]
    assert kinds == ["job_submitted", "dataset_checked", "job_queued", "job_reconciled"]
    assert path.with_name(path.name + ".damaged-1").exists()
    await store.aclose()


async def test_an_older_copy_put_back_is_noticed(path):
    await filled(path, 4)
    old = path.read_bytes()
    store = await opened(path)
    await store.append(JOB, EVENTS[5])
    await store.aclose()
    path.write_bytes(old)
    again = await opened(path)
    assert "4 sound rows, and had 5" in again.damage
    await again.aclose()


async def test_rows_beyond_the_head_are_sound(path):
    """The process died between commit and head."""
    await filled(path, 4)
    head = path.with_name(path.name + ".head")
    old = head.read_bytes()
    await filled_more(path)
    head.write_bytes(old)
    store = await opened(path)
    assert store.damage is None
    assert len(await store.read(JOB)) == 5
    await store.aclose()


async def filled_more(path) -> None:
    store = await opened(path)
    await store.append(JOB, EVENTS[5])
    await store.aclose()


@pytest.mark.slow
async def test_every_flipped_byte_in_the_log_that_loses_a_row_is_noticed(path):
    await filled(path)
    store = await opened(path)
    await store.append(JOB, EVENTS[6])
    wal = path.with_name(path.name + "-wal")
    files = {file: file.read_bytes() for file in path.parent.iterdir()}  # as a power cut would leave them
    sound = await store.read(JOB)
    await store.aclose()
    for place in range(0, len(files[wal]), 997):
        for file, content in files.items():
            file.write_bytes(content)
        wal.write_bytes(files[wal][:place] + bytes([files[wal][place] ^ 1]) + files[wal][place + 1 :])
        damaged = await opened(path)
        assert damaged.damage or await damaged.read(JOB) == sound
        await damaged.aclose()


async def test_a_journal_of_a_newer_version_is_refused(path):
    await filled(path)
    change(path, "update meta set value = '2' where name = 'version'")
    with pytest.raises(JournalError, match="newer version"):
        await opened(path)


async def test_a_reader_of_another_process_sees_what_comes(path):
    writer, reader = await opened(path), await opened(path)
    version = reader.version(JOB)
    await writer.append(JOB, FIRST)
    await reader.wait_change(JOB, version)
    assert len(await reader.read(JOB)) == 1
    await reader.aclose()
    await writer.aclose()


async def test_what_was_appended_lately_is_read_as_the_file_has_it(tmp_path, monkeypatch):
    """The writer hands it out without reading; a reader of the file finds the same, wherever it begins."""
    path = tmp_path / "jobs.sqlite"
    writer, reader = SqliteStore(path, clock=FakeClock()), SqliteStore(path, clock=FakeClock(), read_only=True)
    await writer.open(OWNER)
    await reader.open(OWNER)
    await writer.create(JOB, FIRST)
    for event in EVENTS:
        await writer.append(JOB, event)
    for after in range(len(EVENTS) + 2):
        assert await writer.read(JOB, after) == await reader.read(JOB, after)
    reads = []
    monkeypatch.setattr(writer, "_in_thread", lambda work: reads.append(work))
    assert len(await writer.read(JOB, len(EVENTS))) == 1
    assert not reads
    await reader.aclose()
    await writer.aclose()
