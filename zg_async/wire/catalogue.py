"""What providers and the status service say of models and health. Nothing here is proven; it only informs.

Source: TS SDK 0.9.0 (listServiceWithDetail, getProviderModels), 0g-serving-broker api/inference (models route).
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from typing import Any, Final

from zg_async.errors import ProviderReplyError
from zg_async.text import printable
from zg_async.wire.hashing import checksum_address
from zg_async.wire.inference_api import AdditionalInfo, CacheBilling, PriceTier, parse_cache_billing, parse_tier
from zg_async.wire.records import Address, InferenceService
from zg_async.wire.strict_json import BadJsonError, decode_json

_HUMP: Final = re.compile(r"_([a-z0-9])")
CATALOGUE_LIMIT: Final = 5_000_000
"""Bytes of a model list, as the peers have it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelPrices:
    """A model's prices as its provider states them; in neuron or dollars. None: not said."""

    prompt: Decimal | None = None
    """Per token."""
    completion: Decimal | None = None
    """Per token."""
    image: Decimal | None = None
    """Per image."""
    video: Decimal | None = None
    """Per second."""
    tiers: tuple[PriceTier, ...] = ()
    cache: CacheBilling | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceHealth:
    """What the status service measured."""

    status: str
    """`healthy`, `warning`, `critical`, `unknown`, or another word of its."""
    uptime: float
    """Per cent of checks that succeeded."""
    response_time: float
    """Average, in the service's own unit (milliseconds today); 0: not measured."""
    last_check: str
    model: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """A model as a provider describes it; `raw` has every other field."""

    id: str
    canonical_id: str = ""
    name: str = ""
    type: str = ""
    context_length: int | None = None
    max_completion_tokens: int | None = None
    verifiability: str = ""
    provider_type: str = ""
    prices: ModelPrices = ModelPrices()
    prices_usd: ModelPrices = ModelPrices()
    health: ServiceHealth | None = None
    raw: Mapping[str, Any] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServicePrices:
    """What a service bills, from its registration; in neuron."""

    per_input_token: int = 0
    per_output_token: int = 0
    per_image: int = 0
    per_second: int = 0
    """Of audio, where the provider bills by duration."""
    denomination: str = "NATIVE"
    """`USD`: the registered prices follow a rate."""
    is_maximum: bool = False
    """The provider serves several models, and these are the highest prices."""
    tiers: tuple[PriceTier, ...] = ()
    cache: CacheBilling | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class InferenceServiceDetail:
    """A registration with everything that is known besides."""

    service: InferenceService
    info: AdditionalInfo
    prices: ServicePrices
    health: ServiceHealth | None
    """None: the status service doesn't know it, or couldn't be asked."""
    models: tuple[ModelInfo, ...]
    """Its models by the status service."""

    @property
    def model(self) -> ModelInfo | None:
        """The registered model's description."""
        return next((m for m in self.models if m.id == self.service.model), None)


def service_prices(service: InferenceService, info: AdditionalInfo) -> ServicePrices:
    """Return what a registration's two prices mean for its service type."""
    into, out = service.input_price, service.output_price
    kind = service.service_type
    is_image, is_speech = kind in ("text-to-image", "image-editing"), kind == "speech-to-text"
    return ServicePrices(
        per_input_token=0 if is_image else into,
        per_output_token=0 if is_image else out,
        per_image=out if is_image else 0,
        per_second=into if is_speech else 0,
        denomination=info.price_denomination or "NATIVE",
        is_maximum=info.multi_model,
        tiers=info.tiers,
        cache=info.cache_billing,
    )


def parse_models(body: bytes, *, provider: Address) -> tuple[ModelInfo, ...]:
    """Read a provider's own list of models.

    Raises:
        ProviderReplyError: It isn't one.
    """
    try:
        value = decode_json(body, limit=CATALOGUE_LIMIT)
    except BadJsonError as error:
        raise ProviderReplyError(f"the provider's model list can't be read: {error}", provider=provider) from None
    rows = value.get("data") if isinstance(value, dict) else None
    if not isinstance(rows, list):
        raise ProviderReplyError("the provider's model list has no data", provider=provider)
    return tuple(m for row in rows if (m := _model(row)) is not None)


