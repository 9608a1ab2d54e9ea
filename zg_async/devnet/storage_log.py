"""The flow contract's submissions, as every storage node of the devnet reads them.

In order, and without those that a reorganisation took back.
"""

from dataclasses import dataclass
from typing import Any, Final

import anyio

from zg_async.background import Background
from zg_async.devnet.chain_client import ChainClient
from zg_async.errors import ZgError
from zg_async.logs import get_logger
from zg_async.wire.contracts import Submit, decode_log
from zg_async.wire.hashing import hex0x
from zg_async.wire.merkle import SEGMENT_CHUNKS, SubmissionNode, chunk_count, root_of_nodes, segment_count
from zg_async.wire.records import Address

_log = get_logger("zg_async.devnet.storage")
_OVERLAP: Final = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One submission."""

    seq: int
    start: int
    """Its first sector in the flow."""
    size: int
    """Bytes of the file."""
    nodes: tuple[SubmissionNode, ...]
    root: bytes
    block_number: int
    block_hash: str
    seen: float
    """By the devnet's clock, monotonic."""

    @property
    def chunks(self) -> int:
        """How many chunks hold data."""
        return chunk_count(self.size)

    @property
    def segments(self) -> int:
        """How many segments hold data."""
        return segment_count(self.size)

    def is_held_by(self, shard: int, shards: int, index: int) -> bool:
        """Say whether a node of this shard keeps a segment of the file."""
        return (self.start // SEGMENT_CHUNKS + index) % shards == shard

    def to_json(self) -> dict[str, Any]:
        """Return the `tx` of a file info."""
        return {
            "streamIds": [],
            "data": [],
            "dataMerkleRoot": hex0x(self.root),
            "merkleNodes": [[node.height + 1, hex0x(node.root)] for node in self.nodes],
            "startEntryIndex": self.start,
            "size": self.size,
            "seq": self.seq,
        }


class FlowLog:
    """Follows a flow contract's `Submit` events."""

    def __init__(self, client: ChainClient, flow: Address, *, interval: float = 0.05) -> None:
        """Follow a contract; `interval` is in seconds."""
        self.client = client
        self.flow = flow
        self.interval = interval
        self.entries: list[Entry] = []
        self.height = 0
        self.block_hash = "0x" + "00" * 32
        self.changed = anyio.Event()
        """Set and replaced after each round that saw another head."""
        self._background = Background()

    async def start(self) -> None:
        """Read what is there, and follow from then on."""
        await self.round()
        self._background.start(self._run(), name="devnet storage log")

    async def aclose(self) -> None:
        """Stop following."""
        await self._background.aclose()

    async def _run(self) -> None:
        while True:
            await self.client.clock.sleep(self.interval)
            try:
                await self.round()
            except ZgError as error:
                _log.debug("the chain doesn't answer: %s", error)

    async def round(self) -> None:
        """Look once."""
        number, block_hash, _ = await self.client.head()
        if block_hash == self.block_hash:
            return
        first = max(min(self.height, number) - _OVERLAP, 0)
        logs = await self.client.logs((self.flow,), first, number)
        known = {(entry.seq, entry.block_hash): entry for entry in self.entries}
        entries = [entry for entry in self.entries if entry.block_number < first]
        for log in logs:
            event = decode_log(log)
            if isinstance(event, Submit) and event.submission_index == len(entries):
                entries.append(known.get((len(entries), str(log.block_hash))) or self._entry(event))
        self.entries, self.height, self.block_hash = entries, number, block_hash
        changed, self.changed = self.changed, anyio.Event()
        changed.set()

    def _entry(self, event: Submit) -> Entry:
        size, _, nodes = event.submission
        nodes = tuple(SubmissionNode(bytes(root), int(height)) for root, height in nodes)
        return Entry(
            seq=event.submission_index,
            start=event.start_position,
            size=size,
            nodes=nodes,
            root=root_of_nodes(nodes),
            block_number=event.log.block_number,
            block_hash=event.log.block_hash,
            seen=self.client.clock.monotonic(),
        )
