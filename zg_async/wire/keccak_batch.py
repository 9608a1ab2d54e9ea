"""Keccak-256 over many blocks at once, by the fastest means installed; all give the same bytes.

Best first: this package's own C extension (vector lanes, and the GIL is let go, so that threads run side by side),
tiny-keccak, pycryptodome.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from zg_async.wire.hashing import keccak256

Data = bytes | bytearray | memoryview
"""Contiguous bytes."""
DIGEST: Final = 32


@dataclass(frozen=True, slots=True)
class KeccakBackend:
    """A way to hash blocks."""

    name: str
    """`native-<instructions>`, `tiny-keccak` or `pycryptodome`."""
    hash_blocks: Callable[[Data, int], bytes]
    """(data, size): digests of all blocks of `size` (64, 128, 192 or 256) bytes, joined. ValueError: not whole ones."""
    subtree_roots: Callable[[Data, int, int], bytes]
    """(data, size, leaves): roots of all trees of `leaves` (a power of two) blocks of `size` bytes, joined."""
    parallel: bool
    """Whether threads hash side by side."""


@functools.cache
def backends() -> tuple[KeccakBackend, ...]:
    """Return what is usable here, best first. The last one always is."""
    return (*_native(), *_tiny(), _looped("pycryptodome", keccak256))


def best_backend() -> KeccakBackend:
    """Return the fastest way to hash here."""
    return backends()[0]


def _native() -> list[KeccakBackend]:
    try:
        from zg_async.wire import _keccak
    except ImportError:
        return []

    def variant(index: int, name: str) -> KeccakBackend:
        return KeccakBackend(
            f"native-{name}",
            lambda data, size: _keccak.hash_blocks(data, size, index),
            lambda data, size, leaves: _keccak.subtree_roots(data, size, leaves, index),
            parallel=True,
        )

    return [variant(index, name) for index, name in enumerate(_keccak.VARIANTS)]


def _tiny() -> list[KeccakBackend]:
    try:
        from tiny_keccak import keccak256 as tiny
    except ImportError:
        return []
    return [_looped("tiny-keccak", tiny)]


def _looped(name: str, hash_one: Callable[[bytes], bytes]) -> KeccakBackend:
    def hash_blocks(data: Data, size: int) -> bytes:
        data = bytes(data)
        if not 64 <= size <= 256 or size % 64 or len(data) % size:
            raise ValueError("not whole blocks of 64, 128, 192 or 256 bytes")
        return b"".join([hash_one(data[at : at + size]) for at in range(0, len(data), size)])

    def subtree_roots(data: Data, size: int, leaves: int) -> bytes:
        if leaves < 1 or leaves & (leaves - 1) or size < 1 or len(data) % (size * leaves):
            raise ValueError("not whole trees of a power of two of blocks")
        level = hash_blocks(data, size)
        while leaves > 1:
            level, leaves = hash_blocks(level, 2 * DIGEST), leaves // 2
        return level

    return KeccakBackend(name, hash_blocks, subtree_roots, parallel=False)
