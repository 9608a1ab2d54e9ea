"""A provider that fails a job is left for the next one, on record, and never after something could cost there."""

import contextlib
import dataclasses

import anyio.lowlevel
import pytest

from tests.fault.world import FEE, GAS, PROVIDERS, WALLET, Process, World
from zg_async.errors import JobFailedError, ProviderRejectedError, ProviderUnavailableError
from zg_async.jobs import events as e
from zg_async.jobs.runner import JobRunner
from zg_async.jobs.scheduler import Scheduler
from zg_async.jobs.state import JobStatus
from zg_async.jobs.store import Journal, MemoryStore
from zg_async.transport.lane import LaneParts, open_lane
from zg_async.transport.outbox import MemoryOutbox
from zg_async.transport.rows import LaneId
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


@pytest.mark.goal("BAT-03", part="one that refuses, with the reasons on record")
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


@pytest.mark.goal("BAT-03", part="one whose task fails, at most as often as allowed")
async def test_a_failed_task_is_tried_elsewhere_as_often_as_allowed(world):
    world.fail_at = TaskProgress.TRAINING
    _, state, error = await run(world, refusals=0, failovers=1)
    assert [task.provider for task in world.tasks] == [min(PROVIDERS), max(PROVIDERS)]
    assert error.error_code == "task_failed"
    assert list(state.excluded) == [min(PROVIDERS)]


FIRST, SECOND = sorted(PROVIDERS)


class Vanishing(Process):
    """The first provider is gone, silently or from the register, from a call on."""

    def __init__(self, world, name, *, silent=False, returns_after=None):
        super().__init__(world, self._fail)
        self.name, self.silent, self.returns_after, self.count = name, silent, returns_after, 0

    def _fail(self, process, count, name):
        if name == self.name and not self.world.gone and not self.count:
            self.count = 1
            self.world.gone = set() if self.silent else {FIRST}
        if self.silent and self.count and name == self.name and self.is_first:
            raise ProviderUnavailableError("no answer")

    @property
    def is_first(self):
        return next(iter(self.runner._drivers.values())).state.provider == FIRST

    async def run_job(self, **changes):
        async with JobRunner(self.broker, MemoryStore(Journal())) as self.runner:
            job = await self.runner.submit(self.world.spec(deploy=False, **changes))
            with contextlib.suppress(JobFailedError):
                await job.result()
            return await job.state()


@pytest.mark.goal("BAT-03", part="one that vanishes, before and after there is a task")
@pytest.mark.parametrize(
    ("name", "silent", "tasks"),
    [
        ("before quote", True, [SECOND]),
        ("before upload", True, [SECOND]),
        ("before upload", False, [SECOND]),
        ("before poll", False, [FIRST, SECOND]),
    ],
)
async def test_a_provider_that_vanishes_is_left_for_the_next_one(world, name, silent, tasks):
    state = await Vanishing(world, name, silent=silent).run_job()
    assert (state.status, state.result.provider) == (JobStatus.SUCCEEDED, SECOND)
    assert [task.provider for task in world.tasks] == tasks
    assert list(state.excluded) == [FIRST]
    assert ("no answer" if silent else "registered any more") in state.excluded[FIRST]
    assert [d.settled for d in world.deliverables.values()] == [True]  # paid once


async def test_a_provider_that_was_away_is_tried_again_when_the_job_is_resumed(world):
    """With what it was paid before: nothing moves twice."""
    world.gone, away = {SECOND}, True

    def fail(process, count, name):
        if name == "before upload" and away:
            raise ProviderUnavailableError("no answer")

    async with JobRunner(Process(world, fail).broker, MemoryStore(Journal())) as runner:
        job = await runner.submit(world.spec(deploy=False))
        with pytest.raises(JobFailedError, match=f"{FIRST}: failed this job: no answer"):
            await job.result()
        with pytest.raises(JobFailedError, match="failed this job: no answer"):
            await (await runner.resume(job.id)).result()
        assert (await job.state()).failed_at == (FIRST, FIRST)
        away = False
        result = await (await runner.resume(job.id)).result()
    assert (result.provider, len(world.tasks)) == (FIRST, 1)
    assert sorted(set(world.transactions)) == sorted(world.transactions)
    assert world.accounts[FIRST, "fine-tuning"] > 0


async def test_a_provider_that_had_a_task_is_not_tried_again_when_the_job_is_resumed(world):
    world.fail_at = TaskProgress.TRAINING
    async with JobRunner(Process(world).broker, MemoryStore(Journal())) as runner:
        job = await runner.submit(world.spec(deploy=False, failovers=2))
        for _ in range(2):
            with pytest.raises(JobFailedError, match="failed this job"):
                await (await runner.resume(job.id)).result()
    assert [task.provider for task in world.tasks] == [FIRST, SECOND]


async def test_a_provider_that_is_only_unregistered_by_one_nodes_word_keeps_the_task(world):
    process = Vanishing(world, "before poll")
    sleep = world.clock.sleep

    async def back_soon(seconds):
        await sleep(seconds)
        world.gone = set()

    world.clock.sleep = back_soon
    state = await process.run_job()
    assert process.count
    assert (state.status, state.result.provider, state.excluded) == (JobStatus.SUCCEEDED, FIRST, {})
    assert len(world.tasks) == 1


async def test_a_task_delivered_by_a_provider_that_is_gone_since_is_not_done_again(world):
    def deliver(process, count, name):
        if name == "before poll" and world.tasks and not world.gone:
            while world.tasks[0].progress is not TaskProgress.DELIVERED:
                world.advance(world.tasks[0].id)
            world.gone = {FIRST}

    async with JobRunner(Process(world, deliver).broker, MemoryStore(Journal())) as runner:
        job = await runner.submit(world.spec(deploy=False))
        while (state := await job.state()).delivered is None:
            await anyio.lowlevel.checkpoint()
    assert (len(world.tasks), state.excluded) == (1, {})


async def booked(world, process):
    """Count fees as a broker does, over an outbox."""
    chain = process.broker.chain
    lane_id = LaneId(chain.chain_id, chain.genesis_hash, WALLET)
    parts = dict.fromkeys(field.name for field in dataclasses.fields(LaneParts))
    parts |= {"outbox": MemoryOutbox(), "clock": world.clock, "budget": chain.budget, "watcher": chain.heads}
    lane = await open_lane(LaneParts(**parts), lane_id, None)

    async def charge(key, amount, *, wallet, settled=False):
        await lane.charge(key, amount, settled=settled)

    chain.charge = charge


@pytest.mark.goal("BAT-03", part="within the budget")
@pytest.mark.parametrize(("fees", "tasks"), [(2, [FIRST, SECOND]), (1.9, [FIRST])])
async def test_the_next_provider_has_to_fit_beside_the_fee_that_the_vanished_one_may_still_take(world, fees, tasks):
    process = Vanishing(world, "before poll")
    await booked(world, process)
    state = await process.run_job(budget=FEE, max_spend=int(fees * FEE) + 10 * GAS)
    assert [task.provider for task in world.tasks] == tasks
    assert list(state.excluded) == [FIRST]
    if fees == 2:
        assert state.status is JobStatus.SUCCEEDED
        assert process.broker.chain.budget.gone(state.job_id) == 2 * FEE
    else:
        assert (state.status, state.failure.code) == (JobStatus.FAILED, "limit")
        assert process.broker.chain.budget.gone(state.job_id) == FEE


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
