"""Inference: services, session tokens and API keys, chat. Adapters are in `lora`.

Listing, tokens and headers never move money; `ledger.ensure_funded(provider, "inference", ...)` does, when called.
Protocol: 0g-serving-broker api/inference, 0g-serving-contract contracts/inference.
"""

import datetime as dt
import secrets
from collections.abc import Mapping, Sequence
from typing import Any, Final

from zg_async.errors import AccountNotFoundError, ConfigError, ProviderRejectedError, SignerNotAcknowledgedError
from zg_async.managers.context import Context
from zg_async.managers.lora import LoraManager
from zg_async.wire import inference_api, signing
from zg_async.wire.hashing import parse_address
from zg_async.wire.records import (
    Address,
    ChatAnswer,
    InferenceAccount,
    InferenceService,
    Receipt,
    ServiceMetadata,
    SessionToken,
)

EPHEMERAL_TOKEN_ID: Final = 255
EPHEMERAL_SECONDS: Final = 24 * 3600.0
_REUSE_SECONDS: Final = 3600.0
"""An ephemeral token is used again while it lives longer than this."""

Message = Mapping[str, object]


class InferenceManager:
    """Inference with one wallet."""

    def __init__(self, context: Context) -> None:
        """Bind to a wallet."""
        self._ctx = context
        self._contract = context.services.inference
        self._tokens: dict[Address, SessionToken] = {}
        self.lora = LoraManager(context, self)

    # ---- services and account

    async def list_service(self, include_unacknowledged: bool = False) -> tuple[InferenceService, ...]:
        """List the registered inference services, all pages. Needs no key.

        Args:
            include_unacknowledged: Also those whose TEE signer the contract owner hasn't approved.
        """
        services = await self._ctx.services.inference_services()
        return tuple(s for s in services if include_unacknowledged or s.tee_signer_acknowledged)

    async def get_service(self, provider: str) -> InferenceService:
        """Read a provider's inference registration.

        Raises:
            NoInferenceServiceError: It has none.
        """
        return await self._ctx.services.inference_service(parse_address(provider, what="provider"))

    async def get_service_metadata(self, provider: str, model: str | None = None) -> ServiceMetadata:
        """Return where to send requests, and with which model.

        Args:
            provider: The provider's address.
            model: A model, or an adapter's name; None: the service's own.
        """
        service = await self.get_service(provider)
        return ServiceMetadata(endpoint=inference_api.proxy_url(service.url), model=model or service.model)

    async def get_account(self, provider: str) -> InferenceAccount:
        """Read this wallet's inference sub-account at a provider.

        Raises:
            AccountNotFoundError: There is none; `ledger.transfer_fund(provider, "inference", ...)` opens it.
        """
        address = parse_address(provider, what="provider")
        return await self._ctx.chain.call(self._contract.get_account(self._ctx.wallet, address))

    async def acknowledge_provider_signer(self, provider: str, *, key: str | None = None) -> Receipt | None:
        """Acknowledge a provider's TEE signer for inference.

        Returns:
            The transaction; None when it was acknowledged already, as every transfer does by itself.

        Raises:
            AccountNotFoundError: No sub-account yet: `ledger.transfer_fund(provider, "inference", ...)` first.
        """
        account = await self.get_account(provider)
        if account.acknowledged:
            return None
        return await self._ctx.write(self._contract.acknowledge_tee_signer(account.provider, True), key=key)

    # ---- tokens

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
        known = self._tokens.get(address)
        now = self._ctx.clock.now()
        if known is None or known.expires_at is None or known.expires_at.timestamp() - now <= _REUSE_SECONDS:
            known = await self._make_token(address, EPHEMERAL_TOKEN_ID, EPHEMERAL_SECONDS)
            self._tokens[address] = known
        return known

    async def create_api_key(
        self, provider: str, *, token_id: int | None = None, expires_in: float | None = None
    ) -> SessionToken:
        """Make an API key: a token that can be revoked by its id.

        Args:
            provider: The provider it is for.
            token_id: 0 to 254; None: the lowest that isn't revoked. The chain doesn't know which ids are in use, so two
                keys made without an id share one, and revoking it ends both.
            expires_in: Seconds it lives; None: until it is revoked.

        Returns:
            The key; its `raw_token` is a secret.

        Raises:
            ConfigError: The id is out of range or revoked, or none is left.
        """
        address = parse_address(provider, what="provider")
        account = await self._account_or_none(address)
        chosen = inference_api.pick_token_id(account.revoked_bitmap if account else 0, token_id)
        return await self._make_token(address, chosen, expires_in, account)

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
        signature = await signer.sign_hash(signing.eip191_hash(signing.session_token_hash(raw)))
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

    # ---- chat

    async def chat(
        self, provider: str, messages: str | Sequence[Message], *, model: str | None = None, **fields: Any
    ) -> ChatAnswer:
        """Ask a provider's model, and wait for the whole answer.

        Args:
            provider: The provider's address.
            messages: The conversation as OpenAI messages, or one user message.
            model: A model, or an adapter's name; None: the service's own.
            fields: Any other field of an OpenAI chat completion, passed through.

        Raises:
            SignerNotAcknowledgedError: This wallet or the contract's owner hasn't acknowledged the signer.
            ProviderRejectedError: The provider refused, for example for want of balance.
        """
        meta = await self.get_service_metadata(provider, model)
        if isinstance(messages, str):
            messages = [{"role": "user", "content": messages}]
        body = {"model": meta.model, "messages": list(messages), **fields}
        if body.get("stream"):
            raise ConfigError("chat() waits for the whole answer", hint="Leave stream out")
        address = parse_address(provider, what="provider")
        try:
            return await self._post_chat(meta.endpoint, address, body)
        except ProviderRejectedError as e:
            if not inference_api.is_stale_token(e.body or e.message):
                raise
        self._tokens.pop(address, None)  # revoked or expired: one new token, one more try
        return await self._post_chat(meta.endpoint, address, body)

    async def _post_chat(self, endpoint: str, provider: Address, body: Mapping[str, object]) -> ChatAnswer:
        reply = await self._ctx.http.request(
            "POST",
            f"{endpoint}/chat/completions",
            json=body,
            headers=await self.get_request_headers(provider),
            limit=inference_api.CHAT_REPLY_LIMIT,
            provider=provider,
            idempotent=False,
            signed=True,
        )
        return inference_api.parse_chat(reply.body, response_key=reply.headers.get("ZG-Res-Key"), provider=provider)

    async def require_acknowledged(self, provider: str) -> InferenceAccount:
        """Return the sub-account, if requests would be accepted from it.

        Raises:
            SignerNotAcknowledgedError: This wallet hasn't acknowledged the provider's signer.
        """
        account = await self.get_account(provider)
        if not account.acknowledged:
            raise SignerNotAcknowledgedError(
                f"this wallet has not acknowledged the TEE signer of {account.provider} for inference",
                status=400,
                provider=account.provider,
                hint="Call inference.acknowledge_provider_signer",
            )
        return account

    async def _account_or_none(self, provider: Address) -> InferenceAccount | None:
        try:
            return await self._ctx.chain.call(self._contract.get_account(self._ctx.wallet, provider))
        except AccountNotFoundError:
            return None


def _time(milliseconds: int) -> dt.datetime:
    return dt.datetime.fromtimestamp(milliseconds / 1000, dt.UTC)
