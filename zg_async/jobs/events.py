"""What happens to a job: facts in the past tense, journaled before the job goes on, and their JSON form.

An event from a newer version, or one that can't be read, becomes an `UnknownEvent`: kept, never dropped, and a job that
has one is not driven by this version.
"""

import dataclasses
import datetime as dt
import enum
import types
import typing
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

from zg_async.jobs.spec import JobSpec, spec_from_json, spec_to_json
from zg_async.wire.records import Address, JobId, RootHash, TaskId, TaskProgress, TxHash

Neuron = Annotated[int, "decimal string"]
"""An int that may pass 2**53: a decimal string in JSON."""
NO_JOB: Final = JobId("")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Paid:
    """A mined transaction of a job."""

    tx_hash: TxHash
    gas: Neuron
    """What its gas cost, in neuron."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Fact:
    seq: int = 0
    """Number within the job, from 1; 0 before it is journaled."""
    job_id: JobId = NO_JOB
    at: dt.datetime | None = None
    """When it was journaled."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class JobSubmitted(_Fact):
    """The job exists."""

    spec: JobSpec
    wallet: Address
    suspect: bool = False
    """Submitted to a journal that once lost rows: it looks for its own traces before it creates a task."""
    kind: Literal["job_submitted"] = "job_submitted"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DatasetChecked(_Fact):
    """The dataset file was read and found good."""

    keccak256: RootHash
    size: int
    rows: int
    row_format: str
    warnings: tuple[str, ...] = ()
    tokens: int | None = None
    """By the tokenizer that was given."""
    kind: Literal["dataset_checked"] = "dataset_checked"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class JobQueued(_Fact):
    """Another job of this wallet has its turn at the provider."""

    provider: Address
    behind: JobId
    kind: Literal["job_queued"] = "job_queued"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ProviderChosen(_Fact):
    """The provider and its terms; they are read again before the task is created and before the acknowledgement."""

    provider: Address
    url: str
    price_per_token: Neuron
    signer: Address
    reasons: tuple[str, ...] = ()
    """Why this one, and why not others, when the user named none."""
    model_hash: str = ""
    """Of the base model; empty when the task was made by somebody else."""
    kind: Literal["provider_chosen"] = "provider_chosen"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ProviderExcluded(_Fact):
    """The provider failed the job, which goes on with another one. What is bound there can be retrieved."""

    provider: Address
    stage: str
    reason: str
    transactions: tuple[Paid, ...] = ()
    """What was mined of the job and isn't on record yet, reverted or not."""
    kind: Literal["provider_excluded"] = "provider_excluded"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CostEstimated(_Fact):
    """What the job is expected to cost at the provider, before anything is paid; the final fee comes at the end."""

    provider: Address
    fee_low: Neuron
    fee_likely: Neuron
    fee_high: Neuron
    gas: Neuron
    """Of all its transactions at today's price, at most."""
    method: str
    """`tokenizer`: counted; `bytes`: a range; `unknown`: the dataset was given by its hash."""
    kind: Literal["cost_estimated"] = "cost_estimated"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ProviderFunded(_Fact):
    """A sub-account holds enough."""

    provider: Address
    service_type: str
    """`fine-tuning` or `inference`."""
    amount: Neuron
    """What this job asked to be ready there, in neuron."""
    transactions: tuple[Paid, ...] = ()
    """Empty when it held enough before."""
    kind: Literal["provider_funded"] = "provider_funded"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ProviderAcknowledged(_Fact):
    """The provider's quote was checked and its TEE signer is acknowledged."""

    transactions: tuple[Paid, ...] = ()
    kind: Literal["provider_acknowledged"] = "provider_acknowledged"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DatasetUploaded(_Fact):
    """The provider has the dataset."""

    root_hash: RootHash
    size: int | None
    """None: given by its hash, nothing was uploaded."""
    kind: Literal["dataset_uploaded"] = "dataset_uploaded"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TaskRequested(_Fact):
    """A task is about to be posted; by this number its outcome can be looked up."""

    request_nonce: Neuron
    kind: Literal["task_requested"] = "task_requested"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TaskCreated(_Fact):
    """The provider has the task."""

    task_id: TaskId
    kind: Literal["task_created"] = "task_created"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TaskAdopted(_Fact):
    """A task that no job accounts for was found at a provider; this job brings it to its end."""

    provider: Address
    url: str
    price_per_token: Neuron
    signer: Address
    task_id: TaskId
    dataset_hash: RootHash | None
    """None, like the next: the provider has forgotten the task, the chain knows its delivery."""
    request_nonce: Neuron | None
    kind: Literal["task_adopted"] = "task_adopted"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TaskProgressed(_Fact):
    """The task's state changed."""

    progress: TaskProgress
    fee: Neuron
    """0 until the provider has counted the tokens."""
    source: str
    kind: Literal["task_progressed"] = "task_progressed"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TaskWaiting(_Fact):
    """Why the task doesn't train yet: tasks of all users are ahead of it."""

    ahead: int
    """At most so many."""
    kind: Literal["task_waiting"] = "task_waiting"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TaskDelivered(_Fact):
    """The deliverable is on chain."""

    root_hash: str
    """`0x` hex of what the chain holds."""
    ack_deadline: dt.datetime | None
    cursor: str | None = None
    """Where the watch for the settlement begins."""
    window: int | None = None
    """Seconds of the acknowledgement window, by the strictest rule in use."""
    penalty_percentage: int | None = None
    """What a missed window costs of the fee."""
    kind: Literal["task_delivered"] = "task_delivered"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class AckDeadlineNear(_Fact):
    """Part of the acknowledgement window is over and the delivery isn't acknowledged."""

    percent: int
    ack_deadline: dt.datetime
    cost: str
    """What missing it costs."""
    kind: Literal["ack_deadline_near"] = "ack_deadline_near"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DeliveryUnverified(_Fact):
    """The window is about to close without a right copy: it is acknowledged as it is; decrypting still fails closed."""

    reason: str
    kind: Literal["delivery_unverified"] = "delivery_unverified"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DeliveryForfeited(_Fact):
    """It won't be acknowledged: the penalty falls due, and no key will come. `JobRunner.resume` thinks anew."""

    reason: str
    kind: Literal["delivery_forfeited"] = "delivery_forfeited"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class JobWarned(_Fact):
    """Something the user should know; the job goes on."""

    code: str
    """Stable name of the kind of warning."""
    message: str
    hint: str | None = None
    kind: Literal["job_warned"] = "job_warned"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ModelDownloaded(_Fact):
    """The encrypted model is on disk and equals the hash on chain."""

    path: str
    size: int
    root_hash: RootHash
    matched: str
    source: str
    kind: Literal["model_downloaded"] = "model_downloaded"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DeliverableAcknowledged(_Fact):
    """The acknowledgement is on chain; the provider will settle and release the key."""

    transactions: tuple[Paid, ...] = ()
    kind: Literal["deliverable_acknowledged"] = "deliverable_acknowledged"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ModelDecrypted(_Fact):
    """The adapter is unpacked."""

    path: str
    files: tuple[str, ...]
    fee: Neuron
    """What the settled task cost, in neuron."""
    kind: Literal["model_decrypted"] = "model_decrypted"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class AdapterDeployed(_Fact):
    """The adapter can be chatted with."""

    adapter_name: str
    state: str
    kind: Literal["adapter_deployed"] = "adapter_deployed"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RestAskedBack(_Fact):
    """What the job left in the fine-tuning sub-account is asked back, as far as no other task of the wallet needs it.

    It is in the ledger after the contract's lock time and one more `retrieve_fund`, or pays for the next job there.
    """

    transactions: tuple[Paid, ...] = ()
    """None: there was nothing, or it has to stay."""
    kind: Literal["rest_asked_back"] = "rest_asked_back"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class StageRetrying(_Fact):
    """A stage failed in a way that may pass."""

    stage: str
    attempt: int
    code: str
    message: str
    retry_at: dt.datetime
    fresh: bool = False
    """The stage's transaction was mined and failed: the next attempt is a new one."""
    transactions: tuple[Paid, ...] = ()
    """What was mined of the job and isn't on record yet, reverted or not."""
    kind: Literal["stage_retrying"] = "stage_retrying"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class JobReconciled(_Fact):
    """The journal lost rows; this job looks for its own traces before it creates anything."""

    kind: Literal["job_reconciled"] = "job_reconciled"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CancelRequested(_Fact):
    """The user wants it stopped, or it reached a limit of its specification."""

    limit: str = ""
    """Which limit; empty: the user asked."""
    reason: str = ""
    kind: Literal["cancel_requested"] = "cancel_requested"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CancelRefused(_Fact):
    """Too late: the provider doesn't cancel it any more, so the job goes on."""

    reason: str
    kind: Literal["cancel_refused"] = "cancel_refused"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class JobResumed(_Fact):
    """A failed job goes on where it failed; a provider that it left without a task there may be chosen again."""

    accept_changes: bool = False
    """The user accepts the provider's present terms."""
    kind: Literal["job_resumed"] = "job_resumed"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class JobMoved(_Fact):
    """It was exported, to go on at another machine: this one doesn't drive it any more."""

    kind: Literal["job_moved"] = "job_moved"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class JobArrived(_Fact):
    """It came from another machine, and goes on here."""

    dataset: str | None = None
    """Where its dataset is here; None: where it was there."""
    output_dir: str | None = None
    """The same for its output."""
    kind: Literal["job_arrived"] = "job_arrived"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class JobSucceeded(_Fact):
    """All stages are done."""

    adapter_path: str
    adapter_name: str | None
    fee: Neuron
    gas: Neuron
    transactions: tuple[TxHash, ...]
    kind: Literal["job_succeeded"] = "job_succeeded"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class JobFailed(_Fact):
    """A stage failed for good; `JobRunner.resume` tries it again."""

    stage: str
    code: str
    message: str
    hint: str | None = None
    transactions: tuple[Paid, ...] = ()
    """What was mined of the job and isn't on record yet, reverted or not."""
    kind: Literal["job_failed"] = "job_failed"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class JobCancelled(_Fact):
    """Stopped as the user or a limit of the specification asked."""

    reason: str = ""
    transactions: tuple[Paid, ...] = ()
    """What was mined of the job and isn't on record yet, reverted or not."""
    kind: Literal["job_cancelled"] = "job_cancelled"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class UnknownEvent(_Fact):
    """Something this version can't read."""

    kind: str
    body: Mapping[str, Any]


