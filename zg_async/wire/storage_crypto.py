"""0G Storage's client-side encryption: a header and AES-256-CTR. What is hashed and stored is header and ciphertext.

Version 1 has the caller's key; version 2 derives it for the holder of a secp256k1 key. Nothing authenticates the
text but the storage root, and a wrong key can't be told from a right one: it gives noise. Any plain file can begin
like a header, so nothing is ever decrypted unasked.

Of a file in fragments only the first has the header; the key stream goes on through the others.
Source: 0g-storage-client core/encryption.go; equal in 0g-ts-sdk 1.2.8.
"""

import hashlib
import hmac
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from Crypto.Cipher import AES
from eth_keys.backends.native.jacobian import fast_multiply
from eth_keys.constants import SECPK1_N, SECPK1_P
from eth_keys.datatypes import PrivateKey

from zg_async.errors import EnvelopeError

NONCE_SIZE: Final = 16
HEADER_SIZE: Final = {1: 1 + NONCE_SIZE, 2: 1 + 33 + NONCE_SIZE}
"""Bytes before the ciphertext, by version."""
_HKDF_INFO: Final = b"0g-storage-client/ecies/v1/aes-256"
_BAD_HEADER: Final = "the stored file's encryption header can't be opened: cut, damaged, or of another version"


@dataclass(frozen=True, slots=True)
class StorageCipher:
    """The key stream of one stored file, from any offset. Make it with `seal_with_key`, `seal_for` or `open_header`."""

    header: bytes
    """What stands before the ciphertext."""
    _key: bytes = field(repr=False)
    _nonce: bytes = field(repr=False)

    @property
    def header_size(self) -> int:
        """Bytes of the header."""
        return len(self.header)

    def apply(self, offset: int, data: bytes | bytearray | memoryview) -> bytes:
        """Encrypt or decrypt (it is the same) the plaintext's bytes from `offset`; the header doesn't count."""
        blocks, skip = divmod(offset, 16)
        cipher = self._stream(blocks)
        if skip:
            cipher(bytes(skip))
        return cipher(data)

    def stored(self, offset: int, data: bytes | bytearray | memoryview) -> bytes:
        """Encrypt plaintext from `offset`; the header comes first when that is 0."""
        text = self.apply(offset, data)
        return self.header + text if offset == 0 else text

    def _stream(self, block: int) -> Callable[[bytes | bytearray | memoryview], bytes]:
        counter = (int.from_bytes(self._nonce, "big") + block) % 2**128
        return AES.new(self._key, AES.MODE_CTR, nonce=b"", initial_value=counter.to_bytes(16, "big")).encrypt


def seal_with_key(key: bytes, *, nonce: bytes | None = None) -> StorageCipher:
    """Begin a file under a key of one's own (version 1).

    Args:
        key: 32 bytes.
        nonce: 16 bytes; None takes random ones. Never give the same twice with one key.

    Raises:
        ValueError: A wrong length.
    """
    nonce = nonce or secrets.token_bytes(NONCE_SIZE)
    _check_lengths(key, nonce)
    return StorageCipher(b"\x01" + nonce, key, nonce)


def seal_for(public_key: bytes, *, ephemeral_key: bytes | None = None, nonce: bytes | None = None) -> StorageCipher:
    """Begin a file for the holder of a key (version 2).

    Args:
        public_key: 33 bytes, or 65.
        ephemeral_key: 32 bytes; None takes random ones. Never give the same twice.
        nonce: 16 bytes; None takes random ones.

    Raises:
        EnvelopeError: `public_key` is no point of the curve.
        ValueError: `nonce` or `ephemeral_key` can't be one.
    """
    ephemeral_key = ephemeral_key or (secrets.randbelow(SECPK1_N - 1) + 1).to_bytes(32, "big")
    nonce = nonce or secrets.token_bytes(NONCE_SIZE)
    key = _derive(_point(public_key), ephemeral_key)
    _check_lengths(key, nonce)
    ephemeral = PrivateKey(ephemeral_key).public_key.to_compressed_bytes()
    return StorageCipher(b"\x02" + ephemeral + nonce, key, nonce)


