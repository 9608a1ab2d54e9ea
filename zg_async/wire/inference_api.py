"""The inference provider's API, as far as tokens, adapters and chat go.

Source: 0g-serving-broker api/inference/internal (ctrl/request.go, handler, lora, proxy); the peers' adapter-name
and session rules.
"""

import enum
import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Final, Protocol
from urllib.parse import quote

from zg_async.errors import ConfigError, ProviderReplyError, SignatureMismatchError
from zg_async.text import printable
from zg_async.wire.hashing import checksum_address
from zg_async.wire.records import (
    Adapter,
    AdapterState,
    Address,
    ChatAnswer,
    InferenceService,
    TaskId,
    Usage,
)
from zg_async.wire.signing import (
    TokenFields,
    eip191_hash,
    personal_text_hash,
    recover_address,
    session_token_hash,
    split_session_token,
    token_fields,
)
from zg_async.wire.strict_json import BadJsonError, decode_json

EPHEMERAL_TOKEN_ID: Final = 255
"""Short-lived tokens share this id; only a new generation revokes it."""
EPHEMERAL_MS: Final = 86_400_000
"""Longest life of an ephemeral token, and its default: 24 hours in milliseconds."""
CHAT_REPLY_LIMIT: Final = 32 * 1024 * 1024
ADAPTER_REPLY_LIMIT: Final = 8 * 1024 * 1024
ADDITIONAL_INFO_LIMIT: Final = 4096
ADAPTER_PREFIX: Final = "ft-"

# --- paths -----------------------------------------------------------------------------------------------------------


def proxy_url(service_url: str) -> str:
    """Return the OpenAI-compatible base URL of a provider's service."""
    return service_url.rstrip("/") + "/v1/proxy"


def adapters_path() -> str:
    """Return where adapters are listed."""
    return "/v1/lora/adapters"


def adapter_path(adapter_name: str) -> str:
    """Return one adapter's path."""
    return f"/v1/lora/adapters/{quote(adapter_name, safe='')}"


def deploy_path() -> str:
    """Return where a deployment is asked for."""
    return "/v1/lora/adapters/deploy"


def signature_path(response_key: str, model: str) -> str:
    """Return where the signature of an answer is kept (20 minutes by default)."""
    return f"/v1/proxy/signature/{quote(response_key, safe='')}?model={quote(model, safe='')}"


# --- adapters --------------------------------------------------------------------------------------------------------


def adapter_name(base_model: str, task_id: str) -> str:
    """Guess an adapter's name by the newest provider's rule. The provider's own list is the authority.

    The base model's last path component with `/`, `.` and space as `-`, and the task id's first 12 bytes.
    """
    return _adapter_name(_last_component(base_model), task_id.encode()[:12].decode("utf-8", "ignore"))


def peer_adapter_name(base_model: str, task_id: str) -> str:
    """Name an adapter as the peers' SDKs do: the whole path, 12 characters. Only to recognise their names."""
    return _adapter_name(base_model, task_id[:12])


def _adapter_name(model: str, task: str) -> str:
    return f"{ADAPTER_PREFIX}{re.sub(r'[/. ]', '-', model).strip('-')}-{task}"


def _last_component(path: str) -> str:
    """Go's filepath.Base."""
    if not path:
        return "."
    return path.rstrip("/").rpartition("/")[2] or "/"


def same_model(one: str, other: str) -> bool:
    """Return whether two names mean the same base model: path and case don't count."""
    return _last_component(one.strip()).casefold() == _last_component(other.strip()).casefold()


def parse_adapter(body: Any, *, provider: Address) -> Adapter:
    """Read an adapter.

    Args:
        body: JSON bytes, or what they decode to.
        provider: Whose answer it is.

    Raises:
        ProviderReplyError: No name or state in it.
    """
    value = _decoded(body, ADAPTER_REPLY_LIMIT, provider)
    if not isinstance(value, dict):
        raise ProviderReplyError("the provider's adapter is no object", provider=provider)
    name, state = value.get("adapterName"), value.get("state")
    if not isinstance(name, str) or not isinstance(state, str):
        raise ProviderReplyError("the provider's adapter has no name or state", provider=provider)
    return Adapter(
        adapter_name=name,
        task_id=_task_id(_text(value, "taskId")),
        base_model=_text(value, "baseModel"),
        state=parse_state(state),
        state_text=state,
        user=_address(_text(value, "userAddress")),
        storage_root=_text(value, "storageRootHash"),
        error=_text(value, "error"),
    )


