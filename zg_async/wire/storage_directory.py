"""A directory in 0G Storage: a blob that names the files in it and their roots; its own root is the directory's.

Version 1 has one root per file, version 2 a list of fragments. Ours are version 1 whenever they can be, since more
clients read it. What comes from storage is a stranger's: names and links that leave the directory are refused.
Source: 0g-storage-client core/dir.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

from zg_async.errors import ConfigError, UnsafeArchiveError
from zg_async.text import printable
from zg_async.wire.archive import bad_part, path_key
from zg_async.wire.hashing import hex0x, keccak256
from zg_async.wire.merkle import MAX_SIZE
from zg_async.wire.segments import parse_hash
from zg_async.wire.strict_json import BadJsonError, decode_json

MAGIC: Final = keccak256(b"0g-storage-client-dir-codec")
MAX_BLOB: Final = 64 * 1024 * 1024
MAX_ENTRIES: Final = 100_000
MAX_DEPTH: Final = 48
_HEADER: Final = len(MAGIC) + 2
_NO_HASH: Final = bytes(32)
_ESCAPES: Final = str.maketrans({c: f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"})  # as Go writes JSON

Kind = Literal["file", "directory", "symbolic"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DirectoryEntry:
    """A file, a folder or a link in a stored directory."""

    name: str
    kind: Kind
    roots: tuple[bytes, ...] = ()
    """A file's fragments in order; none for an empty file."""
    size: int = 0
    """A file's bytes."""
    link: str = ""
    """Where a link points, with `/`."""
    entries: tuple["DirectoryEntry", ...] = ()
    """What a folder holds."""


def encode_directory(entries: Sequence[DirectoryEntry]) -> bytes:
    """Make the blob of a directory.

    Args:
        entries: What it holds; any order.

    Raises:
        ConfigError: A name or a link that couldn't be downloaded everywhere, a name twice, or too many entries.
    """
    try:
        _check(entries)
    except UnsafeArchiveError as error:
        raise ConfigError(error.message, hint="Rename or leave it out") from None
    version = 2 if any(len(entry.roots) > 1 for _, entry in walk(entries)) else 1
    tree = {"name": "/", "type": "directory", **_children(entries, version)}
    text = json.dumps(tree, ensure_ascii=False, separators=(",", ":")).translate(_ESCAPES)
    return MAGIC + version.to_bytes(2, "big") + text.encode()


def decode_directory(blob: bytes) -> tuple[DirectoryEntry, ...]:
    """Read a directory's blob, of either version.

    Raises:
        UnsafeArchiveError: It is none, or an entry has a name or a link that leaves the directory, or that isn't
            safe on every system. Files are checked against their roots later.
    """
    if not is_directory(blob):
        raise UnsafeArchiveError("what is stored there is no directory, or one of a newer version")
    try:
        top = decode_json(blob[_HEADER:], limit=MAX_BLOB, depth=2 * MAX_DEPTH)
        entry = _entry(top)
    except (BadJsonError, ValueError) as error:
        raise UnsafeArchiveError(f"the stored directory can't be read: {printable(str(error))}") from None
    if entry.kind != "directory":
        raise UnsafeArchiveError("the stored directory is no directory")
    _check(entry.entries)
    return entry.entries


def is_directory(blob: bytes) -> bool:
    """Tell whether a blob begins as a directory's of a version we know."""
    return blob[: len(MAGIC)] == MAGIC and int.from_bytes(blob[len(MAGIC) : _HEADER], "big") in (1, 2)


def walk(entries: Sequence[DirectoryEntry], folder: str = "") -> Iterator[tuple[str, DirectoryEntry]]:
    """Give all entries with their paths below the directory, folders before what they hold."""
    for entry in entries:
        path = f"{folder}{entry.name}"
        yield path, entry
        yield from walk(entry.entries, path + "/")


def _children(entries: Sequence[DirectoryEntry], version: int) -> dict[str, Any]:
    rows = [_row(entry, version) for entry in sorted(entries, key=lambda e: e.name.encode())]
    return {"entries": rows} if rows else {}


def _row(entry: DirectoryEntry, version: int) -> dict[str, Any]:
    row: dict[str, Any] = {"name": entry.name, "type": entry.kind}
    if entry.kind == "file":
        if version == 1:
            row["hash"] = hex0x(entry.roots[0] if entry.roots else _NO_HASH)
        elif entry.roots:
            row["roots"] = [hex0x(root) for root in entry.roots]
        if entry.size:
            row["size"] = entry.size
    elif entry.kind == "symbolic":
        row["link"] = entry.link
    else:
        row.update(_children(entry.entries, version))
    return row


# --- reading ---------------------------------------------------------------------------------------------------------


def _entry(row: Any) -> DirectoryEntry:
    name, kind = (row.get("name"), row.get("type")) if isinstance(row, dict) else (None, None)
    if not isinstance(name, str) or kind not in get_args(Kind):
        raise ValueError("an entry without name or type")
    if kind == "file":
        return _file(name, row)
    if kind == "symbolic":
        link = row.get("link")
        if not isinstance(link, str):
            raise ValueError("a link to nowhere")
        return DirectoryEntry(name=name, kind="symbolic", link=link)
    rows = row.get("entries") or []
    if not isinstance(rows, list) or len(rows) > MAX_ENTRIES:
        raise ValueError("a folder without a list of entries")
    return DirectoryEntry(name=name, kind="directory", entries=tuple(_entry(item) for item in rows))


def _file(name: str, row: Mapping[str, Any]) -> DirectoryEntry:
    size, rows = row.get("size") or 0, row.get("roots") or []
    if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= MAX_SIZE or not isinstance(rows, list):
        raise ValueError("a file without size or roots")
    roots = [parse_hash(root) for root in rows]
    if not roots and (old := row.get("hash")) is not None and (root := parse_hash(old)) != _NO_HASH:
        roots = [root]
    if bool(roots) != bool(size):
        raise ValueError("a file whose size and roots don't fit each other")
    return DirectoryEntry(name=name, kind="file", roots=tuple(roots), size=size)


def _check(entries: Sequence[DirectoryEntry]) -> None:
    count = 0
    folders = [(entries, 0)]
    while folders:
        inside, depth = folders.pop()
        if len({path_key(entry.name) for entry in inside}) != len(inside):
            raise UnsafeArchiveError("a name stands twice in a folder, if case and Unicode form don't count")
        count += len(inside)
        if count > MAX_ENTRIES or depth > MAX_DEPTH - 4:
            raise UnsafeArchiveError(f"the directory has more than {MAX_ENTRIES} entries, or is nested too deep")
        for entry in inside:
            _check_name(entry, depth)
            folders.append((entry.entries, depth + 1))


def _check_name(entry: DirectoryEntry, depth: int) -> None:
    reason = "leaves its folder" if "/" in entry.name else bad_part(entry.name)
    if reason is None and entry.kind == "symbolic":
        reason = _bad_link(entry.link, depth)
    if reason is not None:
        raise UnsafeArchiveError(f"the directory's entry {printable(entry.name, limit=80)} {reason}")


def _bad_link(link: str, depth: int) -> str | None:
    """Say what is wrong with a link in a folder `depth` levels down.

    Steps up stand first, where all folders passed are real ones: behind another link they could lead anywhere.
    """
    parts = link.split("/")
    ups = next((i for i, part in enumerate(parts) if part != ".."), len(parts))
    if ups > depth or any(bad_part(part) for part in parts[ups:]):
        return "is a link that leaves the directory, or isn't safe everywhere"
    return None
