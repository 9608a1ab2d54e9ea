"""Calls of the five contracts: what to send, and what comes back as records.

A `Call` is data: who is called, with which bytes, and how to read the answer. Nothing here talks to a chain.
Source of every function: 0g-serving-contract contracts/{ledger,fine-tuning,inference} and 0g-storage-contracts.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Generic, TypeVar

from zg_async.errors import RpcError, WrongChainError
from zg_async.wire import contract_abi
from zg_async.wire.contract_abi import ERRORS, EVENTS, FUNCTIONS, AbiDataError, FunctionAbi
from zg_async.wire.contract_abi import contract_abi as _abi
from zg_async.wire.contract_errors import DecodedError, decode_error, revert_error
from zg_async.wire.contract_events import (
    TOPIC,
    AccountDeleted,
    AllTokensRevoked,
    BalanceUpdated,
    BatchBalanceUpdated,
    ContractInitialized,
    DeliverableAbandoned,
    DeliverableAcknowledged,
    DeliverableAdded,
    DeliverableEvicted,
    Event,
    FeesSettled,
    FundSpent,
    InferenceServiceUpdated,
    Initialized,
    LedgerInfoUpdated,
    LockTimeUpdated,
    NewEpoch,
    OwnershipTransferred,
    Paused,
    ProviderStaked,
    ProviderStakeReturned,
    ProviderTeeSignerAcknowledged,
    RecommendedServiceUpdated,
    RefundRequested,
    RoleAdminChanged,
    RoleGranted,
    RoleRevoked,
    ServiceRegistered,
    ServiceRemoved,
    ServiceUpdated,
    StorageInitialized,
    Submit,
    TeeSettlementResult,
    TokenRevoked,
    TokensRevoked,
    Unpaused,
    decode_log,
    quota,
    timestamp,
)
from zg_async.wire.contract_tables import FINE_TUNING, FLOW, INFERENCE, LEDGER, MARKET
from zg_async.wire.hashing import hex0x
from zg_async.wire.records import (
    AccountSummary,
    Address,
    Deliverable,
    FineTuningAccountDetails,
    FineTuningService,
    InferenceAccount,
    InferenceService,
    Ledger,
    Quota,
    Refund,
    ServiceInfo,
    TaskId,
)

T = TypeVar("T")
Row = tuple[Any, ...]

__all__ = [
    "ERRORS",
    "EVENTS",
    "FINE_TUNING",
    "FLOW",
    "FUNCTIONS",
    "INFERENCE",
    "LEDGER",
    "MARKET",
    "TOPIC",
    "AccountDeleted",
    "AllTokensRevoked",
    "BalanceUpdated",
    "BatchBalanceUpdated",
    "Call",
    "ContractInitialized",
    "DecodedError",
    "DeliverableAbandoned",
    "DeliverableAcknowledged",
    "DeliverableAdded",
    "DeliverableEvicted",
    "Event",
    "FeesSettled",
    "FineTuningContract",
    "FlowContract",
    "FundSpent",
    "InferenceContract",
    "InferenceServiceUpdated",
    "Initialized",
    "LedgerContract",
    "LedgerInfoUpdated",
    "LockTimeUpdated",
    "MarketContract",
    "NewEpoch",
    "OwnershipTransferred",
    "Paused",
    "ProviderStakeReturned",
    "ProviderStaked",
    "ProviderTeeSignerAcknowledged",
    "RecommendedServiceUpdated",
    "RefundRequested",
    "RoleAdminChanged",
    "RoleGranted",
    "RoleRevoked",
    "ServiceRegistered",
    "ServiceRemoved",
    "ServiceUpdated",
    "StorageInitialized",
    "Submit",
    "TeeSettlementResult",
    "TokenRevoked",
    "TokensRevoked",
    "Unpaused",
    "decode_call",
    "decode_error",
    "decode_log",
    "revert_error",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Call(Generic[T]):
    """One contract call."""

    to: Address
    data: bytes
    name: str
    """Contract and function, e.g. `LedgerManager.transferFund`."""
    decode: Callable[[bytes], T]
    """Reads the result. Raises WrongChainError when it is empty, RpcError when it can't be read."""
    value: int = 0
    """Neuron sent along."""


