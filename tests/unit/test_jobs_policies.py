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


def away(process, count, name):
    if name == "before upload":
        raise ProviderUnavailableError("no answer")


def test_the_names_are_those_of_the_stages():
    assert tuple(stage.name for stage in STAGES) == STAGE_NAMES


@pytest.mark.goal("RUN-06", part="attempts and on-failure")
async def test_attempts_and_what_follows_a_failure_are_the_specifications(world):
    journal = Journal()
    async with JobRunner(Process(world, away).broker, MemoryStore(journal)) as runner:
        stages = {"upload_dataset": {"attempts": 3, "on_failure": "fail"}}
        job = await runner.submit(world.spec(stages=stages))
        with pytest.raises(JobFailedError) as caught:
            await job.result()
        events = [event async for event in job.events()]
    assert caught.value.stage == "upload_dataset"
    assert sum(isinstance(event, e.StageRetrying) for event in events) == 2
    assert not any(isinstance(event, e.ProviderExcluded) for event in events)


@pytest.mark.goal("RUN-06", part="timeout")
async def test_an_attempt_that_takes_too_long_is_ended_and_tried_again(world):
    process = Process(world)
    upload, calls = process.broker.fine_tuning.upload_dataset_to_tee, []

    async def slow_once(*args):
        calls.append(args)
        if len(calls) == 1:
            await anyio.sleep_forever()
        return await upload(*args)

    process.broker.fine_tuning.upload_dataset_to_tee = slow_once
    async with JobRunner(process.broker, MemoryStore(Journal())) as runner:
        job = await runner.submit(world.spec(stages={"upload_dataset": {"timeout": 0.05}}))
        await job.result()
        retries = [event async for event in job.events() if isinstance(event, e.StageRetrying)]
    assert ["took longer than 0.05 s" in retry.message for retry in retries] == [True]


POINTS = {
    "choose_provider": "before rpc read",
    "fund": "before rpc broadcast transfer_fund",
    "acknowledge_provider": "before quote",
    "upload_dataset": "before upload",
    "create_task": "before post task",
    "decrypt_model": "after decrypt disk",
    "deploy_adapter": "before deploy",
}
"""A point in each stage whose attempts the specification may bound; the others are tried until the window closes."""


@pytest.mark.goal("RUN-06", part="seven of the steps")
@pytest.mark.parametrize("stage", sorted(POINTS))
async def test_each_step_has_the_attempts_that_its_specification_says(world, stage):
    failed = []

    def fail(process, count, name):
        if name == POINTS[stage] and process.stage() == stage:
            failed.append(name)
            raise ProviderUnavailableError("no answer")

    process = Process(world, fail)
    journal = Journal()
    stages = {stage: {"attempts": 2, "on_failure": "fail"}}
    async with JobRunner(process.broker, MemoryStore(journal)) as runner:
        driver = lambda: next(iter(runner._drivers.values()))  # noqa: E731
        process.stage = lambda: next_stage(driver().state).name if runner._drivers else ""
        job = await runner.submit(world.spec(stages=stages))
        with pytest.raises(JobFailedError) as caught:
            await job.result()
        events = [event async for event in job.events()]
    assert (caught.value.stage, len(failed)) == (stage, 2)
    assert [event.stage for event in events if isinstance(event, e.StageRetrying)] == [stage]


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
