"""The JSON-RPC of storage nodes and of the indexer: calls as data, refusals as errors.

A `NodeCall` says what to post and how to read the answer; nothing here talks to anybody.
Source: 0g-storage-node rpc/, 0g-storage-client node/ and indexer/.
"""

import enum
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

from zg_async.errors import StorageError
from zg_async.text import printable
from zg_async.wire.hashing import hex0x
from zg_async.wire.merkle import CHUNK
from zg_async.wire.segments import (
    FileInfo,
    NodeStatus,
    Segment,
    StorageNode,
    StorageNodes,
    parse_data,
    parse_file_info,
    parse_node_list,
    parse_nodes,
    parse_segment,
    parse_shard_config,
    parse_status,
)
from zg_async.wire.shards import ShardConfig
from zg_async.wire.strict_json import BadJsonError, decode_json

REPLY_LIMIT: Final = 256 * 1024
"""Bytes of a small answer."""
SEGMENT_LIMIT: Final = 512 * 1024
"""Bytes of an answer with a segment: base64 of 256 KiB and a proof."""
LIST_LIMIT: Final = 4 * 1024 * 1024

T = TypeVar("T")


class NodeRefusal(enum.StrEnum):
    """Why a node refused, as far as its text tells."""

    FINALIZED = "finalized"
    """It has the whole file: a success."""
    SENT = "sent"
    """It has these segments, or somebody is sending them: a success."""
    BUSY = "busy"
    """Too many writes at once: send the same again later."""
    REVERTED = "reverted"
    """The chain was reorganised: look for the entry again, maybe submit again."""
    PRUNED = "pruned"
    NOT_FOUND = "not_found"
    UNKNOWN_METHOD = "unknown_method"
    OTHER = "other"


_TEXTS: Final[Mapping[str, NodeRefusal]] = {
    "already uploaded and finalized": NodeRefusal.FINALIZED,
    "segment has already been uploaded or is being uploaded": NodeRefusal.SENT,
    "too many data writing": NodeRefusal.BUSY,
    "transaction reverted": NodeRefusal.REVERTED,
    "already pruned": NodeRefusal.PRUNED,
    "file not found": NodeRefusal.NOT_FOUND,
}


class NodeError(StorageError):
    """A storage node or an indexer answered with an error."""

    code = "storage_node"

    def __init__(self, message: str, *, rpc_code: int, reason: str, refusal: NodeRefusal) -> None:
        """Make an error; `reason` is the node's own text."""
        super().__init__(message)
        self.rpc_code = rpc_code
        self.reason = reason
        self.refusal = refusal


class NodeReplyError(StorageError):
    """A storage node's or an indexer's answer can't be read."""

    code = "storage_reply"


# --- calls -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeCall(Generic[T]):
    """One JSON-RPC call to a node or an indexer."""

    method: str
    params: list[Any]
    parse: Callable[[Any], T]
    """Reads the result. Raises ValueError when it can't be."""
    limit: int = REPLY_LIMIT
    """Largest answer in bytes."""

    def request(self, request_id: int = 1) -> dict[str, Any]:
        """Return the object to post to `/`."""
        return {"jsonrpc": "2.0", "id": request_id, "method": self.method, "params": self.params}

    def read(self, body: bytes) -> T:
        """Read the answer.

        Raises:
            NodeError: The node refused.
            NodeReplyError: Nothing we can read, or larger than `limit`.
        """
        try:
            reply = decode_json(body, limit=self.limit)
            if not isinstance(reply, dict) or ("result" not in reply and "error" not in reply):
                raise ValueError("no JSON-RPC answer")
            error = reply.get("error")
            if error is None:
                return self.parse(reply.get("result"))
        except (BadJsonError, ValueError) as reason:
            raise NodeReplyError(f"{self.method}: the answer can't be read: {printable(str(reason))}") from None
        raise refused(self.method, error)


def refused(method: str, error: Any) -> NodeError:
    """Make the exception of a JSON-RPC error object, whatever it looks like."""
    row = error if isinstance(error, dict) else {"message": error}
    code = row.get("code")
    code = code if isinstance(code, int) and not isinstance(code, bool) else 0
    parts = [part for part in (row.get("message"), row.get("data")) if isinstance(part, str) and part]
    reason = ": ".join(parts)
    lowered = reason.lower()
    found = (refusal for text, refusal in _TEXTS.items() if text in lowered)
    refusal = next(found, NodeRefusal.UNKNOWN_METHOD if code == -32601 else NodeRefusal.OTHER)
    return NodeError(
        f"{method} was refused: {printable(reason) or 'without reason'}",
        rpc_code=code,
        reason=printable(reason),
        refusal=refusal,
    )


def get_status() -> NodeCall[NodeStatus]:
    """Ask a node for its chain, flow contract and height."""
    return NodeCall(method="zgs_getStatus", params=[], parse=parse_status)


def get_shard_config() -> NodeCall[ShardConfig]:
    """Ask a node what it holds."""
    return NodeCall(method="zgs_getShardConfig", params=[], parse=parse_shard_config)


def get_file_info(root: bytes, available: bool = True) -> NodeCall[FileInfo | None]:
    """Ask for the entry of a root: a finalized one if there is, else the first. None: unknown.

    Args:
        root: The file's. Several entries can have it, of different sizes.
        available: Leave pruned entries out.
    """
    parse = _checked(_file_info, lambda info: info is None or info.root == root, "the entry of another root")
    return NodeCall(method="zgs_getFileInfo", params=[hex0x(root), available], parse=parse)


