"""What the journal says about one job: a pure fold over its events."""

import dataclasses
import datetime as dt
import enum
import functools
from collections.abc import Iterable, Mapping
from typing import assert_never

from zg_async.jobs.events import (
    NO_JOB,
    AckDeadlineNear,
    AdapterDeployed,
    CancelRefused,
    CancelRequested,
    CostEstimated,
    DatasetChecked,
    DatasetUploaded,
    DeliverableAcknowledged,
    DeliveryForfeited,
    DeliveryUnverified,
    Event,
    JobArrived,
    JobCancelled,
    JobFailed,
    JobMoved,
    JobQueued,
    JobReconciled,
    JobResumed,
    JobSubmitted,
    JobSucceeded,
    JobWarned,
    ModelDecrypted,
    ModelDownloaded,
    Paid,
    ProviderAcknowledged,
    ProviderChosen,
    ProviderExcluded,
    ProviderFunded,
    RestAskedBack,
    StageRetrying,
    TaskAdopted,
    TaskCreated,
    TaskDelivered,
    TaskProgressed,
    TaskRequested,
    TaskWaiting,
    UnknownEvent,
)
from zg_async.jobs.spec import JobSpec
from zg_async.showing import Shown
from zg_async.wire.records import CANCELLABLE, Address, JobId, RootHash, TaskId, TaskProgress, TxHash

__all__ = ["JobResult", "JobSpec", "JobState", "JobStatus", "apply", "fold"]


class JobStatus(enum.StrEnum):
    """Where a job stands, in the words of the field."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_terminal(self) -> bool:
        """Whether nothing more happens by itself."""
        return self in (JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELLED)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class JobResult(Shown):
    """What a succeeded job leaves behind. Equal wherever and whenever it is asked for."""

    job_id: JobId
    provider: Address
    task_id: TaskId
    adapter_path: str
    """The folder with the adapter."""
    files: tuple[str, ...]
    """Names in it."""
    adapter_name: str | None
    """The `model` to chat with; None when it wasn't deployed."""
    fee: int
    """What the task cost, in neuron."""
    gas: int
    """What the gas of `transactions` cost, in neuron."""
    transactions: tuple[TxHash, ...]
    """All the job sent, in order."""

    @property
    def cost(self) -> int:
        """What it cost in neuron: fee and gas. `JobHandle.cost_report` also knows penalties and storage."""
        return self.fee + self.gas


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class JobState(Shown):
    """All that is known of one job. A field that is None or False has not happened."""

    job_id: JobId = NO_JOB
    seq: int = 0
    """Number of the last event folded in."""
    status: JobStatus = JobStatus.QUEUED
    spec: JobSpec | None = None
    wallet: Address | None = None
    submitted_at: dt.datetime | None = None
    suspect: bool = False
    """Its journal lost rows."""
    resubmitted: bool = False
    """It may have been submitted before, in the rows that were lost."""
    dataset: DatasetChecked | None = None
    provider: Address | None = None
    terms: ProviderChosen | None = None
    excluded: Mapping[Address, str] = dataclasses.field(default_factory=dict)
    """Providers that failed this job and aren't tried again, and why."""
    failed_at: tuple[Address, ...] = ()
    """Each provider that ever failed it, in order: the keys of payments count them."""
    tasks_left_at: frozenset[Address] = frozenset()
    """Those of them where a task of it was, and may still cost."""
    estimate: CostEstimated | None = None
    """Made before the first payment to the present provider."""
    funded: frozenset[str] = frozenset()
    """Service types whose sub-account holds enough."""
    signer_acknowledged: bool = False
    dataset_hash: RootHash | None = None
    request_nonce: int | None = None
    task_id: TaskId | None = None
    progress: TaskProgress | None = None
    ahead: int | None = None
    """How many tasks of all users are ahead of its task, at most; None: not known, or it doesn't wait."""
    fee: int = 0
    """By the provider's word until the settlement is seen."""
    adopted: bool = False
    """Its task was found at the provider, no job had created it."""
    delivered: TaskDelivered | None = None
    ack_mark: int = 0
    """Per cent of the acknowledgement window whose passing was told."""
    unverified: bool = False
    """It is acknowledged without a right copy."""
    forfeited: bool = False
    """It won't be acknowledged."""
    warned: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """The last warning of each code."""
    model: ModelDownloaded | None = None
    deliverable_acknowledged: bool = False
    decrypted: ModelDecrypted | None = None
    deployed: AdapterDeployed | None = None
    rest_asked_back: bool = False
    paid: tuple[Paid, ...] = ()
    retry: StageRetrying | None = None
    """The last failure, if nothing good happened since."""
    generations: Mapping[str, int] = dataclasses.field(default_factory=dict)
    """Per stage, how many of its transactions were mined as failures: part of the next one's key."""
    cancel_requested: bool = False
    cancel_reason: str = ""
    """Why it is or was to be cancelled; empty: the user asked."""
    queued_at: dt.datetime | None = None
    """Since when it waits for training."""
    training_at: dt.datetime | None = None
    """Since when it trains."""
    limits_tried: frozenset[str] = frozenset()
    """Time limits by which it was to be cancelled; emptied when the provider puts the task back."""
    failure: JobFailed | None = None
    moved: bool = False
    """It was exported, and goes on at another machine."""
    unknown: bool = False
    """It has events this version can't read, so this version can't drive it."""

    @property
    def has_open_task(self) -> bool:
        """Whether the provider may hold a task of this job that isn't finished."""
        return self.request_nonce is not None and self.decrypted is None and not self.status.is_terminal

    @property
    def result(self) -> JobResult | None:
        """The result, once the adapter is there."""
        if self.provider is None or self.task_id is None or self.decrypted is None:
            return None
        return JobResult(
            job_id=self.job_id,
            provider=self.provider,
            task_id=self.task_id,
            adapter_path=self.decrypted.path,
            files=self.decrypted.files,
            adapter_name=None if self.deployed is None else self.deployed.adapter_name,
            fee=self.decrypted.fee,
            gas=sum(paid.gas for paid in self.paid),
            transactions=tuple(paid.tx_hash for paid in self.paid),
        )


