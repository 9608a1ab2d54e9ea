import dataclasses
import random
import re

import pytest

from zg_async.errors import FeeCapError
from zg_async.transport.fees import GWEI, FeePolicy, Fees, bump, choose_fees, gas_limit
from zg_async.transport.quotes import check_money

POLICY = FeePolicy(max_fee_per_gas=100 * GWEI)


def fees(fee, tip):
    return Fees(max_fee_per_gas=fee, max_priority_fee_per_gas=tip)


def test_fees_are_twice_the_base_fee_plus_tip():
    assert choose_fees(POLICY, base_fee=GWEI, gas_price=2 * GWEI, tip=GWEI) == fees(3 * GWEI, GWEI)


def test_without_a_suggested_tip_it_is_the_price_less_the_base_fee():
    assert choose_fees(POLICY, base_fee=GWEI, gas_price=3 * GWEI, tip=None) == fees(4 * GWEI, 2 * GWEI)


def test_without_a_base_fee_both_are_the_price():
    assert choose_fees(POLICY, base_fee=None, gas_price=3 * GWEI, tip=None) == fees(3 * GWEI, 3 * GWEI)


def test_a_users_price_is_both_fees():
    policy = FeePolicy(gas_price=5 * GWEI)
    assert choose_fees(policy, base_fee=GWEI, gas_price=9, tip=9) == fees(5 * GWEI, 5 * GWEI)


def test_fees_are_cut_to_the_cap_while_the_next_block_would_take_them():
    assert choose_fees(POLICY, base_fee=80 * GWEI, gas_price=0, tip=GWEI) == fees(100 * GWEI, GWEI)


@pytest.mark.goal("TX-02", part="caps")
@pytest.mark.parametrize(("base", "tip"), [(100 * GWEI, 0), (1, 100 * GWEI), (90 * GWEI, GWEI)])
def test_a_suggestion_above_the_cap_is_an_error_with_the_numbers(base, tip):
    with pytest.raises(FeeCapError, match="gwei per gas now, the cap is 100 gwei"):
        choose_fees(POLICY, base_fee=base, gas_price=base + tip, tip=tip)


@pytest.mark.parametrize("old", [fees(0, 0), fees(1, 0), fees(9, 9), fees(10, 1), fees(10**9 + 1, 7)])
def test_a_bump_raises_both_fees_by_a_tenth_rounded_up_and_at_least_by_one(old):
    new = bump(POLICY, old)
    assert new.max_fee_per_gas >= max(old.max_fee_per_gas + 1, -(-old.max_fee_per_gas * 110 // 100))
    assert new.max_priority_fee_per_gas >= max(
        old.max_priority_fee_per_gas + 1, -(-old.max_priority_fee_per_gas * 110 // 100)
    )


def test_geth_would_accept_every_bump_and_no_bump_passes_the_cap():
    rng = random.Random(7)
    for _ in range(20_000):
        fee = rng.randrange(0, 100 * GWEI + 1) >> rng.randrange(40)
        old = fees(fee, rng.randrange(fee + 1))
        wanted = fees(rng.randrange(200 * GWEI), 0) if rng.random() < 0.5 else None
        new = bump(POLICY, old, wanted)
        if new is None:
            continue
        for before, after in (
            (old.max_fee_per_gas, new.max_fee_per_gas),
            (old.max_priority_fee_per_gas, new.max_priority_fee_per_gas),
        ):
            assert after > before
            assert after >= before * 110 // 100  # go-ethereum's threshold
        assert new.max_priority_fee_per_gas <= new.max_fee_per_gas <= POLICY.max_fee_per_gas


def test_a_bump_follows_the_base_fee():
    assert bump(POLICY, fees(2 * GWEI, GWEI), fees(20 * GWEI, GWEI)) == fees(20 * GWEI, 11 * GWEI // 10)


def test_a_bump_ends_at_the_cap():
    assert bump(POLICY, fees(95 * GWEI, GWEI)) is None
    assert bump(POLICY, fees(90 * GWEI, GWEI), fees(500 * GWEI, GWEI)) == fees(100 * GWEI, 11 * GWEI // 10)


@pytest.mark.goal("TX-02", part="margin")
def test_gas_is_the_estimate_and_a_fifth_within_the_cap():
    assert gas_limit(POLICY, 50_001) == 60_002
    assert gas_limit(POLICY, 9_900_000) == 10_000_000
    with pytest.raises(FeeCapError, match="needs 10000001 gas"):
        gas_limit(POLICY, 10_000_001)


LEAST = {"value": 0, "gas": 21_000, "fees": fees(GWEI, GWEI), "balance": 10**30, "open_cost": 0, "gas_today": 0}
DAILY = FeePolicy(max_gas_cost_per_day=10**18, max_cost_per_tx=2 * 10**18)
GREEDY = [
    *(("base fee", {"base_fee": fee, "gas_price": 0, "tip": 0}) for fee in (10**30, 2**64, 2**255, 101 * GWEI)),
    *(("tip", {"base_fee": GWEI, "gas_price": 0, "tip": tip}) for tip in (10**30, 2**64, 2**255, 100 * GWEI)),
    *(("gas price", {"base_fee": None, "gas_price": price, "tip": None}) for price in (10**30, 2**64, 101 * GWEI)),
    *(("gas", gas) for gas in (2**63, 2**64, 2**255, 10_000_001)),
    ("cost", {"value": 3 * 10**18}),
    ("cost", {"gas": 10_000_000, "fees": fees(500 * GWEI, 0)}),
    ("cost", {"value": 2 * 10**18}),
    ("day", {"gas_today": 10**18}),
    ("day", {"gas_today": 10**18 - 1}),
    ("day", {"gas": 10_000_000, "fees": fees(101 * GWEI, 0)}),
]


@pytest.mark.goal("HRD-05", part="each is refused with the numbers")
@pytest.mark.parametrize(("kind", "asked"), GREEDY)
def test_what_a_greedy_node_asks_is_refused_with_the_numbers(kind, asked):
    assert len(GREEDY) >= 20
    check = {
        "gas": lambda: gas_limit(POLICY, asked),
        "cost": lambda: check_money(DAILY, "0x" + "11" * 20, **(LEAST | asked)),
        "day": lambda: check_money(DAILY, "0x" + "11" * 20, **(LEAST | asked)),
    }.get(kind, lambda: choose_fees(POLICY, **asked))
    with pytest.raises(FeeCapError) as caught:
        check()
    assert re.search(r"\d", caught.value.message)
    assert "cap is" in caught.value.message
    assert caught.value.hint


def test_what_fits_the_caps_is_not_refused():
    check_money(DAILY, "0x" + "11" * 20, **LEAST)


def test_a_step_raises_fees_by_more_and_never_by_less_than_nodes_take():
    old = fees(2 * GWEI, GWEI)
    assert bump(dataclasses.replace(POLICY, bump_tenths=15), old) == fees(3 * GWEI, 3 * GWEI // 2)
    assert bump(dataclasses.replace(POLICY, bump_tenths=2), old) == bump(POLICY, old)
