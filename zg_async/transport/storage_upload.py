"""Uploads to 0G Storage: hash once, pay once, send to every shard and replica at once, and wait until they confirm.

Success means that nodes covering every segment as often as asked for have confirmed it. A node that fails is replaced
by another; when none is left, the upload fails, and what was paid and sent is found again by the next attempt.
"""

import dataclasses
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, TypeVar

import anyio
import anyio.to_thread

from zg_async.clock import Clock
from zg_async.errors import ConfigError, NotStoredError, StorageError
from zg_async.logs import get_logger
from zg_async.transport.file_tree import Source, hash_source
from zg_async.transport.storage_nodes import Peer, StorageDirectory, ask_all, reasons, upload_body
from zg_async.transport.storage_settings import (
    FIRST_POLL,
    LONGEST_POLL,
    POLL_GROWTH,
    StorageProgress,
    StorageSettings,
)
from zg_async.transport.storage_submit import Cashier, Place
from zg_async.wire import storage_api
from zg_async.wire.merkle import SEGMENT, MerkleTree, fragments
from zg_async.wire.records import Address, TxHash
from zg_async.wire.segments import FileInfo, NodeStatus, Segment
from zg_async.wire.shards import covers, own_segments, select_nodes
from zg_async.wire.storage_api import NodeError, NodeRefusal
from zg_async.wire.storage_records import StoredFile

T = TypeVar("T")
_log = get_logger("zg_async.storage")
_BATCH: Final = 10
"""Fragments per transaction."""
_LAST_BUSY_PAUSE: Final = 10.0
_RESEND_SECONDS: Final = 3.0
_REVERTS: Final = 3


class _RevertedError(Exception):
    """The chain was reorganised under the upload."""


@dataclasses.dataclass(slots=True, eq=False)
class _Part:
    """One entry: a whole file, or a fragment of it."""

    source: Source
    offset: int
    tree: MerkleTree
    place: Place | None = None
    key: str = ""
    together: tuple["_Part", ...] = ()
    """What was paid for in the same transaction."""

    def segments(self, indexes: Sequence[int]) -> list[Segment]:
        """Read segments. Blocks."""
        return [Segment.of(self.tree, index, self._read(index)) for index in indexes]

    def _read(self, index: int) -> bytes:
        start = index * SEGMENT
        return self.source.read_at(self.offset + start, min(SEGMENT, self.tree.size - start))


@dataclasses.dataclass(slots=True)
class _Outcome:
    paid: int = 0
    hashes: list[TxHash] = dataclasses.field(default_factory=list)
    nodes: dict[str, None] = dataclasses.field(default_factory=dict)