def open_header(data: bytes, *, key: bytes | None = None, private_key: bytes | None = None) -> StorageCipher:
    """Read the header at the beginning of a stored file.

    Args:
        data: At least the header: 50 bytes always suffice.
        key: For version 1.
        private_key: For version 2, 32 bytes.

    Returns:
        The cipher; the ciphertext begins at its `header_size`.

    Raises:
        EnvelopeError: No header, cut, off the curve, or of the version whose key isn't given. A wrong key isn't seen.
        ValueError: A key has the wrong length.
    """
    version = data[0] if data else 0
    size = HEADER_SIZE.get(version, 0)
    if not size or len(data) < size or (key if version == 1 else private_key) is None:
        raise EnvelopeError(_BAD_HEADER)
    header, nonce = bytes(data[:size]), bytes(data[size - NONCE_SIZE : size])
    if version == 2:
        key = _derive(_point(header[1:34]), private_key or b"")
    _check_lengths(key or b"", nonce)
    return StorageCipher(header, key or b"", nonce)


class StorageDecryptor:
    """Decrypts a stored file from its start, fed in pieces of any size.

    Nothing here notices damage: check the stored bytes against their root before the text is used.
    """

    def __init__(self, *, key: bytes | None = None, private_key: bytes | None = None) -> None:
        """Begin a file; see `open_header` for the keys."""
        self._key, self._private_key = key, private_key
        self._head = b""
        self._cipher: StorageCipher | None = None
        self._done = 0

    def update(self, data: bytes | bytearray | memoryview) -> bytes:
        """Decrypt more; empty until the header is complete.

        Raises:
            EnvelopeError: The header can't be opened.
        """
        if self._cipher is None:
            self._head += bytes(data)
            if len(self._head) < HEADER_SIZE.get(self._head[0] if self._head else 1, 1):
                return b""
            self._cipher = open_header(self._head, key=self._key, private_key=self._private_key)
            data, self._head = self._head[self._cipher.header_size :], b""
        plain = self._cipher.apply(self._done, data)
        self._done += len(plain)
        return plain

    def finish(self) -> None:
        """Make sure that there was a header.

        Raises:
            EnvelopeError: The file ended within it.
        """
        if self._cipher is None:
            raise EnvelopeError(_BAD_HEADER)


def _check_lengths(key: bytes, nonce: bytes) -> None:
    if len(key) != 32 or len(nonce) != NONCE_SIZE:
        raise ValueError("a storage key has 32 bytes, its nonce 16")


def _derive(point: tuple[int, int], private_key: bytes) -> bytes:
    """HKDF-SHA256, without salt, of the shared point's x."""
    scalar = int.from_bytes(private_key, "big")
    if len(private_key) != 32 or not 0 < scalar < SECPK1_N:
        raise ValueError("not a private key")
    x, _ = fast_multiply(point, scalar)
    extracted = hmac.digest(b"\0" * 32, x.to_bytes(32, "big"), hashlib.sha256)
    return hmac.digest(extracted, _HKDF_INFO + b"\x01", hashlib.sha256)


def _point(encoded: bytes) -> tuple[int, int]:
    """Read a point, compressed or not."""
    kind, x = encoded[:1], int.from_bytes(encoded[1:33], "big")
    square = (x * x * x + 7) % SECPK1_P
    y = pow(square, (SECPK1_P + 1) // 4, SECPK1_P)
    if kind == b"\x04" and len(encoded) == 65:
        y = int.from_bytes(encoded[33:], "big")
    elif kind in (b"\x02", b"\x03") and len(encoded) == 33:
        y = y if y % 2 == kind[0] % 2 else SECPK1_P - y
    else:
        raise EnvelopeError(_BAD_HEADER)
    if x >= SECPK1_P or y >= SECPK1_P or y * y % SECPK1_P != square:
        raise EnvelopeError(_BAD_HEADER)
    return x, y
