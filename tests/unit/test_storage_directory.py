import dataclasses
import json

import pytest

from tests.golden import stream, unhex, vectors
from tests.storage_files import content
from zg_async.errors import ConfigError, UnsafeArchiveError
from zg_async.wire.merkle import MerkleHasher
from zg_async.wire.storage_directory import (
    MAGIC,
    DirectoryEntry,
    decode_directory,
    encode_directory,
    is_directory,
    walk,
)

VECTOR = vectors("storage")["directory"]
BLOB = unhex(VECTOR["v1_example"]["blobHex"])


def root(data: bytes) -> bytes:
    hasher = MerkleHasher()
    hasher.update(data)
    return hasher.digest()


def file(name: str, size: int = 0, *roots: bytes) -> DirectoryEntry:
    return DirectoryEntry(name=name, kind="file", size=size, roots=roots)


def folder(name: str, *entries: DirectoryEntry) -> DirectoryEntry:
    return DirectoryEntry(name=name, kind="directory", entries=entries)


def link(name: str, target: str) -> DirectoryEntry:
    return DirectoryEntry(name=name, kind="symbolic", link=target)


EXAMPLE = (
    file("a.bin", 1000, root(content("mix", 1000))),
    file("empty"),
    link("link", "a.bin"),
    folder("sub", file("b.bin", 200_001, root(stream("d", 200_001)))),
)


def blob(top: object, version: int = 1) -> bytes:
    return MAGIC + version.to_bytes(2, "big") + json.dumps(top).encode()


def top(*entries: object) -> dict:
    return {"name": "/", "type": "directory", "entries": list(entries)}


@pytest.mark.goal("STO-08", part="directory")
def test_the_reference_blob_is_made_and_read():
    assert unhex(VECTOR["magic"]) == MAGIC
    assert encode_directory(EXAMPLE) == encode_directory(EXAMPLE[::-1]) == BLOB
    assert decode_directory(BLOB) == EXAMPLE
    assert root(BLOB) == unhex(VECTOR["v1_example"]["root"])


def test_files_in_fragments_need_version_2():
    entries = (file("big", 9, b"a" * 32, b"b" * 32), file("empty"), file("one", 1, b"c" * 32))
    made = encode_directory(entries)
    assert made[32:34] == b"\0\x02"
    rows = json.loads(made[34:])["entries"]
    assert rows[1] == {"name": "empty", "type": "file"}
    assert rows[2] == {"name": "one", "type": "file", "roots": ["0x" + (b"c" * 32).hex()], "size": 1}
    assert decode_directory(made) == entries


def test_an_empty_directory_is_one():
    assert decode_directory(encode_directory([])) == ()


def test_text_is_escaped_as_go_does():
    made = encode_directory([folder("a&b\u00e9")])
    assert b'"a\\u0026b\xc3\xa9"' in made
    assert decode_directory(made)[0].name == "a&b\u00e9"


def test_walking_gives_paths_folders_first():
    assert [path for path, _ in walk(EXAMPLE)] == ["a.bin", "empty", "link", "sub", "sub/b.bin"]


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a/b", "a\\b", "/x", "a\0", "a\n", "con", "a:b", "x" * 300, "a\u202eb"]
)
def test_a_name_that_escapes_or_is_unsafe_is_refused_both_ways(name):
    with pytest.raises(UnsafeArchiveError):
        decode_directory(blob(top({"name": name, "type": "file"})))
    with pytest.raises(ConfigError):
        encode_directory([file(name)])


@pytest.mark.parametrize("target", ["", "/etc/passwd", "..", "../x", "a/../../x", "a/..", "C:/x", "a\\b", ".", "x/./y"])
def test_a_link_that_leaves_or_could_leave_is_refused(target):
    with pytest.raises(UnsafeArchiveError):
        decode_directory(blob(top({"name": "l", "type": "symbolic", "link": target})))


def test_a_link_may_go_up_through_real_folders_only():
    inside = (folder("p", folder("q", link("l", "../../a"), link("m", "../n"))),)
    assert decode_directory(encode_directory(inside)) == inside
    with pytest.raises(ConfigError):
        encode_directory((folder("p", folder("q", link("l", "../../../a"))),))
    with pytest.raises(ConfigError):
        encode_directory((folder("p", link("up", ".."), link("out", "up/../..")),))


def test_names_that_some_system_takes_for_one_are_refused():
    with pytest.raises(UnsafeArchiveError, match="twice"):
        decode_directory(blob(top({"name": "A", "type": "file"}, {"name": "a", "type": "file"})))


@pytest.mark.parametrize(
    "entry",
    [
        5,
        {},
        {"name": "a"},
        {"name": "a", "type": "device"},
        {"name": 5, "type": "file"},
        {"name": "a", "type": "symbolic"},
        {"name": "a", "type": "directory", "entries": {"x": 1}},
        {"name": "a", "type": "file", "size": 5},
        {"name": "a", "type": "file", "size": -1},
        {"name": "a", "type": "file", "size": True},
        {"name": "a", "type": "file", "hash": "0x" + "11" * 32},
        {"name": "a", "type": "file", "roots": ["0x11"], "size": 1},
        {"name": "a", "type": "file", "roots": "0x11", "size": 1},
    ],
    ids=str,
)
def test_a_broken_entry_is_refused(entry):
    with pytest.raises(UnsafeArchiveError):
        decode_directory(blob(top(entry)))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        MAGIC,
        BLOB[:33],
        MAGIC + b"\0\x03{}",
        b"x" + BLOB[1:],
        MAGIC + b"\0\x01{",
        blob({"name": "/", "type": "file"}),
    ],
    ids=lambda d: str(len(d)),
)
def test_what_is_no_directory_is_refused(data):
    with pytest.raises(UnsafeArchiveError):
        decode_directory(data)


def test_a_deep_directory_is_refused_without_recursing():
    with pytest.raises(UnsafeArchiveError):
        decode_directory(MAGIC + b"\0\x01" + b'{"name":"a","type":"directory","entries":[' * 500)
    nested = folder("a")
    for _ in range(60):
        nested = dataclasses.replace(nested, entries=(nested,))
    with pytest.raises(ConfigError, match="deep"):
        encode_directory([nested])


def test_a_directory_is_told_by_its_beginning():
    assert is_directory(BLOB)
    assert not is_directory(b"{}")
