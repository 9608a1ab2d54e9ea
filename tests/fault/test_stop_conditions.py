"""A job that waits, trains or costs more than its user wants is cancelled while that is possible, else followed on."""

import anyio.to_thread
import pytest

from tests.fault.virtual_clock import VirtualClock, inline
from tests.fault.world import FEE, PROVIDERS, Process, World
from zg_async.errors import ConfigError, JobCancelledError
from zg_async.jobs import events as e
from zg_async.jobs.runner import JobRunner
from zg_async.jobs.state import JobStatus
from zg_async.jobs.store import Journal, MemoryStore
from zg_async.wire.records import TaskProgress

HOUR = 3600.0


@pytest.fixture(autouse=True)
def _no_threads(monkeypatch):
    monkeypatch.setattr(anyio.to_thread, "run_sync", inline)


@pytest.fixture
def world(tmp_path) -> World:
    made = World(tmp_path)
    made.clock = VirtualClock()
    return made


def runner(world, journal=None):
    return JobRunner(Process(world).broker, MemoryStore(journal or Journal()))


def spec(world, **changes):
    return world.spec(deploy=False, provider=PROVIDERS[0], **({"max_queue_seconds": HOUR} | changes))


async def after(world, job, seconds):
    """Let time pass; return the job's state."""
    await world.clock.run_until(world.clock.now() + seconds)
    return await job.state()


@pytest.mark.goal("RUN-08", part="queue time: at the provider")
@pytest.mark.parametrize("where", [TaskProgress.INIT, TaskProgress.SET_UP])
async def test_a_task_that_waits_too_long_at_its_provider_is_cancelled_there(world, where):
    world.stuck_at = where
    async with runner(world) as run:
        job = await run.submit(spec(world))
        assert (await after(world, job, HOUR - 60)).status is JobStatus.RUNNING
        assert (await after(world, job, 120)).status is JobStatus.CANCELLED
        with pytest.raises(JobCancelledError, match=r"waited 3600 s without training \(max_queue_seconds\)"):
            await job.result()
    assert world.tasks[0].progress is TaskProgress.FAILED
    assert "acknowledge_deliverable" not in world.transactions


@pytest.mark.goal("RUN-08", part="queue time: behind another job")
async def test_a_job_that_waits_too_long_for_its_turn_is_cancelled_before_it_pays(world):
    world.stuck_at = TaskProgress.TRAINING
    async with runner(world) as run:
        await run.submit(spec(world, key="first", max_queue_seconds=None))
        await world.clock.run_until(world.clock.now() + 60)
        paid = list(world.transactions)
        job = await run.submit(spec(world, key="second", output_dir=world.folder / "second"))
        assert not (await after(world, job, HOUR - 60)).status.is_terminal
        state = await after(world, job, 120)
    assert state.status is JobStatus.CANCELLED
    assert state.cancel_reason.endswith("before a task was created")
    assert (len(world.tasks), world.transactions) == (1, paid)


@pytest.mark.goal("RUN-08", part="runtime: kept on watching when it is too late to cancel")
async def test_a_task_that_trains_too_long_is_followed_to_its_end_when_the_provider_refuses(world):
    world.stuck_at = TaskProgress.TRAINING
    async with runner(world) as run:
        job = await run.submit(spec(world, max_run_seconds=2 * HOUR))
        state = await after(world, job, 3 * HOUR)
        assert (state.status, state.progress) == (JobStatus.RUNNING, TaskProgress.TRAINING)
        world.stuck_at = None
        assert (await after(world, job, HOUR)).status is JobStatus.SUCCEEDED
        events = [event async for event in job.events()]
    asked = [event for event in events if isinstance(event, e.CancelRequested)]
    assert [(event.limit, event.reason) for event in asked] == [
        ("max_run_seconds", "it trained 7200 s without a delivery (max_run_seconds)")
    ]
    (refused,) = [event for event in events if isinstance(event, e.CancelRefused)]
    assert refused.reason == "too late"


@pytest.mark.goal("RUN-08", part="runtime: cancelled when the provider puts the task back")
async def test_a_task_that_trained_too_long_is_cancelled_when_the_provider_puts_it_back(world):
    world.stuck_at = TaskProgress.TRAINING
    async with runner(world) as run:
        job = await run.submit(spec(world, max_run_seconds=HOUR))
        assert (await after(world, job, 2 * HOUR)).status is JobStatus.RUNNING
        world.set_task(world.tasks[0].id, TaskProgress.SET_UP)
        world.stuck_at = TaskProgress.SET_UP
        assert (await after(world, job, 60)).status is JobStatus.CANCELLED
    assert world.tasks[0].progress is TaskProgress.FAILED


async def test_the_time_goes_on_while_nobody_runs_and_a_limit_outlives_the_process(world):
    world.stuck_at = TaskProgress.INIT
    journal = Journal()
    async with runner(world, journal) as run:
        job_id = (await run.submit(spec(world))).id
        await world.clock.run_until(world.clock.now() + 60)
    await world.clock.run_until(world.clock.now() + 2 * HOUR)
    async with runner(world, journal) as run:
        assert (await after(world, await run.attach(job_id), 1)).status is JobStatus.CANCELLED


@pytest.mark.goal("RUN-08", part="cost: cancelled while it is allowed")
async def test_a_task_dearer_than_the_cap_is_cancelled_in_set_up_and_nothing_is_paid(world):
    world.stuck_at = TaskProgress.SET_UP
    async with runner(world) as run:
        job = await run.submit(spec(world, max_spend=FEE, budget=FEE // 2))
        state = await after(world, job, 60)
    assert (state.status, state.failure.code) == (JobStatus.FAILED, "limit")
    assert world.tasks[0].progress is TaskProgress.FAILED
    assert world.charges[f"{job.id}/fee"] == 0


@pytest.mark.goal("RUN-08", part="cost: kept on watching when it is too late to cancel")
@pytest.mark.parametrize("refused", ["trains", "race"])
async def test_a_task_dearer_than_the_cap_that_trains_already_is_followed_to_its_end_and_says_so(world, refused):
    if refused == "trains":  # nobody looked while it was in setup
        advance = world.advance
        world.advance = lambda task_id: [advance(task_id) for _ in range(3)]
    process = Process(world)
    if refused == "race":  # it begins to train between our look and our word
        cancel = process.broker.fine_tuning.cancel_task

        async def late(provider, task_id):
            world.set_task(task_id, TaskProgress.TRAINING)
            return await cancel(provider, task_id)

        process.broker.fine_tuning.cancel_task = late
    async with JobRunner(process.broker, MemoryStore(Journal())) as run:
        job = await run.submit(spec(world, max_spend=FEE, budget=FEE // 2))
        assert (await after(world, job, 60)).status is JobStatus.SUCCEEDED
        warnings = [event async for event in job.events() if isinstance(event, e.JobWarned)]
    assert [warning.code for warning in warnings] == ["fee_cap"]
    assert "too late to cancel it" in warnings[0].message
    assert world.charges[f"{job.id}/fee"] == FEE


@pytest.mark.parametrize("seconds", [0, -1, float("inf"), True, "60"])
async def test_a_limit_that_makes_no_sense_is_refused(world, seconds):
    async with runner(world) as run:
        with pytest.raises(ConfigError, match="max_queue_seconds"):
            await run.submit(spec(world, max_queue_seconds=seconds))
