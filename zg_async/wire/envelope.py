"""How a trained model and its key travel: ECIES key wrapping and the encrypted model file.

Key: ECIES over secp256k1 with HKDF-SHA256 and AES-256-GCM with a 16-byte nonce, as ecies/go v2 does it; laid out
as ephemeral key (65), nonce (16), tag (16), ciphertext.

File: signature (65), first nonce (12), then chunks of ciphertext and tag (16), 64 MiB of plaintext each, the nonce
counting up. The signature is the TEE signer's over the keccak of all tags; nothing else in the file says how many
chunks there are, so the plaintext counts for nothing before `finish` has returned.
Source: 0g-serving-broker api/common/util/crypto.
"""

import functools
import hashlib
import hmac
import secrets
from collections.abc import Callable, Iterable
from typing import Final

from Crypto.Cipher import AES
from eth_keys.backends.coincurve import CoinCurveECCBackend
from eth_keys.backends.native.jacobian import fast_multiply
from eth_keys.constants import SECPK1_N, SECPK1_P
from eth_keys.datatypes import PrivateKey
from eth_keys.main import KeyAPI

from zg_async.errors import EnvelopeError, SignatureMismatchError
from zg_async.wire.hashing import Keccak256
from zg_async.wire.records import Address
from zg_async.wire.signing import recover_address

MODEL_CHUNK: Final = 64 * 1024 * 1024
"""Plaintext bytes per chunk."""
HEADER_SIZE: Final = 77
"""Signature and first nonce."""
SIGNATURE_SIZE: Final = 65
TAG_SIZE: Final = 16
WRAPPED_KEY_SIZE: Final = 129
_ECIES_OVERHEAD: Final = 97
_BAD_KEY: Final = "the wrapped key can't be opened: cut, damaged, or for another wallet"
_BAD_FILE: Final = "the model file can't be opened: cut, padded, damaged, or not for this key"

_Piece = bytes | bytearray | memoryview
_Update = Callable[[_Piece], bytes]


# --- AES-GCM: `cryptography` when installed (several times faster), else pycryptodome ---------------------------------


def _sealer(key: bytes, nonce: bytes) -> tuple[_Update, Callable[[], bytes]]:
    """Return how to encrypt a piece and how to get the tag at the end."""
    if _has_cryptography():
        from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

        context = Cipher(algorithms.AES(key), modes.GCM(nonce)).encryptor()

        def tag() -> bytes:
            context.finalize()
            return context.tag

        return context.update, tag
    aes = AES.new(key, AES.MODE_GCM, nonce=nonce, mac_len=TAG_SIZE)
    return aes.encrypt, aes.digest


def _opener(key: bytes, nonce: bytes) -> tuple[_Update, Callable[[bytes], bool]]:
    """Return how to decrypt a piece and how to check the tag at the end."""
    if _has_cryptography():
        from cryptography.exceptions import InvalidTag
        from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

        context = Cipher(algorithms.AES(key), modes.GCM(nonce)).decryptor()

        def check(tag: bytes) -> bool:
            try:
                context.finalize_with_tag(tag)
            except (InvalidTag, ValueError):
                return False
            return True

        return context.update, check
    aes = AES.new(key, AES.MODE_GCM, nonce=nonce, mac_len=TAG_SIZE)

    def verify(tag: bytes) -> bool:
        try:
            aes.verify(tag)
        except ValueError:
            return False
        return True

    return aes.decrypt, verify


@functools.cache
def _has_cryptography() -> bool:
    try:
        from cryptography.hazmat.primitives.ciphers import Cipher  # noqa: F401
    except ImportError:
        return False
    return True


# --- key wrapping ----------------------------------------------------------------------------------------------------


def public_key(private_key: bytes) -> bytes:
    """Return the 65-byte public key (4, x, y) of a 32-byte private key.

    Raises:
        ValueError: It is no private key; the message doesn't show it.
    """
    _scalar(private_key)
    return b"\x04" + PrivateKey(private_key).public_key.to_bytes()


def ecies_encrypt(
    public_key: bytes, plaintext: bytes, *, ephemeral_key: bytes | None = None, nonce: bytes | None = None
) -> bytes:
    """Encrypt for a public key.

    Args:
        public_key: 65 bytes.
        plaintext: Anything, usually a 32-byte file key.
        ephemeral_key: 32 bytes; None takes random ones. Never give the same twice.
        nonce: 16 bytes; None takes random ones.

    Returns:
        The plaintext's length plus 97 bytes.

    Raises:
        EnvelopeError: `public_key` is no point of the curve.
    """
    ephemeral_key = ephemeral_key or _random_key()
    nonce = nonce or secrets.token_bytes(16)
    ephemeral = b"\x04" + PrivateKey(ephemeral_key).public_key.to_bytes()
    update, tag = _sealer(_shared_key(ephemeral, public_key, ephemeral_key), nonce)
    ciphertext = update(plaintext)
    return ephemeral + nonce + tag() + ciphertext


