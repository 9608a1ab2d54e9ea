"""A file that is being fetched from 0G Storage: its bytes, and which segments are there. Everything blocks.

Beside `<name>.part` lies `<name>.part.roots`: the roots asked for, the sizes, and the root of each segment that was
proved and written. After a crash each segment is hashed again and counts only if it has the noted root; at the end
the noted roots fold to the file's. So nothing unproved gets the final name, and nothing is read twice without need.
"""

import errno
import os
import shutil
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from zg_async.errors import ConfigError, HashMismatchError
from zg_async.transport.files import file_error, publish, shown
from zg_async.wire.hashing import hex0x
from zg_async.wire.keccak_batch import DIGEST
from zg_async.wire.merkle import SEGMENT, root_of_segments, segment_count, segment_root

_FLAGS: Final = (
    os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0)
)
_NONE: Final = bytes(DIGEST)


class FetchedPart:
    """A file of one or more fragments on its way."""

    def __init__(self, target: Path, fragments: Sequence[tuple[bytes, int]]) -> None:
        """Open or continue a file.

        Args:
            target: The final name.
            fragments: (root, size) of each, in order.

        Raises:
            ConfigError: The disk is too small, or the file can't be written.
        """
        self.target = target
        self.path = target.with_name(f"{target.name}.part")
        self._notes_path = target.with_name(f"{target.name}.part.roots")
        self.size = sum(size for _, size in fragments)
        self._fragments = tuple(fragments)
        self._starts = [sum(size for _, size in fragments[:i]) for i in range(len(fragments))]
        self._head = b"".join(root + size.to_bytes(8, "big") for root, size in fragments)
        self._slots = [sum(segment_count(size) for _, size in fragments[:i]) for i in range(len(fragments))]
        self._roots: list[bytes] = [_NONE] * sum(segment_count(size) for _, size in fragments)
        self._check_room()
        try:
            self._fd = os.open(self.path, _FLAGS, 0o600)
            try:
                self._notes = os.open(self._notes_path, _FLAGS, 0o600)
            except OSError:
                os.close(self._fd)
                raise
        except OSError as error:
            raise file_error("write", self.path, error) from error

    def _check_room(self) -> None:
        try:
            there = self.path.stat().st_blocks * 512 if self.path.exists() and os.name == "posix" else 0
            free = shutil.disk_usage(self.target.parent).free
        except OSError as error:
            raise file_error("write", self.target, error) from error
        if self.size - there > free:
            raise ConfigError(
                f"{shown(self.target)} needs {self.size} bytes, the disk has {free} free",
                hint="Free some space and start again",
            )

    def resume(self) -> int:
        """Take over what an earlier run left, hashing it again; return how many bytes that is."""
        notes = read_at(self._notes, len(self._head) + len(self._roots) * DIGEST, 0)
        if not notes.startswith(self._head) or len(notes) < len(self._head):
            os.ftruncate(self._fd, 0)
            os.ftruncate(self._notes, 0)
            self._note(0, self._head)
            os.ftruncate(self._fd, self.size)
            return 0
        kept = 0
        for fragment, (_, size) in enumerate(self._fragments):
            for index in range(segment_count(size)):
                slot = self._slots[fragment] + index
                at = len(self._head) + slot * DIGEST
                noted = notes[at : at + DIGEST]
                length = min(SEGMENT, size - index * SEGMENT)
                if len(noted) < DIGEST or noted == _NONE:
                    continue
                data = read_at(self._fd, length, self._starts[fragment] + index * SEGMENT)
                if len(data) == length and self._root_of(data, size, index) == noted:
                    self._roots[slot] = noted
                    kept += length
        os.ftruncate(self._fd, self.size)
        return kept

    @staticmethod
    def _root_of(data: bytes, size: int, index: int) -> bytes:
        return segment_root(data, size=size, index=index)

    def missing(self) -> list[tuple[int, int]]:
        """Return (fragment, segment) of all that isn't there yet, in order."""
        return [
            (fragment, index)
            for fragment, (_, size) in enumerate(self._fragments)
            for index in range(segment_count(size))
            if self._roots[self._slots[fragment] + index] == _NONE
        ]

    def write(self, fragment: int, index: int, data: bytes, root: bytes) -> int:
        """Put a proved segment into its place; return its bytes.

        Args:
            fragment: Which.
            index: The segment's in the fragment.
            data: Whole chunks; zeros behind the end are cut off.
            root: The segment's.

        Raises:
            ConfigError: The disk is full or broken.
        """
        size = self._fragments[fragment][1]
        real = data[: size - index * SEGMENT]
        try:
            write_at(self._fd, real, self._starts[fragment] + index * SEGMENT)
        except OSError as error:
            raise file_error("write", self.path, error) from error
        slot = self._slots[fragment] + index
        self._note(len(self._head) + slot * DIGEST, root)
        self._roots[slot] = root
        return len(real)

    def _note(self, offset: int, data: bytes) -> None:
        try:
            write_at(self._notes, data, offset)
        except OSError as error:
            raise file_error("write", self._notes_path, error) from error

    def check(self) -> None:
        """Fold the segments' roots and compare them with what was asked for.

        Raises:
            HashMismatchError: They lead elsewhere.
        """
        for (root, size), slot in zip(self._fragments, self._slots, strict=True):
            found = root_of_segments(b"".join(self._roots[slot : slot + segment_count(size)]), size=size)
            if found != root:
                raise HashMismatchError(f"what was fetched has the root {hex0x(found)}, {hex0x(root)} was asked for")

    def finish(self) -> None:
        """Make it durable and give it its name.

        Raises:
            ConfigError: The name is taken meanwhile, or the file system refused.
        """
        try:
            os.fsync(self._fd)
        except OSError as error:
            raise file_error("write", self.path, error) from error
        self.close()
        refuse_existing(self.target)
        publish(self.path, self.target)
        self._notes_path.unlink(missing_ok=True)

    def discard(self) -> None:
        """Remove it."""
        self.close()
        self.path.unlink(missing_ok=True)
        self._notes_path.unlink(missing_ok=True)

    def close(self) -> None:
        """Close the files. Idempotent."""
        for fd in (self._fd, self._notes):
            if fd >= 0:
                os.close(fd)
        self._fd = self._notes = -1


