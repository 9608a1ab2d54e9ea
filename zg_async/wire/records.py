"""Frozen values that managers return. Amounts are int neuron, times are aware UTC datetimes, sizes are bytes.

Struct sources: 0g-serving-contract contracts/{ledger,fine-tuning,inference}; task JSON: 0g-serving-broker
schema/task.go.
"""

import datetime as dt
import enum
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final, NewType

if TYPE_CHECKING:
    from zg_async.wire.answer_proof import AnswerProof

from zg_async.showing import Shown
from zg_async.text import hidden

Address = NewType("Address", str)
"""EIP-55 checksummed, `0x` and 40 hex digits."""
TxHash = NewType("TxHash", str)
"""`0x` and 64 lower-case hex digits."""
RootHash = NewType("RootHash", str)
"""`0x` and 64 lower-case hex digits: a keccak256 or a 0G Storage root."""
TaskId = NewType("TaskId", str)
"""A provider's task: lower-case UUID with dashes. Also the id of its deliverable on chain."""
JobId = NewType("JobId", str)
"""One of our end-to-end runs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt(Shown):
    """A mined transaction."""

    tx_hash: TxHash
    block_number: int
    block_hash: str
    status: int
    """1 succeeded, 0 reverted."""
    gas_used: int
    effective_gas_price: int
    """Neuron per gas."""
    logs: tuple["Log", ...] = ()

    @property
    def gas_cost(self) -> int:
        """What the transaction's gas cost, in neuron."""
        return self.gas_used * self.effective_gas_price


@dataclass(frozen=True, slots=True, kw_only=True)
class Log:
    """An event as the chain stores it."""

    address: Address
    topics: tuple[bytes, ...]
    data: bytes
    block_number: int
    block_hash: str
    tx_hash: TxHash
    log_index: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Ledger(Shown):
    """A wallet's main account in the LedgerManager."""

    user: Address
    available_balance: int
    """Neuron that can go to providers or back to the wallet."""
    total_balance: int
    """Available plus everything in sub-accounts, pending refunds included."""
    additional_info: str

    @property
    def locked_balance(self) -> int:
        """Neuron held in sub-accounts."""
        return self.total_balance - self.available_balance


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceInfo(Shown):
    """A serving contract as the ledger registered it."""

    service_address: Address
    service_contract: Address
    service_type: str
    version: str
    full_name: str
    """The only name `transferFund` takes, e.g. `fine-tuning-v1.0`; empty when not registered."""
    description: str
    is_recommended: bool
    registered_at: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Refund(Shown):
    """A live refund request of a sub-account."""

    index: int
    amount: int
    created_at: dt.datetime
    unlocks_at: dt.datetime | None = None
    """When it can be collected, by the lock time in force now."""

    def remaining(self, now: dt.datetime) -> dt.timedelta:
        """Return how long it stays locked; never negative."""
        if self.unlocks_at is None:
            return dt.timedelta(0)
        return max(self.unlocks_at - now, dt.timedelta(0))


@dataclass(frozen=True, slots=True, kw_only=True)
class Quota(Shown):
    """A fine-tuning provider's hardware, by its own word."""

    cpu_count: int
    node_memory: int
    """GB, by the provider's word."""
    gpu_count: int
    node_storage: int
    """GB, by the provider's word."""
    gpu_type: str

    @property
    def memory(self) -> int:
        """The peers' name for `node_memory`."""
        return self.node_memory

    @property
    def storage(self) -> int:
        """The peers' name for `node_storage`."""
        return self.node_storage


@dataclass(frozen=True, slots=True, kw_only=True)
class FineTuningService(Shown):
    """A fine-tuning provider's registration."""

    provider: Address
    url: str
    quota: Quota
    price_per_token: int
    """Neuron per token and epoch, before the model's price coefficient."""
    occupied: bool
    models: tuple[str, ...]
    """Customised models only; predefined ones aren't listed on chain."""
    tee_signer_address: Address
    tee_signer_acknowledged: bool
    """The contract owner's approval of the signer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Deliverable(Shown):
    """A delivered model as the chain knows it."""

    id: TaskId
    model_root_hash: bytes
    """32 raw bytes (storage root or keccak256), or UTF-8 text of `0x` roots from old providers."""
    encrypted_secret: bytes
    """The file key, wrapped for the user; empty until settlement of an acknowledged deliverable."""
    acknowledged: bool
    timestamp: dt.datetime
    """Block time of the delivery."""
    settled: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class FineTuningAccountDetails(Shown):
    """A wallet's fine-tuning sub-account at one provider."""

    user: Address
    provider: Address
    account_nonce: int
    """The nonce of the last settled task; a new task needs a greater one."""
    balance: int
    pending_refund: int
    refunds: tuple[Refund, ...]
    """Live ones only, oldest first."""
    additional_info: str
    deliverables: tuple[Deliverable, ...]
    """Oldest first, at most 20."""
    acknowledged: bool
    """Whether the user acknowledged the provider's TEE signer."""

    @property
    def spendable(self) -> int:
        """Neuron a task may cost: balance less pending refunds."""
        return self.balance - self.pending_refund


