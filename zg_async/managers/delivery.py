"""From the provider's file to the adapter on disk: fetch, verify, decrypt, unpack. Signs nothing, pays nothing.

Under a final name there is only what was verified: a model whose hash is the one on chain, a plaintext whose tags the
TEE signed, a folder with all its files.
"""

import os
import re
import shutil
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import anyio
import anyio.to_thread

from zg_async.errors import ConfigError, EnvelopeError, HashMismatchError
from zg_async.managers.provider_client import ProviderClient
from zg_async.transport.files import HasherFactory, PartFile, SourceFile, file_error, publish, shown
from zg_async.transport.transfer import Downloaded, Progress
from zg_async.transport.unzip import Archive
from zg_async.wire.envelope import MODEL_CHUNK, ModelDecryptor, plain_size
from zg_async.wire.hashing import Keccak256, hex0x
from zg_async.wire.merkle import MerkleHasher
from zg_async.wire.records import Address, Deliverable, DownloadedModel, RootHash

KECCAK256: Final = "keccak256"
STORAGE_ROOT: Final = "storage_root"
_ROOT: Final = re.compile(r"0x([0-9a-f]{64})")
_BATCH: Final = 16
_END: Final = object()


class StorageRootHasher(MerkleHasher):
    """Computes a file's 0G Storage root; an empty file has none."""

    def digest(self) -> bytes:
        """Return the root of what was fed so far."""
        return super().digest() if self.size else b""


def roots_of(model_root_hash: bytes) -> frozenset[bytes]:
    """Read a deliverable's root hash: 32 raw bytes, or old providers' text of `0x` roots joined by commas.

    Raises:
        HashMismatchError: It is neither, so nothing can be checked against it.
    """
    if len(model_root_hash) == 32:
        return frozenset((model_root_hash,))
    matches = [_ROOT.fullmatch(t.strip().lower()) for t in model_root_hash.decode("latin-1").split(",")]
    found = frozenset(bytes.fromhex(m[1]) for m in matches if m)
    if len(found) == 0 or None in matches:
        raise HashMismatchError("the hash on chain can't be read", hint="Ask the provider; don't acknowledge")
    return found


def root_matches(hashes: Mapping[str, bytes], model_root_hash: bytes) -> str | None:
    """Say which of a file's hashes is the one on chain.

    A provider that stores the model in 0G Storage writes its storage root, another the file's keccak256; nothing
    tells which (fine-tuning.md 12.2).

    Args:
        hashes: The file's, by name: `"keccak256"`, `"storage_root"`.
        model_root_hash: The deliverable's.

    Returns:
        The name of the one that matches; None: the file isn't what was delivered.
    """
    roots = roots_of(model_root_hash)
    return next((name for name, value in hashes.items() if value in roots), None)


async def download_model(
    client: ProviderClient,
    user: Address,
    deliverable: Deliverable,
    path: str | os.PathLike[str],
    body: Callable[[], Awaitable[object]],
    *,
    progress: Progress | None = None,
    storage_root: HasherFactory | None = StorageRootHasher,
) -> DownloadedModel:
    """Fetch an encrypted model and check it against the hash on chain; what is there already isn't fetched again.

    Args:
        client: The provider.
        user: The wallet.
        deliverable: As read from the chain just now.
        path: The final name; until the hash is right the file is called `<path>.part`.
        body: Makes signature and timestamp afresh for each attempt.
        progress: Kept up to date.
        storage_root: Makes a hasher of 0G Storage roots; None: only keccak256 is checked.

    Returns:
        The checked file.

    Raises:
        HashMismatchError: The bytes aren't what the chain says. They are removed.
        ProviderUnavailableError: No success after the retries; `<path>.part` is kept and continued (retryable).
        ProviderError: The provider refused.
        ConfigError: The file can't be written, or the disk is too small.
    """
    path = Path(path)
    check = _Check(deliverable, storage_root)
    if await anyio.Path(path).is_file() and (ready := await check.of_file(path)):
        return ready
    part = path.with_name(f"{path.name}.part")
    while True:
        done = await client.download_model(
            user,
            deliverable.id,
            part,
            body,
            progress=progress,
            extra_hashers=check.factories[1:],
            accept=lambda digests: check.matches(digests) is not None,
        )
        if (model := check.result(path, done)) is not None:
            await anyio.to_thread.run_sync(publish, part, path)
            return model
        await anyio.Path(part).unlink()
        if not done.kept:  # else its beginning, from an earlier call, may be to blame: once more from the start
            raise check.mismatch(done.digests, f"what {client.provider} sent for task {deliverable.id}")


