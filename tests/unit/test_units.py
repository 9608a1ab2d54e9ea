"""Money is exact: int neuron inside, decimal strings at the border, never float."""

from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zg_async.units import MAX_AMOUNT, NEURON_PER_0G, format_amount, og_to_wei, parse_amount, wei_to_og

neuron = st.integers(0, MAX_AMOUNT)


@pytest.mark.goal("LED-01", part="amounts")
@pytest.mark.parametrize(
    ("amount", "expected"),
    [
        ("0.1", 10**17),
        ("1", 10**18),
        (1, 1),
        (0, 0),
        ("0", 0),
        ("1.0112 0G", 1_011_200_000_000_000_000),
        ("3 A0GI", 3 * 10**18),
        ("3og", 3 * 10**18),
        (" 7 neuron ", 7),
        ("7wei", 7),
        ("0.000000000000000001", 1),
        ("000.10", 10**17),
        (str(MAX_AMOUNT) + " neuron", MAX_AMOUNT),
        (MAX_AMOUNT, MAX_AMOUNT),
    ],
)
def test_amounts_are_read_exactly(amount, expected):
    assert parse_amount(amount) == expected


@pytest.mark.goal("LED-01", part="a float is a TypeError")
@pytest.mark.parametrize(
    "amount", [0.1, 1.0, float("nan"), True, False, None, b"1", Decimal("0.1"), Fraction(1, 2), [1]]
)
def test_what_is_neither_int_nor_text_is_a_type_error(amount):
    with pytest.raises(TypeError, match=r'write "0.1" instead of 0.1'):
        parse_amount(amount)


@pytest.mark.parametrize(
    "text",
    [
        "", " ", ".", "1.", ".5", "-1", "+1", "1e18", "0x10", "1,5", "1_000", "1 000", "nan", "inf", "1 eth", "1 2",
        "1.5 neuron", "0.0000000000000000001", "٣", "1\n2", "1" * 200, str(MAX_AMOUNT + 1) + " neuron",
    ],
)  # fmt: skip
def test_what_is_no_amount_is_a_value_error(text):
    with pytest.raises(ValueError):  # noqa: PT011 - the messages differ
        parse_amount(text)


@pytest.mark.parametrize("amount", [-1, MAX_AMOUNT + 1])
def test_amounts_outside_of_a_contracts_range_are_value_errors(amount):
    with pytest.raises(ValueError, match="an amount"):
        parse_amount(amount)


@given(neuron)
def test_any_amount_survives_writing_and_reading(amount):
    assert parse_amount(wei_to_og(amount)) == amount
    assert parse_amount(format_amount(amount)) == amount
    assert parse_amount(f"{amount} neuron") == amount


@given(st.integers(0, 10**20), st.text("0123456789", max_size=18))
def test_reading_agrees_with_exact_fractions(whole, decimals):
    text = f"{whole}.{decimals}" if decimals else str(whole)
    assert parse_amount(text) == Fraction(text) * NEURON_PER_0G


@given(neuron, st.integers(0, 18))
def test_a_shortened_amount_never_says_more_than_there_is(amount, decimals):
    assert 0 <= amount - parse_amount(format_amount(amount, decimals=decimals)) < 10 ** (18 - decimals)


@pytest.mark.parametrize(
    ("amount", "text"), [(0, "0 0G"), (1, "0.000000000000000001 0G"), (-(10**17), "-0.1 0G"), (10**18, "1 0G")]
)
def test_amounts_are_written_in_full(amount, text):
    assert format_amount(amount) == text


def test_the_peers_helpers_convert_exactly():
    assert og_to_wei("0.1") == 10**17
    assert og_to_wei(2) == 2 * 10**18
    assert wei_to_og(10**17) == "0.1"


@pytest.mark.parametrize(
    ("convert", "amount"), [(og_to_wei, 0.1), (og_to_wei, True), (wei_to_og, 0.1), (wei_to_og, "1"), (wei_to_og, True)]
)
def test_the_peers_helpers_refuse_floats_too(convert, amount):
    with pytest.raises(TypeError):
        convert(amount)
