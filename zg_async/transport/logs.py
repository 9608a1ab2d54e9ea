"""Events, read once for all who follow them.

Truth is `eth_getLogs` from a cursor (block number, block hash) that moves on empty blocks too; nothing else counts. In
each round the newest block and the block of the cursor are looked at: another hash there means a reorganisation, and
the reader goes back to the newest block it remembers that is still on the chain, tells its followers (`Rewound`), and
reads on from there. A cursor that can't be placed on the chain any more is answered with `Resync`: what happened since
is unknown, so read the state. Only logs of the contracts and topics asked for, in the range asked for, are passed on.
"""

import collections
import contextlib
import dataclasses
import datetime as dt
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Sequence
from typing import Any, Final

import anyio

from zg_async.errors import ChainError, ChainUnavailableError, RpcError, ZgError
from zg_async.logs import get_logger
from zg_async.transport.heads import Block, BlockWatcher, parse_block
from zg_async.transport.receipts import parse_log
from zg_async.transport.rpc import Ask, Rpc
from zg_async.wire.hashing import checksum_address, hex0x
from zg_async.wire.records import Address, Log

_log = get_logger("zg_async.logs")
_REMEMBERED: Final = 256
_MOST_BLOCKS: Final = 2_000
_MOST_WAITING: Final = 10_000
Topics = Sequence[Sequence[bytes]]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Cursor:
    """Up to where a follower has seen everything."""

    block_number: int
    block_hash: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LogBatch:
    """The logs of some blocks, in order; often none."""

    logs: tuple[Log, ...]
    cursor: Cursor
    timestamp: dt.datetime
    """Of the cursor's block."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Rewound:
    """A reorganisation: whatever was told above the cursor didn't happen; it may come again."""

    cursor: Cursor


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Resync:
    """The cursor given isn't on the chain and can't be followed back: read the state, then follow from here."""

    cursor: Cursor


LogEvent = LogBatch | Rewound | Resync


class _Follower:
    def __init__(self, addresses: frozenset[Address], topics: frozenset[bytes], start: int) -> None:
        self.addresses = addresses
        self.topics = topics
        self.at = start
        self.events: collections.deque[LogEvent] = collections.deque()
        self.change = anyio.Event()
        self.error: ZgError | None = None

    def put(self, event: LogEvent) -> None:
        if len(self.events) < _MOST_WAITING:
            self.events.append(event)
        self.change.set()

    def wants(self, log: Log) -> bool:
        return (
            log.address in self.addresses
            and log.block_number > self.at
            and (not self.topics or (bool(log.topics) and log.topics[0] in self.topics))
        )


