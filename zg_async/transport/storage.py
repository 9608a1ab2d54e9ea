"""0G Storage: files in and out, without helper programs. Every byte that comes back is proved."""

import contextlib
import dataclasses
import os
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path
from typing import Final

import anyio
import anyio.to_thread

from zg_async.clock import Clock
from zg_async.errors import ConfigError
from zg_async.transport.chain import Chain
from zg_async.transport.file_tree import BytesSource, EncryptedSource, FileSource, Source, hash_file
from zg_async.transport.files import PartFile, SourceFile, file_error, publish, shown
from zg_async.transport.http import Http
from zg_async.transport.storage_download import Download
from zg_async.transport.storage_nodes import StorageDirectory
from zg_async.transport.storage_part import refuse_existing
from zg_async.transport.storage_settings import StorageProgress, StorageSettings
from zg_async.transport.storage_submit import Cashier
from zg_async.transport.storage_upload import Upload
from zg_async.wire.hashing import hex0x
from zg_async.wire.merkle import MerkleTree, fragment_size
from zg_async.wire.records import Address, RootHash
from zg_async.wire.storage_crypto import StorageCipher, StorageDecryptor
from zg_async.wire.storage_directory import MAX_BLOB, DirectoryEntry, decode_directory, encode_directory, walk
from zg_async.wire.storage_records import FetchedFile, StoredFile

_FILES_AT_ONCE: Final = 50


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Unlock:
    """What opens an encrypted file: a key of one's own (version 1), or a wallet's private key (version 2)."""

    key: bytes | None = dataclasses.field(default=None, repr=False)
    private_key: bytes | None = dataclasses.field(default=None, repr=False)