Event = (
    JobSubmitted
    | DatasetChecked
    | JobQueued
    | ProviderChosen
    | ProviderExcluded
    | CostEstimated
    | ProviderFunded
    | ProviderAcknowledged
    | DatasetUploaded
    | TaskRequested
    | TaskCreated
    | TaskAdopted
    | TaskProgressed
    | TaskWaiting
    | TaskDelivered
    | AckDeadlineNear
    | DeliveryUnverified
    | DeliveryForfeited
    | JobWarned
    | ModelDownloaded
    | DeliverableAcknowledged
    | ModelDecrypted
    | AdapterDeployed
    | RestAskedBack
    | StageRetrying
    | JobReconciled
    | CancelRequested
    | CancelRefused
    | JobResumed
    | JobMoved
    | JobArrived
    | JobSucceeded
    | JobFailed
    | JobCancelled
    | UnknownEvent
)

_KINDS: Final[Mapping[str, type[Event]]] = {
    cls.__dataclass_fields__["kind"].default: cls for cls in typing.get_args(Event) if cls is not UnknownEvent
}
_HEAD: Final = frozenset({"seq", "job_id", "at", "kind"})


def event_to_json(event: Event) -> dict[str, Any]:
    """Turn an event into JSON: `seq`, `job_id`, `at`, `kind`, then its own fields; amounts as decimal strings."""
    head = {
        "seq": event.seq,
        "job_id": event.job_id,
        "at": None if event.at is None else event.at.isoformat(),
        "kind": event.kind,
    }
    return head | event_body(event)


