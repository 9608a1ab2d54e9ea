"""Proofs of single sectors in the flow's own tree (storage.md 6; `zgs_getSectorProof`)."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

from zg_async.devnet.storage_log import Entry
from zg_async.wire.hashing import hex0x, keccak256
from zg_async.wire.merkle import CHUNK, SEGMENT_CHUNKS, zero_root

DataOf = Callable[[Entry, int], bytes | None]
_HOLE = bytes(32)
"""Position 0 of the flow holds this leaf."""


class _Missing(Exception):  # noqa: N818  never leaves this module
    """A subtree needs data that isn't here."""


def sector_proof(entries: Sequence[Entry], sector: int, data_of: DataOf) -> dict[str, Any] | None:
    """Prove a sector in the flow's newest tree.

    Args:
        entries: All submissions, in order.
        sector: Its position in the flow.
        data_of: Reads a file's segment; None where it isn't here.

    Returns:
        `lemma` from the sector's hash to the flow root and `path` (true: we are the left child); None if the sector
        isn't known here.
    """
    tree = _Flow(entries, data_of)
    if not 0 <= sector < tree.length:
        return None
    height = (tree.length - 1).bit_length()
    try:
        lemma, path = [tree.node(0, sector)], []
        for level in range(height):
            at = sector >> level
            lemma.append(tree.node(level, at ^ 1))
            path.append(at % 2 == 0)
        if height:
            lemma.append(tree.node(height, 0))
    except _Missing:
        return None
    return {"lemma": [hex0x(node) for node in lemma], "path": path}


class _Flow:
    def __init__(self, entries: Sequence[Entry], data_of: DataOf) -> None:
        self._data_of = data_of
        self._known: dict[tuple[int, int], bytes] = {(0, 0): _HOLE}
        self._spans: list[tuple[int, int, Entry]] = []
        self.length = 1
        for entry in entries:
            position = entry.start
            for node in entry.nodes:
                position = -(-position // (1 << node.height)) << node.height
                self._known[node.height, position >> node.height] = node.root
                position += 1 << node.height
            self._spans.append((entry.start, position, entry))
            self.length = position

    def node(self, height: int, at: int) -> bytes:
        if (height, at) in self._known:
            return self._known[height, at]
        first, last = at << height, (at + 1) << height
        if first >= self.length or not self._touches(first, last):
            return zero_root(height)
        if height == 0:
            return self._sector(first)
        return keccak256(self.node(height - 1, 2 * at) + self.node(height - 1, 2 * at + 1))

    def _touches(self, first: int, last: int) -> bool:
        return first == 0 or any(start < last and first < end for start, end, _ in self._spans)

    def _sector(self, position: int) -> bytes:
        entry = next((e for start, end, e in self._spans if start <= position < end), None)
        if entry is None:
            return zero_root(0)
        chunk = position - entry.start
        if chunk >= entry.chunks:
            return zero_root(0)
        data = self._segment(entry, chunk // SEGMENT_CHUNKS)
        offset = chunk % SEGMENT_CHUNKS * CHUNK
        return keccak256(data[offset : offset + CHUNK])

    @functools.lru_cache(maxsize=2)  # noqa: B019  the object lives for one call
    def _segment(self, entry: Entry, index: int) -> bytes:
        data = self._data_of(entry, index)
        if data is None:
            raise _Missing
        return data
