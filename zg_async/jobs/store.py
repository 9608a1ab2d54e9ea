"""The journal: every job's events in order, durable before anybody acts on them.

Rules that each store keeps (tests/unit/test_jobs_store.py runs them on all):
an append returns once its events are durable; a journal belongs to one chain and wallet; one process at a time writes,
others may read; each row carries the writer's epoch, and a writer that was superseded fails at its next row; a journal
that lost or changed rows says so when it is opened and takes no writes until it is reconciled.
"""

import dataclasses
import socket
from collections.abc import Iterable
from os import getpid
from typing import Protocol

import anyio

from zg_async.errors import ClosedError, JournalError
from zg_async.jobs.events import Event, JobReconciled
from zg_async.jobs.state import fold
from zg_async.wire.records import Address, JobId


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """To whom a journal belongs."""

    chain_id: int
    genesis: str
    """Hash of block 0: a devnet started anew is another chain."""
    wallets: tuple[Address, ...]
    """The first one names a new journal; an existing one must be named by any of them."""


class Store(Protocol):
    """Where a runner keeps its journal."""

    @property
    def is_writer(self) -> bool:
        """Whether this process may append; another one does otherwise."""
        ...

    @property
    def damage(self) -> str | None:
        """What is wrong with the journal; None: nothing."""
        ...

    @property
    def was_reconciled(self) -> bool:
        """Whether this journal ever lost rows."""
        ...

    async def open(self, owner: Owner) -> None:
        """Open, check and, if no other process has it, take the journal for writing.

        Raises:
            JournalError: It belongs to another chain or wallet, or was written by a newer version.
        """
        ...

    async def aclose(self) -> None:
        """Close it. Idempotent."""
        ...

    async def create(self, job_id: JobId, *events: Event) -> tuple[Event, ...] | None:
        """Append a new job's first events, all or none; None: the job exists already."""
        ...

    async def append(self, job_id: JobId, *events: Event) -> tuple[Event, ...]:
        """Make events durable, all or none, and return them numbered.

        Raises:
            JournalError: They could not be recorded; whatever they announce must not happen.
        """
        ...

    async def read(self, job_id: JobId, after: int = 0) -> tuple[Event, ...]:
        """Return a job's events with a number above `after`."""
        ...

    async def list_jobs(self) -> tuple[JobId, ...]:
        """Return all jobs, oldest first."""
        ...

    def version(self, job_id: JobId) -> int:
        """Read it before reading a job's events, and wait for the next one with `wait_change`."""
        ...

    async def wait_change(self, job_id: JobId, version: int) -> None:
        """Wait until there may be something newer of a job than `version` to read.

        Raises:
            ClosedError: The store was closed.
        """
        ...

    def notify(self) -> None:
        """Wake everybody in `wait_change`."""
        ...

    async def hold(self) -> bool:
        """Keep the right to write, or wait for it.

        Returns:
            True once this store may write and couldn't before, False once another one has taken the journal over.
        """
        ...

    async def reconcile(self) -> None:
        """Keep a damaged journal's sound beginning and mark its unfinished jobs as suspect.

        A suspect job looks for its own traces (outbox, chain, the provider's tasks) before it creates anything.
        """
        ...


class News:
    """Wakes readers; what they woke for they read themselves."""

    def __init__(self) -> None:
        """Begin open."""
        self._common = 0
        self._versions: dict[JobId, int] = {}
        """Of the jobs that anybody ever followed: the others need none."""
        self._waiting: dict[JobId, anyio.Event] = {}
        self.closed = False

    def version(self, job_id: JobId) -> int:
        """Return a number that grows with each notification about a job, from now on."""
        return self._common + self._versions.setdefault(job_id, 0)

    def notify(self, job_ids: Iterable[JobId] | None = None) -> None:
        """Wake those who wait for news of some jobs; None: all. A batch has as many readers as jobs."""
        if job_ids is None:
            self._common += 1
            job_ids = tuple(self._waiting)
        for job_id in job_ids:
            if job_id in self._versions:
                self._versions[job_id] += 1
            if (event := self._waiting.pop(job_id, None)) is not None:
                event.set()

    def close(self) -> None:
        """Wake all, for good."""
        self.closed = True
        self.notify()

    async def wait(self, job_id: JobId, version: int) -> None:
        """Wait for a notification about a job after `version`."""
        if not self.closed and version == self.version(job_id):
            await self._waiting.setdefault(job_id, anyio.Event()).wait()
        if self.closed:
            raise ClosedError("the journal is closed", hint="Enter a JobRunner again and attach to the job by its id")