async def check_file(
    path: str | os.PathLike[str], deliverable: Deliverable, *, storage_root: HasherFactory | None = StorageRootHasher
) -> DownloadedModel:
    """Check a file on disk against the hash on chain.

    Args:
        path: An encrypted model.
        deliverable: As read from the chain just now.
        storage_root: Makes a hasher of 0G Storage roots; None: only keccak256 is checked.

    Raises:
        HashMismatchError: The file isn't what was delivered.
        ConfigError: It can't be read.
    """
    check = _Check(deliverable, storage_root)
    digests, size = await _hash_file(Path(path), check.factories)
    if (model := check.model(Path(path), digests, size)) is None:
        raise check.mismatch(digests, shown(Path(path)))
    return model


class _Check:
    """Comparing files with one deliverable."""

    def __init__(self, deliverable: Deliverable, storage_root: HasherFactory | None) -> None:
        self._root = deliverable.model_root_hash
        self.factories: Sequence[HasherFactory] = (Keccak256, *([storage_root] if storage_root else []))
        roots_of(self._root)  # an unreadable hash is an error before the download

    def matches(self, digests: Sequence[bytes]) -> str | None:
        return root_matches(dict(zip((KECCAK256, STORAGE_ROOT), digests, strict=False)), self._root)

    def model(self, path: Path, digests: Sequence[bytes], size: int) -> DownloadedModel | None:
        matched = self.matches(digests)
        if matched is None:
            return None
        root = digests[0 if matched == KECCAK256 else 1]
        return DownloadedModel(
            path=str(path), size=size, root_hash=RootHash(hex0x(root)), matched=matched, source="tee"
        )

    def result(self, path: Path, done: Downloaded) -> DownloadedModel | None:
        return self.model(path, done.digests, done.size)

    async def of_file(self, path: Path) -> DownloadedModel | None:
        digests, size = await _hash_file(path, self.factories)
        return self.model(path, digests, size)

    def mismatch(self, digests: Sequence[bytes], what: str) -> HashMismatchError:
        on_chain = ", ".join(sorted(hex0x(root) for root in roots_of(self._root)))
        unchecked = "" if len(self.factories) > 1 else " (a 0G Storage root couldn't be checked)"
        return HashMismatchError(
            f"{what} has keccak256 {hex0x(digests[0])}, the chain says {on_chain}{unchecked}",
            hint="Don't acknowledge it; download again, and if it stays so take it up with the provider",
        )


async def _hash_file(path: Path, factories: Sequence[HasherFactory]) -> tuple[tuple[bytes, ...], int]:
    hashers = [make() for make in factories]
    source = await anyio.to_thread.run_sync(SourceFile, path, hashers)
    try:
        while await anyio.to_thread.run_sync(_read_some, source):
            pass
        return tuple(h.digest() for h in hashers), source.size
    finally:
        source.close()


def _read_some(source: SourceFile) -> bool:
    return all(source.read() for _ in range(_BATCH))


async def decrypt_file(
    path: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    key: bytes,
    expected_signer: Address | str,
    chunk: int = MODEL_CHUNK,
) -> Path:
    """Decrypt a model file in pieces.

    The output appears under its name only when every tag was right and the signer's signature over them, too; until
    then it is `<output>.decrypting`, which only this user can read and which is removed on any failure.

    Args:
        path: The encrypted file.
        output: Where the plaintext goes; replaced if it exists.
        key: 32 bytes.
        expected_signer: The TEE signer's address at the time of delivery.
        chunk: Plaintext bytes per chunk; other than the default only for tests.

    Returns:
        The output's path.

    Raises:
        EnvelopeError: Another key, or the file is cut, padded or damaged; all alike.
        SignatureMismatchError: Another signer.
        ConfigError: A file can't be read or written, or the disk is too small.
    """
    path, output = Path(path), Path(output)
    temporary = output.with_name(f"{output.name}.decrypting")
    work = await anyio.to_thread.run_sync(_Decryption, path, temporary, key, expected_signer, chunk)
    try:
        while await anyio.to_thread.run_sync(work.step):
            pass
        await anyio.to_thread.run_sync(work.finish)
        await anyio.to_thread.run_sync(publish, temporary, output)
    finally:
        work.close()
        temporary.unlink(missing_ok=True)
    return output


