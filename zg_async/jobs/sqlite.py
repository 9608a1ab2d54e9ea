"""The journal in one SQLite file, with a hash chain whose height and head are also kept outside the file.

Theory. SQLite's write-ahead log drops committed rows after damage without a word, and `integrity_check` stays "ok".
So each row's hash covers the row and the hash before it, and after each commit (height, hash) goes, with fsync, into
`<file>.head`. At start the chain is walked: rows up to the head must be there and must be the same. More rows than the
head knows are sound: the process died between commit and head. Fewer or others mean damage, or an older copy put back;
then nothing is written until `reconcile`, which keeps the sound beginning and sets the damaged file aside.

One process writes: it holds an exclusive transaction in `<file>.lock`, which the system drops when the process dies,
and it raises the epoch, which every commit compares. Others read, and wait for their turn. A writer that hangs stops
renewing `<file>.lease`; after a minute another one raises the epoch, and the first fails at its next commit. The lease
names its end by the wall clock, for those who just come; who waits counts the minute itself, since clocks are set.
Appends that wait at the same time share one commit.
"""

import dataclasses
import datetime as dt
import hashlib
import json
import os
import shutil
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, Final, TypeVar

import anyio
import anyio.to_thread

from zg_async.clock import Clock, SystemClock
from zg_async.errors import ClosedError, ConfigError, JournalError
from zg_async.file_lock import take_lock
from zg_async.jobs.events import (
    Event,
    JobCancelled,
    JobFailed,
    JobReconciled,
    JobSucceeded,
    event_body,
    event_from_json,
)
from zg_async.jobs.state import fold
from zg_async.jobs.store import News, Owner, check_owner, check_writable, process_name
from zg_async.paths import make_private_dir, require_private, state_dir, write_private
from zg_async.wire.records import JobId

_T = TypeVar("_T")
_VERSION: Final = 1
_GENESIS_HASH: Final = bytes(32)
_POLL_SECONDS: Final = 0.25
"""How often a reader looks for what another process wrote."""
_ENDS: Final = (JobSucceeded, JobFailed, JobCancelled)
_NEWEST_EVENTS: Final = 32
_NEWEST_JOBS: Final = 256
BEAT_SECONDS: Final = 10.0
"""How often a writer renews its lease, and others look whether it has expired."""
LEASE_SECONDS: Final = 60.0

_SCHEMA: Final = """
create table if not exists meta (name text primary key, value text not null) without rowid;
create table if not exists event (
  height integer primary key, job text not null, seq integer not null, at text not null, kind text not null,
  body text not null, epoch integer not null, owner text not null, hash blob not null, unique (job, seq));
"""
_COLUMNS: Final = "height, job, seq, at, kind, body, epoch, owner"


@dataclasses.dataclass(slots=True)
class _Entry:
    """Events on their way into the journal."""

    job_id: JobId
    events: tuple[Event, ...]
    new_job: bool
    done: tuple[Event, ...] | None = None
    exists: bool = False
    error: str | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class JournalInfo:
    """A journal's place and size."""

    path: str
    size: int
    """Bytes on disk."""
    jobs: int
    events: int


