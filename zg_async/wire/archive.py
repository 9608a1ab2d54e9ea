"""What may be unpacked from a provider's ZIP, decided before anything is written.

`zipfile` takes names as they come and doesn't look whether entries overlap. Here the whole directory is judged
first, and one bad entry refuses the archive. Weights are data: only safetensors, JSON and text go to their place;
everything else, pickles above all, goes to a quarantine folder where nothing loads it.
"""

import stat
import unicodedata
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from zg_async.errors import UnsafeArchiveError
from zg_async.text import printable

MAX_ENTRIES: Final = 10_000
MAX_RATIO: Final = 20
MAX_NAME: Final = 255
MAX_PATH: Final = 1024
QUARANTINE: Final = "quarantine"
PLAIN: Final = frozenset({"safetensors", "json", "jsonl", "txt", "md", "jinja", "model", "csv", "yaml", "yml", "log"})
"""Suffixes of files that are only data."""
RATIO_SLACK: Final = 1024 * 1024
"""Bytes to which the ratio doesn't apply: a small text may shrink a hundredfold."""
_PREFIX: Final = "output_model/"
_RESERVED: Final = frozenset(
    {"con", "prn", "aux", "nul", "conin$", "conout$", *(f"{d}{n}" for d in ("com", "lpt") for n in "0123456789¹²³")}
)
_FORBIDDEN: Final = frozenset('<>:"|?*\\')
_LOCAL_HEADER: Final = 30
_METHODS: Final = frozenset({zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED})


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchiveEntry:
    """A file that may be unpacked."""

    name: str
    """As it stands in the archive."""
    path: str
    """Where it goes, relative and with `/`."""
    size: int
    quarantined: bool
    """It isn't known to be only data: `path` lies in the quarantine folder."""


def check_entries(
    infos: Sequence[zipfile.ZipInfo], *, max_total: int, max_entries: int = MAX_ENTRIES, max_ratio: int = MAX_RATIO
) -> tuple[ArchiveEntry, ...]:
    """Judge an archive's directory.

    Args:
        infos: `ZipFile.infolist()`.
        max_total: Bytes all files may have together, unpacked.
        max_entries: How many entries there may be.
        max_ratio: How many times larger than packed a file may be.

    Returns:
        The files to unpack, in order; folders are left out, and one leading `output_model/` is cut off.

    Raises:
        UnsafeArchiveError: Any entry that escapes, links, repeats, overlaps, or is too large. Also an empty archive.
    """
    if not infos or len(infos) > max_entries:
        raise UnsafeArchiveError(f"the archive has {len(infos)} entries, 1 to {max_entries} are taken")
    _check_overlap(infos)
    entries: list[ArchiveEntry] = []
    files: set[str] = set()
    folders: set[str] = set()
    total = packed = 0
    for info in infos:
        path = _safe_path(info)
        _check_kind(info)
        if info.is_dir():
            folders.update(_parents(path_key(path) + "/x"))
            continue
        _check_size(info, max_ratio)
        total, packed = total + info.file_size, packed + info.compress_size
        if total > max_total or total > max_ratio * packed + RATIO_SLACK:
            raise UnsafeArchiveError(f"the archive unpacks to over {max_total} bytes or {max_ratio} times its size")
        key = path_key(path)
        if key in files:
            raise _bad(info, "stands twice in the archive, if case and Unicode form don't count")
        files.add(key)
        folders.update(_parents(key))
        entries.append(_entry(info, path))
    if clash := files & folders:
        raise UnsafeArchiveError(f"{printable(min(clash))} is both a file and a folder in the archive")
    if not entries:
        raise UnsafeArchiveError("the archive holds no file")
    return tuple(entries)


def _entry(info: zipfile.ZipInfo, path: str) -> ArchiveEntry:
    quarantined = path.rpartition("/")[2].rpartition(".")[2].lower() not in PLAIN
    target = f"{QUARANTINE}/{path}" if quarantined else path
    return ArchiveEntry(name=info.filename, path=target, size=info.file_size, quarantined=quarantined)


def _bad(info: zipfile.ZipInfo, why: str) -> UnsafeArchiveError:
    return UnsafeArchiveError(
        f"the archive's entry {printable(info.orig_filename, limit=80)} {why}",
        hint="Nothing was unpacked; don't open it by other means, and take it up with the provider",
    )


def _check_kind(info: zipfile.ZipInfo) -> None:
    if info.flag_bits & 0x1:
        raise _bad(info, "is encrypted")
    if info.compress_type not in _METHODS:
        raise _bad(info, "is packed by an unusual method")
    mode = info.external_attr >> 16
    kind = stat.S_IFMT(mode)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR) or (info.external_attr & 0x400 and info.create_system == 0):
        raise _bad(info, "is a link or a device")
    if (kind == stat.S_IFDIR) != info.is_dir() and kind != 0:
        raise _bad(info, "is a file by name and a folder by kind, or the reverse")


def _check_size(info: zipfile.ZipInfo, max_ratio: int) -> None:
    if info.compress_type == zipfile.ZIP_STORED and info.file_size != info.compress_size:
        raise _bad(info, "has two sizes")
    if info.file_size > max_ratio * info.compress_size + RATIO_SLACK:
        raise _bad(info, f"unpacks to more than {max_ratio} times its size")


def _check_overlap(infos: Sequence[zipfile.ZipInfo]) -> None:
    end = 0
    for info in sorted(infos, key=lambda i: i.header_offset):
        if info.header_offset < end:
            raise _bad(info, "overlaps another")
        end = info.header_offset + _LOCAL_HEADER + len(info.orig_filename) + info.compress_size


def _safe_path(info: zipfile.ZipInfo) -> str:
    name = info.orig_filename  # before zipfile cuts at NUL and turns backslashes
    if not name or len(name.encode("utf-8", "replace")) > MAX_PATH:
        raise _bad(info, "has no name or a very long one")
    parts = name.removesuffix("/").split("/")
    for part in parts:
        if reason := bad_part(part):
            raise _bad(info, reason)
    path = "/".join(parts)
    stripped = path.removeprefix(_PREFIX)
    if stripped.split("/")[0].lower() == QUARANTINE:
        raise _bad(info, "uses the name of the quarantine folder")
    return stripped


def bad_part(part: str) -> str | None:
    """Say what keeps a name from being one step of a path on every system; None: nothing."""
    if part in ("", ".", ".."):
        return "leaves its folder, or is absolute"
    if any(c in _FORBIDDEN for c in part) or any(unicodedata.category(c)[0] == "C" for c in part):
        return "has a character in its name that isn't safe everywhere"
    if part[-1] in ". " or part[0] == " " or part.split(".")[0].rstrip(" ").lower() in _RESERVED:
        return "has a name that is reserved on some systems"
    return "has a very long name" if len(part.encode()) > MAX_NAME else None


def path_key(path: str) -> str:
    """Return what two names share that some system takes for one."""
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", path).casefold())


def _parents(key: str) -> set[str]:
    parts = key.split("/")
    return {"/".join(parts[:n]) for n in range(1, len(parts))}
