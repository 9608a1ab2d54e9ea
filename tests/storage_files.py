"""The contents the storage vectors are made of."""

import functools


@functools.lru_cache(maxsize=8)
def content(pattern: str, size: int) -> bytes:
    """Bytes of the vectors' `patterns`."""
    if pattern == "zero":
        return bytes(size)
    if pattern == "p1":
        return (bytes((31 * i + 7) % 256 for i in range(256)) * (size // 256 + 1))[:size]
    low = bytes((31 * i + 7) % 256 for i in range(256))
    shifted = [bytes((b + add) % 256 for b in low) for add in range(256)]
    blocks = (shifted[(17 * i + 113 * (i >> 8) + 59 * (i >> 16)) % 256] for i in range(size // 256 + 1))
    return b"".join(blocks)[:size]