class Storage:
    """Uploads and downloads on one network."""

    def __init__(
        self,
        chain: Chain,
        http: Http,
        *,
        clock: Clock,
        indexer_url: str | None = None,
        nodes: Sequence[str] = (),
        settings: StorageSettings | None = None,
    ) -> None:
        """Prepare; nothing is asked.

        Args:
            chain: Pays, to the flow contract its network names.
            http: The client.
            clock: The source of time.
            indexer_url: The indexer; None: the network's.
            nodes: URLs of storage nodes to use instead of asking an indexer.
            settings: Limits and patience.
        """
        self._chain = chain
        self._http = http
        self._clock = clock
        self._indexer_url = indexer_url or chain.network.indexer_url
        self._nodes = tuple(nodes)
        self._settings = settings or StorageSettings()

    @property
    def indexer_url(self) -> str | None:
        """Which indexer is asked."""
        return self._indexer_url

    @property
    def urls(self) -> tuple[str, ...]:
        """Where files go: the named nodes, else the indexer."""
        return self._nodes or ((self._indexer_url,) if self._indexer_url else ())

    def _directory(self) -> StorageDirectory:
        if self._indexer_url is None and not self._nodes:
            raise ConfigError(
                f"no storage indexer is known for network {self._chain.network.name}", hint="Pass indexer_url="
            )
        return StorageDirectory(self._http, self._indexer_url, self._nodes)

    async def root(self, path: Path, *, progress: StorageProgress | None = None) -> MerkleTree:
        """Compute a file's root and size in one pass. Asks nobody.

        Raises:
            ConfigError: The file is missing, empty, no regular file, or changes meanwhile.
        """
        return await hash_file(path, progress=progress)

    async def fee(self, trees: Sequence[MerkleTree]) -> int:
        """Return what storing files would cost now, in neuron, gas not included."""
        return await Cashier(self._chain, max_price=self._settings.max_price_per_sector).fee(trees)

    # --- uploads -----------------------------------------------------------------------------------------------------

    async def upload(
        self,
        path: Path,
        *,
        wallet: Address,
        cipher: StorageCipher | None = None,
        key: str | None = None,
        skip_existing: bool = True,
        settings: StorageSettings | None = None,
        progress: StorageProgress | None = None,
    ) -> StoredFile:
        """Store a file.

        Args:
            path: The file; it must not change meanwhile.
            wallet: Pays fee and gas.
            cipher: Encrypts what is stored; None: it is stored as it is, for everybody to read.
            key: Names the payment: the same key is never paid twice, in any process.
            skip_existing: Whether a file that is stored already (same root and size) isn't paid for again.
            settings: Instead of the usual ones.
            progress: Kept up to date.

        Returns:
            Root, size and places, confirmed by as many nodes as asked for.

        Raises:
            ConfigError: The file is missing, empty, or changed.
            InsufficientGasFundsError: The wallet can't pay the fee; nothing was signed.
            FeeCapError: Storage costs more than the cap.
            StorageUnavailableError: No indexer or node answers (retryable).
            NotStoredError: Not enough nodes confirmed. What was paid is found again by the next attempt.
            StorageError: The flow contract can't be used.
        """
        async with self._opened(path) as source:
            sealed = source if cipher is None else EncryptedSource(source, cipher)
            return (await self._store([sealed], wallet, key, skip_existing, settings, progress))[0]

    @contextlib.asynccontextmanager
    async def _opened(self, path: Path) -> AsyncGenerator[FileSource, None]:
        source = await anyio.to_thread.run_sync(FileSource, path)
        try:
            if not source.size:
                raise ConfigError(f"{shown(path)} is empty", hint="0G Storage takes no empty files")
            yield source
        finally:
            source.close()

    async def _store(
        self,
        sources: Sequence[Source],
        wallet: Address,
        key: str | None,
        skip_existing: bool,
        settings: StorageSettings | None,
        progress: StorageProgress | None,
    ) -> list[StoredFile]:
        chosen = settings or self._settings
        fragment_size(chosen.fragment_size)
        cashier = Cashier(self._chain, max_price=chosen.max_price_per_sector)
        upload = Upload(
            self._directory(),
            cashier,
            chain_id=self._chain.chain_id,
            wallet=wallet,
            clock=self._clock,
            settings=chosen,
            progress=progress or StorageProgress(),
            key=key,
            skip_existing=skip_existing,
        )
        return await upload.run(sources)

    async def upload_directory(
        self,
        path: Path,
        *,
        wallet: Address,
        key: str | None = None,
        settings: StorageSettings | None = None,
        progress: StorageProgress | None = None,
    ) -> StoredFile:
        """Store a directory: each file, then the list that names them, whose root is the directory's.

        Links are stored as links, only inside the directory; other special files are an error.

        Returns:
            The list's record, with the fee of everything.

        Raises:
            ConfigError: No directory, or something in it can't be stored. Otherwise as `upload`.
        """
        found = await anyio.to_thread.run_sync(_scan, path)
        files = [(name, entry) for name, entry in walk(found) if entry.kind == "file" and entry.size]
        roots: dict[str, tuple[bytes, ...]] = {}
        fee = 0
        for at in range(0, len(files), _FILES_AT_ONCE):
            group = [name for name, _ in files[at : at + _FILES_AT_ONCE]]
            async with contextlib.AsyncExitStack() as stack:
                sources = [await stack.enter_async_context(self._opened(path / name)) for name in group]
                part = f"{key}/{at}" if key is not None else None
                stored = await self._store(sources, wallet, part, True, settings, progress)
            fee += stored[0].fee
            for name, one in zip(group, stored, strict=True):
                roots[name] = tuple(bytes.fromhex(root[2:]) for root in one.roots)
        blob = encode_directory(_with_roots(found, roots))
        part = f"{key}/list" if key is not None else None
        listed = (await self._store([BytesSource(blob)], wallet, part, True, settings, progress))[0]
        return dataclasses.replace(listed, fee=listed.fee + fee)

    # --- downloads ---------------------------------------------------------------------------------------------------

    async def download(
        self,
        roots: Sequence[bytes],
        path: Path,
        *,
        size: int | None = None,
        tx_seq: int | None = None,
        unlock: Unlock | None = None,
        settings: StorageSettings | None = None,
        progress: StorageProgress | None = None,
    ) -> FetchedFile:
        """Fetch a file. Under its name there is nothing until all of it is proved; an earlier run's part is continued.

        Args:
            roots: Of the file, or of its fragments in order.
            path: Where it goes. A file that is there already must be the one asked for.
            size: Bytes it must have; the root doesn't bind them. None: what the nodes say.
            tx_seq: Its number in the flow contract, for a root that several files share.
            unlock: Opens an encrypted file; None: the stored bytes are wanted.
            settings: Instead of the usual ones.
            progress: Kept up to date.

        Returns:
            The file.

        Raises:
            NotStoredError: No node knows the root, or a part of it can't be had.
            StorageUnavailableError: Nobody answers (retryable).
            HashMismatchError: It has another size than expected.
            EnvelopeError: It can't be opened with this key.
            ConfigError: Something else is at `path`, or the disk is too small.
        """
        if not roots:
            raise ConfigError("no root was given")
        progress = progress or StorageProgress()
        download = Download(
            self._directory(), clock=self._clock, settings=settings or self._settings, progress=progress
        )
        if await anyio.to_thread.run_sync(os.path.lexists, path):
            if unlock is None and (ready := await _is_there(path, roots, size)):
                return ready
            await anyio.to_thread.run_sync(refuse_existing, path)
        if unlock is None:
            return await download.run(roots, path, size=size, tx_seq=tx_seq)
        stored = path.with_name(f"{path.name}.stored")
        fetched = await _is_there(stored, roots, size) if await anyio.Path(stored).exists() else None
        if fetched is None:
            await anyio.Path(stored).unlink(missing_ok=True)
            fetched = await download.run(roots, stored, size=size, tx_seq=tx_seq)
        plain = await anyio.to_thread.run_sync(_decrypt, stored, path, unlock)
        await anyio.Path(stored).unlink(missing_ok=True)
        return dataclasses.replace(fetched, path=str(path), size=plain)

    async def download_directory(
        self,
        root: bytes,
        path: Path,
        *,
        settings: StorageSettings | None = None,
        progress: StorageProgress | None = None,
    ) -> FetchedFile:
        """Fetch a stored directory. It appears under its name when everything is in it.

        Until then it is `<path>.fetching`, which the next attempt continues.

        Raises:
            UnsafeArchiveError: What is stored is no directory, or names a place outside of it.
            ConfigError: Something is at `path`, or the disk is too small. Otherwise as `download`.
        """
        await anyio.to_thread.run_sync(refuse_existing, path)
        folder = path.with_name(f"{path.name}.fetching")
        blob_path = path.with_name(f"{path.name}.listing")
        await anyio.Path(folder).mkdir(parents=True, exist_ok=True)
        await anyio.Path(blob_path).unlink(missing_ok=True)
        download = Download(
            self._directory(),
            clock=self._clock,
            settings=settings or self._settings,
            progress=progress or StorageProgress(),
        )
        listed = await download.run([root], blob_path, limit=MAX_BLOB)
        try:
            entries = decode_directory(await anyio.Path(blob_path).read_bytes())
        finally:
            await anyio.Path(blob_path).unlink(missing_ok=True)
        total = 0
        for name, entry in walk(entries):
            total += entry.size
            await self._fetch_entry(folder / name, entry, settings, progress)
        await anyio.to_thread.run_sync(refuse_existing, path)
        await anyio.to_thread.run_sync(publish, folder, path)
        return dataclasses.replace(listed, path=str(path), size=total)

    async def _fetch_entry(
        self, target: Path, entry: DirectoryEntry, settings: StorageSettings | None, progress: StorageProgress | None
    ) -> None:
        if entry.kind == "directory":
            await anyio.Path(target).mkdir(exist_ok=True)
        elif entry.kind == "symbolic":
            await anyio.Path(target).unlink(missing_ok=True)
            await anyio.Path(target).symlink_to(entry.link)
        elif not entry.roots:
            await anyio.Path(target).touch()
        else:
            await self.download(entry.roots, target, size=entry.size, settings=settings, progress=progress)


