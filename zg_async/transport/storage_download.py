"""Downloads from 0G Storage: segments side by side from all nodes that have them, each proved before it counts.

A node that sends nothing, or something else, costs a retry at another node, never a wrong file.
"""

from collections.abc import Sequence
from pathlib import Path

import anyio
import anyio.to_thread

from zg_async.clock import Clock
from zg_async.errors import ConfigError, HashMismatchError, NotStoredError, StorageError, StorageUnavailableError
from zg_async.logs import get_logger
from zg_async.transport.storage_nodes import Peer, StorageDirectory, ask_all, reasons
from zg_async.transport.storage_part import FetchedPart
from zg_async.transport.storage_settings import FIRST_POLL, LONGEST_POLL, POLL_GROWTH, StorageProgress, StorageSettings
from zg_async.wire import storage_api
from zg_async.wire.hashing import hex0x
from zg_async.wire.merkle import BadProofError, check_segment
from zg_async.wire.records import RootHash
from zg_async.wire.segments import FileInfo, Segment
from zg_async.wire.shards import covers
from zg_async.wire.storage_records import FetchedFile

_log = get_logger("zg_async.storage")
_MOST_FAULTS = 8


class _Fragment:
    """One root, the size it has, and who has it."""

    def __init__(self, root: bytes, size: int, holders: Sequence[Peer]) -> None:
        self.root = root
        self.size = size
        self.holders = list(holders)

    def candidates(self, index: int) -> list[Peer]:
        """Return the nodes that hold a segment; the good ones first, and not always the same one of them."""
        holding = [p for p in self.holders if p.info and p.config.holds(p.info.start_entry, index)]
        turn = index % len(holding) if holding else 0
        return sorted(holding[turn:] + holding[:turn], key=lambda peer: min(peer.faults, _MOST_FAULTS))


