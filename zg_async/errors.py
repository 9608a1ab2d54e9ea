"""The error tree. Inner nodes are what a caller would want to catch; `*` marks those where a retry helps.

ZgError                                  .code .retryable .hint .retry_after .context
  ConfigError                            something given can't be used: a file, an address, a setting
    BadKeyError                          no private key
    UnknownNetworkError                  no network of this name
    DatasetError                         .rows .reasons   a dataset the provider would refuse or spoil
    TrainingParamsError                  .parameter
  ClosedError                            used after close
  ChainError
    ChainUnavailableError *              RPC unreachable, timed out, rate-limited
    RpcError                             .rpc_code .data   an answer that is an error, but no revert
    TransactionTimeoutError *            .tx_hash   not mined yet: look again
    TransactionReplacedError             .account_nonce .tx_hash   a stranger's transaction took the nonce
    InsufficientGasFundsError            the wallet can't pay value and gas
    FeeCapError                          the node asks for more than the caps allow
    RefusedToSignError                   the guard doesn't know this transaction
    WrongChainError                      chain id, code or service names aren't what they should be
    ContractRevertedError                .error_name .arguments .data .contract
      AccountNotFoundError, LedgerNotFoundError, LedgerExistsError, ServiceNotFoundError,
      InsufficientBalanceError, MinimumDepositError, TooManyRefundsError, TooManyProvidersError,
      DeliverableNotFoundError, DeliverableSettledError, PreviousDeliverableNotAcknowledgedError
  LimitError                             a limit read from the chain would be broken; nothing was sent
  ProviderError                          .provider .endpoint
    ProviderUnavailableError *           no answer, 5xx, 429
    ProviderRejectedError                .status .body
      UnfinishedTaskError                .task_id   one unfinished task per wallet and provider
      QueueFullError *                   the provider takes no more tasks for now
      SignerNotAcknowledgedError         user or owner hasn't acknowledged the TEE signer
    ProviderReplyError                   an answer we can't read
    EndpointRefusedError                 the URL isn't https on a public address, and not allowed
    TaskNotFoundError
    NoInferenceServiceError              the provider is not registered for inference
    AdapterError                         .adapter_name .state
  StorageError                           StorageUnavailableError *, NotStoredError
  VerificationError                      never retried, never only logged
    HashMismatchError, SignatureMismatchError, AttestationError, EnvelopeError, UnsafeArchiveError
  KeyNotReleasedError                    the deliverable is not settled yet, or was settled without its key
    LostKeyError                         settled with penalty: no key will come
  JobError
    JobFailedError                       .stage .job_id .error_code
    JobCancelledError
    TaskFailedError                      .task_id .log
    JournalError                         the journal is damaged, foreign or driven by another process
"""

import copy
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Final, Self

from zg_async.correlation import FIELDS, correlation
from zg_async.text import printable_lines

_LINE: Final = 4000


class ZgError(Exception):
    """The base of everything this package raises on purpose."""

    code: ClassVar[str] = "error"
    """Stable, machine-readable name of the class of failure."""
    retryable: ClassVar[bool] = False
    """Whether the same call may succeed later without a change."""

    def __init__(self, message: str, *, hint: str | None = None, retry_after: float | None = None) -> None:
        """Make an error.

        Args:
            message: What failed, with addresses and amounts in units; never a secret. What moves a cursor or hides is
                written as an escape here and in the hint.
            hint: What to do next.
            retry_after: Seconds to wait before a retry, if the other side said so.
        """
        self.message = printable_lines(message, limit=_LINE)
        self.hint = None if hint is None else printable_lines(hint, limit=_LINE)
        super().__init__(self.message)
        self.retry_after = retry_after
        self._belongs: Mapping[str, str] = correlation()

    @property
    def context(self) -> dict[str, str]:
        """What it belongs to, as far as known: `job_id`, `task_id`, `provider`, `request_id`."""
        own = {name: value for name in FIELDS if isinstance(value := getattr(self, name, None), str) and value}
        return {**self._belongs, **own}

    def learn(self, fields: Mapping[str, str]) -> None:
        """Take in what it belongs to where it doesn't know yet: called as it passes through."""
        self._belongs = {**fields, **self._belongs}

    def again(self) -> Self:
        """Return a copy, for one more of several who wait for the same thing."""
        return copy.copy(self)

    def __str__(self) -> str:
        return f"{self.message}. {self.hint}" if self.hint else self.message

    def __reduce__(self) -> tuple[Any, ...]:
        """Copy and pickle without `__init__`: subclasses need keywords, which exceptions don't keep."""
        return _revive, (type(self), self.args), self.__dict__