class SqliteStore:
    """A journal in a file of its own, readable only by this user."""

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        folder: str | os.PathLike[str] | None = None,
        clock: Clock | None = None,
        read_only: bool = False,
    ) -> None:
        """Name the file; it is made when the store is opened.

        Args:
            path: The database; `.head` and `.lock` lie beside it. None: one file per chain and wallet in `folder`.
            folder: None: `jobs` in the user's state folder.
            clock: For readers' polling; None: the machine's.
            read_only: Never become the writer, so that a runner that comes later may; the file has to be there.
        """
        self.path = None if path is None else Path(path).expanduser().absolute()
        self._folder = state_dir() / "jobs" if folder is None else Path(folder)
        self.damage: str | None = None
        self._clock = clock or SystemClock()
        self._read_only = read_only
        self._mutex = threading.RLock()
        self._commit = anyio.Lock()
        self._waiting: list[_Entry] = []
        self._news = News()
        self._db: sqlite3.Connection | None = None
        self._lock: sqlite3.Connection | None = None
        self._writes = False
        self._seen_lease, self._seen_at = b"", 0.0
        """Another writer's lease, and when it was first seen, in monotonic time."""
        self._owner: Owner | None = None
        self._height, self._hash, self._epoch = 0, _GENESIS_HASH, 0
        self._last: dict[JobId, int] = {}
        self._newest: dict[JobId, tuple[Event, ...]] = {}
        """What was appended here lately, so that those who follow a job needn't read it."""
        self._broken: str | None = None
        self._reconciled = False

    @property
    def is_writer(self) -> bool:
        """Whether this process may append."""
        return self._writes

    @property
    def was_reconciled(self) -> bool:
        """Whether the journal ever lost rows."""
        return self._reconciled

    # ---- open and close

    async def open(self, owner: Owner) -> None:
        """Open, check and, if no other process has it, take the journal for writing."""
        await self._in_thread(lambda: self._open(owner))

    def _open(self, owner: Owner) -> None:
        path = self.path = self.path or self._folder.absolute() / _file_name(owner)
        self._owner = owner
        try:
            make_private_dir(path.parent)
            if self._read_only and not path.exists():
                raise JournalError(
                    f"there is no journal at {path} yet", hint="It is made when a first job is submitted"
                )
            self._take()
            try:
                self._open_database(path, owner)
            except BaseException:
                self._close()
                raise
        except OSError as error:
            raise ConfigError(f"can't keep a journal at {path}: {error}") from error

    def _open_database(self, path: Path, owner: Owner) -> None:
        try:
            self._db = _connect(path)
            if self.is_writer:
                self._prepare(owner)
            meta = dict(self._db.execute("select name, value from meta"))
            if int(meta["version"]) > _VERSION:
                raise JournalError(f"{path} was written by a newer version", hint="Upgrade zg-async")
            check_owner(int(meta["chain_id"]), meta["genesis"], meta["wallet"], owner)
            self._reconciled = meta["reconciled"] == "1"
        except sqlite3.OperationalError as error:
            raise JournalError(f"can't open the journal {path}: {error}") from error
        except (sqlite3.DatabaseError, KeyError) as error:
            self.damage = f"{path.name} can't be read ({error})"
        if self.is_writer and self._db is not None:
            self._check()

    def _prepare(self, owner: Owner) -> None:
        """Make an empty journal, or take an existing one by raising its epoch."""
        db = self._require()
        is_new = not db.execute("select 1 from sqlite_master where name = 'meta'").fetchone()
        if is_new and _read_head(self._head_path) is not None:
            self.damage = "the database is gone or empty, but its head file is there"
        with _transaction(db):
            for statement in filter(str.strip, _SCHEMA.split(";")):
                db.execute(statement)
            first = {
                "version": str(_VERSION),
                "chain_id": str(owner.chain_id),
                "genesis": owner.genesis,
                "wallet": owner.wallets[0],
                "epoch": "0",
                "reconciled": "0",
            }
            db.executemany("insert or ignore into meta values (?, ?)", first.items())
            stored = dict(db.execute("select name, value from meta"))
            check_owner(int(stored["chain_id"]), stored["genesis"], stored["wallet"], owner)
            self._epoch = int(stored["epoch"]) + 1
            db.execute("update meta set value = ? where name = 'epoch'", (str(self._epoch),))
        self._write_lease()

    def _begin_anew(self) -> None:
        """Forget what the file held."""
        self._height, self._hash, self._last = 0, _GENESIS_HASH, {}
        self._newest.clear()

    def _check(self) -> None:
        """Walk the chain and compare it with the head outside."""
        head = _read_head(self._head_path)
        at_head: bytes | None = _GENESIS_HASH
        try:
            for height, row_hash, job, seq in self._sound_rows():
                self._height, self._hash = height, row_hash
                self._last[job] = seq
                at_head = row_hash if head and height == head[0] else at_head
            total = self._require().execute("select count(*) from event").fetchone()[0]
        except sqlite3.DatabaseError as error:
            self.damage = self.damage or f"rows can't be read ({error})"
            return
        if head is None and not self._height:
            self._write_head()  # new, or it died before its first head
        elif head is None:
            self.damage = self.damage or "its head file is gone"
        elif total == self._height and self._died_pruning(head):
            self._write_head()
        elif self._height < head[0]:
            self.damage = self.damage or f"it has {self._height} sound rows, and had {head[0]}"
        elif total != self._height:
            self.damage = self.damage or f"row {self._height + 1} was changed"
        elif (at_head if head[0] else _GENESIS_HASH) != head[1]:
            self.damage = self.damage or f"row {head[0]} is not the one that was written"

    def _sound_rows(self) -> Iterator[tuple[int, bytes, JobId, int]]:
        """Yield (height, hash, job, seq) as long as the chain holds."""
        previous = _GENESIS_HASH
        for expected, (*columns, stored) in enumerate(
            self._require().execute(f"select {_COLUMNS}, hash from event order by height"),
            1,
        ):
            if columns[0] != expected or _row_hash(previous, columns) != stored:
                return
            previous = stored
            yield expected, stored, JobId(columns[1]), columns[2]

    # ---- lease

    async def hold(self) -> bool:
        """Renew the lease while this process writes, or wait until it may; return which of both changed."""
        while True:
            await self._clock.sleep(BEAT_SECONDS)
            was_writer, was_broken = self._writes, self._broken is not None
            await self._in_thread(self._renew if was_writer else self._try_again)
            if self._writes != was_writer:
                return self._writes
            if was_broken and self._broken is None:
                return True

    def _take(self) -> None:
        """Become the writer if nobody is, or if the writer's lease expired."""
        if self._read_only:
            return
        is_first = self._lock is None and self._take_lock()
        self._writes = is_first or self._has_expired()  # with the lock, too: another one took over from us

    def _take_lock(self) -> bool:
        path = self._path()
        self._lock = take_lock(path.with_name(path.name + ".lock"))
        return self._lock is not None

    def _try_again(self) -> None:
        try:
            self._take()
            owner = self._owner
            if self._writes and owner is not None:
                self._prepare(owner)
                self._begin_anew()
                self._check()
        except (OSError, sqlite3.Error):  # the disk is full, or away: the next beat looks again
            self._writes = False

    def _renew(self) -> None:
        epoch = self._require().execute("select value from meta where name = 'epoch'").fetchone()
        if epoch is None or int(epoch[0]) != self._epoch:
            self._broken = self._broken or "another process has taken the journal over"
            self._writes = False
            return
        try:
            if self._lock is None:
                self._take_lock()  # whose lease had run out may be gone by now
            self._write_lease()
        except OSError as error:  # the disk is full: the journal can't be written either
            self._broken = self._broken or f"the journal {self.path} can't be written: {error}"
            return
        if self._broken is not None:
            self._mend()

    def _mend(self) -> None:
        """See whether the journal can be written again (the disk was full, or away); then go on from what it holds."""
        try:
            with _transaction(self._require()) as db:
                db.execute("create table trial (text)")
                db.execute("insert into trial values (?)", ("x" * 65_536,))
                db.execute("drop table trial")
            self._begin_anew()
            self._check()
            if self.damage is None:
                self._write_head()
        except (sqlite3.Error, OSError) as error:
            self._broken = f"the journal {self.path} can't be written: {error}"
            return
        self._broken = None

    def _write_lease(self) -> None:
        temporary = self._lease_path.with_name(self._lease_path.name + ".new")
        text = json.dumps({"until": self._clock.now() + LEASE_SECONDS, "owner": process_name()})
        with closing(os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w")) as file:
            file.write(text)
        temporary.replace(self._lease_path)

    def _has_expired(self) -> bool:
        """Say whether the writer has stopped renewing; a lease that can't be read is no reason to take over."""
        now = self._clock.monotonic()
        try:
            lease = self._lease_path.read_bytes()
            until = float(json.loads(lease)["until"])
        except (OSError, ValueError, KeyError, TypeError):
            return False
        if lease != self._seen_lease:
            self._seen_lease, self._seen_at = lease, now
        return until < self._clock.now() or now - self._seen_at > LEASE_SECONDS

    @property
    def _lease_path(self) -> Path:
        path = self._path()
        return path.with_name(path.name + ".lease")

    async def aclose(self) -> None:
        """Close the file. Idempotent."""
        self._news.close()
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(self._close)

    def _close(self) -> None:
        with self._mutex:
            for connection in (self._db, self._lock):
                if connection is not None:
                    with suppress(sqlite3.Error):
                        connection.close()
            self._db = self._lock = None
            self._writes = False

    # ---- append

    async def create(self, job_id: JobId, *events: Event) -> tuple[Event, ...] | None:
        """Append a new job's first events; None: the job exists already."""
        return await self._append(_Entry(job_id, events, new_job=True))

    async def append(self, job_id: JobId, *events: Event) -> tuple[Event, ...]:
        """Make events durable and return them numbered."""
        return await self._append(_Entry(job_id, events, new_job=False)) or ()

    async def _append(self, entry: _Entry) -> tuple[Event, ...] | None:
        check_writable(is_open=self._db is not None, is_writer=self.is_writer, damage=self.damage)
        with anyio.CancelScope(shield=True):  # what was committed must be known to the one who committed it
            self._waiting.append(entry)
            async with self._commit:
                if entry.done is None and entry.error is None and not entry.exists:
                    await anyio.to_thread.run_sync(self._flush)
            self._news.notify([entry.job_id])
        if entry.error is not None:
            raise JournalError(entry.error, hint="Nothing that wasn't recorded was done; mend it and resume the jobs")
        return entry.done

    def _flush(self) -> None:
        """Commit all that waits in one transaction."""
        with self._mutex:
            batch, self._waiting = self._waiting, []
            try:
                if self._broken:
                    raise JournalError(self._broken)
                self._write(batch)
            except (sqlite3.Error, OSError, JournalError) as error:
                self._broken = self._broken or f"the journal {self.path} can't be written: {error}"
                for entry in batch:
                    entry.error = entry.error or self._broken

    def _write(self, batch: list[_Entry]) -> None:
        db = self._require()
        height, row_hash, last = self._height, self._hash, dict[JobId, int]()
        done: list[tuple[_Entry, tuple[Event, ...]]] = []
        with _transaction(db):
            epoch = db.execute("select value from meta where name = 'epoch'").fetchone()
            if epoch is None or int(epoch[0]) != self._epoch:
                raise JournalError("another process has taken it over")
            for entry in batch:
                seq = last.get(entry.job_id, self._last.get(entry.job_id, 0))
                if entry.new_job and seq:
                    entry.exists = True
                    continue
                numbered = tuple(
                    dataclasses.replace(e, seq=seq + n, job_id=entry.job_id) for n, e in enumerate(entry.events, 1)
                )
                for event in numbered:
                    height += 1
                    columns = self._columns(height, event)
                    row_hash = _row_hash(row_hash, columns)
                    db.execute("insert into event values (?, ?, ?, ?, ?, ?, ?, ?, ?)", (*columns, row_hash))
                last[entry.job_id] = seq + len(numbered)
                done.append((entry, numbered))
        self._height, self._hash = height, row_hash
        self._last.update(last)
        self._write_head()
        for entry, numbered in done:
            entry.done = numbered
            kept = (*self._newest.pop(entry.job_id, ()), *numbered)
            if kept and not isinstance(kept[-1], _ENDS):  # an ended job's are rarely asked for
                self._newest[entry.job_id] = kept[-_NEWEST_EVENTS:]
        while len(self._newest) > _NEWEST_JOBS:
            del self._newest[next(iter(self._newest))]

    def _columns(self, height: int, event: Event) -> list[Any]:
        at = "" if event.at is None else event.at.astimezone(dt.UTC).isoformat()
        body = json.dumps(event_body(event), separators=(",", ":"), sort_keys=True)
        return [height, event.job_id, event.seq, at, event.kind, body, self._epoch, process_name()]

    # ---- read

    async def read(self, job_id: JobId, after: int = 0) -> tuple[Event, ...]:
        """Return a job's events with a number above `after`."""
        if self.is_writer and after and after >= self._last.get(job_id, after + 1):
            return ()  # nobody else appends
        newest = self._newest.get(job_id)
        if self.is_writer and newest and newest[0].seq <= after + 1 and newest[-1].seq == self._last.get(job_id):
            return tuple(event for event in newest if event.seq > after)
        query = f"select {_COLUMNS} from event where job = ? and seq > ? order by seq"
        rows = await self._in_thread(lambda: self._require().execute(query, (job_id, after)).fetchall())
        return tuple(map(_event, rows))

    async def list_jobs(self) -> tuple[JobId, ...]:
        """Return all jobs, oldest first."""
        query = "select job from event group by job order by min(height)"
        return tuple(JobId(row[0]) for row in await self._in_thread(lambda: self._require().execute(query).fetchall()))

    async def changed_since(self, height: int) -> tuple[int, tuple[JobId, ...]]:
        """Return the number of rows, and the jobs with rows above `height`; fewer rows than that: some were pruned."""

        def look() -> tuple[int, tuple[JobId, ...]]:
            db = self._require()
            (top,) = db.execute("select coalesce(max(height), 0) from event").fetchone()
            rows = db.execute("select job from event where height > ? group by job order by min(height)", (height,))
            return top, tuple(JobId(row[0]) for row in rows)

        return await self._in_thread(look)

    def version(self, job_id: JobId) -> int:
        """Grows with each append to a job by this process."""
        return self._news.version(job_id)

    async def wait_change(self, job_id: JobId, version: int) -> None:
        """Wait until there may be something new; a reader of another process's journal looks again now and then."""
        if self.is_writer or self._news.closed:
            await self._news.wait(job_id, version)
        else:
            self._require()
            await self._clock.sleep(_POLL_SECONDS)

    def notify(self) -> None:
        """Wake everybody in `wait_change`."""
        self._news.notify()

    # ---- upkeep

    async def info(self) -> JournalInfo:
        """Say where the journal is, and how large."""

        def look() -> JournalInfo:
            path = self._path()
            files = [path.with_name(path.name + suffix) for suffix in ("", "-wal", "-shm")]
            jobs, events = self._require().execute("select count(distinct job), count(*) from event").fetchone()
            size = sum(file.stat().st_size for file in files if file.exists())
            return JournalInfo(path=str(path), size=size, jobs=jobs, events=events)

        return await self._in_thread(look)

    async def backup(self, target: str | os.PathLike[str]) -> None:
        """Copy the journal as it stands while it is in use; `target` gets a `.head` beside it, as a journal needs.

        Raises:
            ConfigError: There is such a file already, or it can't be written.
        """

        def copy() -> None:
            path = Path(target)
            if path.exists():
                raise ConfigError(f"{path} exists already", hint="Choose another name for the backup")
            try:
                os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
                with closing(sqlite3.connect(path)) as other:
                    self._require().backup(other)
                head = path.with_name(path.name + ".head")
                write_private(head, self._head_path.read_bytes(), what="backup's head", replace=True)
            except OSError as error:
                raise ConfigError(f"can't back the journal up to {path}: {error.strerror}") from error

        async with self._commit:  # so that file and head belong together
            await self._in_thread(copy)

    async def prune(self, *job_ids: JobId) -> int:
        """Forget jobs for good and make the file smaller; return how many rows went.

        The rest gets a new hash chain. The old head is kept in the same commit, so that a death before the new head is
        outside isn't taken for damage.
        """
        check_writable(is_open=self._db is not None, is_writer=self.is_writer, damage=self.damage)
        gone = 0
        async with self._commit:
            with anyio.CancelScope(shield=True):
                gone = await self._in_thread(lambda: self._prune(frozenset(job_ids)))
        self._news.notify()
        return gone

    def _prune(self, jobs: frozenset[JobId]) -> int:
        db, old = self._require(), (self._height, self._hash)
        height, row_hash, last = 0, _GENESIS_HASH, dict[JobId, int]()
        rows = db.execute(f"select {_COLUMNS} from event order by height").fetchall()
        with _transaction(db):
            db.execute("delete from event")
            for _, *columns in (row for row in rows if row[1] not in jobs):
                height += 1
                row_hash = _row_hash(row_hash, [height, *columns])
                db.execute("insert into event values (?, ?, ?, ?, ?, ?, ?, ?, ?)", (height, *columns, row_hash))
                last[JobId(columns[0])] = columns[1]
            pruned = json.dumps({"height": old[0], "hash": old[1].hex()})
            db.execute("insert or replace into meta values ('pruned', ?)", (pruned,))
        self._height, self._hash, self._last = height, row_hash, last
        self._write_head()
        db.execute("vacuum")
        return len(rows) - height

    def _died_pruning(self, head: tuple[int, bytes]) -> bool:
        """Say whether the head outside is the one from before the last pruning."""
        row = self._require().execute("select value from meta where name = 'pruned'").fetchone()
        return row is not None and json.loads(row[0]) == {"height": head[0], "hash": head[1].hex()}

    # ---- damage

    async def reconcile(self) -> None:
        """Keep a damaged journal's sound beginning, set the file aside, and mark unfinished jobs as suspect."""
        if self.damage is None:
            return
        await self._in_thread(self._rebuild)
        for job_id in await self.list_jobs():
            if not fold(await self.read(job_id)).status.is_terminal:
                await self.append(job_id, JobReconciled())

    def _rebuild(self) -> None:
        path, owner = self.path, self._owner
        if path is None or owner is None or not self.is_writer:
            raise JournalError("only the process that holds the journal can reconcile it")
        rows: list[tuple[Any, ...]] = []
        if self._db is not None:
            with suppress(sqlite3.DatabaseError):
                sound = sum(1 for _ in self._sound_rows())
                query = f"select {_COLUMNS}, hash from event where height <= ? order by height"
                rows = self._db.execute(query, (sound,)).fetchall()
            with suppress(sqlite3.Error):
                self._db.close()
        _set_aside(path)
        self._head_path.unlink(missing_ok=True)
        self._db, self.damage = _connect(path), None
        self._begin_anew()
        self._prepare(owner)
        with _transaction(self._require()) as db:
            db.executemany("insert into event values (?, ?, ?, ?, ?, ?, ?, ?, ?)", rows)
            db.execute("update meta set value = '1' where name = 'reconciled'")
        for height, row_hash, job, seq in self._sound_rows():
            self._height, self._hash = height, row_hash
            self._last[job] = seq
        self._reconciled = True
        self._write_head()

    # ---- helpers

    @property
    def _head_path(self) -> Path:
        path = self._path()
        return path.with_name(path.name + ".head")

    def _path(self) -> Path:
        if self.path is None:
            raise JournalError("the journal is not open")
        return self.path

    def _require(self) -> sqlite3.Connection:
        if self._db is None:
            check_writable(is_open=False, is_writer=True, damage=self.damage)
            raise ClosedError("the journal is not open")
        return self._db

    async def _in_thread(self, work: Callable[[], _T]) -> _T:
        def locked() -> _T:
            with self._mutex:
                return work()

        try:
            return await anyio.to_thread.run_sync(locked)
        except sqlite3.Error as error:
            raise JournalError(f"the journal {self.path} can't be read: {error}") from error

    def _write_head(self) -> None:
        """Put height and head where the database's damage doesn't reach them."""
        text = json.dumps({"height": self._height, "hash": self._hash.hex()}).encode()
        temporary = self._head_path.with_name(self._head_path.name + ".new")
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with closing(os.fdopen(handle, "wb")) as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self._head_path)
        _sync_dir(self._head_path.parent)


