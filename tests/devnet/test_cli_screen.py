"""What people see: tables as the first release drew them, lines of a watch, and what Ctrl-C leaves behind."""

import json
import os
import re
import signal
import subprocess

import pytest

from tests.devnet.cli_kit import COMMAND, tables, zg
from tests.devnet.conftest import MODEL, PARAMS

__all__ = ["zg"]

pytestmark = pytest.mark.slow
DECIMALS = re.compile(r"\d+\.\d{18}")
TIME = re.compile(r"24h 0min 0s|23h 5\dmin \d{1,2}s")
MOMENT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")


@pytest.fixture
def created(zg, provider, dataset, tmp_path):
    """A task, made by the command line, and what that printed."""
    (tmp_path / "params.json").write_text(json.dumps(PARAMS))
    words = ["--provider", provider, "--model", MODEL, "--dataset-path", dataset]
    told = zg.ok("create-task", *words, "--config", tmp_path / "params.json", "--fund", "1")
    return told, told.splitlines()[-1].removeprefix("Created Task ID: ")


@pytest.mark.goal("CLI-06")
@pytest.mark.goal("LED-04", part="tables")
def test_tables_have_the_seeds_headings_row_order_and_exact_decimals(zg, provider, created, tmp_path):
    told, task = created
    assert [line for line in told.splitlines() if not line.startswith("Dataset")] == [
        "Verify provider...",
        "Provider verified",
        "Creating task...",
        f"Created Task ID: {task}",
    ]

    ((_, rows),) = tables(zg.ok("list-providers"))  # C-04
    assert [row[0] for row in rows[:4]] == [
        "Provider 1",
        "Available",
        "Price Per Byte in Dataset (A0GI)",
        "Provider 2",
    ]
    assert provider in (rows[0][1], rows[3][1])
    assert rows[1][1] in ("✓", "✗")
    price = next(s for s in json.loads(zg.ok("list-providers", "--json"))["items"] if s["provider"] == rows[0][1])
    assert rows[2][1] == f"0.{price['price_per_token']:0>18}"

    (_, models), *_ = tables(zg.ok("list-models"))  # C-05
    assert models[0] == ["Name", "Description"]
    assert MODEL in [row[0] for row in models]

    ((_, rows),) = tables(zg.ok("get-task", "--provider", provider, "--task", task))  # C-11
    assert [row[0] for row in rows] == [
        "Field",
        "ID",
        "Created At",
        "Pre-trained Model Hash",
        "Dataset Hash",
        "Training Params",
        "Fee (neuron)",
        "Progress",
    ]
    values = dict(map(tuple, rows))
    assert (values["Field"], values["ID"], json.loads(values["Training Params"])) == ("Value", task, PARAMS)
    assert MOMENT.fullmatch(values["Created At"])
    assert values["Fee (neuron)"].isdecimal()

    ((_, rows),) = tables(zg.ok("list-tasks", "--provider", provider))  # C-24
    assert rows[0] == ["ID", "Created At", "Status"]
    assert (rows[1][0], bool(MOMENT.fullmatch(rows[1][1]))) == (task, True)

    zg.ok("task", "wait", "--provider", provider, "--for", "Delivered", "--timeout", "60")
    words = ["--provider", provider, "--task-id", task]
    zg.ok("acknowledge-model", *words, "--data-path", tmp_path / "model.encrypted")
    zg.ok("task", "wait", "--provider", provider, "--for", "Finished", "--timeout", "60")
    account = json.loads(zg.ok("get-account", "--json"))
    (overview, rows), (title, accounts) = tables(zg.ok("get-account"))  # C-18
    left = int(account["fine_tuning"][0]["balance"])
    assert 10**18 * 9 // 10 < left < 10**18  # the fee is gone, to the last neuron
    total = int(account["ledger"]["total_balance"])
    assert (overview, rows[:3]) == (
        "Overview",
        [
            ["Balance", "Value (A0GI)"],
            ["Total", f"{total // 10**18}.{total % 10**18:018d}"],
            ["Locked (transferred to sub-accounts)", f"0.{left:018d}"],
        ],
    )
    assert (title, accounts) == (
        "Fine-tuning sub-accounts (Dynamically Created per Used Provider)",
        [
            ["Provider", "Balance (A0GI)", "Requested Return to Main Account (A0GI)"],
            [provider, f"0.{left:018d}", "0.000000000000000000"],
        ],
    )

    done = zg.ok("retrieve-fund")
    assert TIME.search(done)
    (overview, rows), (refunds, amounts), (deliveries, roots) = tables(zg.ok("get-sub-account", "--provider", provider))
    assert (overview, rows) == (
        "Overview",
        [
            ["Field", "Value"],
            ["Provider", provider],
            ["Balance (A0GI)", f"0.{left:018d}"],
            ["Funds Applied for Return to Main Account (A0GI)", f"0.{left:018d}"],
        ],
    )
    assert refunds == "Details of Each Amount Applied for Return to Main Account"
    assert (amounts[0], amounts[1][0]) == (["Amount (A0GI)", "Remaining Locked Time"], f"0.{left:018d}")
    assert TIME.fullmatch(amounts[1][1])
    assert (deliveries, roots[0][:2]) == ("Deliverables", ["Root Hash", "Access Confirmed"])
    assert (bool(re.fullmatch(r"0x[0-9a-f]{64}", roots[1][0])), roots[1][1]) == (True, "✓")


