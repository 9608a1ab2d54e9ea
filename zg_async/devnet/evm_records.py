"""What goes into the embedded chain and what comes out: transactions, blocks, calls and their errors."""

from dataclasses import dataclass
from typing import Any, Final

MAX_INIT_CODE: Final = 49_152
_HALF_CURVE_ORDER: Final = 0x7FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFF5D576E7357A4501DDFE92F46681B20A0


class BadTransactionError(ValueError):
    """A transaction that no block can hold, in the words clients know from geth."""


class ExecutionFailedError(Exception):
    """A call ended with an error.

    Attributes:
        data: The revert data; None when it wasn't a revert (out of gas, bad opcode).
    """

    def __init__(self, message: str, data: bytes | None) -> None:
        super().__init__(message)
        self.data = data


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedTx:
    """A decoded transaction whose signature and form are right."""

    raw: bytes
    hash: bytes
    sender: bytes
    nonce: int
    gas: int
    max_fee: int
    """Per gas, in neuron."""
    max_tip: int
    """Per gas, in neuron; equal to `max_fee` for types 0 and 1."""
    value: int
    type: int
    to: bytes | None
    data: bytes
    inner: Any
    """py-evm's own object."""

    @property
    def cost(self) -> int:
        """The most it can cost, in neuron."""
        return self.gas * self.max_fee + self.value


@dataclass(frozen=True, slots=True, kw_only=True)
class EvmLog:
    """One event, by its place in the block."""

    address: bytes
    topics: tuple[bytes, ...]
    data: bytes
    index: int
    tx_index: int
    tx_hash: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class MinedTx:
    """A transaction with its outcome."""

    tx: SignedTx
    index: int
    status: int
    gas_used: int
    cumulative_gas: int
    gas_price: int
    """Per gas, as paid, in neuron."""
    bloom: int
    contract: bytes | None
    logs: tuple[EvmLog, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class EvmBlock:
    """A block; `state_root` may differ from the header's once a balance was set by hand."""

    number: int
    hash: bytes
    timestamp: int
    base_fee: int
    header: Any
    size: int
    mined: tuple[MinedTx, ...]
    logs: tuple[EvmLog, ...]
    state_root: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class CallRequest:
    """What `eth_call` and `eth_estimateGas` are asked; amounts in neuron."""

    sender: bytes = bytes(20)
    to: bytes | None = None
    value: int = 0
    data: bytes = b""
    gas: int | None = None
    gas_price: int = 0


def revert_message(data: bytes) -> str:
    """Word a revert as nodes do: with the reason when the data is `Error(string)`."""
    if data[:4] == b"\x08\xc3\x79\xa0" and len(data) >= 68:
        length = int.from_bytes(data[36:68], "big")
        reason = data[68 : 68 + min(length, 1024)].decode("utf-8", "replace")
        return f"execution reverted: {reason}"
    return "execution reverted"


def check_form(inner: Any, kind: int, chain_id: int, gas_limit: int) -> None:
    """Check what doesn't depend on state; a `BadTransactionError` says what is wrong with py-evm's object."""
    if kind == 0 and inner.chain_id is None:
        raise BadTransactionError("only replay-protected (EIP-155) transactions allowed over RPC")
    if inner.chain_id != chain_id:
        raise BadTransactionError(f"invalid chain id for signer: have {inner.chain_id} want {chain_id}")
    if not 0 < inner.s <= _HALF_CURVE_ORDER or inner.y_parity not in (0, 1):
        raise BadTransactionError("invalid sender")
    if max(inner.value, inner.gas, inner.max_fee_per_gas, inner.max_priority_fee_per_gas).bit_length() > 256:
        raise BadTransactionError("rlp: value larger than 256 bits")
    if inner.nonce >= 2**64 - 1:
        raise BadTransactionError("nonce has max value")
    if inner.max_priority_fee_per_gas > inner.max_fee_per_gas:
        raise BadTransactionError("max priority fee per gas higher than max fee per gas")
    if inner.gas > gas_limit:
        raise BadTransactionError("exceeds block gas limit")
    if inner.to == b"" and len(inner.data) > MAX_INIT_CODE:
        raise BadTransactionError(f"max initcode size exceeded: code size {len(inner.data)} limit {MAX_INIT_CODE}")
    if inner.gas < inner.intrinsic_gas:
        raise BadTransactionError(f"intrinsic gas too low: gas {inner.gas}, minimum needed {inner.intrinsic_gas}")
    if inner.gas < (floor := floor_gas(bytes(inner.data))):  # EIP-7623; py-evm charges it without this check
        raise BadTransactionError(f"insufficient gas for floor data gas cost: gas {inner.gas}, minimum needed {floor}")


def _tokens(data: bytes) -> int:
    return 4 * len(data) - 3 * data.count(0)


def floor_gas(data: bytes) -> int:
    """Return the least a transaction with this calldata pays (EIP-7623)."""
    return 21_000 + 10 * _tokens(data)


def intrinsic_gas_of(to: bytes | None, data: bytes) -> int:
    """Return what a transaction pays before its first step; `to` None creates a contract."""
    create = 32_000 + 2 * ((len(data) + 31) // 32) if to is None else 0
    return 21_000 + 4 * _tokens(data) + create
