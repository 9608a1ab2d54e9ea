"""Takes jobs, puts them on record, has each driven by a `Driver` of its own, and lets users follow them.

Stopping is crashing: leaving the runner cancels the drivers wherever they are, and the next runner on the same journal
goes on. Nothing depends on clean-up.
"""

import dataclasses
import hashlib
import os
import signal
import uuid
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Final

import anyio
import anyio.to_thread

from zg_async.background import Background
from zg_async.correlation import correlated
from zg_async.errors import (
    ClosedError,
    ConfigError,
    ContractRevertedError,
    JournalError,
    ZgError,
)
from zg_async.jobs.batch import AT_ONCE, Batch, BatchResult, run_batch
from zg_async.jobs.driver import Driver, now
from zg_async.jobs.events import (
    DatasetChecked,
    JobArrived,
    JobCancelled,
    JobMoved,
    JobResumed,
    JobSubmitted,
    JobWarned,
)
from zg_async.jobs.guardian import Guardian, adopted_id
from zg_async.jobs.handle import JobHandle
from zg_async.jobs.moving import absolute, newer_events, read_job, write_job
from zg_async.jobs.notify import Notifier, Notify, notifying
from zg_async.jobs.plan import JobPlan, make_plan
from zg_async.jobs.policies import Approve
from zg_async.jobs.preparing import first_key
from zg_async.jobs.presence import Presence
from zg_async.jobs.scheduler import Scheduler
from zg_async.jobs.spec import JobSpec, check_output, is_same, make_output, normalise
from zg_async.jobs.sqlite import SqliteStore
from zg_async.jobs.state import JobResult, JobState, JobStatus, apply, fold
from zg_async.jobs.store import Owner, Store
from zg_async.jobs.upkeep import is_dead, remove_leftovers
from zg_async.jobs.wallet_pool import WalletPool
from zg_async.jobs.work import Work, known
from zg_async.logs import get_logger
from zg_async.managers.dataset import require_usable
from zg_async.managers.tokens import count_tokens
from zg_async.wire.hashing import parse_address
from zg_async.wire.records import Address, JobId

if TYPE_CHECKING:
    from zg_async.broker import Broker
    from zg_async.managers.diagnosis import Diagnosis

_log = get_logger("zg_async.jobs")


