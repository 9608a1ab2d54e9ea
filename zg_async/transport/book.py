"""What a wallet has signed on one chain: the entries of its lane folded into rows. Pure; it does no I/O.

A lane is (chain id, genesis hash, address): one key is used on several networks, and a devnet started anew has the same
chain id and nonces from 0 again. Its entries are append-only and hash-chained:

    signed      a key's transaction at a nonce, with its bytes. Recorded before it is sent
    version     the same with higher fees: same nonce, never another effect
    mined       one of its versions is in a block, status 1 or 0
    unmined     a reorganisation removed that block
    final       mined deep enough; all but the newest forget their bytes, hashes never. Only a `mined` or `unmined`
                that is marked `deep` undoes it: a reorganisation went deeper than the network's confirmations
    replaced    somebody else's transaction took the nonce, for good. Only now may the key be signed again
    found       a transaction of this wallet that the book doesn't hold was seen on the chain
    claimed     such a transaction turned out to be a key's own, lost with a part of the book
    charge      what a task may cost, or has cost, at a provider: counted with the rest; the newest of a key stands
    loss        a part of the lane is missing: nothing may be signed
    reconciled  what the chain knows has been taken in: it may

Every entry is checked against the rows before it is appended, by the same code in every store; an entry that lost
a race doesn't fit any more and is refused (`Misfit`), whoever lost looks again.
"""

import collections
import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from zg_async.errors import JournalError
from zg_async.transport.budget import Totals, group_of, money_of, money_of_row
from zg_async.transport.rows import Entry, Found, Inclusion, LaneId, Loss, Money, Row, RowStatus, Version
from zg_async.transport.transaction import intent_digest
from zg_async.wire.records import Address, TxHash

GENESIS: Final = "0" * 64
KEPT_FINAL: Final = 256
"""So many final rows of a lane keep their bytes, for a reorganisation deeper than the network's confirmations."""


class Misfit(Exception):  # noqa: N818  not an error: a lost race
    """An entry doesn't fit the rows as they are now."""


def encode(entry: Entry) -> bytes:
    """Write an entry as it is hashed and stored."""
    return json.dumps(entry, separators=(",", ":"), sort_keys=True).encode()


def link(previous: str, lane: LaneId, height: int, body: bytes) -> str:
    """Hash an entry onto its predecessor."""
    return hashlib.sha256(f"{previous}|{lane}|{height}|".encode() + body).hexdigest()


