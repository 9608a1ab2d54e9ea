"""`zg plan`, `zg run` and `zg batch` as users call them."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from tests.devnet.conftest import DATASET, MODEL, PARAMS, new_key

pytestmark = pytest.mark.slow


@pytest.fixture
def zg(devnet, tmp_path):
    (tmp_path / "train.jsonl").write_text(DATASET)
    (tmp_path / "params.json").write_text(json.dumps(PARAMS))
    env = os.environ | {"ZG_PRIVATE_KEY": new_key(devnet), "ZG_STATE_DIR": str(tmp_path / "state")}

    def run(*words, code=0):
        command = [sys.executable, "-m", "zg_async.cli.main", *words, "--network", "local", "--rpc", devnet.rpc_url]
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == code, done.stderr + done.stdout
        return done.stdout

    return run


JOB = ("--model", MODEL, "--dataset", "train.jsonl", "--params", "params.json", "--max-spend", "1")


@pytest.mark.goal("RUN-02", part="command line")
def test_a_plan_is_shown_and_then_the_job_runs_once(zg):
    assert "gone        at most" in zg("plan", *JOB)
    plan = json.loads(zg("plan", *JOB, "--json"))
    assert plan["problems"] == []
    low = json.loads(zg("plan", *JOB[:-1], "0.000001", "--json", code=4))
    assert "max_spend" in low["problems"][0]
    events = [json.loads(line) for line in zg("run", *JOB, "--key", "one", "--json").splitlines()]
    assert events[-1]["kind"] == "job_succeeded"
    assert int(plan["fee"]["low"]) <= int(events[-1]["fee"]) <= int(plan["fee"]["high"])
    again = [json.loads(line) for line in zg("run", *JOB, "--key", "one", "--json").splitlines()]
    assert again == events


@pytest.mark.goal("BAT-01", part="command line")
@pytest.mark.goal("BAT-06", part="command line, with the loss from the task's log")
def test_a_batch_file_runs_and_its_results_are_written(zg, tmp_path):
    matrix = {
        "name": "sweep",
        "models": [MODEL],
        "datasets": ["train.jsonl"],
        "params": ["params.json", {**PARAMS, "max_steps": 4}],
        "output_dir": "runs",
        "max_spend": "2",
    }
    (tmp_path / "batch.json").write_text(json.dumps(matrix))
    rows = json.loads(zg("batch", "batch.json", "--json"))
    assert [row["status"] for row in rows] == ["succeeded"] * 2
    assert all(row["final_loss"] > 0 and int(row["cost"]) > 0 and row["seconds"] > 0 for row in rows)
    assert all(pathlib.Path(row["artifact"], "adapter_model.safetensors").is_file() for row in rows)
    zg("batch", "batch.json", "--format", "csv", "--results", "results.csv")
    lines = (tmp_path / "results.csv").read_text().splitlines()
    assert len(lines) == 3
    assert rows[0]["job_id"] in lines[1]
