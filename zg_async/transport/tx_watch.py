"""Watching a transaction, whoever sent it: waiting, mined, deeper, removed by a reorganisation, final."""

import dataclasses
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any, Literal

import anyio

from zg_async.errors import ChainUnavailableError, ZgError
from zg_async.transport.heads import Block, BlockWatcher
from zg_async.transport.receipts import parse_inclusion
from zg_async.transport.rpc import Ask
from zg_async.wire.records import TxHash

TransactionState = Literal["pending", "mined", "reverted", "final"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TransactionChanged:
    """A transaction stands elsewhere than before."""

    tx_hash: TxHash
    state: TransactionState
    """`pending` after `mined` means that a reorganisation removed its block."""
    succeeded: bool | None
    """None while it is pending."""
    block_number: int | None
    block_hash: str | None
    confirmations: int
    """Blocks on top of it and itself; 0 while it is pending."""


class _Poll:
    """Keeps the newest answer about one hash."""

    def __init__(self, tx_hash: str) -> None:
        self._hash = tx_hash
        self.seen: tuple[Block, Mapping[str, Any] | None] | None = None
        self.error: ZgError | None = None
        self.change = anyio.Event()

    def asks(self) -> Sequence[Ask]:
        return (Ask("eth_getTransactionReceipt", [self._hash]),)

    async def answered(self, head: Block, answers: Sequence[Any]) -> None:
        answer = answers[0]
        if not isinstance(answer, ZgError):
            self.seen = (head, answer if isinstance(answer, Mapping) and answer.get("blockHash") else None)
            self._wake()

    def failed(self, error: ZgError) -> None:
        if not isinstance(error, ChainUnavailableError):
            self.error = error
            self._wake()

    def _wake(self) -> None:
        self.change.set()
        self.change = anyio.Event()


async def watch_transaction(
    watcher: BlockWatcher, tx_hash: str, confirmations: int
) -> AsyncGenerator[TransactionChanged, None]:
    """Yield where a transaction stands, each time that changes, until it is final.

    Args:
        watcher: The network's block watcher.
        tx_hash: Which transaction.
        confirmations: From how many on it counts as final.
    """
    poll, last = _Poll(tx_hash), None
    async with watcher.joined(poll):
        while last is None or last.state != "final":
            if poll.seen is None:
                await poll.change.wait()
            if poll.error is not None:
                raise poll.error.again()
            if poll.seen is None:
                continue
            (head, receipt), poll.seen = poll.seen, None
            change = _change(TxHash(tx_hash), head, receipt, confirmations)
            if last is None or (change.state, change.block_hash) != (last.state, last.block_hash):
                last = change
                yield change


def _change(tx_hash: TxHash, head: Block, receipt: Mapping[str, Any] | None, confirmations: int) -> TransactionChanged:
    if receipt is None:
        return TransactionChanged(
            tx_hash=tx_hash, state="pending", succeeded=None, block_number=None, block_hash=None, confirmations=0
        )
    place = parse_inclusion(receipt)
    depth = max(head.number - place.block_number + 1, 1)
    state: TransactionState = "mined" if place.status else "reverted"
    return TransactionChanged(
        tx_hash=tx_hash,
        state="final" if depth >= confirmations else state,
        succeeded=bool(place.status),
        block_number=place.block_number,
        block_hash=place.block_hash,
        confirmations=depth,
    )