class LaneBook:
    """The rows of one lane."""

    def __init__(self, lane: LaneId) -> None:
        """Make an empty book."""
        self.lane = lane
        self.reset()

    def reset(self) -> None:
        """Forget everything, to be read anew."""
        self.height = 0
        self.head = GENESIS
        self.loss: Loss | None = None
        self.next_nonce = 0
        """One above the highest nonce ever signed here."""
        self.found: dict[int, Found] = {}
        self.totals = getattr(self, "totals", Totals())
        self.totals.clear()
        self.payees: set[Address] = set()
        """Providers that got a transfer."""
        self.removals = 0
        """How often a reorganisation removed a row from its block, or moved it to another."""
        self.charges: dict[str, tuple[float, int]] = {}
        """Key to time and amount in neuron."""
        self._rows: dict[tuple[str, int], Row] = {}
        self._latest: dict[str, Row] = {}
        self._keys_of: dict[str | None, dict[str, None]] = {}
        """Job to its keys."""
        self._hashes: dict[str, tuple[str, int]] = {}
        self._unsettled: dict[tuple[str, int], None] = {}
        self._final: collections.deque[tuple[str, int]] = collections.deque()
        """Final rows that have their bytes yet, the newest last."""

    # --- questions ---------------------------------------------------------------------------------------------------

    def find(self, key: str) -> Row | None:
        """Return a key's newest attempt."""
        return self._latest.get(key)

    def attempt(self, key: str, number: int) -> Row:
        """Return one attempt of a key."""
        return self._rows[key, number]

    def find_hash(self, tx_hash: str) -> Row | None:
        """Return the row that a hash belongs to, whatever version."""
        place = self._hashes.get(tx_hash)
        return self._rows[place] if place is not None else None

    def current(self, row: Row) -> Row:
        """Return a row as it is now."""
        return self._rows[row.key, row.attempt]

    def open_rows(self) -> list[Row]:
        """Return what is signed and not known to be mined, by nonce."""
        rows = (self._rows[place] for place in self._unsettled)
        return sorted((r for r in rows if r.status is RowStatus.SIGNED), key=lambda r: r.account_nonce)

    def unsettled(self) -> list[Row]:
        """Return what isn't final yet, by nonce."""
        return sorted((self._rows[place] for place in self._unsettled), key=lambda r: r.account_nonce)

    def final_rows(self) -> list[Row]:
        """Return the newest final rows, which can be sent again, by nonce."""
        return sorted((self._rows[place] for place in self._final), key=lambda r: r.account_nonce)

    def final_count(self) -> int:
        """Return one above the highest nonce among the newest final rows; 0 without any."""
        return max((self._rows[place].account_nonce + 1 for place in self._final), default=0)

    def mined_rows(self) -> tuple[Row, ...]:
        """Return what is in a block, reverted or not, by nonce."""
        rows = (row for row in self._rows.values() if row.inclusion is not None)
        return tuple(sorted(rows, key=lambda row: row.account_nonce))

    def rows_of(self, group: str) -> tuple[Row, ...]:
        """Return the newest attempt of each key of a job, by nonce."""
        rows = (self._latest[key] for key in self._keys_of.get(group, ()))
        return tuple(sorted(rows, key=lambda row: row.account_nonce))

    def spent(self, since: float = 0.0) -> tuple[int, int]:
        """Sum up what was signed after `since` (unix seconds): neuron with and without value, open rows in full."""
        rows = [row for row in self._rows.values() if row.at >= since]
        return sum(row.reserved for row in rows), sum(row.gas_cost for row in rows)

    def is_free(self, account_nonce: int) -> bool:
        """Say whether nothing signed here can be mined with a nonce, or is: replaced, or known by its hash only."""
        return all(r.account_nonce != account_nonce or _is_past(r) for r in self._rows.values())

    def unclaimed(self, intent: str) -> Found | None:
        """Return a found transaction with this effect that no key has claimed."""
        return next((f for f in self.found.values() if f.intent == intent and not f.claimed), None)

    # --- changes -----------------------------------------------------------------------------------------------------

    def plan(self, entries: Iterable[Entry], *, height: int | None = None) -> list[tuple[int, bytes, str]]:
        """Check entries, which all have to fit, and link them; nothing is folded in yet.

        Args:
            entries: What is to be recorded.
            height: Of the first one; None: the next.

        Returns:
            (height, body, hash) of each: store them, then `take` them.

        Raises:
            Misfit: An entry doesn't fit the rows as they are now.
            JournalError: The lane has a loss, and an entry would sign something.
        """
        planned: list[tuple[int, bytes, str]] = []
        seen: set[tuple[str, str]] = set()
        head, height = self.head, self.height + 1 if height is None else height
        for entry in entries:
            self._check(entry, seen)
            body = encode(entry)
            head = link(head, self.lane, height, body)
            planned.append((height, body, head))
            height += 1
        return planned

    def take(self, height: int, body: bytes, digest: str) -> None:
        """Fold a stored entry in, whose link has been checked.

        Raises:
            JournalError: It can't be read.
        """
        try:
            self._apply(json.loads(body))
        except (KeyError, TypeError, ValueError):
            raise JournalError(f"entry {height} of lane {self.lane} can't be read") from None
        self.height, self.head = height, digest

    def _check(self, entry: Entry, seen: set[tuple[str, str]]) -> None:
        kind = entry["kind"]
        if kind in ("found", "loss", "reconciled"):
            return
        if kind == "charge":
            if entry["height"] != self.height + 1:
                raise Misfit
            return
        if self.loss is not None and kind in ("signed", "version") and not entry.get("filler"):
            raise JournalError(
                f"a part of the outbox is lost: {self.loss.reason}",
                hint="Nothing was signed; it goes on once the chain has shown what became of the lost part",
            )
        row = self._rows.get((entry["key"], entry["attempt"]))
        if (kind, entry["key"]) in seen:
            raise Misfit
        seen.add((kind, entry["key"]))
        if kind in ("signed", "claimed"):
            self._check_new(entry, row)
        elif row is None or not _FITS[kind](row, entry):
            raise Misfit

    def _check_new(self, entry: Entry, row: Row | None) -> None:
        latest = self._latest.get(entry["key"])
        if row is not None or entry["attempt"] != (latest.attempt + 1 if latest is not None else 1):
            raise Misfit
        if latest is not None and latest.status is not RowStatus.REPLACED:
            raise Misfit
        if entry["kind"] == "claimed":
            found = self.found.get(entry["nonce"])
            if found is None or found.claimed:
                raise Misfit
        elif entry["nonce"] < self.next_nonce and not (entry.get("filler") and self.is_free(entry["nonce"])):
            raise Misfit

    def _apply(self, entry: Entry) -> None:
        match entry["kind"]:
            case "signed":
                self._put(_signed_row(entry))
            case "found":
                self.found[entry["nonce"]] = _found(entry)
                self.next_nonce = max(self.next_nonce, entry["nonce"] + 1)
            case "claimed":
                found = self.found[entry["nonce"]]
                self.found[entry["nonce"]] = dataclasses.replace(found, claimed=True)
                self._put(_claimed_row(entry, found))
            case "loss":
                self.loss = Loss(reason=entry["reason"], next_nonce=entry["next_nonce"])
            case "reconciled":
                self.loss = None
            case "charge":
                self._charge(entry["key"], float(entry["at"]), int(entry["amount"]))
            case _:
                row = self._rows[entry["key"], entry["attempt"]]
                self.removals += entry["kind"] in ("mined", "unmined") and row.inclusion is not None
                self._put(_CHANGES[entry["kind"]](row, entry))

    def _charge(self, key: str, at: float, amount: int) -> None:
        if (old := self.charges.get(key)) is not None:
            self.totals.add(key, old[0], Money(gone=old[1]), -1)
            at = old[0] if amount <= old[1] else at
        self.charges[key] = (at, amount)
        self.totals.add(key, at, Money(gone=amount))

    def _put(self, row: Row) -> None:
        place = (row.key, row.attempt)
        if (old := self._rows.get(place)) is not None:
            self.totals.add(old.key, old.at, money_of_row(old), -1)
        self.totals.add(row.key, row.at, money_of_row(row))
        if row.payee is not None and row.status in (RowStatus.SIGNED, RowStatus.MINED):
            self.payees.add(row.payee)
        self._rows[place] = self._latest[row.key] = row
        self._keys_of.setdefault(group_of(row.key), {})[row.key] = None
        self._hashes.update((tx_hash, place) for tx_hash in row.hashes)
        self.next_nonce = max(self.next_nonce, row.account_nonce + 1)
        if row.final or row.status is RowStatus.REPLACED:
            self._unsettled.pop(place, None)
        else:
            self._unsettled[place] = None
        if place in self._final:
            self._final.remove(place)
        if row.final:
            self._final.append(place)
            if len(self._final) > KEPT_FINAL:
                oldest = self._final.popleft()
                self._rows[oldest] = bare = _bare(self._rows[oldest])
                if self._latest[bare.key].attempt == bare.attempt:
                    self._latest[bare.key] = bare