def _revive(cls: type[ZgError], args: tuple[Any, ...]) -> ZgError:
    return cls.__new__(cls, *args)


class ConfigError(ZgError):
    """Something the user gave can't be used: key, network, file, parameter."""

    code = "config"


class BadKeyError(ConfigError):
    """What was given as a private key is none. The message never repeats it."""

    code = "bad_key"


class UnknownNetworkError(ConfigError):
    """No network has this name."""

    code = "unknown_network"


class DatasetError(ConfigError):
    """The dataset would be refused or spoiled by the provider."""

    code = "dataset"

    def __init__(
        self, message: str, *, rows: Sequence[int] = (), reasons: Sequence[str] = (), hint: str | None = None
    ) -> None:
        """Make an error; `rows` are line numbers from 1, `reasons` codes of a `DatasetReport` in their order."""
        super().__init__(message, hint=hint)
        self.rows = tuple(rows)
        self.reasons = tuple(reasons)


class TrainingParamsError(ConfigError):
    """The training parameters would be refused by the provider."""

    code = "training_params"

    def __init__(self, message: str, *, parameter: str | None = None, hint: str | None = None) -> None:
        """Make an error about one parameter, or about the whole file."""
        super().__init__(message, hint=hint)
        self.parameter = parameter


class ClosedError(ZgError):
    """An object was used after it was closed, or before it was entered."""

    code = "closed"


class ChainError(ZgError):
    """Something about the chain or a transaction."""

    code = "chain"


class ChainUnavailableError(ChainError):
    """The RPC endpoint didn't answer, timed out or limits the rate."""

    code = "chain_unavailable"
    retryable = True


class RpcError(ChainError):
    """The RPC endpoint answered with an error that is not a revert."""

    code = "rpc"

    def __init__(
        self, message: str, *, rpc_code: int | None = None, data: object = None, hint: str | None = None
    ) -> None:
        """Make an error from a JSON-RPC error object."""
        super().__init__(message, hint=hint)
        self.rpc_code = rpc_code
        self.data = data


class TransactionTimeoutError(ChainError):
    """A sent transaction is not mined yet. It isn't lost: look again with its hash."""

    code = "transaction_timeout"
    retryable = True

    def __init__(self, message: str, *, tx_hash: str, hint: str | None = None) -> None:
        """Make an error about the transaction `tx_hash`."""
        super().__init__(message, hint=hint)
        self.tx_hash = tx_hash


class TransactionReplacedError(ChainError):
    """A transaction that isn't ours was mined with our nonce."""

    code = "transaction_replaced"

    def __init__(
        self, message: str, *, account_nonce: int, tx_hash: str | None = None, hint: str | None = None
    ) -> None:
        """Make an error about `account_nonce`; `tx_hash` is the stranger's, if found."""
        super().__init__(message, hint=hint)
        self.account_nonce = account_nonce
        self.tx_hash = tx_hash


class InsufficientGasFundsError(ChainError):
    """The wallet can't pay a transaction's value and gas."""

    code = "insufficient_gas_funds"


class FeeCapError(ChainError):
    """Gas price or gas would exceed a cap."""

    code = "fee_cap"


class RefusedToSignError(ChainError):
    """The guard in front of the key doesn't know this transaction. Nothing was signed."""

    code = "refused_to_sign"


class WrongChainError(ChainError):
    """The node is on another chain, or the contracts there aren't the expected ones."""

    code = "wrong_chain"


