"""Drives one job: runs the first stage whose fact is missing, appends each event it yields, retries what may pass."""

import dataclasses
import datetime as dt
from contextlib import AbstractAsyncContextManager, aclosing, nullcontext, suppress
from typing import TYPE_CHECKING, Final, TypeGuard, TypeVar

import anyio

from zg_async.clock import Clock
from zg_async.correlation import bind, correlated
from zg_async.errors import (
    AccountNotFoundError,
    AttestationError,
    ChainError,
    ChainUnavailableError,
    ClosedError,
    ConfigError,
    ContractRevertedError,
    DeliverableNotFoundError,
    FeeCapError,
    InsufficientBalanceError,
    InsufficientGasFundsError,
    JournalError,
    LedgerExistsError,
    LedgerNotFoundError,
    ProviderError,
    ProviderUnavailableError,
    QueueFullError,
    RpcError,
    ServiceNotFoundError,
    SignerNotAcknowledgedError,
    TaskFailedError,
    TransactionReplacedError,
    UnfinishedTaskError,
    ZgError,
)
from zg_async.jobs.delivering import clean_up
from zg_async.jobs.events import (
    CancelRequested,
    Event,
    JobCancelled,
    JobFailed,
    JobQueued,
    JobSucceeded,
    JobWarned,
    ProviderExcluded,
    StageRetrying,
    TaskCreated,
    TaskRequested,
)
from zg_async.jobs.limits import next_limit
from zg_async.jobs.policies import Approval, Approve, is_approved, policy_of
from zg_async.jobs.presence import Presence
from zg_async.jobs.scheduler import Scheduler
from zg_async.jobs.stages import next_stage
from zg_async.jobs.state import JobState, JobStatus, apply, fold
from zg_async.jobs.store import Store
from zg_async.jobs.training import charge, was_refused
from zg_async.jobs.window import window_of
from zg_async.jobs.work import Stage, Work, chain_now
from zg_async.logs import get_logger
from zg_async.tracing import span

if TYPE_CHECKING:
    from zg_async.broker import Broker

_log = get_logger("zg_async.jobs")

_Unfinished = TypeVar("_Unfinished", bound=StageRetrying | ProviderExcluded | JobFailed | JobCancelled)
FIRST_WAIT: Final = 2.0
LONGEST_WAIT: Final = 300.0
_BEFORE_TASK: Final = frozenset({"fund", "acknowledge_provider", "upload_dataset", "create_task"})
LONGEST_TOLD_WAIT: Final = 600.0
"""Most that a `Retry-After` is honoured."""
VIEW_TRIES: Final = 4
"""How often a view of the chain that is older than what the job has seen, or an answer of the node that can't be read,
is taken for a passing one."""
FINAL_SECONDS: Final = 300.0
"""How long a failed transaction is waited for to be final before another one is sent; a chain may stand still."""
MAX_REVERTED: Final = 2
"""How often a stage's transaction is sent anew after one was mined as a failure."""
_UNTIL_DEADLINE: Final = frozenset({"download_model", "acknowledge_deliverable"})
"""Stages that are tried as long as the acknowledgement window is open: missing it costs the key."""
_UNTIL_OVER: Final = frozenset({"train"})
"""Stages that are tried for ever: a task that nobody watches may be delivered, and its window close."""
LONGEST_WATCH_WAIT: Final = 30.0
_MAY_BE_MENDED: Final = (ProviderError, ConfigError, InsufficientGasFundsError, FeeCapError)
"""What is tried again in these stages, because the user or the provider may mend it in time."""


