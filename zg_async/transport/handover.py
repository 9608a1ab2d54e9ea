"""What a job has sent, taken along to another machine's outbox, so that its keys are known there and its caps hold.

The file that carries it is not believed: each transaction is looked up on the chain, and has to be the wallet's own.
"""

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING

from zg_async.errors import JournalError
from zg_async.transport.receipts import parse_found, parse_inclusion
from zg_async.transport.rows import RowStatus, claimed_entry, found_entry, mined_entry
from zg_async.transport.rpc import Ask, blob, quantity
from zg_async.wire.hashing import checksum_address
from zg_async.wire.records import TxHash

if TYPE_CHECKING:
    from zg_async.transport.lane import Lane


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """A mined transaction of a job."""

    key: str
    """The effect's name."""
    name: str
    """Contract and function."""
    tx_hash: TxHash


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Handover:
    """What an outbox knows of a job."""

    sent: tuple[Sent, ...]
    charges: Mapping[str, int]
    """Key to neuron: what its tasks cost, or may cost."""


async def hand_over(lane: "Lane", job: str) -> Handover:
    """Wait until all that a job has signed is mined, and say what it was.

    Raises:
        TransactionTimeoutError: Some of it isn't mined for long.
        TransactionReplacedError: A stranger's transaction took the place of one.
    """
    await lane.sweep()
    for row in lane.book.rows_of(job):
        if row.status is RowStatus.SIGNED:
            await lane.wait_mined(row)
    rows = [row for row in lane.book.rows_of(job) if row.inclusion is not None]
    return Handover(
        sent=tuple(Sent(key=row.key, name=row.name, tx_hash=row.tx_hash) for row in rows),
        charges={key: amount for key, (_, amount) in lane.book.charges.items() if key.startswith(f"{job}/")},
    )


async def take_over(lane: "Lane", handover: Handover) -> None:
    """Record what a job sent elsewhere. Doing it again changes nothing.

    Raises:
        JournalError: A transaction isn't on the chain, isn't the wallet's, or another one of this outbox has its nonce.
        LimitError: A limit doesn't allow what its tasks may cost.
    """
    for sent in handover.sent:
        if lane.book.find(sent.key) is None:
            await _take_in(lane, sent)
    for key, amount in handover.charges.items():
        await lane.charge(key, amount, settled=True)


async def _take_in(lane: "Lane", sent: Sent) -> None:
    asks = [Ask("eth_getTransactionByHash", [sent.tx_hash]), Ask("eth_getTransactionReceipt", [sent.tx_hash])]
    item, receipt = await lane.parts.rpc.batch(asks)
    if not isinstance(item, dict) or not isinstance(receipt, dict):
        raise _refused(sent, "the chain doesn't know it")
    found, inclusion = parse_found(item), parse_inclusion(receipt)
    if checksum_address(str(item.get("from"))) != lane.wallet or inclusion.tx_hash != sent.tx_hash:
        raise _refused(sent, f"it isn't one of {lane.wallet}")
    outbox, book = lane.parts.outbox, await lane.parts.outbox.refresh(lane.id)
    if found.account_nonce not in book.found:
        if not book.is_free(found.account_nonce):
            raise _refused(sent, f"another transaction is on record here with nonce {found.account_nonce}")
        await outbox.append(lane.id, [found_entry(found)])
    at = lane.parts.clock.now()
    claimed = claimed_entry(
        found,
        key=sent.key,
        attempt=1,
        name=sent.name,
        to=checksum_address(str(item["to"])),
        data=blob(item["input"]),
        value=quantity(item["value"]),
        at=at,
    )
    await outbox.append(lane.id, [claimed])
    row = lane.book.find(sent.key)
    if row is None:
        raise _refused(sent, "another effect has it already")
    await outbox.append(lane.id, [mined_entry(row, inclusion, at=at)])


def _refused(sent: Sent, why: str) -> JournalError:
    return JournalError(
        f"{sent.name} ({sent.tx_hash}) can't be taken over: {why}",
        hint="Nothing was changed in the journal; see that the file's wallet and network are this broker's",
    )