def decode_call(data: bytes, contract_name: str) -> tuple[FunctionAbi, tuple[Any, ...]]:
    """Decode calldata.

    Args:
        data: Selector and arguments.
        contract_name: E.g. `LedgerManager`.

    Raises:
        ValueError: No function of that contract, or arguments that don't fit or aren't all.
    """
    function = FUNCTIONS[contract_name].get(data[:4])
    if function is None:
        raise ValueError(f"{contract_name} has no function {hex0x(data[:4])}")
    arguments = contract_abi.decode(function.inputs, data[4:], limits=False)
    if contract_abi.encode(function.inputs, arguments) != data[4:]:
        raise AbiDataError("not in canonical form")
    return function, arguments


class _Contract:
    name: ClassVar[str]

    def __init__(self, address: str) -> None:
        self.address = Address(address)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.address!r})"

    def function(self, name: str, *arguments: Any, value: int = 0) -> Call[Any]:
        """Make a call by the ABI's own function name.

        Args:
            name: E.g. `grantRole`.
            arguments: In the ABI's order; structs as tuples.
            value: Neuron sent along.

        Returns:
            A call that decodes to None, one value, or a tuple.

        Raises:
            KeyError: No such function.
            ValueError: An argument doesn't fit.
        """
        return self._call(name, *arguments, decode=_plain, value=value)

    def _call(self, name: str, *arguments: Any, decode: Callable[[Row], T], value: int = 0) -> Call[T]:
        function = _abi(self.name).function(name)
        data = function.selector + contract_abi.encode(function.inputs, arguments)
        full_name = f"{self.name}.{name}"
        return Call(
            to=self.address, data=data, name=full_name, decode=_reader(function, full_name, decode), value=value
        )

    def _write(self, name: str, *arguments: Any, value: int = 0) -> Call[None]:
        return self._call(name, *arguments, decode=_nothing, value=value)

    def _one(self, name: str, *arguments: Any) -> Call[Any]:
        return self._call(name, *arguments, decode=_first)


def _reader(function: FunctionAbi, name: str, convert: Callable[[Row], T]) -> Callable[[bytes], T]:
    def read(data: bytes) -> T:
        if not data and function.outputs:
            raise WrongChainError(
                f"{name} gave no answer", hint="There is no such contract at this address: check the network."
            )
        try:
            return convert(contract_abi.decode(function.outputs, data, owner=function.name))
        except AbiDataError as error:
            raise RpcError(f"the answer of {name} can't be read: {error}") from None

    return read


def _nothing(_row: Row) -> None:
    return None


def _first(row: Row) -> Any:
    return row[0]


def _plain(row: Row) -> Any:
    return row[0] if len(row) == 1 else row or None


def _page(limit: int, record: Callable[[Row], T]) -> Callable[[Row], tuple[tuple[T, ...], int]]:
    def read(row: Row) -> tuple[tuple[T, ...], int]:
        rows, total = row
        if len(rows) > (limit or 50):
            raise AbiDataError(f"{len(rows)} entries, {limit or 50} were asked for")
        return tuple(map(record, rows)), total

    return read


def _many(record: Callable[[Row], T]) -> Callable[[Row], tuple[T, ...]]:
    return lambda row: tuple(map(record, row[0]))


# --- structs ---------------------------------------------------------------------------------------------------------


def _ledger(row: Row) -> Ledger:
    user, available, total, info = row
    return Ledger(user=user, available_balance=available, total_balance=total, additional_info=info)


def _service_info(row: Row) -> ServiceInfo:
    address, contract, kind, version, full_name, description, recommended, registered_at = row
    return ServiceInfo(
        service_address=address,
        service_contract=contract,
        service_type=kind,
        version=version,
        full_name=full_name,
        description=description,
        is_recommended=recommended,
        registered_at=registered_at,
    )


