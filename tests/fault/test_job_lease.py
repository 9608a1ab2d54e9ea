"""One journal, several processes: one drives, and another goes on when that one has died or hangs."""

import json
import signal
import sqlite3
import subprocess
import sys

import anyio
import pytest

from tests.clock import FakeClock
from tests.fault.virtual_clock import VirtualClock
from tests.fault.world import WALLET, Process, World
from zg_async.errors import JournalError
from zg_async.jobs import events as e
from zg_async.jobs.runner import JobRunner
from zg_async.jobs.sqlite import BEAT_SECONDS, LEASE_SECONDS, SqliteStore
from zg_async.jobs.store import Owner

OWNER = Owner(chain_id=31337, genesis="0x" + "ab" * 32, wallets=(WALLET,))


async def opened(path, clock):
    store = SqliteStore(path, clock=clock)
    await store.open(OWNER)
    return store


async def test_a_writer_that_stops_renewing_is_superseded_and_fails_at_its_next_record(tmp_path):
    clock, path = FakeClock(), tmp_path / "jobs.sqlite"
    hung = await opened(path, clock)
    early = await opened(path, clock)
    assert not early.is_writer
    clock.advance(LEASE_SECONDS + 1)
    assert await early.hold()
    assert early.is_writer
    await early.append("job-1", e.CancelRequested())
    with pytest.raises(JournalError, match="taken"):
        await hung.append("job-2", e.CancelRequested())
    assert not await hung.hold()
    assert not hung.is_writer
    assert await early.list_jobs() == ("job-1",)
    await early.aclose()
    await hung.aclose()
    again = await opened(path, clock)
    assert again.is_writer
    assert again.damage is None
    await again.aclose()


async def test_a_writer_that_renews_keeps_its_journal(tmp_path):
    writer_clock, path = VirtualClock(), tmp_path / "jobs.sqlite"
    writer = await opened(path, writer_clock)
    for _ in range(10):
        writer_clock._now += 50
        await writer._in_thread(writer._renew)
        other = await opened(path, writer_clock)
        assert not other.is_writer
        await other.aclose()
    await writer.aclose()


class SetClock(VirtualClock):
    """One that can be set without time passing."""

    wrong = 0.0

    def now(self):
        return super().now() + self.wrong


async def beat(clock, *stores):
    """Let each do what it does every few seconds."""
    clock._now += BEAT_SECONDS
    for store in stores:
        await store._in_thread(store._renew if store.is_writer else store._try_again)


async def test_a_lease_from_a_clock_that_was_a_day_ahead_runs_out_all_the_same(tmp_path):
    clock, path = SetClock(), tmp_path / "jobs.sqlite"
    hung = await opened(path, clock)
    clock.wrong = 86_400.0
    await hung._in_thread(hung._renew)
    clock.wrong = 0.0
    waiting = await opened(path, clock)
    began = clock.monotonic()
    while not waiting.is_writer:
        await beat(clock, waiting)
    assert LEASE_SECONDS <= clock.monotonic() - began <= LEASE_SECONDS + 2 * BEAT_SECONDS
    await waiting.aclose()
    await hung.aclose()


async def taken_over(path, clock):
    """One that hangs, and one that has taken the journal over from it."""
    hung, other = await opened(path, clock), await opened(path, clock)
    clock._now += LEASE_SECONDS + 1
    await beat(clock, other)
    assert other.is_writer
    return hung, other


async def test_a_disk_that_fails_as_one_looks_for_its_turn_ends_no_looking(tmp_path, monkeypatch):
    clock, path = SetClock(), tmp_path / "jobs.sqlite"
    hung, waiting = await opened(path, clock), await opened(path, clock)
    clock._now += LEASE_SECONDS + 1

    def fails():
        raise OSError("the disk fails")

    with monkeypatch.context() as patch:
        patch.setattr(waiting, "_write_lease", fails)
        await beat(clock, waiting)
        assert not waiting.is_writer
    await beat(clock, waiting)
    assert waiting.is_writer
    await waiting.append("job-1", e.CancelRequested())
    await waiting.aclose()
    await hung.aclose()


async def test_who_hung_and_wakes_up_takes_nothing_back_while_the_other_one_lives(tmp_path):
    clock = SetClock()
    hung, other = await taken_over(tmp_path / "jobs.sqlite", clock)
    for _ in range(20):
        await beat(clock, hung, other)
        assert (hung.is_writer, other.is_writer) == (False, True)
    await other.aclose()
    for _ in range(8):
        await beat(clock, hung)
    assert hung.is_writer
    await hung.aclose()


async def test_who_took_over_holds_the_lock_too_once_the_hung_one_is_gone(tmp_path):
    clock, path = SetClock(), tmp_path / "jobs.sqlite"
    hung, other = await taken_over(path, clock)
    await hung.aclose()
    await beat(clock, other)
    late = await opened(path, clock)
    assert (late.is_writer, other.is_writer) == (False, True)
    await late.aclose()
    await other.aclose()


def start(folder):
    command = [sys.executable, "-m", "tests.fault.hung_runner", str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline().strip() == "acknowledged"
    return process


def epochs(path):
    with sqlite3.connect(path) as db:
        rows = db.execute("select distinct epoch from event order by epoch").fetchall()
    db.close()
    return [row[0] for row in rows]


@pytest.mark.slow
@pytest.mark.goal("DUR-04")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
async def test_the_second_process_waits_and_goes_on_when_the_first_is_dead_or_hangs(tmp_path, how):
    first = await anyio.to_thread.run_sync(start, tmp_path)
    path, clock = tmp_path / "jobs.sqlite", VirtualClock()
    try:
        world = World(tmp_path)
        lease = json.loads((tmp_path / "jobs.sqlite.lease").read_text())
        clock._now = lease["until"] - LEASE_SECONDS
        async with JobRunner(Process(world).broker, SqliteStore(path, clock=clock)) as second:
            (state,) = await second.list_jobs()
            with pytest.raises(JournalError, match="another process drives"):
                await second.submit(world.spec(deploy=False))
            assert not second._drivers
            first.send_signal(how)
            if how is signal.SIGKILL:
                await anyio.to_thread.run_sync(first.wait)
            else:
                clock._now = lease["until"] + 11 * LEASE_SECONDS
            while not (second._drivers or 2 in epochs(path)):  # a thread looks at the lock
                await clock.run_until(clock.now() + 1)
                await anyio.sleep(0.01)
            await second.attach(state.job_id)
            assert second._store.is_writer
    finally:
        first.kill()
        first.wait()
        first.stdout.close()


@pytest.mark.slow
@pytest.mark.goal("RUN-14", part="SIGTERM")
async def test_asked_to_end_a_runner_detaches_and_the_next_one_finds_a_whole_journal(tmp_path):
    first = await anyio.to_thread.run_sync(start, tmp_path)
    first.send_signal(signal.SIGTERM)
    output, _ = await anyio.to_thread.run_sync(first.communicate)
    assert (output.strip(), first.returncode) == ("left", 0)
    world = World(tmp_path)
    world.settles = False
    async with JobRunner(Process(world).broker, SqliteStore(tmp_path / "jobs.sqlite")) as runner:
        assert runner._store.damage is None
        (state,) = await runner.list_jobs()
        assert state.deliverable_acknowledged
        assert not state.status.is_terminal
        assert not state.cancel_requested
        assert runner._store.is_writer
