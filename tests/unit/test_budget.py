"""What counts against limits: running sums, reservations, and what becomes of them."""

import datetime as dt

import pytest

from tests.clock import FakeClock
from zg_async.errors import LimitError
from zg_async.transport.book import LaneBook
from zg_async.transport.budget import Budget, SpendLimits, Totals, group_of
from zg_async.transport.chain_time import ChainTime
from zg_async.transport.rows import LaneId, Money, charge_entry

WALLET = "0x70997970C51812dc3A010C7d01b50e0d17dc79C8"


@pytest.fixture
def book(clock):
    return LaneBook(LaneId(31337, "0x" + "ab" * 32, WALLET))


def charge(book, key, amount, at):
    (planned,) = book.plan([charge_entry(key=key, amount=amount, at=at, height=book.height + 1)])
    book.take(*planned)


def test_the_newest_charge_of_a_key_stands(book, clock):
    budget = Budget(SpendLimits(per_job=100), ChainTime(clock))
    budget.watch(WALLET, book.totals)
    charge(book, "job-1/fee", 90, clock.now())
    with pytest.raises(LimitError, match="per_job"), budget.hold("job-1/fund/1", Money(gone=11)):
        pass
    charge(book, "job-1/fee", 40, clock.now())
    with budget.hold("job-1/fund/1", Money(gone=60)):
        assert budget.gone("job-1") == 100
        with pytest.raises(LimitError), budget.hold("job-1/x", Money(gone=1)):
            pass
    assert budget.gone("job-1") == 40


def test_a_day_later_nothing_counts_any_more(book):
    clock = FakeClock()
    budget = Budget(SpendLimits(per_day=100), ChainTime(clock))
    budget.watch(WALLET, book.totals)
    charge(book, "job-1/fee", 100, clock.now())
    with pytest.raises(LimitError, match="per_day"), budget.hold("once/1", Money(gone=1)):
        pass
    clock.advance(86_400 + 60)
    with budget.hold("once/1", Money(gone=100)):
        pass


@pytest.mark.parametrize(("own", "chain"), [(86_500, 0), (0, 86_500), (-86_500, 0)])
def test_a_day_is_not_over_because_one_clock_leapt(book, own, chain):
    """Before and after the leap, and once it is put right; whichever clock it is."""
    clock = FakeClock()
    time = ChainTime(clock)
    budget = Budget(SpendLimits(per_day=100), time)
    budget.watch(WALLET, book.totals)
    first = clock.now()

    def leap(own, chain):
        clock.advance(60)
        clock._now += own
        time.saw(dt.datetime.fromtimestamp(first + clock.monotonic() + chain, dt.UTC))

    leap(0, 0)
    charge(book, "job-1/fee", 40, time.unix())
    leap(own, chain)
    charge(book, "job-2/fee", 60, time.unix())
    for moved in (0, -own):
        leap(moved, 0 if moved else chain)
        with pytest.raises(LimitError, match="per_day"), budget.hold("once/1", Money(gone=1)):
            pass


def test_a_book_read_anew_has_the_same_sums_and_the_same_object(book, clock):
    totals = book.totals
    charge(book, "job-1/fee", 7, clock.now())
    book.reset()
    assert book.totals is totals
    assert totals.gone("job-1") == 0


def test_what_is_bound_is_counted_apart_from_what_is_gone(clock):
    budget, totals = Budget(SpendLimits(bound_per_day=10, per_day=5), ChainTime(clock)), Totals()
    budget.watch(WALLET, totals)
    totals.add("once/1", clock.now(), Money(deposited=10, gone=1))
    totals.add("once/2", clock.now(), Money(transferred=10))  # the same coins, one step further
    with budget.hold("once/3", Money(gone=4)):
        pass
    with pytest.raises(LimitError, match="bound_per_day"), budget.hold("once/3", Money(transferred=1)):
        pass


def test_only_named_effects_belong_to_a_job():
    assert group_of("job-1/fund/fine-tuning/1") == "job-1"
    assert group_of("once/5") is None
    assert group_of("mine") is None


@pytest.mark.goal("SCL-02", part="a budget for each wallet")
def test_each_wallet_has_a_budget_of_its_own(clock):
    other = "0x3C44CdDdB6a900fa2b585dd299e03d12FA4293BC"
    budget, totals, rest = Budget(SpendLimits(wallet_per_day=10), ChainTime(clock)), Totals(), Totals()
    budget.watch(WALLET, totals)
    budget.watch(other, rest)
    totals.add("job-1/fee", clock.now(), Money(gone=6))
    with budget.hold("job-2/fee", Money(gone=4), WALLET), budget.hold("job-3/fee", Money(gone=10), other):
        with pytest.raises(LimitError, match=WALLET), budget.hold("x", Money(gone=1), WALLET):
            pass
        with pytest.raises(LimitError, match="wallet_per_day"), budget.hold("y", Money(gone=1), other):
            pass
    assert budget.today_of(WALLET).gone == 6
