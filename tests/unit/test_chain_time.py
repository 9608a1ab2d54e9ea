"""Deadlines count by a clock that can be believed, whoever sets it, and no node can hold a right one back."""

import datetime as dt

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.clock import FakeClock
from zg_async.transport.chain_time import ChainTime

DAY = 86_400.0


class Machine(FakeClock):
    """A clock that can be set, and a machine that can sleep."""

    def __init__(self):
        super().__init__()
        self.set_wrong = 0.0

    def now(self):
        return super().now() + self.set_wrong

    def suspend(self, seconds):
        self._now += seconds

    @property
    def right(self):
        return super().now()


class Case:
    def __init__(self):
        self.clock = Machine()
        self.time = ChainTime(self.clock)

    def see(self, behind=0.0):
        self.time.saw(dt.datetime.fromtimestamp(self.clock.right - behind, dt.UTC))

    def off(self):
        """Seconds by which the time that counts is ahead of the true one."""
        return self.time.now().timestamp() - self.clock.right


@pytest.fixture
def case():
    return Case()


def test_before_any_block_the_machine_counts(case):
    case.clock.set_wrong = -DAY
    assert case.off() == -DAY


@pytest.mark.parametrize("wrong", [-DAY, -60.0])
def test_a_clock_that_is_behind_the_chain_does_not_count(case, wrong):
    case.clock.set_wrong = wrong
    case.see()
    case.clock.advance(100)
    assert case.off() == 0


@pytest.mark.parametrize("sees_more", [False, True])
def test_a_clock_that_leaps_a_day_ahead_is_not_believed_and_believed_again_when_it_is_set_right(case, sees_more):
    case.see()
    case.clock.advance(3)
    case.clock.set_wrong = DAY
    if sees_more:
        case.see()
    assert case.off() == 0
    case.clock.advance(3600)
    assert case.off() == 0
    case.clock.set_wrong = 2.0
    assert case.off() == 2


def test_a_clock_that_never_agreed_with_the_chain_is_believed(case):
    """The node may lag: nobody can say who is right, and a window that is missed is worse than one left too early."""
    case.see(behind=DAY)
    case.clock.advance(60)
    case.see(behind=DAY)
    assert case.off() == 0


def test_after_a_suspension_the_first_new_block_tells(case):
    case.see()
    case.clock.suspend(DAY)
    case.see()
    assert case.off() == 0


def test_a_chain_that_stood_still_holds_nothing_back(case):
    case.see()
    case.clock.advance(DAY)
    assert case.off() == 0
    case.see(behind=DAY - 1)  # its first block has the time at which it stopped
    assert case.off() == 0


@pytest.mark.parametrize(("wrong", "behind", "off"), [(DAY, 0, 0), (-DAY, 0, -DAY), (0, DAY, -DAY), (0, -DAY, 0)])
def test_a_day_of_a_limit_is_over_when_both_say_so(case, wrong, behind, off):
    case.clock.set_wrong = wrong
    case.see(behind)
    assert case.time.earliest() - case.clock.right == off


BLOCKS = st.lists(st.tuples(st.floats(0, 7200), st.floats(-300, 2 * DAY)), max_size=30)


@given(BLOCKS, st.floats(0, 7200))
def test_no_node_holds_back_a_clock_that_is_right(blocks, passed):
    case = Case()
    for seconds, behind in blocks:
        case.clock.advance(seconds)
        case.see(behind)
    case.clock.advance(passed)
    assert case.off() > -1e-3


@given(st.lists(st.tuples(st.floats(0, 600), st.floats(0, 20)), min_size=1, max_size=30), st.floats(1800.1, 10 * DAY))
def test_no_leap_ahead_counts_beside_a_chain_that_lives(blocks, leap):
    case = Case()
    case.see()
    for seconds, behind in blocks:
        case.clock.advance(seconds)
        case.clock.set_wrong = leap + 100
        case.see(behind)
        assert abs(case.off()) < 61
