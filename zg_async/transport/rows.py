"""What a lane's book holds, and the entries that are written to it."""

import dataclasses
import enum
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from zg_async.transport.transaction import SignedTransaction, Transaction
from zg_async.wire.records import Address, TxHash

Entry = Mapping[str, Any]
"""One JSON object; numbers that may be large are decimal strings."""


@dataclasses.dataclass(frozen=True, slots=True)
class LaneId:
    """Whose nonces: (chain id, genesis hash, address)."""

    chain_id: int
    genesis_hash: str
    address: Address

    def __str__(self) -> str:
        return f"{self.chain_id}-{self.genesis_hash[2:18]}-{self.address[2:].lower()}"


class Money(NamedTuple):
    """Neuron by what becomes of them."""

    gone: int = 0
    """Doesn't come back."""
    deposited: int = 0
    """From the wallet into the ledger."""
    transferred: int = 0
    """From the ledger to a sub-account."""

    def plus(self, other: "Money", sign: int = 1) -> "Money":
        """Return the sum, or with sign -1 the difference."""
        return Money(*(a + sign * b for a, b in zip(self, other, strict=True)))


NOTHING: Final = Money()


class RowStatus(enum.StrEnum):
    """Where a row is."""

    SIGNED = "signed"
    MINED = "mined"
    REVERTED = "reverted"
    REPLACED = "replaced"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """One set of signed bytes of a row."""

    tx_hash: TxHash
    raw: bytes = dataclasses.field(repr=False)
    """Empty once the row is final, and others became final since."""
    max_fee_per_gas: int
    max_priority_fee_per_gas: int
    signed_at: float
    """Unix seconds."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Inclusion:
    """The block that holds a row's transaction."""

    tx_hash: TxHash
    block_number: int
    block_hash: str
    status: int
    gas_used: int
    gas_price: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One logical transaction: a key, a nonce, an effect, and every version ever signed."""

    key: str
    attempt: int
    """1, or more after a stranger's transaction took the nonce."""
    name: str
    """What it calls, e.g. `LedgerManager.transferFund`."""
    account_nonce: int
    to: Address
    data: bytes = dataclasses.field(repr=False)
    value: int
    gas: int
    intent: str
    versions: tuple[Version, ...]
    status: RowStatus
    inclusion: Inclusion | None = None
    final: bool = False
    was_final: bool = False
    """Also after a reorganisation that was deeper than the network's confirmations."""
    replaced_by: TxHash | None = None
    at: float
    money: Money = NOTHING
    """What it does with money, gas apart."""
    payee: Address | None = None
    """The provider that gets a transfer."""

    @property
    def tx_hash(self) -> TxHash:
        """The hash that was mined, or that of the newest version."""
        return self.inclusion.tx_hash if self.inclusion is not None else self.versions[-1].tx_hash

    @property
    def hashes(self) -> tuple[TxHash, ...]:
        """All hashes it may be mined under."""
        return tuple(version.tx_hash for version in self.versions)

    @property
    def reserved(self) -> int:
        """Neuron it has taken, or may take, from the wallet."""
        return self.gas_cost + (0 if self.status in (RowStatus.REVERTED, RowStatus.REPLACED) else self.value)

    @property
    def gas_cost(self) -> int:
        """Neuron of gas it has used, or may use at the highest fee while it isn't mined."""
        if self.status is RowStatus.REPLACED:
            return 0
        if self.inclusion is not None:
            return self.inclusion.gas_used * self.inclusion.gas_price
        return self.gas * max(version.max_fee_per_gas for version in self.versions)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A transaction of this wallet that no row knows."""

    account_nonce: int
    tx_hash: TxHash
    intent: str
    block_number: int
    block_hash: str
    claimed: bool = False


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Loss:
    """A part of the book is missing or damaged."""

    reason: str
    next_nonce: int | None
    """What the head outside the book says was signed up to; None: unknown."""


def signed_entry(
    transaction: Transaction,
    signed: SignedTransaction,
    *,
    key: str,
    attempt: int,
    name: str,
    at: float,
    balance: int | None = None,
    filler: bool = False,
) -> Entry:
    """Write a `signed` entry; a filler is a transfer of nothing that closes a nonce during a loss."""
    entry = {
        "kind": "signed",
        "key": key,
        "attempt": attempt,
        "name": name,
        "nonce": transaction.account_nonce,
        "to": transaction.to,
        "data": transaction.data.hex(),
        "value": str(transaction.value),
        "gas": transaction.gas,
        "version": _version_fields(transaction, signed, at),
    }
    entry |= {} if balance is None else {"balance": str(balance)}
    return {**entry, "filler": True} if filler else entry


def version_entry(row: Row, transaction: Transaction, signed: SignedTransaction, *, at: float) -> Entry:
    """Write a `version` entry."""
    return {
        "kind": "version",
        "key": row.key,
        "attempt": row.attempt,
        "index": len(row.versions),
        "version": _version_fields(transaction, signed, at),
    }


def mined_entry(row: Row, inclusion: Inclusion, *, at: float | None = None) -> Entry:
    """Write a `mined` entry."""
    return {
        **({} if at is None else {"at": at}),
        "kind": "mined",
        "key": row.key,
        "attempt": row.attempt,
        "hash": inclusion.tx_hash,
        "block_number": inclusion.block_number,
        "block_hash": inclusion.block_hash,
        "status": inclusion.status,
        "gas_used": inclusion.gas_used,
        "gas_price": str(inclusion.gas_price),
    }


def mark_entry(kind: str, row: Row, **more: Any) -> Entry:
    """Write an `unmined`, `final` or `replaced` entry."""
    return {"kind": kind, "key": row.key, "attempt": row.attempt, **more}


def found_entry(found: Found) -> Entry:
    """Write a `found` entry."""
    return {
        "kind": "found",
        "nonce": found.account_nonce,
        "hash": found.tx_hash,
        "intent": found.intent,
        "block_number": found.block_number,
        "block_hash": found.block_hash,
    }


def claimed_entry(
    found: Found, *, key: str, attempt: int, name: str, to: str, data: bytes, value: int, at: float
) -> Entry:
    """Write a `claimed` entry."""
    return {
        "kind": "claimed",
        "key": key,
        "attempt": attempt,
        "name": name,
        "nonce": found.account_nonce,
        "to": to,
        "data": data.hex(),
        "value": str(value),
        "at": at,
    }


def charge_entry(*, key: str, amount: int, at: float, height: int) -> Entry:
    """Write a `charge` entry; it fits only at its height, so that programs don't pass a limit together."""
    return {"kind": "charge", "key": key, "amount": str(amount), "at": at, "height": height}


def _version_fields(transaction: Transaction, signed: SignedTransaction, at: float) -> dict[str, Any]:
    return {
        "raw": signed.raw.hex(),
        "hash": signed.tx_hash,
        "fee": str(transaction.max_fee_per_gas),
        "tip": str(transaction.max_priority_fee_per_gas),
        "at": at,
    }