async def _is_there(path: Path, roots: Sequence[bytes], size: int | None) -> FetchedFile | None:
    """Recognise a file that was fetched before; only those of a single root can be."""
    if len(roots) != 1 or not await anyio.Path(path).is_file() or not (await anyio.Path(path).stat()).st_size:
        return None
    tree = await hash_file(path)
    if tree.root != roots[0] or (size is not None and tree.size != size):
        return None
    root = RootHash(hex0x(roots[0]))
    return FetchedFile(path=str(path), root_hash=root, roots=(root,), size=tree.size, resumed=tree.size)


def _decrypt(stored: Path, path: Path, unlock: Unlock) -> int:
    """Decrypt a proved file; return the plaintext's size. Blocks."""
    temporary = path.with_name(f"{path.name}.decrypting")
    temporary.unlink(missing_ok=True)
    decryptor = StorageDecryptor(key=unlock.key, private_key=unlock.private_key)
    source = SourceFile(stored)
    try:
        output = PartFile(temporary, ())
        try:
            while piece := source.read():
                output.write([decryptor.update(piece)])
            decryptor.finish()
            output.sync()
        finally:
            output.close()
        refuse_existing(path)
        publish(temporary, path)
        return output.size
    finally:
        source.close()
        temporary.unlink(missing_ok=True)


def _scan(path: Path) -> tuple[DirectoryEntry, ...]:
    """List a directory. Blocks."""
    try:
        with os.scandir(path) as found:
            items = sorted(found, key=lambda item: os.fsencode(item.name))
        return tuple(_entry(item) for item in items)
    except OSError as error:
        raise file_error("read", path, error) from error


def _entry(item: "os.DirEntry[str]") -> DirectoryEntry:
    if item.is_symlink():
        return DirectoryEntry(name=item.name, kind="symbolic", link=Path(os.readlink(item.path)).as_posix())
    if item.is_dir(follow_symlinks=False):
        return DirectoryEntry(name=item.name, kind="directory", entries=_scan(Path(item.path)))
    if item.is_file(follow_symlinks=False):
        return DirectoryEntry(name=item.name, kind="file", size=item.stat(follow_symlinks=False).st_size)
    raise ConfigError(f"{shown(Path(item.path))} is neither file, folder nor link", hint="Leave it out")


def _with_roots(
    entries: Sequence[DirectoryEntry], roots: dict[str, tuple[bytes, ...]], folder: str = ""
) -> tuple[DirectoryEntry, ...]:
    return tuple(
        dataclasses.replace(
            entry,
            roots=roots.get(f"{folder}{entry.name}", ()),
            entries=_with_roots(entry.entries, roots, f"{folder}{entry.name}/"),
        )
        for entry in entries
    )
