"""Looks after every open task of a runner's wallets, also those that no job of it started.

A task that the journal doesn't account for is adopted: it becomes a job that begins where the task stands, so that one
set of stages downloads, verifies and acknowledges everything, with the same journal, retries and policy. A job that
failed while its delivery is open is resumed when it can still be saved: at once if it never saw the delivery, else at
the window's last mark, which leaves its user all the time there is to decide.
"""

import dataclasses
import datetime as dt
import hashlib
import logging
from collections.abc import Callable, Iterable
from collections.abc import Set as AbstractSet
from typing import TYPE_CHECKING, Final

import anyio

from zg_async.correlation import correlated
from zg_async.errors import ZgError
from zg_async.jobs.driver import Driver, now
from zg_async.jobs.events import JobResumed, JobSubmitted, JobWarned, TaskAdopted, TaskCreated, TaskRequested
from zg_async.jobs.presence import Presence
from zg_async.jobs.spec import JobSpec
from zg_async.jobs.state import JobState, JobStatus, fold
from zg_async.jobs.store import Store
from zg_async.jobs.window import window_of
from zg_async.logs import get_logger
from zg_async.managers.funding import GAS_ACKNOWLEDGE, GAS_RETRIEVE
from zg_async.managers.open_tasks import OpenTask, OpenTasks
from zg_async.units import format_amount
from zg_async.wire.records import Address, FineTuningService, JobId, RootHash, TaskId

if TYPE_CHECKING:
    from zg_async.broker import Broker

_log = get_logger("zg_async.guardian")

LOOK_SECONDS: Final = 30.0
"""Between two looks; providers look for acknowledgements once a minute."""
_BEFORE_DELIVERY: Final = frozenset({"create_task", "train", "cancel"})
_PATIENCE: Final = dt.timedelta(minutes=15)
"""How long another runner that drives a delivered task is given, of a window that lasts half an hour at least."""
_SETTLING: Final = dt.timedelta(minutes=2)
"""How long after a job's end its task may still look open: to a look that began before, or to a node that is behind."""
UNKNOWN_MODEL: Final = "unknown"


