"""The outbox in one SQLite file, for any number of programs of this user.

Every lane is a hash chain of entries. Its height, head and next nonce also stand in a small head file beside the
database, written with fsync after a commit that signs and before anything is sent: SQLite's write-ahead log can lose
committed rows on damage without an error, and a restored copy is shorter too. When a lane is opened and its chain is
broken, or doesn't pass through the head, a `loss` entry is appended that goes on from the last sound height; what lies
between is ignored for ever. A database that can't be read at all is put aside and a new one begun; the head files then
give each lane its loss.

Deleting database *and* heads, or restoring both from one backup, can't be noticed here; the chain's nonce shows it
(see `lane`).

Beside it lies each lane's audit log (`audit`), which is written as entries are taken in.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, TypeVar

import anyio
import anyio.to_thread

from zg_async.errors import ClosedError, JournalError
from zg_async.logs import get_logger
from zg_async.paths import make_private_dir, require_private
from zg_async.transport.audit import AuditFile, entry_line, signature_line
from zg_async.transport.book import LaneBook, Misfit, link
from zg_async.transport.rows import Entry, LaneId

T = TypeVar("T")
_log = get_logger("zg_async.outbox")
_SIGNS: Final = frozenset({"signed", "version", "loss", "reconciled"})
_SLOT: Final = 256
_VERSION: Final = 1
_BUSY: Final = 20.0
_SCHEMA: Final = (
    "CREATE TABLE IF NOT EXISTS entry (lane TEXT NOT NULL, height INTEGER NOT NULL, resumes INTEGER,"
    " body BLOB NOT NULL, hash TEXT NOT NULL, PRIMARY KEY (lane, height)) WITHOUT ROWID"
)


class SqliteOutbox:
    """An outbox in a file. Open it once per process and share it between brokers."""

    def __init__(self, path: str | Path) -> None:
        """Name the file; it is created at the first use, readable by its owner only.

        Args:
            path: The database. Head files lie beside it under its name and `.head-…`.
        """
        self._path = Path(path)
        self._books: dict[LaneId, LaneBook] = {}
        self._untold: dict[LaneId, list[tuple[int, bytes, str]]] = {}
        """Entries that have been taken in and may be missing in the audit log."""
        self._db: sqlite3.Connection | None = None
        self._behind: set[LaneId] = set()
        """Lanes whose head file couldn't be written after a commit: nothing of them may be sent before it is."""
        self._one = anyio.CapacityLimiter(1)
        self._closed = False

    async def open_lane(self, lane: LaneId) -> LaneBook:
        """Load and check a lane; see `Outbox.open_lane`."""
        return await self._run(lambda: self._open(lane))

    async def refresh(self, lane: LaneId) -> LaneBook:
        """Take in what other programs appended; see `Outbox.refresh`."""
        return await self._run(lambda: self._refresh(lane))

    async def append(self, lane: LaneId, entries: Sequence[Entry]) -> bool:
        """Record entries durably; see `Outbox.append`."""
        return await self._run(lambda: self._append(lane, entries))

    async def note_signature(self, lane: LaneId, at: float, fields: Mapping[str, str | None]) -> None:
        """Write a signature to the audit log; see `Outbox.note_signature`."""
        await self._run(lambda: self._audit_file(lane).append([signature_line(lane, at, fields)]))

    def audit_path(self, lane: LaneId) -> Path:
        """Return where a lane's audit log lies."""
        return self._path.with_name(f"{self._path.stem}.audit-{lane}.jsonl")

    async def aclose(self) -> None:
        """Close the file. Idempotent."""
        self._closed = True
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(self._close, limiter=self._one)

    async def _run(self, work: Callable[[], T]) -> T:
        if self._closed:
            raise ClosedError("the outbox is closed")
        return await anyio.to_thread.run_sync(self._translated, work, limiter=self._one)

    # --- in the worker thread, one at a time --------------------------------------------------------------------------

    def _translated(self, work: Callable[[], T]) -> T:
        try:
            return work()
        except _BrokenError as error:
            raise JournalError(str(error), hint="Nothing was signed. Restart to reconcile with the chain") from None
        except (sqlite3.Error, OSError) as error:
            raise JournalError(
                f"the outbox {self._path} can't be used: {error}",
                hint="Nothing was signed or sent. Is the disk full, or read-only?",
            ) from error

    def _close(self) -> None:
        if self._db is not None:
            self._db.close()
            self._db = None

    def _connection(self) -> sqlite3.Connection:
        if self._db is None:
            make_private_dir(self._path.parent)
            try:
                self._db = self._connect()
            except sqlite3.OperationalError:
                raise
            except sqlite3.DatabaseError as error:  # damaged beyond reading
                self._put_aside(error)
                self._db = self._connect()
        return self._db

    def _connect(self) -> sqlite3.Connection:
        with contextlib.suppress(FileExistsError):
            os.close(os.open(self._path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        require_private(self._path, what="outbox")
        db = sqlite3.connect(self._path, timeout=_BUSY, isolation_level=None, check_same_thread=False)
        db.text_factory = lambda text: text.decode(errors="replace")
        try:
            db.execute("PRAGMA journal_mode=WAL")
            db.execute("PRAGMA synchronous=FULL")
            if db.execute("PRAGMA user_version").fetchone()[0] > _VERSION:
                raise JournalError(f"{self._path} was written by a newer version", hint="Upgrade zg-async")
            db.execute(_SCHEMA)
            db.execute(f"PRAGMA user_version={_VERSION}")
            db.execute("SELECT max(height) FROM entry").fetchone()
        except BaseException:
            db.close()
            raise
        return db

    def _put_aside(self, error: sqlite3.Error) -> None:
        self._close()
        aside = next(p for n in range(1, 10_000) if not (p := self._path.with_suffix(f".damaged-{n}")).exists())
        _log.error("the outbox %s can't be read (%s) and was put aside as %s", self._path, error, aside)
        for ending in ("-wal", "-shm"):
            with contextlib.suppress(FileNotFoundError):
                os.replace(f"{self._path}{ending}", f"{aside}{ending}")
        os.replace(self._path, aside)

    def _open(self, lane: LaneId) -> LaneBook:
        if (book := self._books.get(lane)) is not None:
            return self._refresh(lane)
        book = LaneBook(lane)
        try:
            why = self._examine(book)
        except sqlite3.OperationalError:
            raise
        except sqlite3.DatabaseError as error:  # damaged beyond reading
            self._put_aside(error)
            why = self._examine(book)
        if why is not None:
            self._record_loss(book, why)
        elif book.height:
            self._write_head(book)  # a crash may have come between commit and head
        self._tell(book)
        self._books[lane] = book
        return book

    def _refresh(self, lane: LaneId) -> LaneBook:
        book = self._books.get(lane)
        if book is None:
            return self._open(lane)
        self._read(book)
        if lane in self._behind:
            self._write_head(book)
        self._tell(book)
        return book

    def _examine(self, book: LaneBook) -> str | None:
        """Read a lane from its beginning; say what is wrong with it."""
        self._reset(book)
        try:
            self._read(book)
        except _BrokenError as error:
            return str(error)
        head = self._head(book.lane).read()
        if head is None:
            return None
        if head == _UNREADABLE:
            return "its head file can't be read"
        found = self._connection().execute(
            "SELECT hash FROM entry WHERE lane=? AND height=?", (str(book.lane), head.height)
        )
        if (found.fetchone() or ("",))[0] == head.hash and head.height <= book.height:
            return None
        return f"{head.height} entries were recorded, the outbox holds {book.height} of them or others"

    def _read(self, book: LaneBook) -> None:
        """Fold in what is above the book's height, link by link."""
        rows = (
            self._connection()
            .execute(
                "SELECT height, resumes, body, hash FROM entry WHERE lane=? AND height>? ORDER BY height",
                (str(book.lane), book.height),
            )
            .fetchall()
        )
        resumed = {height: resumes for height, resumes, _, _ in rows if isinstance(resumes, int)}
        if any(resumes < book.height for resumes in resumed.values()) and book.height:
            self._reset(book)  # another program went on from below what we took for sound
            self._read(book)
            return
        for height, resumes, body, digest in rows:
            if any(low < height < high for high, low in resumed.items()):
                continue
            previous = height - 1 if resumes is None else resumes
            if not (isinstance(body, bytes) and isinstance(digest, str) and isinstance(previous, int)):
                raise _BrokenError(f"entry {height} isn't what was written")
            if previous != book.height or link(book.head, book.lane, height, body) != digest:
                raise _BrokenError(f"the chain of entries is broken at {height}")
            self._take(book, height, body, digest)

    def _record_loss(self, book: LaneBook, why: str) -> None:
        with _transaction(self._connection()) as db:
            if self._examine(book) is None:  # another program was faster
                return
            head = self._head(book.lane).read()
            top = db.execute("SELECT max(height) FROM entry WHERE lane=?", (str(book.lane),)).fetchone()[0] or 0
            entry = {"kind": "loss", "reason": why, "next_nonce": head.next_nonce if head is not None else None}
            first = max(top, head.height if head is not None else 0) + 1
            planned = book.plan([entry], height=first)
            _insert(db, book.lane, planned, resumes=book.height)
        _log.error("outbox lane %s: %s; reconciling before anything is signed", book.lane, why)
        for height, body, digest in planned:
            self._take(book, height, body, digest)
        self._write_head(book)

    def _append(self, lane: LaneId, entries: Sequence[Entry]) -> bool:
        book = self._open(lane)
        with _transaction(self._connection()) as db:
            self._read(book)
            try:
                planned = book.plan(entries)
            except Misfit:
                return False
            _insert(db, lane, planned)
        for height, body, digest in planned:
            self._take(book, height, body, digest)
        if any(entry["kind"] in _SIGNS for entry in entries):
            self._behind.add(lane)
            self._write_head(book)
        self._tell(book)
        return True

    def _take(self, book: LaneBook, height: int, body: bytes, digest: str) -> None:
        book.take(height, body, digest)
        self._untold.setdefault(book.lane, []).append((height, body, digest))

    def _reset(self, book: LaneBook) -> None:
        book.reset()
        self._untold.pop(book.lane, None)

    def _audit_file(self, lane: LaneId) -> AuditFile:
        make_private_dir(self._path.parent)
        return AuditFile(self.audit_path(lane))

    def _tell(self, book: LaneBook) -> None:
        """Write to the audit log what isn't there yet."""
        untold = self._untold.get(book.lane)
        if not untold:
            return
        file, lines = self._audit_file(book.lane), []
        with _transaction(self._connection()):  # programs take turns
            told = file.links_from(untold[0][0])
            for height, body, digest in untold:
                if digest not in told:
                    entry = json.loads(body)
                    row = book.attempt(entry["key"], entry["attempt"]) if "attempt" in entry else None
                    lines.append(entry_line(book.lane, height, digest, entry, row))
            file.append(lines)
        untold.clear()

    def _head(self, lane: LaneId) -> "_Head":
        return _Head(self._path.with_name(f"{self._path.name}.head-{lane}"))

    def _write_head(self, book: LaneBook) -> None:
        with _transaction(self._connection()):  # programs take turns: heads never go back
            self._read(book)
            self._head(book.lane).write(_HeadFields(height=book.height, hash=book.head, next_nonce=book.next_nonce))
        self._behind.discard(book.lane)


class _BrokenError(Exception):
    """A lane's chain doesn't hold."""


@contextlib.contextmanager
def _transaction(db: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
    db.execute("BEGIN IMMEDIATE")
    try:
        yield db
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise


def _insert(
    db: sqlite3.Connection, lane: LaneId, planned: Sequence[tuple[int, bytes, str]], *, resumes: int | None = None
) -> None:
    rows = [
        (str(lane), height, resumes if number == 0 else None, body, digest)
        for number, (height, body, digest) in enumerate(planned)
    ]
    db.executemany("INSERT INTO entry VALUES (?, ?, ?, ?, ?)", rows)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _HeadFields:
    height: int
    hash: str
    next_nonce: int | None


_UNREADABLE: Final = _HeadFields(height=0, hash="", next_nonce=None)


class _Head:
    """A head file: two slots, written in turn, so that a torn write leaves the other one."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> _HeadFields | None:
        """Return the newest head; None before the first one was written whole."""
        try:
            data = self._path.read_bytes()
        except FileNotFoundError:
            return None
        heads = [head for head in map(_parse_slot, _slots(data)) if head is not None]
        newest = max(heads, key=lambda head: head.height, default=None)
        return _UNREADABLE if newest is None and len(data) > _SLOT else newest

    def write(self, head: _HeadFields) -> None:
        body = json.dumps([head.height, head.hash, head.next_nonce]).encode()
        slot = (hashlib.sha256(body).hexdigest().encode() + body).ljust(_SLOT)
        file = os.open(self._path, os.O_CREAT | os.O_RDWR | getattr(os, "O_BINARY", 0), 0o600)
        try:
            parsed = [_parse_slot(old) for old in _slots(os.read(file, 2 * _SLOT))]
            heights = [-1 if old is None else old.height for old in parsed]
            os.lseek(file, _SLOT * heights.index(min(heights)), os.SEEK_SET)
            os.write(file, slot)
            os.fsync(file)
        finally:
            os.close(file)


def _slots(data: bytes) -> tuple[bytes, bytes]:
    return data[:_SLOT], data[_SLOT : 2 * _SLOT]


def _parse_slot(slot: bytes) -> _HeadFields | None:
    body = slot[64:].rstrip()
    if len(slot) != _SLOT or hashlib.sha256(body).hexdigest().encode() != slot[:64]:
        return None
    height, digest, next_nonce = json.loads(body)
    return _HeadFields(height=height, hash=digest, next_nonce=next_nonce)