def ecies_decrypt(private_key: bytes, blob: bytes) -> bytes:
    """Decrypt what was encrypted for `private_key`.

    Raises:
        EnvelopeError: Too short, a point off the curve, damaged, or for another key; all alike.
        ValueError: `private_key` is none; the message doesn't show it.
    """
    _scalar(private_key)
    if len(blob) <= _ECIES_OVERHEAD:
        raise EnvelopeError(_BAD_KEY)
    ephemeral, nonce, tag, ciphertext = blob[:65], blob[65:81], blob[81:97], blob[97:]
    update, check = _opener(_shared_key(ephemeral, ephemeral, private_key), nonce)
    plaintext = update(ciphertext)
    if not check(tag):
        raise EnvelopeError(_BAD_KEY)
    return plaintext


def unwrap_key(private_key: bytes, blob: bytes) -> bytes:
    """Open a deliverable's `encrypted_secret`: 129 bytes hold a 32-byte key.

    Raises:
        EnvelopeError: Any other length, damaged, or for another wallet.
    """
    if len(blob) != WRAPPED_KEY_SIZE:
        raise EnvelopeError(_BAD_KEY)
    return ecies_decrypt(private_key, blob)


def _random_key() -> bytes:
    return (secrets.randbelow(SECPK1_N - 1) + 1).to_bytes(32, "big")


def _scalar(private_key: bytes) -> int:
    number = int.from_bytes(private_key, "big")
    if len(private_key) != 32 or not 0 < number < SECPK1_N:
        raise ValueError("not a private key")
    return number


def _shared_key(ephemeral: bytes, point: bytes, private_key: bytes) -> bytes:
    """HKDF-SHA256, without salt and info, over ephemeral key and shared point, both uncompressed."""
    master = ephemeral + _multiplied(point, private_key)
    extracted = hmac.digest(b"\0" * 32, master, hashlib.sha256)
    return hmac.digest(extracted, b"\x01", hashlib.sha256)


def _multiplied(encoded: bytes, private_key: bytes) -> bytes:
    """Multiply a point: with coincurve where signing uses it (a hundred times faster), else in pure Python."""
    point, scalar = _point(encoded), _scalar(private_key)
    if _has_coincurve():
        from coincurve import PublicKey  # pyright: ignore[reportMissingImports]  # an extra

        return bytes(PublicKey(encoded).multiply(private_key).format(compressed=False))
    x, y = fast_multiply(point, scalar)
    return b"\x04" + x.to_bytes(32, "big") + y.to_bytes(32, "big")


@functools.cache
def _has_coincurve() -> bool:
    return isinstance(KeyAPI().backend, CoinCurveECCBackend)


def _point(encoded: bytes) -> tuple[int, int]:
    x, y = int.from_bytes(encoded[1:33], "big"), int.from_bytes(encoded[33:], "big")
    on_curve = x < SECPK1_P and y < SECPK1_P and (y * y - x * x * x - 7) % SECPK1_P == 0
    if len(encoded) != 65 or encoded[0] != 4 or not on_curve:
        raise EnvelopeError(_BAD_KEY)
    return x, y


# --- model file ------------------------------------------------------------------------------------------------------


