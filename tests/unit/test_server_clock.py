"""The other side's time is followed where that helps, and nonsense isn't."""

import email.utils

import pytest

from zg_async.transport.server_clock import ServerClocks


def date(at):
    return email.utils.formatdate(at, usegmt=True)


@pytest.mark.parametrize("ahead", [-600, 600, -899, 30])
def test_a_difference_is_followed(clock, ahead):
    clocks, now = ServerClocks(clock), int(clock.now())
    assert not clocks.knows("h:1")
    clocks.saw("h:1", date(now + ahead), now)
    assert clocks.knows("h:1")
    assert clocks.now("h:1") == pytest.approx(clock.now() + ahead, abs=1.5)
    assert clocks.now("other:1") == clock.now()


@pytest.mark.parametrize("ahead", [0, 3, -3, 1000, -1000, 10**9])
def test_a_small_difference_and_one_too_large_are_not(clock, ahead):
    clocks, now = ServerClocks(clock), int(clock.now())
    clocks.saw("h:1", date(now + ahead), now)
    assert clocks.now("h:1") == clock.now()


@pytest.mark.parametrize("noise", [None, "", "now", "Wed, 99 Oct 2015 07:28:00 GMT", "Wed, 21 Oct 99999 07:28:00 GMT"])
def test_noise_tells_nothing(clock, noise):
    clocks = ServerClocks(clock)
    clocks.saw("h:1", noise, clock.now())
    assert not clocks.knows("h:1")


def test_a_clock_that_was_set_right_is_followed_no_more(clock):
    clocks, now = ServerClocks(clock), int(clock.now())
    clocks.saw("h:1", date(now + 600), now)
    clocks.saw("h:1", date(now), now)
    assert clocks.now("h:1") == clock.now()