def _refunds(rows: Sequence[Row], live: int) -> tuple[Refund, ...]:
    """Only the first `live` entries count: what lies behind them is stale storage (IServing, Refund)."""
    return tuple(
        Refund(index=index, amount=amount, created_at=timestamp(created))
        for index, amount, created, _processed in rows[:live]
        if amount
    )


def _fine_tuning_service(row: Row) -> FineTuningService:
    provider, url, quota_row, price, occupied, models, signer, acknowledged = row
    return FineTuningService(
        provider=provider,
        url=url,
        quota=quota(quota_row),
        price_per_token=price,
        occupied=occupied,
        models=models,
        tee_signer_address=signer,
        tee_signer_acknowledged=acknowledged,
    )


def _deliverable(row: Row) -> Deliverable:
    id_, root, secret, acknowledged, time, settled = row
    return Deliverable(
        id=TaskId(id_),
        model_root_hash=root,
        encrypted_secret=secret,
        acknowledged=acknowledged,
        timestamp=timestamp(time),
        settled=settled,
    )


def _fine_tuning_account(row: Row) -> FineTuningAccountDetails:
    user, provider, nonce, balance, pending, refunds, info, deliverables, live, _head, _count, acknowledged = row
    return FineTuningAccountDetails(
        user=user,
        provider=provider,
        account_nonce=nonce,
        balance=balance,
        pending_refund=pending,
        refunds=_refunds(refunds, live),
        additional_info=info,
        deliverables=tuple(map(_deliverable, deliverables)),
        acknowledged=acknowledged,
    )


def _account_summary(row: Row) -> AccountSummary:
    user, provider, nonce, balance, pending, _info, refunds, deliverables, acknowledged = row
    return AccountSummary(
        user=user,
        provider=provider,
        account_nonce=nonce,
        balance=balance,
        pending_refund=pending,
        acknowledged=acknowledged,
        refund_count=refunds,
        deliverable_count=deliverables,
    )


def _inference_service(row: Row) -> InferenceService:
    provider, kind, url, input_price, output_price, updated, model, verifiability, info, signer, acknowledged = row
    return InferenceService(
        provider=provider,
        service_type=kind,
        url=url,
        input_price=input_price,
        output_price=output_price,
        updated_at=timestamp(updated),
        model=model,
        verifiability=verifiability,
        additional_info=info,
        tee_signer_address=signer,
        tee_signer_acknowledged=acknowledged,
    )


def _inference_account(row: Row) -> InferenceAccount:
    user, provider, nonce, balance, pending, refunds, info, acknowledged, live, generation, bitmap = row
    return InferenceAccount(
        user=user,
        provider=provider,
        account_nonce=nonce,
        balance=balance,
        pending_refund=pending,
        refunds=_refunds(refunds, live),
        additional_info=info,
        acknowledged=acknowledged,
        generation=generation,
        revoked_bitmap=bitmap,
    )


# --- contracts -------------------------------------------------------------------------------------------------------


class _Owned(_Contract):
    def owner(self) -> Call[Address]:
        """Read who may change the contract."""
        return self._one("owner")

    def initialized(self) -> Call[bool]:
        """Read whether the contract was set up."""
        return self._one("initialized")

    def transfer_ownership(self, new_owner: str) -> Call[None]:
        """Hand the contract over."""
        return self._write("transferOwnership", new_owner)

    def renounce_ownership(self) -> Call[None]:
        """Leave the contract without an owner."""
        return self._write("renounceOwnership")


