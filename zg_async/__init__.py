"""Asyncio-native SDK and job runner for the 0G Compute Network.

Names are loaded when they are first used, so that importing the package costs nothing:

    async with create_broker(private_key=key, network="testnet") as broker, JobRunner(broker) as runner:
        job = await runner.submit(JobSpec(model="Qwen2.5-0.5B-Instruct", dataset="train.jsonl", ...))
        async for event in job.events():
            print(event)
        result = await job.result()
"""

import importlib
from typing import TYPE_CHECKING, Any

_HOMES = {
    "zg_async.broker": ("Broker", "create_broker"),
    "zg_async.clock": ("Clock", "SystemClock"),
    "zg_async.showing": ("Records", "to_frame", "to_rows"),
    "zg_async.errors": (
        "AccountNotFoundError",
        "AdapterError",
        "AttestationError",
        "BadKeyError",
        "ChainError",
        "ChainUnavailableError",
        "ClosedError",
        "ConfigError",
        "ContractRevertedError",
        "DatasetError",
        "DeliverableNotFoundError",
        "DeliverableSettledError",
        "EndpointRefusedError",
        "EnvelopeError",
        "FeeCapError",
        "HashMismatchError",
        "InsufficientBalanceError",
        "InsufficientGasFundsError",
        "JobCancelledError",
        "JobError",
        "JobFailedError",
        "JournalError",
        "KeyNotReleasedError",
        "LedgerExistsError",
        "LedgerNotFoundError",
        "LimitError",
        "LostKeyError",
        "MinimumDepositError",
        "NoInferenceServiceError",
        "NotStoredError",
        "PreviousDeliverableNotAcknowledgedError",
        "ProviderError",
        "ProviderRejectedError",
        "ProviderReplyError",
        "ProviderUnavailableError",
        "QueueFullError",
        "RefusedToSignError",
        "RpcError",
        "ServiceNotFoundError",
        "SignatureMismatchError",
        "SignerNotAcknowledgedError",
        "StorageError",
        "StorageUnavailableError",
        "TaskFailedError",
        "TaskNotFoundError",
        "TooManyProvidersError",
        "TooManyRefundsError",
        "TrainingParamsError",
        "TransactionReplacedError",
        "TransactionTimeoutError",
        "UnfinishedTaskError",
        "UnknownNetworkError",
        "UnsafeArchiveError",
        "VerificationError",
        "WrongChainError",
        "ZgError",
    ),
    "zg_async.jobs.batch": ("Batch", "BatchResult", "BatchRow", "read_batch"),
    "zg_async.jobs.notify": ("Callback", "Webhook"),
    "zg_async.jobs.policies": ("Approval", "StagePolicy"),
    "zg_async.jobs.sharing": ("drain_batch",),
    "zg_async.jobs.plan": ("JobPlan", "PlannedTransaction", "PlannedUpload"),
    "zg_async.jobs.handle": ("JobHandle",),
    "zg_async.jobs.runner": ("JobRunner",),
    "zg_async.jobs.spec": ("JobSpec", "read_spec"),
    "zg_async.jobs.sqlite": ("SqliteStore",),
    "zg_async.jobs.state": ("JobResult",),
    "zg_async.jobs.store": ("MemoryStore", "Store"),
    "zg_async.jobs.events": ("Event",),
    "zg_async.jobs.trackers": ("MlflowTracker", "TensorBoardTracker", "Tracker", "WandbTracker", "track_job"),
    "zg_async.logs": ("JsonLogFormatter",),
    "zg_async.managers.adapter_files": ("AdapterFolder", "describe_adapter"),
    "zg_async.managers.chat": ("ChatStream", "OpenAiConfig"),
    "zg_async.managers.dataset_sources": ("ProvidedDataset",),
    "zg_async.managers.costs": ("Cost", "CostReport", "SettledTask"),
    "zg_async.managers.choosing": ("ProviderChoice", "ProviderProbe"),
    "zg_async.managers.deliverables": ("Acknowledgement", "DeliveredModel"),
    "zg_async.managers.fine_tuning": ("FeeEstimate", "TaskPreflight"),
    "zg_async.managers.inference_funds": ("Funds", "Spending"),
    "zg_async.managers.inference_services": ("AutoFunded", "AutoFunding", "InferencePolicy"),
    "zg_async.managers.inference_tokens": ("ApiKey",),
    "zg_async.managers.funding": ("FundingPlan", "FundingStep"),
    "zg_async.managers.media": ("ImageAnswer", "ImageJob", "ImageJobStatus", "Transcript"),
    "zg_async.managers.retrieving": ("Retrieval",),
    "zg_async.managers.services": ("LedgerLimits",),
    "zg_async.managers.storage": ("StorageManager",),
    "zg_async.managers.task_changes": (
        "AckDeadlineNear",
        "DeliveredProviderLostState",
        "TaskChange",
        "TaskLogAppended",
        "TaskMetric",
        "TaskQueueMoved",
        "TaskStuck",
        "TaskSettled",
        "TaskStateChanged",
        "WatchResynced",
        "WatchWarning",
    ),
    "zg_async.managers.model_limits": ("ModelLimits",),
    "zg_async.managers.task_labels": ("TaskLabel",),
    "zg_async.managers.tokens": ("TokenCount",),
    "zg_async.managers.training_params": ("RawParams",),
    "zg_async.managers.verification_record": ("Evidence", "Pin", "ServiceVerification", "recheck_report"),
    "zg_async.managers.log_follow": ("LogFollow", "MetricFollow"),
    "zg_async.managers.refund_watch": ("RefundsChanged",),
    "zg_async.managers.polling": ("PollPolicy",),
    "zg_async.managers.watch": ("TaskWatch",),
    "zg_async.wire.metric_series": ("MetricSeries",),
    "zg_async.metrics": ("Histogram", "Metrics", "MetricsSnapshot"),
    "zg_async.networks": ("NETWORKS", "Network", "get_network"),
    "zg_async.transport.audit": ("AuditTrail", "AuditedSignature", "AuditedTransaction", "read_audit"),
    "zg_async.transport.budget": ("FirstSpending", "FirstTransfer", "SpendLimits"),
    "zg_async.transport.remote_signer": ("RemoteSigner",),
    "zg_async.transport.fees": ("FeePolicy",),
    "zg_async.transport.http": ("HttpSettings",),
    "zg_async.transport.limiter": ("ProviderLimits",),
    "zg_async.transport.outbox": ("MemoryOutbox", "Outbox"),
    "zg_async.transport.raw": ("RawReply", "raw_replies"),
    "zg_async.transport.retry": ("RetryPolicy",),
    "zg_async.transport.request_gate": ("RequestLimits",),
    "zg_async.transport.signer": ("DecryptionKey", "LocalSigner", "Signer"),
    "zg_async.transport.sqlite_outbox": ("SqliteOutbox",),
    "zg_async.transport.storage_settings": ("StorageProgress", "StorageSettings"),
    "zg_async.transport.tee": ("TeePolicy",),
    "zg_async.units": ("NEURON_PER_0G", "format_amount", "og_to_wei", "parse_amount", "wei_to_og"),
    "zg_async.wire.adapter_files": ("AdapterInfo",),
    "zg_async.wire.answer_proof": ("AnswerProof", "AnswerStatus"),
    "zg_async.wire.attestation": ("Check", "QuoteReport"),
    "zg_async.wire.catalogue": ("InferenceServiceDetail", "ModelInfo", "ServiceHealth", "ServicePrices"),
    "zg_async.wire.records": (
        "AccountSummary",
        "Adapter",
        "AdapterState",
        "Address",
        "CancelOutcome",
        "CancelResult",
        "ChatAnswer",
        "Deliverable",
        "DeployResponse",
        "DownloadedModel",
        "FineTuningAccountDetail",
        "FineTuningAccountDetails",
        "FineTuningService",
        "InferenceAccount",
        "InferenceAccountDetail",
        "InferenceService",
        "JobId",
        "Ledger",
        "LedgerDetail",
        "Model",
        "ModelCatalogue",
        "Quota",
        "Receipt",
        "Refund",
        "RootHash",
        "ServiceMetadata",
        "SessionToken",
        "SourceAttempt",
        "Task",
        "TaskId",
        "TaskProgress",
        "TxHash",
        "UploadedDataset",
        "Usage",
    ),
    "zg_async.wire.rows": ("DatasetReport", "ParameterLimit", "TrainingParams"),
    "zg_async.wire.sse": ("ChatChunk", "ChatDelta"),
    "zg_async.wire.storage_records": ("FetchedFile", "StoredFile"),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}

