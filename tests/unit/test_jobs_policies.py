"""How patient a job is, as its specification says, and who may say no."""

import anyio
import pytest

from tests.fault.world import Process, World
from zg_async.errors import ConfigError, JobFailedError, ProviderUnavailableError
from zg_async.jobs import events as e
from zg_async.jobs.policies import STAGE_NAMES
from zg_async.jobs.runner import JobRunner
from zg_async.jobs.stages import STAGES, next_stage
from zg_async.jobs.store import Journal, MemoryStore


@pytest.fixture
def world(tmp_path) -> World:
    return World(tmp_path)


def test_the_names_are_those_of_the_stages():
    assert tuple(stage.name for stage in STAGES) == STAGE_NAMES


POINTS = {
    "choose_provider": "before rpc read",
    "estimate": "gas price",
    "fund": "before rpc broadcast transfer_fund",
    "acknowledge_provider": "before quote",
    "upload_dataset": "before upload",
    "create_task": "before post task",
    "train": "before poll",
    "download_model": "before download",
    "acknowledge_deliverable": "before rpc broadcast acknowledge_deliverable",
    "decrypt_model": "after decrypt disk",
    "deploy_adapter": "before deploy",
    "return_rest": "before rpc broadcast retrieve_fund",
}
"""A point in each step."""
ELSEWHERE = {"fund", "acknowledge_provider", "upload_dataset"}
"""Steps after whose failure another provider can help; before them none is chosen, behind them one has the task."""


class Stumbling(Process):
    """Fails a number of times at a step's point, or hangs in its first call."""

    def __init__(self, world, stage, *, fails=0, hangs=False):
        super().__init__(world, self._fail)
        self.stage, self.fails, self.hangs = stage, fails, hangs
        self.runner = None
        self.broker.chain.gas_price = self._gas_price

    @property
    def is_there(self):
        drivers = list(self.runner._drivers.values()) if self.runner else []
        return bool(drivers) and next_stage(drivers[0].state).name == self.stage

    def _fail(self, process, count, name):
        if self.fails and name == POINTS[self.stage] and self.is_there:
            self.fails -= 1
            raise ProviderUnavailableError("no answer")

    async def call(self, name, effect):
        if self.hangs and self.is_there:
            self.hangs = False
            await anyio.sleep_forever()
        return await super().call(name, effect)

    async def _gas_price(self):
        self.point("gas price")
        await self.call("gas price", lambda: None)
        return 1

    async def run_job(self, **changes):
        """Run a job to its end; return it, its events and the stage it failed in."""
        async with JobRunner(self.broker, MemoryStore(Journal())) as self.runner:
            spec = self.world.spec(return_rest=self.stage == "return_rest", **changes)
            job, failed_in = await self.runner.submit(spec), None
            try:
                await job.result()
            except JobFailedError as error:
                failed_in = error.stage
            return [event async for event in job.events()], failed_in


def test_the_points_are_those_of_all_steps():
    assert tuple(POINTS) == STAGE_NAMES


@pytest.mark.goal("RUN-06", part="retries and on-failure, each step")
@pytest.mark.parametrize("on_failure", ["fail", "other_provider"])
@pytest.mark.parametrize("stage", POINTS)
async def test_each_step_has_the_retries_and_the_end_that_its_specification_says(world, stage, on_failure):
    process = Stumbling(world, stage, fails=3)
    stages = {stage: {"attempts": 3, "on_failure": on_failure}}
    events, failed_in = await process.run_job(stages=stages)
    retries = [event.stage for event in events if isinstance(event, e.StageRetrying)]
    excluded = [event.stage for event in events if isinstance(event, e.ProviderExcluded)]
    assert (process.fails, retries) == (0, [stage] * 2)
    if on_failure == "other_provider" and stage in ELSEWHERE:
        assert (failed_in, excluded) == (None, [stage])
    else:
        assert (failed_in, excluded) == (stage, [])


@pytest.mark.goal("RUN-06", part="retries and on-failure, each step")
@pytest.mark.parametrize("stage", POINTS)
async def test_each_step_is_tried_more_often_where_the_specification_says_nothing(world, stage):
    events, failed_in = await Stumbling(world, stage, fails=3).run_job()
    assert failed_in is None
    assert [event.stage for event in events if isinstance(event, e.StageRetrying)] == [stage] * 3


@pytest.mark.goal("RUN-06", part="timeout, each step")
@pytest.mark.parametrize("stage", POINTS)
async def test_an_attempt_that_takes_too_long_is_ended_and_tried_again(world, stage):
    process = Stumbling(world, stage, hangs=True)
    events, failed_in = await process.run_job(stages={stage: {"timeout": 0.05}})
    retries = [event for event in events if isinstance(event, e.StageRetrying)]
    assert (process.hangs, failed_in) == (False, None)
    assert {retry.stage for retry in retries} == {stage}
    assert "took longer than 0.05 s" in retries[0].message


@pytest.mark.parametrize(
    "stages",
    [
        {"fly": {}},
        {"fund": {"speed": 1}},
        {"fund": {"timeout": 0}},
        {"fund": {"attempts": 0}},
        {"fund": {"on_failure": "cry"}},
    ],
)
async def test_a_policy_that_makes_no_sense_is_refused_before_anything(world, stages):
    async with JobRunner(Process(world).broker, MemoryStore(Journal())) as runner:
        with pytest.raises(ConfigError):
            await runner.submit(world.spec(stages=stages))


@pytest.mark.goal("RUN-11")
@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize(
    ("stage", "sent"),
    [
        ("fund", []),
        ("acknowledge_deliverable", ["add_ledger", "transfer_fund", "transfer_fund", "acknowledge_tee_signer"]),
        ("deploy_adapter", None),
    ],
)
async def test_a_hook_can_veto_paying_acknowledging_and_deploying(world, is_async, stage, sent):
    asked = []

    def approve(request):
        asked.append((request.stage, request.state.estimate is not None))
        return request.stage != stage

    async def approve_later(request):
        return approve(request)

    hook = approve_later if is_async else approve
    journal = Journal()
    async with JobRunner(Process(world).broker, MemoryStore(journal), approve=hook) as runner:
        job = await runner.submit(world.spec())
        with pytest.raises(JobFailedError) as caught:
            await job.result()
        assert asked[0] == ("fund", True)
        assert (caught.value.stage, caught.value.error_code) == (stage, "vetoed")
        assert sent is None or world.transactions == sent
        assert not world.adapters
        stage = "none"
        assert (await (await runner.resume(job.id)).result()).adapter_name
    assert world.adapters