def parse_state(text: str) -> AdapterState:
    """Map a provider's word for an adapter's state; an unknown one counts as in progress."""
    try:
        return AdapterState(text)
    except ValueError:
        return AdapterState.UNKNOWN


def parse_adapters(body: Any, *, provider: Address) -> tuple[Adapter, ...]:
    """Read a list of adapters; some providers list everybody's.

    Raises:
        ProviderReplyError: No list, or an adapter that can't be read.
    """
    value = _decoded(body, ADAPTER_REPLY_LIMIT, provider)
    rows = value.get("adapters") if isinstance(value, dict) else value
    if rows is None and isinstance(value, dict):
        return ()
    if not isinstance(rows, list):
        raise ProviderReplyError("the provider's adapter list is no list", provider=provider)
    return tuple(parse_adapter(row, provider=provider) for row in rows)


def parse_deploy(body: Any, *, provider: Address) -> tuple[str, str]:
    """Read the answer to a deployment: the adapter's name (empty if not said) and the provider's words.

    Raises:
        ProviderReplyError: It is no object.
    """
    value = _decoded(body, ADAPTER_REPLY_LIMIT, provider)
    if not isinstance(value, dict):
        raise ProviderReplyError("the provider's answer to a deployment is no object", provider=provider)
    return _text(value, "adapterName"), printable(_text(value, "message") or _text(value, "status"))


class Refusal(enum.StrEnum):
    """What a provider's refusal says of an adapter."""

    UNKNOWN_ADAPTER = "unknown_adapter"
    NOT_OWNER = "not_owner"
    NOT_DEPLOYED = "not_deployed"
    LOADING = "loading"
    RESTORING = "restoring"
    FAILED = "failed"
    DISABLED = "disabled"
    OTHER = "other"


_REFUSALS: Final[tuple[tuple[str, Refusal], ...]] = (
    ("access denied: you are not the owner", Refusal.NOT_OWNER),
    ("do not own this adapter", Refusal.NOT_OWNER),
    ("is downloaded but not deployed", Refusal.NOT_DEPLOYED),
    ("is restoring", Refusal.RESTORING),
    ("is still loading", Refusal.LOADING),
    ("is still being downloaded or deployed", Refusal.LOADING),
    ("failed to deploy", Refusal.FAILED),
    ("lora serving not enabled", Refusal.DISABLED),
    ("fine-tuned model not found", Refusal.UNKNOWN_ADAPTER),
    ("adapter not found", Refusal.UNKNOWN_ADAPTER),
)
_ADAPTER_NOT_FOUND: Final = re.compile(r"adapter \S+ not found")
_REFUSAL_HINTS: Final[Mapping[Refusal, str]] = {
    Refusal.UNKNOWN_ADAPTER: "A provider learns of an adapter about 30 seconds after its delivery was acknowledged, "
    "and only of those it trained itself.",
    Refusal.NOT_OWNER: "Only the wallet whose task it was may use this adapter.",
    Refusal.NOT_DEPLOYED: "Deploy it first: lora.deploy_adapter.",
    Refusal.LOADING: "Wait until its state is active.",
    Refusal.RESTORING: "It was put aside; ask again in 30 seconds.",
    Refusal.FAILED: "The provider couldn't load it: deploy it again.",
    Refusal.DISABLED: "This provider serves no adapters.",
}


def classify_refusal(text: str) -> Refusal:
    """Tell from a refusal's text what is the matter with an adapter; its status says too little."""
    lower = text.lower()
    if found := next((refusal for part, refusal in _REFUSALS if part in lower), None):
        return found
    return Refusal.UNKNOWN_ADAPTER if _ADAPTER_NOT_FOUND.search(lower) else Refusal.OTHER


def refusal_hint(text: str) -> str | None:
    """Return what to do about a refusal, if we know."""
    return _REFUSAL_HINTS.get(classify_refusal(text))


def deploy_is_under_way(status: int, text: str) -> bool:
    """Return whether a refused deployment means that it is done or being done already."""
    lower = text.lower()
    return status == 409 and ("is already deployed" in lower or "please wait" in lower)


# --- session tokens --------------------------------------------------------------------------------------------------


class InvalidTokenError(ValueError):
    """A session token is refused; the text is the provider's."""


