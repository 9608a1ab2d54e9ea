"""Whole jobs on a devnet: one call, other processes, and what is on disk meanwhile."""

import contextlib
import json
import os
import platform
import sqlite3
import sys

import anyio
import pytest

from tests.devnet.conftest import DATASET, MODEL, PARAMS, new_key, open_broker
from zg_async import (
    ConfigError,
    JobRunner,
    JobSpec,
    LedgerNotFoundError,
    SqliteStore,
    __version__,
    create_broker,
)
from zg_async.transport.signer import LocalSigner
from zg_async.wire.adapter_files import read_adapter
from zg_async.wire.hashing import keccak256

pytestmark = pytest.mark.slow


@pytest.fixture
def spec(dataset, tmp_path):
    return JobSpec(model=MODEL, dataset=dataset, training_params=PARAMS, output_dir=tmp_path / "out", deploy=True)


@pytest.mark.goal("RUN-01")
@pytest.mark.goal("DEL-08", part="a valid adapter, and a manifest that says whose it is")
async def test_one_call_goes_from_coins_alone_to_an_adapter_that_answers(broker, spec, tmp_path):
    with pytest.raises(LedgerNotFoundError):
        await broker.ledger.get_ledger()
    async with JobRunner(broker) as runner:
        result = await runner.run_job(spec)
    assert set(result.files) >= {"adapter_config.json", "adapter_model.safetensors"}
    assert json.loads((tmp_path / "out" / "adapter" / "adapter_config.json").read_text())["peft_type"] == "LORA"
    assert result.fee > 0
    assert result.gas > 0
    assert len(set(result.transactions)) == len(result.transactions) >= 4
    answer = await broker.inference.lora.chat(
        result.provider, result.adapter_name, "Name the colour of box 1.", max_tokens=8
    )
    assert answer.model == result.adapter_name
    [delivery] = (await broker.fine_tuning.get_account(result.provider)).deliverables
    assert (delivery.id, delivery.acknowledged, delivery.settled) == (result.task_id, True, True)
    await is_sound(broker, tmp_path / "out" / "adapter", result, delivery, dataset=spec.dataset)


async def is_sound(broker, folder, result, delivery, *, dataset):
    """See that an adapter's files are valid, and that its manifest says whose it is."""
    config, weights = folder / "adapter_config.json", folder / "adapter_model.safetensors"
    adapter = read_adapter(config.read_bytes(), weights.read_bytes(), weights.stat().st_size)
    assert adapter.rank > 0
    assert adapter.targets
    manifest = json.loads((folder / "zg_job.json").read_text())
    assert manifest == {
        "job_id": result.job_id,
        "task_id": delivery.id,
        "provider": result.provider,
        "wallet": broker.address,
        "model": MODEL,
        "dataset_hash": "0x" + keccak256(dataset.read_bytes()).hex(),
        "model_root_hash": "0x" + delivery.model_root_hash.hex(),
        "transactions": list(result.transactions),
        "chain_id": broker.chain.chain_id,
        "versions": {"zg_async": __version__, "python": platform.python_version()},
        "problem": None,
    }
    for tx_hash in manifest["transactions"]:
        assert (await broker.chain.wait_receipt(tx_hash)).status == 1


ATTACH = """
import asyncio, os, sys
from zg_async import JobRunner, SqliteStore, create_broker

async def main(job_id):
    broker = create_broker(os.environ["KEY"], "local", rpc_url=os.environ["RPC"], state_dir=os.environ["STATE"])
    async with broker, JobRunner(broker) as runner:
        job = await runner.attach(job_id)
        kinds = [event.kind async for event in job.events()]
        print(kinds[0], kinds[-1])
        print(repr(await job.result()))

asyncio.run(main(sys.argv[1]))
"""