# --- rows ------------------------------------------------------------------------------------------------------------


def _version(fields: Mapping[str, Any]) -> Version:
    return Version(
        tx_hash=TxHash(fields["hash"]),
        raw=bytes.fromhex(fields["raw"]),
        max_fee_per_gas=int(fields["fee"]),
        max_priority_fee_per_gas=int(fields["tip"]),
        signed_at=float(fields["at"]),
    )


def _signed_row(entry: Entry) -> Row:
    to, data, value = Address(entry["to"]), bytes.fromhex(entry["data"]), int(entry["value"])
    version = _version(entry["version"])
    money, payee = money_of(entry["name"], data, value)
    return Row(
        key=entry["key"],
        attempt=entry["attempt"],
        name=entry["name"],
        account_nonce=entry["nonce"],
        to=to,
        data=data,
        value=value,
        gas=entry["gas"],
        intent=intent_digest(to, data, value),
        versions=(version,),
        status=RowStatus.SIGNED,
        at=version.signed_at,
        money=money,
        payee=payee,
    )


def _claimed_row(entry: Entry, found: Found) -> Row:
    to, data, value = Address(entry["to"]), bytes.fromhex(entry["data"]), int(entry["value"])
    version = Version(
        tx_hash=found.tx_hash, raw=b"", max_fee_per_gas=0, max_priority_fee_per_gas=0, signed_at=entry["at"]
    )
    money, payee = money_of(entry["name"], data, value)
    return Row(
        key=entry["key"],
        attempt=entry["attempt"],
        name=entry["name"],
        account_nonce=entry["nonce"],
        to=to,
        data=data,
        value=value,
        gas=0,
        intent=intent_digest(to, data, value),
        versions=(version,),
        status=RowStatus.SIGNED,
        at=entry["at"],
        money=money,
        payee=payee,
    )


