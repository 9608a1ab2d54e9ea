"""ABI entries, read from `contract_tables`, and a decoder with limits.

Decoding is our own because the usual decoders follow any offset: half a megabyte whose offsets all point at the
same place becomes hundreds of megabytes. Here every dynamic part has to lie behind the one before it, as every
compiler writes it, so that what comes out is bounded by what came in; counts are checked against the contract's
limits first.
"""

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final

from eth_abi.codec import ABICodec
from eth_abi.exceptions import EncodingError
from eth_abi.registry import registry

from zg_async.wire.contract_tables import SOLIDITY, STRUCTS, TABLES
from zg_async.wire.hashing import checksum_address, keccak256

LIMITS: Final[Mapping[str, int]] = {
    "additionalInfo": 4096,
    "refunds": 5,
    "deliverables": 20,
    "getDeliverables": 20,
    "getLedgerProviders": 50,
    "getAllActiveServices": 500,
    "versions": 500,
    "accounts": 500,
    "statuses": 50,
}
"""Largest counts, by the name of the field or, where it has none, of the function. Strings count bytes."""


class AbiDataError(ValueError):
    """Bytes that can't be what the ABI says."""


@dataclass(frozen=True, slots=True)
class Param:
    """One parameter, field or result."""

    name: str
    type: str
    """Canonical: structs as `(type,type)`."""
    components: tuple["Param", ...] = ()
    """A struct's fields, also of an array of structs."""
    indexed: bool = False
    item: "Param | None" = field(init=False, repr=False)
    """What an array holds."""
    dynamic: bool = field(init=False, repr=False)
    """Whether its place holds an offset."""
    head: int = field(init=False, repr=False)
    """Bytes it takes in its place."""

    def __post_init__(self) -> None:
        array = self.type.endswith("[]")
        dynamic = array or self.type in ("bytes", "string") or any(c.dynamic for c in self.components)
        size = 32 if dynamic or not self.components else sum(c.head for c in self.components)
        object.__setattr__(self, "item", Param(self.name, self.type[:-2], self.components) if array else None)
        object.__setattr__(self, "dynamic", dynamic)
        object.__setattr__(self, "head", size)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Entry:
    contract: str
    name: str
    inputs: tuple[Param, ...]
    signature: str = field(init=False)
    """Name and canonical types, as it is hashed."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "signature", f"{self.name}({','.join(p.type for p in self.inputs)})")


@dataclass(frozen=True, slots=True, kw_only=True)
class FunctionAbi(_Entry):
    """A contract function."""

    outputs: tuple[Param, ...]
    mutability: str
    """view, nonpayable or payable."""
    selector: bytes = field(init=False)

    def __post_init__(self) -> None:
        super(FunctionAbi, self).__post_init__()
        object.__setattr__(self, "selector", keccak256(self.signature.encode())[:4])


@dataclass(frozen=True, slots=True, kw_only=True)
class EventAbi(_Entry):
    """A contract event."""

    topic: bytes = field(init=False)

    def __post_init__(self) -> None:
        super(EventAbi, self).__post_init__()
        object.__setattr__(self, "topic", keccak256(self.signature.encode()))


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorAbi(_Entry):
    """A custom error."""

    selector: bytes = field(init=False)

    def __post_init__(self) -> None:
        super(ErrorAbi, self).__post_init__()
        object.__setattr__(self, "selector", keccak256(self.signature.encode())[:4])


@dataclass(frozen=True, slots=True, kw_only=True)
class ContractAbi:
    """All entries of one contract."""

    functions: tuple[FunctionAbi, ...]
    events: tuple[EventAbi, ...]
    errors: tuple[ErrorAbi, ...]

    def function(self, name: str) -> FunctionAbi:
        """Return the function of that name (none is overloaded).

        Raises:
            KeyError: There is none.
        """
        return next((f for f in self.functions if f.name == name), None) or _missing(name)


def _missing(name: str) -> Any:
    raise KeyError(name)


# --- reading the tables ----------------------------------------------------------------------------------------------

_LINE: Final = re.compile(r"(function|event|error) (\w+)\((.*?)\)( view| payable)?(?: returns \((.*)\))?")


@functools.cache
def contract_abi(name: str) -> ContractAbi:
    """Return the ABI of a contract by name, e.g. `LedgerManager`.

    Raises:
        KeyError: No such contract.
    """
    entries = list(_read(name, TABLES[name]))
    return ContractAbi(
        functions=tuple(e for e in entries if isinstance(e, FunctionAbi)),
        events=tuple(e for e in entries if isinstance(e, EventAbi)),
        errors=tuple(e for e in entries if isinstance(e, ErrorAbi)),
    )


def _read(contract: str, table: str) -> Sequence[_Entry]:
    return [_entry(contract, line) for line in table.splitlines() if line]


def _entry(contract: str, line: str) -> _Entry:
    match = _LINE.fullmatch(line)
    if match is None:
        raise ValueError(line)
    kind, name, inputs, mutability, outputs = match.groups()
    params = _params(inputs)
    if kind == "event":
        return EventAbi(contract=contract, name=name, inputs=params)
    if kind == "error":
        return ErrorAbi(contract=contract, name=name, inputs=params)
    return FunctionAbi(
        contract=contract,
        name=name,
        inputs=params,
        outputs=_params(outputs or ""),
        mutability=(mutability or " nonpayable").strip(),
    )


@functools.cache
def _params(text: str) -> tuple[Param, ...]:
    return tuple(_param(part.split(" ")) for part in text.split(",") if part)


def _param(words: list[str]) -> Param:
    base, brackets = (words[0][:-2], "[]") if words[0].endswith("[]") else (words[0], "")
    components = _params(_structs()[base]) if base[0].isupper() else ()
    kind = f"({','.join(c.type for c in components)})" if components else base
    return Param(words[-1] if len(words) > 1 else "", kind + brackets, components, "indexed" in words)


@functools.cache
def _structs() -> Mapping[str, str]:
    lines = (line.removesuffix(")").partition("(") for line in STRUCTS.splitlines() if line)
    return {name: fields for name, _, fields in lines}


class LazyMap(Mapping[Any, Any]):
    """A table made at its first use, to keep imports fast."""

    def __init__(self, make: Any) -> None:
        self._make = functools.cache(make)

    def __getitem__(self, key: Any) -> Any:
        return self._make()[key]

    def __iter__(self) -> Any:
        return iter(self._make())

    def __len__(self) -> int:
        return len(self._make())


FUNCTIONS: Final[Mapping[str, Mapping[bytes, FunctionAbi]]] = LazyMap(
    lambda: {name: MappingProxyType({f.selector: f for f in contract_abi(name).functions}) for name in TABLES}
)
"""By contract name, then by selector."""
EVENTS: Final[Mapping[bytes, EventAbi]] = LazyMap(
    lambda: {e.topic: e for name in reversed(list(TABLES)) for e in contract_abi(name).events}
)
"""By topic 0. Contracts that share a topic share the layout; the first contract's names win."""
ERRORS: Final[Mapping[bytes, ErrorAbi]] = LazyMap(
    lambda: {
        e.selector: e
        for name in reversed(list(TABLES))
        for e in (*contract_abi(name).errors, *_read("", SOLIDITY))
        if isinstance(e, ErrorAbi)
    }
)
"""By selector, over all contracts, with Solidity's own two."""


