"""Events of the serving contracts and of storage, as records.

A class's fields stand in the order of the ABI's parameters; their names are ours. Where two contracts share a topic
(BalanceUpdated, for example), `log.address` tells them apart.
"""

import datetime as dt
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Final

from zg_async.errors import RpcError
from zg_async.wire import contract_abi
from zg_async.wire.contract_abi import AbiDataError, EventAbi, Param
from zg_async.wire.records import Address, Log, Quota, TaskId


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """What all events have."""

    log: Log


@dataclass(frozen=True, slots=True, kw_only=True)
class _OfAccount(Event):
    user: Address
    provider: Address


@dataclass(frozen=True, slots=True, kw_only=True)
class _OfDeliverable(_OfAccount):
    id: TaskId


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliverableAdded(_OfDeliverable):
    """A provider delivered a model."""

    model_root_hash: bytes
    timestamp: dt.datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliverableAcknowledged(_OfDeliverable):
    """A user acknowledged a delivery."""

    timestamp: dt.datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliverableAbandoned(_OfDeliverable):
    """A provider gave a delivery up; nothing is paid."""

    timestamp: dt.datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliverableEvicted(Event):
    """The oldest of 20 deliveries made room for a new one."""

    provider: Address
    user: Address
    id: TaskId
    new_id: TaskId
    timestamp: dt.datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class FeesSettled(_OfDeliverable):
    """A delivery was paid: in full, or with the penalty when it wasn't acknowledged."""

    fee: int
    acknowledged: bool
    account_nonce: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BalanceUpdated(_OfAccount):
    """A sub-account's balance changed."""

    balance: int
    pending_refund: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RefundRequested(_OfAccount):
    """A sub-account has open refunds; `index` is the newest."""

    index: int
    timestamp: dt.datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountDeleted(_OfAccount):
    """A sub-account was deleted with `refunded_amount` in it."""

    refunded_amount: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceUpdated(Event):
    """A fine-tuning provider registered or changed its service."""

    provider: Address
    url: str
    quota: Quota
    price_per_token: int
    tee_signer_address: Address
    occupied: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class InferenceServiceUpdated(Event):
    """An inference provider registered or changed its service (`ServiceUpdated` of that contract)."""

    provider: Address
    service_type: str
    url: str
    input_price: int
    output_price: int
    updated_at: dt.datetime
    model: str
    verifiability: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceRemoved(Event):
    """A provider withdrew its service."""

    provider: Address


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderTeeSignerAcknowledged(Event):
    """The contract owner approved a provider's TEE signer, or took that back."""

    provider: Address
    tee_signer_address: Address
    acknowledged: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderStaked(Event):
    """A provider paid its stake."""

    provider: Address
    amount: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderStakeReturned(Event):
    """A provider got its stake back."""

    provider: Address
    amount: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LockTimeUpdated(Event):
    """How long refunds stay locked, in seconds, changed."""

    old_lock_time: int
    new_lock_time: int


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnershipTransferred(Event):
    """A contract has a new owner."""

    previous_owner: Address
    new_owner: Address


@dataclass(frozen=True, slots=True, kw_only=True)
class Initialized(Event):
    """A serving contract was initialized."""

    version: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ContractInitialized(Event):
    """The inference contract was initialized."""

    owner: Address
    lock_time: int
    ledger_address: Address


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchBalanceUpdated(Event):
    """Declared by the inference contract, never emitted."""

    users: tuple[Address, ...]
    balances: tuple[int, ...]
    pending_refunds: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TeeSettlementResult(Event):
    """What came of one item of an inference settlement."""

    user: Address
    status: int
    unsettled_amount: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRevoked(_OfAccount):
    """An API key was revoked."""

    token_id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TokensRevoked(_OfAccount):
    """API keys were revoked."""

    token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class AllTokensRevoked(_OfAccount):
    """All tokens of smaller generations are dead."""

    new_generation: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FundSpent(Event):
    """A settlement took money out of a ledger."""

    user: Address
    service: Address
    amount: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerInfoUpdated(Event):
    """A ledger's text changed."""

    user: Address
    additional_info: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RecommendedServiceUpdated(Event):
    """The ledger's owner recommends a version."""

    service_type: str
    version: str
    service_address: Address


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceRegistered(Event):
    """The ledger knows a new serving contract."""

    service_address: Address
    service_name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Submit(Event):
    """The flow contract took a storage submission."""

    sender: Address
    """The `submitter` field, not who sent the transaction."""
    identity: bytes
    """Keccak-256 of the node roots joined."""
    submission_index: int
    """The transaction sequence number storage nodes use."""
    start_position: int
    length: int
    submission: tuple[Any, ...]
    """length, tags, nodes as (root, height)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NewEpoch(Event):
    """The flow contract began an epoch."""

    sender: Address
    index: int
    start_merkle_root: bytes
    submission_index: int
    flow_length: int
    context: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Paused(Event):
    """The flow contract takes no submissions."""

    account: Address


@dataclass(frozen=True, slots=True, kw_only=True)
class Unpaused(Event):
    """The flow contract takes submissions again."""

    account: Address


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageInitialized(Event):
    """A storage contract was initialized (its `Initialized`)."""

    version: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RoleAdminChanged(Event):
    """A storage contract's role has a new admin role."""

    role: bytes
    previous_admin_role: bytes
    new_admin_role: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class RoleGranted(Event):
    """An account got a storage contract's role."""

    role: bytes
    account: Address
    sender: Address


