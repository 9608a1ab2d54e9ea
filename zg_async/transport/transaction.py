"""What is signed and sent: type 2 transactions, and what tells two of them apart."""

import dataclasses
import hashlib
from typing import Final

from zg_async.wire.records import Address, TxHash

WORD: Final = 2**256


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