__version__ = "0.1.0"
__all__ = sorted([*_HOME, "__version__"])  # pyright: ignore[reportUnsupportedDunderAll]

if TYPE_CHECKING:
    from zg_async.broker import Broker as Broker
    from zg_async.broker import create_broker as create_broker
    from zg_async.clock import Clock as Clock
    from zg_async.clock import SystemClock as SystemClock
    from zg_async.errors import AccountNotFoundError as AccountNotFoundError
    from zg_async.errors import AdapterError as AdapterError
    from zg_async.errors import AttestationError as AttestationError
    from zg_async.errors import BadKeyError as BadKeyError
    from zg_async.errors import ChainError as ChainError
    from zg_async.errors import ChainUnavailableError as ChainUnavailableError
    from zg_async.errors import ClosedError as ClosedError
    from zg_async.errors import ConfigError as ConfigError
    from zg_async.errors import ContractRevertedError as ContractRevertedError
    from zg_async.errors import DatasetError as DatasetError
    from zg_async.errors import DeliverableNotFoundError as DeliverableNotFoundError
    from zg_async.errors import DeliverableSettledError as DeliverableSettledError
    from zg_async.errors import EndpointRefusedError as EndpointRefusedError
    from zg_async.errors import EnvelopeError as EnvelopeError
    from zg_async.errors import FeeCapError as FeeCapError
    from zg_async.errors import HashMismatchError as HashMismatchError
    from zg_async.errors import InsufficientBalanceError as InsufficientBalanceError
    from zg_async.errors import InsufficientGasFundsError as InsufficientGasFundsError
    from zg_async.errors import JobCancelledError as JobCancelledError
    from zg_async.errors import JobError as JobError
    from zg_async.errors import JobFailedError as JobFailedError
    from zg_async.errors import JournalError as JournalError
    from zg_async.errors import KeyNotReleasedError as KeyNotReleasedError
    from zg_async.errors import LedgerExistsError as LedgerExistsError
    from zg_async.errors import LedgerNotFoundError as LedgerNotFoundError
    from zg_async.errors import LimitError as LimitError
    from zg_async.errors import LostKeyError as LostKeyError
    from zg_async.errors import MinimumDepositError as MinimumDepositError
    from zg_async.errors import NoInferenceServiceError as NoInferenceServiceError
    from zg_async.errors import NotStoredError as NotStoredError
    from zg_async.errors import PreviousDeliverableNotAcknowledgedError as PreviousDeliverableNotAcknowledgedError
    from zg_async.errors import ProviderError as ProviderError
    from zg_async.errors import ProviderRejectedError as ProviderRejectedError
    from zg_async.errors import ProviderReplyError as ProviderReplyError
    from zg_async.errors import ProviderUnavailableError as ProviderUnavailableError
    from zg_async.errors import QueueFullError as QueueFullError
    from zg_async.errors import RefusedToSignError as RefusedToSignError
    from zg_async.errors import RpcError as RpcError
    from zg_async.errors import ServiceNotFoundError as ServiceNotFoundError
    from zg_async.errors import SignatureMismatchError as SignatureMismatchError
    from zg_async.errors import SignerNotAcknowledgedError as SignerNotAcknowledgedError
    from zg_async.errors import StorageError as StorageError
    from zg_async.errors import StorageUnavailableError as StorageUnavailableError
    from zg_async.errors import TaskFailedError as TaskFailedError
    from zg_async.errors import TaskNotFoundError as TaskNotFoundError
    from zg_async.errors import TooManyProvidersError as TooManyProvidersError
    from zg_async.errors import TooManyRefundsError as TooManyRefundsError
    from zg_async.errors import TrainingParamsError as TrainingParamsError
    from zg_async.errors import TransactionReplacedError as TransactionReplacedError
    from zg_async.errors import TransactionTimeoutError as TransactionTimeoutError
    from zg_async.errors import UnfinishedTaskError as UnfinishedTaskError
    from zg_async.errors import UnknownNetworkError as UnknownNetworkError
    from zg_async.errors import UnsafeArchiveError as UnsafeArchiveError
    from zg_async.errors import VerificationError as VerificationError
    from zg_async.errors import WrongChainError as WrongChainError
    from zg_async.errors import ZgError as ZgError
    from zg_async.jobs.batch import Batch as Batch
    from zg_async.jobs.batch import BatchResult as BatchResult
    from zg_async.jobs.batch import BatchRow as BatchRow
    from zg_async.jobs.batch import read_batch as read_batch
    from zg_async.jobs.events import Event as Event
    from zg_async.jobs.handle import JobHandle as JobHandle
    from zg_async.jobs.notify import Callback as Callback
    from zg_async.jobs.notify import Webhook as Webhook
    from zg_async.jobs.plan import JobPlan as JobPlan
    from zg_async.jobs.plan import PlannedTransaction as PlannedTransaction
    from zg_async.jobs.plan import PlannedUpload as PlannedUpload
    from zg_async.jobs.policies import Approval as Approval
    from zg_async.jobs.policies import StagePolicy as StagePolicy
    from zg_async.jobs.runner import JobRunner as JobRunner
    from zg_async.jobs.sharing import drain_batch as drain_batch
    from zg_async.jobs.spec import JobSpec as JobSpec
    from zg_async.jobs.spec import read_spec as read_spec
    from zg_async.jobs.sqlite import SqliteStore as SqliteStore
    from zg_async.jobs.state import JobResult as JobResult
    from zg_async.jobs.store import MemoryStore as MemoryStore
    from zg_async.jobs.store import Store as Store
    from zg_async.jobs.trackers import MlflowTracker as MlflowTracker
    from zg_async.jobs.trackers import TensorBoardTracker as TensorBoardTracker
    from zg_async.jobs.trackers import Tracker as Tracker
    from zg_async.jobs.trackers import WandbTracker as WandbTracker
    from zg_async.jobs.trackers import track_job as track_job
    from zg_async.logs import JsonLogFormatter as JsonLogFormatter
    from zg_async.managers.adapter_files import AdapterFolder as AdapterFolder
    from zg_async.managers.adapter_files import describe_adapter as describe_adapter
    from zg_async.managers.chat import ChatStream as ChatStream
    from zg_async.managers.chat import OpenAiConfig as OpenAiConfig
    from zg_async.managers.choosing import ProviderChoice as ProviderChoice
    from zg_async.managers.choosing import ProviderProbe as ProviderProbe
    from zg_async.managers.costs import Cost as Cost
    from zg_async.managers.costs import CostReport as CostReport
    from zg_async.managers.costs import SettledTask as SettledTask
    from zg_async.managers.dataset_sources import ProvidedDataset as ProvidedDataset
    from zg_async.managers.deliverables import Acknowledgement as Acknowledgement
    from zg_async.managers.deliverables import DeliveredModel as DeliveredModel
    from zg_async.managers.fine_tuning import FeeEstimate as FeeEstimate
    from zg_async.managers.fine_tuning import TaskPreflight as TaskPreflight
    from zg_async.managers.funding import FundingPlan as FundingPlan
    from zg_async.managers.funding import FundingStep as FundingStep
    from zg_async.managers.inference_funds import Funds as Funds
    from zg_async.managers.inference_funds import Spending as Spending
    from zg_async.managers.inference_services import AutoFunded as AutoFunded
    from zg_async.managers.inference_services import AutoFunding as AutoFunding
    from zg_async.managers.inference_services import InferencePolicy as InferencePolicy
    from zg_async.managers.inference_tokens import ApiKey as ApiKey
    from zg_async.managers.log_follow import LogFollow as LogFollow
    from zg_async.managers.log_follow import MetricFollow as MetricFollow
    from zg_async.managers.media import ImageAnswer as ImageAnswer
    from zg_async.managers.media import ImageJob as ImageJob
    from zg_async.managers.media import ImageJobStatus as ImageJobStatus
    from zg_async.managers.media import Transcript as Transcript
    from zg_async.managers.model_limits import ModelLimits as ModelLimits
    from zg_async.managers.polling import PollPolicy as PollPolicy
    from zg_async.managers.refund_watch import RefundsChanged as RefundsChanged
    from zg_async.managers.retrieving import Retrieval as Retrieval
    from zg_async.managers.services import LedgerLimits as LedgerLimits
    from zg_async.managers.storage import StorageManager as StorageManager
    from zg_async.managers.task_changes import AckDeadlineNear as AckDeadlineNear
    from zg_async.managers.task_changes import DeliveredProviderLostState as DeliveredProviderLostState
    from zg_async.managers.task_changes import TaskChange as TaskChange
    from zg_async.managers.task_changes import TaskLogAppended as TaskLogAppended
    from zg_async.managers.task_changes import TaskMetric as TaskMetric
    from zg_async.managers.task_changes import TaskQueueMoved as TaskQueueMoved
    from zg_async.managers.task_changes import TaskSettled as TaskSettled
    from zg_async.managers.task_changes import TaskStateChanged as TaskStateChanged
    from zg_async.managers.task_changes import TaskStuck as TaskStuck
    from zg_async.managers.task_changes import WatchResynced as WatchResynced
    from zg_async.managers.task_changes import WatchWarning as WatchWarning
    from zg_async.managers.task_labels import TaskLabel as TaskLabel
    from zg_async.managers.tokens import TokenCount as TokenCount
    from zg_async.managers.training_params import RawParams as RawParams
    from zg_async.managers.verification_record import Evidence as Evidence
    from zg_async.managers.verification_record import Pin as Pin
    from zg_async.managers.verification_record import ServiceVerification as ServiceVerification
    from zg_async.managers.verification_record import recheck_report as recheck_report
    from zg_async.managers.watch import TaskWatch as TaskWatch
    from zg_async.metrics import Histogram as Histogram
    from zg_async.metrics import Metrics as Metrics
    from zg_async.metrics import MetricsSnapshot as MetricsSnapshot
    from zg_async.networks import NETWORKS as NETWORKS
    from zg_async.networks import Network as Network
    from zg_async.networks import get_network as get_network
    from zg_async.showing import Records as Records
    from zg_async.showing import to_frame as to_frame
    from zg_async.showing import to_rows as to_rows
    from zg_async.transport.audit import AuditedSignature as AuditedSignature
    from zg_async.transport.audit import AuditedTransaction as AuditedTransaction
    from zg_async.transport.audit import AuditTrail as AuditTrail
    from zg_async.transport.audit import read_audit as read_audit
    from zg_async.transport.budget import FirstSpending as FirstSpending
    from zg_async.transport.budget import FirstTransfer as FirstTransfer
    from zg_async.transport.budget import SpendLimits as SpendLimits
    from zg_async.transport.fees import FeePolicy as FeePolicy
    from zg_async.transport.http import HttpSettings as HttpSettings
    from zg_async.transport.limiter import ProviderLimits as ProviderLimits
    from zg_async.transport.outbox import MemoryOutbox as MemoryOutbox
    from zg_async.transport.outbox import Outbox as Outbox
    from zg_async.transport.raw import RawReply as RawReply
    from zg_async.transport.raw import raw_replies as raw_replies
    from zg_async.transport.remote_signer import RemoteSigner as RemoteSigner
    from zg_async.transport.request_gate import RequestLimits as RequestLimits
    from zg_async.transport.retry import RetryPolicy as RetryPolicy
    from zg_async.transport.signer import DecryptionKey as DecryptionKey
    from zg_async.transport.signer import LocalSigner as LocalSigner
    from zg_async.transport.signer import Signer as Signer
    from zg_async.transport.sqlite_outbox import SqliteOutbox as SqliteOutbox
    from zg_async.transport.storage_settings import StorageProgress as StorageProgress
    from zg_async.transport.storage_settings import StorageSettings as StorageSettings
    from zg_async.transport.tee import TeePolicy as TeePolicy
    from zg_async.units import NEURON_PER_0G as NEURON_PER_0G
    from zg_async.units import format_amount as format_amount
    from zg_async.units import og_to_wei as og_to_wei
    from zg_async.units import parse_amount as parse_amount
    from zg_async.units import wei_to_og as wei_to_og
    from zg_async.wire.adapter_files import AdapterInfo as AdapterInfo
    from zg_async.wire.answer_proof import AnswerProof as AnswerProof
    from zg_async.wire.answer_proof import AnswerStatus as AnswerStatus
    from zg_async.wire.attestation import Check as Check
    from zg_async.wire.attestation import QuoteReport as QuoteReport
    from zg_async.wire.catalogue import InferenceServiceDetail as InferenceServiceDetail
    from zg_async.wire.catalogue import ModelInfo as ModelInfo
    from zg_async.wire.catalogue import ServiceHealth as ServiceHealth
    from zg_async.wire.catalogue import ServicePrices as ServicePrices
    from zg_async.wire.metric_series import MetricSeries as MetricSeries
    from zg_async.wire.records import AccountSummary as AccountSummary
    from zg_async.wire.records import Adapter as Adapter
    from zg_async.wire.records import AdapterState as AdapterState
    from zg_async.wire.records import Address as Address
    from zg_async.wire.records import CancelOutcome as CancelOutcome
    from zg_async.wire.records import CancelResult as CancelResult
    from zg_async.wire.records import ChatAnswer as ChatAnswer
    from zg_async.wire.records import Deliverable as Deliverable
    from zg_async.wire.records import DeployResponse as DeployResponse
    from zg_async.wire.records import DownloadedModel as DownloadedModel
    from zg_async.wire.records import FineTuningAccountDetail as FineTuningAccountDetail
    from zg_async.wire.records import FineTuningAccountDetails as FineTuningAccountDetails
    from zg_async.wire.records import FineTuningService as FineTuningService
    from zg_async.wire.records import InferenceAccount as InferenceAccount
    from zg_async.wire.records import InferenceAccountDetail as InferenceAccountDetail
    from zg_async.wire.records import InferenceService as InferenceService
    from zg_async.wire.records import JobId as JobId
    from zg_async.wire.records import Ledger as Ledger
    from zg_async.wire.records import LedgerDetail as LedgerDetail
    from zg_async.wire.records import Model as Model
    from zg_async.wire.records import ModelCatalogue as ModelCatalogue
    from zg_async.wire.records import Quota as Quota
    from zg_async.wire.records import Receipt as Receipt
    from zg_async.wire.records import Refund as Refund
    from zg_async.wire.records import RootHash as RootHash
    from zg_async.wire.records import ServiceMetadata as ServiceMetadata
    from zg_async.wire.records import SessionToken as SessionToken
    from zg_async.wire.records import SourceAttempt as SourceAttempt
    from zg_async.wire.records import Task as Task
    from zg_async.wire.records import TaskId as TaskId
    from zg_async.wire.records import TaskProgress as TaskProgress
    from zg_async.wire.records import TxHash as TxHash
    from zg_async.wire.records import UploadedDataset as UploadedDataset
    from zg_async.wire.records import Usage as Usage
    from zg_async.wire.rows import DatasetReport as DatasetReport
    from zg_async.wire.rows import ParameterLimit as ParameterLimit
    from zg_async.wire.rows import TrainingParams as TrainingParams
    from zg_async.wire.sse import ChatChunk as ChatChunk
    from zg_async.wire.sse import ChatDelta as ChatDelta
    from zg_async.wire.storage_records import FetchedFile as FetchedFile
    from zg_async.wire.storage_records import StoredFile as StoredFile


def __getattr__(name: str) -> Any:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module 'zg_async' has no attribute {name!r}")
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
