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
    "zg_async.errors": (
        "AccountNotFoundError",
        "AdapterError",
        "AttestationError",
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
        "UnsafeArchiveError",
        "VerificationError",
        "WrongChainError",
        "ZgError",
    ),
    "zg_async.managers.deliverables": ("Acknowledgement", "DeliveredModel"),
    "zg_async.managers.fine_tuning": ("TaskPreflight",),
    "zg_async.managers.ledger": ("FundingPlan", "FundingStep"),
    "zg_async.managers.services": ("LedgerLimits",),
    "zg_async.managers.task_changes": (
        "AckDeadlineNear",
        "DeliveredProviderLostState",
        "TaskChange",
        "TaskLogAppended",
        "TaskSettled",
        "TaskStateChanged",
        "WatchResynced",
        "WatchWarning",
    ),
    "zg_async.managers.watch": ("LogFollow", "PollPolicy", "TaskWatch"),
    "zg_async.networks": ("NETWORKS", "Network", "get_network"),
    "zg_async.transport.fees": ("FeePolicy",),
    "zg_async.transport.http": ("HttpSettings",),
    "zg_async.transport.limiter": ("ProviderLimits",),
    "zg_async.transport.outbox": ("MemoryOutbox", "Outbox"),
    "zg_async.transport.retry": ("RetryPolicy",),
    "zg_async.transport.signer": ("DecryptionKey", "LocalSigner", "Signer"),
    "zg_async.transport.sqlite_outbox": ("SqliteOutbox",),
    "zg_async.units": ("NEURON_PER_0G", "format_amount", "og_to_wei", "parse_amount", "wei_to_og"),
    "zg_async.wire.attestation": ("QuoteReport",),
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
        "Task",
        "TaskId",
        "TaskProgress",
        "TxHash",
        "UploadedDataset",
        "Usage",
    ),
    "zg_async.wire.rows": ("DatasetReport", "TrainingParams"),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}

__version__ = "0.1.0"
__all__ = sorted([*_HOME, "__version__"])

if TYPE_CHECKING:
    from zg_async.broker import Broker as Broker
    from zg_async.broker import create_broker as create_broker


def __getattr__(name: str) -> Any:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module 'zg_async' has no attribute {name!r}")
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
