"""Segments, entries and nodes of 0G Storage as JSON: records, and how they are read.

Nodes are strangers: what doesn't fit is an error, but for the fields some dialects leave out.
Source: 0g-storage-node rpc/types.rs, 0g-storage-client node/ and indexer/.
"""

import base64
import binascii
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

from zg_async.wire.hashing import checksum_address, hex0x
from zg_async.wire.merkle import (
    CHUNK,
    MAX_SIZE,
    SEGMENT,
    MerkleTree,
    SegmentProof,
    SubmissionNode,
    root_of_nodes,
)
from zg_async.wire.records import Address
from zg_async.wire.shards import ShardConfig

MAX_NODES: Final = 10_000
_MAX_LEMMA: Final = 66
_MAX_URL: Final = 2048
_MAX_NUMBER: Final = 2**64 - 1
_HASH: Final = re.compile(r"0[xX]([0-9a-fA-F]{64})")


# --- records ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeStatus:
    """How far a node is, and on which chain."""

    chain_id: int | None
    """None: an old node that doesn't say."""
    flow: Address | None
    """What the node calls the flow contract. Compare it; never pay it because the node said so."""
    log_sync_height: int
    next_tx_seq: int
    connected_peers: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FileInfo:
    """An entry as a node knows it."""

    root: bytes
    size: int
    """Bytes. The root doesn't bind it."""
    tx_seq: int
    start_entry: int
    """Sector in the flow."""
    finalized: bool
    cached: bool
    uploaded_segments: int
    """Progress only."""
    pruned: bool
    nodes: tuple[SubmissionNode, ...] = ()
    """Empty when the answer doesn't have them."""

    def is_for(self, tree: MerkleTree) -> bool:
        """Tell whether this entry is that file: root and size, since files that end in zeros share roots."""
        return self.root == tree.root and self.size == tree.size


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """A segment with its proof, as it is sent."""

    root: bytes
    """The file's."""
    index: int
    """In the file, from 0."""
    data: bytes
    """Whole chunks."""
    proof: SegmentProof
    size: int
    """The file's, in bytes."""

    @classmethod
    def of(cls, tree: MerkleTree, index: int, data: bytes) -> "Segment":
        """Make one of a file's segments; zeros fill the last chunk."""
        fill = bytes(-len(data) % CHUNK)
        return cls(
            root=tree.root, index=index, data=data + fill if fill else data, proof=tree.proof(index), size=tree.size
        )

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object nodes take."""
        return {
            "root": hex0x(self.root),
            "data": base64.b64encode(self.data).decode(),
            "index": self.index,
            "proof": {"lemma": [hex0x(node) for node in self.proof.lemma], "path": list(self.proof.path)},
            "fileSize": self.size,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageNode:
    """A node the indexer knows."""

    url: str
    config: ShardConfig
    latency: int = 0
    """Milliseconds, as the indexer measured it."""
    since: int = 0
    """Unix seconds since when it is known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageNodes:
    """The nodes an indexer offers."""

    trusted: tuple[StorageNode, ...]
    """Their order means nothing."""
    discovered: tuple[StorageNode, ...] = ()


# --- reading ---------------------------------------------------------------------------------------------------------


def parse_segment(value: Any) -> Segment:
    """Read a segment with its proof; the proof is not checked.

    Raises:
        ValueError: It is none.
    """
    row = _object(value)
    proof = _object(row.get("proof"))
    lemma, path = _list(proof.get("lemma"), _MAX_LEMMA), _list(proof.get("path"), _MAX_LEMMA)
    if not all(isinstance(flag, bool) for flag in path):
        raise ValueError("a path that isn't of booleans")
    return Segment(
        root=parse_hash(row.get("root")),
        index=_number(row, "index"),
        data=parse_data(row.get("data")),
        proof=SegmentProof(tuple(parse_hash(node) for node in lemma), tuple(path)),
        size=_number(row, "fileSize"),
    )