class LedgerContract(_Owned):
    """Calls of the LedgerManager. Amounts in neuron; `value` is sent along."""

    name = LEDGER

    def initialize(self, owner: str) -> Call[None]:
        """Set the contract up."""
        return self._write("initialize", owner)

    def add_ledger(self, additional_info: str = "", *, value: int) -> Call[tuple[int, int]]:
        """Create the sender's ledger with `value` in it."""
        return self._call("addLedger", additional_info, decode=lambda row: (row[0], row[1]), value=value)

    def deposit_fund(self, *, value: int) -> Call[None]:
        """Add `value` to the sender's ledger; creates it if need be."""
        return self._write("depositFund", value=value)

    def deposit_fund_for(self, recipient: str, *, value: int) -> Call[None]:
        """Add `value` to another wallet's ledger; creates it if need be."""
        return self._write("depositFundFor", recipient, value=value)

    def update_additional_info(self, additional_info: str) -> Call[None]:
        """Change the ledger's text (4096 bytes at most)."""
        return self._write("updateAdditionalInfo", additional_info)

    def refund(self, amount: int) -> Call[None]:
        """Withdraw from the ledger to the wallet. A total of zero deletes ledger and sub-accounts."""
        return self._write("refund", amount)

    def transfer_fund(self, provider: str, service_name: str, amount: int) -> Call[None]:
        """Move from ledger to sub-account; `service_name` is the registered full name."""
        return self._write("transferFund", provider, service_name, amount)

    def retrieve_fund(self, providers: Sequence[str], service_name: str) -> Call[None]:
        """Collect unlocked refunds of sub-accounts and request the rest (20 providers at most)."""
        return self._write("retrieveFund", list(providers), service_name)

    def delete_ledger(self) -> Call[None]:
        """Delete an empty ledger and its sub-accounts."""
        return self._write("deleteLedger")

    def spend_fund(self, user: str, amount: int) -> Call[None]:
        """Take settled money out (for serving contracts)."""
        return self._write("spendFund", user, amount)

    def register_service(self, service_type: str, version: str, service_address: str, description: str) -> Call[None]:
        """Register a serving contract (for the owner)."""
        return self._write("registerService", service_type, version, service_address, description)

    def set_recommended_service(self, service_type: str, version: str) -> Call[None]:
        """Recommend a version (for the owner)."""
        return self._write("setRecommendedService", service_type, version)

    def get_ledger(self, user: str) -> Call[Ledger]:
        """Read a wallet's ledger; reverts LedgerNotExists."""
        return self._call("getLedger", user, decode=lambda row: _ledger(row[0]))

    def get_all_ledgers(self, offset: int, limit: int) -> Call[tuple[tuple[Ledger, ...], int]]:
        """Read a page of ledgers and their number; limit 0 means 50."""
        return self._call("getAllLedgers", offset, limit, decode=_page(limit, _ledger))

    def get_ledger_providers(self, user: str, service_name: str) -> Call[tuple[Address, ...]]:
        """Read at which providers a wallet has sub-accounts of a service."""
        return self._one("getLedgerProviders", user, service_name)

    def get_service_info(self, service_address: str) -> Call[ServiceInfo]:
        """Read how a serving contract is registered; an unknown one has an empty full name."""
        return self._call("getServiceInfo", service_address, decode=lambda row: _service_info(row[0]))

    def get_service_address_by_name(self, service_name: str) -> Call[Address]:
        """Read a serving contract's address by full name; the zero address when unknown."""
        return self._one("getServiceAddressByName", service_name)

    def get_all_active_services(self) -> Call[tuple[ServiceInfo, ...]]:
        """Read all registered serving contracts."""
        return self._call("getAllActiveServices", decode=_many(_service_info))

    def get_recommended_service(self, service_type: str) -> Call[tuple[str, Address]]:
        """Read the recommended version of a type and its address."""
        return self._call("getRecommendedService", service_type, decode=lambda row: (row[0], row[1]))

    def get_all_versions(self, service_type: str) -> Call[tuple[tuple[str, Address, bool], ...]]:
        """Read all versions of a type: version, address, whether recommended."""
        return self._call("getAllVersions", service_type, decode=lambda row: tuple(zip(*row, strict=False)))

    def is_recommended_version(self, service_type: str, version: str) -> Call[bool]:
        """Read whether a version is recommended."""
        return self._one("isRecommendedVersion", service_type, version)

    def min_account_balance(self) -> Call[int]:
        """Read the least a ledger needs."""
        return self._one("MIN_ACCOUNT_BALANCE")

    def min_transfer_amount(self) -> Call[int]:
        """Read the least a new sub-account needs."""
        return self._one("MIN_TRANSFER_AMOUNT")

    def max_providers_per_batch(self) -> Call[int]:
        """Read how many providers `retrieve_fund` takes."""
        return self._one("MAX_PROVIDERS_PER_BATCH")

    def max_providers_per_user_per_service(self) -> Call[int]:
        """Read how many sub-accounts a wallet may have per service."""
        return self._one("MAX_PROVIDERS_PER_USER_PER_SERVICE")

    def max_services(self) -> Call[int]:
        """Read how many serving contracts may be registered."""
        return self._one("MAX_SERVICES")

    def max_additional_info_length(self) -> Call[int]:
        """Read the longest text of a ledger, in bytes."""
        return self._one("MAX_ADDITIONAL_INFO_LENGTH")


