"""The well-known development accounts, and who plays what with them.

BIP-39 words "test test … junk" on the path m/44'/60'/0'/0/index, as every local node uses them. Their keys are
public: money sent to them on a real network is gone.
"""

import functools
import hashlib
import hmac
from dataclasses import dataclass, field
from typing import Final

from eth_keys.constants import SECPK1_N
from eth_keys.main import KeyAPI

from zg_async.wire.hashing import checksum_address
from zg_async.wire.records import Address

MNEMONIC: Final = "test test test test test test test test test test test junk"
OWNER_INDEX: Final = 0
"""Deploys and owns the contracts."""
USER_INDEXES: Final = range(1, 10)
"""For whoever uses the network; no role of the network itself is ever among them."""
FINE_TUNING_PROVIDERS: Final = range(100, 200)
FINE_TUNING_SIGNERS: Final = range(200, 300)
INFERENCE_PROVIDERS: Final = range(300, 400)
INFERENCE_SIGNERS: Final = range(400, 500)

_HARDENED: Final = 0x80000000
_PARENT_PATH: Final = (44 | _HARDENED, 60 | _HARDENED, 0 | _HARDENED, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class DevAccount:
    """An account whose key everybody knows."""

    index: int
    address: Address
    private_key: bytes = field(repr=False)


@functools.cache
def dev_account(index: int) -> DevAccount:
    """Derive the account with this index.

    Raises:
        ValueError: The index is negative or 2**31 and above.
    """
    if not 0 <= index < _HARDENED:
        raise ValueError(f"no such account index: {index}")
    key, _ = _child(*_parent(), index)
    public = KeyAPI().PrivateKey(key).public_key
    return DevAccount(index=index, address=checksum_address(public.to_canonical_address()), private_key=key)


def owner() -> DevAccount:
    """Who deploys and owns the contracts."""
    return dev_account(OWNER_INDEX)


def users() -> tuple[DevAccount, ...]:
    """The nine accounts for users, `#1` to `#9`."""
    return tuple(dev_account(index) for index in USER_INDEXES)


def fine_tuning_provider(number: int) -> DevAccount:
    """The wallet of the fine-tuning provider with this number, 0 to 99."""
    return dev_account(FINE_TUNING_PROVIDERS[number])


def fine_tuning_signer(number: int) -> DevAccount:
    """The TEE signer of the fine-tuning provider with this number."""
    return dev_account(FINE_TUNING_SIGNERS[number])


def inference_provider(number: int) -> DevAccount:
    """The wallet of the inference provider with this number, 0 to 99."""
    return dev_account(INFERENCE_PROVIDERS[number])


def inference_signer(number: int) -> DevAccount:
    """The TEE signer of the inference provider with this number."""
    return dev_account(INFERENCE_SIGNERS[number])


@functools.cache
def _parent() -> tuple[bytes, bytes]:
    seed = hashlib.pbkdf2_hmac("sha512", MNEMONIC.encode(), b"mnemonic", 2048)
    root = hmac.digest(b"Bitcoin seed", seed, "sha512")
    key, chain_code = root[:32], root[32:]
    for index in _PARENT_PATH:
        key, chain_code = _child(key, chain_code, index)
    return key, chain_code


def _child(key: bytes, chain_code: bytes, index: int) -> tuple[bytes, bytes]:
    """One step of BIP-32; its two impossible cases (1 in 2**127) don't occur with these words."""
    head = b"\0" + key if index >= _HARDENED else KeyAPI().PrivateKey(key).public_key.to_compressed_bytes()
    digest = hmac.digest(chain_code, head + index.to_bytes(4, "big"), "sha512")
    number = (int.from_bytes(digest[:32], "big") + int.from_bytes(key, "big")) % SECPK1_N
    return number.to_bytes(32, "big"), digest[32:]