class _Decryption:
    """The blocking half of `decrypt_file`."""

    def __init__(self, path: Path, temporary: Path, key: bytes, signer: Address | str, chunk: int) -> None:
        self._source = SourceFile(path)
        try:
            size = plain_size(self._source.size, chunk=chunk)
            if size > (free := shutil.disk_usage(temporary.parent).free):
                raise ConfigError(
                    f"{shown(temporary)} needs {size} bytes, the disk has {free}",
                    hint="Free some space and start again",
                )
            self._decryptor = ModelDecryptor(key, expected_signer=signer, chunk=chunk)
            temporary.unlink(missing_ok=True)  # an earlier run's
            self._output = PartFile(temporary, ())
        except OSError as error:
            self._source.close()
            raise file_error("write", temporary, error) from error
        except (ConfigError, EnvelopeError):
            self._source.close()
            raise

    def step(self) -> bool:
        for _ in range(_BATCH):
            piece = self._source.read()
            if not piece:
                return False
            self._output.write(self._decryptor.update(piece))
        return True

    def finish(self) -> None:
        self._decryptor.finish()
        self._output.sync()

    def close(self) -> None:
        self._source.close()
        self._output.close()


async def unpack(
    archive: str | os.PathLike[str], output_dir: str | os.PathLike[str], *, max_total: int | None = None
) -> tuple[str, ...]:
    """Unpack a decrypted model. Weights are data: what isn't known to be only data goes into a quarantine folder.

    The folder appears when everything is in it; until then it is `<output_dir>.unpacking`, which is removed on any
    failure.

    Args:
        archive: The ZIP.
        output_dir: A folder that doesn't exist yet, or holds just this already.
        max_total: Bytes everything may have unpacked; None means what the disk holds.

    Returns:
        The files, relative to the folder, with `/`.

    Raises:
        UnsafeArchiveError: An entry escapes, links, repeats, overlaps or blows up; or the archive is damaged.
        ConfigError: The folder exists with something else in it, or can't be written.
    """
    archive, output = Path(archive), Path(output_dir)
    if max_total is None:
        max_total = await anyio.to_thread.run_sync(_room, output.parent)
    opened = await anyio.to_thread.run_sync(lambda: Archive(archive, max_total=max_total))
    try:
        if not await anyio.to_thread.run_sync(_is_done, opened, output):
            await _extract(opened, output)
        return tuple(entry.path for entry in opened.entries)
    finally:
        opened.close()


async def _extract(archive: Archive, output: Path) -> None:
    temporary = output.with_name(f"{output.name}.unpacking")
    steps = archive.extract(temporary)
    try:
        await anyio.to_thread.run_sync(_fresh_folder, temporary)
        while await anyio.to_thread.run_sync(_advance, steps):
            pass
        await anyio.to_thread.run_sync(publish, temporary, output)
    finally:
        steps.close()
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(lambda: shutil.rmtree(temporary, ignore_errors=True))


def _advance(steps: Iterator[None]) -> bool:
    return all(next(steps, _END) is None for _ in range(_BATCH))


def _room(folder: Path) -> int:
    try:
        return shutil.disk_usage(folder).free
    except OSError as error:
        raise file_error("write", folder, error) from error


def _is_done(archive: Archive, output: Path) -> bool:
    if not os.path.lexists(output):
        return False
    if output.is_dir() and not output.is_symlink():
        if archive.equals(output):
            return True
        if not any(output.iterdir()):
            return False
    raise ConfigError(f"{shown(output)} exists with something else in it", hint="Choose another folder, or remove it")


def _fresh_folder(folder: Path) -> None:
    try:
        shutil.rmtree(folder, ignore_errors=True)  # an earlier run's
        folder.mkdir(mode=0o700)
    except OSError as error:
        raise file_error("write", folder, error) from error