def event_body(event: Event) -> dict[str, Any]:
    """Turn only an event's own fields into JSON."""
    if isinstance(event, UnknownEvent):
        return dict(event.body)
    hints = _hints(type(event))
    return {name: _encode(getattr(event, name), hint) for name, hint in hints.items() if name not in _HEAD}


def event_from_json(value: Mapping[str, Any]) -> Event:
    """Read `event_to_json`'s output, whatever version wrote it.

    Args:
        value: The object; fields this version doesn't know are left out.

    Returns:
        The event, or an `UnknownEvent` that holds all of it.

    Raises:
        ValueError: Not even its place in the journal can be read.
    """
    if not isinstance(value, Mapping):
        raise ValueError("an event is an object")
    body = {name: item for name, item in value.items() if name not in _HEAD}
    job_id, kind = JobId(str(value.get("job_id") or "")), str(value.get("kind"))
    try:
        seq = int(value.get("seq") or 0)
        at = dt.datetime.fromisoformat(value["at"]) if value.get("at") else None
    except TypeError as error:
        raise ValueError(f"an event has a number and a time: {error}") from None
    if (cls := _KINDS.get(kind)) is not None:
        try:
            known = {name: _decode(body[name], hint) for name, hint in _hints(cls).items() if name in body}
            return cls(seq=seq, job_id=job_id, at=at, **known)
        except (TypeError, ValueError, KeyError, AttributeError):
            pass
    return UnknownEvent(seq=seq, job_id=job_id, at=at, kind=kind, body=body)