class Guardian:
    """Guards all wallets of a broker."""

    def __init__(
        self,
        broker: "Broker",
        store: Store,
        drivers: Callable[[], Iterable[Driver]],
        start: Callable[[JobState], None],
        presence: Presence,
    ) -> None:
        """Bind it.

        Args:
            broker: With the wallets.
            store: The journal.
            drivers: Tells who drives now.
            start: Has a job driven.
            presence: Tells what other runners drive.
        """
        self._presence = presence
        self._broker = broker
        self._store = store
        self._drivers = drivers
        self._start = start
        self._owners: dict[TaskId, JobState] = {}
        """Which job accounts for a task, which never changes, as it was at the last look."""
        self._elsewhere: AbstractSet[str] = frozenset()
        """Tasks that other runners of this user drive."""
        self._hindered: set[Address] = set()
        """Wallets whose last look failed."""
        self.stopping = anyio.CancelScope()
        self.ended = anyio.Event()
        self.is_running = False

    async def run(self) -> None:
        """Look again and again."""
        self.is_running = True
        try:
            with self.stopping:
                while True:
                    await self.look()
                    await self._broker.clock.sleep(LOOK_SECONDS)
        finally:
            self.is_running = False
            self.ended.set()

    async def look(self) -> None:
        """Look at all wallets once; what hinders is logged, and the next look comes anyway."""
        for wallet in self._broker.wallets:
            try:
                await self._look(self._broker.using(wallet), wallet)
                self._hindered.discard(wallet)
            except ZgError as error:
                level = logging.DEBUG if wallet in self._hindered else logging.WARNING
                _log.log(level, "the guardian of %s can't look: %s; trying again", wallet, error)
                self._hindered.add(wallet)

    async def _look(self, view: "Broker", wallet: Address) -> None:
        began = self._now()
        found = await view.fine_tuning.list_open_tasks()
        await view.chain.block()  # what time it is there
        self._elsewhere = await self._presence.others() if found.tasks else frozenset()
        for task in found.tasks:
            await self._guard(wallet, task, began)
        await self._warn(view, wallet, found)

    # ---- tasks

    def forget(self, task_id: TaskId) -> None:
        """Look anew which job accounts for a task."""
        self._owners.pop(task_id, None)

    async def _guard(self, wallet: Address, task: OpenTask, began: dt.datetime) -> None:
        if any(_is_of(driver.state, task) for driver in self._drivers()):
            return
        state = await self._owner(wallet, task)
        if state is None:
            return
        if not state.job_id or (state.moved and not self._is_early(task)):
            await self._adopt(wallet, task)
        elif state.moved:
            return
        elif state.status in (JobStatus.CANCELLED, JobStatus.SUCCEEDED):
            (*_, end) = await self._store.read(state.job_id, state.seq - 1)
            if end.at is None or began >= end.at + _SETTLING:
                await self._adopt(wallet, task)
        elif state.status is JobStatus.FAILED:
            await self._rescue(state, task)

    async def _owner(self, wallet: Address, task: OpenTask) -> JobState | None:
        """Return the job that accounts for a task, an empty state if none does, None if that can't be said."""
        if (known := self._owners.get(task.task_id)) is not None:
            known = self._owners[task.task_id] = fold(await self._store.read(known.job_id, known.seq), known)
            return known
        ended: JobState | None = None
        for job_id in await self._store.list_jobs():
            state = fold(await self._store.read(job_id))
            if _is_of(state, task) and state.adopted and state.status is JobStatus.CANCELLED:
                ended = state  # it gave way to the job whose task it is
            elif _is_of(state, task):
                self._owners[task.task_id] = state
                return state
            if _may_have_forgotten(state, wallet) or (_may_have_asked(state, wallet, task) and self._is_early(task)):
                return None
        return ended or JobState()

    async def _rescue(self, state: JobState, task: OpenTask) -> None:
        """Resume a failed job whose delivery can still be saved."""
        if task.deliverable is None or state.forfeited or state.deliverable_acknowledged or state.failure is None:
            return
        window = window_of(state)
        if state.failure.stage not in _BEFORE_DELIVERY and window is not None and self._chain_now() < window.last_call:
            return
        with correlated(job_id=state.job_id, task_id=task.task_id, provider=state.provider):
            _log.warning("job %s failed with its delivery open; resuming it", state.job_id)
        self._start(fold(await self._store.append(state.job_id, JobResumed(at=self._now())), state))

    async def _adopt(self, wallet: Address, task: OpenTask) -> None:
        if self._is_driven_elsewhere(task):
            return
        service = task.service
        if service is None:
            with correlated(task_id=task.task_id, provider=task.provider):
                _log.warning("task %s of %s: its provider is not registered any more", task.task_id, wallet)
            return
        job_id = adopted_id(self._broker.chain.genesis_hash, wallet, task.task_id)
        if events := await self._store.read(job_id):
            state = self._owners[task.task_id] = fold(events)
            self._start(state)
            return
        spec = self._spec(wallet, task, service)
        if (asked := await self._asked_by(wallet, task)) is not None:
            spec = dataclasses.replace(spec, on_unverified=asked.on_unverified)
        submitted = JobSubmitted(spec=spec, wallet=wallet)
        adopted = TaskAdopted(
            provider=service.provider,
            url=service.url,
            price_per_token=service.price_per_token,
            signer=service.tee_signer_address,
            task_id=task.task_id,
            dataset_hash=RootHash(task.task.dataset_hash) if task.task else None,
            request_nonce=task.task.request_nonce if task.task else None,
        )
        at = self._now()
        events = await self._store.create(job_id, *(dataclasses.replace(e, at=at) for e in (submitted, adopted))) or ()
        if events:
            with correlated(job_id=job_id, task_id=task.task_id, provider=service.provider):
                _log.warning("task %s at %s is nobody's; guarding it as %s", task.task_id, service.provider, job_id)
            state = self._owners[task.task_id] = fold(events)
            self._start(state)

    async def _asked_by(self, wallet: Address, task: OpenTask) -> JobSpec | None:
        """Return what the job was to do that asked for a task: it took it for failed, or can't find it yet."""
        nonce = task.task.request_nonce if task.task else None
        for job_id in await self._store.list_jobs():
            events = await self._store.read(job_id)
            if _may_have_asked(state := fold(events), wallet, task):
                return state.spec
            for event in events:
                if isinstance(event, TaskCreated) and event.task_id == task.task_id:
                    return state.spec
                if isinstance(event, TaskRequested) and event.request_nonce == nonce:
                    return state.spec
        return None

    def _is_driven_elsewhere(self, task: OpenTask) -> bool:
        """Say whether to leave a task to another runner; a delivered one isn't left to it for long."""
        names = {task.task_id, str(task.task.request_nonce)} if task.task else {task.task_id}
        return bool(names & self._elsewhere) and self._is_early(task)

    def _is_early(self, task: OpenTask) -> bool:
        """Say whether whoever drives a task elsewhere still has time to take its delivery."""
        return task.deliverable is None or self._chain_now() < task.deliverable.timestamp + _PATIENCE

    def _spec(self, wallet: Address, task: OpenTask, service: FineTuningService) -> JobSpec:
        return JobSpec(
            model=task.task.model_hash if task.task else UNKNOWN_MODEL,
            dataset=task.task.dataset_hash if task.task else UNKNOWN_MODEL,
            training_params=task.task.training_params if task.task else "{}",
            output_dir=str(self._broker.state_dir / "adopted" / task.task_id),
            provider=service.provider,
            wallet=wallet,
            name=f"task {task.task_id}",
            labels={"adopted": "true"},
        )

    # ---- warnings

    async def _warn(self, view: "Broker", wallet: Address, found: OpenTasks) -> None:
        drivers = [d for d in self._drivers() if d.state.wallet == wallet and d.state.has_open_task]
        if not drivers:
            return
        if low := await _low_gas(view, wallet, len(drivers)):
            for driver in drivers:
                await _tell(driver, low)
        for driver in drivers:
            if changed := _signer_changed(driver.state, found):
                await _tell(driver, changed)

    def _chain_now(self) -> dt.datetime:
        """Return the time by which deadlines count."""
        return self._broker.chain.heads.time.now()

    def _now(self) -> dt.datetime:
        return now(self._broker.clock)


