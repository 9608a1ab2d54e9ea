"""Counts, fees and funding: the vectors, and the tiers the peers leave out."""

import pytest

from tests.golden import ids, vectors
from tests.unit.test_answer_proof import service
from zg_async.wire.billing import Counts, count_content, fee_of_counts, fee_of_usage, funding_needed
from zg_async.wire.records import Usage

V = vectors("inference")
OG = 10**18


@pytest.mark.parametrize("row", V["extractors"], ids=ids(V["extractors"]))
def test_contents_are_counted_as_by_the_peers(row):
    counts = count_content(row["service_type"], row["content"])
    assert (counts.inputs, counts.outputs) == (int(row["input_count"]), row["output_count"])


@pytest.mark.parametrize(
    "row",
    [r for r in V["extractors"] if r["service_type"] in ("chatbot", "speech-to-text") and "1.5" not in r["content"]],
    ids=lambda r: r["content"],
)
def test_fees_of_chat_and_speech_are_the_peers(row):
    one = service(service_type=row["service_type"])
    fee = fee_of_counts(one, count_content(row["service_type"], row["content"]))
    assert str(fee) == row["fee_at_input_price_3_output_price_7"]


def test_images_cost_the_output_price():
    assert fee_of_counts(service(service_type="text-to-image"), Counts(inputs=4, outputs=0)) == 28


@pytest.mark.parametrize(
    "content", ['{"n":-3}', '{"n":true}', '{"n":1e300}', '{"n":[]}', '{"prompt_tokens":-1}', "\ud800"]
)
def test_odd_contents_never_raise(content):
    for kind in ("chatbot", "text-to-image", "speech-to-text", "embedding"):
        counts = count_content(kind, content)
        assert counts.inputs >= 0
        assert counts.outputs >= 0


@pytest.mark.parametrize(("tokens", "fee"), [(32_000, 96_000 + 7), (32_001, 144_005 + 14)])
def test_tiers_are_chosen_by_the_prompt_and_fractions_round_up(tokens, fee):
    info = (
        '{"tieredPricing":{"tiers":[{"maxInputTokens":32000,"inputMultiplier":1,"outputMultiplier":1},'
        '{"maxInputTokens":0,"inputMultiplier":3,"inputMultiplierDenominator":2,"outputMultiplier":2}]}}'
    )
    assert fee_of_usage(service(additional_info=info), Usage(prompt_tokens=tokens, completion_tokens=1)) == fee


def test_cached_tokens_cost_their_part():
    one = service(additional_info='{"cacheTokenBilling":{"divisor":10}}')
    usage = Usage(prompt_tokens=100, completion_tokens=0, cached_tokens=50)
    assert fee_of_usage(one, usage) == 3 * 50 + 15
    assert fee_of_usage(service(additional_info=""), usage) == 300


@pytest.mark.parametrize("row", V["auto_funding"], ids=ids(V["auto_funding"]))
def test_what_has_to_be_moved_is_the_peers_amount(row):
    unsettled = row["unsettled_fee_from_provider"] or row["cached_fee"] or "0"
    account = row["account"]
    spendable = None if account is None else int(account["balance"]) - int(account["pending_refund"])
    needed = funding_needed(
        unsettled=int(unsettled), buffer=row["buffer_multiplier"] * OG, spendable=spendable, minimum=OG
    )
    assert needed == int(row["expect_transfer"] or 0)