def stamp(event: Event, *, seq: int, job_id: JobId, at: dt.datetime) -> Event:
    """Return the event as it stands in the journal."""
    return dataclasses.replace(event, seq=seq, job_id=job_id, at=at)


_hints_cache: Final[dict[type, dict[str, Any]]] = {}


def _hints(cls: type) -> dict[str, Any]:
    if cls not in _hints_cache:
        _hints_cache[cls] = typing.get_type_hints(cls, include_extras=True)
    return _hints_cache[cls]


def _encode(value: Any, hint: Any) -> Any:
    hint, value_is_none = _unwrap(hint), value is None
    if value_is_none:
        return None
    if hint == Neuron:
        return str(value)
    if hint is JobSpec:
        return spec_to_json(value)
    if hint is Paid:
        return {"tx_hash": value.tx_hash, "gas": str(value.gas)}
    if typing.get_origin(hint) is tuple:
        return [_encode(item, typing.get_args(hint)[0]) for item in value]
    return value.isoformat() if isinstance(value, dt.datetime) else value


def _decode(value: Any, hint: Any) -> Any:
    optional, hint = hint != _unwrap(hint), _unwrap(hint)
    if value is None and optional:
        return None
    if hint == Neuron:
        return int(_typed(value, str))
    if hint is JobSpec:
        return spec_from_json(_typed(value, dict))
    if hint is Paid:
        paid = _typed(value, dict)
        return Paid(tx_hash=TxHash(_typed(paid["tx_hash"], str)), gas=int(paid["gas"]))
    if typing.get_origin(hint) is tuple:
        return tuple(_decode(item, typing.get_args(hint)[0]) for item in _typed(value, list))
    if hint is dt.datetime:
        return dt.datetime.fromisoformat(_typed(value, str))
    if isinstance(hint, type) and issubclass(hint, enum.StrEnum):
        return hint(_typed(value, str))
    return _typed(value, getattr(hint, "__supertype__", hint))


def _unwrap(hint: Any) -> Any:
    """Take the None out of `X | None`."""
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        return next(arg for arg in typing.get_args(hint) if arg is not type(None))
    return hint


def _typed(value: Any, cls: Any) -> Any:
    if type(value) is not cls:
        raise TypeError(f"{cls} expected, not {type(value)}")
    return value
