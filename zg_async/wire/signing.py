"""Every message that is signed: its exact bytes, and 65-byte signatures.

The order of the fields and their spelling are the protocol: see 0g-serving-broker api/fine-tuning/internal/ctrl
and api/common/util/crypto (fine-tuning), api/inference/internal/ctrl/request.go (session tokens) and the
contracts' EIP-712 types. The TypeScript peer drops leading zero bytes of a hash before signing, which providers
refuse; here a hash always has its 32 bytes.
"""

import base64
import binascii
import functools
import json
import re
import uuid
from dataclasses import dataclass
from typing import Any, Final

from eth_keys.constants import SECPK1_N
from eth_keys.exceptions import BadSignature
from eth_keys.main import KeyAPI
from eth_utils.exceptions import ValidationError

from zg_async.errors import SignatureMismatchError
from zg_async.text import HiddenText
from zg_async.wire.hashing import checksum_address, hex0x, keccak256
from zg_async.wire.records import Address
from zg_async.wire.strict_json import BadJsonError, decode_json

TOKEN_PREFIX: Final = "app-sk-"
_HALF_ORDER: Final = SECPK1_N // 2
_SIGNATURE: Final = re.compile(r"0x[0-9a-fA-F]{130}")
_TOKEN_LIMIT: Final = 8192
_DOMAIN_TYPE: Final = b"EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)"
_TASK_TYPE: Final = (
    b"VerifierMessage(string id,bytes encryptedSecret,bytes modelRootHash,uint256 nonce,uint256 taskFee,address user)"
)
_TEE_TYPE: Final = b"TEESettlement(bytes32 requestsHash,uint256 nonce,address provider,address user,uint256 totalFee)"


def eip191_hash(inner: bytes) -> bytes:
    """Wrap a 32-byte hash as an Ethereum personal message and hash that.

    Raises:
        ValueError: `inner` hasn't 32 bytes.
    """
    if len(inner) != 32:
        raise ValueError(f"a hash to be signed has 32 bytes, not {len(inner)}")
    return personal_hash(inner)


def personal_text_hash(text: str) -> bytes:
    """Hash a text as an Ethereum personal message (how providers sign answers)."""
    return personal_hash(text.encode())


def personal_hash(message: bytes) -> bytes:
    """Hash any message as an Ethereum personal one (EIP-191, version `E`): it can't be a transaction as well."""
    return keccak256(b"\x19Ethereum Signed Message:\n" + str(len(message)).encode() + message)


# --- fine-tuning provider: inner hashes, to be wrapped by eip191_hash -------------------------------------------------


def task_create_hash(user: str, request_nonce: int, dataset_hash: str) -> bytes:
    """Hash what authorises a task: user, our nonce, and the dataset hash as text exactly as it is sent."""
    return keccak256(_address_bytes(user) + _word(request_nonce) + dataset_hash.encode())


def task_cancel_hash(task_id: str) -> bytes:
    """Hash what authorises a cancellation: the id's 16 bytes.

    Raises:
        ValueError: `task_id` is no UUID.
    """
    return keccak256(uuid.UUID(task_id).bytes)


def model_download_hash(task_id: str, timestamp: int) -> bytes:
    """Hash what authorises a download at `timestamp` (unix seconds).

    Raises:
        ValueError: `task_id` is no UUID.
    """
    return keccak256(f"{uuid.UUID(task_id).hex}{timestamp}".encode())


def dataset_upload_hash(path_address: str, timestamp: int) -> bytes:
    """Hash what authorises an upload: the address exactly as it stands in the URL path, and unix seconds."""
    return keccak256(f"{path_address}{timestamp}".encode())


def next_request_nonce(now: float, above: int) -> int:
    """Choose a task's nonce in the peers' form.

    Args:
        now: Unix seconds.
        above: The greatest nonce known: of the account on chain and of any task.

    Returns:
        Milliseconds x 10000 + 40, or `above` + 1 if that isn't greater.
    """
    return max(int(now * 1000) * 10000 + 40, above + 1)


# --- settlements: final EIP-712 digests, signed as they are ----------------------------------------------------------


