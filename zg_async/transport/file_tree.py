"""What is stored, read at any place, and hashed by several threads at once."""

import contextlib
import os
import stat
import threading
from pathlib import Path
from typing import Final, Protocol

import anyio
import anyio.to_thread

from zg_async.errors import ConfigError
from zg_async.transport.files import file_error, shown
from zg_async.transport.transfer import Progress
from zg_async.wire.keccak_batch import KeccakBackend, best_backend
from zg_async.wire.merkle import BLOCK, SEGMENT, MerkleHasher, MerkleTree, segment_roots
from zg_async.wire.storage_crypto import StorageCipher

THREADS: Final = 2
"""How many hash side by side, where that helps: not where Python's own loop does the work."""
_BINARY: Final = getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0)


class Source(Protocol):
    """Bytes of a known number, read at any place by any thread."""

    @property
    def size(self) -> int:
        """Bytes in all."""
        ...

    def read_at(self, offset: int, size: int) -> bytes:
        """Read exactly `size` bytes. Blocks. Raises ConfigError when they can't be had."""
        ...


class BytesSource:
    """Bytes in memory."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    @property
    def size(self) -> int:
        """Bytes in all."""
        return len(self._data)

    def read_at(self, offset: int, size: int) -> bytes:
        """Return a part."""
        return self._data[offset : offset + size]


class FileSource:
    """A regular file that must not change while it is open. All methods block."""

    def __init__(self, path: Path) -> None:
        """Open a file; a link to one is followed.

        Raises:
            ConfigError: It is missing, unreadable, or no regular file.
        """
        self.path = path
        self._lock = threading.Lock()
        try:
            self._fd = os.open(path, os.O_RDONLY | _BINARY)
        except OSError as error:
            raise file_error("read", path, error) from error
        self._seen = os.fstat(self._fd)
        if not stat.S_ISREG(self._seen.st_mode):
            self.close()
            raise ConfigError(f"{shown(path)} is not a regular file", hint="Give the path of a plain file")

    @property
    def size(self) -> int:
        """Bytes in all."""
        return self._seen.st_size

    def read_at(self, offset: int, size: int) -> bytes:
        """Read a part.

        Raises:
            ConfigError: The file changed since it was opened.
        """
        try:
            data = self._read(offset, size)
            while len(data) < size and (more := self._read(offset + len(data), size - len(data))):
                data += more
            now = os.fstat(self._fd)
        except OSError as error:
            raise file_error("read", self.path, error) from error
        if len(data) != size or (now.st_size, now.st_mtime_ns) != (self.size, self._seen.st_mtime_ns):
            raise ConfigError(f"{shown(self.path)} changed while it was read", hint="Let its writer finish first")
        return data

    def _read(self, offset: int, size: int) -> bytes:
        if hasattr(os, "pread"):
            return os.pread(self._fd, size, offset)
        with self._lock:
            os.lseek(self._fd, offset, os.SEEK_SET)
            return os.read(self._fd, size)

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)


class EncryptedSource:
    """Another source as it is stored under a cipher: its header, then the ciphertext."""

    def __init__(self, plain: Source, cipher: StorageCipher) -> None:
        self._plain = plain
        self._cipher = cipher

    @property
    def size(self) -> int:
        """Bytes in all, with the header."""
        return self._cipher.header_size + self._plain.size

    def read_at(self, offset: int, size: int) -> bytes:
        """Read and encrypt a part."""
        header = self._cipher.header[offset : offset + size]
        start = max(offset - self._cipher.header_size, 0)
        return header + self._cipher.apply(start, self._plain.read_at(start, size - len(header)))


async def hash_file(
    path: Path, *, progress: Progress | None = None, threads: int | None = None, backend: KeccakBackend | None = None
) -> MerkleTree:
    """Compute a file's tree in one pass, off the loop.

    Args:
        path: The file.
        progress: Counts up as blocks are done.
        threads: How many hash side by side; None: 2, or 1 for a back end that can't.
        backend: None takes the fastest.

    Raises:
        ConfigError: The file is missing, empty, no regular file, or changes meanwhile.
    """
    source = await anyio.to_thread.run_sync(FileSource, path)
    with contextlib.closing(source):
        if not source.size:
            raise ConfigError(f"{shown(path)} is empty", hint="0G Storage takes no empty files")
        return await hash_source(source, progress=progress, threads=threads, backend=backend)


async def hash_source(
    source: Source,
    *,
    offset: int = 0,
    length: int | None = None,
    progress: Progress | None = None,
    threads: int | None = None,
    backend: KeccakBackend | None = None,
) -> MerkleTree:
    """Compute the tree of a source, or of a fragment of it, in one pass, off the loop.

    Args:
        source: Stays open and is not closed.
        offset: Where the fragment begins.
        length: Its bytes; None: up to the end.
        progress: Counts up as blocks are done.
        threads: How many hash side by side; None: 2, or 1 for a back end that can't.
        backend: None takes the fastest.

    Raises:
        ConfigError: The source is empty, or can't be read.
    """
    length = source.size - offset if length is None else length
    if length <= 0:
        raise ConfigError("there is nothing to store", hint="0G Storage takes no empty files")
    progress = progress or Progress()
    progress.bytes_total = length
    return await _Hashing(source, offset, length, progress, backend or best_backend()).run(threads)


class _Hashing:
    """One pass, whose blocks are taken by whichever thread is free."""

    def __init__(self, source: Source, offset: int, length: int, progress: Progress, backend: KeccakBackend) -> None:
        self._source = source
        self._offset = offset
        self._whole = length // SEGMENT * SEGMENT
        self._rest = length - self._whole
        self._progress = progress
        self._backend = backend
        self._starts = iter(range(0, self._whole, BLOCK))
        self._roots: dict[int, bytes] = {}
        self._fault: ConfigError | None = None

    async def run(self, threads: int | None) -> MerkleTree:
        threads = threads or (THREADS if self._backend.parallel else 1)
        async with anyio.create_task_group() as group:
            for _ in range(min(threads, -(-self._whole // BLOCK))):
                group.start_soon(self._work)
        if self._fault is not None:
            raise self._fault
        tree = await anyio.to_thread.run_sync(self._finish)
        self._progress.bytes_done += self._rest
        return tree

    async def _work(self) -> None:
        for start in self._starts:
            size = min(BLOCK, self._whole - start)
            try:
                self._roots[start] = await anyio.to_thread.run_sync(self._block, start, size)
            except ConfigError as error:
                self._fault = error
            if self._fault is not None:
                return
            self._progress.bytes_done += size

    def _block(self, start: int, size: int) -> bytes:
        return segment_roots(self._source.read_at(self._offset + start, size), self._backend)

    def _finish(self) -> MerkleTree:
        hasher = MerkleHasher(self._backend)
        hasher.add_roots(b"".join(self._roots[start] for start in sorted(self._roots)))
        if self._rest:
            hasher.update(self._source.read_at(self._offset + self._whole, self._rest))
        return hasher.tree()