class TokenAccount(Protocol):
    """What of a sub-account decides on tokens; `InferenceAccount` fits."""

    @property
    def generation(self) -> int:
        """Tokens of a smaller generation are revoked."""
        ...

    @property
    def revoked_bitmap(self) -> int:
        """Bit n set: API key n is revoked."""
        ...


def check_session_token(
    authorization: str, *, serving_provider: str, now_ms: int, account: TokenAccount | None
) -> TokenFields:
    """Check a request's token as providers do (internal/ctrl/request.go), in their order.

    Args:
        authorization: The header's value.
        serving_provider: The provider's own address.
        now_ms: Unix milliseconds.
        account: The sub-account on chain of the token's address, or None when there is none.

    Returns:
        The token's fields. `address` is who signed it.

    Raises:
        InvalidTokenError: With the provider's literal words.
    """
    fields, raw, signature = _presented(authorization)
    if fields.provider.lower() != serving_provider.lower():
        raise InvalidTokenError("session token is for different provider")
    _check_life(fields, now_ms)
    if account is not None:
        _check_revocation(fields, account)
    if not re.fullmatch(r"0x[0-9a-fA-F]{130}", signature):
        raise InvalidTokenError("invalid signature format")
    if signature[-2:].lower() not in ("1b", "1c"):
        raise InvalidTokenError("signature verification failed: failed to recover")
    try:
        signer = recover_address(eip191_hash(session_token_hash(raw)), bytes.fromhex(signature[2:]))
    except SignatureMismatchError:
        raise InvalidTokenError("signature verification failed: failed to recover") from None
    if signer.lower() != fields.address.lower():
        raise InvalidTokenError("signature verification failed: address mismatch")
    return fields


def presented_token(authorization: str) -> TokenFields:
    """Read who presents a token, unproven: to look the sub-account up before `check_session_token`.

    Raises:
        InvalidTokenError: With the provider's literal words.
    """
    return _presented(authorization)[0]


def _presented(authorization: str) -> tuple[TokenFields, str, str]:
    if not authorization.startswith("Bearer app-sk-"):
        raise InvalidTokenError("missing or invalid Authorization header")
    try:
        raw, signature = split_session_token(authorization.removeprefix("Bearer "))
        return token_fields(raw), raw, signature
    except ValueError as error:
        raise InvalidTokenError(str(error)) from None


def _check_life(fields: TokenFields, now_ms: int) -> None:
    if fields.token_id == EPHEMERAL_TOKEN_ID:
        if fields.expires_at_ms == 0:
            raise InvalidTokenError("ephemeral token must have an expiration time")
        if fields.expires_at_ms - fields.timestamp_ms > EPHEMERAL_MS:
            raise InvalidTokenError("ephemeral token duration cannot exceed 24 hours")
    if fields.expires_at_ms > 0 and now_ms // 1000 > fields.expires_at_ms // 1000:
        raise InvalidTokenError("session token expired")


def _check_revocation(fields: TokenFields, account: TokenAccount) -> None:
    if fields.generation < account.generation:
        raise InvalidTokenError("session token has been revoked (generation expired)")
    if fields.generation > account.generation:
        raise InvalidTokenError("invalid session token (future generation)")
    if fields.token_id != EPHEMERAL_TOKEN_ID and account.revoked_bitmap >> fields.token_id & 1:
        raise InvalidTokenError("session token has been revoked")


def is_stale_token(text: str) -> bool:
    """Return whether a refusal means that a new token may help: expired, revoked, another generation."""
    lower = text.lower()
    return "session token" in lower and ("expired" in lower or "revoked" in lower or "generation" in lower)


def pick_token_id(revoked_bitmap: int, token_id: int | None = None) -> int:
    """Choose an API key's id.

    Args:
        revoked_bitmap: The sub-account's; 0 when there is none.
        token_id: The id wanted, 0 to 254; None takes the lowest that isn't revoked, which may be in use.

    Raises:
        ConfigError: Out of range, revoked, or all ids are revoked.
    """
    if token_id is None:
        free = next((n for n in range(EPHEMERAL_TOKEN_ID) if not revoked_bitmap >> n & 1), None)
        if free is None:
            raise ConfigError("all 255 API key ids are revoked", hint="Call revoke_all_tokens to begin anew.")
        return free
    if not 0 <= token_id < EPHEMERAL_TOKEN_ID:
        raise ConfigError(f"an API key's id is between 0 and 254, not {token_id}")
    if revoked_bitmap >> token_id & 1:
        raise ConfigError(
            f"API key id {token_id} is revoked", hint="Take another id, or call revoke_all_tokens to begin anew."
        )
    return token_id