class Driver:
    """Drives one job to its end."""

    def __init__(self, broker: "Broker", store: Store, scheduler: Scheduler, state: JobState) -> None:
        """Check that this broker can drive the job.

        Raises:
            JournalError: It can't.
        """
        if state.spec is None or state.wallet is None:
            raise JournalError(f"the journal lacks the beginning of job {state.job_id}")
        if state.unknown:
            raise JournalError(f"job {state.job_id} has events of a newer version", hint="Upgrade zg-async")
        if state.wallet not in broker.wallets:
            raise JournalError(f"job {state.job_id} belongs to {state.wallet}, which this broker has no key for")
        self.job_id = state.job_id
        self.store = store
        self.clock = broker.clock
        bound = broker.using(state.wallet)
        if state.spec.require_verified:
            bound = bound.verified_only()
        self.work = Work(broker=bound, state=state, scheduler=scheduler)
        self.failure: BaseException | None = None
        """With what the last stage failed."""
        self._scope: anyio.CancelScope | None = None
        self.stopping = anyio.CancelScope()
        """Around `run`: a scope, because that waits for threads at work, and a plain task's cancellation doesn't."""
        self.presence: Presence | None = None
        """Where its tasks are named to other runners."""
        self.approve: Approve | None = None
        """Asked before stages that pay, acknowledge or deploy."""
        self.ended = anyio.Event()
        """Set by the owner, with `end`, once `run` is over."""
        self._news = anyio.Event()
        """Set by the next event."""
        self._switches = bound.chain.rpc.switches

    @property
    def state(self) -> JobState:
        """The job as of the last event that was made durable."""
        return self.work.state

    async def commit(self, event: Event) -> Event:
        """Make an event durable, then believe it."""
        if self.presence is not None and isinstance(event, TaskRequested | TaskCreated):
            await self.presence.claim(_name_of(event))
        if isinstance(event, ProviderExcluded | JobFailed | JobCancelled) or _reverted(event):
            event = await self._with_payments(event)
        (recorded,) = await self.store.append(self.job_id, dataclasses.replace(event, at=now(self.clock)))
        self.work.state = apply(self.work.state, recorded)
        self._news.set()
        return recorded

    async def _with_payments(self, event: _Unfinished) -> _Unfinished:
        """Put on record what a stage has paid that never came to its fact."""
        with suppress(ChainError):  # the node is away: the outbox knows it
            paid = [one for one in await self.work.paid() if one not in self.state.paid]
            return dataclasses.replace(event, transactions=tuple(paid))
        return event

    def stop(self) -> None:
        """Stop driving, wherever it is. The job stays as it stands in the journal."""
        self.stopping.cancel()

    def keep_turn(self) -> None:
        """Take the turn where the job has a task, or may have: now, before any other job can be asked for its own.

        Another job's request would be numbered higher, and once that is settled this one's is void.
        """
        if _has_task(self.state):
            self.work.scheduler.admit(self.job_id, self.work.wallet, self.work.provider)

    def end(self) -> None:
        """Tell everybody who waits that it is driven no more."""
        self._leave_turn()
        self.ended.set()
        self._news.set()

    async def mind_limits(self) -> None:
        """Have the job cancelled when it reaches a time limit of its specification."""
        while not self.ended.is_set():
            self._news = anyio.Event()
            limit = next_limit(self.state)
            if limit is None:
                await self._news.wait()
            elif (left := (limit.at - now(self.clock)).total_seconds()) > 0:
                await self.clock.wait(self._news, left)
            else:
                await self.cancel(limit=limit.name, reason=f"{limit.reason} ({limit.name})")

    async def cancel(self, *, limit: str = "", reason: str = "") -> int:
        """Record that it is to be stopped, get the driver's attention, and return the event's number."""
        recorded = await self.commit(CancelRequested(limit=limit, reason=reason))
        if self._scope is not None:
            self._scope.cancel()
        return recorded.seq

    async def run(self) -> None:
        """Drive until the job has ended.

        Raises:
            JournalError: Something couldn't be recorded, so nothing more was done.
        """
        self.work.state = fold(await self.store.read(self.job_id))
        if self.presence is not None and self.state.request_nonce is not None:
            names = (str(self.state.request_nonce), self.state.task_id)
            await self.presence.claim(*(name for name in names if name))
        while not self.state.status.is_terminal:
            await self._tell_switches()
            stage = next_stage(self.state)
            if stage is None:
                await self._succeed()
            else:
                await self._step(stage)
        if self.state.status is JobStatus.CANCELLED:
            await clean_up(self.work)

    async def _step(self, stage: Stage) -> None:
        """Run one stage once; what goes wrong becomes an event."""
        with correlated(**self._belongs()):
            await self._take_step(stage)

    def _belongs(self) -> dict[str, str | None]:
        return {"job_id": self.job_id, "provider": self.state.provider, "task_id": self.state.task_id}

    async def _take_step(self, stage: Stage) -> None:
        seq = self.state.seq
        try:
            with anyio.CancelScope() as scope:
                self._scope = scope
                if stage.needs_turn:
                    await self._take_turn()
                elif not stage.keeps_turn:
                    self._leave_turn()
                if not await is_approved(
                    self.approve, Approval(job_id=self.job_id, stage=stage.name, state=self.state)
                ):
                    await self._fail(
                        stage, None, code="vetoed", message=f"{stage.name} was not approved", hint="resume() asks again"
                    )
                    return
                self._scope = scope if stage.can_interrupt else None
                await self._run_stage(stage)
        except (JournalError, ClosedError):
            raise
        except ZgError as error:
            self._scope = None
            await self._failed(stage, error)
        except Exception as error:  # noqa: BLE001  the one edge: whatever a stage throws ends this job only
            _log.exception("job %s: stage %s failed unexpectedly", self.job_id, stage.name)
            await self._fail(stage, error, code="internal", message=f"{type(error).__name__}: {error}", hint=None)
        else:
            if self.state.seq == seq:
                await self._stuck(stage)

    async def _run_stage(self, stage: Stage) -> None:
        timeout = policy_of(self.work.spec.stages, stage.name).timeout
        with anyio.move_on_after(timeout) as limit, span("zg.stage", stage=stage.name):
            async with self._payments_watched(), aclosing(stage.run(self.work)) as events:
                async for event in events:
                    await self.commit(event)
                    bind(**self._belongs())
                    await self._tell_switches()
        if limit.cancelled_caught:
            raise ProviderUnavailableError(f"{stage.name} took longer than {timeout:g} s", hint="Raise its timeout")

    def _payments_watched(self) -> AbstractAsyncContextManager[None]:
        """While it has money at a provider: a reorganisation may take what was paid, or acknowledged, off the chain."""
        state, work = self.state, self.work
        is_out = "fine-tuning" in state.funded and state.decrypted is None
        return work.broker.chain.watched(work.wallet) if is_out else nullcontext()

    async def _tell_switches(self) -> None:
        """Warn once that another RPC endpoint has taken over, if one has."""
        rpc = self.work.broker.chain.rpc
        if self._switches != rpc.switches and not self.state.status.is_terminal:
            self._switches = rpc.switches
            await self.commit(JobWarned(code="rpc_failover", message=rpc.last_switch))

    async def _stuck(self, stage: Stage) -> None:
        if not self.state.cancel_requested or stage.name == "cancel":
            await self._fail(stage, None, code="internal", message="the stage ended without its fact", hint=None)

    async def _failed(self, stage: Stage, error: ZgError) -> None:
        """Try again later if that can help, else end the job."""
        if isinstance(error, ContractRevertedError) and error.tx_hash is not None:
            error = await self._for_good(error, error.tx_hash)
        at = now(self.clock)
        retry = _retry(self.state, stage, error, at, await chain_now(self.work))
        if retry is None:
            if _may_fail_over(self.state, stage, error):
                provider = self.work.provider
                await self.commit(ProviderExcluded(provider=provider, stage=stage.name, reason=error.message))
                self.work.scheduler.record(provider, succeeded=False)
                self._leave_turn()
                return
            await self._fail(stage, error, code=error.code, message=error.message, hint=error.hint)
            return
        await self.commit(retry)
        if isinstance(error, UnfinishedTaskError):
            self._leave_turn()  # the job of that task needs it
        with anyio.CancelScope() as self._scope:
            if not self.state.cancel_requested or stage.name == "cancel":
                async with self._payments_watched():
                    await self.clock.sleep((retry.retry_at - at).total_seconds())  # by no clock: it may be set
        self._scope = None

    async def _for_good(self, error: ZgError, tx_hash: str) -> ZgError:
        """Wait until a failed transaction stays one: a reorganisation could let it succeed beside the one sent anew."""
        seconds, window = FINAL_SECONDS, window_of(self.state)
        if window is not None:  # not so long that the window closes meanwhile
            seconds = min(seconds, max((window.deadline - await chain_now(self.work)).total_seconds() / 4, 1.0))
        with anyio.move_on_after(seconds), suppress(ZgError):
            await self.work.broker.chain.wait_final(tx_hash)
            return ChainUnavailableError(f"{tx_hash} had failed, and succeeded after a reorganisation")
        return error

    async def _fail(self, stage: Stage, error: Exception | None, *, code: str, message: str, hint: str | None) -> None:
        if error is not None:
            self.failure = error
        await self.commit(JobFailed(stage=stage.name, code=code, message=message, hint=hint))

    async def _succeed(self) -> None:
        self._leave_turn()
        await clean_up(self.work)
        result = self.state.result
        if result is None:
            raise JournalError(f"job {self.job_id} is done, but its journal lacks the result")
        await charge(self.work, result.fee, settled=True)
        self.work.scheduler.record(result.provider, succeeded=True)
        self.work.broker.chain.metrics.count("fees.tasks", result.fee)
        await self.commit(
            JobSucceeded(
                adapter_path=result.adapter_path,
                adapter_name=result.adapter_name,
                fee=result.fee,
                gas=result.gas,
                transactions=result.transactions,
            )
        )

    # ---- turns

    async def _take_turn(self) -> None:
        scheduler, wallet, where = self.work.scheduler, self.work.wallet, [self.work.provider]
        has_task = _has_task(self.state)
        if not has_task and (ahead := scheduler.ahead(self.job_id, wallet, where)):
            await self.commit(JobQueued(provider=ahead[0], behind=ahead[1]))
        await scheduler.claim(self.job_id, wallet, where, has_task=has_task)

    def _leave_turn(self) -> None:
        self.work.scheduler.release(self.job_id)


