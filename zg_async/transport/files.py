"""Files that are sent and received: opened without surprises, hashed by the thread that reads or writes them."""

import errno
import os
import stat
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, Protocol

from zg_async.errors import ConfigError
from zg_async.text import printable

PIECE: Final = 1024 * 1024
"""Bytes read, hashed or written per visit to a thread."""
_BINARY: Final = getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
_NONBLOCK: Final = getattr(os, "O_NONBLOCK", 0)
_NOFOLLOW: Final = getattr(os, "O_NOFOLLOW", 0)


class Hasher(Protocol):
    """A hash fed in pieces."""

    def update(self, data: bytes) -> None:
        """Feed more bytes."""
        ...

    def digest(self) -> bytes:
        """Return the hash of what was fed so far."""
        ...


HasherFactory = Callable[[], Hasher]


class SourceFile:
    """A regular file that is read once, from start to end, and must not change meanwhile. All methods block."""

    def __init__(self, path: Path, hashers: Sequence[Hasher] = ()) -> None:
        """Open a file.

        Args:
            path: The file; a link to one is followed.
            hashers: Fed with every byte read.

        Raises:
            ConfigError: It is missing, unreadable, or no regular file.
        """
        self.path = path
        self._hashers = tuple(hashers)
        try:
            self._fd = os.open(path, os.O_RDONLY | _BINARY | _NONBLOCK)  # a pipe without a writer would block
        except OSError as error:
            raise file_error("read", path, error) from error
        self._seen = os.fstat(self._fd)
        if not stat.S_ISREG(self._seen.st_mode):
            self.close()
            raise ConfigError(f"{shown(path)} is not a regular file", hint="Give the path of a plain file")
        self.size = self._seen.st_size
        self._left = self.size

    def read(self) -> bytes:
        """Read and hash the next piece; empty at the end.

        Raises:
            ConfigError: The file changed since it was opened.
        """
        try:
            piece = os.read(self._fd, min(PIECE, self._left)) if self._left else b""
        except OSError as error:
            raise file_error("read", self.path, error) from error
        now = os.fstat(self._fd)
        if (not piece and self._left) or (now.st_size, now.st_mtime_ns) != (self.size, self._seen.st_mtime_ns):
            raise ConfigError(f"{shown(self.path)} changed while it was read", hint="Let its writer finish first")
        self._left -= len(piece)
        for hasher in self._hashers:
            hasher.update(piece)
        return piece

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)


class PartFile:
    """A file that grows, piece by piece, possibly over several runs. All methods block."""

    def __init__(self, path: Path, factories: Sequence[HasherFactory]) -> None:
        """Open or create a file and hash what it holds already.

        Args:
            path: Where; never a link.
            factories: Make the hashers; called again when the file starts over.

        Raises:
            ConfigError: It can't be written, or is no regular file.
        """
        self.path = path
        self._factories = tuple(factories)
        self._hashers = [make() for make in self._factories]
        self.size = 0
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | _BINARY | _NONBLOCK | _NOFOLLOW, 0o600)
        except OSError as error:
            raise file_error("write", path, error) from error
        if not stat.S_ISREG(os.fstat(self._fd).st_mode):
            self.close()
            raise ConfigError(f"{shown(path)} is not a regular file", hint="Remove it, or choose another folder")

    def hash_more(self) -> bool:
        """Hash the next piece of what an earlier run left; False when there is no more."""
        piece = os.read(self._fd, PIECE)
        for hasher in self._hashers:
            hasher.update(piece)
        self.size += len(piece)
        return bool(piece)

    def write(self, pieces: Sequence[bytes]) -> None:
        """Append and hash.

        Raises:
            ConfigError: The disk is full or broken.
        """
        for piece in pieces:
            left = memoryview(piece)
            while left:
                try:
                    left = left[os.write(self._fd, left) :]
                except OSError as error:
                    raise file_error("write", self.path, error) from error
            for hasher in self._hashers:
                hasher.update(piece)
            self.size += len(piece)

    def restart(self) -> None:
        """Throw away what it holds."""
        os.ftruncate(self._fd, 0)
        os.lseek(self._fd, 0, os.SEEK_SET)
        self._hashers = [make() for make in self._factories]
        self.size = 0

    def digests(self) -> tuple[bytes, ...]:
        """Return the hashes of what it holds."""
        return tuple(hasher.digest() for hasher in self._hashers)

    def sync(self) -> None:
        """Make what it holds durable."""
        os.fsync(self._fd)

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)


_FILE_HINTS: Final = {
    errno.ENOSPC: "Free some space and start again",
    errno.ENOENT: "Check the path",
    errno.EACCES: "Check its permissions",
    errno.ENOTDIR: "Check the path",
}


def file_error(verb: str, path: Path, error: OSError) -> ConfigError:
    """Say why a file can't be read or written."""
    hint = _FILE_HINTS.get(error.errno or 0)
    return ConfigError(f"can't {verb} {shown(path)}: {error.strerror or type(error).__name__}", hint=hint)


def shown(path: Path) -> str:
    """Write a path for a message."""
    return printable(str(path), limit=300)


def publish(source: Path, target: Path) -> None:
    """Give a finished file its final name, durably. Blocks.

    Raises:
        ConfigError: The file system refused.
    """
    try:
        os.replace(source, target)
        _sync_folder(target.parent)
    except OSError as error:
        raise file_error("write", target, error) from error


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":
        return
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
