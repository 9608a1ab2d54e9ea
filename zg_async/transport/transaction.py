"""What is signed and sent: type 2 transactions, their bytes (EIP-2718, EIP-1559, RLP), and what tells two apart."""

import dataclasses
import hashlib
from collections.abc import Iterable
from typing import Final

from zg_async.wire.hashing import checksum_address, hex0x, keccak256
from zg_async.wire.records import Address, TxHash

WORD: Final = 2**256
_TYPE: Final = b"\x02"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Transaction:
    """An unsigned EIP-1559 transaction. Amounts in neuron, fees in neuron per gas."""

    chain_id: int
    account_nonce: int
    to: Address
    data: bytes
    value: int
    gas: int
    max_fee_per_gas: int
    max_priority_fee_per_gas: int

    @property
    def max_cost(self) -> int:
        """The most it can take from the wallet: value and all its gas at the highest fee, in neuron."""
        return self.value + self.gas * self.max_fee_per_gas


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SignedTransaction:
    """The bytes to broadcast, and their hash."""

    raw: bytes = dataclasses.field(repr=False)
    tx_hash: TxHash


def signing_hash(transaction: Transaction) -> bytes:
    """Hash what a key signs of a transaction.

    Raises:
        ValueError: A field that no transaction can have.
    """
    return keccak256(_TYPE + _rlp_list(_fields(transaction)))


def join_signature(transaction: Transaction, signature: bytes) -> SignedTransaction:
    """Make a transaction's bytes out of it and the 65-byte signature of its hash.

    Raises:
        ValueError: A field that no transaction can have.
    """
    r, s = int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:64], "big")
    numbers = [_rlp_number(n) for n in (signature[64] % 27, r, s)]
    raw = _TYPE + _rlp_list([*_fields(transaction), *numbers])
    return SignedTransaction(raw=raw, tx_hash=TxHash(hex0x(keccak256(raw))))


def split_signature(transaction: Transaction, raw: bytes) -> bytes:
    """Take the signature out of a transaction's bytes that somebody else has made.

    Args:
        transaction: What it has to be.
        raw: The bytes.

    Returns:
        65 bytes r, s, v.

    Raises:
        ValueError: They are not exactly this transaction with a signature.
    """
    fields = b"".join(_fields(transaction))
    at = raw.find(fields, 1, len(fields) + 6)
    numbers: list[int] = []
    rest = raw[at + len(fields) :] if at > 0 else b""
    while rest and len(numbers) < 3:
        size = 0 if rest[0] < 0x80 else rest[0] - 0x80
        numbers.append(int.from_bytes(rest[: 1 + size][bool(size) or rest[0] == 0x80 :], "big"))
        rest = rest[1 + size :]
    if len(numbers) != 3 or numbers[0] > 1 or max(numbers) >= WORD:
        raise ValueError("no such transaction")
    signature = numbers[1].to_bytes(32, "big") + numbers[2].to_bytes(32, "big") + bytes((27 + numbers[0],))
    if join_signature(transaction, signature).raw != raw:
        raise ValueError("another transaction")
    return signature


def _fields(transaction: Transaction) -> list[bytes]:
    return [
        _rlp_number(transaction.chain_id),
        _rlp_number(transaction.account_nonce),
        _rlp_number(transaction.max_priority_fee_per_gas),
        _rlp_number(transaction.max_fee_per_gas),
        _rlp_number(transaction.gas),
        _rlp_bytes(bytes.fromhex(checksum_address(transaction.to)[2:])),
        _rlp_number(transaction.value),
        _rlp_bytes(transaction.data),
        _rlp_list([]),  # no access list
    ]


def _rlp_number(number: int) -> bytes:
    if type(number) is not int or not 0 <= number < WORD:
        raise ValueError("not a number of a transaction")
    return _rlp_bytes(number.to_bytes((number.bit_length() + 7) // 8, "big"))


def _rlp_bytes(data: bytes) -> bytes:
    return data if len(data) == 1 and data[0] < 0x80 else _rlp_head(0x80, len(data)) + data


def _rlp_list(items: Iterable[bytes]) -> bytes:
    body = b"".join(items)
    return _rlp_head(0xC0, len(body)) + body


def _rlp_head(base: int, size: int) -> bytes:
    if size < 56:
        return bytes((base + size,))
    length = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes((base + 55 + len(length),)) + length


def intent_digest(to: str, data: bytes, value: int) -> str:
    """Hash what a transaction does, apart from nonce and fees: two with the same digest have the same effect.

    Args:
        to: The contract.
        data: The call data.
        value: Neuron sent along.

    Returns:
        64 hex digits.
    """
    return hashlib.sha256(bytes.fromhex(to[2:]) + value.to_bytes(32, "big") + data).hexdigest()
