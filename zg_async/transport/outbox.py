"""The outbox: every signed transaction, recorded before it is sent.

The promises (each with a test):

- Nothing is sent before its signed bytes, nonce and hash are durable.
- The same key gives the same row, hence the same bytes and hash; the same key with another effect is an error.
- Only a fee bump makes another version, with the same nonce, recorded before it is sent. No hash is ever forgotten.
- Several programs on one store share one nonce lane: an entry that lost a race is refused, and the loser looks again.
- A lane that is shorter or other than its head outside the store says is a *loss*. Until it is reconciled with the
  chain nothing is signed in it, except transfers of nothing that close nonces whose transactions are lost.

`MemoryOutbox` keeps the first three for as long as the process lives; `sqlite_outbox.SqliteOutbox` keeps all.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from zg_async.transport.book import LaneBook, Misfit
from zg_async.transport.rows import Entry, LaneId


class Outbox(Protocol):
    """Lanes of entries. All questions are answered by the lane's `LaneBook`."""

    async def open_lane(self, lane: LaneId) -> LaneBook:
        """Load a lane, check it, and return its book, which later calls keep up to date.

        Raises:
            JournalError: The store can't be read.
        """
        ...

    async def refresh(self, lane: LaneId) -> LaneBook:
        """Take in what other programs have appended since.

        Raises:
            JournalError: The store can't be read.
        """
        ...

    async def append(self, lane: LaneId, entries: Sequence[Entry]) -> bool:
        """Record entries, all or none, durably.

        Returns:
            False when an entry doesn't fit any more: the book has been refreshed, look again.

        Raises:
            JournalError: They can't be recorded, or the lane has a loss. Nothing may be sent then.
        """
        ...

    async def note_signature(self, lane: LaneId, at: float, fields: Mapping[str, str | None]) -> None:
        """Write a signature that isn't a transaction's to the audit log, before it is made.

        Raises:
            JournalError: It can't be written. Nothing may be signed then.
        """
        ...

    def audit_path(self, lane: LaneId) -> Path | None:
        """Return where a lane's audit log lies; None: there is none."""
        ...

    async def aclose(self) -> None:
        """Close the store. Idempotent."""
        ...


class MemoryOutbox:
    """An outbox for tests and for programs that need none of its promises after their end."""

    def __init__(self) -> None:
        """Make an empty outbox."""
        self._books: dict[LaneId, LaneBook] = {}

    async def open_lane(self, lane: LaneId) -> LaneBook:
        """Return the lane's book."""
        return self._books.setdefault(lane, LaneBook(lane))

    async def refresh(self, lane: LaneId) -> LaneBook:
        """Return the lane's book."""
        return await self.open_lane(lane)

    async def append(self, lane: LaneId, entries: Sequence[Entry]) -> bool:
        """Record entries, all or none; False when one doesn't fit."""
        book = await self.open_lane(lane)
        try:
            planned = book.plan(entries)
        except Misfit:
            return False
        for height, body, digest in planned:
            book.take(height, body, digest)
        return True

    async def note_signature(self, lane: LaneId, at: float, fields: Mapping[str, str | None]) -> None:
        """Do nothing: it has no audit log."""

    def audit_path(self, lane: LaneId) -> Path | None:  # noqa: ARG002
        """Return None: it has no audit log."""
        return None

    async def aclose(self) -> None:
        """Do nothing: another `Chain` of this process may go on with it."""
