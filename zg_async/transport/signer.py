"""Who signs. The key lives in one object, behind a guard, and comes out of it in no way but signatures.

A signer signs two kinds of things: transactions that its guard knows, and personal messages, which it wraps itself
(EIP-191). There is no way to have a bare digest signed, so no message can be a transaction that the guard never saw.

`Signer` is all that paying and authenticating need. `DecryptionKey` is apart from it: opening a delivered model takes
ECIES with the private key itself, which a signer that never exports its key can't do (`decryption_key` says so before
anything is paid). What Python allows is promised and no more: our own buffer is overwritten on close; copies made by
the libraries we call are not ours to wipe.
"""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NoReturn, Protocol, TypeVar, runtime_checkable

from zg_async.errors import BadKeyError, ClosedError, ConfigError, RefusedToSignError
from zg_async.text import hidden
from zg_async.transport.guard import Guard
from zg_async.transport.keystore import encode_keystore, read_keystore
from zg_async.transport.transaction import SignedTransaction, Transaction, join_signature, signing_hash
from zg_async.wire.hashing import keccak256
from zg_async.wire.records import Address
from zg_async.wire.signing import personal_hash, recover_address, sign_digest

T = TypeVar("T")
_PROBE: Final = keccak256(b"zg_async address probe")


@runtime_checkable
class Signer(Protocol):
    """Signs for one address."""

    @property
    def address(self) -> Address:
        """The wallet's checksummed address."""
        ...

    async def sign_personal(self, message: bytes) -> bytes:
        """Sign an Ethereum personal message, wrapping it; return 65 bytes r, s, v with v 27 or 28."""
        ...

    async def sign_transaction(self, transaction: Transaction) -> SignedTransaction:
        """Sign a type 2 transaction, or raise `RefusedToSignError`."""
        ...


@runtime_checkable
class Guarded(Protocol):
    """A signer that has a guard of its own and gets it from the broker."""

    def arm(self, guard: Guard) -> None:
        """Set what may be signed, once."""
        ...


class GuardSlot:
    """The place of a guard: empty at first, then one for ever."""

    __slots__ = ("_guard",)

    def __init__(self, guard: Guard | None) -> None:
        """Begin with a guard, or empty."""
        self._guard = guard

    def arm(self, guard: Guard, wallet: Address) -> None:
        """Put a guard in.

        Raises:
            ConfigError: There is another one.
        """
        if self._guard is not None and self._guard != guard:
            raise ConfigError(
                f"the signer of {wallet} already serves another network or other caps",
                hint="Make one signer for each broker",
            )
        self._guard = guard

    def check(self, transaction: Transaction, wallet: Address) -> bytes:
        """Refuse what the guard doesn't know; return the hash to sign.

        Raises:
            RefusedToSignError: There is no guard, it refuses, or no such transaction can be.
        """
        if self._guard is None:
            raise RefusedToSignError("this signer has no guard yet", hint="Give it to a Broker, or call arm()")
        self._guard.check(transaction, sender=wallet)
        try:
            return signing_hash(transaction)
        except (ValueError, TypeError) as error:
            raise RefusedToSignError(f"the transaction can't be signed: {error}") from None


@runtime_checkable
class DecryptionKey(Protocol):
    """Opens what a provider encrypted for one address."""

    async def ecies_decrypt(self, blob: bytes) -> bytes:
        """Open an ECIES envelope, or raise `EnvelopeError`."""
        ...


def decryption_key(signer: Signer) -> DecryptionKey:
    """Return the part of a signer that opens models.

    Args:
        signer: The wallet's signer.

    Raises:
        ConfigError: This signer's key can't be used for decryption.
    """
    if isinstance(signer, DecryptionKey):
        return signer
    raise ConfigError(
        f"the signer of {signer.address} can't open encrypted models",
        hint="A model's key is encrypted to the wallet that pays: pay from a wallet whose private key is at hand",
    )


def _seal(key: bytearray) -> tuple[Callable[[Callable[[bytes], T]], T], Callable[[], None]]:
    """Hide a key in a closure: one function that lends it, one that wipes it."""
    gone = False

    def lend(work: Callable[[bytes], T]) -> T:
        if gone:
            raise ClosedError("the signer is closed")
        return work(bytes(key))

    def wipe() -> None:
        nonlocal gone
        gone = True
        key[:] = bytes(len(key))

    return lend, wipe


