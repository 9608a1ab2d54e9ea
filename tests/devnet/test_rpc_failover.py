"""An RPC endpoint dies during a job, and all that can be told of it afterwards is a warning."""

import logging

import pytest

from tests.devnet.conftest import MODEL, PARAMS, new_key, open_broker
from zg_async import JobRunner, JobSpec
from zg_async.devnet.faults import FaultProxy

pytestmark = pytest.mark.slow


async def run(broker, dataset, folder, at=None):
    """Run a job; returns its result and the kinds of its events, waiting and progress apart."""
    spec = JobSpec(model=MODEL, dataset=dataset, training_params=PARAMS, output_dir=folder)
    events = []
    async with JobRunner(broker) as runner:
        job = await runner.submit(spec)
        async for event in job.events():
            events.append(event)
            if at is not None and event.kind == at[0]:
                await at[1].aclose()
        result = await job.result()
    return result, [e for e in events if e.kind not in ("task_progressed", "task_waiting", "job_queued")]


@pytest.mark.goal("TX-09")
async def test_killing_one_of_two_endpoints_during_a_job_changes_nothing_but_a_warning(
    devnet, dataset, tmp_path, caplog
):
    async with FaultProxy(devnet.rpc_url) as one, FaultProxy(devnet.rpc_url) as two:
        urls = [one.url, two.url]
        async with open_broker(devnet, new_key(devnet), tmp_path / "state", rpc_url=urls) as broker:
            whole, usual = await run(broker, dataset, tmp_path / "a")
        state = tmp_path / "other"
        async with open_broker(devnet, new_key(devnet), state, rpc_url=urls) as broker:
            with caplog.at_level(logging.WARNING, "zg_async.rpc"):
                result, events = await run(broker, dataset, tmp_path / "b", at=("task_requested", one))
            assert broker.chain.rpc.host == urls[1].removeprefix("http://")
            assert await broker.chain.transaction_count(broker.address) == len(result.transactions)
    warnings = [e for e in events if e.kind == "job_warned"]
    hosts = [url.removeprefix("http://") for url in urls]
    assert [(w.code, w.message) for w in warnings] == [
        ("rpc_failover", f"the RPC endpoint {hosts[0]} fails, going on with {hosts[1]}")
    ]
    assert [e.kind for e in events if e.kind != "job_warned"] == [e.kind for e in usual]
    assert not [e for e in usual if e.kind == "job_warned"]
    assert len(set(result.transactions)) == len(whole.transactions)
    assert result.fee == whole.fee
    assert len([r for r in caplog.records if "going on with" in r.getMessage()]) == 1