@dataclass(frozen=True, slots=True, kw_only=True)
class RoleRevoked(Event):
    """An account lost a storage contract's role."""

    role: bytes
    account: Address
    sender: Address


_RENAMED: Final[Mapping[str, type[Event]]] = {
    "ServiceUpdated(address,string,string,uint256,uint256,uint256,string,string)": InferenceServiceUpdated,
    "Initialized(uint64)": StorageInitialized,
    "ProviderTEESignerAcknowledged(address,address,bool)": ProviderTeeSignerAcknowledged,
    "TEESettlementResult(address,uint8,uint256)": TeeSettlementResult,
}


def _by_topic() -> dict[bytes, type[Event]]:
    return {
        topic: _RENAMED.get(event.signature) or globals()[event.name] for topic, event in contract_abi.EVENTS.items()
    }


CLASSES: Final[Mapping[bytes, type[Event]]] = contract_abi.LazyMap(_by_topic)
"""The class of each topic 0."""
TOPIC: Final[Mapping[str, bytes]] = contract_abi.LazyMap(lambda: {c.__name__: t for t, c in CLASSES.items()})
"""The topic 0 of each class, by its name."""


def decode_log(log: Log) -> Event | None:
    """Decode an event of one of the contracts.

    Args:
        log: As the chain gave it. That its address is one of ours is for the caller to check.

    Returns:
        The event, or None for a topic we don't know.

    Raises:
        RpcError: The topic is known, the rest doesn't fit it.
    """
    event = contract_abi.EVENTS.get(log.topics[0]) if log.topics else None
    if event is None:
        return None
    kind = CLASSES[event.topic]
    try:
        values = _values(event, log)
        names = (f.name for f in fields(kind) if f.name != "log")
        return kind(log=log, **{name: _convert(name, value) for name, value in zip(names, values, strict=True)})
    except (AbiDataError, OverflowError, ValueError) as error:
        raise RpcError(f"the chain's {event.name} log in {log.tx_hash} can't be read: {error}") from None


def _values(event: EventAbi, log: Log) -> list[Any]:
    indexed = [p for p in event.inputs if p.indexed]
    if len(log.topics) != len(indexed) + 1 or any(len(t) != 32 for t in log.topics):
        raise AbiDataError("wrong number of topics")
    topics = iter(contract_abi.decode(_plain(indexed), b"".join(log.topics[1:])))
    data = iter(contract_abi.decode([p for p in event.inputs if not p.indexed], log.data, owner=event.name))
    return [next(topics) if p.indexed else next(data) for p in event.inputs]


def _plain(indexed: list[Param]) -> list[Param]:
    return [Param(p.name, p.type) for p in indexed]


def timestamp(seconds: int) -> dt.datetime:
    """Turn a contract's time into an aware datetime.

    Raises:
        AbiDataError: Beyond the year 9999.
    """
    if seconds > 253402300799:
        raise AbiDataError(f"{seconds} is no time")
    return dt.datetime.fromtimestamp(seconds, dt.UTC)


def quota(value: tuple[Any, ...]) -> Quota:
    """Make a record of the contract's Quota struct."""
    cpu_count, node_memory, gpu_count, node_storage, gpu_type = value
    return Quota(
        cpu_count=cpu_count,
        node_memory=node_memory,
        gpu_count=gpu_count,
        node_storage=node_storage,
        gpu_type=gpu_type,
    )


_CONVERT: Final[Mapping[str, Callable[[Any], Any]]] = {
    "timestamp": timestamp,
    "updated_at": timestamp,
    "quota": quota,
    "id": TaskId,
    "new_id": TaskId,
}


def _convert(name: str, value: Any) -> Any:
    convert = _CONVERT.get(name)
    return convert(value) if convert else value
