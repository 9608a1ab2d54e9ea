"""0G Storage's Merkle tree: root, submission nodes and proofs from one pass over the data.

Leaves are Keccak-256 of 256-byte chunks, the last one filled with zeros and zero chunks added up to a count that is
a sum of few powers of two. Inner nodes hash two children; the odd last node of a level moves up unchanged. The root
says nothing of the size: zeros at the end can be data or padding, so a root without a size names no file.

Source: 0g-storage-client core/{data,tree,flow}.go, 0g-storage-node shared_types.
"""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

from zg_async.wire.hashing import keccak256
from zg_async.wire.keccak_batch import DIGEST, Data, KeccakBackend, best_backend
from zg_async.wire.records import RootHash

CHUNK: Final = 256
SEGMENT_CHUNKS: Final = 1024
SEGMENT: Final = CHUNK * SEGMENT_CHUNKS
"""262144 bytes."""
BLOCK: Final = 16 * SEGMENT
"""4 MiB: what one visit to a thread should hash."""
FRAGMENT: Final = 2**32
"""Bytes an entry has at most, by default: 4 GiB."""
MAX_SIZE: Final = 2**63 - 1
_SEGMENT_HEIGHT: Final = 10

ProofStep = Literal["format", "content", "root", "position", "padding", "validation"]


class BadProofError(ValueError):
    """A segment isn't proved to belong where it should."""

    def __init__(self, step: ProofStep) -> None:
        """Make an error; `step` is the check that failed."""
        super().__init__(f"the proof fails: {step}")
        self.step = step


# --- counts ----------------------------------------------------------------------------------------------------------


def chunk_count(size: int) -> int:
    """Return how many chunks a file of `size` bytes has.

    Raises:
        ValueError: `size` isn't positive: an empty file can't be stored.
    """
    if not 0 < size <= MAX_SIZE:
        raise ValueError(f"0G Storage takes no file of {size} bytes")
    return (size - 1) // CHUNK + 1


def segment_count(size: int) -> int:
    """Return how many segments have data."""
    return (chunk_count(size) - 1) // SEGMENT_CHUNKS + 1


