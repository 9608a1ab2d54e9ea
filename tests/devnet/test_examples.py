"""The examples run as they stand."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from tests.devnet.conftest import DATASET, PARAMS, new_key

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
