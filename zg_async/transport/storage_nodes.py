"""Storage nodes and the indexer: one JSON-RPC call each, repeated when nobody answers.

Nodes are strangers. What they say is compared with what we know; what they store for us is public and proven, so that
plain http will do.
"""

import base64
import binascii
import dataclasses
import io
import json
from collections.abc import Sequence
from typing import Any, Final, TypeVar

import anyio
import anyio.to_thread
from yarl import URL

from zg_async.errors import ConfigError, ProviderError, ProviderReplyError, StorageError, StorageUnavailableError
from zg_async.logs import get_logger
from zg_async.text import printable
from zg_async.transport.http import Http
from zg_async.transport.retry import RetryPolicy, retry
from zg_async.wire import storage_api
from zg_async.wire.hashing import hex0x
from zg_async.wire.merkle import CHUNK, SEGMENT
from zg_async.wire.segments import FileInfo, Segment, StorageNode, StorageNodes, is_node_url
from zg_async.wire.shards import ShardConfig
from zg_async.wire.storage_api import NodeCall, NodeError, NodeRefusal

T = TypeVar("T")
_log = get_logger("zg_async.storage")
PATIENT: Final = RetryPolicy(attempts=4, max_elapsed=20.0, base=0.2, cap=3.0, on=(StorageUnavailableError,))
"""For calls that may be repeated: all of them, since a node takes a segment once."""
QUICK: Final = RetryPolicy(attempts=2, max_elapsed=5.0, base=0.1, cap=0.5, on=(StorageUnavailableError,))
"""For first contact: a dead node shouldn't hold up the living."""
_SMALL: Final = 64 * 1024
_PROBES: Final = 16
_DATA: Final = b'"data":"'
_PLACEHOLDER: Final = base64.b64encode(bytes(CHUNK))
_LONGEST: Final = -(-SEGMENT // 3) * 4


class NodeClient:
    """One storage node or indexer."""

    def __init__(self, http: Http, url: str) -> None:
        """Talk to a URL."""
        self.http = http
        self.url = url
        self.host = printable(URL(url).authority, limit=80)

    async def call(self, call: NodeCall[T], *, policy: RetryPolicy = PATIENT) -> T:
        """Make a call and read its answer.

        Raises:
            StorageUnavailableError: No answer after the retries, 429 or 5xx (retryable).
            NodeError: A refusal.
            NodeReplyError: An answer that can't be read.
            StorageError: The address policy forbids the node, or it answered with another status.
        """
        body = json.dumps(call.request()).encode()
        return await self.post(call, body, policy=policy)

    async def post(self, call: NodeCall[T], body: bytes, *, policy: RetryPolicy = PATIENT) -> T:
        """Make a call whose body is encoded already; see `call`."""
        return await retry(
            lambda: self._once(call, body), clock=self.http.clock, policy=policy, budget=self.http.budget(self.host)
        )

    async def _once(self, call: NodeCall[T], body: bytes) -> T:
        large = len(body) > _SMALL or call.limit > _SMALL * 4
        failure: StorageError | None = None
        reply = b""
        try:
            async with self.http.exchange(
                "POST",
                self.url,
                data=io.BytesIO(body) if large else body,  # sent in pieces
                headers={"Content-Type": "application/json"},
                transfer=large,
                plain_http=True,
            ) as answer:
                if answer.status == 200:
                    reply = await answer.read(call.limit)
                else:
                    failure = self._bad_status(call.method, answer.status)
        except ProviderReplyError as error:
            failure = StorageError(f"{call.method} at {self.host}: {error.message}")
        except ProviderError as error:
            kind = StorageUnavailableError if error.retryable else StorageError
            failure = kind(f"{call.method} at {self.host}: {error.message}", hint=error.hint)
        if failure is not None:
            raise failure
        if len(reply) > _SMALL:
            return await anyio.to_thread.run_sync(_read_large, call, reply)
        return call.read(reply)

    def _bad_status(self, method: str, status: int) -> StorageError:
        kind = StorageUnavailableError if status == 429 or status >= 500 else StorageError
        return kind(f"{method} at {self.host}: HTTP status {status}")


def _read_large(call: NodeCall[T], reply: bytes) -> T:
    """Read an answer that may hold a segment: its base64 is cut out, so that JSON is only made of the rest. Blocks."""
    start = reply.find(_DATA) + len(_DATA)
    end = reply.find(b'"', start)
    if start < len(_DATA) or end < 0 or end - start > _LONGEST or reply.find(_DATA, start) >= 0:
        return call.read(reply)
    try:
        data = binascii.a2b_base64(memoryview(reply)[start:end], strict_mode=True)
    except binascii.Error:
        return call.read(reply)
    answer = call.read(reply[:start] + _PLACEHOLDER + reply[end:])
    if not isinstance(answer, Segment) or not data or len(data) % CHUNK:
        return call.read(reply)
    return dataclasses.replace(answer, data=data)


def upload_body(segments: Sequence[Segment], tx_seq: int) -> bytes:
    """Encode `zgs_uploadSegmentsByTxSeq` without copying the data through a JSON encoder. Blocks."""
    parts = [b'{"jsonrpc":"2.0","id":1,"method":"zgs_uploadSegmentsByTxSeq","params":[[']
    for number, segment in enumerate(segments):
        proof = {"lemma": [hex0x(node) for node in segment.proof.lemma], "path": list(segment.proof.path)}
        rest = {"root": hex0x(segment.root), "index": segment.index, "proof": proof, "fileSize": segment.size}
        parts += [b"," if number else b"", json.dumps(rest).encode()[:-1], b',"data":"']
        parts += [base64.b64encode(segment.data), b'"}']
    parts.append(b"],%d]}" % tx_seq)
    return b"".join(parts)


@dataclasses.dataclass(slots=True, kw_only=True, eq=False)
class Peer:
    """A node we may use, and what we learned about it."""

    client: NodeClient
    config: ShardConfig
    info: FileInfo | None = None
    """The entry asked for, as this node knows it."""
    faults: int = 0

    @property
    def host(self) -> str:
        """Its name for messages."""
        return self.client.host


class StorageDirectory:
    """Finds the nodes to work with."""

    def __init__(self, http: Http, indexer_url: str | None, nodes: Sequence[str] = ()) -> None:
        """Use an indexer, or nodes the user named.

        Args:
            http: The client.
            indexer_url: The indexer's; None: only `nodes`.
            nodes: URLs of nodes to use instead of asking the indexer.

        Raises:
            ConfigError: There is neither, or a URL is none.
        """
        given = [indexer_url] if indexer_url is not None and not nodes else list(nodes)
        if not given:
            raise ConfigError("no indexer and no storage nodes are known", hint="Pass indexer_url=")
        for url in given:
            if not is_node_url(url):
                raise ConfigError(f"{printable(url, limit=80)!r} is no http URL", hint="Give it as http://host:port")
            http.allow(url)  # the user's own choice
        self.http = http
        self.indexer = NodeClient(http, indexer_url) if indexer_url is not None and not nodes else None
        self._nodes = tuple(nodes)

    async def nodes(self) -> list[Peer]:
        """Return the nodes there are; those that don't tell their shard are left out.

        Raises:
            StorageUnavailableError: Nobody answers.
        """
        if self.indexer is None:
            return await self._named()
        return [self.peer(node) for node in await self._offered(self.indexer)]

    async def _offered(self, indexer: NodeClient) -> Sequence[StorageNode]:
        try:
            found: StorageNodes = await indexer.call(storage_api.sharded_nodes())
        except NodeError as error:
            if error.refusal is not NodeRefusal.UNKNOWN_METHOD:
                raise
            found = await indexer.call(storage_api.selected_nodes(1))
        return found.trusted or found.discovered

    async def _named(self) -> list[Peer]:
        found: dict[int, Peer] = {}
        problems: list[StorageError] = []

        async def ask(number: int, url: str) -> None:
            client = NodeClient(self.http, url)
            try:
                config = await client.call(storage_api.get_shard_config(), policy=QUICK)
                found[number] = Peer(client=client, config=config)
            except StorageError as error:
                problems.append(error)

        async with anyio.create_task_group() as group:
            for number, url in enumerate(self._nodes):
                group.start_soon(ask, number, url)
        if not found:
            raise StorageUnavailableError(f"no storage node answers: {problems[0].message}")
        return [found[number] for number in sorted(found)]

    def peer(self, node: StorageNode) -> Peer:
        """Make a peer of a node the indexer named."""
        return Peer(client=NodeClient(self.http, node.url), config=node.config)

    async def holders(self, root: bytes) -> list[Peer]:
        """Return the nodes that may have a file: those the indexer names first, then all others.

        Raises:
            StorageUnavailableError: Nobody answers.
        """
        if self.indexer is None:
            return await self._named()
        located: Sequence[StorageNode] = ()
        try:
            found = await self.indexer.call(storage_api.file_locations(root))
            located = found
        except NodeError as error:
            _log.debug("the indexer doesn't know where a file is: %s", error.message)
        offered = await self._offered(self.indexer)
        known = {node.url: node for node in (*located, *offered)}
        return [self.peer(node) for node in known.values()]


async def ask_all(peers: Sequence[Peer], call: NodeCall[T]) -> dict[Peer, T | StorageError]:
    """Ask many nodes the same at once; who fails gets the error as answer."""
    answers: dict[Peer, T | StorageError] = {}
    limiter = anyio.CapacityLimiter(_PROBES)

    async def ask(peer: Peer) -> None:
        async with limiter:
            try:
                answer = await peer.client.call(call, policy=QUICK)
            except StorageError as error:
                answers[peer] = error
            else:
                answers[peer] = answer

    async with anyio.create_task_group() as group:
        for peer in peers:
            group.start_soon(ask, peer)
    return answers


def reasons(answers: dict[Peer, Any]) -> str:
    """List the errors among answers, in one line."""
    return "; ".join(a.message for a in answers.values() if isinstance(a, StorageError)) or "no node"