def settlement_digest(
    *,
    chain_id: int,
    contract: str,
    id: str,  # noqa: A002  the contract's name for it
    encrypted_secret: bytes,
    model_root_hash: bytes,
    nonce: int,
    task_fee: int,
    user: str,
) -> bytes:
    """Hash a fine-tuning settlement as the provider's TEE key signs it (FineTuningServing.settleFees)."""
    message = keccak256(
        keccak256(_TASK_TYPE)
        + keccak256(id.encode())
        + keccak256(encrypted_secret)
        + keccak256(model_root_hash)
        + _word(nonce)
        + _word(task_fee)
        + _address_word(user)
    )
    return _typed_digest(b"0G Fine-Tuning Serving", chain_id, contract, message)


def tee_settlement_digest(
    *, chain_id: int, contract: str, requests_hash: bytes, nonce: int, provider: str, user: str, total_fee: int
) -> bytes:
    """Hash an inference settlement as the provider's TEE key signs it (InferenceServing.settleFeesWithTEE)."""
    message = keccak256(
        keccak256(_TEE_TYPE)
        + requests_hash.rjust(32, b"\0")
        + _word(nonce)
        + _address_word(provider)
        + _address_word(user)
        + _word(total_fee)
    )
    return _typed_digest(b"0G Inference Serving", chain_id, contract, message)


def domain_separator(name: bytes, chain_id: int, contract: str) -> bytes:
    """Hash the EIP-712 domain of a serving contract (version `1`)."""
    return keccak256(
        keccak256(_DOMAIN_TYPE) + keccak256(name) + keccak256(b"1") + _word(chain_id) + _address_word(contract)
    )


def _typed_digest(name: bytes, chain_id: int, contract: str, message: bytes) -> bytes:
    return keccak256(b"\x19\x01" + domain_separator(name, chain_id, contract) + message)


def _address_bytes(address: str) -> bytes:
    return bytes.fromhex(checksum_address(address)[2:])


def _address_word(address: str) -> bytes:
    return _address_bytes(address).rjust(32, b"\0")


def _word(number: int) -> bytes:
    return number.to_bytes(32, "big")


# --- session tokens --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenFields:
    """What a session token says. Times are unix milliseconds, as on the wire."""

    address: str
    provider: str
    timestamp_ms: int
    expires_at_ms: int
    """0: never."""
    nonce: str
    generation: int
    token_id: int


def session_token_json(
    *,
    address: str,
    provider: str,
    timestamp_ms: int,
    expires_at_ms: int,
    nonce: str,
    generation: int,
    token_id: int,
) -> str:
    """Write a session token's text: these keys, this order, no spaces.

    Raises:
        ValueError: `nonce` holds a `|`, which separates text and signature.
    """
    if "|" in nonce:
        raise ValueError("a session token's nonce can't contain |")
    fields = {
        "address": address,
        "provider": provider,
        "timestamp": timestamp_ms,
        "expiresAt": expires_at_ms,
        "nonce": nonce,
        "generation": generation,
        "tokenId": token_id,
    }
    return json.dumps(fields, separators=(",", ":"), ensure_ascii=False)


def session_token_hash(raw_json: str) -> bytes:
    """Hash a session token's text; sign `eip191_hash` of it."""
    return keccak256(raw_json.encode())


def encode_session_token(raw_json: str, signature: bytes) -> str:
    """Join text and signature to an API key, `app-sk-...`. The result is a secret, its `repr` is hidden."""
    return HiddenText(TOKEN_PREFIX + base64.b64encode(f"{raw_json}|{signature_hex(signature)}".encode()).decode())


def decode_session_token(text: str) -> tuple[TokenFields, str, bytes]:
    """Take an API key apart. Nothing is verified but its form.

    Returns:
        Its fields, the exact JSON text that was signed, and the 65-byte signature.

    Raises:
        ValueError: It isn't a well-formed key. The message never repeats it.
    """
    raw, signature = split_session_token(text)
    if not _SIGNATURE.fullmatch(signature):
        raise ValueError("invalid signature")
    return token_fields(raw), raw, bytes.fromhex(signature[2:])


def split_session_token(text: str) -> tuple[str, str]:
    """Split an API key into signed text and signature text, as providers do: at the first `|`.

    Raises:
        ValueError: With a provider's words for what is wrong.
    """
    if not text.startswith(TOKEN_PREFIX) or len(text) > _TOKEN_LIMIT:
        raise ValueError("missing or invalid Authorization header")
    try:
        joined = base64.b64decode(text.removeprefix(TOKEN_PREFIX), validate=True).decode()
    except (binascii.Error, ValueError):
        raise ValueError("invalid base64") from None
    raw, separator, signature = joined.partition("|")
    if not separator:
        raise ValueError("invalid payload")
    return raw, signature