def adopted_id(genesis: str, wallet: str, task_id: str) -> JobId:
    """Return the job id of an adopted task: the same one whoever adopts it."""
    return JobId(f"adopted-{hashlib.sha256(f'{genesis}/{wallet}/{task_id}'.encode()).hexdigest()[:16]}")


def _is_of(state: JobState, task: OpenTask) -> bool:
    if state.provider != task.provider:
        return False
    nonce = task.task.request_nonce if task.task else None
    return state.task_id == task.task_id or (nonce is not None and state.request_nonce == nonce)


def _may_have_forgotten(state: JobState, wallet: Address) -> bool:
    """Say whether a job that lost rows may still claim a task as its own."""
    return state.suspect and state.wallet == wallet and state.request_nonce is None and not state.status.is_terminal


def _may_have_asked(state: JobState, wallet: Address, task: OpenTask) -> bool:
    """Say whether a delivery whose provider tells nothing may be of the task that a job has asked for."""
    waits = state.request_nonce is not None and state.task_id is None and not state.status.is_terminal
    return task.task is None and waits and (state.wallet, state.provider) == (wallet, task.provider)


async def _low_gas(view: "Broker", wallet: Address, count: int) -> JobWarned | None:
    """See whether the wallet can pay the gas of its open acknowledgements and one retrieve."""
    price, balance = await view.chain.gas_price(), await view.chain.balance(wallet)
    needed = price * (GAS_ACKNOWLEDGE * count + GAS_RETRIEVE)
    if balance >= needed:
        return None
    return JobWarned(
        code="gas_reserve",
        message=f"{wallet} holds too little for the gas of {count} acknowledgement{'s' if count != 1 else ''} and one "
        f"retrieve, which take about {format_amount(needed)}",
        hint=f"Send at least {format_amount(needed - balance)} to {wallet}, or the keys of its deliveries are lost",
    )


def _signer_changed(state: JobState, found: OpenTasks) -> JobWarned | None:
    """See whether the provider's TEE signer is still the one the job began with, and approved."""
    terms = state.terms
    if terms is None:
        return None
    service = found.services.get(terms.provider)
    if service is None:
        what = "isn't registered any more"
    elif service.tee_signer_address != terms.signer:
        what = f"has another TEE signer now: {service.tee_signer_address} instead of {terms.signer}"
    elif not service.tee_signer_acknowledged:
        what = f"lost the contract owner's approval of its TEE signer {terms.signer}"
    else:
        return None
    return JobWarned(
        code="signer",
        message=f"{terms.provider} {what}: it can't settle the task, so no key comes, until that is as it was",
        hint="Wait, or ask the provider; cancel the job if its task hasn't begun to train",
    )


async def _tell(driver: Driver, warning: JobWarned) -> None:
    """Put a warning on record, unless it is the last one of its code."""
    if driver.state.warned.get(warning.code) != warning.message and not driver.state.status.is_terminal:
        await driver.commit(warning)