def process_name() -> str:
    """Name this process for people who ask who drives a journal."""
    return f"{socket.gethostname()}:{getpid()}"


def check_writable(*, is_open: bool, is_writer: bool, damage: str | None) -> None:
    """Raise unless rows may be appended."""
    if damage is not None:
        raise JournalError(
            f"the journal is damaged: {damage}",
            hint="Nothing is signed until JobRunner.reconcile() has compared it with chain and providers",
        )
    if not is_open:
        raise ClosedError("the journal is not open")
    if not is_writer:
        raise JournalError(
            "another process drives this journal", hint="Attach to its jobs here, or end the other process first"
        )


class Journal:
    """What several `MemoryStore`s share, as several processes share a file."""

    def __init__(self) -> None:
        """Begin empty."""
        self.rows: list[Event] = []
        self.owner: Owner | None = None
        self.writer: object | None = None
        self.epoch = 0
        self.reconciled = False


class MemoryStore:
    """A journal that ends with the process: for tests, and for runs that nobody will resume."""

    def __init__(self, journal: Journal | None = None) -> None:
        """Make a store; pass a `Journal` to share it."""
        self._journal = journal or Journal()
        self._news = News()
        self._open = False
        self._epoch = 0
        self.damage: str | None = None

    @property
    def is_writer(self) -> bool:
        """Whether this store may append."""
        return self._open and self._journal.writer is self

    @property
    def was_reconciled(self) -> bool:
        """Whether the journal ever lost rows."""
        return self._journal.reconciled

    async def open(self, owner: Owner) -> None:
        """Open the journal, for writing if nobody else does."""
        known = self._journal.owner = self._journal.owner or owner
        check_owner(known.chain_id, known.genesis, known.wallets[0], owner)
        self._open = True
        if self._journal.writer is None:
            self._journal.writer = self
            self._journal.epoch += 1
            self._epoch = self._journal.epoch

    async def aclose(self) -> None:
        """Let go of the journal."""
        if self.is_writer:
            self._journal.writer = None
        self._open = False
        self._news.close()

    async def create(self, job_id: JobId, *events: Event) -> tuple[Event, ...] | None:
        """Append a new job's first events."""
        return None if await self.read(job_id) else await self.append(job_id, *events)

    async def append(self, job_id: JobId, *events: Event) -> tuple[Event, ...]:
        """Append events."""
        check_writable(is_open=self._open, is_writer=self.is_writer, damage=self.damage)
        seq = sum(row.job_id == job_id for row in self._journal.rows)
        numbered = tuple(dataclasses.replace(e, seq=seq + n, job_id=job_id) for n, e in enumerate(events, 1))
        self._journal.rows.extend(numbered)
        self._news.notify([job_id])
        return numbered

    async def read(self, job_id: JobId, after: int = 0) -> tuple[Event, ...]:
        """Return a job's events."""
        return tuple(row for row in self._journal.rows if row.job_id == job_id and row.seq > after)

    async def list_jobs(self) -> tuple[JobId, ...]:
        """Return all jobs."""
        return tuple(dict.fromkeys(row.job_id for row in self._journal.rows))

    def version(self, job_id: JobId) -> int:
        """Grows with each append to a job through this store."""
        return self._news.version(job_id)

    async def wait_change(self, job_id: JobId, version: int) -> None:
        """Wait for an append to a job through this store after `version`."""
        await self._news.wait(job_id, version)

    def notify(self) -> None:
        """Wake everybody in `wait_change`."""
        self._news.notify()

    async def hold(self) -> bool:
        """Wait for ever: in one process nobody dies or hangs."""
        await anyio.sleep_forever()
        return False

    async def reconcile(self) -> None:
        """Mark all unfinished jobs as suspect."""
        self.damage, self._journal.reconciled = None, True
        for job_id in await self.list_jobs():
            if not fold(await self.read(job_id)).status.is_terminal:
                await self.append(job_id, JobReconciled())


def check_owner(chain_id: int, genesis: str, wallet: str, owner: Owner) -> None:
    """Raise when a journal made for (chain id, genesis, wallet) is opened by somebody else."""
    if (chain_id, genesis) != (owner.chain_id, owner.genesis):
        raise JournalError(
            f"the journal belongs to chain {chain_id} with genesis {genesis[:12]}…, "
            f"this is chain {owner.chain_id} with genesis {owner.genesis[:12]}…",
            hint="Open it with the broker it was made with, or use another file",
        )
    if wallet not in owner.wallets:
        raise JournalError(
            f"the journal belongs to wallet {wallet}, which this broker doesn't have",
            hint="Open it with that wallet's key, or use another file",
        )
