"""One storage node: learns of submissions from the chain, takes the segments of its shard, and serves them with proofs.

Source: 0g-storage-node node/rpc, node/storage-async (storage.md 7 and 8).
"""

import base64
import binascii
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import anyio.to_thread
from aiohttp import web

from zg_async.clock import Clock
from zg_async.devnet.faults import hang_up
from zg_async.devnet.storage_blobs import Blob
from zg_async.devnet.storage_log import Entry, FlowLog
from zg_async.devnet.storage_rpc import BODY_LIMIT, Encoded, Method, NodeFailureError, answer, invalid, plain
from zg_async.devnet.storage_sectors import sector_proof
from zg_async.devnet.storage_settings import StorageSettings
from zg_async.wire.hashing import hex0x
from zg_async.wire.merkle import (
    CHUNK,
    SEGMENT,
    SEGMENT_CHUNKS,
    BadProofError,
    SegmentProof,
    check_segment,
    segment_count,
    segment_size,
)

CACHE_LIMIT: Final = 10 * 2**20
"""Bytes of a file whose transaction isn't known yet."""
CACHE_SECONDS: Final = 300.0
_PROOF_ERRORS: Final = {
    "format": "invalid proof",
    "content": "invalid proof",
    "padding": "invalid proof node value in the padding range",
    "validation": "validation failed",
}