def parse_status_models(body: bytes) -> dict[Address, tuple[ModelInfo, ...]]:
    """Read the status service's models, by provider. Never raises."""
    found: dict[Address, tuple[ModelInfo, ...]] = {}
    for row in _rows(body, "data"):
        model, provider = _model(row), _provider(row)
        if model is not None and provider is not None:
            found[provider] = (*found.get(provider, ()), model)
    return found


def parse_health(body: bytes) -> dict[Address, tuple[ServiceHealth, ...]]:
    """Read the status service's measurements, by provider. Never raises."""
    found: dict[Address, tuple[ServiceHealth, ...]] = {}
    for row in _rows(body, "services"):
        if (provider := _provider(row)) is not None:
            found[provider] = (*found.get(provider, ()), _health(row))
    return found


def with_health(models: Sequence[ModelInfo], health: Sequence[ServiceHealth]) -> tuple[ModelInfo, ...]:
    """Give each model its measurement: by id, else by canonical id, else the only one to the only one."""
    found = []
    for model in models:
        match = next((h for h in health if h.model == model.id), None) or next(
            (h for h in health if model.canonical_id and h.model == model.canonical_id), None
        )
        if match is None and len(models) == len(health) == 1:
            match = health[0]
        found.append(dataclasses.replace(model, health=match))
    return tuple(found)


def _rows(body: bytes, key: str) -> list[dict[str, Any]]:
    try:
        value = decode_json(body, limit=CATALOGUE_LIMIT)
    except BadJsonError:
        return []
    rows = value.get(key) if isinstance(value, dict) else None
    return [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []


def _provider(row: Mapping[str, Any]) -> Address | None:
    try:
        return checksum_address(_text(row, "provider"))
    except ValueError:
        return None


def _health(row: Mapping[str, Any]) -> ServiceHealth:
    checks, performance = _part(row, "checks"), _part(row, "performance")
    return ServiceHealth(
        status=printable(_text(row, "status") or "unknown", limit=40),
        uptime=_number(checks.get("uptime")),
        response_time=_number(_part(performance, "response_time").get("avg")),
        last_check=printable(_text(row, "lastCheck"), limit=40),
        model=_text(row, "model"),
    )


def _model(row: Any) -> ModelInfo | None:
    if not isinstance(row, dict) or not _text(row, "id"):
        return None
    return ModelInfo(
        id=_text(row, "id"),
        canonical_id=_text(row, "canonical_id"),
        name=_text(row, "name"),
        type=_text(row, "type"),
        context_length=_count(row.get("context_length")),
        max_completion_tokens=_count(row.get("max_completion_tokens")),
        verifiability=_text(row, "verifiability"),
        provider_type=_text(row, "provider_type"),
        prices=_prices(_part(row, "pricing")),
        prices_usd=_prices(_part(row, "pricing_usd")),
        raw=row,
    )


def _prices(value: Mapping[str, Any]) -> ModelPrices:
    tiers = value.get("tiered_pricing")
    rows = [parse_tier(_camel(row)) for row in tiers if isinstance(row, dict)] if isinstance(tiers, list) else []
    return ModelPrices(
        prompt=_price(value.get("prompt")),
        completion=_price(value.get("completion")),
        image=_price(value.get("image")),
        video=_price(value.get("video")),
        tiers=tuple(tier for tier in rows if tier is not None),
        cache=parse_cache_billing(_camel(_part(value, "cache_token_billing"))),
    )


def _camel(row: Mapping[str, Any]) -> dict[str, Any]:
    """`max_input_tokens` -> `maxInputTokens`, as the registration spells the same fields."""
    return {_HUMP.sub(lambda m: m[1].upper(), key): value for key, value in row.items()}


def _price(value: Any) -> Decimal | None:
    if isinstance(value, bool) or not isinstance(value, str | int | float) or len(str(value)) > 80:
        return None
    try:
        price = Decimal(str(value))
    except InvalidOperation:
        return None
    return price if price.is_finite() and price >= 0 else None


def _part(row: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = row.get(key)
    return found if isinstance(found, dict) else {}


def _text(row: Mapping[str, Any], key: str) -> str:
    found = row.get(key)
    return found if isinstance(found, str) else ""


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else 0.0


def _count(value: Any) -> int | None:
    return value if type(value) is int and value >= 0 else None