@pytest.mark.goal("CLI-05", part="plain lines")
@pytest.mark.goal("CLI-04", part="watch and wait")
def test_a_watch_prints_states_losses_cost_and_deadline_as_lines_or_objects(zg, provider, created):
    task = created[1]
    words = ["--provider", provider, "--task", task]
    zg.ok("task", "wait", *words, "--for", "Delivered", "--timeout", "60")
    zg.ok("acknowledge-deliverable", *words, "--yes")
    lines = zg.ok("get-task-log", *words, "--follow").splitlines()
    whole = json.loads(zg.ok("get-log", *words, "--json"))["text"].splitlines()
    assert lines[: len(whole)] == whole[: len(lines)]
    assert any("loss" in line for line in lines), lines
    assert zg.ok("get-log", *words, "--tail", "2").splitlines() == whole[-2:]
    assert zg.ok("task", "wait", *words, "--exit-status", "--timeout", "60") == "Finished\n"
    text = zg.ok("task", "watch", *words)
    assert re.search(r"Finished, fee 0\.\d+ 0G", text)
    objects = [json.loads(line) for line in zg.ok("task", "watch", *words, "--json").splitlines()]
    assert (
        {"task_state_changed"} <= {o["kind"] for o in objects} <= {"task_state_changed", "task_settled", "task_metric"}
    )
    assert all(o["version"] == 1 and o["task_id"] == task for o in objects)
    again = zg.ok("task", "watch", *words, "--json", "--cursor", [o for o in objects if "cursor" in o][-1]["cursor"])
    assert [o for o in map(json.loads, again.splitlines()) if o["kind"] == "task_state_changed"] == []


@pytest.mark.goal("CLI-04", part="late, failed and left")
@pytest.mark.goal("CLI-13", part="failed and late tasks")
def test_waiting_too_long_and_ctrl_c_leave_the_task_running(zg, devnet, provider, dataset, tmp_path):
    (tmp_path / "params.json").write_text(json.dumps(PARAMS))
    devnet.control("settings", provider=0, train_seconds=3600.0)
    try:
        words = ["--provider", provider, "--model", MODEL, "--dataset-path", dataset]
        config = ["--config-path", tmp_path / "params.json", "--fund", "1"]
        task = json.loads(zg.ok("create-task", *words, *config, "--json"))["task_id"]
        zg.ok("task", "wait", "--provider", provider, "--for", "Training", "--timeout", "60")
        late = ["task", "wait", "--provider", provider, "--task", task, "--for", "Delivered", "--timeout", "0.2"]
        assert (zg(*late), "it goes on" in zg.err) == (6, True)
        watch = [*COMMAND, "task", "watch", "--provider", provider, "--task", task]
        for command in (watch, [*watch, "--json"]):
            with subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **zg.environment}
            ) as process:
                assert process.stdout is not None
                assert "Training" in process.stdout.readline()
                process.send_signal(signal.SIGINT)
                _, told = process.communicate(timeout=60)
            assert process.returncode == 130, told
            assert told == (
                f"the task goes on; come back to it with: zg task watch --provider {provider} --task {task}\n"
                "interrupted\n"
            )
        assert json.loads(zg.ok("get-task", "--provider", provider, "--json"))["progress"] == "Training"
        devnet.control("stop", provider=0)  # which its unfinished tasks don't survive
        devnet.control("start", provider=0)
        wait = ["task", "wait", "--provider", provider, "--task", task, "--timeout", "60"]
        assert (zg(*wait, "--for", "Delivered"), "failed" in zg.err) == (1, True)
        assert [zg(*wait), zg(*wait, "--exit-status")] == [0, 1]
    finally:
        devnet.control("settings", provider=0, train_seconds=0.0)


@pytest.mark.goal("CLI-04", part="a job is left and come back to")
@pytest.mark.goal("CLI-08", part="resumed by id, with a manifest")
def test_ctrl_c_leaves_a_job_whose_task_goes_on_and_attach_brings_it_to_its_end(
    zg, devnet, provider, dataset, tmp_path
):
    (tmp_path / "params.json").write_text(json.dumps(PARAMS))
    devnet.control("settings", provider=0, train_seconds=4.0)
    spec = {"model": MODEL, "dataset": dataset.name, "training_params": "params.json", "provider": provider}
    (tmp_path / "job.json").write_text(json.dumps(spec))
    command = [*COMMAND, "run", tmp_path / "job.json", "--json"]
    try:
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **zg.environment}
        ) as process:
            assert process.stdout is not None
            event = next(e for e in map(json.loads, process.stdout) if e["kind"] == "task_created")
            process.send_signal(signal.SIGINT)
            _, told = process.communicate(timeout=60)
    finally:
        devnet.control("settings", provider=0, train_seconds=0.0)
    job = event["job_id"]
    assert (process.returncode, "Traceback" in told) == (130, False), told
    assert f"the job can go on, its task at the provider does; come back to it with: zg jobs attach {job}\n" in told
    events = [json.loads(line) for line in zg.ok("jobs", "attach", job, "--json").splitlines()]
    assert [e["task_id"] for e in events if e["kind"] == "task_created"] == [event["task_id"]]
    assert (events[-1]["kind"], {e["version"] for e in events}) == ("job_succeeded", {1})
    manifest = json.loads((tmp_path / "out" / "adapter" / "zg_job.json").read_text())
    assert (manifest["job_id"], manifest["task_id"]) == (job, event["task_id"])
    assert set(events[-1]["transactions"]) >= set(manifest["transactions"]) != set()
