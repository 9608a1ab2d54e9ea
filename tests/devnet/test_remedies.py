"""What goes wrong at providers is mended by the runner itself, or explained with the next step."""

import dataclasses
import datetime as dt
import json
from pathlib import Path

import pytest

from tests.devnet.conftest import MODEL, PARAMS, new_key, open_broker
from zg_async import JobFailedError, PollPolicy, TaskProgress
from zg_async.clock import SystemClock
from zg_async.jobs.runner import JobRunner
from zg_async.jobs.spec import JobSpec
from zg_async.jobs.state import JobStatus
from zg_async.units import format_amount

pytestmark = pytest.mark.slow


def spec(dataset, provider, tmp_path, **changes):
    fields = {
        "model": MODEL,
        "dataset": dataset,
        "training_params": PARAMS,
        "output_dir": tmp_path / "out",
        "provider": provider,
        "max_spend": "5",
    }
    return JobSpec(**(fields | changes))


async def kinds(handle):
    return [event.kind async for event in handle.events()]


@pytest.mark.goal("RUN-07", part="previous deliverable unacknowledged, low balance, signer not acknowledged")
@pytest.mark.goal("DUR-06", part="a delivery that the runner didn't start")
async def test_a_delivery_left_lying_by_somebody_else_is_finished_first_and_the_job_goes_on(
    broker, provider, dataset, task, tmp_path
):
    await broker.fine_tuning.wait_task(provider, task, TaskProgress.DELIVERED)
    async with JobRunner(broker) as runner:
        result = await runner.run_job(spec(dataset, provider, tmp_path))
        adopted = next(s for s in await runner.list_jobs() if s.adopted)
        assert adopted.task_id == task
        assert await (await runner.attach(adopted.job_id)).status() is JobStatus.SUCCEEDED
    assert result.task_id != task
    manifest = json.loads((Path(result.adapter_path) / "zg_job.json").read_text())
    assert manifest["problem"] is None
    assert (manifest["task_id"], tuple(manifest["transactions"])) == (result.task_id, result.transactions)
    assert manifest["versions"]["zg_async"]
    assert (await broker.fine_tuning.get_deliverable(provider, task)).settled
    assert (tmp_path / "state" / "adopted" / task / "adapter" / "adapter_model.safetensors").exists()


@pytest.mark.goal("RUN-07", part="busy")
@pytest.mark.goal("DUR-06", part="a task that the runner didn't start, from its creation")
async def test_a_task_of_somebody_else_that_is_under_way_is_guarded_to_its_end(broker, provider, task):
    async with JobRunner(broker) as runner:
        while not (states := await runner.list_jobs()):
            await broker.clock.sleep(0.1)
        await (await runner.attach(states[0].job_id)).result()
    assert (await broker.fine_tuning.get_deliverable(provider, task)).acknowledged


@pytest.mark.goal("RUN-07", part="503 artifact, provider errors")
async def test_a_download_that_is_not_there_yet_and_a_provider_that_stumbles_are_tried_again(
    broker, provider, dataset, tmp_path, faults
):
    faults(lora_503=2, queue_full=1, lose_answer=1)
    async with JobRunner(broker) as runner:
        handle = await runner.submit(spec(dataset, provider, tmp_path))
        assert (await handle.result()).files
        assert "stage_retrying" in await kinds(handle)


@pytest.mark.goal("RUN-07", part="low balance is explained")
async def test_a_budget_below_the_fee_is_explained_with_the_next_step(broker, provider, dataset, tmp_path, devnet):
    devnet.control("settings", provider=0, price_per_token=10**17)
    try:
        async with JobRunner(broker) as runner:
            with pytest.raises(JobFailedError) as caught:
                await runner.run_job(spec(dataset, provider, tmp_path, budget="1", max_spend="90"))
    finally:
        devnet.control("settings", provider=0, price_per_token=10**12)
    assert "insufficient account balance" in str(caught.value)
    assert "higher budget" in caught.value.hint


@pytest.mark.goal("RUN-07", part="previous deliverable settled with penalty is explained")
async def test_a_provider_locked_by_a_penalty_is_explained_with_the_way_out(
    broker, provider, dataset, task, tmp_path, devnet
):
    await broker.fine_tuning.wait_task(provider, task, TaskProgress.DELIVERED)
    devnet.control("faults", provider=0, lock_time_unreadable=-1)
    try:
        await broker.fine_tuning.wait_task(provider, task, TaskProgress.FINISHED)
    finally:
        devnet.control("clear_faults")
    async with JobRunner(broker) as runner:
        with pytest.raises(JobFailedError, match="settled without") as caught:
            await runner.run_job(spec(dataset, provider, tmp_path))
        assert (await runner.doctor(provider)).state == "penalty_lock"
    assert "retrieve all funds" in caught.value.hint


@pytest.mark.goal("RUN-07", part="stale signature is explained")
async def test_a_signature_that_is_stale_by_the_providers_clock_is_explained_with_the_next_step(
    broker, provider, dataset, tmp_path, faults
):
    faults(stale_clock=600.0)
    async with JobRunner(broker) as runner:
        with pytest.raises(JobFailedError, match="too old") as caught:
            await runner.run_job(spec(dataset, provider, tmp_path))
    assert "Compare this machine's clock" in caught.value.hint