def get_file_info_by_tx(tx_seq: int) -> NodeCall[FileInfo | None]:
    """Ask for the entry of a submission. None: the node hasn't seen it yet."""
    parse = _checked(_file_info, lambda info: info is None or info.tx_seq == tx_seq, "another entry")
    return NodeCall(method="zgs_getFileInfoByTxSeq", params=[tx_seq], parse=parse)


def check_file_finalized(key: bytes | int) -> NodeCall[bool | None]:
    """Ask whether a root, or a tx sequence number, is finalized. None: unknown."""
    return NodeCall(method="zgs_checkFileFinalized", params=[_key(key)], parse=_optional_flag)


def upload_segments(segments: Sequence[Segment]) -> NodeCall[None]:
    """Send segments by root: also before the node has seen the transaction, if the file is small."""
    return NodeCall(method="zgs_uploadSegments", params=[[s.to_json() for s in segments]], parse=_sent)


def upload_segments_by_tx(segments: Sequence[Segment], tx_seq: int) -> NodeCall[None]:
    """Send segments of a known submission; those it has are skipped."""
    return NodeCall(method="zgs_uploadSegmentsByTxSeq", params=[[s.to_json() for s in segments], tx_seq], parse=_sent)


def download_segment(key: bytes | int, start_chunk: int, end_chunk: int) -> NodeCall[bytes | None]:
    """Ask for chunks of the file with this root, or tx sequence number, without proof. None: it hasn't got them.

    Args:
        key: Root or tx sequence number.
        start_chunk: In the file.
        end_chunk: Exclusive, at most 1024 further on.
    """
    size = (end_chunk - start_chunk) * CHUNK
    method = "zgs_downloadSegmentByTxSeq" if isinstance(key, int) else "zgs_downloadSegment"
    parse = _checked(_optional_data, lambda data: data is None or len(data) == size, "data of another length")
    return NodeCall(method=method, params=[_key(key), start_chunk, end_chunk], parse=parse, limit=SEGMENT_LIMIT)


def download_segment_with_proof(key: bytes | int, index: int) -> NodeCall[Segment | None]:
    """Ask for a segment of the file with this root, or tx sequence number, with its proof. None: it hasn't got it."""
    by_tx = isinstance(key, int)
    method = "zgs_downloadSegmentWithProofByTxSeq" if by_tx else "zgs_downloadSegmentWithProof"

    def right(segment: Segment | None) -> bool:
        return segment is None or (segment.index == index and (by_tx or segment.root == key))

    parse = _checked(lambda value: None if value is None else parse_segment(value), right, "another segment")
    return NodeCall(method=method, params=[_key(key), index], parse=parse, limit=SEGMENT_LIMIT)


def sharded_nodes() -> NodeCall[StorageNodes]:
    """Ask an indexer for its nodes."""
    return NodeCall(method="indexer_getShardedNodes", params=[], parse=parse_nodes, limit=LIST_LIMIT)


def selected_nodes(
    replica: int, method: str = "min", full_trusted: bool = True, dropped: Sequence[str] = ()
) -> NodeCall[StorageNodes]:
    """Ask an indexer to choose nodes. Old ones refuse: UNKNOWN_METHOD."""
    params = [replica, method, full_trusted, list(dropped)]
    return NodeCall(method="indexer_getSelectedNodes", params=params, parse=parse_nodes, limit=LIST_LIMIT)


def file_locations(root: bytes) -> NodeCall[tuple[StorageNode, ...]]:
    """Ask an indexer who has a file. None of them (yet): an empty tuple, or refused with NOT_FOUND."""
    return NodeCall(method="indexer_getFileLocations", params=[hex0x(root)], parse=parse_node_list, limit=LIST_LIMIT)


def _key(key: bytes | int) -> str | int:
    return key if isinstance(key, int) else hex0x(key)


def _checked(parse: Callable[[Any], T], right: Callable[[T], bool], otherwise: str) -> Callable[[Any], T]:
    def read(value: Any) -> T:
        parsed = parse(value)
        if not right(parsed):
            raise ValueError(otherwise)
        return parsed

    return read


def parse_rest(body: bytes, *, limit: int = REPLY_LIMIT) -> Any:
    """Read an answer of the indexer's REST routes.

    Returns:
        Its `data`.

    Raises:
        NodeError: The indexer refused; `rpc_code` is its own (101 not found, 102 pruned, 103 not finalized).
        NodeReplyError: Nothing we can read.
    """
    try:
        row = decode_json(body, limit=limit)
        code = row.get("code") if isinstance(row, dict) else None
        if not isinstance(code, int):
            raise ValueError("no code")
    except (BadJsonError, ValueError) as reason:
        raise NodeReplyError(f"the indexer's answer can't be read: {printable(str(reason))}") from None
    if code == 0:
        return row.get("data")
    error = refused("the indexer", {"code": code, "message": row.get("message"), "data": row.get("data")})
    if code in (101, 102):
        error.refusal = NodeRefusal.NOT_FOUND if code == 101 else NodeRefusal.PRUNED
    raise error


def _file_info(value: Any) -> FileInfo | None:
    return None if value is None else parse_file_info(value)


def _sent(value: Any) -> None:
    if value is not None and value != 0:
        raise ValueError("an upload is answered with null")


def _optional_flag(value: Any) -> bool | None:
    if value is not None and not isinstance(value, bool):
        raise ValueError("neither true, false nor null")
    return value


def _optional_data(value: Any) -> bytes | None:
    return None if value is None else parse_data(value)
