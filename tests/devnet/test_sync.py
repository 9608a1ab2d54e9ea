"""The blocking facade: a script for the peers' SDK runs with its import lines and its own values changed."""

import logging
import os
import signal
import threading
import time
from pathlib import Path

import anyio
import pytest

from tests.devnet.conftest import MODEL, PARAMS, new_key
from zg_async import ClosedError, FineTuningService, HttpSettings, PollPolicy, ProviderLimits, Task, UploadedDataset
from zg_async.sync import TOP_UP_CAP, ContractError, create_broker, og_to_wei
from zg_async.sync.results import answering

# The calls of the documents' end-to-end example, line by line. What a user fills in anyway: PROVIDER, the network, the
# two files. Changed besides: the two import lines.
SCRIPT = """
import os
import time
from zg_async.sync import create_broker
from zg_async.sync.utils import og_to_wei
PROVIDER = FILLED_IN["PROVIDER"]
MODEL = "Qwen2.5-0.5B-Instruct"
DATASET = "./training_data.jsonl"
TRAINING = "./training_params.json"
broker = create_broker(
    private_key = os.environ["PRIVATE_KEY"],
    network = FILLED_IN["network"],
)
# 1. Account setup
try:
    broker.ledger.get_ledger()
except Exception:
    broker.ledger.add_ledger("3")
broker.ledger.transfer_fund(PROVIDER, "fine-tuning", og_to_wei("1"))
broker.fine_tuning.acknowledge_provider_signer(PROVIDER)
# 2. Upload dataset
upload = broker.fine_tuning.upload_dataset_to_tee(PROVIDER, DATASET)
dataset_hash = upload["datasetHash"]
# 3. Create task
task_id = broker.fine_tuning.create_task(
    provider_address = PROVIDER,
    pre_trained_model_name = MODEL,
    dataset_hash = dataset_hash,
    training_path = TRAINING,
)
# 4. Wait for training
while True:
    task = broker.fine_tuning.get_task(PROVIDER, task_id)
    print(f"Progress: {task.progress}")
    if task.progress in ("Delivered", "Failed", "Cancelled"):
        break
    time.sleep(15)
# 5. Acknowledge delivery
broker.fine_tuning.acknowledge_model(
    provider_address = PROVIDER,
    task_id = task_id,
    data_path = f"./lora_{task_id}.bin",
)
# 6. Deploy LoRA adapter (same provider serves inference)
deploy = broker.inference.lora.deploy_adapter(
    provider_address = PROVIDER,
    base_model = MODEL,
    task_id = task_id,
    wait = True,
    timeout_seconds = 180,
)
adapter_name = deploy.adapter_name
# 7. Chat
response = broker.inference.lora.chat(PROVIDER, adapter_name, "Who are you?")
print(response["choices"][0]["message"]["content"])
"""


@pytest.fixture
def filled_in(monkeypatch, devnet, provider, dataset, tmp_path):
    """A folder with the user's two files, the key, and a state folder of the test's own."""
    import json

    monkeypatch.chdir(tmp_path)
    dataset.rename(tmp_path / "training_data.jsonl")
    (tmp_path / "training_params.json").write_text(json.dumps(PARAMS))
    monkeypatch.setenv("PRIVATE_KEY", new_key(devnet))
    monkeypatch.setenv("ZG_STATE_DIR", str(tmp_path / "state"))
    slept = time.sleep
    monkeypatch.setattr(time, "sleep", lambda seconds: slept(min(seconds, 0.2)))
    return {"PROVIDER": provider, "network": devnet.network}


def run_script(filled_in) -> dict:
    names = {"FILLED_IN": filled_in}
    exec(compile(SCRIPT, "example.py", "exec"), names)
    return names


@pytest.fixture
def blocking(devnet, key, tmp_path):
    with create_broker(
        key,
        devnet.network,
        state_dir=tmp_path / "state",
        http=HttpSettings(limits=ProviderLimits(rate=None)),
        polling=PollPolicy(first=0.1, longest=0.5, rate=50.0),
    ) as opened:
        yield opened


@pytest.mark.slow
@pytest.mark.goal("CFG-04")
def test_the_documents_end_to_end_example_runs(filled_in, capsys, caplog):
    with caplog.at_level(logging.WARNING, logger="zg_async"):
        names = run_script(filled_in)
    try:
        printed = capsys.readouterr().out
        answer = names["response"]["choices"][0]["message"]["content"]
        assert "Progress: Delivered" in printed.splitlines()
        assert answer
        assert printed.endswith(f"{answer}\n")
        assert names["task"].progress == "Delivered"
        assert "automatic funding moved" in caplog.text
        assert names["broker"].inference.get_account(filled_in["PROVIDER"]).balance <= TOP_UP_CAP
        metadata = names["broker"].inference.get_service_metadata(filled_in["PROVIDER"])
        assert metadata["endpoint"].endswith("/v1/proxy")
        headers = names["broker"].inference.get_request_headers(filled_in["PROVIDER"])
        assert {"Content-Type": "application/json", **headers}["Authorization"].startswith("Bearer ")
        result = names["broker"].fine_tuning.verify_service(
            provider_address=filled_in["PROVIDER"], output_dir="./audit-reports", on_log=lambda msg: print(msg)
        )
        assert result.get("is_valid") is True
        assert list(Path("audit-reports").iterdir())
    finally:
        names["broker"].close()