class LogReader:
    """A chain's one reader of logs. It is a poll of the watcher, so it works only while somebody follows."""

    def __init__(self, rpc: Rpc, watcher: BlockWatcher) -> None:
        """Prepare; nothing is read until somebody follows."""
        self._rpc = rpc
        self._watcher = watcher
        self._followers: list[_Follower] = []
        self._seen: collections.OrderedDict[int, str] = collections.OrderedDict()
        self._cursor: Cursor | None = None
        self._asked: Cursor | None = None
        """What the last question was about: the first of new followers may move the cursor before it is answered."""

    async def get_logs(self, addresses: Iterable[str], topics: Topics, first: int, last: int) -> tuple[Log, ...]:
        """Read the logs of a range of blocks, in pieces the node will answer.

        Args:
            addresses: The contracts.
            topics: For each place the accepted topics; empty for any.
            first: First block.
            last: Last block, included.

        Returns:
            The logs in order, only from these contracts and with these topics.

        Raises:
            ChainUnavailableError: No answer.
            RpcError: The node refuses even single blocks.
        """
        wanted = frozenset(checksum_address(a) for a in addresses)
        logs: list[Log] = []
        size = _MOST_BLOCKS
        while first <= last:
            upper = min(first + size - 1, last)
            fields = _filter(wanted, topics, first, upper)
            try:
                answer = await self._rpc.request("eth_getLogs", [fields])
            except RpcError:
                if size == 1:
                    raise
                size = max(size // 8, 1)  # "too many results", "range too large": every service has its own words
                continue
            logs += _checked(answer, wanted, topics, first, upper)
            first = upper + 1
        return tuple(logs)

    @contextlib.asynccontextmanager
    async def follow(
        self, *, addresses: Iterable[str], topics: Topics = (), cursor: Cursor | None = None
    ) -> AsyncGenerator[AsyncIterator[LogEvent], None]:
        """Follow logs from a cursor on.

        Args:
            addresses: The contracts.
            topics: One list with the accepted first topics; empty for any.
            cursor: Where an earlier follow stopped; None: from the newest block on.

        Yields:
            An endless iterator of `LogBatch`, `Rewound` and `Resync`. It raises ChainUnavailableError when the node
            stays away; follow again with the last cursor then.
        """
        wanted = frozenset(checksum_address(a) for a in addresses)
        follower = _Follower(wanted, frozenset(topics[0]) if topics else frozenset(), -1)
        await self._start(follower, topics, cursor)
        self._followers.append(follower)
        try:
            async with self._watcher.joined(self):
                yield self._events(follower)
        finally:
            self._followers.remove(follower)

    async def _start(self, follower: _Follower, topics: Topics, cursor: Cursor | None) -> None:
        head = parse_block(await self._rpc.request("eth_getBlockByNumber", ["latest", False]))
        if self._cursor is None or not self._followers:
            self._restart(head)
        here = self._cursor or Cursor(block_number=head.number, block_hash=head.hash)
        follower.at = here.block_number
        if cursor is None:
            return
        known = await self._block(cursor.block_number)
        if known is None or known.hash != cursor.block_hash:
            follower.put(Resync(cursor=here))
            return
        follower.at = here.block_number
        if cursor.block_number < here.block_number:
            block = await self._block(here.block_number)
            logs = await self.get_logs(follower.addresses, topics, cursor.block_number + 1, here.block_number)
            if block is not None:
                follower.put(LogBatch(logs=logs, cursor=here, timestamp=block.timestamp))

    def _restart(self, head: Block) -> None:
        self._seen.clear()
        self._remember(head.number, head.hash)

    async def _block(self, number: int) -> Block | None:
        answer = await self._rpc.request("eth_getBlockByNumber", [hex(number), False])
        return None if answer is None else parse_block(answer)

    async def _events(self, follower: _Follower) -> AsyncIterator[LogEvent]:
        while True:
            while follower.events:
                yield follower.events.popleft()
            if follower.error is not None:
                raise follower.error.again()
            follower.change = anyio.Event()
            await follower.change.wait()

    # --- the watcher's rounds ----------------------------------------------------------------------------------------

    def asks(self) -> Sequence[Ask]:
        """Ask whether the cursor's block still stands."""
        cursor = self._asked = self._cursor
        return () if cursor is None else (Ask("eth_getBlockByNumber", [hex(cursor.block_number), False]),)

    async def answered(self, head: Block, answers: Sequence[Any]) -> None:
        """Read what is new, or go back."""
        cursor = self._cursor
        if cursor is None or cursor != self._asked or not answers or isinstance(answers[0], ChainError):
            return
        try:
            if answers[0] is None:
                if head.number >= cursor.block_number:
                    return  # a back-end that is behind
                await self._rewind(head)
            elif parse_block(answers[0]).hash != cursor.block_hash:
                await self._rewind(head)
            elif head.number > cursor.block_number:
                await self._advance(cursor, head)
        except ChainError as error:
            if not isinstance(error, ChainUnavailableError):
                self.failed(error)

    def failed(self, error: ZgError) -> None:
        """Tell the followers that the node is away."""
        for follower in self._followers:
            follower.error = error
            follower.change.set()

    async def _advance(self, cursor: Cursor, head: Block) -> None:
        addresses = frozenset[Address]().union(*(f.addresses for f in self._followers))
        anything = any(not f.topics for f in self._followers)
        topics = [] if anything else [sorted(frozenset[bytes]().union(*(f.topics for f in self._followers)))]
        first, last = cursor.block_number + 1, min(head.number, cursor.block_number + _MOST_BLOCKS)
        logs = await self.get_logs(addresses, topics, first, last)
        end = await self._block(last)
        if end is None or (last == head.number and end.hash != head.hash):
            return  # the chain moved while we read: look again in the next round
        if any(log.block_number == last and log.block_hash != end.hash for log in logs):
            return
        here = self._remember(end.number, end.hash)
        for log in logs:
            self._seen.setdefault(log.block_number, log.block_hash)
        for follower in tuple(self._followers):
            if follower.at < last:
                mine = tuple(log for log in logs if follower.wants(log))
                follower.put(LogBatch(logs=mine, cursor=here, timestamp=end.timestamp))
                follower.at = last
        if last < head.number:
            self._watcher.nudge()

    async def _rewind(self, head: Block) -> None:
        for number in sorted(self._seen, reverse=True):
            if number <= head.number:
                block = await self._block(number)
                if block is not None and block.hash == self._seen[number]:
                    break
            del self._seen[number]
        else:
            number = max(head.number - _REMEMBERED, 0)
            block = await self._block(number)
        if block is None:
            return
        _log.warning("the chain was reorganised above block %d", block.number)
        here = self._remember(block.number, block.hash)
        for follower in self._followers:
            if follower.at > block.number:
                follower.put(Rewound(cursor=here))
                follower.at = block.number
        self._watcher.nudge()

    def _remember(self, number: int, digest: str) -> Cursor:
        self._seen[number] = digest
        while len(self._seen) > _REMEMBERED:
            self._seen.popitem(last=False)
        self._cursor = Cursor(block_number=number, block_hash=digest)
        return self._cursor


def _filter(addresses: Iterable[str], topics: Topics, first: int, last: int) -> dict[str, Any]:
    return {
        "address": sorted(addresses),
        "topics": [[hex0x(topic) for topic in place] or None for place in topics],
        "fromBlock": hex(first),
        "toBlock": hex(last),
    }


def _checked(answer: Any, addresses: frozenset[Address], topics: Topics, first: int, last: int) -> list[Log]:
    if not isinstance(answer, list):
        raise RpcError("the node sent no list of logs")
    logs = [parse_log(item) for item in answer if not (isinstance(item, dict) and item.get("removed"))]
    kept = [
        log
        for log in logs
        if log.address in addresses
        and first <= log.block_number <= last
        and all(
            not place or (len(log.topics) > index and log.topics[index] in place) for index, place in enumerate(topics)
        )
    ]
    return sorted(kept, key=lambda log: (log.block_number, log.log_index))