@pytest.mark.goal("RUN-07", part="signature mismatch is explained")
async def test_a_signature_that_the_provider_reads_otherwise_is_explained_with_the_next_step(
    broker, provider, dataset, tmp_path, faults
):
    faults(signature_error=1)
    async with JobRunner(broker) as runner:
        with pytest.raises(JobFailedError, match="signature verification failed") as caught:
            await runner.run_job(spec(dataset, provider, tmp_path))
    assert "submit the job again" in caught.value.hint


class SkewedClock(SystemClock):
    """The machine's clock, or so many seconds from it."""

    offset = 0.0

    def now(self):
        return super().now() + self.offset


@pytest.mark.goal("RUN-07", part="adapter not found for a while after the acknowledgement, expired key")
async def test_an_adapter_not_known_yet_is_waited_for_and_an_expired_token_renewed(
    devnet, key, provider, dataset, tmp_path, monkeypatch
):
    clock, looks = SkewedClock(), []
    async with open_broker(devnet, key, tmp_path / "state", clock=clock) as broker:
        lora, inference = broker.inference.lora, broker.inference
        known = lora.list_adapters

        async def known_later(*where):
            """As a provider answers that hasn't seen the acknowledgement yet."""
            looks.append(await known(*where) if len(looks) >= 2 else ())
            return looks[-1]

        monkeypatch.setattr(lora, "list_adapters", known_later)
        async with JobRunner(broker) as runner:
            result = await runner.run_job(spec(dataset, provider, tmp_path, deploy=True))
        assert len(looks) >= 3
        inference.forget_session(provider)
        clock.offset = -48 * 3600.0
        old = await inference.session_token(provider)
        clock.offset = 0.0
        later = dt.datetime.fromtimestamp(clock.now() + 20 * 3600, dt.UTC)
        inference._tokens[provider] = dataclasses.replace(old, expires_at=later)  # believed to live
        answer = await lora.chat(provider, result.adapter_name, "Name the colour of box 1.", max_tokens=4)
        assert answer.model == result.adapter_name
        assert (await inference.session_token(provider)).raw_token != old.raw_token


@pytest.mark.goal("RUN-07", part="stuck in SettingUp is explained")
@pytest.mark.goal("TSK-05", part="in a job's journal")
async def test_a_task_stuck_in_setup_is_told_with_the_providers_words_and_goes_on(
    devnet, key, provider, dataset, tmp_path, faults
):
    faults(fail_setup=-1)
    devnet.control("settings", provider=0, tick=0.5)
    states = dict.fromkeys((TaskProgress.INIT, TaskProgress.SETTING_UP), 1.5)
    polling = PollPolicy(first=0.1, longest=0.2, rate=50.0, stuck_seconds=states)
    async with open_broker(devnet, key, tmp_path / "state", polling=polling) as broker, JobRunner(broker) as runner:
        handle = await runner.submit(spec(dataset, provider, tmp_path))
        async for event in handle.events():
            if event.kind == "job_warned" and "download failed: devnet fault" in event.message:
                break
        devnet.control("settings", provider=0, tick=0.2)
        faults(fail_setup=0)
        assert (event.code, "max_queue_seconds" in event.hint) == ("stuck", True)
        assert (await handle.result()).files


@pytest.mark.goal("RUN-12")
async def test_a_fee_that_shows_above_the_cap_in_setup_cancels_the_task_and_says_so(
    broker, provider, dataset, tmp_path, devnet
):
    await broker.ledger.ensure_funded(provider, "fine-tuning", "3")
    before = (await broker.fine_tuning.get_account(provider)).balance
    devnet.control("settings", provider=0, train_seconds=100.0)
    try:
        async with open_broker(devnet, new_key(devnet), tmp_path / "other") as other:  # trains, so ours stays in SetUp
            await other.ledger.ensure_funded(provider, "fine-tuning", "1")
            hash_ = (await other.fine_tuning.upload_dataset_to_tee(provider, dataset)).dataset_hash
            ahead = await other.fine_tuning.create_task(provider, MODEL, hash_, PARAMS)
            await other.fine_tuning.wait_task(provider, ahead, TaskProgress.TRAINING)
        devnet.control("settings", provider=0, price_per_token=10**16, tick=0.5)
        async with JobRunner(broker) as runner:
            handle = await runner.submit(spec(dataset, provider, tmp_path, budget="0.1", max_spend="0.2"))
            events = [event async for event in handle.events()]
    finally:
        devnet.control("settings", provider=0, price_per_token=10**12, tick=0.2, train_seconds=0.0)
    shown = [event for event in events if event.kind == "task_progressed"]
    assert all(event.fee == 0 for event in shown if event.progress is TaskProgress.INIT)  # the fee isn't known yet
    assert shown[-1].fee > 2 * 10**17
    assert all(event.progress not in (TaskProgress.TRAINING, TaskProgress.TRAINED) for event in shown)
    assert (events[-1].kind, events[-1].code) == ("job_failed", "limit")
    assert "cancelled" in events[-1].message
    assert format_amount(shown[-1].fee) in events[-1].message
    (task,) = await broker.fine_tuning.list_task(provider)
    assert task.progress is TaskProgress.FAILED
    account = await broker.fine_tuning.get_account(provider)
    assert (account.balance, account.deliverables) == (before, ())
    assert broker.chain.budget.gone(handle.id) < 2 * 10**17