def encrypted_size(plain_size: int, *, chunk: int = MODEL_CHUNK) -> int:
    """Return how long the file of a plaintext of that many bytes is."""
    return HEADER_SIZE + plain_size + TAG_SIZE * -(-plain_size // chunk)


def plain_size(encrypted_size: int, *, chunk: int = MODEL_CHUNK) -> int:
    """Return how long the plaintext of a file of that many bytes is.

    Raises:
        EnvelopeError: No file has this length.
    """
    body = encrypted_size - HEADER_SIZE
    whole, rest = divmod(body, chunk + TAG_SIZE)
    if body <= TAG_SIZE or 0 < rest <= TAG_SIZE:
        raise EnvelopeError(_BAD_FILE)
    return whole * chunk + (rest - TAG_SIZE if rest else 0)


def _nonce(first: bytes, index: int) -> bytes:
    return ((int.from_bytes(first, "big") + index) % 2**96).to_bytes(12, "big")


class ModelEncryptor:
    """Encrypts a model as providers do, in pieces of any size.

    The signature stands first but is known last: the first piece holds 65 zero bytes in its place, and `finish`
    leaves the real ones in `signature`, to be written over them.
    """

    def __init__(self, key: bytes, nonce: bytes, signer: Callable[[bytes], bytes], *, chunk: int = MODEL_CHUNK) -> None:
        """Begin a file.

        Args:
            key: 32 bytes, never used for another file.
            nonce: The first nonce, 12 bytes.
            signer: Signs a final 32-byte digest with the TEE key: 65 bytes.
            chunk: Plaintext bytes per chunk; other than the default only for tests.
        """
        self._key, self._first, self._signer, self._chunk = key, nonce, signer, chunk
        self._tags = Keccak256()
        self._index = 0
        self._done = 0  # plaintext bytes of the open chunk
        self._seal, self._tag = _sealer(key, _nonce(nonce, 0))
        self._pieces: list[bytes] = [bytes(SIGNATURE_SIZE) + nonce]
        self.signature = b""

    def update(self, data: _Piece) -> list[bytes]:
        """Encrypt more plaintext; returns pieces to write behind each other."""
        view = memoryview(data)
        while view:
            if self._done == self._chunk:
                self._close_chunk()
                self._seal, self._tag = _sealer(self._key, _nonce(self._first, self._index))
            part = view[: self._chunk - self._done]
            self._pieces.append(self._seal(part))
            self._done += len(part)
            view = view[len(part) :]
        return self._take()

    def finish(self) -> list[bytes]:
        """Close the file; returns its last pieces and sets `signature`.

        Raises:
            ValueError: There was no plaintext.
        """
        if not self._done:
            raise ValueError("an empty model can't be encrypted")
        self._close_chunk()
        signature = self._signer(self._tags.digest())
        self.signature = signature[:64] + bytes((signature[64] % 27,))
        return self._take()

    def _close_chunk(self) -> None:
        tag = self._tag()
        self._tags.update(tag)
        self._pieces.append(tag)
        self._index += 1
        self._done = 0

    def _take(self) -> list[bytes]:
        pieces, self._pieces = self._pieces, []
        return pieces


class ModelDecryptor:
    """Decrypts a model file in pieces of any size, with little memory.

    What `update` returns is unproven: write it to a temporary file, and keep that only after `finish` returned.
    """

    def __init__(self, key: bytes, *, expected_signer: Address | str, chunk: int = MODEL_CHUNK) -> None:
        """Begin a file.

        Args:
            key: 32 bytes.
            expected_signer: The TEE signer the chain named when the model was delivered.
            chunk: Plaintext bytes per chunk; other than the default only for tests.
        """
        if len(key) != 32:
            raise EnvelopeError(_BAD_FILE)
        self._key, self._signer, self._chunk = key, expected_signer, chunk
        self._tags = Keccak256()
        self._header = b""
        self._held = b""  # maybe the chunk's tag, which stands behind it
        self._index = 0
        self._done = 0
        self._open: _Update | None = None
        self._check: Callable[[bytes], bool] | None = None

    def update(self, data: _Piece) -> list[bytes]:
        """Decrypt more of the file; returns plaintext pieces, unproven.

        Raises:
            EnvelopeError: A chunk's tag is wrong.
        """
        view = memoryview(self._held + bytes(data))
        if not self._header:
            if len(view) < HEADER_SIZE:
                self._held = bytes(view)
                return []
            self._header, view = bytes(view[:HEADER_SIZE]), view[HEADER_SIZE:]
        pieces = []
        while True:
            room = self._chunk - self._done
            if room == 0 and len(view) >= TAG_SIZE:
                self._close_chunk(bytes(view[:TAG_SIZE]))
                view = view[TAG_SIZE:]
                continue
            size = min(room, len(view) - TAG_SIZE)
            if size <= 0:
                break
            pieces.append(self._decrypt(view[:size]))
            view = view[size:]
        self._held = bytes(view)
        return pieces

    def _decrypt(self, part: memoryview) -> bytes:
        if self._open is None:
            self._open, self._check = _opener(self._key, _nonce(self._header[SIGNATURE_SIZE:], self._index))
        self._done += len(part)
        return self._open(part)

    def _close_chunk(self, tag: bytes) -> None:
        if self._check is None or not self._check(tag):
            raise EnvelopeError(_BAD_FILE)
        self._tags.update(tag)
        self._index += 1
        self._done = 0
        self._open = self._check = None

    def finish(self) -> None:
        """Check the end and the signature. Only now the plaintext is what the signer made.

        Raises:
            EnvelopeError: The file is cut or has extra bytes.
            SignatureMismatchError: The tags aren't signed by the expected signer.
        """
        if self._done:
            self._close_chunk(self._held)
            self._held = b""
        if not self._index or self._held:
            raise EnvelopeError(_BAD_FILE)
        signer = recover_address(self._tags.digest(), self._header[:SIGNATURE_SIZE])
        if signer.lower() != self._signer.lower():
            raise SignatureMismatchError(
                f"the model is signed by {signer}, expected was {self._signer}",
                hint="The provider's TEE signer may have changed since the delivery.",
            )


def encrypt_model(
    key: bytes, nonce: bytes, plaintext: bytes, signer: Callable[[bytes], bytes], *, chunk: int = MODEL_CHUNK
) -> bytes:
    """Encrypt a model that fits in memory; see `ModelEncryptor`."""
    encryptor = ModelEncryptor(key, nonce, signer, chunk=chunk)
    body = b"".join((*encryptor.update(plaintext), *encryptor.finish()))
    return encryptor.signature + body[SIGNATURE_SIZE:]


def decrypt_model(
    key: bytes, pieces: Iterable[_Piece], *, expected_signer: Address | str, chunk: int = MODEL_CHUNK
) -> bytes:
    """Decrypt a model that fits in memory.

    Raises:
        EnvelopeError: Cut, padded, damaged, or another key.
        SignatureMismatchError: Another signer.
    """
    decryptor = ModelDecryptor(key, expected_signer=expected_signer, chunk=chunk)
    plaintext = b"".join(part for piece in pieces for part in decryptor.update(piece))
    decryptor.finish()
    return plaintext