def _reverted(event: Event) -> TypeGuard[StageRetrying]:
    return isinstance(event, StageRetrying) and event.fresh


def _name_of(event: TaskRequested | TaskCreated) -> str:
    return event.task_id if isinstance(event, TaskCreated) else str(event.request_nonce)


def _has_task(state: JobState) -> bool:
    """Say whether the provider has, or may have, a task of this job that isn't finished."""
    if state.decrypted is not None or state.status.is_terminal:
        return False
    return state.task_id is not None or (state.request_nonce is not None and not was_refused(state))


def _may_fail_over(state: JobState, stage: Stage, error: ZgError) -> bool:
    """Say whether another provider may do better, and nothing of the job is left at this one that could cost."""
    spec = state.spec
    if spec is None or spec.provider is not None or state.provider is None or state.cancel_requested:
        return False
    if len(state.excluded) >= spec.failovers or policy_of(spec.stages, stage.name).on_failure == "fail":
        return False
    is_gone = isinstance(error, ServiceNotFoundError)
    if stage.name == "train":  # a failed task costs nothing; one that failed for want of money would fail elsewhere too
        has_failed = isinstance(error, TaskFailedError) and "insufficient account balance" not in error.message
        return is_gone or has_failed
    is_theirs = is_gone or isinstance(error, ProviderError | AttestationError)
    return is_theirs and state.request_nonce is None and stage.name in _BEFORE_TASK