class Upload:
    """One upload, of one or more sources."""

    def __init__(
        self,
        directory: StorageDirectory,
        cashier: Cashier,
        *,
        chain_id: int,
        wallet: Address,
        clock: Clock,
        settings: StorageSettings,
        progress: StorageProgress,
        key: str | None = None,
        skip_existing: bool = True,
    ) -> None:
        """Prepare an upload.

        Args:
            directory: Finds nodes.
            cashier: Pays.
            chain_id: The nodes have to be on it.
            wallet: Pays.
            clock: Waits.
            settings: Limits and patience.
            progress: Kept up to date.
            key: Names the payment: the same key is never paid twice, in any process. None: once per call.
            skip_existing: Whether what is stored already isn't paid for again.

        Raises:
            ConfigError: No replica was asked for.
        """
        if settings.replicas < 1:
            raise ConfigError(f"{settings.replicas} replicas can't be asked for", hint="At least 1")
        self._directory = directory
        self._cashier = cashier
        self._chain_id = chain_id
        self._wallet = wallet
        self._clock = clock
        self._settings = settings
        self._progress = progress
        self._key = key or f"storage/{uuid.uuid4()}"
        self._skip_existing = skip_existing
        self._statuses: dict[Peer, NodeStatus] = {}
        self._requests = anyio.CapacityLimiter(settings.requests)
        self._parts: dict[tuple[bytes, int], _Part] = {}
        self._sent: set[tuple[int, int]] = set()
        self._out = _Outcome()

    async def run(self, sources: Sequence[Source]) -> list[StoredFile]:
        """Store sources, each as a file of its own; see `Storage.upload` for errors."""
        progress = self._progress
        progress.bytes_done, progress.bytes_total = 0, sum(s.size for s in sources)
        progress.enter("hashing")
        files = [await self._hash(source) for source in sources]
        progress.bytes_done, progress.bytes_total = 0, sum(s.size for s in sources)
        progress.enter("looking")
        peers = await self._usable()
        parts = list(dict.fromkeys(part for file in files for part in file))
        for at in range(0, len(parts), _BATCH):
            group = parts[at : at + _BATCH]
            await self._find_or_pay(group, peers, f"{self._key}/{at // _BATCH}")
            for part in group:
                await self._spread(part, peers)
        progress.enter("done")
        return [self._stored(file) for file in files]

    async def _hash(self, source: Source) -> list[_Part]:
        total = self._progress.bytes_total
        found = []
        for offset, length in fragments(source.size, self._settings.fragment_size):
            done = self._progress.bytes_done
            inner = StorageProgress()
            tree = await hash_source(source, offset=offset, length=length, progress=inner)
            self._progress.bytes_done, self._progress.bytes_total = done + length, total
            found.append(self._parts.setdefault((tree.root, tree.size), _Part(source, offset, tree)))
        return found

    def _stored(self, file: Sequence[_Part]) -> StoredFile:
        places = [part.place for part in file if part.place is not None]
        return StoredFile(
            root_hash=file[0].tree.root_hash,
            roots=tuple(part.tree.root_hash for part in file),
            size=sum(part.tree.size for part in file),
            tx_seqs=tuple(place.tx_seq for place in places),
            tx_hashes=tuple(dict.fromkeys(place.tx_hash for place in places if place.tx_hash is not None)),
            fee=self._out.paid,
            nodes=tuple(self._out.nodes),
            replicas=self._settings.replicas,
        )

    # --- nodes -------------------------------------------------------------------------------------------------------

    async def _usable(self) -> list[Peer]:
        """Find nodes that answer and are on our chain with our flow contract, enough of them."""
        offered = await self._directory.nodes()
        answers = await ask_all(offered, storage_api.get_status())
        problems: list[str] = []
        peers = []
        for peer in offered:
            status = answers[peer]
            if isinstance(status, StorageError):
                problems.append(status.message)
            elif problem := self._stranger(status):
                problems.append(f"{peer.host} {problem}")
                _log.warning("storage node %s %s; it isn't used", peer.host, problem)
            else:
                self._statuses[peer] = status
                peers.append(peer)
        if not covers([peer.config for peer in peers], self._settings.replicas):
            detail = f": {'; '.join(problems[:5])}" if problems else ""
            raise NotStoredError(
                f"{len(peers)} usable storage nodes can't hold {self._settings.replicas} replicas{detail}",
                hint="Nothing was paid. Ask for fewer replicas, or use another indexer",
            )
        return peers

    def _stranger(self, status: NodeStatus) -> str:
        if status.chain_id is not None and status.chain_id != self._chain_id:
            return f"is on chain {status.chain_id} instead of {self._chain_id}"
        if status.flow is not None and status.flow != self._cashier.flow:
            return f"names the flow contract {status.flow} instead of {self._cashier.flow}"
        return ""

    # --- entries -----------------------------------------------------------------------------------------------------

    async def _find_or_pay(self, group: Sequence[_Part], peers: Sequence[Peer], key: str) -> None:
        if self._skip_existing:
            count = await self._cashier.submissions()
            for part in group:
                part.place = await self._existing(part.tree, peers, count)
        missing = tuple(part for part in group if part.place is None)
        if missing:
            self._progress.enter("paying")
            for part in missing:
                part.key, part.together = key, missing
            await self._pay(missing, key)

    async def _pay(self, parts: Sequence[_Part], key: str) -> None:
        places, fee = await self._cashier.pay([part.tree for part in parts], wallet=self._wallet, key=key)
        if places[0].tx_hash not in self._out.hashes:
            self._out.paid += fee
            self._out.hashes += [places[0].tx_hash] if places[0].tx_hash else []
        for part, place in zip(parts, places, strict=True):
            part.place = place

    async def _existing(self, tree: MerkleTree, peers: Sequence[Peer], count: int) -> Place | None:
        """Find an entry of this root *and size* that no synced node denies: equal roots may be other files."""
        answers = await ask_all(peers, storage_api.get_file_info(tree.root))
        votes: Counter[tuple[int, int]] = Counter()
        for info in answers.values():
            if isinstance(info, FileInfo) and info.is_for(tree) and not info.pruned and info.tx_seq < count:
                votes[info.tx_seq, info.start_entry] += 1 + 1000 * info.finalized
        for (seq, start), _ in votes.most_common():
            denied = [p for p, a in answers.items() if a is None and self._statuses[p].next_tx_seq > seq]
            if not denied:
                return Place(tx_seq=seq, start_entry=start)
        return None

    # --- sending -----------------------------------------------------------------------------------------------------

    async def _spread(self, part: _Part, peers: Sequence[Peer]) -> None:
        """Bring a part to enough nodes, replacing those that fail."""
        done: list[Peer] = []
        lost: dict[Peer, StorageError] = {}
        for attempt in range(_REVERTS):
            try:
                await self._fill(part, peers, done, lost)
                break
            except _RevertedError:
                _log.warning("the chain was reorganised during an upload; looking for the entry again")
                if attempt == _REVERTS - 1 or not part.key:
                    raise StorageError(
                        "storage nodes keep saying that the submission was reverted", hint="Upload again"
                    ) from None
                await self._clock.sleep(1.0)
                await self._pay(part.together, part.key)
                done.clear()
        self._out.nodes.update(dict.fromkeys(peer.client.url for peer in done))

    async def _fill(self, part: _Part, peers: Sequence[Peer], done: list[Peer], lost: dict[Peer, StorageError]) -> None:
        while wanted := self._choose(peers, done, lost, part):
            self._progress.nodes_total, self._progress.nodes_done = len(done) + len(wanted), len(done)
            trouble: list[ConfigError | _RevertedError] = []
            async with anyio.create_task_group() as group:
                for peer in wanted:
                    group.start_soon(self._deliver, part, peer, done, lost, trouble)
            if trouble:
                raise trouble[0]

    async def _deliver(
        self,
        part: _Part,
        peer: Peer,
        done: list[Peer],
        lost: dict[Peer, StorageError],
        trouble: list[ConfigError | _RevertedError],
    ) -> None:
        try:
            await _Delivery(self, part, peer).run()
        except StorageError as error:
            _log.warning("storage node %s is given up: %s", peer.host, error.message)
            lost[peer] = error
        except (ConfigError, _RevertedError) as error:  # not the node: our file, or the chain
            trouble.append(error)
        else:
            done.append(peer)
            self._progress.nodes_done += 1

    def _choose(
        self, peers: Sequence[Peer], done: Sequence[Peer], lost: dict[Peer, StorageError], part: _Part
    ) -> list[Peer]:
        """Choose which nodes to work on next so that, with those done, there are enough; none when there are."""
        replicas = self._settings.replicas
        if covers([peer.config for peer in done], replicas):
            return []
        spare = [peer for peer in peers if peer not in done and peer not in lost]
        if not done and (chosen := select_nodes([peer.config for peer in spare], replica=replicas)) is not None:
            return [spare[i] for i in chosen]
        wanted: list[Peer] = []
        for peer in sorted(spare, key=lambda p: (p.config.num_shard, p.config.shard_id)):
            wanted.append(peer)
            if covers([p.config for p in (*done, *wanted)], replicas):
                return wanted
        paid = f" (submission {part.place.tx_seq} is paid and will be found again)" if part.place else ""
        raise NotStoredError(
            f"not enough storage nodes took {part.tree.root_hash}: {replicas} replicas were asked for, "
            f"{len(done)} nodes confirmed{paid}: {reasons(dict(lost))[:500]}",
            hint="Upload again later; what was paid and sent is not lost",
        )

    # --- used by deliveries ------------------------------------------------------------------------------------------

    async def poll(self, ask: Callable[[], Awaitable[T | None]], seconds: float, what: str) -> T:
        """Ask again and again, from 50 ms on more and more slowly, until there is an answer.

        Raises:
            NotStoredError: None within `seconds`.
        """
        until, pause = self._clock.monotonic() + seconds, FIRST_POLL
        while True:
            answer = await ask()
            if answer is not None:
                return answer
            if self._clock.monotonic() + pause > until:
                raise NotStoredError(f"{what} within {seconds:.0f} s")
            await self._clock.sleep(pause)
            pause = min(pause * POLL_GROWTH, LONGEST_POLL)

    def counted(self, part: _Part, indexes: Sequence[int]) -> None:
        """Count segments that a node has taken; each once."""
        for index in indexes:
            if (id(part), index) not in self._sent:
                self._sent.add((id(part), index))
                self._progress.bytes_done += min(SEGMENT, part.tree.size - index * SEGMENT)

    @property
    def clock(self) -> Clock:
        """The source of time."""
        return self._clock

    @property
    def settings(self) -> StorageSettings:
        """Limits and patience."""
        return self._settings

    @property
    def requests(self) -> anyio.CapacityLimiter:
        """Bounds uploads in flight over all nodes."""
        return self._requests

    @property
    def progress(self) -> StorageProgress:
        """To be kept up to date."""
        return self._progress


