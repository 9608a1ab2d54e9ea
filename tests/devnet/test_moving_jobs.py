"""A job leaves one machine as a file and goes on at another: paid once, driven by one, its caps with it."""

import dataclasses
import json
from collections import Counter

import anyio
import pytest

from tests.devnet.conftest import DATASET, MODEL, PARAMS, new_key, open_broker
from zg_async import ConfigError, JobRunner, JobSpec, JournalError, SpendLimits, TaskProgress

pytestmark = pytest.mark.slow


def machine(devnet, key, folder, **options):
    """A broker with a state folder of its own: another machine, as far as this package can tell."""
    return open_broker(devnet, key, folder / "state", **options)


def spec(folder, provider, **changes):
    folder.mkdir(exist_ok=True)
    (folder / "train.jsonl").write_text(DATASET)
    fields = {
        "model": MODEL,
        "dataset": folder / "train.jsonl",
        "training_params": PARAMS,
        "output_dir": folder / "out",
        "provider": provider,
        "key": "one",
        "max_spend": "5",
    }
    return JobSpec(**(fields | changes))


async def reached(job, kind):
    async with job.events() as events:
        async for event in events:
            if event.kind == kind:
                return


@pytest.mark.goal("DUR-07")
@pytest.mark.parametrize("leaves_at", ["provider_funded", "task_created"])
async def test_a_job_goes_on_at_another_machine_and_nothing_of_it_happens_twice(devnet, provider, tmp_path, leaves_at):
    key, file = new_key(devnet), tmp_path / "job.json"
    here, there = tmp_path / "here", tmp_path / "there"
    there.mkdir()
    wanted = spec(here, provider)
    async with machine(devnet, key, here) as broker, JobRunner(broker) as runner:
        job = await runner.submit(wanted)
        await reached(job, leaves_at)
        await runner.export_job(job.id, file)
        left = await job.state()
        with pytest.raises(JournalError, match="was exported"):
            await job.result()
        with pytest.raises(ConfigError, match="exists"):
            await runner.export_job(job.id, file)  # never over another file
    assert key.removeprefix("0x") not in file.read_text()
    (here / "train.jsonl").rename(there / "train.jsonl")
    async with machine(devnet, key, there) as broker, JobRunner(broker) as runner:
        job = await runner.import_job(file, dataset=there / "train.jsonl", output_dir=there / "out")
        with anyio.fail_after(120):
            result = await job.result()
        state = await job.state()
        assert broker.chain.budget.gone(job.id) == result.fee + result.gas > result.fee  # with what was spent there
        same = dataclasses.replace(wanted, dataset=there / "train.jsonl", output_dir=there / "out")
        assert (await runner.submit(same)).id == job.id  # by its key, too
        [task] = await broker.fine_tuning.list_task(provider)
        account = await broker.fine_tuning.get_account(provider)
        sent = await broker.chain.transaction_count(broker.address)
        names = Counter(row.name.split(".")[1] for row in await broker.chain.mined_rows(broker.address))
    assert state.seq > left.seq
    assert (there / "out" / "adapter" / "adapter_model.safetensors").exists()
    assert (task.id, task.progress) == (result.task_id, TaskProgress.FINISHED)
    assert [(d.id, d.settled, d.acknowledged) for d in account.deliverables] == [(task.id, True, True)]
    assert names == {"addLedger": 1, "transferFund": 1, "acknowledgeDeliverable": 1}
    assert sent == names.total()
    async with machine(devnet, key, here) as broker, JobRunner(broker) as runner:  # where it left, nothing goes on
        again = await runner.attach(job.id)
        with pytest.raises(JournalError, match="was exported"):
            await again.result()
        assert (await again.state()).seq == left.seq
        assert await broker.chain.transaction_count(broker.address) == sent


async def test_a_job_comes_back_and_its_caps_are_where_it_is(devnet, provider, tmp_path):
    key, here, there = new_key(devnet), tmp_path / "here", tmp_path / "there"
    limits = SpendLimits(per_job="4")
    async with machine(devnet, key, here) as broker, JobRunner(broker) as runner:
        job = await runner.submit(spec(here, provider))
        await reached(job, "provider_funded")
        await runner.export_job(job.id, tmp_path / "1.json")
        gone = broker.chain.budget.gone(job.id)
    async with machine(devnet, key, there, limits=limits) as broker, JobRunner(broker) as runner:
        await runner.import_job(tmp_path / "1.json", dataset=here / "train.jsonl", output_dir=there / "out")
        await runner.export_job(job.id, tmp_path / "2.json")
        assert broker.chain.budget.gone(job.id) >= gone > 0
    async with machine(devnet, key, here) as broker, JobRunner(broker) as runner:
        with pytest.raises(JournalError, match="what left here"):
            await runner.import_job(tmp_path / "1.json")
        job = await runner.import_job(tmp_path / "2.json", output_dir=here / "out")
        with pytest.raises(JournalError, match="already"):
            await runner.import_job(tmp_path / "2.json")
        with anyio.fail_after(120):
            assert (await job.result()).files
        with pytest.raises(ConfigError, match="has ended"):
            await runner.export_job(job.id, tmp_path / "3.json")


async def test_a_file_that_isnt_right_changes_nothing(devnet, provider, tmp_path):
    key, here, there = new_key(devnet), tmp_path / "here", tmp_path / "there"
    file, bad = tmp_path / "job.json", tmp_path / "bad.json"
    async with machine(devnet, key, here) as broker, JobRunner(broker) as runner:
        job = await runner.submit(spec(here, provider))
        await reached(job, "provider_acknowledged")
        await runner.export_job(job.id, file)
    whole = file.read_text()
    stranger = new_key(devnet)
    async with machine(devnet, stranger, there / "stranger") as broker, JobRunner(broker) as runner:
        with pytest.raises(ConfigError, match="no key"):
            await runner.import_job(file)
    async with machine(devnet, key, there) as broker, JobRunner(broker) as runner:
        for text in ("", "{}", whole.replace('"provider_funded"', '"provider_founded"'), whole[:-40]):
            bad.write_text(text)
            with pytest.raises(JournalError):
                await runner.import_job(bad)
        (here / "train.jsonl").unlink()
        with pytest.raises(ConfigError, match="isn't here"):
            await runner.import_job(file)
        assert await runner.list_jobs() == ()
        assert json.loads(whole)["sent"]
        assert await broker.chain.mined_rows(broker.address) == ()
