"""The audit log: what became of a wallet's money and what else its key signed, one JSON object per line.

Lines about money follow from the outbox: each entry of a lane gives one line, which names the entry's height and link.
So they are as complete as the outbox, whatever is killed when: whoever appends, or opens the lane, writes the lines
that are missing, and none twice. Lines about other signatures (`signature`) are written before the key is used.
Signed bytes, signatures and calldata are left out.
"""

import dataclasses
import datetime as dt
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from zg_async.errors import ConfigError
from zg_async.transport.rows import Entry, LaneId, Row
from zg_async.wire.records import Address, TxHash

_CHUNK: Final = 64 * 1024
_LEFT_OUT: Final = frozenset({"version", "data", "at", "hash", "height"})


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class AuditedTransaction:
    """A transaction that is in a block; amounts in neuron."""

    key: str
    """The effect's name; of a job's transactions it begins with the job's id."""
    name: str
    """What it calls, e.g. `LedgerManager.transferFund`."""
    wallet: Address
    tx_hash: TxHash
    account_nonce: int
    to: Address
    value: int
    """What was sent along, and arrived if `status` is 1."""
    payee: Address | None
    """The provider whose sub-account gets `transferred` from the ledger."""
    transferred: int
    status: int
    """1, or 0 when it was reverted."""
    gas_cost: int
    block_number: int
    balance_before: int | None
    """The wallet's, in the block before; None when the node couldn't tell."""
    balance_after: int | None
    """The wallet's, in the transaction's block: other transactions of this block count too."""
    at: dt.datetime | None
    """When it was seen mined."""

    @property
    def paid(self) -> int:
        """What the wallet paid: gas, and the value unless it was reverted."""
        return self.gas_cost + (self.value if self.status == 1 else 0)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class AuditedSignature:
    """A signature that isn't a transaction's."""

    purpose: str
    """`dataset upload`, `task`, `cancel`, `download` or `session token`."""
    wallet: Address
    provider: Address | None
    digest: str
    """What was signed: 32 bytes in hex."""
    at: dt.datetime | None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class AuditTrail:
    """What an audit log tells."""

    transactions: tuple[AuditedTransaction, ...]
    """In the order in which they were seen mined; those that a reorganisation removed aren't among them."""
    signatures: tuple[AuditedSignature, ...]
    unreadable: int
    """Lines that aren't what was written: cut by a power failure, or damaged."""

    @property
    def paid(self) -> int:
        """Neuron that all transactions took from the wallet."""
        return sum(transaction.paid for transaction in self.transactions)


def read_audit(path: str | os.PathLike[str]) -> AuditTrail:
    """Read an audit log.

    Args:
        path: The file, see `Broker.audit_path`.

    Returns:
        What it tells; nothing if there is no such file.

    Raises:
        ConfigError: It can't be read.
    """
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError:
        data = b""
    except OSError as error:
        raise ConfigError(f"the audit log {path} can't be read: {error.strerror}") from error
    lines = [_parse(line) for line in data.splitlines() if line.strip()]
    return _trail([line for line in lines if line is not None], lines.count(None))


def _trail(lines: Sequence[Mapping[str, Any]], unreadable: int) -> AuditTrail:
    mined: dict[str, AuditedTransaction] = {}
    place: dict[tuple[str, int], str] = {}
    signatures: list[AuditedSignature] = []
    height = 0
    for line in lines:
        try:
            if "height" in line:
                if line["height"] <= height:  # the outbox was begun anew
                    place.clear()
                height = line["height"]
            if line["kind"] in ("mined", "unmined"):
                mined.pop(place.pop((line["key"], line["attempt"]), ""), None)
            if line["kind"] == "mined":
                transaction = _transaction(line)
                place[line["key"], line["attempt"]] = transaction.tx_hash
                mined[transaction.tx_hash] = transaction
            if line["kind"] == "signature":
                signatures.append(_signature(line))
        except (KeyError, TypeError, ValueError):
            unreadable += 1
    return AuditTrail(transactions=tuple(mined.values()), signatures=tuple(signatures), unreadable=unreadable)


