"""`zg demo`, run as users run it."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

COMMAND = [sys.executable, "-c", "from zg_async.cli.entry import entry; entry()", "demo"]
ADAPTER = {"adapter_config.json", "adapter_model.safetensors", "zg_job.json"}
PARAMS = {
    "neftune_noise_alpha": 0,
    "num_train_epochs": 1,
    "per_device_train_batch_size": 1,
    "learning_rate": 0.0002,
    "max_steps": 2,
}


def zg_demo(folder: Path, *words: str) -> "subprocess.CompletedProcess[bytes]":
    return subprocess.run([*COMMAND, *words], cwd=folder, capture_output=True, timeout=120, stdin=subprocess.DEVNULL)


@pytest.mark.slow
def test_every_line_is_json_and_the_last_says_that_the_job_succeeded(tmp_path):
    done = zg_demo(tmp_path, "--json")
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert (done.returncode, done.stderr) == (0, b"")
    assert [events[0]["kind"], events[-2]["kind"], events[-1]["kind"]] == [
        "devnet_started",
        "chat_answered",
        "job_succeeded",
    ]
    assert events[-2]["answer"] == events[-2]["expected"]
    assert {p.name for p in Path(events[-1]["adapter_path"]).iterdir()} == ADAPTER
    assert b"private_key" not in done.stdout


@pytest.mark.slow
def test_an_own_dataset_is_trained_and_its_path_printed(tmp_path):
    messages = [{"role": "user", "content": "Say it"}, {"role": "assistant", "content": "It"}]
    (tmp_path / "own.jsonl").write_text(json.dumps({"messages": messages}) + "\n")
    (tmp_path / "params.json").write_text(json.dumps(PARAMS))
    done = zg_demo(tmp_path, "--dataset", "own.jsonl", "--params", "params.json", "--out", "made")
    assert done.returncode == 0, done.stderr
    assert done.stdout.decode().strip() == str(tmp_path / "made" / "adapter")
    assert b"1 row" in done.stderr
    assert b"> Say it" in done.stderr


@pytest.mark.parametrize(
    "words",
    [
        ("--dataset", "bad.jsonl"),
        ("--dataset", "missing.jsonl"),
        ("--dataset", "."),
        ("--params", "bad.jsonl"),
        ("--out", "bad.jsonl"),
    ],
    ids=" ".join,
)
@pytest.mark.slow
def test_bad_input_is_explained_before_anything_is_started(tmp_path, words):
    (tmp_path / "bad.jsonl").write_text('{"question": "a", "answer": "b"}\n')
    done = zg_demo(tmp_path, *words)
    assert done.returncode == 8
    assert done.stderr.startswith(b"error: ")
    assert b"next: " in done.stderr
    assert b"devnet" not in done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["bad.jsonl"]


@pytest.mark.slow
@pytest.mark.parametrize("after", ["devnet_started", "task_created", "model_downloaded"])
def test_ctrl_c_leaves_no_trace(tmp_path, after):
    folder, temporary = tmp_path / "here", tmp_path / "tmp"
    folder.mkdir()
    temporary.mkdir()
    process = subprocess.Popen(
        [*COMMAND, "--json"],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"TMPDIR": str(temporary)},
        start_new_session=True,
    )
    for line in process.stdout:
        if json.loads(line)["kind"] == after:
            break
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.decode().strip() == "interrupted"
    assert list(temporary.iterdir()) == []
    left = {p.name for p in folder.rglob("*") if p.is_file()}
    assert left in (set(), ADAPTER)
