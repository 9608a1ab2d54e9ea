"""A provider that fails a job is left for the next one, on record, and never after something could cost there."""

import pytest

from tests.fault.world import FEE, PROVIDERS, Process, World
from zg_async.errors import JobFailedError, ProviderRejectedError
from zg_async.jobs import events as e
from zg_async.jobs.runner import JobRunner
from zg_async.jobs.scheduler import Scheduler
from zg_async.jobs.store import Journal, MemoryStore
from zg_async.wire.records import TaskProgress


@pytest.fixture
def world(tmp_path) -> World:
    return World(tmp_path)


def refusing(world):
    """The provider that is asked first refuses uploads."""

    def fail(process, count, name):
        if name == "before upload" and world.refusals:
            world.refusals -= 1
            raise ProviderRejectedError("banned", status=403)

    return fail


async def run(world, *, refusals=1, journal=None, **changes):
    world.refusals = refusals
    async with JobRunner(Process(world, refusing(world)).broker, MemoryStore(journal or Journal())) as runner:
        job = await runner.submit(world.spec(deploy=False, **changes))
        error = None
        try:
            await job.result()
        except JobFailedError as caught:
            error = caught
        return [event async for event in job.events()], await job.state(), error


@pytest.mark.goal("BAT-03", part="scripted world: another provider, the reasons on record")
async def test_a_refusing_provider_is_left_for_the_next_one(world):
    events, state, error = await run(world)
    assert error is None
    first, second = (event for event in events if isinstance(event, e.ProviderChosen))
    assert (first.provider, second.provider) == (min(PROVIDERS), max(PROVIDERS))
    assert "0 of 2 cheaper" in first.reasons[0]
    assert second.reasons[1] == f"not {first.provider}: failed this job: banned"
    assert state.excluded == {first.provider: "banned"}
    assert state.result.provider == second.provider
    assert state.result.fee == FEE
    assert world.transactions.count("transfer_fund") == 2
    assert len(set(state.result.transactions)) == len(world.transactions)
    assert len(world.tasks) == 1


@pytest.mark.parametrize("changes", [{"failovers": 0}, {"provider": min(PROVIDERS)}])
async def test_no_other_provider_is_tried_when_the_user_says_so(world, changes):
    _, state, error = await run(world, **changes)
    assert error.error_code == "provider_rejected"
    assert state.excluded == {}
    assert world.tasks == []


@pytest.mark.goal("BAT-03", part="a failed task goes elsewhere, at most as often as allowed")
async def test_a_failed_task_is_tried_elsewhere_as_often_as_allowed(world):
    world.fail_at = TaskProgress.TRAINING
    _, state, error = await run(world, refusals=0, failovers=1)
    assert [task.provider for task in world.tasks] == [min(PROVIDERS), max(PROVIDERS)]
    assert error.error_code == "task_failed"
    assert list(state.excluded) == [min(PROVIDERS)]


async def test_a_provider_where_more_jobs_failed_than_succeeded_comes_last(world):
    scheduler, services = Scheduler(), world.services()
    assert [s.provider for s in scheduler.order(services, "w")] == sorted(PROVIDERS)
    scheduler.record(min(PROVIDERS), succeeded=False)
    assert [s.provider for s in scheduler.order(services, "w")] == sorted(PROVIDERS, reverse=True)
    scheduler.record(min(PROVIDERS), succeeded=True)
    assert [s.provider for s in scheduler.order(services, "w")] == sorted(PROVIDERS)


@pytest.mark.goal("DIS-05", part="past outcomes are in the journal")
async def test_outcomes_outlive_the_process(world):
    journal = Journal()
    await run(world, journal=journal)
    async with JobRunner(Process(world).broker, MemoryStore(journal)) as runner:
        order = runner._scheduler.order(world.services(), "w")
    assert [s.provider for s in order] == sorted(PROVIDERS, reverse=True)