class ContractRevertedError(ChainError):
    """A contract refused a call or a transaction."""

    code = "reverted"

    def __init__(
        self,
        message: str,
        *,
        error_name: str | None = None,
        arguments: Sequence[object] = (),
        data: bytes = b"",
        contract: str | None = None,
        tx_hash: str | None = None,
        hint: str | None = None,
    ) -> None:
        """Make an error from revert data.

        Args:
            message: What was refused and why.
            error_name: The custom error's name, `"Error"` for a string revert, None when unknown.
            arguments: Its decoded arguments.
            data: The raw revert data, kept for unknown errors.
            contract: The contract's address.
            tx_hash: The mined transaction, when it was mined with status 0.
            hint: What to do next.
        """
        super().__init__(message, hint=hint)
        self.error_name = error_name
        self.arguments = tuple(arguments)
        self.data = data
        self.contract = contract
        self.tx_hash = tx_hash


class AccountNotFoundError(ContractRevertedError):
    """There is no sub-account for this wallet at this provider."""

    code = "account_not_found"


class LedgerNotFoundError(ContractRevertedError):
    """The wallet has no ledger."""

    code = "ledger_not_found"


class LedgerExistsError(ContractRevertedError):
    """The wallet has a ledger already."""

    code = "ledger_exists"


class ServiceNotFoundError(ContractRevertedError):
    """The provider, or the service name, is not registered."""

    code = "service_not_found"


class InsufficientBalanceError(ContractRevertedError):
    """Ledger or sub-account holds too little."""

    code = "insufficient_balance"


class MinimumDepositError(ContractRevertedError):
    """The amount is below a contract minimum."""

    code = "minimum_deposit"


class TooManyRefundsError(ContractRevertedError):
    """The sub-account has five open refunds."""

    code = "too_many_refunds"


class TooManyProvidersError(ContractRevertedError):
    """More providers than the contract takes, in one call or for one wallet."""

    code = "too_many_providers"


class DeliverableNotFoundError(ContractRevertedError):
    """The chain has no such deliverable."""

    code = "deliverable_not_found"


class DeliverableSettledError(ContractRevertedError):
    """The deliverable is settled already."""

    code = "deliverable_settled"


class PreviousDeliverableNotAcknowledgedError(ContractRevertedError):
    """The newest deliverable of this wallet and provider is not acknowledged."""

    code = "previous_deliverable_not_acknowledged"


class LimitError(ZgError):
    """A limit read from the chain, or set by the user, would be broken. Nothing was sent."""

    code = "limit"


class ProviderError(ZgError):
    """Something about a provider."""

    code = "provider"

    def __init__(
        self,
        message: str,
        *,
        provider: str | None = None,
        endpoint: str | None = None,
        hint: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        """Make an error about the provider's address and the endpoint's `METHOD /path`."""
        super().__init__(message, hint=hint, retry_after=retry_after)
        self.provider = provider
        self.endpoint = endpoint
        self.request_id: str | None = None
        """The other side's name for the request, if it gave one."""


class ProviderUnavailableError(ProviderError):
    """The provider gave no answer, or 429 or 5xx."""

    code = "provider_unavailable"
    retryable = True

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        body: str = "",
        provider: str | None = None,
        endpoint: str | None = None,
        hint: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        """Make an error; `status` is None when there was no answer, `body` an excerpt."""
        super().__init__(message, provider=provider, endpoint=endpoint, hint=hint, retry_after=retry_after)
        self.status = status
        self.body = body


class ProviderRejectedError(ProviderError):
    """The provider refused a request."""

    code = "provider_rejected"

    def __init__(
        self,
        message: str,
        *,
        status: int,
        body: str = "",
        provider: str | None = None,
        endpoint: str | None = None,
        hint: str | None = None,
    ) -> None:
        """Make an error from a status and an excerpt of the body."""
        super().__init__(message, provider=provider, endpoint=endpoint, hint=hint)
        self.status = status
        self.body = body


class UnfinishedTaskError(ProviderRejectedError):
    """The wallet has an unfinished task at this provider; it takes one at a time."""

    code = "unfinished_task"

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        body: str = "",
        task_id: str | None = None,
        provider: str | None = None,
        endpoint: str | None = None,
        hint: str | None = None,
    ) -> None:
        """Make an error; `task_id` is the blocking task, if known."""
        super().__init__(message, status=status, body=body, provider=provider, endpoint=endpoint, hint=hint)
        self.task_id = task_id