def token_fields(raw: str) -> TokenFields:
    """Read a session token's JSON; keys may come in any order.

    Raises:
        ValueError: A key is missing or of the wrong type or range.
    """
    try:
        value = decode_json(raw, limit=_TOKEN_LIMIT)
    except BadJsonError as error:
        raise ValueError(f"invalid session token: {error}") from None
    if not isinstance(value, dict):
        raise ValueError("invalid session token: not an object")
    return TokenFields(
        address=_text(value, "address"),
        provider=_text(value, "provider"),
        timestamp_ms=_number(value, "timestamp", -(2**63), 2**63 - 1),
        expires_at_ms=_number(value, "expiresAt", -(2**63), 2**63 - 1),
        nonce=_text(value, "nonce"),
        generation=_number(value, "generation", 0, 2**64 - 1),
        token_id=_number(value, "tokenId", 0, 255),
    )


def _text(value: dict[str, Any], key: str) -> str:
    found = value.get(key)
    if not isinstance(found, str):
        raise ValueError(f"invalid session token: {key}")
    return found


def _number(value: dict[str, Any], key: str, low: int, high: int) -> int:
    found = value.get(key)
    if isinstance(found, bool) or not isinstance(found, int) or not low <= found <= high:
        raise ValueError(f"invalid session token: {key}")
    return found


# --- signatures ------------------------------------------------------------------------------------------------------


@functools.cache
def _keys() -> KeyAPI:
    return KeyAPI()  # coincurve when installed, else pure Python


def sign_digest(private_key: bytes, digest: bytes) -> bytes:
    """Sign a final digest.

    Args:
        private_key: 32 bytes.
        digest: 32 bytes.

    Returns:
        65 bytes r, s, v; v 27 or 28, s in the lower half (deterministic, RFC 6979).

    Raises:
        ValueError: A key or digest of the wrong form; the message doesn't show it.
    """
    if len(digest) != 32:
        raise ValueError(f"a digest has 32 bytes, not {len(digest)}")
    try:
        signature = _keys().ecdsa_sign(digest, _keys().PrivateKey(private_key)).to_bytes()
    except (ValidationError, ValueError):
        raise ValueError("not a private key") from None
    return signature[:64] + bytes((27 + signature[64],))


def recover_public_key(digest: bytes, signature: bytes) -> bytes:
    """Recover the signer's public key.

    Args:
        digest: The 32 bytes that were signed.
        signature: 65 bytes; v may be 0, 1, 27 or 28.

    Returns:
        65 bytes: 4, x, y.

    Raises:
        SignatureMismatchError: No valid signature: wrong length or v, zero, s in the upper half, no such point.
    """
    r, s = int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:64], "big")
    if len(signature) != 65 or signature[64] not in (0, 1, 27, 28):
        raise SignatureMismatchError("a signature has 65 bytes and ends in 0, 1, 27 or 28")
    if not 0 < r < SECPK1_N or not 0 < s <= _HALF_ORDER:
        raise SignatureMismatchError("the signature's numbers are out of range")
    try:
        parsed = _keys().Signature(signature_bytes=signature[:64] + bytes((signature[64] % 27,)))
        return b"\x04" + _keys().ecdsa_recover(digest, parsed).to_bytes()
    except (BadSignature, ValidationError, ValueError):
        raise SignatureMismatchError("nobody can have made this signature") from None


def recover_address(digest: bytes, signature: bytes) -> Address:
    """Recover the signer's address; see `recover_public_key`.

    Raises:
        SignatureMismatchError: No valid signature.
    """
    return public_key_address(recover_public_key(digest, signature))


def public_key_address(public_key: bytes) -> Address:
    """Return the address of a 65-byte public key."""
    return checksum_address(keccak256(public_key[1:])[12:])


def signature_hex(signature: bytes) -> str:
    """Write a signature as it is sent: `0x` and 130 hex digits, v 27 or 28. Its `repr` is hidden.

    Raises:
        ValueError: Not 65 bytes, or v isn't 0, 1, 27 or 28.
    """
    if len(signature) != 65 or signature[64] not in (0, 1, 27, 28):
        raise ValueError("a signature has 65 bytes and ends in 0, 1, 27 or 28")
    return HiddenText(hex0x(signature[:64] + bytes((27 + signature[64] % 27,))))