@pytest.mark.slow
@pytest.mark.goal("NBK-02", part="facade inside a running loop")
async def test_the_example_runs_inside_a_running_loop(filled_in, capsys):
    names = run_script(filled_in)
    names["broker"].close()
    await anyio.lowlevel.checkpoint()
    assert "Progress: Delivered" in capsys.readouterr().out


def test_records_answer_by_name_key_and_type(blocking, provider, dataset):
    blocking.ledger.add_ledger("3")
    blocking.ledger.transfer_fund(provider, "fine-tuning", og_to_wei("1"))
    services = blocking.fine_tuning.list_service()
    assert all(isinstance(s, FineTuningService) for s in services)
    assert services[0]["pricePerToken"] == services[0].price_per_token
    upload = blocking.fine_tuning.upload_dataset_to_tee(provider_address=provider, dataset_path=dataset)
    assert isinstance(upload, UploadedDataset)
    assert upload["datasetHash"] == upload.get("dataset_hash") == dict(**upload)["dataset_hash"]
    assert "datasetHash" in upload
    assert "nothing" not in upload
    assert upload.get("nothing", 7) == 7
    with pytest.raises(KeyError):
        upload["nothing"]
    with pytest.raises(TypeError):
        upload["size"] = 1


def test_an_error_is_what_the_asyncio_call_raises(blocking):
    with pytest.raises(ContractError) as info:
        blocking.ledger.get_ledger()
    assert info.value.code == "ledger_not_found"


def test_a_stream_is_gone_through_like_a_list(blocking, provider, dataset):
    blocking.ledger.ensure_funded(provider, "fine-tuning", "1")
    upload = blocking.fine_tuning.upload_dataset_to_tee(provider, dataset)
    task_id = blocking.fine_tuning.create_task(provider, MODEL, upload["datasetHash"], PARAMS)
    seen = []
    for change in blocking.fine_tuning.watch_task(provider, task_id):
        seen.append(change.kind)
        if getattr(change, "state", None) == "Delivered":
            break
    assert seen
    task = blocking.fine_tuning.get_task(provider)
    assert isinstance(task, Task)
    assert task["id"] == task_id


def test_it_works_from_many_threads(blocking, provider):
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(blocking.inference.get_service(provider).provider))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [provider] * 8


@pytest.mark.goal("CFG-04", part="Ctrl-C cancels the running call")
def test_ctrl_c_cancels_the_running_call_and_the_broker_goes_on(blocking):
    started, ended = threading.Event(), []

    async def endless():
        try:
            started.set()
            await anyio.sleep_forever()
        finally:
            ended.append("cancelled")

    def interrupt():
        started.wait()
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        blocking._loop.run(endless)
    thread.join()
    assert ended == ["cancelled"]
    assert blocking.ledger.get_limits().min_account_balance > 0


@pytest.mark.goal("CFG-04", part="Ctrl-C cancels the running call")
def test_ctrl_c_while_a_call_is_handed_over_still_waits_for_its_end(blocking, monkeypatch):
    ended = []

    async def endless():
        try:
            await anyio.sleep_forever()
        finally:
            ended.append("cancelled")

    portal = blocking._loop._portal
    hand_over = portal.start_task_soon

    def interrupted(call):
        hand_over(call)
        monkeypatch.undo()
        raise KeyboardInterrupt

    monkeypatch.setattr(portal, "start_task_soon", interrupted)
    with pytest.raises(KeyboardInterrupt):
        blocking._loop.run(endless)
    assert ended == ["cancelled"]


def test_a_closed_broker_says_so(devnet, key, tmp_path):
    broker = create_broker(key, devnet.network, state_dir=tmp_path)
    broker.close()
    broker.close()
    with pytest.raises(ClosedError, match="closed"):
        broker.ledger.get_ledger()


def test_what_cant_be_opened_leaves_no_thread(tmp_path):
    before = threading.active_count()
    with pytest.raises(ContractError):
        create_broker(None, "local", rpc_url="http://127.0.0.1:9", state_dir=tmp_path)
    assert threading.active_count() <= before + 1  # a worker thread may idle


def test_only_records_are_changed():
    for value in (None, 7, "text", b"bytes", {"a": 1}, TOP_UP_CAP):
        assert answering(value) is value
    assert answering((1, "a")) == [1, "a"]
