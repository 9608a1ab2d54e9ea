"""Web3 Secret Storage v3 key files.

The password is bytes, used as given (v3 doesn't normalise; geth's files would differ). The cost of the key derivation
is bounded both ways, so that a hostile file can neither stall us nor be trivially guessed.
"""

import hashlib
import hmac
import json
import secrets
import uuid
from pathlib import Path
from typing import Any, Final

from Crypto.Cipher import AES
from Crypto.Protocol import KDF

from zg_async.errors import ConfigError
from zg_async.paths import read_private
from zg_async.wire.hashing import keccak256
from zg_async.wire.strict_json import BadJsonError, decode_json

_SIZE: Final = 64 * 1024
SCRYPT_N = 2**18
_MIN_N: Final = 2**12
_MAX_N: Final = 2**20
_MAX_MEMORY: Final = 2**30
_MAX_WORK: Final = 2**26
_ITERATIONS: Final = range(10_000, 10_000_001)


def read_keystore(path: Path, password: bytes) -> tuple[bytearray, str | None]:
    """Decrypt a key file.

    Args:
        path: The file; only its owner may be able to read it.
        password: As given, no normalisation.

    Returns:
        The 32 bytes of the key, to be wiped by the caller, and the address the file states (40 hex digits) if any.

    Raises:
        ConfigError: Unreadable, readable by others, not a v3 file, too costly, or a wrong password.
    """
    try:
        value = decode_json(read_private(path, what="keystore", limit=_SIZE), limit=_SIZE, depth=8)
        crypto = _object(value, "crypto") if "crypto" in value else _object(value, "Crypto")
        if value.get("version") != 3:
            raise ConfigError(f"{path} is no version 3 keystore")
        address = value.get("address")
        key = _decrypt(path, crypto, password)
    except (BadJsonError, KeyError, TypeError, ValueError):
        raise ConfigError(f"{path} is no version 3 keystore, or damaged") from None
    return key, address.lower().removeprefix("0x") if isinstance(address, str) and address else None


def encode_keystore(key: bytes, address: str, password: bytes) -> bytes:
    """Encrypt a key as a version 3 key file, at geth's usual cost (about a second).

    Args:
        key: 32 bytes.
        address: The key's, with `0x`.
        password: As given, no normalisation.

    Returns:
        The file's bytes.
    """
    salt, iv = secrets.token_bytes(32), secrets.token_bytes(16)
    params = {"dklen": 32, "n": SCRYPT_N, "p": 1, "r": 8, "salt": salt.hex()}
    derived = hashlib.scrypt(password, salt=salt, n=SCRYPT_N, r=8, p=1, maxmem=2**30, dklen=32)
    ciphertext = AES.new(derived[:16], AES.MODE_CTR, nonce=b"", initial_value=iv).encrypt(key)
    crypto = {
        "cipher": "aes-128-ctr",
        "cipherparams": {"iv": iv.hex()},
        "ciphertext": ciphertext.hex(),
        "kdf": "scrypt",
        "kdfparams": params,
        "mac": keccak256(derived[16:32] + ciphertext).hex(),
    }
    value = {"address": address[2:].lower(), "crypto": crypto, "id": str(uuid.uuid4()), "version": 3}
    return json.dumps(value).encode() + b"\n"


def _decrypt(path: Path, crypto: dict[str, Any], password: bytes) -> bytearray:
    ciphertext = bytes.fromhex(crypto["ciphertext"])
    if crypto["cipher"] != "aes-128-ctr" or len(ciphertext) != 32:
        raise ValueError
    iv = bytes.fromhex(_object(crypto, "cipherparams")["iv"])
    derived = _derive(path, str(crypto["kdf"]), _object(crypto, "kdfparams"), password)
    if not hmac.compare_digest(keccak256(derived[16:32] + ciphertext), bytes.fromhex(crypto["mac"])):
        raise ConfigError(f"wrong password for {path}", hint="The password is taken byte for byte")
    cipher = AES.new(derived[:16], AES.MODE_CTR, nonce=b"", initial_value=iv)
    return bytearray(cipher.decrypt(ciphertext))


def _derive(path: Path, kdf: str, params: dict[str, Any], password: bytes) -> bytes:
    salt = bytes.fromhex(params["salt"])
    if params["dklen"] != 32:
        raise ValueError
    if kdf == "pbkdf2" and params["prf"] == "hmac-sha256":
        rounds = _integer(params, "c")
        if rounds not in _ITERATIONS:
            raise _cost(path)
        return hashlib.pbkdf2_hmac("sha256", password, salt, rounds, 32)
    if kdf != "scrypt":
        raise ValueError
    n, r, p = (_integer(params, name) for name in "nrp")
    memory = 128 * n * r
    if not (_MIN_N <= n <= _MAX_N and r >= 1 and p >= 1) or memory > _MAX_MEMORY or n * r * p > _MAX_WORK:
        raise _cost(path)
    if n >= 1 << (16 * r):  # OpenSSL refuses what RFC 7914 rules out, other wallets write it
        return bytes(KDF.scrypt(password, salt, 32, n, r, p))  # type: ignore[arg-type]
    return hashlib.scrypt(password, salt=salt, n=n, r=r, p=p, maxmem=memory + 2**20 * (p + 1), dklen=32)


def _cost(path: Path) -> ConfigError:
    return ConfigError(
        f"the key derivation of {path} costs too little or too much",
        hint="Accepted are scrypt with N from 4096 to 1048576 and 1 GiB, and PBKDF2 with 10000 to 10000000 rounds",
    )


def _integer(params: dict[str, Any], name: str) -> int:
    value = params[name]
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError
    return value


def _object(value: Any, name: str) -> dict[str, Any]:
    found = value[name]
    if not isinstance(found, dict):
        raise ValueError
    return found
