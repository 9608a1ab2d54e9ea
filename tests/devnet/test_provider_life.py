import io
import json
import zipfile
from collections.abc import Iterator

import pytest

from tests.devnet.provider_kit import PARAMS, chain_user
from zg_async.devnet.process import DevnetProcess
from zg_async.devnet.storage_network import hash_path
from zg_async.errors import EnvelopeError, SignatureMismatchError
from zg_async.wire.envelope import ModelDecryptor, unwrap_key
from zg_async.wire.hashing import keccak256
from zg_async.wire.provider_api import parse_log

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def devnet() -> Iterator[DevnetProcess]:
    with DevnetProcess("--limits", "off") as running:
        yield running


def _decrypt(user, deliverable, blob, signer):
    decryptor = ModelDecryptor(unwrap_key(user.key, deliverable.encrypted_secret), expected_signer=signer)
    plain = b"".join(decryptor.update(blob))
    decryptor.finish()
    return zipfile.ZipFile(io.BytesIO(plain))


@pytest.mark.goal("DOC-04", part="chain and broker")
async def test_a_task_lives_from_upload_to_the_decrypted_adapter(devnet):
    async with chain_user(devnet, "life") as user:
        task_id = await user.train()
        task = await user.wait(task_id, "Delivered")
        assert task["fee"] == str((12 * (5 + 4)) * 10**12 + 10**16)
        assert task["deliverTime"] > 0
        status, blob, _ = await user.download(task_id)
        assert status == 200
        deliverable = await user.deliverable(task_id)
        assert deliverable.model_root_hash == keccak256(blob)
        assert (deliverable.acknowledged, deliverable.encrypted_secret) == (False, b"")
        before = (await user.account()).balance
        await user.acknowledge(task_id)
        await user.wait(task_id, "Finished")
        deliverable, account = await user.deliverable(task_id), await user.account()
        assert (deliverable.settled, len(deliverable.encrypted_secret)) == (True, 129)
        assert (before - account.balance, account.account_nonce) == (int(task["fee"]), user.nonce)
        service = await user.client.call(user.contract.get_service(user.provider))
        archive = _decrypt(user, deliverable, blob, service.tee_signer_address)
        names = ["output_model/adapter_config.json", "output_model/adapter_model.safetensors"]
        assert sorted(archive.namelist()) == names
        assert {info.compress_type for info in archive.infolist()} == {zipfile.ZIP_STORED}
        assert json.loads(archive.read(names[0]))["peft_type"] == "LORA"


async def test_the_log_shows_the_trainers_output_in_one_piece(devnet):
    async with chain_user(devnet, "log") as user:
        task_id = await user.train()
        await user.wait(task_id, "Delivered")
        await user.acknowledge(task_id)
        await user.wait(task_id, "Finished")
        log = await user.wait_log(task_id, f"Settle task {task_id} successfully")
        lines = log.splitlines()
        assert lines[0].endswith("] creating task....")
        start = next(i for i, line in enumerate(lines) if line.endswith("] Container logs:"))
        assert lines[start + 1] == "Model path: Qwen2.5-0.5B-Instruct"
        assert "Training completed successfully!" in lines
        for kind in ("setup", "executor", "finalizer"):
            assert any(line.endswith(f"Training model for {kind} task {task_id} successfully") for line in lines)
        assert parse_log(log)


async def test_live_logs_grow_while_training(devnet):
    async with chain_user(devnet, "live") as user:
        await user.control("settings", log_mode="live", train_seconds=2)
        params = PARAMS.replace('"max_steps":3', '"max_steps":30')
        task_id = await user.train(trainingParams=params)
        await user.wait(task_id, "Training")
        await user.wait_log(task_id, "Step: 10, Logs: {'loss': ")
        assert (await user.task(task_id))["progress"] == "Training"
        service = await user.client.call(user.contract.get_service(user.provider))
        assert service.occupied
        await user.wait(task_id, "Delivered")
        assert not (await user.client.call(user.contract.get_service(user.provider))).occupied
        await user.control("settings", log_mode="today", train_seconds=0)
        await user.acknowledge(task_id)
        await user.wait(task_id, "Finished")


