"""The recovery cookbook: each failure is staged, and its page's commands get out of it."""

import re
from contextlib import asynccontextmanager

import anyio
import pytest

from tests.devnet.conftest import MODEL, PARAMS, open_broker
from tests.devnet.test_docs import BLOCK, ROOT, Reader
from zg_async import JobFailedError, JobRunner, JobSpec, TaskProgress

pytestmark = [pytest.mark.slow, pytest.mark.goal("DOC-03"), pytest.mark.goal("DOC-01", part="the cookbook")]
PAGE = (ROOT / "docs" / "recovery.md").read_text()
SECTIONS = dict(re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL))
HEALTHY = "healthy"


class Stage:
    """The failure of a section, and what has to be true when its commands have run."""

    def __init__(self, devnet, reader: Reader) -> None:
        self.devnet, self.reader, self.provider = devnet, reader, reader.names["provider"]

    def broker(self):
        return open_broker(self.devnet, self.reader.names["key"], self.reader.folder / "state")

    async def ordered(self, broker, *, until=None) -> str:
        await broker.ledger.ensure_funded(self.provider, "fine-tuning", "1")
        uploaded = await broker.fine_tuning.upload_dataset_to_tee(self.provider, "train.jsonl")
        task = await broker.fine_tuning.create_task(self.provider, MODEL, uploaded.dataset_hash, PARAMS)
        if until is not None:
            await broker.fine_tuning.wait_task(self.provider, task, until)
        self.reader.env["TASK"] = task
        return task

    async def failed_job(self, broker, match: str, **fields) -> None:
        spec = {"model": MODEL, "dataset": "train.jsonl", "training_params": PARAMS, "output_dir": "failed"} | fields
        async with JobRunner(broker) as runner:
            with pytest.raises(JobFailedError, match=match):
                await runner.run_job(JobSpec(**spec, provider=self.provider))

    async def healthy(self) -> None:
        async with self.broker() as broker:
            assert (await broker.fine_tuning.diagnose(self.provider)).state == HEALTHY

    async def succeeded(self) -> None:
        listed = await self.reader.sh("zg jobs list --status succeeded --json")
        assert listed.count('"succeeded"') >= 1

    @asynccontextmanager
    async def unfinished(self):
        async with self.broker() as broker:
            task = await self.ordered(broker)
        yield
        await self.acknowledged(task)

    @asynccontextmanager
    async def poor(self):
        self.devnet.control("settings", provider=0, price_per_token=10**17)
        try:
            async with self.broker() as broker:
                await self.failed_job(broker, "insufficient account balance", budget="1", max_spend="90")
            yield
        finally:
            self.devnet.control("settings", provider=0, price_per_token=10**12)
        await self.succeeded()

    @asynccontextmanager
    async def delivered(self):
        async with self.broker() as broker:
            task = await self.ordered(broker, until=TaskProgress.DELIVERED)
        yield
        await self.acknowledged(task)
        assert (self.reader.folder / "model.zip").stat().st_size > 0

    async def acknowledged(self, task: str) -> None:
        async with self.broker() as broker:
            assert (await broker.fine_tuning.get_deliverable(self.provider, task)).acknowledged
        await self.healthy()

    @asynccontextmanager
    async def lost(self):
        async with self.broker() as broker:
            task = await self.ordered(broker, until=TaskProgress.DELIVERED)
        self.devnet.control("faults", provider=0, wrong_hash=-1)
        try:
            yield
        finally:
            self.devnet.control("clear_faults")
        await self.acknowledged(task)
        assert not (self.reader.folder / "model.bin").exists()

    @asynccontextmanager
    async def refused(self):
        self.devnet.control("faults", provider=0, signature_error=1)
        async with self.broker() as broker:
            await self.failed_job(broker, "signature verification failed")
        self.devnet.control("clear_faults")
        yield
        await self.succeeded()

    @asynccontextmanager
    async def stuck(self):
        self.devnet.control("faults", provider=0, fail_setup=-1)
        self.devnet.control("settings", provider=0, tick=30.0)
        try:
            async with self.broker() as broker:
                task = await self.ordered(broker)
            yield
            async with self.broker() as broker:
                assert (await broker.fine_tuning.get_task(self.provider, task)).progress is TaskProgress.FAILED
        finally:
            self.devnet.control("clear_faults")
            self.devnet.control("settings", provider=0, tick=0.2)
            self.devnet.control("restart", provider=0)  # its workers wouldn't look again for the rest of the 30 s
        await self.healthy()

    @asynccontextmanager
    async def not_deployed(self):
        async with self.broker() as broker, JobRunner(broker) as runner:
            spec = JobSpec(
                model=MODEL,
                dataset="train.jsonl",
                training_params=PARAMS,
                output_dir="done",
                provider=self.provider,
            )
            self.reader.env["TASK"] = task = (await runner.run_job(spec)).task_id
        yield
        async with self.broker() as broker:
            adapters = await broker.inference.lora.list_adapters(self.provider)
        assert [adapter.state.value for adapter in adapters if adapter.task_id == task] == ["active"]

    @asynccontextmanager
    async def expired(self):
        async with self.broker() as broker:
            await broker.ledger.ensure_funded(self.provider, "inference", "2")
            await broker.inference.acknowledge_provider_signer(self.provider)
            await broker.inference.create_api_key(self.provider)
        yield
        async with self.broker() as broker:
            kept = await broker.inference.list_api_keys(self.provider)
        assert sorted(key.works for key in kept) == [False, True]

    @asynccontextmanager
    async def locked(self):
        async with self.broker() as broker:
            task = await self.ordered(broker, until=TaskProgress.DELIVERED)
            self.devnet.control("faults", provider=0, lock_time_unreadable=-1)
            await broker.fine_tuning.wait_task(self.provider, task, TaskProgress.FINISHED)
            self.devnet.control("clear_faults")
            self.lock_seconds = await broker.fine_tuning.get_locked_time()
        yield
        await self.healthy()

    def later(self) -> None:
        self.devnet.control("increase_time", seconds=self.lock_seconds + 60)


STAGES = {
    "The provider says there is an unfinished task": Stage.unfinished,
    "The balance is too low": Stage.poor,
    "The previous delivery isn't acknowledged": Stage.delivered,
    "The provider has lost the model": Stage.lost,
    "The provider refuses a signature": Stage.refused,
    "A task is stuck in SettingUp": Stage.stuck,
    "The adapter isn't found after the acknowledgement": Stage.not_deployed,
    "A key has expired": Stage.expired,
    "The window has passed": Stage.locked,
}


def test_every_section_has_its_failure():
    assert list(STAGES) == list(SECTIONS)


@pytest.mark.parametrize("title", STAGES)
async def test_the_commands_of_a_page_get_out_of_its_failure(title, devnet, tmp_path, monkeypatch, warm_zg):
    reader = Reader(devnet, tmp_path, monkeypatch, warm_zg)
    stage = Stage(devnet, reader)
    with anyio.fail_after(200):
        async with STAGES[title](stage):
            for number, part in enumerate(SECTIONS[title].split("<!-- later: lock -->")):
                if number:
                    stage.later()
                for kind, text in BLOCK.findall(part):
                    await getattr(reader, kind)(text)
