"""One batch, drained by several processes of one machine that share a folder.

Each worker drives a journal of its own in the folder. Before a job is submitted it is claimed: a file, made whole or
not at all, names the journal that has it, for ever. All workers look into all journals, and take one over whose
process has died or hangs, by that journal's lease and epoch. So journals change hands, claims never do: a job is in
one journal, and a journal has one driver. Nobody guards here what no journal accounts for: a dead worker's tasks would
be adopted before its journal is.
"""

import hashlib
import itertools
import os
import secrets
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Final

import anyio
import anyio.to_thread

from zg_async.errors import ConfigError, JournalError
from zg_async.file_lock import Lock, take_lock
from zg_async.jobs.batch import Batch, BatchResult, BatchRow, each_spec, run_one
from zg_async.jobs.handle import JobHandle
from zg_async.jobs.policies import Approve
from zg_async.jobs.runner import JobRunner
from zg_async.jobs.spec import JobSpec
from zg_async.jobs.sqlite import SqliteStore
from zg_async.paths import make_private_dir

if TYPE_CHECKING:
    from zg_async.broker import Broker

AT_ONCE: Final = 10
_LOOK_SECONDS: Final = 1.0
_READY: Final = ".ready"


async def drain_batch(
    broker: "Broker",
    batch: Batch,
    folder: str | os.PathLike[str],
    *,
    at_once: int = AT_ONCE,
    approve: Approve | None = None,
) -> BatchResult:
    """Work on a batch together with other processes that call this with the same batch and folder.

    Each job is run by one of them. When one dies, another goes on with what it had begun; started again, it goes on by
    itself. All have to have the same wallets and `state_dir`, so that they share the outbox.

    Args:
        broker: An entered broker with the wallets of the jobs.
        batch: The matrix.
        folder: Where the workers' journals and claims lie; on a local disk.
        at_once: How many jobs this process may have under way.
        approve: As for `JobRunner`.

    Returns:
        One row per job of the whole batch, once all have ended, whoever ran it.

    Raises:
        ConfigError: The matrix can't be used, or has `max_spend`, which only one process could hold to.
        JournalError: A journal is damaged.
    """
    if batch.max_spend is not None:
        raise ConfigError(
            "several processes can't hold one cap of a batch",
            hint='Cap each job with job={"max_spend": ...}, or each wallet with SpendLimits(wallet_per_day=...)',
        )
    async with AsyncExitStack() as stack:
        worker = _Worker(broker, folder, stack, approve)
        await worker.take_journal()
        rows: dict[int, BatchRow] = {}

        async def own(number: int, spec: JobSpec) -> None:
            if await worker.claim(spec) == worker.name:
                rows[number] = await run_one(worker.runner, spec)

        async def of_others(number: int, spec: JobSpec) -> None:
            if number not in rows:
                runner = await worker.runner_of(await worker.claim(spec))
                rows[number] = await run_one(runner, spec, find=lambda: _follow(runner, spec))

        async with anyio.create_task_group() as group:
            group.start_soon(worker.look_after_others)
            for work in (own, of_others):
                await each_spec(batch, at_once, work)
            group.cancel_scope.cancel()
    return BatchResult(tuple(rows[number] for number in sorted(rows)))


class _Worker:
    """One process: its own journal, and those of others that it looks into."""

    def __init__(
        self, broker: "Broker", folder: str | os.PathLike[str], stack: AsyncExitStack, approve: Approve | None
    ) -> None:
        self._broker = broker
        self._folder = Path(folder).absolute()
        self._stack = stack
        self._approve = approve
        self._runners: dict[str, JobRunner] = {}
        self._opening = anyio.Lock()
        self.name = ""

    @property
    def runner(self) -> JobRunner:
        """What drives this worker's own journal."""
        return self._runners[self.name]

    async def take_journal(self) -> None:
        """Drive the first journal that is no living worker's: one that a dead worker left, or a new one.

        A worker's journal is locked apart from its lease, so that nobody looks into one that is being made.
        """
        for number in itertools.count(1):
            name = f"worker-{number}"
            runner = self._make(name)
            async with AsyncExitStack() as opened:
                lock = await anyio.to_thread.run_sync(_lock, self._folder / f"{name}.worker")
                if lock is None:
                    continue
                opened.callback(lock.close)
                await opened.enter_async_context(runner)
                if runner.is_driver:  # else another worker has taken it over
                    self.name, self._runners[name] = name, runner
                    await anyio.Path(self._folder / f"{name}{_READY}").touch()
                    await self._stack.enter_async_context(opened.pop_all())
                    return

    async def claim(self, spec: JobSpec) -> str:
        """Take a job for this worker's journal unless one has it; return which."""
        path = self._folder / "claims" / hashlib.sha256(str(spec.key).encode()).hexdigest()
        return await anyio.to_thread.run_sync(_claim, path, self.name)

    async def look_after_others(self) -> None:
        """Look into each journal as soon as there is one, so that it is driven however its worker ends."""
        while True:
            async for path in anyio.Path(self._folder).glob(f"*{_READY}"):
                await self.runner_of(path.name.removesuffix(_READY))
            await self._broker.clock.sleep(_LOOK_SECONDS)

    async def runner_of(self, name: str) -> JobRunner:
        """Return a runner on a journal, which drives it once nobody else does."""
        async with self._opening:
            if name not in self._runners:
                self._runners[name] = await self._stack.enter_async_context(self._make(name))
        return self._runners[name]

    def _make(self, name: str) -> JobRunner:
        store = SqliteStore(self._folder / f"{name}.sqlite", clock=self._broker.clock)
        return JobRunner(self._broker, store, guard=False, approve=self._approve)


def _lock(path: Path) -> Lock | None:
    make_private_dir(path.parent)
    return take_lock(path)


def _claim(path: Path, name: str) -> str:
    """Make a claim, whole or not at all, unless there is one; return whose it is."""
    make_private_dir(path.parent)
    draft = path.with_name(f".{secrets.token_hex(8)}")
    try:
        draft.write_text(name)
        os.link(draft, path)
    except FileExistsError:
        pass
    except OSError as error:
        raise JournalError(f"can't claim a job in {path.parent}: {error.strerror}", hint="Is there room?") from error
    finally:
        draft.unlink(missing_ok=True)
    return path.read_text()


async def _follow(runner: JobRunner, spec: JobSpec) -> JobHandle:
    """Find a job that another worker has claimed; submit it, should that one have died before it did."""
    while True:
        if runner.is_driver:
            return await runner.submit(spec)
        if (job := await runner.find_job(spec)) is not None:
            return job
        await runner.broker.clock.sleep(_LOOK_SECONDS)