class LocalSigner:
    """A private key in this process. Make it with `from_key` or `from_keystore`; it is both protocols."""

    __slots__ = ("__weakref__", "_address", "_guard", "_lend", "_wipe")

    def __init__(self, key: bytearray, *, guard: Guard | None = None) -> None:
        """Take a key over; `key` is wiped on close, and at once if it is no key.

        Args:
            key: 32 bytes, owned by the signer from now on.
            guard: What it may sign; None: no transaction at all until `arm`.

        Raises:
            BadKeyError: Not a private key.
        """
        lend, wipe = _seal(key)
        try:
            self._address: Address = lend(lambda k: recover_address(_PROBE, sign_digest(k, _PROBE)))
        except ValueError:
            wipe()
            raise BadKeyError("the private key is out of range", hint="Make a new one with your wallet") from None
        self._lend: Callable[[Callable[[bytes], Any]], Any] = lend
        self._wipe = wipe
        self._guard = GuardSlot(guard)

    @classmethod
    def from_key(cls, key: str | bytes, *, guard: Guard | None = None) -> "LocalSigner":
        """Make a signer from a private key.

        Args:
            key: 64 hex digits with or without `0x`, or 32 bytes.
            guard: What it may sign; None: no transaction until `arm`.

        Raises:
            BadKeyError: It is no private key. The message never repeats it.
        """
        key = hidden(key)
        return cls(_parse_key(key), guard=guard)

    @classmethod
    def from_keystore(cls, path: str | Path, password: bytes, *, guard: Guard | None = None) -> "LocalSigner":
        """Make a signer from a version 3 key file. Takes about a second.

        Args:
            path: The file; only its owner may be able to read it.
            password: Bytes as given.
            guard: What it may sign; None: no transaction until `arm`.

        Raises:
            ConfigError: Unreadable or open to others, wrong password, or the key isn't that of the stated address.
        """
        password = hidden(password)
        if not isinstance(password, bytes):
            raise ConfigError("a keystore password is bytes", hint="Encode it, usually as UTF-8")
        key, stated = read_keystore(Path(path), password)
        signer = cls(key, guard=guard)
        if stated is not None and stated != signer.address[2:].lower():
            signer.close()
            raise ConfigError(f"the keystore {path} states another address than its key has", hint="Don't use it")
        return signer

    @property
    def address(self) -> Address:
        """The key's checksummed address."""
        return self._address

    def arm(self, guard: Guard) -> None:
        """Set what may be signed, once.

        Raises:
            ConfigError: It is armed with another guard already.
        """
        self._guard.arm(guard, self._address)

    async def sign_personal(self, message: bytes) -> bytes:
        """Sign an Ethereum personal message. It is wrapped here (EIP-191), so it can't be anything else.

        Args:
            message: Any bytes; for the network's own messages the inner hash of `wire.signing`.

        Returns:
            65 bytes r, s, v; v is 27 or 28, s in the lower half.

        Raises:
            ClosedError: The signer is closed.
        """
        return self._sign(personal_hash(message))

    async def sign_transaction(self, transaction: Transaction) -> SignedTransaction:
        """Sign a type 2 transaction that the guard lets pass.

        Raises:
            RefusedToSignError: The guard doesn't know it, or there is no guard.
            ClosedError: The signer is closed.
        """
        return join_signature(transaction, self._sign(self._guard.check(transaction, self._address)))

    def _sign(self, digest: bytes) -> bytes:
        signature: bytes = self._lend(lambda key: sign_digest(key, digest))
        return signature

    async def ecies_decrypt(self, blob: bytes) -> bytes:
        """Open an envelope made for this key.

        Raises:
            EnvelopeError: Cut, damaged, or for another key.
            ClosedError: The signer is closed.
        """
        from zg_async.wire.envelope import ecies_decrypt

        plaintext: bytes = self._lend(lambda key: ecies_decrypt(key, blob))
        return plaintext

    def to_keystore(self, password: bytes) -> bytes:
        """Encrypt the key as a version 3 key file, for `from_keystore`. Takes about a second.

        Args:
            password: Bytes as given, not empty.

        Returns:
            The file's bytes; write them with `paths.write_private`.

        Raises:
            ConfigError: The password is empty.
            ClosedError: The signer is closed.
        """
        password = hidden(password)
        if not password:
            raise ConfigError("a keystore needs a password")
        data: bytes = self._lend(lambda key: encode_keystore(hidden(key), self._address, password))
        return data

    def close(self) -> None:
        """Overwrite the key. Idempotent."""
        self._wipe()

    def __repr__(self) -> str:
        return f"<LocalSigner {self._address}>"

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("a signer can't be copied or pickled")


def _parse_key(key: str | bytes) -> bytearray:
    if isinstance(key, bytes | bytearray):
        if len(key) != 32:
            raise BadKeyError(f"a private key has 32 bytes, not {len(key)}", hint="Pass 32 bytes, or 64 hex digits")
        return bytearray(key)
    if not isinstance(key, str):
        raise BadKeyError(
            f"a private key is a hex string or bytes, not {type(key).__name__}", hint="Write it in quotes"
        )
    digits = hidden(key.strip())
    digits = hidden(digits[2:]) if digits[:2] in ("0x", "0X") else digits
    found = None
    if len(digits) == 64 and digits.isascii() and digits.isalnum():
        with contextlib.suppress(ValueError):
            found = bytearray.fromhex(digits)
    if found is None:
        raise BadKeyError("the private key can't be read", hint=_key_hint(digits))
    return found


def _key_hint(digits: str) -> str:
    if not digits:
        return "It is empty; is a variable unset?"
    if len(digits.split()) >= 12:
        return "It looks like a mnemonic; export the private key of one account from your wallet"
    if len(digits) == 40:
        return "It looks like an address; a private key has 64 hex digits"
    if len(digits) in (128, 130):
        return "It looks like a public key; a private key has 64 hex digits"
    return f"It needs 64 hex digits, with or without 0x; this has {len(digits)} characters"
