"""The examples run as they stand."""

import configparser
import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys

import anyio
import pytest

from tests.devnet.conftest import DATASET, MODEL, PARAMS, new_key, open_broker
from zg_async import DeliverableNotFoundError, JobRunner, TaskProgress

pytestmark = pytest.mark.slow
EXAMPLES = pathlib.Path(__file__).parents[2] / "examples"


@pytest.fixture
def run(devnet, tmp_path):
    key = new_key(devnet)
    (tmp_path / "train.jsonl").write_text(DATASET)
    (tmp_path / "params.json").write_text(json.dumps(PARAMS))
    env = os.environ | {"ZG_PRIVATE_KEY": key, "ZG_RPC_URL": devnet.rpc_url, "ZG_STATE_DIR": str(tmp_path / "state")}

    def run(name: str, *words: str) -> str:
        command = [sys.executable, str(EXAMPLES / name), *words]
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def test_a_job_from_dataset_to_chat(run):
    lines = run("fine_tune.py", "train.jsonl", "params.json", "out").splitlines()
    kinds = [line.split()[1] for line in lines[:-1]]
    assert kinds[0] == "job_submitted"
    assert kinds[-1] == "job_succeeded"
    path, name, answer = lines[-1].split(maxsplit=2)
    assert pathlib.Path(path).is_dir()
    assert name.startswith("ft-Qwen2-5-0-5B-Instruct-")
    assert answer


def test_a_job_submitted_in_one_process_ends_in_another(run):
    job = run("resume.py", "submit", "train.jsonl", "params.json", "out").strip()
    path, fee = run("resume.py", "attach", job).split()
    assert pathlib.Path(path, "adapter_model.safetensors").is_file()
    assert int(fee) > 0


def test_chat_with_the_providers_own_model(run, provider):
    assert run("chat.py", provider, "Hello")


def unit():
    """The service unit's [Service] section."""
    parser = configparser.RawConfigParser(strict=False)
    parser.optionxform = str
    parser.read(EXAMPLES / "zg-guardian.service")
    assert parser["Install"]["WantedBy"] == "multi-user.target"
    return parser["Service"]


def started(program, env):
    return subprocess.Popen([sys.executable, program], env=env, stdout=subprocess.PIPE, text=True)


def test_the_page_about_services_shows_the_unit_as_it_is():
    text = (EXAMPLES / "zg-guardian.service").read_text()
    assert f"```text\n{text}```" in (EXAMPLES.parent / "docs" / "scripts.md").read_text()


@pytest.mark.goal("DUR-06")
async def test_the_guardian_as_its_unit_runs_it_brings_every_open_run_of_the_wallet_to_its_end(
    devnet, dataset, tmp_path
):
    key, state = new_key(devnet), tmp_path / "lib" / "zg-guardian"
    first, second = (provider["address"] for provider in devnet.providers)
    devnet.control("settings", provider=1, train_seconds=4.0)
    async with open_broker(devnet, key, tmp_path / "another") as other:  # has no runner, and ends
        left = {}
        for provider in (first, second):
            await other.ledger.ensure_funded(provider, "fine-tuning", "2")
            hash_ = (await other.fine_tuning.upload_dataset_to_tee(provider, dataset)).dataset_hash
            left[provider] = await other.fine_tuning.create_task(provider, MODEL, hash_, PARAMS)
        await other.fine_tuning.wait_task(first, left[first])
        await other.fine_tuning.wait_task(second, left[second], TaskProgress.TRAINING)
        unacknowledged = await other.fine_tuning.get_deliverable(first, left[first])
    assert not unacknowledged.acknowledged
    service = unit()
    program = EXAMPLES / pathlib.Path(service["ExecStart"].split()[1]).name
    name, folder = service["Environment"].split("=")
    env = os.environ | {name: folder.replace("%S", str(tmp_path / "lib"))}
    env |= {"ZG_PRIVATE_KEY": key, "ZG_RPC_URL": devnet.rpc_url}
    process = started(program, env)
    try:
        async with open_broker(devnet, key, tmp_path / "reader") as reader:

            async def settled(provider, task):
                with contextlib.suppress(DeliverableNotFoundError):
                    return (await reader.fine_tuning.get_deliverable(provider, task)).settled

            with anyio.fail_after(120):
                for provider, task in left.items():
                    while not await settled(provider, task):
                        await anyio.sleep(0.1)
                for task in left.values():
                    while not (state / "adopted" / task / "adapter").exists():
                        await anyio.sleep(0.1)
        process.send_signal(getattr(signal, service["KillSignal"]))
        output, _ = process.communicate(timeout=int(service["TimeoutStopSec"]))
    finally:
        process.kill()
        process.wait()
        devnet.control("settings", provider=1, train_seconds=0.0)
    assert (process.returncode, output.split()[0], output.split()[-1]) == (0, "guarding", "left")
    async with open_broker(devnet, key, state) as broker, JobRunner(broker) as runner:
        found = {s.task_id: (s.adopted, s.deliverable_acknowledged) for s in await runner.list_jobs()}
    assert found == dict.fromkeys(left.values(), (True, True))
