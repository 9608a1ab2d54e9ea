"""Session tokens and API keys of one wallet. They are secrets; making them moves no money."""

import dataclasses
import datetime as dt
import secrets
from typing import Final

import anyio

from zg_async.errors import AccountNotFoundError, ConfigError
from zg_async.managers.context import Context
from zg_async.managers.inference_services import InferencePolicy, InferenceServices
from zg_async.tracing import observed
from zg_async.transport.key_book import IssuedKey, KeyBook, MemoryKeyBook
from zg_async.wire import inference_api, signing
from zg_async.wire.hashing import parse_address
from zg_async.wire.inference_api import EPHEMERAL_TOKEN_ID
from zg_async.wire.records import Address, InferenceAccount, Receipt, SessionToken

EPHEMERAL_SECONDS: Final = 24 * 3600.0
_REUSE_SECONDS: Final = 3600.0
"""An ephemeral token is used again while it lives longer than this."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ApiKey:
    """An API key made here, and whether it still works. The key itself isn't kept."""

    issued: IssuedKey
    is_revoked: bool
    is_expired: bool

    @property
    def works(self) -> bool:
        """Whether a provider would take it."""
        return not self.is_revoked and not self.is_expired


@observed("inference")
class InferenceTokens(InferenceServices):
    """Services, and what authenticates requests to them."""

    def __init__(self, context: Context, policy: InferencePolicy | None = None, keys: KeyBook | None = None) -> None:
        """Bind to a wallet; `keys` remembers the API keys issued."""
        super().__init__(context, policy)
        self._keys: KeyBook = keys or MemoryKeyBook()
        self._tokens: dict[Address, SessionToken] = {}
        self._token_locks: dict[Address, anyio.Lock] = {}

    async def get_request_headers(self, provider: str) -> dict[str, str]:
        """Return headers that authenticate requests to a provider. Moves no money.

        An ephemeral token is made once and used for up to 23 hours.

        Args:
            provider: The provider's address.
        """
        return (await self.session_token(provider)).headers

    async def session_token(self, provider: str) -> SessionToken:
        """Return this wallet's ephemeral token for a provider, made anew when less than an hour of it is left."""
        address = parse_address(provider, what="provider")
        if (known := self._living(address)) is not None:
            return known
        async with self._token_locks.setdefault(address, anyio.Lock()):
            if (known := self._living(address)) is not None:  # made by another meanwhile
                return known
            made = await self._make_token(address, EPHEMERAL_TOKEN_ID, EPHEMERAL_SECONDS)
            self._tokens[address] = made
            return made

    def _living(self, provider: Address) -> SessionToken | None:
        known = self._tokens.get(provider)
        if known is None or known.expires_at is None:
            return None
        return known if known.expires_at.timestamp() - self._ctx.clock.now() > _REUSE_SECONDS else None

    def forget_session(self, provider: str, token: SessionToken | None = None) -> None:
        """Drop the ephemeral token, so that the next request makes a new one.

        Args:
            provider: The provider's address.
            token: Only if it is still this one.
        """
        address = parse_address(provider, what="provider")
        if token is None or self._tokens.get(address) is token:
            self._tokens.pop(address, None)

    async def create_api_key(
        self, provider: str, *, token_id: int | None = None, expires_in: float | None = None
    ) -> SessionToken:
        """Make an API key: a token that can be revoked by its id.

        Args:
            provider: The provider it is for.
            token_id: 0 to 254; None: the lowest that is neither revoked nor in use by a key made here. A given one may
                be in use: revoking it ends both keys.
            expires_in: Seconds it lives; None: until it is revoked.

        Returns:
            The key; its `raw_token` is a secret, shown once.

        Raises:
            ConfigError: The id is out of range or revoked, or none is left.
        """
        address, wallet = parse_address(provider, what="provider"), self._ctx.wallet
        account = await self._account_or_none(address)
        taken = account.revoked_bitmap if account else 0
        generation = account.generation if account else 0
        if token_id is None:
            for key in await self._keys.issued(wallet, address):
                taken |= 1 << key.token_id if key.generation == generation else 0
        while True:
            chosen = _pick(taken, token_id)
            made = await self._make_token(address, chosen, expires_in, account)
            entry = IssuedKey(
                provider=address,
                token_id=chosen,
                generation=made.generation,
                created_at=made.created_at,
                expires_at=made.expires_at,
            )
            if await self._keys.claim(wallet, entry, again=token_id is not None):
                return made
            taken |= 1 << chosen  # another process took it a moment ago

    async def list_api_keys(self, provider: str) -> tuple[ApiKey, ...]:
        """List the API keys made here for a provider, oldest first; keys made elsewhere aren't known to anybody.

        Args:
            provider: The provider's address.
        """
        address = parse_address(provider, what="provider")
        account = await self._account_or_none(address)
        bitmap, generation = (account.revoked_bitmap, account.generation) if account else (0, 0)
        now = self._ctx.clock.now()
        return tuple(
            ApiKey(
                issued=key,
                is_revoked=key.generation < generation or bool(bitmap >> key.token_id & 1),
                is_expired=key.expires_at is not None and key.expires_at.timestamp() < now,
            )
            for key in await self._keys.issued(self._ctx.wallet, address)
        )

    async def _make_token(
        self, provider: Address, token_id: int, seconds: float | None, account: InferenceAccount | None = None
    ) -> SessionToken:
        signer = self._ctx.require_signer()
        if account is None:
            account = await self._account_or_none(provider)
        created = int(self._ctx.clock.now() * 1000)
        expires = inference_api.token_expiry(created, seconds, ephemeral=token_id == EPHEMERAL_TOKEN_ID)
        generation = account.generation if account else 0
        raw = signing.session_token_json(
            address=signer.address,
            provider=provider,
            timestamp_ms=created,
            expires_at_ms=expires,
            nonce=secrets.token_hex(16),
            generation=generation,
            token_id=token_id,
        )
        signature = await self._ctx.sign(signing.session_token_hash(raw), purpose="session token", provider=provider)
        return SessionToken(
            provider=provider,
            token_id=token_id,
            generation=generation,
            created_at=_time(created),
            expires_at=_time(expires) if expires else None,
            raw_token=signing.encode_session_token(raw, signature),
        )

    async def revoke_api_key(self, provider: str, *token_ids: int, key: str | None = None) -> Receipt:
        """Revoke API keys by their ids.

        Args:
            provider: The provider they are for.
            token_ids: Ids from 0 to 254; the ephemeral token (255) can only be revoked with all others.
            key: Names the effect in the outbox.
        """
        address = parse_address(provider, what="provider")
        if not token_ids or any(not 0 <= i < EPHEMERAL_TOKEN_ID for i in token_ids):
            raise ConfigError(f"can't revoke {token_ids}", hint="Ids are 0 to 254; revoke_all_tokens ends the rest too")
        self._tokens.pop(address, None)
        if len(token_ids) == 1:
            return await self._ctx.write(self._contract.revoke_token(address, token_ids[0]), key=key)
        return await self._ctx.write(self._contract.revoke_tokens(address, list(token_ids)), key=key)

    async def revoke_all_tokens(self, provider: str, *, key: str | None = None) -> Receipt:
        """Revoke every token and API key of this wallet at a provider, the ephemeral one included."""
        address = parse_address(provider, what="provider")
        self._tokens.pop(address, None)
        receipt = await self._ctx.write(self._contract.revoke_all_tokens(address), key=key)
        self._tokens.pop(address, None)
        return receipt

    async def _account_or_none(self, provider: Address) -> InferenceAccount | None:
        try:
            return await self._ctx.chain.call(self._contract.get_account(self._ctx.wallet, provider))
        except AccountNotFoundError:
            return None


def _pick(taken: int, token_id: int | None) -> int:
    if token_id is None and all(taken >> n & 1 for n in range(EPHEMERAL_TOKEN_ID)):
        raise ConfigError(
            "all 255 API key ids are revoked or in use",
            hint="Call revoke_all_tokens to begin anew, or share an id by giving token_id",
        )
    return inference_api.pick_token_id(taken, token_id)


def _time(milliseconds: int) -> dt.datetime:
    return dt.datetime.fromtimestamp(milliseconds / 1000, dt.UTC)