class JobRunner:
    """Runs jobs on one broker from one journal. An async context manager; leaving it detaches, jobs resume later."""

    def __init__(
        self,
        broker: "Broker",
        store: Store | None = None,
        *,
        guard: bool = True,
        approve: Approve | None = None,
        notify: Sequence[Notify] = (),
    ) -> None:
        """Make a runner; it starts when it is entered.

        Args:
            broker: An entered broker with the wallets of the jobs.
            store: The journal; None: a `SqliteStore`, one file per chain and wallet in the broker's state folder.
            guard: Whether to look after every open task of the broker's wallets, also those that it didn't start.
            approve: Asked, with an `Approval`, before a job pays, acknowledges a delivery or deploys; False fails it.
            notify: Webhooks and callbacks that are told what happens to jobs.
        """
        self._approve = approve
        self._broker = broker
        self._clock = broker.clock
        self._store: Store = store if store is not None else SqliteStore(folder=broker.state_dir / "jobs")
        self._notifier = Notifier(notify, broker.http, self._clock) if notify else None
        if self._notifier is not None:
            self._store = notifying(self._store, self._notifier)
        self._scheduler = Scheduler()
        self._background = Background()
        self._drivers: dict[JobId, Driver] = {}
        self._pool = WalletPool(broker, lambda: [driver.state.wallet for driver in self._drivers.values()])
        self._presence = Presence(broker.state_dir / "runners")
        self._guardian = self._make_guardian()
        self._guards = guard
        self._holding = anyio.CancelScope()
        self._stopped: dict[JobId, ZgError] = {}
        self._pauses: dict[JobId, float] = {}
        """How long jobs last waited for an outbox that failed."""
        self._failures: dict[JobId, BaseException] = {}
        self._is_open = False
        self._has_history = False

    async def __aenter__(self) -> "JobRunner":
        """Open the journal and go on with every unfinished job in it."""
        try:
            await self._store.open(self._owner())
            self._is_open = True
            if self._notifier is not None:
                self._notifier.start()
            await self._start_all()
            self._background.start(self._hold(), name="zg journal lease")
        except BaseException:
            await self.aclose()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Detach: stop driving and close the journal. Idempotent; no job is cancelled by it."""
        self._is_open = False
        drivers = tuple(self._drivers.values())
        for driver in drivers:
            driver.stop()
        self._guardian.stopping.cancel()
        self._holding.cancel()
        with anyio.CancelScope(shield=True):
            for driver in drivers:
                await driver.ended.wait()
            await self._background.aclose()
            if self._notifier is not None:
                await self._notifier.aclose()
            await self._presence.leave()
            await self._store.aclose()

    def _owner(self) -> Owner:
        chain = self._broker.chain
        wallets = tuple(dict.fromkeys((self._broker.address, *self._broker.wallets)))
        return Owner(chain_id=chain.chain_id, genesis=chain.genesis_hash, wallets=wallets)

    # ---- what users call

    async def submit(self, spec: JobSpec) -> "JobHandle":
        """Check a job, put it on record, and start it.

        Args:
            spec: What to do. With a `key`, submitting it again gives the same job, whatever became of it.

        Returns:
            Its handle, at once.

        Raises:
            ConfigError: The specification, dataset or parameters can't be used, or the key belongs to another
                specification. Nothing was recorded or sent.
            JournalError: The journal is damaged, or another process drives it.
        """
        self._require_writer()
        spec = await self._normalise(spec)
        job_id = self._job_id(spec)
        if events := await self._store.read(job_id):
            return self._same(fold(events), spec)
        self._require_cap(spec)
        checked = await self._check(spec)
        traces = await self._traces(job_id, spec)
        async with self._pool.taking(spec, traces) as wallet:
            spec = dataclasses.replace(spec, wallet=wallet)
            suspect = spec.key is not None and (self._store.was_reconciled or bool(traces))
            submitted = JobSubmitted(spec=spec, wallet=wallet, suspect=suspect)
            at = now(self._clock)
            stamped = [dataclasses.replace(e, at=at) for e in (submitted, checked) if e is not None]
            created = await self._store.create(job_id, *stamped)
            if created is None:  # somebody else submitted it meanwhile
                return self._same(fold(await self._store.read(job_id)), spec)
            self._start(fold(created))
        return JobHandle(self, job_id)

    async def plan(self, spec: JobSpec) -> JobPlan:
        """Work out all a job would do and cost, as things stand. Sends nothing and records nothing.

        Args:
            spec: As for `submit`.

        Returns:
            Its transactions, uploads and costs, and what stands in its way.

        Raises:
            ConfigError: The specification, dataset or parameters can't be used, or no provider takes it.
            ProviderUnavailableError: No provider is free, or the named one doesn't answer.
        """
        self._require_open()
        spec = await self._normalise(spec)
        async with self._pool.taking(spec, ()) as wallet:
            spec = dataclasses.replace(spec, wallet=wallet)
        checked = None if spec.dataset_root is not None else await self._check_dataset(spec)
        state = JobState(spec=spec, wallet=wallet, dataset=checked, submitted_at=now(self._clock))
        view = self._broker.using(wallet)
        return await make_plan(Work(broker=view, state=state, scheduler=self._scheduler, is_plan=True))

    async def run_job(self, spec: JobSpec) -> JobResult:
        """Submit a job and wait for its result.

        Args:
            spec: What to do.

        Returns:
            The adapter and what it cost.

        Raises:
            JobFailedError: A stage failed; `resume` tries it again.
            JobCancelledError: It was cancelled.
        """
        return await (await self.submit(spec)).result()

    async def run_batch(self, batch: Batch, *, at_once: int = AT_ONCE) -> BatchResult:
        """Run a matrix of jobs and wait for all of them. A job that fails stops no other.

        The same batch again, in this or another process, runs nothing twice: what is done is told again, what was
        interrupted goes on, what failed is told as failed (`resume` tries it again).

        Args:
            batch: The matrix; its jobs are made one by one, so that a large one takes no memory ahead of its turn.
            at_once: How many jobs may be under way.

        Returns:
            One row per job.

        Raises:
            ConfigError: The matrix can't be used. Jobs that can't be submitted are rows.
            JournalError: The journal is damaged, or another process drives it.
        """
        self._require_writer()
        return await run_batch(self, batch, at_once=at_once)

    @property
    def broker(self) -> "Broker":
        """What it runs on."""
        return self._broker

    @property
    def is_driver(self) -> bool:
        """Whether this process drives the journal's jobs, and not another one."""
        return self._is_open and self._store.is_writer

    async def find_job(self, spec: JobSpec) -> "JobHandle | None":
        """Return the job that a specification with a key has in the journal; None: it was never submitted to it.

        Raises:
            ConfigError: The specification can't be used.
        """
        self._require_sound()
        job_id = self._job_id(await self._normalise(spec))
        return JobHandle(self, job_id) if await self._store.read(job_id) else None

    async def attach(self, job_id: str) -> "JobHandle":
        """Get the handle of a job, whichever process runs or ran it.

        Raises:
            JournalError: The journal doesn't know it, or is damaged.
        """
        self._require_sound()
        if not await self._store.read(JobId(job_id)):
            raise JournalError(f"the journal has no job {job_id[:80]!r}", hint="list_jobs() shows all it has")
        return JobHandle(self, JobId(job_id))

    async def resume(self, job_id: str, *, accept_changes: bool = False) -> "JobHandle":
        """Go on with a failed job where it failed. One that isn't failed is only attached to.

        Providers that it gave up before they had a task of it are tried again, as often as the specification allows.

        Args:
            job_id: Which job.
            accept_changes: Accept the provider's present URL, price and signer, if it failed because they changed.

        Raises:
            JournalError: The journal doesn't know it, is damaged, or another process drives it.
        """
        handle = await self.attach(job_id)
        self._require_writer()
        if (driver := self._drivers.get(handle.id)) is not None and driver.state.status.is_terminal:
            await driver.ended.wait()
        state = await handle.state()
        if state.moved:
            raise _moved(state)
        if state.status is JobStatus.FAILED:
            event = JobResumed(accept_changes=accept_changes, at=now(self._clock))
            state = fold(await self._store.append(handle.id, event), state)
        self._start(state)
        return handle

    async def export_job(self, job_id: str, path: str | os.PathLike[str]) -> None:
        """Write a job to a file with which it goes on at another machine, and leave it alone here from now on.

        It is stopped wherever it is; its task at the provider goes on. What it has signed is waited for. Exporting it
        again writes the same once more.

        Args:
            job_id: Which job; one that hasn't ended, or has failed.
            path: A new file. It holds no key and no password, but tells what the job did and sent.

        Raises:
            ConfigError: The job has ended, or the file can't be written.
            JournalError: The journal doesn't know it, is damaged, or another process drives it.
        """
        handle = await self.attach(job_id)
        self._require_writer()
        await self._halt(handle.id)
        state = await handle.state()
        if is_dead(state) or state.wallet is None:
            raise ConfigError(f"job {job_id} has ended: there is nothing to go on with", hint="Copy its output folder")
        if not state.moved:
            state = fold(await self._store.append(handle.id, JobMoved(at=now(self._clock))), state)
        self._start(state)
        handover = await self._broker.chain.hand_over(handle.id, wallet=known(state.wallet))
        events = await self._store.read(handle.id)
        await anyio.to_thread.run_sync(write_job, Path(path), self._owner(), events, handover)

    async def import_job(
        self,
        path: str | os.PathLike[str],
        *,
        dataset: str | os.PathLike[str] | None = None,
        output_dir: str | os.PathLike[str] | None = None,
    ) -> "JobHandle":
        """Go on with a job that was exported at another machine, or come back from there.

        Args:
            path: Its file.
            dataset: Where its dataset is here; None: at the same path. Needed until the provider has it.
            output_dir: Where its output goes here; None: to the same path.

        Returns:
            Its handle. A job that had failed is failed here, too: `resume` tries it again.

        Raises:
            JournalError: The file is damaged or of another network, the job is here already, or what it has sent isn't
                on the chain. Nothing was recorded in the journal.
            ConfigError: The broker lacks the job's wallet, nothing bounds what the job may spend where that is
                asked for, or the dataset isn't there.
        """
        self._require_writer()
        moved = await anyio.to_thread.run_sync(read_job, Path(path))
        state, owner = moved.state, self._owner()
        if (
            state.spec is None
            or state.wallet is None
            or state.unknown
            or (moved.chain_id, moved.genesis)
            != (
                owner.chain_id,
                owner.genesis,
            )
        ):
            raise JournalError(f"{path} is of another network, or of a newer version", hint="Import it there")
        if state.wallet not in self._broker.wallets:
            raise ConfigError(f"the broker has no key for {state.wallet}", hint="Pass it to create_broker")
        here = await self._store.read(state.job_id)
        news = newer_events(Path(path), here, moved)
        arrived = JobArrived(dataset=absolute(dataset), output_dir=absolute(output_dir), at=now(self._clock))
        state = apply(state, arrived)
        self._require_cap(known(state.spec))
        await self._check_place(known(state.spec), needs_dataset=state.dataset_hash is None)
        self._cap(state)
        await self._broker.chain.take_over(moved.handover, wallet=known(state.wallet))
        await self._give_way(state)
        if here:
            await self._store.append(state.job_id, *news, arrived)
        elif await self._store.create(state.job_id, *news, arrived) is None:
            raise JournalError(f"job {state.job_id} is in this journal already", hint="Attach to it")
        await self._give_way(state)  # the guardian may have been about to
        self._start(fold(await self._store.read(state.job_id)))
        return JobHandle(self, state.job_id)

    async def _halt(self, job_id: JobId) -> None:
        if (driver := self._drivers.get(job_id)) is not None:
            driver.stop()
            await driver.ended.wait()

    async def _give_way(self, state: JobState) -> None:
        """End what the guardian began for a job's task before the job itself had come."""
        for other in await self.list_jobs():
            if not other.adopted or other.status.is_terminal or other.provider != state.provider:
                continue
            names = {name for name in (other.task_id, other.request_nonce) if name}
            if names & {state.task_id, state.request_nonce}:
                await self._end_adopted(other, f"its task is that of {state.job_id}, which was imported")

    async def _displace(self, state: JobState) -> None:
        """End what the guardian began for a job's task while nobody could say whose it was."""
        if state.adopted or state.task_id is None:
            return
        events = await self._store.read(adopted_id(self._broker.chain.genesis_hash, known(state.wallet), state.task_id))
        if events and not (other := fold(events)).status.is_terminal:
            await self._end_adopted(other, f"its task is that of {state.job_id}")

    async def _end_adopted(self, other: JobState, reason: str) -> None:
        await self._halt(other.job_id)
        await self._broker.chain.hand_over(other.job_id, wallet=known(other.wallet))  # what it signed is mined
        await self._store.append(other.job_id, JobCancelled(reason=reason, at=now(self._clock)))
        self._guardian.forget(known(other.task_id))

    async def _check_place(self, spec: JobSpec, *, needs_dataset: bool) -> None:
        if needs_dataset and spec.dataset_root is None and not await anyio.Path(spec.dataset).is_file():
            raise ConfigError(f"the dataset {spec.dataset} isn't here", hint="Copy it, and give import_job its path")
        await anyio.to_thread.run_sync(check_output, spec.output_dir)
        await anyio.to_thread.run_sync(make_output, spec.output_dir)

    async def list_jobs(self) -> tuple[JobState, ...]:
        """Return the state of every job in the journal, oldest first."""
        return tuple([fold(await self._store.read(job_id)) for job_id in await self._store.list_jobs()])

    async def reconcile(self) -> None:
        """After damage to the journal: keep its sound part, and go on carefully.

        The damaged file is set aside. Transactions are safe in any case: a job's keys follow from its id, and the
        outbox gives back what was sent under them. Unfinished jobs look among the provider's tasks for one of their own
        (same model, dataset and parameters, created since they were submitted) before they create one. Jobs of which
        nothing is left have to be submitted again; with the same `key` they get the same id and the same transactions.

        Raises:
            JournalError: Another process holds the journal.
        """
        self._require_open()
        await self._store.reconcile()
        await self._start_all()

    # ---- submitting

    async def _normalise(self, spec: JobSpec) -> JobSpec:
        """Bring a specification into its form; its wallet stays open while there are several to take it from."""
        spec = await anyio.to_thread.run_sync(normalise, spec)
        wallets = [parse_address(wallet, what="wallet") for wallet in spec.wallets or (spec.wallet or "",) if wallet]
        for wallet in wallets or [self._broker.address]:
            if wallet not in self._broker.wallets:
                hint = "Pass it to create_broker as private_keys="
                raise ConfigError(f"the broker has no key for {wallet}", hint=hint)
            if not self._broker.using(wallet).can_decrypt:
                why = f"the signer of {wallet} can't decrypt, so the model couldn't be opened"
                raise ConfigError(why, hint=_LOCAL_KEY)
        return dataclasses.replace(
            spec,
            wallet=None if spec.wallets else (*wallets, self._broker.address)[0],
            wallets=tuple(wallets) if spec.wallets else (),
            provider=parse_address(spec.provider) if spec.provider else None,
            inference_provider=parse_address(spec.inference_provider) if spec.inference_provider else None,
        )

    def _job_id(self, spec: JobSpec) -> JobId:
        """With a key the id follows from it, so that a job that was lost gets the same outbox keys again."""
        if spec.key is None:
            return JobId(f"job-{uuid.uuid4().hex[:20]}")
        chain = self._broker.chain
        text = "\n".join((str(chain.chain_id), chain.genesis_hash, spec.wallet or "any", spec.key))
        return JobId(f"job-{hashlib.sha256(text.encode()).hexdigest()[:20]}")

    async def _traces(self, job_id: JobId, spec: JobSpec) -> tuple[Address, ...]:
        """Return wallets whose outbox knows a job that the journal doesn't: the journal was lost, not the job."""
        found: list[Address] = []
        for wallet in () if spec.key is None else spec.wallets or (spec.wallet,):
            try:
                if await self._broker.chain.recall(first_key(job_id), wallet=Address(str(wallet))) is not None:
                    found.append(Address(str(wallet)))
            except ContractRevertedError:
                found.append(Address(str(wallet)))
        return tuple(found)

    def _same(self, state: JobState, spec: JobSpec) -> "JobHandle":
        if state.spec is None or not is_same(state.spec, spec):
            raise ConfigError(
                f"the key {spec.key!r} belongs to job {state.job_id}, which has another specification",
                hint="Use another key, or the same specification",
            )
        self._start(state)
        return JobHandle(self, state.job_id)

    async def _check(self, spec: JobSpec) -> DatasetChecked | None:
        """Look at everything that can be wrong before money moves."""
        for state in [driver.state for driver in self._drivers.values()]:
            if not state.status.is_terminal and state.spec and state.spec.output_dir == spec.output_dir:
                raise ConfigError(
                    f"job {state.job_id} writes to {spec.output_dir}", hint="Give each job a folder of its own"
                )
        await anyio.to_thread.run_sync(check_output, spec.output_dir)
        checked = None if spec.dataset_root is not None else await self._check_dataset(spec)
        await anyio.to_thread.run_sync(make_output, spec.output_dir)
        return checked

    async def _check_dataset(self, spec: JobSpec) -> DatasetChecked:
        report = await self._broker.fine_tuning.check_dataset(spec.dataset)
        require_usable(spec.dataset, report)
        tokens = None
        if spec.tokenizer is not None:
            tokens = (await count_tokens(spec.dataset, tokenizer=spec.tokenizer)).high
        return DatasetChecked(
            keccak256=report.keccak256,
            size=report.size,
            rows=report.rows,
            row_format=report.format.value,
            warnings=tuple(f"row {issue.row}: {issue.message}" for issue in report.warnings[:_MAX_WARNINGS]),
            tokens=tokens,
        )

    # ---- driving

    async def _start_all(self) -> None:
        if not self._store.is_writer or self._store.damage is not None:
            if self._store.damage is not None:
                _log.error("the journal is damaged: %s; no job runs until it is reconciled", self._store.damage)
            return
        known = await self.list_jobs()
        for state in known:
            self._cap(state)
        if not self._has_history:
            self._has_history = True
            self._remember(known)
            await remove_leftovers(state for state in known if is_dead(state))  # a process may have died before it did
        states = [state for state in known if not state.status.is_terminal]
        for state in sorted(states, key=lambda s: not s.has_open_task):  # who has a task, has the turn
            self._start(state)
        if self._guards:
            self._guards = False  # one is enough
            self._background.start(self._guardian.run(), name="zg guardian")

    def _remember(self, known: Iterable[JobState]) -> None:
        """Take past outcomes out of the journal."""
        for state in known:
            for provider in state.failed_at:
                self._scheduler.record(provider, succeeded=False)
            if state.status is JobStatus.SUCCEEDED and state.provider is not None:
                self._scheduler.record(state.provider, succeeded=True)

    def _start(self, state: JobState) -> None:
        if state.status.is_terminal or state.job_id in self._drivers or not self._is_open:
            return
        if state.moved:
            self._stopped[state.job_id] = _moved(state)
            self._store.notify()
            return
        self._stopped.pop(state.job_id, None)
        self._cap(state)
        try:
            driver = Driver(self._broker, self._store, self._scheduler, state)
            driver.approve, driver.presence, driver.work.displace = self._approve, self._presence, self._displace
            driver.keep_turn()
        except JournalError as error:
            self._stopped[state.job_id] = error
            return
        self._drivers[state.job_id] = driver
        self._background.start(self._drive(driver), name=f"zg job {state.job_id}")
        if state.spec is not None and (state.spec.max_queue_seconds or state.spec.max_run_seconds):
            self._background.start(self._mind_limits(driver), name=f"zg limits of {state.job_id}")

    def _cap(self, state: JobState) -> None:
        """Tell the place where money leaves what this job may cost."""
        if (spec := state.spec) is not None:
            cap, batch_cap = ((None if a is None else int(a)) for a in (spec.max_spend, spec.batch_max_spend))
            self._broker.chain.budget.cap_job(state.job_id, cap, batch=spec.batch, batch_cap=batch_cap)

    def _require_cap(self, spec: JobSpec) -> None:
        if self._broker.requires_cap and spec.max_spend is None and spec.batch_max_spend is None:
            raise ConfigError(
                "a job runs unattended, and nothing bounds what it may spend",
                hint='Give it max_spend="0.5", or create the broker with limits=SpendLimits(per_job="0.5")',
            )

    async def _drive(self, driver: Driver) -> None:
        try:
            with driver.stopping, correlated(job_id=driver.job_id):
                await driver.run()
        except (
            JournalError,
            ClosedError,
        ) as error:  # what can't be recorded isn't done: the job waits for a better day
            with correlated(**error.context):
                _log.error("job %s stopped: %s", driver.job_id, error)
            self._stopped[driver.job_id] = error
            if isinstance(error, JournalError) and self._is_open:
                self._background.start(self._go_on_later(driver.job_id, error), name=f"zg pause of {driver.job_id}")
        finally:
            if driver.failure is not None:
                self._failures[driver.job_id] = driver.failure
            self._drivers.pop(driver.job_id, None)
            driver.end()
            self._store.notify()

    async def _go_on_later(self, job_id: JobId, error: JournalError) -> None:
        """Drive a job again for which the outbox failed; a journal that fails has its jobs driven when it is back."""
        pause = self._pauses[job_id] = min(2 * self._pauses.get(job_id, _FIRST_PAUSE / 2), _LONGEST_PAUSE)
        await self._clock.sleep(pause)
        if self._stopped.get(job_id) is not error:
            return
        try:
            if not (events := await self._store.read(job_id)):
                return
            state, message = fold(events), _paused(error)
            if state.warned.get("paused") != message:
                warning = JobWarned(code="paused", message=message, at=now(self._clock))
                state = fold(await self._store.append(job_id, warning), state)
            self._start(state)
        except (JournalError, ClosedError) as still:
            with correlated(**still.context):
                _log.error("job %s still can't be recorded: %s", job_id, still)

    async def _mind_limits(self, driver: Driver) -> None:
        try:
            with correlated(job_id=driver.job_id):
                await driver.mind_limits()
        except (JournalError, ClosedError) as error:  # the driver meets the same
            with correlated(**error.context):
                _log.debug("the limits of job %s are minded no more: %s", driver.job_id, error)

    async def _hold(self) -> None:
        """Begin to drive when the process that did has died or hangs; stop when another one took over."""
        with self._holding:
            while True:
                try:
                    is_ours = await self._store.hold()
                except (JournalError, ClosedError) as error:
                    _log.error("the journal's lease can't be renewed: %s", error)
                    continue
                if is_ours:
                    _log.warning("the journal can be written; going on with its jobs")
                    await self._tell_paused()
                    await self._start_all()
                else:
                    _log.error("another process has taken the journal over")
                    await self._let_go()

    async def _tell_paused(self) -> None:
        """Put on record that jobs stood still because nothing could be recorded."""
        for job_id, error in tuple(self._stopped.items()):
            warning = JobWarned(code="paused", message=_paused(error), at=now(self._clock))
            try:
                await self._store.append(job_id, warning)
            except JournalError as still:
                _log.error("job %s still can't be recorded: %s", job_id, still)

    async def _let_go(self) -> None:
        for driver in tuple(self._drivers.values()):
            driver.stop()
        if self._guardian.is_running:
            self._guardian.stopping.cancel()
            await self._guardian.ended.wait()
            self._guardian, self._guards = self._make_guardian(), True

    def _make_guardian(self) -> Guardian:
        return Guardian(self._broker, self._store, lambda: tuple(self._drivers.values()), self._start, self._presence)

    async def until_signal(self, *signals: signal.Signals) -> None:
        """Drive jobs until the process is asked to end; then leave the runner, and another one goes on.

        Args:
            signals: None given: SIGTERM and SIGINT.
        """
        with anyio.open_signal_receiver(*(signals or (signal.SIGTERM, signal.SIGINT))) as received:
            async for _ in received:
                return

    async def doctor(self, provider: str, *, wallet: str | None = None) -> "Diagnosis":
        """Name the state of a wallet at a provider, and the exact steps out of it. Sends nothing.

        Args:
            provider: The provider's address.
            wallet: One of the broker's; None: its first.
        """
        view = self._broker.using(wallet) if wallet else self._broker
        return await view.fine_tuning.diagnose(provider)

    # ---- checks

    def _require_open(self) -> None:
        if not self._is_open:
            raise ClosedError("the runner is not open", hint="Use it as `async with JobRunner(broker) as runner`")

    def _require_sound(self) -> None:
        self._require_open()
        if self._store.damage is not None:
            raise JournalError(
                f"the journal is damaged: {self._store.damage}",
                hint="Nothing is signed until reconcile() has compared it with chain and providers",
            )

    def _require_writer(self) -> None:
        self._require_sound()
        if not self._store.is_writer:
            raise JournalError(
                "another process drives this journal", hint="Attach to its jobs here, or end the other process first"
            )


def _paused(error: ZgError) -> str:
    return f"it stood still, because nothing could be recorded: {error.message}"


def _moved(state: JobState) -> JournalError:
    return JournalError(
        f"job {state.job_id} was exported, and goes on where its file was imported",
        hint="To go on here again, export it there and import that file here",
    )


_MAX_WARNINGS: Final = 20
_FIRST_PAUSE: Final = 10.0
_LONGEST_PAUSE: Final = 300.0
"""Seconds until a job is driven again for which the outbox failed; each time twice as long."""
_LOCAL_KEY: Final = "Use a local key or keystore for the wallet that orders the model"