@pytest.mark.goal("RUN-04")
async def test_a_job_started_here_is_attached_elsewhere_and_gives_the_same_result(devnet, spec, tmp_path):
    key, state = new_key(devnet), tmp_path / "state"
    async with open_broker(devnet, key, state) as broker, JobRunner(broker) as runner:
        job = await runner.submit(spec)
        async for event in job.events():
            if event.kind == "task_created":
                break  # leaving the runner detaches; the job stays in the journal
    env = os.environ | {"KEY": key, "RPC": devnet.rpc_url, "STATE": str(state)}
    elsewhere = await anyio.run_process([sys.executable, "-c", ATTACH, job.id], env=env)
    ends, result = elsewhere.stdout.decode().splitlines()
    assert ends == "job_submitted job_succeeded"
    async with open_broker(devnet, key, state) as broker, JobRunner(broker) as runner:
        again = await runner.attach(job.id)
        assert repr(await again.result()) == result


@pytest.mark.goal("DUR-01", part="intent before, result after")
async def test_intent_and_result_of_each_step_are_on_disk_before_and_after_it(devnet, spec, tmp_path, monkeypatch):
    key, state = new_key(devnet), tmp_path / "state"
    seen = []
    async with open_broker(devnet, key, state) as broker, JobRunner(broker) as runner:
        post = type(broker.fine_tuning).create_task

        async def posting(self, *words, **options):
            seen.append(("create_task", kinds(state), outbox(state)))
            return await post(self, *words, **options)

        monkeypatch.setattr(type(broker.fine_tuning), "create_task", posting)
        batch = broker.chain.rpc.batch

        async def sending(asks, **options):
            asks = list(asks)
            for method, params, *_ in asks:
                if method == "eth_sendRawTransaction":
                    seen.append((params[0], kinds(state), outbox(state)))
            return await batch(asks, **options)

        monkeypatch.setattr(broker.chain.rpc, "batch", sending)
        await runner.run_job(spec)
    [task] = [s for s in seen if s[0] == "create_task"]
    assert task[1][-1] == "task_requested"
    sent = [s for s in seen if s[0] != "create_task"]
    assert len(sent) >= 4
    for raw, _, recorded in sent:
        assert raw[2:] in recorded
    assert kinds(state)[-1] == "job_succeeded"


def kinds(state):
    [path] = [p for p in state.rglob("*.sqlite") if "outbox" not in p.name]
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as db:
        return [row[0] for row in db.execute("select kind from event order by height")]


def outbox(state):
    with contextlib.closing(sqlite3.connect(f"file:{state / 'outbox.sqlite'}?mode=ro", uri=True)) as db:
        return "".join(row[0].decode() for row in db.execute("select body from entry"))


class OnlySigner:
    """A wallet whose key can sign and nothing else, as a remote or hardware one."""

    def __init__(self, key: str) -> None:
        self._inner = LocalSigner.from_key(key)
        self.address = self._inner.address

    async def sign_personal(self, message: bytes) -> bytes:
        return await self._inner.sign_personal(message)

    async def sign_transaction(self, transaction):
        raise AssertionError("nothing may be signed")


@pytest.mark.goal("SEC-02")
async def test_a_wallet_that_cannot_decrypt_is_refused_with_advice_before_any_payment(devnet, spec, tmp_path):
    signer = OnlySigner(new_key(devnet))
    broker = create_broker(signer=signer, network="local", rpc_url=devnet.rpc_url, state_dir=tmp_path / "state")
    async with broker, JobRunner(broker) as runner:
        assert not broker.can_decrypt
        with pytest.raises(ConfigError) as caught:
            await runner.submit(spec)
        assert caught.value.hint
        with pytest.raises(ConfigError):
            await broker.fine_tuning.create_task(devnet.providers[0]["address"], MODEL, "0x" + "11" * 32, PARAMS)


async def test_a_job_for_a_dataset_the_provider_has_already(broker, provider, dataset, tmp_path):
    hash_ = (await broker.fine_tuning.upload_dataset_to_tee(provider, dataset)).dataset_hash
    async with JobRunner(broker, SqliteStore(tmp_path / "journal.sqlite")) as runner:
        result = await runner.run_job(
            JobSpec(model=MODEL, dataset=hash_, training_params=PARAMS, output_dir=tmp_path / "out", provider=provider)
        )
    assert result.adapter_name is None
    assert DATASET