def _found(entry: Entry) -> Found:
    return Found(
        account_nonce=entry["nonce"],
        tx_hash=TxHash(entry["hash"]),
        intent=entry["intent"],
        block_number=entry["block_number"],
        block_hash=entry["block_hash"],
    )


def _mined(row: Row, entry: Entry) -> Row:
    inclusion = Inclusion(
        tx_hash=TxHash(entry["hash"]),
        block_number=entry["block_number"],
        block_hash=entry["block_hash"],
        status=entry["status"],
        gas_used=entry["gas_used"],
        gas_price=int(entry["gas_price"]),
    )
    status = RowStatus.MINED if inclusion.status == 1 else RowStatus.REVERTED
    row = dataclasses.replace(row, final=False)
    versions = row.versions
    if inclusion.tx_hash not in row.hashes:  # the same effect, signed by a part of the book that is lost
        versions = (*versions, dataclasses.replace(versions[-1], tx_hash=inclusion.tx_hash, raw=b""))
    return dataclasses.replace(row, status=status, inclusion=inclusion, versions=versions)


def _added_version(row: Row, entry: Entry) -> Row:
    return dataclasses.replace(row, versions=(*row.versions, _version(entry["version"])))


def _unmined(row: Row, _: Entry) -> Row:
    return dataclasses.replace(row, status=RowStatus.SIGNED, inclusion=None, final=False)


def _final(row: Row, _: Entry) -> Row:
    return dataclasses.replace(row, final=True, was_final=True)


def _bare(row: Row) -> Row:
    bare = tuple(dataclasses.replace(version, raw=b"") for version in row.versions)
    data = row.data if row.status is RowStatus.REVERTED else b""  # the reason can be asked for again
    return dataclasses.replace(row, versions=bare, data=data)


def _is_past(row: Row) -> bool:
    """Whether a row's nonce can only be used by others: a stranger's took it, or the bytes were never known."""
    without_bytes = row.status is RowStatus.SIGNED and not any(version.raw for version in row.versions)
    return row.status is RowStatus.REPLACED or without_bytes


def _replaced(row: Row, entry: Entry) -> Row:
    by = entry.get("by")
    return dataclasses.replace(row, status=RowStatus.REPLACED, replaced_by=None if by is None else TxHash(by))


def _can_be_mined(row: Row, entry: Entry) -> bool:
    known = row.inclusion
    if known is None or (row.final and not entry.get("deep")):
        return row.status is RowStatus.SIGNED
    told = (entry["block_hash"], entry["hash"], entry["status"])
    return told != (known.block_hash, known.tx_hash, known.status)


def _was_mined(row: Row) -> bool:
    return row.inclusion is not None and not row.final


def _can_be_unmined(row: Row, entry: Entry) -> bool:
    return _was_mined(row) or (row.final and bool(entry.get("deep")))


_CHANGES: Final[Mapping[str, Callable[[Row, Entry], Row]]] = {
    "version": _added_version,
    "mined": _mined,
    "unmined": _unmined,
    "final": _final,
    "replaced": _replaced,
}
_FITS: Final[Mapping[str, Callable[[Row, Entry], bool]]] = {
    "version": lambda row, entry: row.status is RowStatus.SIGNED and entry["index"] == len(row.versions),
    "mined": _can_be_mined,
    "unmined": _can_be_unmined,
    "final": lambda row, _: _was_mined(row),
    "replaced": lambda row, _: row.status is RowStatus.SIGNED,
}