class _Cached:
    """Segments that came before their transaction."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.segments: dict[int, tuple[bytes, Any]] = {}
        self.touched = 0.0


class StorageNode:
    """A storage node that can be stopped and started on the same port."""

    def __init__(
        self,
        log: FlowLog,
        folder: Path,
        *,
        shard: int = 0,
        shards: int = 1,
        chain_id: int,
        clock: Clock,
        settings: StorageSettings | None = None,
    ) -> None:
        """Make a node; nothing is served until `start`.

        Args:
            log: The flow contract's submissions.
            folder: Its disk.
            shard: Which part of the segments it keeps,
            shards: of how many; a power of two.
            chain_id: Told in its status.
            clock: The machine's time.
            settings: What can be changed while it runs.
        """
        self.log = log
        self.shard, self.shards = shard, shards
        self.settings = settings or StorageSettings()
        self.port = 0
        self.requests: dict[str, int] = {}
        """How often each method was asked."""
        self._folder = folder
        self._chain_id = chain_id
        self._clock = clock
        self._entries: list[Entry] = []
        self._by_root: dict[bytes, list[Entry]] = {}
        self._blobs: dict[bytes, Blob] = {}
        self._cache: dict[bytes, _Cached] = {}
        self._pruned: set[int] = set()
        self._writings = 0
        self._runner: web.AppRunner | None = None
        self._methods: dict[str, Method] = {
            "zgs_getStatus": self.status,
            "zgs_getShardConfig": self._shard_config,
            "zgs_getFileInfo": self._file_info,
            "zgs_getFileInfoByTxSeq": self._file_info_by_seq,
            "zgs_checkFileFinalized": self._check_finalized,
            "zgs_uploadSegment": self._upload_one,
            "zgs_uploadSegments": self._upload_many,
            "zgs_uploadSegmentByTxSeq": self._upload_one_by_seq,
            "zgs_uploadSegmentsByTxSeq": self._upload_many_by_seq,
            "zgs_downloadSegment": self._download,
            "zgs_downloadSegmentByTxSeq": self._download_by_seq,
            "zgs_downloadSegmentWithProof": self._download_with_proof,
            "zgs_downloadSegmentWithProofByTxSeq": self._download_with_proof_by_seq,
            "zgs_getSectorProof": self._sector_proof,
        }
        self._served = {name: self._counted(name) for name in self._methods}

    # --- serving -----------------------------------------------------------------------------------------------------

    @property
    def url(self) -> str:
        """Where it serves."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def is_up(self) -> bool:
        """Whether it serves now."""
        return self._runner is not None

    async def start(self) -> None:
        """Open the server, on the port of the last time if there was one. Idempotent."""
        if self._runner is not None:
            return
        app = web.Application(client_max_size=BODY_LIMIT)
        app.router.add_post("/", self._on_post)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.2)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port).start()
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        """Stop serving; what it keeps stays. Idempotent."""
        runner, self._runner = self._runner, None
        if runner is not None:
            await runner.cleanup()
        for blob in self._blobs.values():
            blob.close()

    async def _on_post(self, request: web.Request) -> web.StreamResponse:
        settings = self.settings
        if settings.latency:
            await self._clock.sleep(settings.latency)
        asked = await _method_of(request) if settings.method else ""
        if settings.strikes("drop", asked):
            return hang_up(request)
        if settings.strikes("error_5xx", asked):
            return web.Response(status=503, text="devnet fault")
        result = await answer(request, self._served)
        return hang_up(request) if settings.strikes("lose_answer", asked) else result

    def _counted(self, name: str) -> Method:
        async def run(*params: Any) -> Any:
            self.requests[name] = self.requests.get(name, 0) + 1
            self._sync()
            return await self._methods[name](*params)

        return run

    # --- the log -----------------------------------------------------------------------------------------------------

    def _sync(self) -> None:
        """Learn of new submissions, forget those a reorganisation took back, and use what was cached for them."""
        until = self._clock.monotonic() - self.settings.late_sync
        known = self.log.entries
        same = 0
        while same < min(len(known), len(self._entries)) and known[same] is self._entries[same]:
            same += 1
        for entry in self._entries[same:]:
            self._by_root[entry.root].remove(entry)
        del self._entries[same:]
        for entry in known[same:]:
            if entry.seen > until:
                break
            self._entries.append(entry)
            self._by_root.setdefault(entry.root, []).append(entry)
            self._flush(entry)

    def _flush(self, entry: Entry) -> None:
        cached = self._cache.pop(entry.root, None)
        if cached is None or cached.size != entry.size or self._clock.monotonic() - cached.touched > CACHE_SECONDS:
            return
        blob = self._blob(entry.root)
        for index, (data, proof) in cached.segments.items():
            if entry.is_held_by(self.shard, self.shards, index):
                blob.write(index, data)
                self._written(blob, index, proof)

    def _blob(self, root: bytes) -> Blob:
        if root not in self._blobs:
            self._blobs[root] = Blob(self._folder / f"{root.hex()}.data")
        return self._blobs[root]

    def _written(self, blob: Blob, index: int, proof: Any) -> None:
        blob.written.add(index)
        blob.proofs[index] = proof
        blob.changed = self._clock.monotonic()

    def is_final(self, entry: Entry) -> bool:
        """Say whether the node has all segments of its shard, for a moment already."""
        if entry.seq in self._pruned or self.settings.never_final:
            return False
        own = [i for i in range(entry.segments) if entry.is_held_by(self.shard, self.shards, i)]
        blob = self._blobs.get(entry.root)
        if not own or blob is None:
            return not own
        settled = blob.changed + self.settings.finalize_seconds <= self._clock.monotonic()
        return settled and blob.written.issuperset(own)

    def find(self, root: bytes, *, available: bool = True) -> Entry | None:
        """Return the entry of a root: a finalized one if there is, else the first (that isn't pruned)."""
        self._sync()
        entries = self._by_root.get(root, [])
        final = next((entry for entry in entries if self.is_final(entry)), None)
        rest = [entry for entry in entries if not (available and entry.seq in self._pruned)]
        return final or (rest[0] if rest else None)

    def find_seq(self, seq: Any) -> Entry | None:
        """Return the entry of a transaction sequence number."""
        self._sync()
        if isinstance(seq, bool) or not isinstance(seq, int):
            raise invalid("txSeq", "not a whole number")
        return self._entries[seq] if 0 <= seq < len(self._entries) else None

    def prune(self, root: bytes) -> None:
        """Throw a root's data away."""
        self._pruned.update(entry.seq for entry in self._by_root.get(root, []))
        self._blobs.pop(root, Blob(self._folder)).close()

    # --- facts -------------------------------------------------------------------------------------------------------

    async def status(self) -> dict[str, Any]:
        """Return what `zgs_getStatus` tells."""
        return {
            "connectedPeers": 0,
            "logSyncHeight": self.log.height,
            "logSyncBlock": self.log.block_hash,
            "nextTxSeq": len(self._entries),
            "networkIdentity": {
                "chainId": self.settings.chain_id or self._chain_id,
                "flowAddress": (self.settings.flow_address or self.log.flow).lower(),
                "p2pProtocolVersion": {"major": 0, "minor": 4, "build": 0},
            },
        }

    async def _shard_config(self) -> dict[str, int]:
        return {"shardId": self.shard, "numShard": self.shards}

    async def _file_info(self, root: Any, available: Any = False) -> dict[str, Any] | None:
        entry = self.find(_root(root), available=bool(available))
        return None if entry is None else self.info(entry)

    async def _file_info_by_seq(self, seq: Any) -> dict[str, Any] | None:
        entry = self.find_seq(seq)
        return None if entry is None else self.info(entry)

    def info(self, entry: Entry) -> dict[str, Any]:
        """Return a file's info."""
        final, pruned = self.is_final(entry), entry.seq in self._pruned
        told = entry.to_json()
        if self.settings.strikes("wrong_size", "zgs_getFileInfo"):
            told["size"] += CHUNK
        return {
            "tx": told,
            "finalized": final,
            "isCached": False,
            "uploadedSegNum": entry.segments if final or pruned else self._uploaded(entry),
            "pruned": pruned,
        }

    def _uploaded(self, entry: Entry) -> int:
        """Return the first own segment that is missing."""
        written = self._blobs[entry.root].written if entry.root in self._blobs else frozenset[int]()
        own = (i for i in range(entry.segments) if entry.is_held_by(self.shard, self.shards, i))
        return next((i if written else 0 for i in own if i not in written), entry.segments)

    async def _check_finalized(self, file: Any) -> bool | None:
        entry = self.find(_root(file)) if isinstance(file, str) else self.find_seq(file)
        return None if entry is None else self.is_final(entry)

    # --- uploads -----------------------------------------------------------------------------------------------------

    async def _upload_one(self, segment: Any) -> None:
        await self._put(segment, self.find(_root(segment["root"])), duplicates=False)

    async def _upload_many(self, segments: Any) -> None:
        for segment in segments:
            await self._upload_one(segment)

    async def _upload_one_by_seq(self, segment: Any, seq: Any) -> None:
        await self._put(segment, self.find_seq(seq), duplicates=False)

    async def _upload_many_by_seq(self, segments: Any, seq: Any) -> None:
        for segment in segments:
            await self._put(segment, self.find_seq(seq), duplicates=True)

    async def _put(self, segment: Any, entry: Entry | None, *, duplicates: bool) -> None:
        """Take one segment; the checks come in the real node's order (storage.md 7.1)."""
        root, index, size = _root(segment["root"]), int(segment["index"]), int(segment["fileSize"])
        data = await anyio.to_thread.run_sync(_bytes_of, segment["data"])
        self._check_entry(entry, root, size)
        _check_shape(data, size, index)
        await anyio.to_thread.run_sync(_check_proof, data, segment["proof"], root, size, index)
        if entry is None:
            self._keep(root, index, size, data, segment["proof"])
            return
        if not entry.is_held_by(self.shard, self.shards, index):
            return
        blob = self._blob(root)
        if index in blob.written or index in blob.writing:
            if duplicates:
                return
            raise plain("segment has already been uploaded or is being uploaded")
        self._strike()
        if self._writings >= self.settings.max_writings:
            raise plain(f"too many data writing: {self.settings.max_writings}")
        blob.writing.add(index)
        self._writings += 1
        try:
            await anyio.to_thread.run_sync(blob.write, index, data)
            self._written(blob, index, segment["proof"])
        finally:
            blob.writing.discard(index)
            self._writings -= 1
        if self.settings.strikes("duplicate"):
            raise plain("segment has already been uploaded or is being uploaded")

    def _strike(self) -> None:
        if self.settings.strikes("too_many"):
            raise plain(f"too many data writing: {self.settings.max_writings}")
        if self.settings.strikes("reverted"):
            raise plain("Transaction reverted, please upload again")
        if self.settings.strikes("refuse"):
            raise NodeFailureError(-32603, "Internal error", "devnet fault")

    def _check_entry(self, entry: Entry | None, root: bytes, size: int) -> None:
        if entry is None:
            if size > CACHE_LIMIT:
                raise invalid("file_size", "caching of large file when tx is unavailable is not supported")
            return
        if entry.root != root:
            raise NodeFailureError(-32603, "Internal error", "data root and tx seq not match")
        if entry.size != size:
            raise invalid("file_size", "segment file size not matched with tx file size")
        if self.is_final(entry):
            raise invalid("root", "already uploaded and finalized")
        if entry.seq in self._pruned:
            raise invalid("root", "already pruned")

    def _keep(self, root: bytes, index: int, size: int, data: bytes, proof: Any) -> None:
        cached = self._cache.get(root)
        if cached is None or cached.size != size or self._clock.monotonic() - cached.touched > CACHE_SECONDS:
            cached = self._cache[root] = _Cached(size)
        if index in cached.segments:
            raise plain("segment has already been uploaded or is being uploaded")
        cached.segments[index] = (data, proof)
        cached.touched = self._clock.monotonic()

    # --- downloads ---------------------------------------------------------------------------------------------------

    async def _download(self, root: Any, start: Any, end: Any) -> Any:
        return await self._chunks(self.find(_root(root)), start, end)

    async def _download_by_seq(self, seq: Any, start: Any, end: Any) -> Any:
        return await self._chunks(self.find_seq(seq), start, end)

    async def _chunks(self, entry: Entry | None, start: int, end: int) -> Any:
        if start >= end or start < 0:
            raise invalid("end_index", "invalid chunk indices")
        if end - start > SEGMENT_CHUNKS:
            raise invalid("end_index", f"exceeds maximum chunks {SEGMENT_CHUNKS}")
        if entry is None or end > entry.chunks:
            return None
        wanted = range(start // SEGMENT_CHUNKS, (end - 1) // SEGMENT_CHUNKS + 1)
        data = await self._read(entry, wanted, start * CHUNK, (end - start) * CHUNK)
        return None if data is None else Encoded(await anyio.to_thread.run_sync(_quoted, data))

    async def _download_with_proof(self, root: Any, index: Any) -> Any:
        return await self._segment(self.find(_root(root)), index)

    async def _download_with_proof_by_seq(self, seq: Any, index: Any) -> Any:
        return await self._segment(self.find_seq(seq), index)

    async def _segment(self, entry: Entry | None, index: int) -> Any:
        if entry is None:
            return None
        if not 0 <= index < entry.segments:
            raise invalid("segment_index", "invalid segment index")
        data = await self._read(entry, (index,), index * SEGMENT, segment_size(entry.size, index))
        if data is None:
            return None
        proof = self._blobs[entry.root].proofs[index]
        if self.settings.strikes("tampered_proof"):
            lemma = list(proof["lemma"])
            lemma[-2 if len(lemma) > 1 else 0] = hex0x(bytes(range(32)))
            proof = {**proof, "lemma": lemma}
        rest = {"root": hex0x(entry.root), "index": index, "proof": proof, "fileSize": entry.size}
        head = json.dumps(rest, separators=(",", ":")).encode()[:-1]
        return Encoded(head + b',"data":' + await anyio.to_thread.run_sync(_quoted, data) + b"}")

    async def _read(self, entry: Entry, segments: Sequence[int], offset: int, length: int) -> bytes | None:
        blob = self._blobs.get(entry.root)
        if entry.seq in self._pruned or blob is None or not blob.written.issuperset(segments):
            return None
        if self.settings.strikes("missing"):
            return None
        data = await anyio.to_thread.run_sync(blob.read, offset, length)
        if self.settings.strikes("wrong_data"):
            data = bytes([data[0] ^ 1]) + data[1:]
        return data[:-CHUNK] if self.settings.strikes("short_data") else data

    async def _sector_proof(self, sector: Any, flow_root: Any = None) -> Any:  # noqa: ARG002  only the newest is known
        def data_of(entry: Entry, index: int) -> bytes | None:
            blob = self._blobs.get(entry.root)
            if blob is None or index not in blob.written:
                return None
            return blob.read(index * SEGMENT, segment_size(entry.size, index))

        proof = await anyio.to_thread.run_sync(sector_proof, tuple(self._entries), int(sector), data_of)
        if proof is None:
            raise invalid("sector_index", "the sector isn't here")
        return proof

    async def read_file(self, entry: Entry, index: int) -> bytes | None:
        """Read a segment for the indexer's REST side; None: it isn't here."""
        return await self._read(entry, (index,), index * SEGMENT, segment_size(entry.size, index))

    async def put_segment(self, segment: Any, seq: int | None) -> None:
        """Take a segment from inside the process, with all the checks."""
        await self._put(segment, None if seq is None else self.find_seq(seq), duplicates=True)


async def _method_of(request: web.Request) -> str:
    try:
        asked = json.loads(await request.read())
    except ValueError:
        return ""
    return str(asked.get("method")) if isinstance(asked, dict) else ""


def _root(text: Any) -> bytes:
    try:
        root = bytes.fromhex(text.removeprefix("0x"))
    except (AttributeError, ValueError):
        root = b""
    if len(root) != 32:
        raise invalid("root", "not a 32-byte hash")
    return root


def _bytes_of(text: Any) -> bytes:
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, TypeError, ValueError) as error:
        raise invalid("data", "not base64") from error
    if not data:
        raise plain("data is empty")
    if len(data) % CHUNK:
        raise plain("invalid data length")
    return data


def _check_shape(data: bytes, size: int, index: int) -> None:
    if size <= 0:
        raise invalid("file_size", "file is empty")
    if not 0 <= index < segment_count(size):
        raise invalid("index", "index out of bound")
    if len(data) != segment_size(size, index):
        raise invalid("data", "invalid data length")


def _check_proof(data: bytes, proof: Any, root: bytes, size: int, index: int) -> None:
    try:
        told = SegmentProof(tuple(_root(one) for one in proof["lemma"]), tuple(bool(b) for b in proof["path"]))
        check_segment(data, told, root=root, size=size, index=index)
    except BadProofError as error:
        if error.step == "root":
            raise plain("invalid proof: root mismatch") from error
        if error.step == "position":
            raise plain("invalid proof: position mismatch") from error
        raise invalid("proof", _PROOF_ERRORS[error.step]) from error


def _quoted(data: bytes) -> bytes:
    return b'"' + base64.b64encode(data) + b'"'
