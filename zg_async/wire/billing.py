"""What calls cost, and what a sub-account has to hold. Estimates: the provider's own count is what is settled.

Source: the peers' extractors (chat, image, speech); 0g-serving-broker api/inference (fees, admission); auto-funding of
both SDKs. Images are billed by `outputPrice`, though the peers estimate them with `inputPrice`.
"""

import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Final

from zg_async.wire.inference_api import AdditionalInfo, parse_additional_info
from zg_async.wire.records import InferenceService, Usage
from zg_async.wire.strict_json import BadJsonError, decode_json

IMAGE_TYPES: Final = frozenset({"text-to-image", "image-editing"})
CONTENT_LIMIT: Final = 32 * 1024 * 1024
_LEADING: Final = re.compile(r"\s*([+-]?[0-9]{1,30})")
_DECIMAL: Final = re.compile(r"\s*([+-]?[0-9]{1,30}(?:\.[0-9]{1,30})?)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """What a call is billed by: tokens, images or seconds, as the service type has it."""

    inputs: int
    outputs: int


def count_content(service_type: str, content: str) -> Counts:
    """Count what the peers' extractors count. Never raises: what can't be read counts as nothing, or as one image.

    Args:
        service_type: The registration's.
        content: A usage object as JSON; of images the request's JSON.
    """
    return count_usage(service_type, _object(content))


def count_usage(service_type: str, value: Any) -> Counts:
    """Count a decoded content; see `count_content`."""
    value = value if isinstance(value, dict) else {}
    if service_type in IMAGE_TYPES:
        wanted = _whole(value.get("n"))
        return Counts(inputs=1 if wanted is None else wanted, outputs=0)
    if service_type == "speech-to-text":
        return _speech(value)
    return Counts(inputs=_whole(value.get("prompt_tokens")) or 0, outputs=_whole(value.get("completion_tokens")) or 0)


def _speech(value: dict[str, Any]) -> Counts:
    seconds, kind = _decimal(value.get("seconds")), value.get("type")
    if kind == "duration" or (kind != "tokens" and seconds > 0):
        return Counts(inputs=max(1, int(seconds + Fraction(1, 2))) if seconds > 0 else 0, outputs=0)
    return Counts(inputs=_whole(value.get("input_tokens")) or 0, outputs=_whole(value.get("output_tokens")) or 0)


def _object(content: str) -> dict[str, Any]:
    try:
        value = decode_json(content, limit=CONTENT_LIMIT)
    except BadJsonError:
        return {}
    return value if isinstance(value, dict) else {}


def _whole(value: Any) -> int | None:
    """The leading integer of a number or text, never negative; None where there is none."""
    if isinstance(value, str):
        match = _LEADING.match(value)
        return max(int(match[1]), 0) if match else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return max(int(value), 0)


def _decimal(value: Any) -> Fraction:
    if isinstance(value, str):
        match = _DECIMAL.match(value)
        return Fraction(match[1]) if match else Fraction(0)
    return Fraction(str(value)) if isinstance(value, int | float) and not isinstance(value, bool) else Fraction(0)


def fee_of_counts(service: InferenceService, counts: Counts) -> int:
    """Estimate a call's fee in neuron at the registered prices, tiers aside."""
    if service.service_type in IMAGE_TYPES:
        return counts.inputs * service.output_price
    return counts.inputs * service.input_price + counts.outputs * service.output_price


def fee_of_usage(service: InferenceService, usage: Usage) -> int:
    """Estimate a chat's fee in neuron, with the registration's tiers and its price of cached tokens."""
    info = parse_additional_info(service.additional_info)
    into, out = _multipliers(info, usage.prompt_tokens)
    fresh = Fraction(usage.prompt_tokens - usage.cached_tokens)
    cached = Fraction(usage.cached_tokens)
    if info.cache_billing is not None:
        cached /= info.cache_billing.divisor
    fee = (fresh + cached) * service.input_price * into + usage.completion_tokens * service.output_price * out
    return -(-fee.numerator // fee.denominator)


def _multipliers(info: AdditionalInfo, tokens: int) -> tuple[Fraction, Fraction]:
    for tier in info.tiers:
        if not tier.max_input_tokens or tokens <= tier.max_input_tokens:
            return tier.input_multiplier, tier.output_multiplier
    return Fraction(1), Fraction(1)


def funding_needed(*, unsettled: int, buffer: int, spendable: int | None, minimum: int) -> int:
    """Return what has to go to a provider so that it keeps on accepting requests; all in neuron.

    Args:
        unsettled: What it has billed and not collected.
        buffer: What should be there beyond that.
        spendable: The sub-account's; None: there is none yet.
        minimum: The least that is moved, as the first transfer needs.

    Returns:
        0 when there is enough.
    """
    deficit = unsettled + buffer - (spendable or 0)
    return max(deficit, minimum) if deficit > 0 else 0