class _Serving(_Owned):
    def account_exists(self, user: str, provider: str) -> Call[bool]:
        """Read whether there is a sub-account."""
        return self._one("accountExists", user, provider)

    def get_pending_refund(self, user: str, provider: str) -> Call[int]:
        """Read how much of a sub-account is requested back."""
        return self._one("getPendingRefund", user, provider)

    def ledger_address(self) -> Call[Address]:
        """Read the LedgerManager's address."""
        return self._one("ledgerAddress")

    def lock_time(self) -> Call[int]:
        """Read how long refunds stay locked, in seconds."""
        return self._one("lockTime")

    def max_lock_time(self) -> Call[int]:
        """Read the longest lock time, in seconds."""
        return self._one("MAX_LOCKTIME")

    def min_lock_time(self) -> Call[int]:
        """Read the shortest lock time, in seconds."""
        return self._one("MIN_LOCKTIME")

    def min_provider_stake(self) -> Call[int]:
        """Read what a provider has to stake."""
        return self._one("MIN_PROVIDER_STAKE")

    def supports_interface(self, interface_id: bytes) -> Call[bool]:
        """Read whether a 4-byte ERC-165 interface is there."""
        return self._one("supportsInterface", interface_id)

    def acknowledge_tee_signer(self, provider: str, acknowledged: bool) -> Call[None]:
        """Acknowledge a provider's TEE signer, or take that back."""
        return self._write("acknowledgeTEESigner", provider, acknowledged)

    def acknowledge_tee_signer_by_owner(self, provider: str) -> Call[None]:
        """Approve a provider's TEE signer (for the owner)."""
        return self._write("acknowledgeTEESignerByOwner", provider)

    def revoke_tee_signer_acknowledgement(self, provider: str) -> Call[None]:
        """Take the approval back (for the owner)."""
        return self._write("revokeTEESignerAcknowledgement", provider)

    def remove_service(self) -> Call[None]:
        """Withdraw the sender's service and its stake (for providers)."""
        return self._write("removeService")

    def update_lock_time(self, seconds: int) -> Call[None]:
        """Change the lock time (for the owner)."""
        return self._write("updateLockTime", seconds)

    def add_account(self, user: str, provider: str, additional_info: str, *, value: int) -> Call[None]:
        """Create a sub-account (for the LedgerManager)."""
        return self._write("addAccount", user, provider, additional_info, value=value)

    def deposit_fund(self, user: str, provider: str, cancel_amount: int, *, value: int) -> Call[None]:
        """Top a sub-account up, cancelling refunds first (for the LedgerManager)."""
        return self._write("depositFund", user, provider, cancel_amount, value=value)

    def request_refund_all(self, user: str, provider: str) -> Call[None]:
        """Request everything back (for the LedgerManager)."""
        return self._write("requestRefundAll", user, provider)

    def process_refund(self, user: str, provider: str) -> Call[tuple[int, int, int]]:
        """Collect unlocked refunds (for the LedgerManager): collected, balance, still pending."""
        return self._call("processRefund", user, provider, decode=lambda row: (row[0], row[1], row[2]))

    def delete_account(self, user: str, provider: str) -> Call[None]:
        """Delete a sub-account (for the LedgerManager)."""
        return self._write("deleteAccount", user, provider)