@dataclass(frozen=True, slots=True, kw_only=True)
class InferenceAccount(Shown):
    """A wallet's inference sub-account at one provider."""

    user: Address
    provider: Address
    account_nonce: int
    balance: int
    pending_refund: int
    refunds: tuple[Refund, ...]
    additional_info: str
    acknowledged: bool
    generation: int
    """Session tokens of a smaller generation are revoked."""
    revoked_bitmap: int
    """Bit n set: API key n is revoked."""

    @property
    def spendable(self) -> int:
        """Neuron the provider may charge: balance less pending refunds."""
        return self.balance - self.pending_refund


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountSummary(Shown):
    """One row of a wallet's sub-accounts."""

    user: Address
    provider: Address
    account_nonce: int
    balance: int
    pending_refund: int
    acknowledged: bool
    refund_count: int
    deliverable_count: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerDetail(Shown):
    """A wallet's whole account: ledger and all sub-accounts."""

    ledger: Ledger
    inference: tuple[AccountSummary, ...]
    fine_tuning: tuple[AccountSummary, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class FineTuningAccountDetail(Shown):
    """A sub-account with refund timing."""

    account: FineTuningAccountDetails
    refunds: tuple[Refund, ...]
    lock_time: int
    """Seconds a refund stays locked."""
    as_of: dt.datetime
    """Block time of the answer; remaining times count from here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InferenceAccountDetail(Shown):
    """An inference sub-account with refund timing."""

    account: InferenceAccount
    refunds: tuple[Refund, ...]
    lock_time: int
    """Seconds a refund stays locked."""
    as_of: dt.datetime
    """Block time of the answer; remaining times count from here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InferenceService(Shown):
    """An inference provider's registration."""

    provider: Address
    service_type: str
    url: str
    input_price: int
    output_price: int
    updated_at: dt.datetime
    model: str
    verifiability: str
    additional_info: str
    tee_signer_address: Address
    tee_signer_acknowledged: bool


class TaskProgress(enum.StrEnum):
    """States of a provider's task, in order; old spellings are mapped, unknown ones kept in `Task.progress_text`."""

    INIT = "Init"
    SETTING_UP = "SettingUp"
    SET_UP = "SetUp"
    TRAINING = "Training"
    TRAINED = "Trained"
    DELIVERING = "Delivering"
    DELIVERED = "Delivered"
    USER_ACKNOWLEDGED = "UserAcknowledged"
    FINISHED = "Finished"
    FAILED = "Failed"
    CANCELLED = "Cancelled"
    UNKNOWN = "Unknown"


PROGRESS_ALIASES: Final[Mapping[str, TaskProgress]] = {
    "InProgress": TaskProgress.TRAINING,
    "UserAckDelivered": TaskProgress.USER_ACKNOWLEDGED,
    "Completed": TaskProgress.FINISHED,
}
"""Spellings of older providers and documents (features S-01)."""

TERMINAL: Final = frozenset({TaskProgress.FINISHED, TaskProgress.FAILED, TaskProgress.CANCELLED})
CANCELLABLE: Final = frozenset({TaskProgress.INIT, TaskProgress.SETTING_UP, TaskProgress.SET_UP})
DOWNLOADABLE: Final = frozenset({TaskProgress.DELIVERED, TaskProgress.USER_ACKNOWLEDGED, TaskProgress.FINISHED})


@dataclass(frozen=True, slots=True, kw_only=True)
class Task(Shown):
    """A provider's training task."""

    id: TaskId
    provider: Address
    user: Address
    progress: TaskProgress
    progress_text: str
    """The provider's own word for it."""
    created_at: dt.datetime
    updated_at: dt.datetime
    model_hash: str
    dataset_hash: str
    training_params: str
    fee: int
    """Neuron; 0 until the provider has counted the tokens."""
    request_nonce: int
    """The number we chose when we created it."""
    deliver_time: dt.datetime | None
    model_type: int = 0
    ack_deadline: dt.datetime | None = None
    """When the provider may settle with penalty, by the strictest rule in use; None while the lock time is unknown."""

    @property
    def is_terminal(self) -> bool:
        """Whether the provider will do nothing more."""
        return self.progress in TERMINAL

    @property
    def is_cancellable(self) -> bool:
        """Whether the provider would still cancel it."""
        return self.progress in CANCELLABLE


@dataclass(frozen=True, slots=True, kw_only=True)
class Model(Shown):
    """A base model that can be fine-tuned."""

    name: str
    hash: str
    """What `preTrainedModelHash` takes."""
    tokenizer: str = ""
    data_type: str = "text"
    description: str = ""
    provider: Address | None = None
    """None: predefined, every provider has it."""
    price_coefficient: int = 1
    storage_fee: int = 0
    """Neuron added to each task's fee."""
    networks: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCatalogue(Shown):
    """What can be trained on a network."""

    predefined: tuple[Model, ...]
    customised: tuple[Model, ...]
    unreachable: tuple[Address, ...]
    """Providers that announce models but didn't answer."""


class AdapterState(enum.StrEnum):
    """States of a served adapter; an unknown one counts as in progress."""

    INIT = "init"
    PENDING = "pending"
    DOWNLOADING = "downloading"
    READY = "ready"
    LOADING = "loading"
    ACTIVE = "active"
    OFFLOADED = "offloaded"
    ARCHIVED = "archived"
    FAILED = "failed"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter(Shown):
    """A LoRA adapter at an inference provider."""

    adapter_name: str
    task_id: TaskId
    base_model: str
    state: AdapterState
    state_text: str
    user: Address | None
    storage_root: str = ""
    error: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeployResponse(Shown):
    """The outcome of a deployment request."""

    message: str
    adapter_name: str
    state: AdapterState


class CancelResult(enum.StrEnum):
    """What came of a cancellation, confirmed by reading the task back."""

    CANCELLED = "cancelled"
    TOO_LATE = "too_late"
    UNKNOWN_TASK = "unknown_task"
    NOT_YOURS = "not_yours"


@dataclass(frozen=True, slots=True, kw_only=True)
class CancelOutcome(Shown):
    """The outcome of `cancel_task`."""

    result: CancelResult
    task: Task | None
    """The task as read back."""
    message: str
    """The provider's words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadedDataset(Shown):
    """A dataset at a provider."""

    dataset_hash: RootHash
    """keccak256 of the file's bytes, equal on both sides."""
    size: int
    message: str = ""
    reused: bool = False
    """Whether the provider had it already, so that nothing was sent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DownloadedModel(Shown):
    """An encrypted model on disk whose hash was checked."""

    path: str
    size: int
    root_hash: RootHash
    """The hash on chain that it was checked against."""
    matched: str
    """`"keccak256"` or `"storage_root"`."""
    source: str
    """`"tee"` or `"0g-storage"`."""
    attempts: tuple["SourceAttempt", ...] = ()
    """The sources tried, in order; the last one is `source`."""

    @property
    def fallback_reason(self) -> str:
        """Why it isn't from the first source; empty when it is."""
        return self.attempts[0].reason if len(self.attempts) > 1 else ""

    def tried(self, attempts: tuple["SourceAttempt", ...]) -> "DownloadedModel":
        """Return it with what was tried for it."""
        return replace(self, attempts=attempts)


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceAttempt:
    """A source that was tried."""

    source: str
    """`"tee"` or `"0g-storage"`."""
    seconds: float
    reason: str = ""
    """Why it didn't do; empty when it did."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionToken:
    """A bearer token for one inference provider. `repr` hides it."""

    provider: Address
    token_id: int
    generation: int
    created_at: dt.datetime
    expires_at: dt.datetime | None
    """None: never."""
    raw_token: str = field(repr=False)
    """`app-sk-...`; a secret."""

    @property
    def headers(self) -> dict[str, str]:
        """The headers that authenticate a request."""
        return {"Authorization": hidden(f"Bearer {self.raw_token}")}


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceMetadata(Shown):
    """Where and with which model to talk to an inference provider."""

    endpoint: str
    model: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Token counts of one answer."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    """Of the prompt's, those the provider took from its cache."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatAnswer:
    """A chat completion."""

    id: str
    model: str
    content: str
    finish_reason: str | None
    usage: Usage | None
    response_key: str | None
    """The id under which the provider keeps the answer's signature."""
    raw: Mapping[str, object] = field(repr=False)
    """The whole JSON as the provider sent it; of a stream, its chunks put together."""
    fee: int | None = None
    """Neuron, estimated from the registered prices."""
    proof: "AnswerProof | None" = None
    """Who signed it, and whether over these bytes."""
