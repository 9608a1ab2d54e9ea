"""A machine whose clock is ten minutes wrong uploads and downloads all the same."""

import pytest

from tests.devnet.conftest import MODEL, PARAMS, new_key, open_broker
from zg_async import JobRunner, JobSpec, ProviderRejectedError, SystemClock
from zg_async.jobs.events import JobSucceeded, ProviderExcluded, StageRetrying
from zg_async.managers.provider_client import ProviderClient
from zg_async.transport.server_clock import ServerClocks

pytestmark = pytest.mark.slow


class WrongClock(SystemClock):
    def __init__(self, offset):
        self.offset = offset

    def now(self):
        return super().now() + self.offset


@pytest.mark.goal("TX-10")
@pytest.mark.parametrize("offset", [-600.0, 600.0])
async def test_upload_and_download_authenticate_with_a_clock_ten_minutes_wrong(
    devnet, provider, dataset, tmp_path, offset, monkeypatch
):
    key, task_id = new_key(devnet), None
    async with open_broker(devnet, key, tmp_path / "state", clock=WrongClock(offset)) as broker:
        await broker.ledger.ensure_funded(provider, "fine-tuning", "1")
        await broker.fine_tuning.acknowledge_provider_signer(provider)
    async with open_broker(devnet, key, tmp_path / "state", clock=WrongClock(offset)) as broker:  # asks for the time
        uploaded = await broker.fine_tuning.upload_dataset_to_tee(provider, dataset)
        task_id = await broker.fine_tuning.create_task(provider, MODEL, uploaded.dataset_hash, PARAMS)
        await broker.fine_tuning.wait_task(provider, task_id)
    async with open_broker(devnet, key, tmp_path / "state", clock=WrongClock(offset)) as broker:
        path = tmp_path / "model.zip"
        await broker.fine_tuning.download_lora_from_tee(provider, task_id, path)
        assert path.stat().st_size > 1000

    monkeypatch.setattr(ServerClocks, "saw", lambda *_: None)  # the provider does look at the time
    async with open_broker(devnet, key, tmp_path / "state", clock=WrongClock(offset)) as broker:
        with pytest.raises(ProviderRejectedError) as upload:
            await broker.fine_tuning.upload_dataset_to_tee(provider, dataset, reuse=False)
        with pytest.raises(ProviderRejectedError) as download:
            await broker.fine_tuning.download_lora_from_tee(provider, task_id, tmp_path / "again.zip")
    assert (upload.value.status, download.value.status) == (401, 401)


@pytest.mark.parametrize("step", [-400.0, 600.0])
async def test_a_provider_that_refused_a_wrong_clock_is_tried_again_by_the_same_job(
    devnet, dataset, tmp_path, step, monkeypatch
):
    """The machine's clock jumps as the upload and the download are signed: the refusals tell the right time."""
    clock, jumps, honest = WrongClock(0.0), {"upload_dataset": step, "download_model": -step}, ProviderClient.now
    under_way = []

    async def jumping(client):
        if under_way and (jump := jumps.pop(under_way[-1], None)) is not None:
            clock.offset += jump
        return await honest(client)

    def noting(name):
        send = getattr(ProviderClient, name)

        async def noted(*args, **fields):
            under_way.append(name)
            return await send(*args, **fields)

        return noted

    for name in jumps:
        monkeypatch.setattr(ProviderClient, name, noting(name))
    monkeypatch.setattr(ProviderClient, "now", jumping)
    async with (
        open_broker(devnet, new_key(devnet), tmp_path / "state", clock=clock) as broker,
        JobRunner(broker) as runner,
    ):
        spec = JobSpec(model=MODEL, dataset=dataset, training_params=PARAMS, output_dir=tmp_path / "out")
        job = await runner.submit(spec)
        async with job.events() as events:
            seen = [event async for event in events]
    assert not jumps
    assert isinstance(seen[-1], JobSucceeded)
    assert not [event for event in seen if isinstance(event, ProviderExcluded | StageRetrying)]