def _file_name(owner: Owner) -> str:
    return f"{owner.chain_id}-{owner.genesis.removeprefix('0x')[:16]}-{owner.wallets[0].lower()}.sqlite"


def _connect(path: Path) -> sqlite3.Connection:
    os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))  # SQLite gives its -wal and -shm the same mode
    require_private(path, what="journal")
    db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=10)
    try:
        db.execute("pragma journal_mode = wal")
        db.execute("pragma synchronous = full")
    except BaseException:
        db.close()
        raise
    return db


class _transaction:
    """`begin immediate` … commit, or rollback."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def __enter__(self) -> sqlite3.Connection:
        self._db.execute("begin immediate")
        return self._db

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            self._db.execute("rollback" if kind else "commit")
        except sqlite3.Error:
            if not kind:
                with suppress(sqlite3.Error):
                    self._db.execute("rollback")
                raise


def _row_hash(previous: bytes, columns: list[Any]) -> bytes:
    return hashlib.sha256(previous + json.dumps(columns, ensure_ascii=True).encode()).digest()


def _event(row: tuple[Any, ...]) -> Event:
    _, job, seq, at, kind, text, *_ = row
    try:
        body = dict(json.loads(text))
    except (ValueError, TypeError):
        body = {"unreadable": str(text)}
    return event_from_json({**body, "job_id": job, "seq": seq, "at": at or None, "kind": kind})


def _read_head(path: Path) -> tuple[int, bytes] | None:
    try:
        value = json.loads(path.read_bytes())
        return int(value["height"]), bytes.fromhex(value["hash"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _set_aside(path: Path) -> None:
    """Keep the damaged files under another name, for people."""
    number = next(n for n in range(1, 10_000) if not path.with_name(f"{path.name}.damaged-{n}").exists())
    for suffix in ("", "-wal", "-shm"):
        source = path.with_name(path.name + suffix)
        if source.exists():
            shutil.move(source, path.with_name(f"{path.name}.damaged-{number}{suffix}"))


def _sync_dir(path: Path) -> None:
    if os.name == "posix":
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