class FineTuningContract(_Serving):
    """Calls of FineTuningServing. Amounts in neuron; `value` is sent along."""

    name = FINE_TUNING

    def initialize(self, lock_time: int, ledger_address: str, owner: str, penalty_percentage: int) -> Call[None]:
        """Set the contract up."""
        return self._write("initialize", lock_time, ledger_address, owner, penalty_percentage)

    def get_account(self, user: str, provider: str) -> Call[FineTuningAccountDetails]:
        """Read a sub-account with live refunds and deliverables; reverts AccountNotExists."""
        return self._call("getAccount", user, provider, decode=lambda row: _fine_tuning_account(row[0]))

    def get_accounts_by_user(self, user: str, offset: int, limit: int) -> Call[tuple[tuple[AccountSummary, ...], int]]:
        """Read a page of a wallet's sub-accounts and their number (50 at most; 0 means 50)."""
        return self._call("getAccountsByUser", user, offset, limit, decode=_page(limit, _account_summary))

    def get_accounts_by_provider(
        self, provider: str, offset: int, limit: int
    ) -> Call[tuple[tuple[AccountSummary, ...], int]]:
        """Read a page of a provider's sub-accounts and their number."""
        return self._call("getAccountsByProvider", provider, offset, limit, decode=_page(limit, _account_summary))

    def get_all_accounts(self, offset: int, limit: int) -> Call[tuple[tuple[AccountSummary, ...], int]]:
        """Read a page of all sub-accounts and their number."""
        return self._call("getAllAccounts", offset, limit, decode=_page(limit, _account_summary))

    def get_batch_accounts_by_users(self, users: Sequence[str]) -> Call[tuple[AccountSummary, ...]]:
        """Read the sub-accounts of many users at the sender (50 at most); unknown ones are zero."""
        return self._call("getBatchAccountsByUsers", list(users), decode=_many(_account_summary))

    def get_service(self, provider: str) -> Call[FineTuningService]:
        """Read a provider's registration; reverts ServiceNotExist."""
        return self._call("getService", provider, decode=lambda row: _fine_tuning_service(row[0]))

    def get_all_services(self) -> Call[tuple[FineTuningService, ...]]:
        """Read all registrations (no paging)."""
        return self._call("getAllServices", decode=_many(_fine_tuning_service))

    def get_deliverable(self, user: str, provider: str, id: str) -> Call[Deliverable]:  # noqa: A002
        """Read one delivery; reverts AccountNotExists, DeliverableNotExists."""
        return self._call("getDeliverable", user, provider, id, decode=lambda row: _deliverable(row[0]))

    def get_deliverables(self, user: str, provider: str) -> Call[tuple[Deliverable, ...]]:
        """Read all stored deliveries, oldest first."""
        return self._call("getDeliverables", user, provider, decode=_many(_deliverable))

    def penalty_percentage(self) -> Call[int]:
        """Read which part of the fee a delivery costs that wasn't acknowledged."""
        return self._one("penaltyPercentage")

    def acknowledge_deliverable(self, provider: str, id: str) -> Call[None]:  # noqa: A002
        """Acknowledge a delivery: its fee becomes due and its key will be released."""
        return self._write("acknowledgeDeliverable", provider, id)

    def abandon_deliverable(self, user: str, id: str) -> Call[None]:  # noqa: A002
        """Give a delivery up without payment (for providers)."""
        return self._write("abandonDeliverable", user, id)

    def add_deliverable(self, user: str, id: str, root: bytes) -> Call[None]:  # noqa: A002
        """Deliver a model (for providers)."""
        return self._write("addDeliverable", user, id, root)

    def add_or_update_service(
        self,
        url: str,
        quota: Quota | Sequence[Any],
        price_per_token: int,
        occupied: bool,
        models: Sequence[str],
        tee_signer_address: str,
        *,
        value: int = 0,
    ) -> Call[None]:
        """Register the sender with `value` as stake, or change the registration with none (for providers)."""
        row = (
            (quota.cpu_count, quota.node_memory, quota.gpu_count, quota.node_storage, quota.gpu_type)
            if isinstance(quota, Quota)
            else tuple(quota)
        )
        arguments = (url, row, price_per_token, occupied, list(models), tee_signer_address)
        return self._write("addOrUpdateService", *arguments, value=value)

    def settle_fees(
        self,
        id: str,  # noqa: A002
        encrypted_secret: bytes,
        model_root_hash: bytes,
        nonce: int,
        signature: bytes,
        task_fee: int,
        user: str,
    ) -> Call[None]:
        """Settle a delivery (for providers)."""
        return self._write("settleFees", (id, encrypted_secret, model_root_hash, nonce, signature, task_fee, user))

    def update_penalty_percentage(self, percentage: int) -> Call[None]:
        """Change the penalty (for the owner)."""
        return self._write("updatePenaltyPercentage", percentage)


