"""What the status service and providers say of models, prices and health."""

import json
from decimal import Decimal
from fractions import Fraction

import pytest

from tests.unit.test_answer_proof import PROVIDER, service
from zg_async.errors import ProviderReplyError
from zg_async.wire.catalogue import (
    ModelInfo,
    ServiceHealth,
    parse_health,
    parse_models,
    parse_status_models,
    service_prices,
    with_health,
)
from zg_async.wire.inference_api import parse_additional_info

MODEL = {
    "id": "m1",
    "canonical_id": "org/m1",
    "provider": PROVIDER.lower(),
    "type": "chatbot",
    "context_length": 4096,
    "pricing": {
        "prompt": "100",
        "completion": "0.5",
        "image": "7",
        "tiered_pricing": [
            {"max_input_tokens": 10, "input_multiplier": 3, "input_multiplier_denominator": 2, "output_multiplier": 1}
        ],
        "cache_token_billing": {"divisor": 10, "write1h_multiplier_numerator": 2, "write1h_multiplier_denominator": 1},
    },
    "pricing_usd": {"prompt": "0.000001"},
    "unheard_of": [1],
}


def test_models_are_read_with_tiers_cache_and_dollars():
    [model] = parse_models(json.dumps({"data": [MODEL, {"no": "id"}, 3]}).encode(), provider=PROVIDER)
    assert (model.id, model.canonical_id, model.context_length) == ("m1", "org/m1", 4096)
    assert (model.prices.prompt, model.prices.completion, model.prices.image) == (100, Decimal("0.5"), 7)
    assert model.prices.tiers[0].input_multiplier == Fraction(3, 2)
    assert model.prices.cache.divisor == 10
    assert model.prices_usd.prompt == Decimal("0.000001")
    assert model.raw["unheard_of"] == [1]


@pytest.mark.parametrize("body", [b"", b"[]", b'{"data":{}}', b"x" * 5_000_001])
def test_a_provider_without_a_list_is_a_reply_error(body):
    with pytest.raises(ProviderReplyError):
        parse_models(body, provider=PROVIDER)


def test_the_status_services_words_are_grouped_by_provider_and_never_raise():
    row = {"provider": PROVIDER.lower(), "model": "m1", "status": "healthy", "checks": {"uptime": 99.5}}
    row["performance"] = {"response_time": {"avg": 250, "unit": "ms", "samples": 4}}
    odd = [{"provider": "x"}, 4, {"provider": PROVIDER, "checks": None, "performance": []}]
    health = parse_health(json.dumps({"services": [row, *odd]}).encode())[PROVIDER]
    assert (health[0].status, health[0].uptime, health[0].response_time) == ("healthy", 99.5, 250)
    assert health[1].status == "unknown"
    assert parse_status_models(json.dumps({"data": [MODEL]}).encode())[PROVIDER][0].id == "m1"
    for body in (b"", b"[]", b"{}", b'{"services":3,"data":3}'):
        assert parse_health(body) == {} == parse_status_models(body)


def health(model: str) -> ServiceHealth:
    return ServiceHealth(status="healthy", uptime=1, response_time=1, last_check="", model=model)


def test_health_goes_to_models_by_id_then_canonical_id_then_alone():
    two = (ModelInfo(id="a"), ModelInfo(id="b", canonical_id="org/b"))
    found = with_health(two, (health("org/b"), health("a")))
    assert [m.health and m.health.model for m in found] == ["a", "org/b"]
    assert with_health((ModelInfo(id="a"),), (health("other"),))[0].health is not None
    assert with_health(two, (health("other"),))[0].health is None


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("chatbot", {"per_input_token": 3, "per_output_token": 7, "per_image": 0, "per_second": 0}),
        ("text-to-image", {"per_input_token": 0, "per_output_token": 0, "per_image": 7}),
        ("image-editing", {"per_image": 7}),
        ("speech-to-text", {"per_second": 3, "per_output_token": 7}),
        ("video-generation", {"per_input_token": 3}),
    ],
)
def test_the_two_prices_mean_what_the_service_type_says(kind, fields):
    info = parse_additional_info('{"MultiModel":true,"priceDenomination":"USD"}')
    prices = service_prices(service(service_type=kind), info)
    assert {name: getattr(prices, name) for name in fields} == fields
    assert (prices.denomination, prices.is_maximum) == ("USD", True)
