"""secp256k1 for the devnet's own keys and its chain, several times as fast as eth_keys does it in Python.

A devnet signs for all its providers and finds the sender of each transaction; most of its time went there. Multiples
of the generator come from a table, and a signer's key is found with one pass over both of its factors. Not for keys
that guard money: nothing here takes care that a secret doesn't show in how long something takes.
"""

import functools
import os
from collections.abc import Iterable, Sequence
from typing import Final

from eth_keys.backends.coincurve import is_coincurve_available
from eth_keys.backends.native.ecdsa import deterministic_generate_k, encode_raw_public_key
from eth_keys.backends.native.main import NativeECCBackend
from eth_keys.constants import SECPK1_N as N
from eth_keys.constants import SECPK1_P as P
from eth_keys.constants import SECPK1_Gx as GX
from eth_keys.constants import SECPK1_Gy as GY
from eth_keys.datatypes import PrivateKey, PublicKey, Signature
from eth_keys.exceptions import BadSignature

Point = tuple[int, int]
_Jacobian = tuple[int, int, int]
_NOTHING: Final = (1, 1, 0)
_BITS: Final = 4


def use() -> None:
    """Let eth_keys work with this in this process, unless it has something better or was told otherwise."""
    if not is_coincurve_available():
        os.environ.setdefault("ECC_BACKEND_CLASS", f"{__name__}.{QuickBackend.__name__}")


class QuickBackend(NativeECCBackend):
    """What eth_keys does itself, with the same results."""

    def ecdsa_sign(self, msg_hash: bytes, private_key: PrivateKey) -> Signature:
        """Sign 32 bytes, deterministically (RFC 6979)."""
        secret, z = private_key.to_bytes(), int.from_bytes(msg_hash, "big")
        nonce = deterministic_generate_k((z % N).to_bytes(32, "big"), secret)
        r, y = times_generator(nonce)
        s = pow(nonce, -1, N) * (z + r * int.from_bytes(secret, "big")) % N
        low = s * 2 < N
        return Signature(vrs=((y & 1) ^ (not low), r, s if low else N - s), backend=self)

    def ecdsa_recover(self, msg_hash: bytes, signature: Signature) -> PublicKey:
        """Find whose signature it is.

        Raises:
            BadSignature: Nobody's.
        """
        v, r, s = signature.vrs
        square = (r * r * r + 7) % P
        y = pow(square, (P + 1) // 4, P)
        if v not in (0, 1) or y * y % P != square or not (r % N) or not (s % N):
            raise BadSignature("Invalid signature")
        if y & 1 != v:
            y = P - y
        inverse = pow(r, -1, N)
        found = both(-int.from_bytes(msg_hash, "big") * inverse % N, (r, y), s * inverse % N)
        if found is None:
            raise BadSignature("Invalid signature")
        return PublicKey(encode_raw_public_key(found), backend=self)

    def private_key_to_public_key(self, private_key: PrivateKey) -> PublicKey:
        """Return a key's public side."""
        return PublicKey(encode_raw_public_key(times_generator(int(private_key))), backend=self)


def times_generator(factor: int) -> Point:
    """Multiply the generator.

    Raises:
        ValueError: By a multiple of the group's order.
    """
    found = _affine(_with_generator(_NOTHING, factor % N))
    if found is None:
        raise ValueError("no point")
    return found


def both(first: int, point: Point, second: int) -> Point | None:
    """Return generator x first + point x second; None: nothing."""
    multiples = _odd_multiples(point)
    total: _Jacobian = _NOTHING
    for digit in _digits(second):
        total = _double(total)
        if digit:
            x, y = multiples[abs(digit) >> 1]
            total = _add(total, x, y if digit > 0 else P - y)
    return _affine(_with_generator(total, first))


def _with_generator(total: _Jacobian, factor: int) -> _Jacobian:
    for row in _table():
        if digit := factor & (2**_BITS - 1):
            total = _add(total, *row[digit - 1])
        factor >>= _BITS
    return total


@functools.cache
def _table() -> Sequence[Sequence[Point]]:
    """Return the generator's multiples by each digit at each of its places."""
    rows: list[list[_Jacobian]] = []
    start: Point = (GX, GY)
    for _ in range(256 // _BITS):
        row: list[_Jacobian] = [(*start, 1)]
        while len(row) < 2**_BITS:
            row.append(_add(row[-1], *start))
        rows.append(row[:-1])
        [start] = _all_affine([row[-1]])
    return [_all_affine(row) for row in rows]


def _odd_multiples(point: Point) -> list[Point]:
    """Return a point times 1, 3, 5, 7, 9, 11, 13, 15."""
    [twice] = _all_affine([_double((*point, 1))])
    found: list[_Jacobian] = [(*point, 1)]
    while len(found) < 8:
        found.append(_add(found[-1], *twice))
    return _all_affine(found)


def _digits(factor: int) -> Iterable[int]:
    """Write a factor with digits 0 and odd ones up to 15, few of which aren't 0; the highest first."""
    digits = []
    while factor:
        digit = 0
        if factor & 1:
            digit = factor & 31
            digit -= 32 if digit > 15 else 0
            factor -= digit
        digits.append(digit)
        factor >>= 1
    return reversed(digits)


def _double(point: _Jacobian) -> _Jacobian:
    x, y, z = point
    if not z:
        return point
    square = y * y % P
    a, b = 4 * x * square % P, 3 * x * x % P
    new = (b * b - 2 * a) % P
    return new, (b * (a - new) - 8 * square * square) % P, 2 * y * z % P


def _add(point: _Jacobian, x2: int, y2: int) -> _Jacobian:
    x, y, z = point
    if not z:
        return x2, y2, 1
    square = z * z % P
    across, up = (x2 * square - x) % P, (y2 * square * z - y) % P
    if not across:
        return _NOTHING if up else _double(point)
    two = across * across % P
    three, part = across * two % P, x * two % P
    new = (up * up - three - 2 * part) % P
    return new, (up * (part - new) - y * three) % P, across * z % P


def _affine(point: _Jacobian) -> Point | None:
    return _all_affine([point])[0] if point[2] else None


def _all_affine(points: Sequence[_Jacobian]) -> list[Point]:
    """Bring points, none of them nothing, into plain coordinates, with one inversion for all."""
    products = [1]
    for _, _, z in points:
        products.append(products[-1] * z % P)
    inverse, found = pow(products[-1], -1, P), list[Point]()
    for (x, y, z), before in zip(reversed(points), reversed(products[:-1]), strict=True):
        one = inverse * before % P
        inverse = inverse * z % P
        found.append((x * one * one % P, y * one * one * one % P))
    return found[::-1]