def padded_chunk_count(size: int) -> int:
    """Return how many chunks are stored and paid for: the sectors."""
    chunks = chunk_count(size)
    power = 1 << (chunks - 1).bit_length()
    if power == chunks:
        return chunks
    step = max(power // 16, 1)
    return -(-chunks // step) * step


def padded_segment_count(size: int) -> int:
    """Return how many leaves the tree of segments has; more than `segment_count` when padding fills whole ones."""
    return (padded_chunk_count(size) - 1) // SEGMENT_CHUNKS + 1


def submission_heights(size: int) -> tuple[int, ...]:
    """Return the heights of the subtrees a file is submitted as, largest first; at most four."""
    padded = padded_chunk_count(size)
    return tuple(bit for bit in range(padded.bit_length() - 1, -1, -1) if padded >> bit & 1)


def segment_size(size: int, index: int) -> int:
    """Return how many bytes segment `index` has on the wire: whole chunks, of real data only.

    Raises:
        ValueError: There is no such segment.
    """
    chunks = chunk_count(size)
    if not 0 <= index * SEGMENT_CHUNKS < chunks:
        raise ValueError(f"no segment {index} in {size} bytes")
    return min(SEGMENT_CHUNKS, chunks - index * SEGMENT_CHUNKS) * CHUNK


def fragment_size(requested: int = FRAGMENT) -> int:
    """Round a fragment size up as peers do: a power of two, at least 256.

    Raises:
        ValueError: It isn't positive.
    """
    if requested <= 0:
        raise ValueError(f"a fragment can't have {requested} bytes")
    return max(CHUNK, 1 << (requested - 1).bit_length())


def fragments(size: int, requested: int = FRAGMENT) -> tuple[tuple[int, int], ...]:
    """Cut a file into entries.

    Args:
        size: Bytes, of the stream that is stored (after encryption).
        requested: The fragment size, before `fragment_size` rounds it.

    Returns:
        (offset, length) of each, in order; a single one when the file isn't larger.
    """
    chunk_count(size)
    step = fragment_size(requested)
    return tuple((offset, min(step, size - offset)) for offset in range(0, size, step))


@functools.cache
def zero_root(height: int) -> bytes:
    """Return the root of 2**height chunks of zeros."""
    if height == 0:
        return keccak256(bytes(CHUNK))
    return keccak256(zero_root(height - 1) * 2)


# --- trees -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SubmissionNode:
    """A subtree of 2**height chunks, as the flow contract takes it."""

    root: bytes
    height: int


@dataclass(frozen=True, slots=True)
class SegmentProof:
    """The way from a segment to the file's root."""

    lemma: tuple[bytes, ...]
    """Segment root, siblings from below, file root; for a single segment just the root."""
    path: tuple[bool, ...]
    """Per sibling, whether we are the left child."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MerkleTree:
    """What was learned about a file in one pass. Keeps 32 bytes per segment, and as many more once a proof is made."""

    size: int
    root: bytes
    nodes: tuple[SubmissionNode, ...]
    segment_roots: bytes = field(repr=False)
    """Of the segments with data, joined."""
    _levels: list[bytes] = field(default_factory=list, init=False, repr=False, compare=False)

    @property
    def root_hash(self) -> RootHash:
        """The root as `0x` and hex."""
        return RootHash("0x" + self.root.hex())

    @property
    def sectors(self) -> int:
        """How many chunks are paid for."""
        return padded_chunk_count(self.size)

    @property
    def segments(self) -> int:
        """How many segments are to be sent."""
        return segment_count(self.size)

    @property
    def identity(self) -> bytes:
        """What the flow contract calls the submission: its `identity` topic."""
        return keccak256(b"".join(node.root for node in self.nodes))

    def proof(self, index: int) -> SegmentProof:
        """Make the proof of a segment with data.

        Raises:
            ValueError: There is no such segment.
        """
        if not 0 <= index < self.segments:
            raise ValueError(f"no segment {index} in {self.size} bytes")
        if not self._levels:  # in one step: several threads may ask
            self._levels[:] = list(_levels(self.segment_roots + _padding_roots(self.size)))
        lemma, path = [_node(self._levels[0], index)], []
        for level in self._levels[:-1]:
            sibling = index ^ 1
            if sibling * DIGEST < len(level):
                lemma.append(_node(level, sibling))
                path.append(sibling > index)
            index //= 2
        return SegmentProof((*lemma, self.root) if path else (self.root,), tuple(path))


class MerkleHasher:
    """Computes a file's tree from its bytes, fed in pieces of any size.

    Whole segments can also be hashed elsewhere, several at once, with `segment_roots`, and added by `add_roots`.
    """

    def __init__(self, backend: KeccakBackend | None = None) -> None:
        """Begin a file; `backend` None takes the fastest."""
        self._backend = backend or best_backend()
        self._rest = bytearray()
        self._roots = bytearray()

    @property
    def size(self) -> int:
        """Bytes taken so far."""
        return len(self._roots) // DIGEST * SEGMENT + len(self._rest)

    def update(self, data: Data) -> None:
        """Feed more bytes."""
        view = memoryview(data).cast("B")
        if self._rest:
            taken = min(SEGMENT - len(self._rest), len(view))
            self._rest += view[:taken]
            view = view[taken:]
            if len(self._rest) == SEGMENT:
                self._roots += segment_roots(self._rest, self._backend)
                self._rest.clear()
        whole = len(view) // SEGMENT * SEGMENT
        for at in range(0, whole, BLOCK):
            self._roots += segment_roots(view[at : min(at + BLOCK, whole)], self._backend)
        self._rest += view[whole:]

    def add_roots(self, roots: bytes) -> None:
        """Take the roots of the next whole segments, hashed elsewhere.

        Raises:
            ValueError: The bytes fed so far don't end where a segment ends.
        """
        if self._rest or len(roots) % DIGEST:
            raise ValueError("roots can be added only between whole segments")
        self._roots += roots

    def tree(self) -> MerkleTree:
        """Return the tree of what was fed so far; feeding may go on.

        Raises:
            ValueError: Nothing was fed: an empty file can't be stored.
        """
        size = self.size
        roots, last = bytes(self._roots), b""
        if self._rest:
            last = _padded_hashes(self._rest, size, segment_count(size) - 1, self._backend)
            roots += _fold(last, self._backend)
        return _build(size, roots, last, self._backend)

    def digest(self) -> bytes:
        """Return the root of what was fed so far.

        Raises:
            ValueError: Nothing was fed.
        """
        return self.tree().root


def segment_roots(data: Data, backend: KeccakBackend | None = None) -> bytes:
    """Hash whole segments to their roots, joined. With the extension other threads run meanwhile.

    Raises:
        ValueError: Not whole segments.
    """
    return (backend or best_backend()).subtree_roots(data, CHUNK, SEGMENT_CHUNKS)


def segment_root(data: Data, *, size: int, index: int, backend: KeccakBackend | None = None) -> bytes:
    """Return the root of one segment of a file of `size` bytes.

    Args:
        data: Its bytes; the last segment's with or without the zeros that fill its last chunk.
        size: Of the whole file.
        index: Of the segment, from 0.
        backend: None takes the fastest.

    Raises:
        ValueError: There is no such segment, or `data` hasn't its length.
    """
    if segment_size(size, index) - len(data) not in _fills(size, index):
        raise ValueError(f"segment {index} of {size} bytes can't have {len(data)}")
    backend = backend or best_backend()
    return _fold(_padded_hashes(data, size, index, backend), backend)


def root_of_segments(roots: Data, *, size: int, backend: KeccakBackend | None = None) -> bytes:
    """Return the root of a file from the roots of all its segments with data, joined in order.

    Raises:
        ValueError: Too many or too few.
    """
    if len(roots) != segment_count(size) * DIGEST:
        raise ValueError(f"{size} bytes have {segment_count(size)} segments, there are {len(roots) // DIGEST} roots")
    return _fold(bytes(roots) + _padding_roots(size), backend or best_backend())


def root_of_nodes(nodes: Sequence[SubmissionNode]) -> bytes:
    """Return the root of a file from its submission nodes.

    Raises:
        ValueError: There are none.
    """
    if not nodes:
        raise ValueError("no nodes")
    root = nodes[-1].root
    for node in reversed(nodes[:-1]):
        root = keccak256(node.root + root)
    return root


def _build(size: int, roots: bytes, last: bytes, backend: KeccakBackend) -> MerkleTree:
    """Find root and nodes; `last` are the chunk hashes of a partial last segment."""
    starts: dict[int, list[int]] = {}
    heights = submission_heights(size)
    offset = 0
    for height in heights:
        starts.setdefault(height, []).append(offset >> height)
        offset += 1 << height
    found: dict[int, bytes] = {}
    _collect(found, starts, _levels(roots + _padding_roots(size), backend), _SEGMENT_HEIGHT)
    if heights[-1] < _SEGMENT_HEIGHT:
        first = segment_count(size) - 1
        low = {
            h: [at - (first << _SEGMENT_HEIGHT >> h) for at in ats] for h, ats in starts.items() if h < _SEGMENT_HEIGHT
        }
        _collect(found, low, _levels(last, backend), 0)
    nodes = tuple(SubmissionNode(found[height], height) for height in heights)
    return MerkleTree(size=size, root=root_of_nodes(nodes), nodes=nodes, segment_roots=roots)


def _collect(found: dict[int, bytes], starts: dict[int, list[int]], levels: Iterator[bytes], height: int) -> None:
    for level in levels:
        for at in starts.get(height, ()):
            found[height] = _node(level, at)
        height += 1


def _levels(level: bytes, backend: KeccakBackend | None = None) -> Iterator[bytes]:
    """Give a tree's levels, joined digests, from the given leaves to the root."""
    backend = backend or best_backend()
    yield level
    while len(level) > DIGEST:
        whole = len(level) // (2 * DIGEST) * (2 * DIGEST)
        level = backend.hash_blocks(memoryview(level)[:whole], 2 * DIGEST) + level[whole:]
        yield level


def _fold(leaves: bytes, backend: KeccakBackend) -> bytes:
    root = leaves
    for level in _levels(leaves, backend):
        root = level
    return root


def _node(level: bytes, index: int) -> bytes:
    return level[index * DIGEST : (index + 1) * DIGEST]


def _padding_roots(size: int) -> bytes:
    """Return the roots of the segments that are all padding."""
    return zero_root(_SEGMENT_HEIGHT) * (padded_segment_count(size) - segment_count(size))


def _padded_hashes(data: Data, size: int, index: int, backend: KeccakBackend) -> bytes:
    """Hash a segment's chunks, with its padding."""
    fill = -len(data) % CHUNK
    hashes = backend.hash_blocks(bytes(data) + bytes(fill) if fill else data, CHUNK)
    leaves = min(SEGMENT_CHUNKS, padded_chunk_count(size) - index * SEGMENT_CHUNKS)
    return hashes + zero_root(0) * (leaves - len(hashes) // DIGEST)


def _fills(size: int, index: int) -> tuple[int, ...]:
    """Return by how many bytes a segment's data may fall short of whole chunks: 0, or what the file leaves open."""
    return (0, -size % CHUNK) if index == segment_count(size) - 1 else (0,)


# --- checking --------------------------------------------------------------------------------------------------------


def check_segment(
    data: Data, proof: SegmentProof, *, root: bytes, size: int, index: int, backend: KeccakBackend | None = None
) -> None:
    """Check that a segment belongs to the file one asked for.

    Args:
        data: The segment as it came: whole chunks.
        proof: What came with it.
        root: The root asked for, never one that came with the segment.
        size: The file's size. Only the caller can know it: the root doesn't.
        index: The segment's, from 0.
        backend: None takes the fastest.

    Raises:
        BadProofError: It doesn't; also when `data` has the wrong length, or bytes behind the file's end aren't zero.
    """
    try:
        expected = segment_size(size, index)
    except ValueError:
        raise BadProofError("position") from None
    view = memoryview(data).cast("B")
    real = min(expected, size - index * SEGMENT)
    if len(view) != expected or any(view[real:]):
        raise BadProofError("content")
    own = segment_root(view, size=size, index=index, backend=backend)
    check_proof(proof, segment=own, root=root, size=size, index=index)


def check_proof(proof: SegmentProof, *, segment: bytes, root: bytes, size: int, index: int) -> None:
    """Check the way from a segment's root, computed by oneself, to the root asked for.

    The single root of a one-segment file is compared as well, and so is what the size says to be padding.

    Raises:
        BadProofError: It leads elsewhere.
    """
    lemma, path = proof.lemma, proof.path
    if len(lemma) != (len(path) + 2 if path else 1) or any(len(node) != DIGEST for node in lemma):
        raise BadProofError("format")
    if lemma[0] != segment:
        raise BadProofError("content")
    if lemma[-1] != root:
        raise BadProofError("root")
    _check_position(path, index, padded_segment_count(size))
    node = lemma[0]
    for sibling, left in zip(lemma[1:-1], path, strict=True):
        node = keccak256(node + sibling if left else sibling + node)
    if node != root:
        raise BadProofError("validation")
    _check_padding(proof, size)


def _check_position(path: Sequence[bool], index: int, count: int) -> None:
    position = 0
    for left in reversed(path):
        half = (1 << (count - 1).bit_length()) // 2
        if not left:
            position += half
        count = half if left else count - half
    if count != 1 or position != index:
        raise BadProofError("position")


def _check_padding(proof: SegmentProof, size: int) -> None:
    """Compare right siblings that lie wholly in the padding with trees of zeros."""
    real, count = segment_count(size), padded_segment_count(size)
    start = 0
    for sibling, left in zip(reversed(proof.lemma[1:-1]), reversed(proof.path), strict=True):
        half = (1 << (count - 1).bit_length()) // 2
        if left and start + half >= real and sibling != _zeros(count - half):
            raise BadProofError("padding")
        start, count = (start, half) if left else (start + half, count - half)


@functools.lru_cache(maxsize=64)
def _zeros(count: int) -> bytes:
    """Return the root of `count` segments of zeros."""
    return _fold(zero_root(_SEGMENT_HEIGHT) * count, best_backend())