class InferenceContract(_Serving):
    """Calls of InferenceServing. Amounts in neuron; `value` is sent along."""

    name = INFERENCE

    def initialize(self, lock_time: int, ledger_address: str, owner: str) -> Call[None]:
        """Set the contract up."""
        return self._write("initialize", lock_time, ledger_address, owner)

    def get_account(self, user: str, provider: str) -> Call[InferenceAccount]:
        """Read a sub-account with live refunds; reverts AccountNotExists."""
        return self._call("getAccount", user, provider, decode=lambda row: _inference_account(row[0]))

    def get_accounts_by_user(
        self, user: str, offset: int, limit: int
    ) -> Call[tuple[tuple[InferenceAccount, ...], int]]:
        """Read a page of a wallet's sub-accounts and their number (50 at most; 0 means 50)."""
        return self._call("getAccountsByUser", user, offset, limit, decode=_page(limit, _inference_account))

    def get_accounts_by_provider(
        self, provider: str, offset: int, limit: int
    ) -> Call[tuple[tuple[InferenceAccount, ...], int]]:
        """Read a page of a provider's sub-accounts and their number."""
        return self._call("getAccountsByProvider", provider, offset, limit, decode=_page(limit, _inference_account))

    def get_all_accounts(self, offset: int, limit: int) -> Call[tuple[tuple[InferenceAccount, ...], int]]:
        """Read a page of all sub-accounts and their number."""
        return self._call("getAllAccounts", offset, limit, decode=_page(limit, _inference_account))

    def get_batch_accounts_by_users(self, users: Sequence[str]) -> Call[tuple[InferenceAccount, ...]]:
        """Read the sub-accounts of many users at the sender (500 at most); unknown ones are zero."""
        return self._call("getBatchAccountsByUsers", list(users), decode=_many(_inference_account))

    def get_service(self, provider: str) -> Call[InferenceService]:
        """Read a provider's registration; reverts ServiceNotExist."""
        return self._call("getService", provider, decode=lambda row: _inference_service(row[0]))

    def get_all_services(self, offset: int, limit: int) -> Call[tuple[tuple[InferenceService, ...], int]]:
        """Read a page of registrations and their number (50 at most; 0 means 50)."""
        return self._call("getAllServices", offset, limit, decode=_page(limit, _inference_service))

    def service_exists(self, provider: str) -> Call[bool]:
        """Read whether a provider is registered."""
        return self._one("serviceExists", provider)

    def is_token_revoked(self, user: str, provider: str, token_id: int) -> Call[bool]:
        """Read whether an API key's bit is set; says nothing of the generation."""
        return self._one("isTokenRevoked", user, provider, token_id)

    def revoke_token(self, provider: str, token_id: int) -> Call[None]:
        """Revoke one API key."""
        return self._write("revokeToken", provider, token_id)

    def revoke_tokens(self, provider: str, token_ids: Sequence[int]) -> Call[None]:
        """Revoke API keys."""
        return self._write("revokeTokens", provider, list(token_ids))

    def revoke_all_tokens(self, provider: str) -> Call[None]:
        """Begin a new generation: every token made before is dead."""
        return self._write("revokeAllTokens", provider)

    def add_or_update_service(
        self,
        *,
        service_type: str,
        url: str,
        model: str,
        verifiability: str,
        input_price: int,
        output_price: int,
        additional_info: str,
        tee_signer_address: str,
        value: int = 0,
    ) -> Call[None]:
        """Register the sender with `value` as stake, or change the registration with none (for providers)."""
        row = (
            service_type,
            url,
            model,
            verifiability,
            input_price,
            output_price,
            additional_info,
            tee_signer_address,
        )
        return self._write("addOrUpdateService", row, value=value)

    def settle_fees_with_tee(self, settlements: Sequence[Row]) -> Call[tuple[int, ...]]:
        """Settle up to 50 items (user, provider, total_fee, requests_hash, nonce, signature): a status each."""
        return self._one("settleFeesWithTEE", list(settlements))

    def preview_settlement_results(
        self, settlements: Sequence[Row]
    ) -> Call[tuple[tuple[Address, ...], tuple[int, ...], tuple[Address, ...], tuple[int, ...]]]:
        """Try settlements: failed users, their reasons, partly paid users, the unpaid rests."""
        return self._call(
            "previewSettlementResults", list(settlements), decode=lambda row: (row[0], row[1], row[2], row[3])
        )


