"""A disk that fails from the n-th write on, for some time: below SQLite's commits and the files beside."""

import contextlib
import errno
import sqlite3
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any
from unittest import mock

from tests.sim.loop import current
from zg_async.jobs import sqlite
from zg_async.jobs.sqlite import BEAT_SECONDS, SqliteStore
from zg_async.transport import sqlite_outbox

if TYPE_CHECKING:
    from tests.sim.world import World


class Disk:
    """Where the user's processes keep journal and outbox."""

    def __init__(self, world: "World") -> None:
        self._world = world
        self._writes = 0
        self._fails_until = 0.0
        self._how = ""

    def write(self) -> None:
        """Count one write.

        Raises:
            OSError: The disk fails.
        """
        world = self._world
        if current.get() is None or world.chaos.healed:  # nobody's process: the judge reads
            return
        self._writes += 1
        now = world.loop.now
        for spell in world.plan.of("disk"):
            if spell.start == self._writes:
                self._fails_until, self._how = now + spell.end, spell.how
                world.chaos.fired.append(f"disk {spell.how} for {spell.end:.0f} s from write {self._writes} on")
                world.chaos.blows.append(("chain", now, now + spell.end + 3 * BEAT_SECONDS))
                world.record.reach(f"disk {spell.how}")
        if now < self._fails_until:
            code = errno.ENOSPC if self._how == "full" else errno.EIO
            raise OSError(code, "the disk fails")

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """Put it below the stores."""
        with contextlib.ExitStack() as stack:
            if self._world.plan.of("disk"):
                for module in (sqlite, sqlite_outbox):
                    stack.enter_context(mock.patch.object(module, "_transaction", self._transaction(module)))
                for name in ("_write_head", "_write_lease"):
                    work = self._file(getattr(SqliteStore, name))
                    stack.enter_context(mock.patch.object(SqliteStore, name, work))
            yield

    def _file(self, work: Callable[..., Any]) -> Callable[..., Any]:
        def write(*arguments: Any) -> Any:
            self.write()
            return work(*arguments)

        return write

    def _transaction(self, module: Any) -> Any:
        whole = module._transaction

        @contextlib.contextmanager
        def transaction(db: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
            with whole(db):
                yield db
                try:
                    self.write()
                except OSError as error:
                    full = error.errno == errno.ENOSPC
                    text = "database or disk is full" if full else "disk I/O error"
                    raise sqlite3.OperationalError(text) from None

        return transaction