def refuse_existing(target: Path) -> None:
    """Do nothing if a name is free.

    Raises:
        ConfigError: Something is there.
    """
    if os.path.lexists(target):
        raise ConfigError(f"{shown(target)} exists", hint="Choose another name, or remove it; nothing was overwritten")


_SEEKING: Final = threading.Lock()
"""Held where reading and writing at a place takes two calls."""


def read_at(fd: int, size: int, offset: int) -> bytes:
    """Read up to `size` bytes at a place, from any thread."""
    parts = []
    while size and (data := _read_once(fd, size, offset)):
        parts.append(data)
        size, offset = size - len(data), offset + len(data)
    return b"".join(parts)


def _read_once(fd: int, size: int, offset: int) -> bytes:
    if hasattr(os, "pread"):
        return os.pread(fd, size, offset)
    with _SEEKING:
        os.lseek(fd, offset, os.SEEK_SET)
        return os.read(fd, size)


def write_at(fd: int, data: bytes, offset: int) -> None:
    """Write all of `data` at a place, from any thread.

    Raises:
        OSError: The disk is full or broken.
    """
    left = memoryview(data)
    while left:
        written = _write_once(fd, left, offset)
        if not written:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        left, offset = left[written:], offset + written


def _write_once(fd: int, data: memoryview, offset: int) -> int:
    if hasattr(os, "pwrite"):
        return os.pwrite(fd, data, offset)
    with _SEEKING:
        os.lseek(fd, offset, os.SEEK_SET)
        return os.write(fd, data)
