"""Who asks: session tokens of users, and the three headers by which a provider proves itself. inference.md 3.7, 5.4."""

import secrets
from collections.abc import Mapping
from typing import Final

from zg_async.clock import Clock
from zg_async.devnet.inference_settings import InferenceChain, InferenceSettings
from zg_async.errors import SignatureMismatchError
from zg_async.wire.hashing import checksum_address, keccak256
from zg_async.wire.inference_api import InvalidTokenError, check_session_token, presented_token
from zg_async.wire.records import Address
from zg_async.wire.signing import (
    eip191_hash,
    recover_address,
    session_token_hash,
    session_token_json,
    sign_digest,
    signature_hex,
    token_fields,
)

_PROVIDER_TOKEN_MS: Final = 60_000
_CACHED: Final = 1000


class Sessions:
    """Checks session tokens against the chain."""

    def __init__(self, provider: Address, chain: InferenceChain, settings: InferenceSettings, clock: Clock) -> None:
        """Check tokens for a provider."""
        self._provider = provider
        self._chain = chain
        self._settings = settings
        self._clock = clock
        self._good: dict[bytes, tuple[float, Address]] = {}

    async def user(self, authorization: str) -> Address:
        """Return whose token a header carries.

        Raises:
            InvalidTokenError: With the provider's literal words.
            ZgError: The chain can't be asked.
        """
        key = keccak256(authorization.encode("utf-8", "surrogatepass"))
        until, user = self._good.get(key, (0.0, None))
        if user is not None and self._clock.monotonic() < until:
            return user
        fields = presented_token(authorization)
        try:
            address = checksum_address(fields.address)
        except ValueError:
            raise InvalidTokenError("invalid session token: address") from None
        account = await self._chain.account(address)
        now_ms = int(self._clock.now() * 1000)
        check_session_token(authorization, serving_provider=self._provider, now_ms=now_ms, account=account)
        if self._settings.session_cache > 0:
            if len(self._good) >= _CACHED:
                self._good.clear()
            self._good[key] = (self._clock.monotonic() + self._settings.session_cache, address)
        return address


def check_provider(headers: Mapping[str, str], provider: Address, now: float) -> None:
    """Check that the provider itself asks.

    Args:
        headers: The request's.
        provider: Its address.
        now: Unix seconds.

    Raises:
        InvalidTokenError: It doesn't.
    """
    raw = headers.get("Session-Token", "")
    address, signature = headers.get("Address", ""), headers.get("Session-Signature", "")
    if not raw or not address or not signature:
        raise InvalidTokenError("missing authentication headers")
    try:
        fields = token_fields(raw)
        signer = recover_address(eip191_hash(session_token_hash(raw)), bytes.fromhex(signature.removeprefix("0x")))
    except (ValueError, SignatureMismatchError) as error:
        raise InvalidTokenError(f"invalid session token: {error}") from None
    if {text.lower() for text in (address, fields.address, fields.provider, signer)} != {provider.lower()}:
        raise InvalidTokenError("session token is not the provider's own")
    if fields.expires_at_ms > 0 and int(now) > fields.expires_at_ms // 1000:
        raise InvalidTokenError("session token expired")


def provider_headers(private_key: bytes, address: Address, now: float) -> dict[str, str]:
    """Return the three headers by which a provider proves itself to its own inference side.

    Args:
        private_key: Of its wallet.
        address: Of its wallet.
        now: Unix seconds.
    """
    created = int(now * 1000)
    raw = session_token_json(
        address=address,
        provider=address,
        timestamp_ms=created,
        expires_at_ms=created + _PROVIDER_TOKEN_MS,
        nonce=secrets.token_hex(16),
        generation=0,
        token_id=255,
    )
    signature = sign_digest(private_key, eip191_hash(session_token_hash(raw)))
    return {"Address": address, "Session-Token": raw, "Session-Signature": signature_hex(signature)}
