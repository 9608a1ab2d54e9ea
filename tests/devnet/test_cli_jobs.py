"""`zg jobs` and `zg doctor` against the devnet."""

import dataclasses
import json

import pytest

from tests.devnet.conftest import MODEL, PARAMS, open_broker
from zg_async.cli import jobs_admin as cli
from zg_async.cli.main import app
from zg_async.cli.opening import Paying
from zg_async.jobs.runner import JobRunner
from zg_async.jobs.spec import JobSpec

pytestmark = pytest.mark.slow


@pytest.fixture
def where(devnet, key, tmp_path, monkeypatch):
    monkeypatch.setenv("ZG_PRIVATE_KEY", key)
    return Paying(network="local", rpc=devnet.rpc_url, state_dir=tmp_path / "state", as_json=True)


def printed(capsys):
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


async def test_jobs_are_listed_by_label_shown_followed_and_forgotten(
    devnet, key, provider, dataset, tmp_path, where, capsys
):
    async with open_broker(devnet, key, tmp_path / "state") as broker, JobRunner(broker, guard=False) as runner:
        spec = JobSpec(
            model=MODEL,
            dataset=dataset,
            training_params=PARAMS,
            output_dir=tmp_path / "out",
            provider=provider,
            labels={"team": "red"},
            max_spend="5",
        )
        result = await runner.run_job(spec)
    await cli.list_(label=("team=red",), where=where)
    (row,) = printed(capsys)
    assert (row["job_id"], row["status"], row["task_id"]) == (result.job_id, "succeeded", result.task_id)
    await cli.list_(label=("team=blue",), where=where)
    await cli.list_(status="failed", where=where)
    assert printed(capsys) == []
    await cli.show(result.job_id, where=where)
    assert [event["kind"] for event in printed(capsys)][-1] == "job_succeeded"
    assert await cli.attach(result.job_id, where=where) == 0
    assert printed(capsys)[-1]["adapter_path"] == result.adapter_path
    assert await cli.cancel(result.job_id, where=where) == 1
    capsys.readouterr()
    await cli.prune(where=where)
    await cli.prune(where=dataclasses.replace(where, yes=True))
    assert [(told["ended"], told["pruned"]) for told in printed(capsys)] == [
        ([result.job_id], p) for p in (False, True)
    ]
    await cli.list_(where=where)
    assert printed(capsys) == []


@pytest.mark.goal("RUN-09", part="zg doctor")
@pytest.mark.goal("CLI-09", part="zg doctor")
async def test_the_doctor_names_the_state_and_takes_the_steps_only_when_asked(provider, where, capsys):
    assert await cli.doctor(provider, where=where) == 1
    (found,) = printed(capsys)
    assert (found["states"], found["transactions"]) == (["no_ledger"], [])
    assert await cli.doctor(provider, fix=True, where=where) == 0
    assert len(printed(capsys)[0]["transactions"]) == 2
    assert await cli.doctor(provider, where=dataclasses.replace(where, as_json=False)) == 0
    assert capsys.readouterr().out.startswith("healthy: ")


def test_the_commands_are_reached_by_name():
    for words in (["jobs", "list"], ["jobs", "show", "x"], ["jobs", "prune", "--yes"], ["doctor", "0x1", "--fix"]):
        app.parse_args([*words, "--network", "local", "--state-dir", "/nowhere"], exit_on_error=False)