def _retry(
    state: JobState, stage: Stage, error: ZgError, now: dt.datetime, chain_now: dt.datetime
) -> StageRetrying | None:
    """Decide whether a stage is tried again, and when; deadlines count by the chain's time."""
    fresh = isinstance(error, ContractRevertedError) and error.tx_hash is not None
    if fresh and state.generations.get(stage.name, 0) >= MAX_REVERTED:
        return None
    window = window_of(state) if stage.name in _UNTIL_DEADLINE else None
    may_go_on = window is not None and chain_now < window.deadline
    attempt = 1 + (state.retry.attempt if state.retry is not None and state.retry.stage == stage.name else 0)
    can_help = fresh or error.retryable or isinstance(error, UnfinishedTaskError | TransactionReplacedError)
    can_help = can_help or (attempt <= VIEW_TRIES and _may_be_passing(state, stage, error))
    if not (can_help or (may_go_on and isinstance(error, _MAY_BE_MENDED))):
        return None
    stages = state.spec.stages if state.spec is not None else {}
    is_patient = may_go_on or stage.name in _UNTIL_OVER or isinstance(error, UnfinishedTaskError | QueueFullError)
    is_told = "attempts" in stages.get(stage.name, {})
    if attempt >= policy_of(stages, stage.name).attempts and (is_told or not is_patient):
        return None
    told = error.retry_after if error.retry_after is not None and 0 <= error.retry_after < float("inf") else 0.0
    own = min(
        FIRST_WAIT * 2.0 ** min(attempt - 1, 10), LONGEST_WATCH_WAIT if stage.name in _UNTIL_OVER else LONGEST_WAIT
    )
    wait = max(own, min(told, LONGEST_TOLD_WAIT))
    if window is not None:
        wait = min(wait, window.longest_pause(chain_now))
    return StageRetrying(
        stage=stage.name,
        attempt=attempt,
        code=error.code,
        message=error.message,
        retry_at=now + dt.timedelta(seconds=wait),
        fresh=fresh,
    )


def _may_be_passing(state: JobState, stage: Stage, error: ZgError) -> bool:
    """Say whether a back-end that is behind or out of order may have answered, or another program was faster."""
    return isinstance(error, RpcError) or _contradicts(state, error) or _is_race(stage, error)


def _contradicts(state: JobState, error: ZgError) -> bool:
    """Say whether the chain denies what it has shown this job before: then a back-end that is behind has answered."""
    if isinstance(error, DeliverableNotFoundError):
        return state.delivered is not None
    if isinstance(error, SignerNotAcknowledgedError):
        return state.signer_acknowledged
    return isinstance(error, AccountNotFoundError | LedgerNotFoundError) and "fine-tuning" in state.funded


def _is_race(stage: Stage, error: ZgError) -> bool:
    """Say whether another program of this wallet was faster: what it did changes the plan."""
    return stage.name == "fund" and isinstance(error, LedgerExistsError | InsufficientBalanceError)


def now(clock: Clock) -> dt.datetime:
    """Return the time as events carry it."""
    return dt.datetime.fromtimestamp(clock.now(), dt.UTC)
