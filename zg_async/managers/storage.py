"""0G Storage: store and fetch files and directories, and compute roots."""

import dataclasses
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import anyio
from yarl import URL

from zg_async.errors import ConfigError
from zg_async.text import printable
from zg_async.tracing import observed
from zg_async.transport.chain import Chain
from zg_async.transport.egress import is_public
from zg_async.transport.signer import Signer
from zg_async.transport.storage import Storage, Unlock
from zg_async.transport.storage_settings import StorageProgress, StorageSettings
from zg_async.wire.records import RootHash
from zg_async.wire.storage_crypto import StorageCipher, seal_for, seal_with_key
from zg_async.wire.storage_records import FetchedFile, StoredFile

_ROOT: Final = re.compile(r"(?:0[xX])?([0-9a-fA-F]{64})")
PathLike = str | os.PathLike[str]


@observed("storage")
class StorageManager:
    """0G Storage with one wallet; downloads and roots need none."""

    def __init__(self, chain: Chain, storage: Storage, signer: Signer | None, settings: StorageSettings) -> None:
        """Bind to a wallet."""
        self._chain = chain
        self._storage = storage
        self._signer = signer
        self._settings = settings

    @property
    def indexer_url(self) -> str | None:
        """Which indexer is asked."""
        return self._storage.indexer_url

    @property
    def is_known(self) -> bool:
        """Whether an indexer or nodes are known at all."""
        return bool(self._storage.urls)

    @property
    def is_public(self) -> bool:
        """Whether what is stored can be read by everybody, for ever. False only on a network of this machine."""
        hosts = [URL(url).raw_host or "" for url in self._storage.urls]
        return not hosts or any(host != "localhost" and not _is_loopback(host) for host in hosts)

    async def root(self, path: PathLike, *, progress: StorageProgress | None = None) -> RootHash:
        """Compute a file's root, in one pass over it. Asks nobody and costs nothing.

        Args:
            path: The file.
            progress: Kept up to date.

        Returns:
            `0x` and 64 hex digits. It doesn't bind the size: files that differ in zeros at the end can share it.

        Raises:
            ConfigError: The file is missing, empty, no regular file, or changes meanwhile.
        """
        return (await self._storage.root(Path(path), progress=progress)).root_hash

    async def fee(self, path: PathLike) -> int:
        """Return what storing a file would cost now, in neuron, gas not included.

        Raises:
            ConfigError: The file can't be read.
            StorageError: The network's flow contract can't be asked.
        """
        return await self._storage.fee([await self._storage.root(Path(path))])

    async def upload(
        self,
        path: PathLike,
        *,
        public: bool = False,
        encryption_key: bytes | None = None,
        recipient: bytes | None = None,
        replicas: int | None = None,
        fragment_size: int | None = None,
        skip_existing: bool = True,
        wait_finality: bool = True,
        key: str | None = None,
        progress: StorageProgress | None = None,
    ) -> StoredFile:
        """Store a file or a directory, and wait until enough nodes have confirmed it.

        What is there already, with the same root *and* size, isn't paid for again; what a broken upload left is
        continued.

        Args:
            path: A file or a folder; it must not change meanwhile.
            public: Agree that everybody can read it for ever: needed on a public network unless it is encrypted.
            encryption_key: 32 bytes: store it encrypted under them (version 1).
            recipient: A public key, 33 or 65 bytes: store it encrypted for its holder (version 2).
            replicas: How often each segment must be held; None: as the broker's settings say, usually once.
            fragment_size: Bytes of an entry at most; None: 4 GiB.
            skip_existing: False pays again in any case.
            wait_finality: False: success says only that enough nodes took the data.
            key: Names the payment in the outbox: the same key is never paid twice, in any process.
            progress: Kept up to date.

        Returns:
            Root or roots, size, what was paid, and who confirmed.

        Raises:
            ConfigError: The file is missing, empty or changed; no consent; the broker has no wallet.
            InsufficientGasFundsError: The wallet can't pay the fee; nothing was signed.
            FeeCapError: Storage costs more than the settings' cap.
            StorageUnavailableError: No indexer or node answers (retryable).
            NotStoredError: Not enough nodes confirmed it. What was paid is found again by the next attempt.
            StorageError: The network's flow contract can't be used.
        """
        if self._signer is None:
            raise ConfigError(
                "storing needs a wallet, and the broker is read-only", hint="Pass private_key= to create_broker"
            )
        source = Path(path)
        cipher = _cipher(encryption_key, recipient)
        is_folder = await anyio.Path(source).is_dir()
        if is_folder and cipher is not None:
            raise ConfigError("a directory can't be stored encrypted", hint="Pack it into one file first")
        if cipher is None:
            self._require_consent(public)
        settings = self._chosen(replicas, fragment_size, wait_finality)
        wallet = self._signer.address
        if is_folder:
            return await self._storage.upload_directory(
                source, wallet=wallet, key=key, settings=settings, progress=progress
            )
        return await self._storage.upload(
            source,
            wallet=wallet,
            cipher=cipher,
            key=key,
            skip_existing=skip_existing,
            settings=settings,
            progress=progress,
        )

    def _require_consent(self, public: bool) -> None:
        if not public and self.is_public:
            raise ConfigError(
                f"{self._chain.network.name} storage is public: everybody can read what is stored there, for ever",
                hint="Agree with public=True (zg: --public), or store it encrypted",
            )

    def _chosen(self, replicas: int | None, fragment_size: int | None, wait_finality: bool) -> StorageSettings:
        old = self._settings
        if replicas is not None and (isinstance(replicas, bool) or replicas < 1):
            raise ConfigError(f"{replicas} replicas can't be asked for", hint="At least 1")
        if fragment_size is not None and fragment_size < 1:
            raise ConfigError(f"a fragment can't have {fragment_size} bytes")
        return dataclasses.replace(
            old,
            replicas=old.replicas if replicas is None else replicas,
            fragment_size=old.fragment_size if fragment_size is None else fragment_size,
            wait_finality=old.wait_finality and wait_finality,
        )

    async def download(
        self,
        root: str | Sequence[str],
        path: PathLike,
        *,
        size: int | None = None,
        tx_seq: int | None = None,
        encryption_key: bytes | None = None,
        private_key: bytes | None = None,
        progress: StorageProgress | None = None,
    ) -> FetchedFile:
        """Fetch a file. Every segment is proved against the root; nothing unproved ever has the final name.

        A cut download goes on where it stopped, also in another process.

        Args:
            root: Its root; for a file in fragments the list of roots in order, or one text joined by commas.
            path: Where it goes. What is there already is never overwritten; the same file there is a success.
            size: Bytes it must have, if known: the root doesn't bind them.
            tx_seq: Its number in the flow contract, for a root that several files share.
            encryption_key: Opens a file stored under a key (version 1).
            private_key: Opens a file stored for the holder of this key (version 2).
            progress: Kept up to date.

        Returns:
            The file.

        Raises:
            NotStoredError: No node knows the root, or a part of it can't be had.
            StorageUnavailableError: No indexer or node answers (retryable).
            HashMismatchError: It has another size than expected.
            EnvelopeError: It can't be opened with this key.
            ConfigError: No root; something else is at `path`; the disk is too small.
        """
        unlock = None
        if encryption_key is not None or private_key is not None:
            unlock = Unlock(key=encryption_key, private_key=private_key)
        return await self._storage.download(
            parse_roots(root), Path(path), size=size, tx_seq=tx_seq, unlock=unlock, progress=progress
        )

    async def download_directory(
        self, root: str, path: PathLike, *, progress: StorageProgress | None = None
    ) -> FetchedFile:
        """Fetch a stored directory; it appears when everything is in it.

        Raises:
            UnsafeArchiveError: What is stored is no directory, or names a place outside of it. Others as `download`.
        """
        roots = parse_roots(root)
        if len(roots) != 1:
            raise ConfigError("a directory has one root")
        return await self._storage.download_directory(roots[0], Path(path), progress=progress)


def parse_roots(root: str | Sequence[str]) -> list[bytes]:
    """Read one root or several.

    Raises:
        ConfigError: There is none, or one isn't 32 bytes of hex.
    """
    texts = root.split(",") if isinstance(root, str) else list(root)
    matches = [_ROOT.fullmatch(text.strip()) for text in texts]
    if not texts or None in matches:
        raise ConfigError(
            f"{printable(str(root), limit=80)!r} is no storage root", hint="A root is 0x and 64 hex digits"
        )
    return [bytes.fromhex(match[1]) for match in matches if match]


def _cipher(key: bytes | None, recipient: bytes | None) -> StorageCipher | None:
    if key is not None and recipient is not None:
        raise ConfigError("a file is stored under a key or for a recipient, not both")
    if key is not None:
        if len(key) != 32:
            raise ConfigError("an encryption key has 32 bytes")
        return seal_with_key(key)
    return seal_for(recipient) if recipient is not None else None


def _is_loopback(host: str) -> bool:
    return host in ("::1", "127.0.0.1") or (host.startswith("127.") and not is_public(host))