def token_expiry(created_ms: int, seconds: float | None, *, ephemeral: bool) -> int:
    """Return when a token expires, in unix milliseconds; 0: never.

    Args:
        created_ms: Unix milliseconds.
        seconds: How long it lives. None or not positive: an ephemeral one 24 hours, an API key for ever.
        ephemeral: Whether it is a short-lived token.

    Raises:
        ConfigError: More than 24 hours for an ephemeral one.
    """
    duration = round(seconds * 1000) if seconds is not None else 0
    if duration <= 0:
        return created_ms + EPHEMERAL_MS if ephemeral else 0
    if ephemeral and duration > EPHEMERAL_MS:
        raise ConfigError("a session token lives at most 24 hours", hint="Make an API key for more.")
    return created_ms + duration


# --- services --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class PriceTier:
    """Prices for requests of up to so many tokens."""

    max_input_tokens: int
    """0: no upper bound."""
    input_multiplier: Fraction
    output_multiplier: Fraction


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheBilling:
    """What cached prompt tokens cost: price x tokens / divisor."""

    divisor: int
    write_multiplier: Fraction | None = None
    write_1h_multiplier: Fraction | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AdditionalInfo:
    """What a provider's registration says besides its fields. Absent or malformed parts have their defaults."""

    is_json: bool = False
    """Whether it was a JSON object at all; old providers stored other things."""
    verifier_url: str = ""
    tee_verifier: str = ""
    """`dstack` or `cryptopilot`."""
    target_separated: bool = False
    """The model runs in another TEE than the broker."""
    target_tee_address: str = ""
    image_name: str = ""
    image_digest: str = ""
    provider_type: str = "decentralized"
    """Or `centralized`, `standard`."""
    provider_identity: str = ""
    tiers: tuple[PriceTier, ...] = ()
    cache_billing: CacheBilling | None = None
    multi_model: bool = False
    price_denomination: str = ""
    """`NATIVE` or `USD`."""
    lora_enabled: bool | None = None
    """None: not said."""


def parse_additional_info(text: str) -> AdditionalInfo:
    """Read a service's `additional_info`. Never raises: what can't be read counts as absent."""
    try:
        value = decode_json(text, limit=4 * ADDITIONAL_INFO_LIMIT)
    except BadJsonError:
        return AdditionalInfo()
    if not isinstance(value, dict):
        return AdditionalInfo()
    lora = value.get("LoRAEnabled")
    return AdditionalInfo(
        is_json=True,
        verifier_url=_text(value, "VerifierURL"),
        tee_verifier=_text(value, "TEEVerifier"),
        target_separated=value.get("TargetSeparated") is True,
        target_tee_address=_text(value, "TargetTeeAddress"),
        image_name=_text(value, "ImageName"),
        image_digest=_text(value, "ImageDigest"),
        provider_type=_text(value, "ProviderType") or "decentralized",
        provider_identity=_text(value, "ProviderIdentity"),
        tiers=_tiers(value.get("tieredPricing")),
        cache_billing=parse_cache_billing(value.get("cacheTokenBilling")),
        multi_model=value.get("MultiModel") is True,
        price_denomination=_text(value, "priceDenomination"),
        lora_enabled=lora if isinstance(lora, bool) else None,
    )


def _tiers(value: Any) -> tuple[PriceTier, ...]:
    rows = value.get("tiers") if isinstance(value, dict) else None
    if not isinstance(rows, list):
        return ()
    found = [parse_tier(row) for row in rows if isinstance(row, dict)]
    tiers = tuple(tier for tier in found if tier is not None)
    return tiers if len(tiers) == len(rows) else ()


def parse_tier(row: Mapping[str, Any]) -> PriceTier | None:
    """Read one tier; None if a field is missing or makes no sense."""
    most = row.get("maxInputTokens")
    into = _fraction(row.get("inputMultiplier"), row.get("inputMultiplierDenominator", 1))
    out = _fraction(row.get("outputMultiplier"), row.get("outputMultiplierDenominator", 1))
    if isinstance(most, bool) or not isinstance(most, int) or most < 0 or into is None or out is None:
        return None
    return PriceTier(max_input_tokens=most, input_multiplier=into, output_multiplier=out)


