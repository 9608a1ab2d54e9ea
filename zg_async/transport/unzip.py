"""Unpacking an outsider's ZIP: judged as a whole before a byte is written, into a folder nobody uses yet. Blocks."""

import os
import struct
import zipfile
import zlib
from collections.abc import Generator
from pathlib import Path
from typing import BinaryIO, Final

from zg_async.errors import UnsafeArchiveError
from zg_async.transport.files import PIECE, file_error
from zg_async.wire.archive import MAX_ENTRIES, ArchiveEntry, check_entries

_DIRECTORY_LIMIT: Final = 16 * 1024 * 1024
_END: Final = struct.Struct("<4s4H2LH")
_END_64: Final = struct.Struct("<4sQ2H2L4Q")
_LOCATOR_64: Final = struct.Struct("<4sLQL")
_WRITE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
_DAMAGED: Final = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    NotImplementedError,
    RuntimeError,
    ValueError,
    struct.error,
)


class Archive:
    """A ZIP whose directory has passed `wire.archive.check_entries`."""

    def __init__(self, path: Path, *, max_total: int) -> None:
        """Open and judge.

        Args:
            path: The file.
            max_total: Bytes everything may have unpacked.

        Raises:
            UnsafeArchiveError: An entry is refused, or it is no ZIP.
            ConfigError: The file can't be read.
        """
        try:
            self._file: BinaryIO = path.open("rb")
        except OSError as error:
            raise file_error("read", path, error) from error
        try:
            _check_directory_size(self._file)
            self._zip = zipfile.ZipFile(self._file)
            self.entries: tuple[ArchiveEntry, ...] = check_entries(self._zip.infolist(), max_total=max_total)
            self._infos = {i.filename: i for i in self._zip.infolist()}
        except (*_DAMAGED, OSError) as error:
            self._file.close()
            raise _damaged() from error
        except UnsafeArchiveError:
            self._file.close()
            raise

    def pieces(self, entry: ArchiveEntry) -> Generator[bytes, None, None]:
        """Read one file; its check sum is verified at the end.

        Raises:
            UnsafeArchiveError: Damaged, or not what the directory says.
        """
        size = 0
        try:
            with self._zip.open(self._infos[entry.name]) as source:
                while piece := source.read(PIECE):
                    size += len(piece)
                    if size > entry.size:
                        break
                    yield piece
        except (*_DAMAGED, OSError) as error:
            raise _damaged() from error
        if size != entry.size:
            raise _damaged()

    def extract(self, folder: Path) -> Generator[None, None, None]:
        """Write all files below an empty folder, a piece per step, each file durable.

        Raises:
            UnsafeArchiveError: Damaged.
            ConfigError: The disk refused.
        """
        for entry in self.entries:
            target = folder.joinpath(*entry.path.split("/"))
            try:
                target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                descriptor = os.open(target, _WRITE, 0o600)
            except OSError as error:
                raise file_error("write", target, error) from error
            with open(descriptor, "wb", buffering=0) as out:
                for piece in self.pieces(entry):
                    try:
                        out.write(piece)
                    except OSError as error:
                        raise file_error("write", target, error) from error
                    yield
                os.fsync(out.fileno())

    def equals(self, folder: Path) -> bool:
        """Say whether a folder holds just what unpacking would give."""
        present = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if not p.is_dir() or p.is_symlink()}
        return present == {e.path for e in self.entries} and all(self._same(folder, e) for e in self.entries)

    def _same(self, folder: Path, entry: ArchiveEntry) -> bool:
        path = folder.joinpath(*entry.path.split("/"))
        if path.is_symlink() or not path.is_file() or path.stat().st_size != entry.size:
            return False
        with path.open("rb") as file:
            return all(file.read(len(piece)) == piece for piece in self.pieces(entry))

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _check_directory_size(file: BinaryIO) -> None:
    """Refuse a huge directory before `zipfile` reads it into memory."""
    size = file.seek(0, os.SEEK_END)
    start = file.seek(max(0, size - 0xFFFF - _END.size))
    tail = file.read(0xFFFF + _END.size)
    at = tail.rfind(b"PK\5\6")
    if at < 0 or len(tail) - at < _END.size:
        raise zipfile.BadZipFile
    _, _, _, _, count, length, _, _ = _END.unpack_from(tail, at)
    if start + at >= _LOCATOR_64.size:
        file.seek(start + at - _LOCATOR_64.size)
        signature, _, offset, _ = _LOCATOR_64.unpack(file.read(_LOCATOR_64.size))
        if signature == b"PK\6\7":  # zipfile believes these numbers then
            file.seek(min(offset, size))
            _, _, _, _, _, _, _, count, length, _ = _END_64.unpack(file.read(_END_64.size))
    file.seek(0)
    if count > MAX_ENTRIES or length > _DIRECTORY_LIMIT:
        raise UnsafeArchiveError(f"the archive claims {count} entries in {length} bytes")


def _damaged() -> UnsafeArchiveError:
    return UnsafeArchiveError("the archive is damaged, or no ZIP", hint="Decrypt it again")
