"""The contents the storage vectors are made of."""

import functools


def content(pattern: str, size: int) -> bytes:
    """Bytes of the vectors' `patterns`; a shorter one is the beginning of a longer one."""
    return _content(pattern, 1 << max(size - 1, 1).bit_length())[:size]


@functools.lru_cache(maxsize=4)
def _content(pattern: str, size: int) -> bytes:
    low = bytes((31 * i + 7) % 256 for i in range(256))
    if pattern == "zero":
        return bytes(size)
    if pattern == "p1":
        return (low * (size // 256 + 1))[:size]
    shifted = [bytes((b + add) % 256 for b in low) for add in range(256)]
    blocks = (shifted[(17 * i + 113 * (i >> 8) + 59 * (i >> 16)) % 256] for i in range(size // 256 + 1))
    return b"".join(blocks)[:size]