def _fraction(numerator: Any, denominator: Any) -> Fraction | None:
    good = all(isinstance(n, int | float) and not isinstance(n, bool) and n >= 0 for n in (numerator, denominator))
    if not good or not denominator:
        return None
    return Fraction(str(numerator)) / Fraction(str(denominator))


def parse_cache_billing(value: Any) -> CacheBilling | None:
    """Read how cached tokens are billed; None if it isn't said."""
    divisor = value.get("divisor") if isinstance(value, dict) else None
    if isinstance(divisor, bool) or not isinstance(divisor, int) or divisor <= 0:
        return None
    return CacheBilling(
        divisor=divisor,
        write_multiplier=_fraction(value.get("writeMultiplierNumerator"), value.get("writeMultiplierDenominator", 1)),
        write_1h_multiplier=_fraction(
            value.get("write1hMultiplierNumerator"), value.get("write1hMultiplierDenominator", 1)
        ),
    )


def response_signer(service: InferenceService) -> Address | None:
    """Return who has to sign a service's answers: the broker's signer, or the model's in another TEE.

    Returns:
        None: a separate signer is announced whose address can't be read.
    """
    info = parse_additional_info(service.additional_info)
    if info.target_separated and info.provider_type != "centralized" and info.target_tee_address:
        return _address(info.target_tee_address)
    return service.tee_signer_address


def is_signed_by(text: str, signature: str, address: str) -> bool:
    """Return whether `signature` (hex) over a text is by `address`; a malformed one is by nobody."""
    digits = signature[2:] if signature[:2] in ("0x", "0X") else signature
    try:
        return recover_address(personal_text_hash(text), bytes.fromhex(digits)).lower() == address.lower()
    except (ValueError, SignatureMismatchError):
        return False


# --- chat ------------------------------------------------------------------------------------------------------------


def parse_chat(body: Any, *, response_key: str | None, provider: Address) -> ChatAnswer:
    """Read a chat completion.

    Args:
        body: JSON bytes, or what they decode to.
        response_key: The `ZG-Res-Key` header; without it the completion's id names the signature.
        provider: Whose answer it is.

    Raises:
        ProviderReplyError: It has no choice with a message.
    """
    value = _decoded(body, CHAT_REPLY_LIMIT, provider)
    choices = value.get("choices") if isinstance(value, dict) else None
    choice = choices[0] if isinstance(choices, list) and choices else None
    message = choice.get("message") if isinstance(choice, dict) else None
    if not isinstance(choice, dict) or not isinstance(message, dict):
        raise ProviderReplyError("the provider's chat answer has no message", provider=provider)
    finish = choice.get("finish_reason")
    return ChatAnswer(
        id=_text(value, "id"),
        model=_text(value, "model"),
        content=_text(message, "content"),
        finish_reason=finish if isinstance(finish, str) else None,
        usage=parse_usage(value.get("usage")),
        response_key=response_key or _text(value, "id") or None,
        raw=value,
    )


def parse_usage(value: Any) -> Usage | None:
    """Read a `usage` object; None if it is none."""
    if not isinstance(value, dict):
        return None
    details = value.get("prompt_tokens_details")
    cached = details.get("cached_tokens") if isinstance(details, dict) else 0
    prompt, completion = value.get("prompt_tokens", 0), value.get("completion_tokens", 0)
    if not all(type(n) is int and n >= 0 for n in (prompt, completion)):
        return None
    known = min(max(cached, 0), prompt) if type(cached) is int else 0
    return Usage(prompt_tokens=prompt, completion_tokens=completion, cached_tokens=known)


# --- fields ----------------------------------------------------------------------------------------------------------


def _decoded(value: Any, limit: int, provider: Address) -> Any:
    if not isinstance(value, bytes | bytearray):
        return value
    try:
        return decode_json(value, limit=limit)
    except BadJsonError as error:
        raise ProviderReplyError(f"the provider's answer can't be read: {error}", provider=provider) from None


def _text(value: Mapping[str, Any], key: str) -> str:
    found = value.get(key)
    return found if isinstance(found, str) else ""


def _task_id(text: str) -> TaskId:
    try:
        return TaskId(str(uuid.UUID(text)))
    except ValueError:
        return TaskId(text)


def _address(text: str) -> Address | None:
    try:
        return checksum_address(text)
    except ValueError:
        return None