class QueueFullError(ProviderRejectedError):
    """The provider takes no more tasks for now."""

    code = "queue_full"
    retryable = True


class SignerNotAcknowledgedError(ProviderRejectedError):
    """User or contract owner has not acknowledged the provider's TEE signer."""

    code = "signer_not_acknowledged"


class ProviderReplyError(ProviderError):
    """The provider's answer can't be read."""

    code = "provider_reply"


class EndpointRefusedError(ProviderError):
    """The URL isn't https on a public address, and the user hasn't allowed its host. Nothing was sent."""

    code = "endpoint_refused"


class TaskNotFoundError(ProviderError):
    """The provider doesn't know this task."""

    code = "task_not_found"


class NoInferenceServiceError(ProviderError):
    """The provider is not registered for inference, so it serves no adapters."""

    code = "no_inference_service"


class AdapterError(ProviderError):
    """An adapter can't be deployed or used."""

    code = "adapter"

    def __init__(
        self,
        message: str,
        *,
        adapter_name: str | None = None,
        state: str | None = None,
        provider: str | None = None,
        endpoint: str | None = None,
        hint: str | None = None,
    ) -> None:
        """Make an error about an adapter and the state it was last seen in."""
        super().__init__(message, provider=provider, endpoint=endpoint, hint=hint)
        self.adapter_name = adapter_name
        self.state = state


class StorageError(ZgError):
    """Something about 0G Storage."""

    code = "storage"


class StorageUnavailableError(StorageError):
    """No storage node or indexer could be reached."""

    code = "storage_unavailable"
    retryable = True


class NotStoredError(StorageError):
    """The root is not known, or not enough replicas were reached."""

    code = "not_stored"


class VerificationError(ZgError):
    """Something is not what it claims to be. Never retried, never only logged."""

    code = "verification"


class HashMismatchError(VerificationError):
    """Bytes don't have the hash they should have."""

    code = "hash_mismatch"


class SignatureMismatchError(VerificationError):
    """A signature is not by the expected signer."""

    code = "signature_mismatch"


class AttestationError(VerificationError):
    """A provider's quote or report failed a check."""

    code = "attestation"


class EnvelopeError(VerificationError):
    """An encrypted file or secret is cut, padded, damaged or for another key."""

    code = "envelope"


class UnsafeArchiveError(VerificationError):
    """An archive tries to escape, to link, or to blow up. Nothing of it was kept."""

    code = "unsafe_archive"


class KeyNotReleasedError(ZgError):
    """The provider has not published the decryption key."""

    code = "key_not_released"
    retryable = True


class LostKeyError(KeyNotReleasedError):
    """The deliverable was settled without acknowledgement: the penalty is paid and no key will come."""

    code = "lost_key"
    retryable = False


class JobError(ZgError):
    """Something about a job."""

    code = "job"


class JobFailedError(JobError):
    """A job ended without its result."""

    code = "job_failed"

    def __init__(self, message: str, *, job_id: str, stage: str, error_code: str = "", hint: str | None = None) -> None:
        """Make an error about the stage that failed; `error_code` is the `code` of what it failed with."""
        super().__init__(message, hint=hint)
        self.job_id = job_id
        self.stage = stage
        self.error_code = error_code


class JobCancelledError(JobError):
    """A job was cancelled by the user."""

    code = "job_cancelled"


class TaskFailedError(JobError):
    """The provider's task ended as Failed."""

    code = "task_failed"

    def __init__(self, message: str, *, task_id: str, log: str = "", hint: str | None = None) -> None:
        """Make an error with the end of the task's log, where the reason stands."""
        super().__init__(message, hint=hint)
        self.task_id = task_id
        self.log = log


class JournalError(JobError):
    """The journal is damaged, belongs to another wallet or chain, or is driven by another process."""

    code = "journal"
