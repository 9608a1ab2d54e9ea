"""The storage side of a devnet: the log, the nodes, the indexer; and how the devnet's own actors use it."""

import json
from collections.abc import AsyncGenerator, Iterable
from pathlib import Path
from typing import Any, Final

import anyio
import anyio.to_thread

from zg_async.clock import Clock
from zg_async.devnet.chain_client import ChainClient, Wallet
from zg_async.devnet.storage_indexer import Indexer
from zg_async.devnet.storage_log import Entry, FlowLog
from zg_async.devnet.storage_node import StorageNode
from zg_async.errors import ConfigError, NotStoredError
from zg_async.wire.contracts import FlowContract, MarketContract
from zg_async.wire.hashing import hex0x
from zg_async.wire.merkle import BLOCK, SEGMENT, MerkleHasher, MerkleTree
from zg_async.wire.records import Address
from zg_async.wire.segments import Segment
from zg_async.wire.submission import submit_call, submitted

_MAGIC_SIZE: Final = 34
_WAIT_SECONDS: Final = 60.0


class StorageNetwork:
    """Storage nodes and their indexer. `aclose` stops everything."""

    def __init__(
        self,
        client: ChainClient,
        flow: Address,
        folder: Path,
        *,
        shards: Iterable[tuple[int, int]],
        chain_id: int,
        clock: Clock,
        interval: float = 0.05,
    ) -> None:
        """Make a network; nothing runs until `start`.

        Args:
            client: The chain.
            flow: The flow contract.
            folder: The nodes' disks.
            shards: (shard, of how many) of each node.
            chain_id: The chain's.
            clock: The machine's time.
            interval: Seconds between two looks at the chain.
        """
        self.client = client
        self.flow = FlowContract(flow)
        self.clock = clock
        self.log = FlowLog(client, flow, interval=interval)
        self.nodes = [
            StorageNode(self.log, folder / f"node-{i}", shard=shard, shards=count, chain_id=chain_id, clock=clock)
            for i, (shard, count) in enumerate(shards)
        ]
        self.indexer = Indexer(self)

    async def start(self) -> None:
        """Serve."""
        await self.log.start()
        for node in self.nodes:
            await node.start()
        await self.indexer.start()

    async def aclose(self) -> None:
        """Stop serving. Idempotent."""
        await self.indexer.stop()
        for node in self.nodes:
            await node.stop()
        await self.log.aclose()

    # --- for providers and REST --------------------------------------------------------------------------------------

    async def put_file(self, path: Path, wallet: Wallet) -> bytes:
        """Store a file as a provider does: pay, then hand the segments over.

        Args:
            path: The file.
            wallet: Pays.

        Returns:
            Its root.

        Raises:
            ChainError: The chain refused.
            NotStoredError: The nodes don't see the submission.
        """
        tree = await anyio.to_thread.run_sync(hash_path, path)
        market = await self.client.call(self.flow.market())
        price = await self.client.call(MarketContract(market).price_per_sector())
        receipt = await wallet.send(submit_call(self.flow.address, [tree], submitter=wallet.address, price=price))
        seq = submitted(receipt.logs, self.flow.address)[0].submission_index
        entry = await self._entry(seq)
        for index in range(tree.segments):
            holders = [n for n in self.nodes if n.is_up and entry.is_held_by(n.shard, n.shards, index)]
            segment = await anyio.to_thread.run_sync(_segment, path, tree, index)
            for node in holders:
                await node.put_segment(segment, seq)
        return tree.root

    async def _entry(self, seq: int) -> Entry:
        until = self.clock.monotonic() + _WAIT_SECONDS
        while True:
            seen = self.log.changed
            if seq < len(self.log.entries) and all(node.find_seq(seq) for node in self.nodes):
                return self.log.entries[seq]
            if self.clock.monotonic() > until:
                raise NotStoredError(f"the storage nodes don't see submission {seq}")
            with anyio.move_on_after(self.log.interval):
                await seen.wait()

    def find(self, root: bytes) -> Entry | None:
        """Return a file's entry, if some node knows it."""
        found = (node.find(root) for node in self.nodes if node.is_up)
        return next((entry for entry in found if entry is not None), None)

    async def fetch_file(self, root: bytes, target: Path) -> None:
        """Write a stored file to disk.

        Raises:
            NotStoredError: It isn't there whole.
        """
        entry = self.find(root)
        if entry is None:
            raise NotStoredError(f"no storage node knows {hex0x(root)}")
        part = target.with_name(f"{target.name}.part")
        async with await anyio.open_file(part, "wb") as out:
            async for piece in self.pieces(entry):
                await out.write(piece)
        await anyio.Path(part).replace(target)

    async def pieces(self, entry: Entry) -> AsyncGenerator[bytes, None]:
        """Give a stored file's bytes, a segment at a time.

        Raises:
            NotStoredError: A segment is missing.
        """
        for index in range(entry.segments):
            for node in self.nodes:
                if node.is_up and entry.is_held_by(node.shard, node.shards, index):
                    data = await node.read_file(entry, index)
                    if data is not None:
                        yield data[: entry.size - index * SEGMENT]
                        break
            else:
                raise NotStoredError(f"no storage node has segment {index} of {hex0x(entry.root)}")

    async def directory(self, entry: Entry) -> dict[str, Any]:
        """Read a stored directory's listing.

        Raises:
            ValueError: It is no directory.
        """
        if entry.size > BLOCK:
            raise ValueError("no directory")
        blob = b"".join([piece async for piece in self.pieces(entry)])
        tree: dict[str, Any] = json.loads(blob[_MAGIC_SIZE:])
        return tree


def hash_path(path: Path) -> MerkleTree:
    """Hash a file. Blocks."""
    hasher = MerkleHasher()
    with path.open("rb") as file:
        while piece := file.read(BLOCK):
            hasher.update(piece)
    return hasher.tree()


def _segment(path: Path, tree: MerkleTree, index: int) -> dict[str, Any]:
    with path.open("rb") as file:
        file.seek(index * SEGMENT)
        data = file.read(SEGMENT)
    return Segment.of(tree, index, data).to_json()


def parse_shards(text: str, count: int) -> list[tuple[int, int]]:
    """Read how nodes share the segments.

    Args:
        text: A number of shards, to which the nodes are dealt in turn: `1`, `2`, `4`; or one `shard/shards` per node,
            joined by commas: `0/2,1/2,0/1`.
        count: How many nodes.

    Returns:
        (shard, shards) of each node.

    Raises:
        ConfigError: No such division.
    """
    try:
        if "/" not in text:
            total = int(text)
            pairs = [(number % total, total) for number in range(count)]
        else:
            pairs = [(int(a), int(b)) for a, b in (one.split("/") for one in text.split(","))]
    except (ValueError, ZeroDivisionError) as error:
        raise ConfigError(f"no division into shards: {text[:40]!r}", hint="For example 2, or 0/2,1/2") from error
    if len(pairs) != count or any(n < 1 or n & (n - 1) or not 0 <= k < n for k, n in pairs):
        raise ConfigError(
            f"{count} storage nodes can't be divided as {text[:40]!r}",
            hint="The number of shards is a power of two; give one shard/shards for each node",
        )
    return pairs