def fold(events: Iterable[Event], state: JobState | None = None) -> JobState:
    """Apply events in order, to `state` or to nothing."""
    return functools.reduce(apply, events, state or JobState())


def apply(state: JobState, event: Event) -> JobState:
    """Return the state after an event. Pure and total: any event may follow any other."""
    waits = isinstance(event, StageRetrying | JobQueued | CancelRequested | AckDeadlineNear | JobWarned | UnknownEvent)
    state = dataclasses.replace(
        state,
        seq=max(state.seq, event.seq),
        job_id=event.job_id or state.job_id,
        retry=state.retry if waits else None,
    )
    if isinstance(event, StageRetrying | ProviderExcluded | JobFailed | JobCancelled) and event.transactions:
        state = dataclasses.replace(state, paid=_add(state.paid, event.transactions))
    return _apply(state, event)


def _apply(state: JobState, event: Event) -> JobState:  # one arm per event
    change = functools.partial(dataclasses.replace, state)
    match event:
        case JobSubmitted():
            return change(
                spec=event.spec,
                wallet=event.wallet,
                submitted_at=event.at,
                queued_at=event.at,
                suspect=event.suspect or state.suspect,
                resubmitted=event.suspect,
            )
        case DatasetChecked():
            return change(dataset=event)
        case JobQueued():
            return state
        case ProviderChosen():
            return change(provider=event.provider, terms=event, status=_running(state))
        case ProviderExcluded():
            return _excluded(state, event)
        case CostEstimated():
            return change(estimate=event)
        case ProviderFunded():
            return change(funded=state.funded | {event.service_type}, paid=_add(state.paid, event.transactions))
        case ProviderAcknowledged():
            return change(signer_acknowledged=True, paid=_add(state.paid, event.transactions))
        case DatasetUploaded():
            return change(dataset_hash=event.root_hash)
        case TaskRequested():
            return change(request_nonce=event.request_nonce)
        case TaskCreated():
            return change(task_id=event.task_id)
        case TaskAdopted():
            return _adopted(state, event)
        case TaskProgressed():
            return _progressed(state, event)
        case TaskWaiting():
            return change(ahead=event.ahead)
        case TaskDelivered():
            return change(delivered=event)
        case AckDeadlineNear():
            return change(ack_mark=max(state.ack_mark, event.percent))
        case DeliveryUnverified():
            return change(unverified=True)
        case DeliveryForfeited():
            return change(forfeited=True)
        case JobWarned():
            return change(warned={**state.warned, event.code: event.message})
        case ModelDownloaded():
            return change(model=event)
        case DeliverableAcknowledged():
            return change(deliverable_acknowledged=True, paid=_add(state.paid, event.transactions))
        case ModelDecrypted():
            return change(decrypted=event, fee=event.fee)
        case AdapterDeployed():
            return change(deployed=event)
        case RestAskedBack():
            return change(rest_asked_back=True, paid=_add(state.paid, event.transactions))
        case StageRetrying():
            return change(retry=event, generations=_next_generation(state, event))
        case JobReconciled():
            return change(suspect=True)
        case CancelRequested():
            tried = state.limits_tried | ({event.limit} if event.limit else frozenset())
            wanted = not state.status.is_terminal
            return change(cancel_requested=wanted, cancel_reason=event.reason, limits_tried=tried)
        case CancelRefused():
            return change(cancel_requested=False)
        case JobResumed():
            return _resumed(state, event)
        case JobMoved():
            return change(moved=True)
        case JobArrived():
            return _arrived(state, event)
        case JobSucceeded():
            return change(status=JobStatus.SUCCEEDED, cancel_requested=False)
        case JobFailed():
            return change(status=JobStatus.FAILED, failure=event, cancel_requested=False)
        case JobCancelled():
            return change(status=JobStatus.CANCELLED, cancel_requested=False, cancel_reason=event.reason)
        case UnknownEvent():
            return change(unknown=True)
        case _:
            assert_never(event)


