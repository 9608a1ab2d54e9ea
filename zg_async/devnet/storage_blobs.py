"""What a storage node keeps of a file: some segments, by the file's root, in one sparse file. Everything blocks."""

import os
import threading
from pathlib import Path
from typing import Any

from zg_async.wire.merkle import SEGMENT


class Blob:
    """The segments of one root. Files that differ by zeros at the end share it."""

    def __init__(self, path: Path) -> None:
        """Keep segments in a file that appears with the first one."""
        self._path = path
        self.written: set[int] = set()
        self.writing: set[int] = set()
        self.proofs: dict[int, Any] = {}
        """As they came, by segment."""
        self.changed = 0.0
        """When the last segment was written, monotonic."""
        self._fd: int | None = None
        self._opening = threading.Lock()

    def write(self, index: int, data: bytes) -> None:
        """Put a segment into its place."""
        with self._opening:
            if self._fd is None:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o600)
        if hasattr(os, "pwrite"):
            os.pwrite(self._fd, data, index * SEGMENT)
            return
        with self._path.open("r+b") as file:
            file.seek(index * SEGMENT)
            file.write(data)

    def read(self, offset: int, length: int) -> bytes:
        """Read bytes; what was never written is zero."""
        with self._path.open("rb") as file:
            file.seek(offset)
            return file.read(length).ljust(length, b"\0")

    def close(self) -> None:
        """Close the file."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