# --- coding ----------------------------------------------------------------------------------------------------------


@functools.cache
def _codec() -> ABICodec:
    return ABICodec(registry)


def encode(params: Sequence[Param], values: Sequence[Any]) -> bytes:
    """Encode values; addresses as text, structs as tuples.

    Raises:
        ValueError: A value doesn't fit its type.
    """
    if len(params) != len(values):
        raise ValueError(f"{len(params)} values expected, not {len(values)}")
    try:
        return _codec().encode([p.type for p in params], values)
    except (EncodingError, TypeError, OverflowError) as error:
        raise ValueError(str(error)) from None


def decode(params: Sequence[Param], data: bytes, *, owner: str = "", limits: bool = True) -> tuple[Any, ...]:
    """Decode ABI data: ints, bools, checksummed addresses, bytes, text, tuples.

    Args:
        params: What it should be.
        data: The bytes, without selector.
        owner: The function's name, for results that have no name of their own.
        limits: Whether `LIMITS` apply: for results, not for calls.

    Raises:
        AbiDataError: Cut, overlapping, out of range, or more entries than the contract can hold.
    """
    return _Decoder(data, LIMITS if limits else {}).struct(params, 0, owner)


class _Decoder:
    def __init__(self, data: bytes, limits: Mapping[str, int]) -> None:
        self._data = data
        self._limits = limits
        self._used = 0  # what lies before it was read: no dynamic part can start there

    def struct(self, params: Sequence[Param], start: int, owner: str = "") -> tuple[Any, ...]:
        self._take(start, sum(p.head for p in params))
        values = []
        at = start
        for param in params:
            where = start + self._word(at) if param.dynamic else at
            if param.dynamic and where < self._used:
                raise AbiDataError("parts overlap")
            values.append(self._value(param, where, param.name or owner))
            at += param.head
        return tuple(values)

    def _value(self, param: Param, at: int, name: str) -> Any:
        if param.item is not None:
            count = self._count(at, name)
            if count * param.item.head > len(self._data) - at:
                raise AbiDataError("cut off")
            return self.struct((param.item,) * count, at + 32)
        if param.components:
            return self.struct(param.components, at)
        if param.dynamic:
            size = self._count(at, name)
            self._take(at + 32, size + -size % 32)
            raw = self._data[at + 32 : at + 32 + size]
            return raw if param.type == "bytes" else raw.decode("utf-8", "replace")
        return _static(param.type, self._data[at : at + 32])

    def _count(self, at: int, name: str) -> int:
        self._take(at, 32)
        count = self._word(at)
        if count > self._limits.get(name, len(self._data)):
            raise AbiDataError(f"{count} entries in {name or 'a list'}")
        return count

    def _take(self, at: int, size: int) -> None:
        if at + size > len(self._data):
            raise AbiDataError("cut off")
        self._used = max(self._used, at + size)

    def _word(self, at: int) -> int:
        return int.from_bytes(self._data[at : at + 32], "big")


def _static(kind: str, word: bytes) -> Any:
    if kind == "address":
        if any(word[:12]):
            raise AbiDataError("not an address")
        return checksum_address(word[12:])
    if kind == "bool":
        if word[31] > 1 or any(word[:31]):
            raise AbiDataError("not a bool")
        return bool(word[31])
    if kind.startswith("bytes"):
        size = int(kind[5:])
        if any(word[size:]):
            raise AbiDataError(f"not a {kind}")
        return word[:size]
    value = int.from_bytes(word, "big")
    if value >> int(kind.removeprefix("uint")):
        raise AbiDataError(f"not a {kind}")
    return value