def parse_data(value: Any) -> bytes:
    """Read at most a segment of base64: whole chunks.

    Raises:
        ValueError: It is none, in the one way it can be written.
    """
    if not isinstance(value, str) or len(value) > -(-SEGMENT // 3) * 4:
        raise ValueError("no data, or more than a segment")
    try:
        data = base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("no base64") from None
    if len(data) % CHUNK or not 0 < len(data) <= SEGMENT:
        raise ValueError(f"{len(data)} bytes, not whole chunks of one segment")
    return data


def parse_hash(value: Any) -> bytes:
    """Read 32 bytes of hex.

    Raises:
        ValueError: It is no such text.
    """
    match = _HASH.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise ValueError("no hash")
    return bytes.fromhex(match[1])


def parse_shard_config(value: Any) -> ShardConfig:
    """Read what a node holds.

    Raises:
        ValueError: No such configuration is possible.
    """
    row = _object(value)
    return ShardConfig(shard_id=_number(row, "shardId"), num_shard=_number(row, "numShard"))


def parse_file_info(value: Any) -> FileInfo:
    """Read an entry.

    Raises:
        ValueError: It is none, or its nodes don't fold to its root.
    """
    row = _object(value)
    tx = _object(row.get("tx"))
    nodes = tuple(_submission_node(node) for node in _list(tx.get("merkleNodes") or [], 64))
    root, size = parse_hash(tx.get("dataMerkleRoot")), _number(tx, "size")
    if not 0 < size <= MAX_SIZE:
        raise ValueError(f"a file of {size} bytes")
    if nodes and root_of_nodes(nodes) != root:
        raise ValueError("nodes that don't fold to the root")
    return FileInfo(
        root=root,
        size=size,
        tx_seq=_number(tx, "seq"),
        start_entry=_number(tx, "startEntryIndex"),
        finalized=_flag(row, "finalized"),
        cached=_flag(row, "isCached", default=False),
        uploaded_segments=_number(row, "uploadedSegNum", default=0),
        pruned=_flag(row, "pruned", default=False),
        nodes=nodes,
    )


def _submission_node(value: Any) -> SubmissionNode:
    pair = _list(value, 2)
    height = pair[0] if len(pair) == 2 else None
    if not isinstance(height, int) or isinstance(height, bool) or not 1 <= height <= 64:
        raise ValueError("no node")
    return SubmissionNode(parse_hash(pair[1]), height - 1)  # nodes count a leaf as 1


def parse_status(value: Any) -> NodeStatus:
    """Read a node's status.

    Raises:
        ValueError: It is none.
    """
    row = _object(value)
    identity = row.get("networkIdentity")
    chain_id = flow = None
    if identity is not None:
        identity = _object(identity)
        chain_id, text = _number(identity, "chainId"), identity.get("flowAddress")
        if not isinstance(text, str):
            raise ValueError("no flow address")
        flow = checksum_address(text)
    return NodeStatus(
        chain_id=chain_id,
        flow=flow,
        log_sync_height=_number(row, "logSyncHeight"),
        next_tx_seq=_number(row, "nextTxSeq", default=0),
        connected_peers=_number(row, "connectedPeers", default=0),
    )


def parse_nodes(value: Any) -> StorageNodes:
    """Read an indexer's nodes.

    Raises:
        ValueError: They are none.
    """
    row = _object(value)
    return StorageNodes(trusted=parse_node_list(row.get("trusted")), discovered=parse_node_list(row.get("discovered")))


def parse_node_list(value: Any) -> tuple[StorageNode, ...]:
    """Read a list of nodes, or null for none.

    Those we can't use (strange URL or shards) are left out: one bad one mustn't hide the others.

    Raises:
        ValueError: No list, or too long.
    """
    if value is None:
        return ()
    found: dict[str, StorageNode] = {}
    for item in _list(value, MAX_NODES):
        node = _node(_object(item))
        if node is not None:
            found.setdefault(node.url, node)
    return tuple(found.values())


def _node(row: Mapping[str, Any]) -> StorageNode | None:
    url = row.get("url")
    if not isinstance(url, str) or not is_node_url(url):
        return None
    try:
        config = parse_shard_config(row.get("config"))
    except ValueError:
        return None
    latency, since = row.get("latency"), row.get("since")
    return StorageNode(url=url, config=config, latency=_counted(latency), since=_counted(since))


def is_node_url(url: str) -> bool:
    """Tell whether a URL is http(s) with a host and no credentials."""
    try:
        parts = urlsplit(url)
        return (
            len(url) <= _MAX_URL
            and url.isascii()
            and url.isprintable()
            and " " not in url
            and parts.scheme in ("http", "https")
            and bool(parts.hostname)
            and parts.username is None
            and parts.port != 0
        )
    except ValueError:
        return False


def _object(value: Any) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise ValueError("no object")
    return value


def _list(value: Any, limit: int) -> list[Any]:
    if not isinstance(value, list) or len(value) > limit:
        raise ValueError(f"no list of at most {limit}")
    return value


def _number(row: Mapping[str, Any], name: str, *, default: int | None = None) -> int:
    value = row.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= _MAX_NUMBER:
        raise ValueError(f"no number as {name}")
    return value


def _counted(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MAX_NUMBER else 0


def _flag(row: Mapping[str, Any], name: str, *, default: bool | None = None) -> bool:
    value = row.get(name, default)
    if not isinstance(value, bool):
        raise ValueError(f"neither true nor false as {name}")
    return value