class _Delivery:
    """One part, brought to one node."""

    def __init__(self, upload: Upload, part: _Part, peer: Peer) -> None:
        if part.place is None:
            raise NotStoredError("nothing was submitted")
        self._upload = upload
        self._part = part
        self._peer = peer
        self._place = part.place

    async def run(self) -> None:
        """Wait for the entry, send what the node hasn't, wait for finality."""
        settings, progress = self._upload.settings, self._upload.progress
        if not progress.bytes_done:
            progress.enter("entry")
        what = f"{self._peer.host} didn't learn of submission {self._place.tx_seq}"
        info = await self._upload.poll(self._info, settings.entry_seconds, what)
        if not info.is_for(self._part.tree) or info.start_entry != self._place.start_entry:
            raise StorageError(f"{self._peer.host} tells another file of submission {self._place.tx_seq}")
        own = own_segments(self._part.tree.size, self._place.start_entry, self._peer.config)
        if not info.finalized:
            progress.enter("sending")
            known = [index for index in own if index < info.uploaded_segments]
            await self._send_all([index for index in own if index not in set(known)])
            await self._confirm(known)
        self._upload.counted(self._part, own)

    async def _info(self) -> FileInfo | None:
        return await self._peer.client.call(storage_api.get_file_info_by_tx(self._place.tx_seq))

    async def _confirm(self, known: Sequence[int]) -> None:
        """Wait for finality; what the node only claimed to have is sent if it takes long."""
        settings, progress = self._upload.settings, self._upload.progress
        if not settings.wait_finality:
            await self._send_all(known)
            return
        progress.enter("finality")
        what = f"{self._peer.host} didn't confirm submission {self._place.tx_seq}"
        if known:
            try:
                await self._upload.poll(self._final, min(_RESEND_SECONDS, settings.finality_seconds), what)
                return
            except NotStoredError:
                await self._send_all(known)
        await self._upload.poll(self._final, settings.finality_seconds, what)

    async def _final(self) -> bool | None:
        info = await self._info()
        if info is None:
            raise _RevertedError
        return True if info.finalized else None

    # --- segments ----------------------------------------------------------------------------------------------------

    async def _send_all(self, indexes: Sequence[int]) -> None:
        size = self._upload.settings.task_size
        tasks = iter([indexes[at : at + size] for at in range(0, len(indexes), size)])
        failures: list[StorageError | ConfigError | _RevertedError] = []

        async def work(scope: anyio.CancelScope) -> None:
            for task in tasks:
                try:
                    await self._send(task)
                except (StorageError, ConfigError, _RevertedError) as error:
                    failures.append(error)
                    scope.cancel()
                    return

        async with anyio.create_task_group() as group:
            for _ in range(self._upload.settings.requests_per_node):
                group.start_soon(work, group.cancel_scope)
        if failures:
            raise failures[0]

    async def _send(self, indexes: Sequence[int]) -> None:
        """Send some segments in one request; again while the node is too busy."""
        until, pause = self._upload.clock.monotonic() + self._upload.settings.busy_seconds, FIRST_POLL
        while True:
            try:
                await self._request(indexes)
            except NodeError as error:
                match error.refusal:
                    case NodeRefusal.FINALIZED:
                        pass
                    case NodeRefusal.SENT if len(indexes) > 1:  # it stopped at the first it had
                        for index in indexes:
                            await self._send([index])
                    case NodeRefusal.SENT:
                        pass
                    case NodeRefusal.BUSY if self._upload.clock.monotonic() + pause <= until:
                        await self._upload.clock.sleep(pause)
                        pause = min(2 * pause, _LAST_BUSY_PAUSE)
                        continue
                    case NodeRefusal.REVERTED:
                        raise _RevertedError from None
                    case _:
                        raise
            self._upload.counted(self._part, indexes)
            return

    async def _request(self, indexes: Sequence[int]) -> None:
        async with self._upload.requests:
            call = storage_api.upload_segments_by_tx((), self._place.tx_seq)
            body = await anyio.to_thread.run_sync(self._body, tuple(indexes))
            await self._peer.client.post(call, body)

    def _body(self, indexes: Sequence[int]) -> bytes:
        return upload_body(self._part.segments(indexes), self._place.tx_seq)