def _transaction(line: Mapping[str, Any]) -> AuditedTransaction:
    return AuditedTransaction(
        key=line["key"],
        name=line["name"],
        wallet=Address(line["wallet"]),
        tx_hash=TxHash(line["tx_hash"]),
        account_nonce=line["account_nonce"],
        to=Address(line["to"]),
        value=int(line["value"]),
        payee=Address(line["payee"]) if line.get("payee") else None,
        transferred=int(line.get("transferred", 0)),
        status=line["status"],
        gas_cost=int(line["gas_cost"]),
        block_number=line["block_number"],
        balance_before=_amount(line.get("balance_before")),
        balance_after=_amount(line.get("balance_after")),
        at=_time(line),
    )


def _signature(line: Mapping[str, Any]) -> AuditedSignature:
    provider = line.get("provider")
    return AuditedSignature(
        purpose=line["purpose"],
        wallet=Address(line["wallet"]),
        provider=Address(provider) if provider else None,
        digest=line["digest"],
        at=_time(line),
    )


def _amount(text: str | None) -> int | None:
    return None if text is None else int(text)


def _time(line: Mapping[str, Any]) -> dt.datetime | None:
    return dt.datetime.fromisoformat(line["at"]) if line.get("at") else None


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) and "kind" in value else None


# --- writing ---------------------------------------------------------------------------------------------------------


def entry_line(lane: LaneId, height: int, link: str, entry: Entry, row: Row | None) -> dict[str, Any]:
    """Write an entry of the outbox as a line.

    Args:
        lane: Whose.
        height: The entry's place in the lane.
        link: Its hash in the chain of entries.
        entry: What is recorded.
        row: The transaction it is about.
    """
    version = entry.get("version", {})
    at = entry.get("at", version.get("at"))
    line = {"kind": entry["kind"], "at": None if at is None else stamp(at), **_whose(lane), "height": height}
    line |= {"link": link} | {name: value for name, value in entry.items() if name not in _LEFT_OUT}
    if (tx_hash := version.get("hash", entry.get("hash"))) is not None:
        line["tx_hash"] = tx_hash
    if version:
        line["max_fee_per_gas"] = version["fee"]
    if row is not None:
        line |= {"name": row.name, "to": row.to, "value": str(row.value), "account_nonce": row.account_nonce}
        if row.payee is not None:
            line |= {"payee": row.payee, "transferred": str(row.money.transferred)}
    if entry["kind"] == "mined":
        line["gas_cost"] = str(entry["gas_used"] * int(entry["gas_price"]))
    return line


def signature_line(lane: LaneId, at: float, fields: Mapping[str, str | None]) -> dict[str, Any]:
    """Write a signature that isn't a transaction's as a line."""
    told = {name: value for name, value in fields.items() if value is not None}
    return {"kind": "signature", "at": stamp(at), **_whose(lane), **told}


def stamp(at: float) -> str:
    """Write a unix time as lines carry it."""
    return dt.datetime.fromtimestamp(at, dt.UTC).isoformat(timespec="milliseconds")


def _whose(lane: LaneId) -> dict[str, Any]:
    return {"chain_id": lane.chain_id, "wallet": lane.address}


class AuditFile:
    """One lane's file. All programs of the user append to it, one line or several in one write."""

    def __init__(self, path: Path) -> None:
        """Name the file; it is created with the first line, readable by its owner only."""
        self._path = path

    def links_from(self, height: int) -> set[str]:
        """Return the links of the lines at the end of the file, back to the first below a height."""
        try:
            size = self._path.stat().st_size
        except FileNotFoundError:
            return set()
        length = _CHUNK
        while True:
            with self._path.open("rb") as file:
                file.seek(max(size - length, 0))
                lines = file.read(length).splitlines()
            found: set[str] = set()
            for line in reversed(lines if length >= size else lines[1:]):
                parsed = _parse(line)
                if parsed is None or "height" not in parsed:
                    continue
                if parsed["height"] < height:
                    return found
                found.add(parsed["link"])
            if length >= size:
                return found
            length *= 4

    def append(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """Add lines at the end."""
        flags = os.O_CREAT | os.O_RDWR | os.O_APPEND | getattr(os, "O_BINARY", 0)
        file = os.open(self._path, flags, 0o600)
        try:
            size = os.lseek(file, 0, os.SEEK_END)
            torn = size > 0 and os.lseek(file, -1, os.SEEK_END) >= 0 and os.read(file, 1) != b"\n"
            text = "".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines)
            os.write(file, b"\n" * torn + text.encode())
        finally:
            os.close(file)
