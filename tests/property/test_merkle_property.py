"""However data is cut and by whichever means it is hashed, the tree is the same; and proofs hold for it only."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.storage_files import content
from zg_async.wire.hashing import keccak256
from zg_async.wire.keccak_batch import backends
from zg_async.wire.merkle import (
    CHUNK,
    SEGMENT,
    BadProofError,
    MerkleHasher,
    MerkleTree,
    check_segment,
    padded_chunk_count,
    root_of_nodes,
    segment_count,
    segment_roots,
)

ALL = backends()
EDGES = sorted({max(edge + d, 1) for edge in (0, CHUNK, 16 * CHUNK, SEGMENT, 2 * SEGMENT) for d in range(-2, 3)})
sizes = st.sampled_from(EDGES) | st.integers(1, 3 * SEGMENT)


def tree(data: bytes, backend=None) -> MerkleTree:
    hasher = MerkleHasher(backend)
    hasher.update(data)
    return hasher.tree()


def plain_root(data: bytes) -> bytes:
    """The definition, without any shortcut."""
    size = len(data)
    data += bytes(padded_chunk_count(size) * CHUNK - size)
    level = [keccak256(data[at : at + CHUNK]) for at in range(0, len(data), CHUNK)]
    while len(level) > 1:
        pairs = [keccak256(level[i] + level[i + 1]) for i in range(0, len(level) - 1, 2)]
        level = pairs + (level[-1:] if len(level) % 2 else [])
    return level[0]


@pytest.mark.goal("STO-05", part="all back ends")
@pytest.mark.slow
@given(st.integers(0, 2**32), st.sampled_from([64, 128, 192, 256]), st.integers(0, 40))
def test_all_back_ends_hash_blocks_alike(seed, size, count):
    data = random.Random(seed).randbytes(size * count)
    expected = b"".join(keccak256(data[at : at + size]) for at in range(0, len(data), size))
    for backend in ALL:
        assert backend.hash_blocks(memoryview(data), size) == expected, backend.name


@pytest.mark.slow
@given(st.integers(0, 2**32), st.sampled_from([64, 256]), st.integers(0, 7), st.integers(0, 9))
def test_all_back_ends_give_the_same_subtree_roots(seed, size, height, count):
    data = random.Random(seed).randbytes(size * count << height)
    results = {backend.subtree_roots(bytearray(data), size, 1 << height) for backend in ALL}
    assert len(results) == 1
    assert len(results.pop()) == 32 * count


@pytest.mark.parametrize("backend", ALL, ids=lambda b: b.name)
@pytest.mark.parametrize(("data", "size"), [(b"x", 64), (b"", 0), (bytes(64), 32), (bytes(60), 60), (bytes(512), 512)])
def test_every_back_end_refuses_blocks_of_another_size(backend, data, size):
    with pytest.raises(ValueError, match="whole"):
        backend.hash_blocks(data, size)


@pytest.mark.parametrize("backend", ALL, ids=lambda b: b.name)
@pytest.mark.parametrize(("size", "leaves"), [(256, 0), (256, 3), (256, -4), (64, 4), (0, 4), (256, 2**62)])
def test_every_back_end_refuses_trees_that_are_not_whole(backend, size, leaves):
    with pytest.raises(ValueError, match="whole"):
        backend.subtree_roots(bytes(512 + 64), size, leaves)


@pytest.mark.goal("STO-05", part="all back ends")
@pytest.mark.slow
@given(sizes.filter(lambda n: n <= SEGMENT + CHUNK), st.sampled_from(ALL))
def test_the_tree_is_the_definitions(size, backend):
    data = content("mix", size)
    made = tree(data, backend)
    assert made.root == plain_root(data) == root_of_nodes(made.nodes)


@pytest.mark.slow
@pytest.mark.parametrize("size", [n for edge in (CHUNK, SEGMENT) for n in range(edge - 3, edge + 4)])
def test_the_tree_is_the_definitions_at_every_edge(size):
    data = content("mix", size)
    assert {tree(data, backend).root for backend in ALL} == {plain_root(data)}


@pytest.mark.slow
@given(sizes, st.lists(st.integers(0, SEGMENT + CHUNK), max_size=20))
def test_the_tree_does_not_depend_on_how_the_data_is_cut(size, cuts):
    data = memoryview(content("mix", size))
    hasher, at = MerkleHasher(), 0
    for cut in cuts:
        hasher.update(data[at : at + cut])
        at += cut
    hasher.update(data[at:])
    assert hasher.tree() == tree(bytes(data))


@pytest.mark.slow
@given(st.integers(SEGMENT, 4 * SEGMENT), st.data())
def test_blocks_and_pieces_may_be_mixed(size, draw):
    data = content("mix", size)
    whole = draw.draw(st.integers(0, size // SEGMENT)) * SEGMENT
    hasher = MerkleHasher()
    hasher.add_roots(segment_roots(data[:whole]))
    hasher.update(data[whole:])
    assert hasher.tree() == tree(data)


@pytest.mark.slow
@given(sizes, st.data())
def test_a_proof_holds_for_its_segment_only(size, draw):
    data = content("mix", size)
    made = tree(data)
    index = draw.draw(st.integers(0, segment_count(size) - 1))
    part = data[index * SEGMENT : (index + 1) * SEGMENT]
    part += bytes(-len(part) % CHUNK)
    check_segment(part, made.proof(index), root=made.root, size=size, index=index)
    damaged = bytearray(part)
    damaged[draw.draw(st.integers(0, len(part) - 1))] ^= draw.draw(st.integers(1, 255))
    with pytest.raises(BadProofError):
        check_segment(damaged, made.proof(index), root=made.root, size=size, index=index)
    other = draw.draw(st.integers(0, segment_count(size) - 1))
    if other == index:
        return
    with pytest.raises(BadProofError):
        check_segment(part, made.proof(index), root=made.root, size=size, index=other)