def _excluded(state: JobState, event: ProviderExcluded) -> JobState:
    """Begin anew with another provider; what was spent stays on record."""
    return dataclasses.replace(
        state,
        excluded={**state.excluded, event.provider: event.reason},
        failed_at=(*state.failed_at, event.provider),
        tasks_left_at=state.tasks_left_at | ({event.provider} if state.task_id is not None else set()),
        provider=None,
        terms=None,
        estimate=None,
        funded=frozenset(),
        signer_acknowledged=False,
        dataset_hash=None,
        request_nonce=None,
        task_id=None,
        progress=None,
        ahead=None,
        fee=0,
        queued_at=event.at,
        training_at=None,
        limits_tried=frozenset(),
    )


def _progressed(state: JobState, event: TaskProgressed) -> JobState:
    ahead = state.ahead if event.progress in CANCELLABLE else None
    state = dataclasses.replace(state, progress=event.progress, fee=event.fee or state.fee, ahead=ahead)
    if event.progress is TaskProgress.TRAINING and state.training_at is None:
        return dataclasses.replace(state, training_at=event.at)
    if event.progress in CANCELLABLE:
        return dataclasses.replace(state, limits_tried=frozenset())
    return state


def _running(state: JobState) -> JobStatus:
    return state.status if state.status.is_terminal else JobStatus.RUNNING


def _add(paid: tuple[Paid, ...], more: tuple[Paid, ...]) -> tuple[Paid, ...]:
    """Join, each transaction once."""
    return tuple({one.tx_hash: one for one in (*paid, *more)}.values())


def _next_generation(state: JobState, event: StageRetrying) -> Mapping[str, int]:
    if not event.fresh:
        return state.generations
    return {**state.generations, event.stage: state.generations.get(event.stage, 0) + 1}


def _resumed(state: JobState, event: JobResumed) -> JobState:
    if state.status is not JobStatus.FAILED:
        return state
    terms = None if event.accept_changes else state.terms
    model = state.model if state.deliverable_acknowledged else None  # what is on disk is checked again
    return dataclasses.replace(
        state,
        status=JobStatus.RUNNING,
        failure=None,
        terms=terms,
        model=model,
        excluded={provider: why for provider, why in state.excluded.items() if provider in state.tasks_left_at},
        forfeited=False,
        queued_at=event.at,
        limits_tried=frozenset(),
    )


def _arrived(state: JobState, event: JobArrived) -> JobState:
    spec = state.spec
    if spec is not None:
        spec = dataclasses.replace(
            spec, dataset=event.dataset or spec.dataset, output_dir=event.output_dir or spec.output_dir
        )
    return dataclasses.replace(state, spec=spec, moved=False)


def _adopted(state: JobState, event: TaskAdopted) -> JobState:
    """Begin where the task stands: paid for and created by somebody else."""
    terms = ProviderChosen(
        provider=event.provider, url=event.url, price_per_token=event.price_per_token, signer=event.signer
    )
    return dataclasses.replace(
        state,
        status=_running(state),
        adopted=True,
        provider=event.provider,
        terms=terms,
        funded=state.funded | {"fine-tuning"},
        signer_acknowledged=True,
        dataset_hash=event.dataset_hash or RootHash(""),
        request_nonce=event.request_nonce or 0,
        task_id=event.task_id,
    )