@pytest.mark.goal("DOC-04", part="clock")
async def test_a_missed_window_costs_the_penalty_and_gives_no_key(devnet):
    async with chain_user(devnet, "late") as user:
        task_id = await user.train()
        task = await user.wait(task_id, "Delivered")
        before = (await user.account()).balance
        await user.control("increase_time", seconds=86400 // 2 - 60)
        assert (await user.task(task_id))["progress"] == "Delivered"
        await user.control("increase_time", seconds=120)
        await user.wait(task_id, "Finished")
        deliverable = await user.deliverable(task_id)
        assert (deliverable.acknowledged, deliverable.settled, deliverable.encrypted_secret) == (False, True, b"")
        assert before - (await user.account()).balance == int(task["fee"]) * 30 // 100
        second = await user.train()
        assert "previous deliverable not acknowledged" in await user.wait_failed(second)


async def test_a_restart_fails_what_is_unfinished_even_when_delivered(devnet):
    async with chain_user(devnet, "restart") as user:
        task_id = await user.train()
        await user.wait(task_id, "Delivered")
        await user.control("restart")
        assert (await user.task(task_id))["progress"] == "Failed"
        assert not (await user.deliverable(task_id)).settled
        await user.acknowledge(task_id)  # the chain still takes it, so that the pair isn't blocked


async def test_a_second_user_waits_in_the_queue(devnet):
    async with chain_user(devnet, "first") as first, chain_user(devnet, "second") as second:
        await first.control("settings", train_seconds=2)
        one = await first.train()
        await first.wait(one, "Training")
        _, upload = await second.upload()
        status, answer = await second.create(upload["datasetHash"], wait=False)
        assert (status, "while there are in-progress tasks" in answer["error"]) == (409, True)
        two = await second.train()
        assert "There are 1 tasks in the queue ahead." in await second.log(two)
        await first.control("settings", train_seconds=0)
        for user, task_id in ((first, one), (second, two)):
            await user.wait(task_id, "Delivered")
            await user.acknowledge(task_id)
            await user.wait(task_id, "Finished")


async def test_cancelling_during_training_is_too_late(devnet):
    async with chain_user(devnet, "cancel") as user:
        await user.control("settings", train_seconds=1)
        task_id = await user.train()
        await user.wait(task_id, "Training")
        status, answer = await user.cancel(task_id)
        assert (status, "(Training)" in answer["error"]) == (409, True)
        await user.control("settings", train_seconds=0)
        await user.wait(task_id, "Delivered")
        await user.acknowledge(task_id)
        await user.wait(task_id, "Finished")


async def test_progress_goes_backwards_when_an_attempt_fails(devnet):
    async with chain_user(devnet, "back") as user:
        await user.control("faults", fail_training=1, fail_delivery=1, fail_settlement=1)
        task_id = await user.train()
        await user.wait(task_id, "Delivered")
        await user.acknowledge(task_id)
        await user.wait(task_id, "Finished")
        log = await user.log(task_id)
        assert log.count(f"Retrying task {task_id}") == 2
        assert "=== Container Failed ===" in log
        assert "settle fees: devnet fault" in log


async def test_training_gets_two_attempts(devnet):
    async with chain_user(devnet, "twice") as user:
        await user.control("faults", fail_training=2)
        task_id = await user.train()
        assert (await user.wait_failed(task_id)).count("=== Container Failed ===") == 2


async def test_a_file_signed_by_another_key_doesnt_verify(devnet):
    async with chain_user(devnet, "forged") as user:
        await user.control("faults", bad_signature=1)
        task_id = await user.train()
        await user.wait(task_id, "Delivered")
        _, blob, _ = await user.download(task_id)
        await user.acknowledge(task_id)
        await user.wait(task_id, "Finished")
        signer = (await user.client.call(user.contract.get_service(user.provider))).tee_signer_address
        with pytest.raises((SignatureMismatchError, EnvelopeError)):
            _decrypt(user, await user.deliverable(task_id), blob, signer)


async def test_the_storage_root_goes_on_chain_when_asked(devnet, tmp_path):
    async with chain_user(devnet, "root") as user:
        await user.control("settings", root="storage")
        task_id = await user.train()
        await user.wait(task_id, "Delivered")
        await user.control("settings", root="keccak")
        _, blob, _ = await user.download(task_id)
        (tmp_path / "file").write_bytes(blob)
        assert (await user.deliverable(task_id)).model_root_hash == hash_path(tmp_path / "file").root
        await user.acknowledge(task_id)
        await user.wait(task_id, "Finished")
