"""Journals of released versions are read for ever; newer ones are refused with instructions. And a journal's upkeep."""

import json
import os
import shutil
import sqlite3
import stat
from contextlib import closing

import pytest

from tests.journals.make import HERE, OWNER
from zg_async.errors import ConfigError, JournalError
from zg_async.jobs import events as e
from zg_async.jobs.events import UnknownEvent, event_from_json, event_to_json
from zg_async.jobs.sqlite import SqliteStore
from zg_async.jobs.state import JobStatus, fold

VERSIONS = sorted(path.name.removesuffix(".events.jsonl") for path in HERE.glob("*.events.jsonl"))


@pytest.fixture
async def store(tmp_path):
    opened = SqliteStore(tmp_path / "jobs.sqlite")
    await opened.open(OWNER)
    yield opened
    await opened.aclose()


def lines(version):
    return (HERE / f"{version}.events.jsonl").read_text().splitlines()


@pytest.mark.goal("DUR-05", part="events of every release are understood")
@pytest.mark.parametrize("version", VERSIONS)
def test_every_event_of_an_older_release_is_understood_and_nothing_of_it_is_lost(version):
    for line in lines(version):
        value = json.loads(line)
        event = event_from_json(value)
        if value["kind"] != "job_levitated":
            assert not isinstance(event, UnknownEvent), value["kind"]
        again = event_to_json(event)
        assert {name: again[name] for name in value if name != "spec"} == {
            n: v for n, v in value.items() if n != "spec"
        }


@pytest.mark.goal("DUR-05", part="files of every release open and are folded to the same jobs")
@pytest.mark.parametrize("version", VERSIONS)
async def test_a_journal_of_an_older_release_opens_and_its_jobs_stand_where_they_stood(version, tmp_path):
    shutil.copy(HERE / f"{version}.head", tmp_path / "jobs.sqlite.head")
    with closing(sqlite3.connect(tmp_path / "jobs.sqlite")) as db:
        db.executescript((HERE / f"{version}.sql").read_text())
    (tmp_path / "jobs.sqlite").chmod(0o600)
    old = SqliteStore(tmp_path / "jobs.sqlite")
    await old.open(OWNER)
    assert old.damage is None
    assert old.is_writer
    done, waiting = [fold(await old.read(job_id)) for job_id in await old.list_jobs()]
    await old.aclose()
    assert done.status is JobStatus.SUCCEEDED
    assert done.result.adapter_name == "ft-00000000-000"
    assert waiting.status is JobStatus.RUNNING
    assert waiting.deliverable_acknowledged
    assert not done.unknown
    assert not waiting.unknown


@pytest.mark.goal("DUR-05", part="a newer journal is refused with instructions")
async def test_a_journal_of_a_newer_release_is_refused_with_instructions(store, tmp_path):
    await store.aclose()
    with sqlite3.connect(tmp_path / "jobs.sqlite") as db:
        db.execute("update meta set value = '99' where name = 'version'")
    db.close()
    newer = SqliteStore(tmp_path / "jobs.sqlite")
    with pytest.raises(JournalError, match="newer version") as caught:
        await newer.open(OWNER)
    assert "Upgrade" in caught.value.hint


# ---- upkeep


@pytest.mark.goal("DUR-08", part="size and place")
async def test_a_journal_says_where_it_is_and_how_large(store, tmp_path):
    await store.append("job-1", e.CancelRequested(), e.CancelRequested())
    await store.append("job-2", e.CancelRequested())
    info = await store.info()
    assert (info.path, info.jobs, info.events) == (str(tmp_path / "jobs.sqlite"), 2, 3)
    assert info.size > 4096


@pytest.mark.skipif(os.name == "nt", reason="modes are of POSIX")
@pytest.mark.goal("SEC-04", part="journal")
async def test_a_journal_is_for_its_owner_only_and_refused_otherwise(store, tmp_path):
    await store.append("job-1", e.CancelRequested())
    await store.backup(tmp_path / "copy.sqlite")
    files = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert set(files) >= {"jobs.sqlite", "jobs.sqlite.head", "copy.sqlite", "copy.sqlite.head"}
    assert set(files.values()) == {0o600}
    (tmp_path / "copy.sqlite").chmod(0o640)
    with pytest.raises(ConfigError, match="chmod 600"):
        await SqliteStore(tmp_path / "copy.sqlite").open(OWNER)


@pytest.mark.goal("DUR-08", part="backup while running")
async def test_a_backup_made_while_running_is_a_whole_journal(store, tmp_path):
    await store.append("job-1", e.CancelRequested())
    await store.backup(tmp_path / "copy.sqlite")
    await store.append("job-1", e.CancelRefused(reason="late"))
    copy = SqliteStore(tmp_path / "copy.sqlite")
    await copy.open(OWNER)
    assert copy.damage is None
    assert [event.kind for event in await copy.read("job-1")] == ["cancel_requested"]
    await copy.aclose()
    with pytest.raises(ConfigError, match="exists already"):
        await store.backup(tmp_path / "copy.sqlite")


@pytest.mark.goal("DUR-08", part="prune")
async def test_pruning_forgets_jobs_and_leaves_a_sound_journal(store, tmp_path):
    for job in ("job-1", "job-2", "job-3"):
        await store.append(job, *[e.CancelRequested()] * 3)
    assert await store.prune("job-2") == 3
    await store.append("job-3", e.CancelRefused(reason="late"))
    await store.aclose()
    again = SqliteStore(tmp_path / "jobs.sqlite")
    await again.open(OWNER)
    assert again.damage is None
    assert await again.list_jobs() == ("job-1", "job-3")
    assert [event.seq for event in await again.read("job-3")] == [1, 2, 3, 4]
    await again.aclose()


@pytest.mark.goal("DUR-08", part="prune")
async def test_dying_between_the_pruning_and_its_head_is_no_damage(store, tmp_path, monkeypatch):
    await store.append("job-1", e.CancelRequested())
    await store.append("job-2", e.CancelRequested())
    head = (tmp_path / "jobs.sqlite.head").read_bytes()
    await store.prune("job-1")
    await store.aclose()
    (tmp_path / "jobs.sqlite.head").write_bytes(head)
    again = SqliteStore(tmp_path / "jobs.sqlite")
    await again.open(OWNER)
    assert again.damage is None
    assert await again.list_jobs() == ("job-2",)
    await again.aclose()
