import dataclasses
import os
import threading

import anyio
import pytest

from tests.storage_files import content
from zg_async.errors import ConfigError
from zg_async.transport import file_tree
from zg_async.transport.file_tree import BytesSource, EncryptedSource, FileSource, hash_file, hash_source
from zg_async.transport.transfer import Progress
from zg_async.wire.keccak_batch import backends, best_backend
from zg_async.wire.merkle import SEGMENT, MerkleHasher, MerkleTree, fragments
from zg_async.wire.storage_crypto import StorageDecryptor, seal_with_key


def tree(data: bytes) -> MerkleTree:
    hasher = MerkleHasher()
    hasher.update(data)
    return hasher.tree()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "file"


@pytest.mark.goal("STO-05", part="off the loop")
async def test_no_byte_is_read_or_hashed_by_the_loops_own_thread(path, monkeypatch):
    path.write_bytes(content("mix", 33 * SEGMENT + 5))
    seen = set()

    def noting(real):
        return lambda *args: (seen.add(threading.get_ident()), real(*args))[1]

    best = best_backend()
    watched = dataclasses.replace(best, hash_blocks=noting(best.hash_blocks), subtree_roots=noting(best.subtree_roots))
    monkeypatch.setattr(FileSource, "read_at", noting(FileSource.read_at))
    monkeypatch.setattr(FileSource, "__init__", noting(FileSource.__init__))
    await hash_file(path, backend=watched)
    assert seen
    assert threading.get_ident() not in seen


@pytest.mark.parametrize("size", [1, SEGMENT, SEGMENT + 1, 33 * SEGMENT, 33 * SEGMENT + 5])
async def test_a_file_hashed_by_threads_has_the_same_tree(path, size):
    path.write_bytes(content("mix", size))
    progress = Progress()
    assert await hash_file(path, progress=progress) == tree(content("mix", size))
    assert (progress.bytes_done, progress.bytes_total) == (size, size)


@pytest.mark.slow
@pytest.mark.goal("STO-05", part="all back ends")
@pytest.mark.parametrize("backend", backends(), ids=lambda b: b.name)
async def test_a_file_has_the_same_tree_with_every_back_end_and_any_number_of_threads(path, backend):
    data = content("mix", 9 * SEGMENT + 7)
    path.write_bytes(data)
    assert {(await hash_file(path, backend=backend, threads=n)).root for n in (1, 3)} == {tree(data).root}


async def test_fragments_are_hashed_each_for_itself():
    data = content("mix", 5 * SEGMENT + 9)
    for offset, length in fragments(len(data), 2 * SEGMENT):
        assert await hash_source(BytesSource(data), offset=offset, length=length) == tree(
            data[offset : offset + length]
        )


async def test_what_is_stored_encrypted_is_hashed_without_a_copy_of_it(path):
    data, cipher = content("mix", 18 * SEGMENT + 9), seal_with_key(b"k" * 32)
    path.write_bytes(data)
    plain = FileSource(path)
    source = EncryptedSource(plain, cipher)
    stored = cipher.stored(0, data)
    assert source.size == len(stored)
    assert await hash_source(source) == tree(stored)
    for offset in (0, 5, 16, 17, 18, 1000):
        assert source.read_at(offset, 40) == stored[offset : offset + 40]
    decryptor = StorageDecryptor(key=b"k" * 32)
    assert decryptor.update(source.read_at(0, 1017)) == data[:1000]
    plain.close()


async def test_an_empty_file_is_refused(path):
    path.touch()
    with pytest.raises(ConfigError, match="is empty"):
        await hash_file(path)
    with pytest.raises(ConfigError, match="nothing to store"):
        await hash_source(BytesSource(b""))


async def test_what_is_no_file_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="not a regular file"):
        await hash_file(tmp_path)
    with pytest.raises(ConfigError, match="can't read"):
        await hash_file(tmp_path / "missing")


@pytest.mark.parametrize("size", [0, SEGMENT, 40 * SEGMENT])
def test_a_file_that_changes_while_it_is_read_is_refused(path, size):
    path.write_bytes(content("mix", 20 * SEGMENT))
    source = FileSource(path)
    os.truncate(path, size)
    with pytest.raises(ConfigError, match="changed while it was read"):
        source.read_at(16 * SEGMENT, SEGMENT)
    source.close()


async def test_a_change_found_by_one_thread_ends_them_all(path, monkeypatch):
    path.write_bytes(content("mix", 200 * SEGMENT))
    seen = []

    def changing(source, offset, size, real=FileSource.read_at):
        seen.append(offset)
        if len(seen) == 2:
            path.write_bytes(b"x")
        return real(source, offset, size)

    monkeypatch.setattr(FileSource, "read_at", changing)
    with pytest.raises(ConfigError, match="changed while it was read"):
        await hash_file(path)
    assert len(seen) <= 4


async def test_a_short_read_is_completed(path, monkeypatch):
    path.write_bytes(content("mix", 3 * SEGMENT))
    real = os.pread
    monkeypatch.setattr(file_tree.os, "pread", lambda fd, size, offset: real(fd, min(size, 70_000), offset))
    assert await hash_file(path) == tree(content("mix", 3 * SEGMENT))


async def test_where_there_is_no_pread_threads_take_turns(path, monkeypatch):
    path.write_bytes(content("mix", 40 * SEGMENT))
    monkeypatch.delattr(file_tree.os, "pread")
    assert await hash_file(path) == tree(content("mix", 40 * SEGMENT))


async def test_hashing_can_be_cancelled_and_leaves_no_file_open(path):
    path.write_bytes(content("mix", 64 * SEGMENT))
    before = len(os.listdir("/dev/fd"))
    with anyio.move_on_after(0) as scope:
        await hash_file(path)
    assert scope.cancelled_caught
    assert len(os.listdir("/dev/fd")) == before