class Download:
    """One download."""

    def __init__(
        self,
        directory: StorageDirectory,
        *,
        clock: Clock,
        settings: StorageSettings,
        progress: StorageProgress,
    ) -> None:
        """Prepare a download; arguments as `Upload`'s."""
        self._directory = directory
        self._clock = clock
        self._settings = settings
        self._progress = progress
        self._used: dict[str, None] = {}

    async def run(
        self,
        roots: Sequence[bytes],
        target: Path,
        *,
        size: int | None = None,
        tx_seq: int | None = None,
        limit: int | None = None,
    ) -> FetchedFile:
        """Fetch fragments into one file; see `Storage.download` for arguments and errors."""
        self._progress.enter("looking")
        fragments = [await self._locate(root, size if len(roots) == 1 else None, tx_seq) for root in roots]
        total = sum(fragment.size for fragment in fragments)
        if size is not None and total != size:
            raise HashMismatchError(f"the nodes have {total} bytes under {hex0x(roots[0])}, {size} were expected")
        if limit is not None and total > limit:
            raise ConfigError(f"{hex0x(roots[0])} has {total} bytes, more than {limit}")
        part = await anyio.to_thread.run_sync(FetchedPart, target, [(f.root, f.size) for f in fragments])
        try:
            self._progress.enter("checking")
            self._progress.bytes_total = total
            resumed = await anyio.to_thread.run_sync(part.resume)
            self._progress.bytes_done = resumed
            self._progress.enter("fetching")
            await self._fetch(fragments, part)
            self._progress.enter("checking")
            await anyio.to_thread.run_sync(part.check)
            await anyio.to_thread.run_sync(part.finish)
        finally:
            part.close()
        self._progress.enter("done")
        return FetchedFile(
            path=str(target),
            root_hash=RootHash(hex0x(roots[0])),
            roots=tuple(RootHash(hex0x(root)) for root in roots),
            size=total,
            resumed=resumed,
            nodes=tuple(self._used),
        )

    # --- where -------------------------------------------------------------------------------------------------------

    async def _locate(self, root: bytes, size: int | None, tx_seq: int | None) -> _Fragment:
        """Find finalized holders of all segments that agree on the size, waiting a little for a fresh file."""
        until, pause = self._clock.monotonic() + self._settings.locate_seconds, FIRST_POLL
        while True:
            peers = await self._directory.holders(root)
            call = storage_api.get_file_info(root) if tx_seq is None else storage_api.get_file_info_by_tx(tx_seq)
            answers = await ask_all(peers, call)
            found = []
            for peer, info in answers.items():
                if isinstance(info, FileInfo) and info.root == root and not info.pruned:
                    peer.info = info
                    found.append(peer)
            fragment = self._agreed(root, size, [p for p in found if p.info is not None and p.info.finalized])
            if fragment is not None:
                return fragment
            heard = [a for a in answers.values() if not isinstance(a, StorageError)]
            if not heard:
                raise StorageUnavailableError(f"no storage node answers: {reasons(dict(answers))[:500]}")
            if not found:
                raise NotStoredError(
                    f"no storage node knows {hex0x(root)}", hint="Check the root, or the network; or upload it first"
                )
            self._other_size(root, size, found)
            if self._clock.monotonic() + pause > until:
                raise NotStoredError(
                    f"{hex0x(root)} is known but not yet held whole by reachable nodes", hint="Try again later"
                )
            await self._clock.sleep(pause)
            pause = min(pause * POLL_GROWTH, LONGEST_POLL)

    @staticmethod
    def _other_size(root: bytes, size: int | None, found: Sequence[Peer]) -> None:
        sizes = {peer.info.size for peer in found if peer.info is not None}
        if size is not None and size not in sizes:
            raise HashMismatchError(
                f"the nodes have {' or '.join(str(s) for s in sorted(sizes))} bytes under {hex0x(root)}, "
                f"{size} were expected",
                hint="Files that end in zeros share roots; this is another one",
            )

    @staticmethod
    def _agreed(root: bytes, size: int | None, holders: Sequence[Peer]) -> _Fragment | None:
        """Take the size that most nodes name: the root doesn't bind it."""
        sizes = [peer.info.size for peer in holders if peer.info is not None]
        for one in sorted(set(sizes), key=lambda s: (-sizes.count(s), s)):
            agreeing = [p for p in holders if p.info is not None and p.info.size == one]
            if (size is None or one == size) and covers([p.config for p in agreeing]):
                if len(set(sizes)) > 1:
                    _log.warning("storage nodes name several sizes of %s; %d bytes is taken", hex0x(root), one)
                return _Fragment(root, one, agreeing)
        return None

    # --- segments ----------------------------------------------------------------------------------------------------

    async def _fetch(self, fragments: Sequence[_Fragment], part: FetchedPart) -> None:
        todo = iter(part.missing())
        failures: list[StorageError | ConfigError] = []

        async def work(scope: anyio.CancelScope) -> None:
            for number, index in todo:
                try:
                    segment = await self._segment(fragments[number], index)
                    root = segment.proof.lemma[0]
                    size = await anyio.to_thread.run_sync(part.write, number, index, segment.data, root)
                except (StorageError, ConfigError) as error:
                    failures.append(error)
                    scope.cancel()
                    return
                self._progress.bytes_done += size

        async with anyio.create_task_group() as group:
            for _ in range(self._settings.downloads):
                group.start_soon(work, group.cancel_scope)
        if failures:
            raise failures[0]

    async def _segment(self, fragment: _Fragment, index: int) -> Segment:
        """Get one segment, proved, from whichever node gives it."""
        problems: list[str] = []
        for peer in fragment.candidates(index):
            try:
                segment = await self._ask(peer, fragment, index)
            except StorageError as error:
                problem = error.message
            except BadProofError as error:
                problem = f"{peer.host} sent something else: {error}"
            else:
                if segment is not None:
                    self._used.setdefault(peer.client.url)
                    return segment
                problem = f"{peer.host} hasn't got it"
            peer.faults += 1
            problems.append(problem)
            _log.warning("segment %d of %s: %s", index, hex0x(fragment.root), problem)
        raise NotStoredError(
            f"segment {index} of {hex0x(fragment.root)} can't be had: {'; '.join(problems)[:500] or 'nobody holds it'}",
            hint="What was fetched is kept; try again later",
        )

    async def _ask(self, peer: Peer, fragment: _Fragment, index: int) -> Segment | None:
        if peer.info is None:
            return None
        segment = await peer.client.call(storage_api.download_segment_with_proof(peer.info.tx_seq, index))
        if segment is not None:
            await anyio.to_thread.run_sync(_check, segment, fragment.root, fragment.size, index)
        return segment


def _check(segment: Segment, root: bytes, size: int, index: int) -> None:
    check_segment(segment.data, segment.proof, root=root, size=size, index=index)