class FlowContract(_Contract):
    """Calls of the storage flow contract; rarer ones go through `function`."""

    name = FLOW

    def submit(self, submission: Row, *, value: int) -> Call[tuple[int, bytes, int, int]]:
        """Submit a file's tree: ((length, tags, ((root, height), ...)), submitter). `value` is the fee.

        Decodes to submission index, digest, start index, length.
        """
        return self._call("submit", submission, decode=lambda r: (r[0], r[1], r[2], r[3]), value=value)

    def batch_submit(self, submissions: Sequence[Row], *, value: int) -> Call[Row]:
        """Submit many trees at once. Decodes to four tuples: indexes, digests, start indexes, lengths."""
        return self._call("batchSubmit", list(submissions), decode=tuple, value=value)

    def market(self) -> Call[Address]:
        """Read the market contract's address."""
        return self._one("market")

    def num_submissions(self) -> Call[int]:
        """Read how many submissions there were."""
        return self._one("numSubmissions")

    def submission_index(self) -> Call[int]:
        """Read the next submission's index."""
        return self._one("submissionIndex")

    def first_block(self) -> Call[int]:
        """Read the block from which submissions are taken."""
        return self._one("firstBlock")

    def tree(self) -> Call[tuple[int, int]]:
        """Read the tree's length in sectors and its unstaged height."""
        return self._call("tree", decode=lambda row: (row[0], row[1]))

    def paused(self) -> Call[bool]:
        """Read whether submissions are refused for now."""
        return self._one("paused")


class MarketContract(_Contract):
    """Calls of the storage market contract; rarer ones go through `function`."""

    name = MARKET

    def price_per_sector(self) -> Call[int]:
        """Read the fee per 256-byte sector."""
        return self._one("pricePerSector")

    def flow(self) -> Call[Address]:
        """Read the flow contract's address."""
        return self._one("flow")

    def set_price_per_sector(self, price: int) -> Call[None]:
        """Change the fee (for its admin)."""
        return self._write("setPricePerSector", price)


CONTRACTS: Final[Mapping[str, type[_Contract]]] = {
    kind.name: kind for kind in (LedgerContract, FineTuningContract, InferenceContract, FlowContract, MarketContract)
}
"""The classes by contract name."""
