"""What jobs leave behind is found and removed; a journal that can't be written pauses its jobs, and they go on."""

import anyio.to_thread
import pytest

from tests.fault.virtual_clock import VirtualClock, inline
from tests.fault.world import PROVIDERS, Process, World
from zg_async.errors import JournalError, ProviderRejectedError
from zg_async.jobs import events as e
from zg_async.jobs.runner import JobRunner
from zg_async.jobs.sqlite import BEAT_SECONDS, SqliteStore
from zg_async.jobs.state import JobStatus
from zg_async.jobs.store import Journal, MemoryStore
from zg_async.jobs.upkeep import prune_jobs
from zg_async.wire.records import TaskProgress


@pytest.fixture(autouse=True)
def _no_threads(monkeypatch):
    monkeypatch.setattr(anyio.to_thread, "run_sync", inline)


@pytest.fixture
def world(tmp_path) -> World:
    made = World(tmp_path)
    made.clock = VirtualClock()
    return made


def refuse(process, count, name):
    if name == "before upload":
        raise ProviderRejectedError("banned", status=403)


async def half_downloaded(world, runner, key):
    """A job that failed and has left part of a model on disk."""
    folder = world.folder / key
    job = await runner.submit(world.spec(deploy=False, key=key, output_dir=folder, provider=PROVIDERS[0]))
    await world.clock.run_until(world.clock.now() + 60)
    assert await job.status() is JobStatus.FAILED
    work = folder / f".zg-{job.id}"
    work.mkdir()
    (work / "model.encrypted.part").write_bytes(bytes(1000))
    return job, work


@pytest.mark.goal("DUR-08", part="partial downloads of dead jobs")
async def test_pruning_removes_partial_downloads_of_jobs_that_ended_and_of_no_other(world):
    store = SqliteStore(world.folder / "jobs.sqlite", clock=world.clock)
    async with JobRunner(Process(world, refuse).broker, store) as runner:
        one, first = await half_downloaded(world, runner, "one")
        two, second = await half_downloaded(world, runner, "two")
        world.stuck_at = TaskProgress.INIT
        runner.broker.fine_tuning.process.fail = None
        other = await runner.submit(world.spec(deploy=False, key="3", output_dir=world.folder / "3", failovers=0))
        with pytest.raises(JournalError, match="hasn't ended"):
            await prune_jobs(store, [other.id])
        dry = await prune_jobs(store, dry_run=True)
        assert (dry.jobs, dry.leftovers) == ((one.id, two.id), 2000)
        assert first.exists()
        assert (await prune_jobs(store, [one.id])).leftovers == 1000
        assert (first.exists(), second.exists()) == (False, True)
        assert await store.list_jobs() == (two.id, other.id)
        assert (await prune_jobs(store)).jobs == (two.id,)
        assert not second.exists()
        assert (await prune_jobs(store)).jobs == ()


@pytest.mark.goal("DUR-08", part="partial downloads of dead jobs")
async def test_a_cancelled_job_leaves_nothing_and_what_a_dying_process_left_goes_at_the_next_start(world):
    journal = Journal()
    world.stuck_at = TaskProgress.INIT
    async with JobRunner(Process(world).broker, MemoryStore(journal)) as runner:
        job = await runner.submit(world.spec(deploy=False))
        await world.clock.run_until(world.clock.now() + 60)
        work = world.folder / "out" / f".zg-{job.id}"
        work.mkdir()
        assert await job.cancel()
        await world.clock.run_until(world.clock.now() + 1)
        assert not work.exists()
    work.mkdir()
    async with JobRunner(Process(world).broker, MemoryStore(journal)):
        assert not work.exists()


async def test_a_failed_job_keeps_what_it_fetched_until_it_is_pruned(world):
    journal = Journal()
    async with JobRunner(Process(world, refuse).broker, MemoryStore(journal)) as runner:
        _, work = await half_downloaded(world, runner, "one")
    async with JobRunner(Process(world).broker, MemoryStore(journal)):
        assert work.exists()


@pytest.mark.parametrize("kind", ["task_requested", "task_created", "model_downloaded"])
async def test_a_full_disk_pauses_the_job_and_with_room_again_it_goes_on_and_says_so(world, kind):
    store = SqliteStore(world.folder / "jobs.sqlite", clock=world.clock)
    async with JobRunner(Process(world).broker, store) as runner:
        append = store.append

        async def fill(job_id, *events):
            if any(event.kind == kind for event in events):
                pages = store._db.execute("pragma page_count").fetchone()[0]
                store._db.execute("create table ballast (text)")
                store._db.execute(f"pragma max_page_count = {pages + 1}")  # a disk without room, as SQLite sees it
                events = tuple(e.JobWarned(code="x", message="y" * 10_000) for _ in events)
            return await append(job_id, *events)

        store.append = fill
        job = await runner.submit(world.spec(deploy=False, provider=PROVIDERS[0]))
        await world.clock.run_until(world.clock.now() + 1)
        with pytest.raises(JournalError, match="full"):
            await job.result()
        done = (world.posts, list(world.transactions))
        assert world.posts == (0 if kind == "task_requested" else 1)
        await world.clock.run_until(world.clock.now() + 5 * BEAT_SECONDS)
        assert (world.posts, world.transactions) == done  # nothing goes out that can't be recorded
        store.append = append
        store._db.execute("pragma max_page_count = 1000000")
        await world.clock.run_until(world.clock.now() + 2 * BEAT_SECONDS)
        assert (await job.result()).files
        warnings = [event async for event in job.events() if isinstance(event, e.JobWarned)]
    assert [warning.code for warning in warnings] == ["paused"]
    assert "full" in warnings[0].message
    assert world.posts == 1
    assert len(set(world.transactions)) == len(world.transactions)
