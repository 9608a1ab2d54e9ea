import asyncio
import gc
import logging
import time

import anyio
import anyio.lowlevel
import pytest

from tests.clock import FakeClock
from zg_async.background import Background
from zg_async.clock import Clock, SystemClock


async def forever(started=None, ended=None):
    try:
        if started is not None:
            started.set()
        await anyio.sleep_forever()
    finally:
        if ended is not None:
            ended.append(True)


async def test_the_system_clock_tells_wall_and_monotonic_time():
    clock: Clock = SystemClock()
    assert abs(clock.now() - time.time()) < 5
    before = clock.monotonic()
    await clock.sleep(0)
    assert clock.monotonic() >= before


async def test_the_tests_clock_moves_only_when_somebody_sleeps():
    clock: Clock = FakeClock(100.0)
    await clock.sleep(5)
    assert (clock.now(), clock.monotonic()) == (105.0, 5.0)


async def test_closing_cancels_and_awaits_what_runs():
    background, started, ended = Background(), anyio.Event(), []
    child = background.start(forever(started, ended), name="one")
    await started.wait()
    assert not child.done
    await background.aclose()
    assert child.done
    assert ended == [True]


async def test_closing_twice_and_closing_empty_is_fine():
    background = Background()
    await background.aclose()
    await background.aclose()


async def test_nothing_starts_after_closing_and_the_work_is_closed_unrun():
    background = Background()
    await background.aclose()
    work = forever()
    with pytest.raises(RuntimeError, match="closed"):
        background.start(work, name="late")
    assert work.cr_frame is None  # closed, so no "never awaited" warning


async def test_what_starts_something_else_while_closing_leaves_nothing():
    background = Background()
    started = anyio.Event()

    async def stubborn():
        started.set()
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(0.01)

    children = [background.start(stubborn(), name=f"{n}") for n in range(3)]
    await started.wait()
    await background.aclose()
    assert all(child.done for child in children)


async def test_closing_holds_under_cancellation():
    background, started, ended = Background(), anyio.Event(), []
    background.start(forever(started, ended), name="one")
    await started.wait()
    with anyio.CancelScope() as scope:
        scope.cancel()
        await background.aclose()
    assert ended == [True]


async def test_one_child_can_be_cancelled_alone():
    background = Background()
    started = anyio.Event()
    one, other = background.start(forever(), name="one"), background.start(forever(started), name="other")
    await started.wait()
    one.cancel()
    await one.wait()
    assert one.done
    assert not other.done
    await one.wait()  # again, at once
    await background.aclose()


async def test_an_error_that_escapes_is_logged_and_hurts_nobody(caplog):
    background = Background()

    async def fails():
        await anyio.lowlevel.checkpoint()
        raise ValueError("oh")

    with caplog.at_level(logging.ERROR, "zg_async.background"):
        child = background.start(fails(), name="the failing one")
        await child.wait()
        await anyio.lowlevel.checkpoint()
    assert "the failing one failed" in caplog.text
    await background.aclose()


async def test_a_child_that_ended_is_forgotten():
    background = Background()
    child = background.start(anyio.lowlevel.checkpoint(), name="short")
    await child.wait()
    await anyio.lowlevel.checkpoint()
    assert not background._tasks
    del child
    gc.collect()
    assert not [t for t in asyncio.all_tasks() if t.get_name() == "short"]
    await background.aclose()
