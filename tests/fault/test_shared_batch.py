"""Several workers drain one batch: each job once, whoever dies or hangs."""

import json
from collections import Counter

import anyio
import anyio.to_thread
import pytest

from tests.fault.virtual_clock import VirtualClock, inline
from tests.fault.world import PARAMS, Crash, Process, World
from zg_async import Batch, drain_batch
from zg_async.errors import ConfigError
from zg_async.jobs.sqlite import LEASE_SECONDS
from zg_async.wire.records import TaskProgress

JOBS = 6


@pytest.fixture(autouse=True)
def _no_threads(monkeypatch):
    monkeypatch.setattr(anyio.to_thread, "run_sync", inline)


@pytest.fixture
def world(tmp_path):
    world = World(tmp_path)
    world.clock = VirtualClock()
    return world


def batch_of(world, **fields):
    names = []
    for number in range(JOBS):
        path = world.folder / f"{number}.jsonl"
        row = {"instruction": f"Say {number}", "input": "", "output": str(number)}
        path.write_text((json.dumps(row) + "\n") * 3)
        names.append(path)
    return Batch(
        name="night",
        models=["Qwen2.5-0.5B-Instruct"],
        datasets=names,
        params=[PARAMS],
        output_dir=world.folder / "out",
        **fields,
    )


class Worker:
    """One process of several."""

    def __init__(self, world, fail=None):
        self.process, self.result = Process(world, fail), None

    async def run(self, batch, folder):
        try:
            with anyio.CancelScope() as scope:
                self.process.on_crash = scope.cancel
                self.result = await drain_batch(self.process.broker, batch, folder, at_once=2)
        except Crash:
            pass


def die_at(name, number):
    """Die at the so-manieth time a point of that name is passed."""

    def fail(process, count, point):
        if process.points.count(name) == number and point == name:
            process.die()

    return fail


async def drain(world, workers, *, seconds=50_000):
    batch = batch_of(world)
    async with anyio.create_task_group() as group:
        for worker in workers:
            group.start_soon(worker.run, batch, world.folder / "shared")
        alive = [w for w in workers if w.process.fail is None]
        await world.clock.run_until(world.clock.now() + seconds, lambda: all(w.result is not None for w in alive))
        group.cancel_scope.cancel()
    return batch


def all_done_once(world, workers):
    for worker in workers:
        assert [(row.status, row.error) for row in worker.result.rows] == [("succeeded", "")] * JOBS
    assert len({row.job_id for row in workers[0].result.rows}) == JOBS
    assert Counter(task.progress for task in world.tasks) == {TaskProgress.FINISHED: JOBS}
    assert world.transactions.count("acknowledge_deliverable") == JOBS
    assert len(world.datasets) == JOBS
    assert all(delivery.settled for delivery in world.deliverables.values())
    assert len({task.dataset_hash for task in world.tasks}) == JOBS


@pytest.mark.goal("SCL-03", part="every worker takes a share, each job once")
async def test_workers_drain_one_batch_and_each_job_is_done_once(world):
    workers = [Worker(world) for _ in range(3)]
    await drain(world, workers)
    all_done_once(world, workers)
    shares = [worker.process.points.count("after post task") for worker in workers]
    assert sum(shares) == JOBS
    assert all(shares)
    claims = [path.read_text() for path in (world.folder / "shared" / "claims").iterdir()]
    assert Counter(claims).total() == JOBS
    assert set(claims) == {"worker-1", "worker-2", "worker-3"}


@pytest.mark.goal("SCL-03", part="what a dead worker had begun is finished by another, once")
@pytest.mark.parametrize(
    ("point", "number"),
    [
        ("before post task", 1),
        ("after post task", 2),
        ("before rpc broadcast acknowledge_deliverable", 1),
    ],
)
async def test_a_worker_that_dies_leaves_its_jobs_to_the_others(world, point, number):
    dead, *alive = workers = [Worker(world, die_at(point, number)), Worker(world), Worker(world)]
    await drain(world, workers)
    assert dead.process.dead
    assert dead.result is None
    all_done_once(world, alive)


async def test_a_worker_started_again_goes_on_with_what_it_had(world):
    first = Worker(world, die_at("after post task", 1))
    await drain(world, [first], seconds=100)
    again = Worker(world)
    await drain(world, [again])
    all_done_once(world, [again])
    assert {path.read_text() for path in (world.folder / "shared" / "claims").iterdir()} == {"worker-1"}


async def test_a_claim_without_a_job_is_submitted_by_whoever_takes_the_journal_over(world):
    batch = batch_of(world)
    died = Worker(world, die_at("before rpc read", 1))
    await drain(world, [died], seconds=LEASE_SECONDS)
    worker = Worker(world)
    await drain(world, [worker])
    all_done_once(world, [worker])
    assert len(batch) == JOBS


async def test_a_cap_that_only_one_process_could_hold_is_refused(world):
    with pytest.raises(ConfigError, match="can't hold one cap"):
        await drain_batch(Process(world).broker, batch_of(world, max_spend="1"), world.folder / "shared")
