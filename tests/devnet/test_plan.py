"""What a job would do is told before, sends nothing, and is what it then does."""

import dataclasses
import json

import aiohttp
import pytest

from tests.devnet.conftest import DATASET, MODEL, PARAMS, new_key, open_broker
from zg_async import ConfigError, JobRunner, JobSpec

pytestmark = pytest.mark.slow


@pytest.fixture
def spec(tmp_path):
    (tmp_path / "train.jsonl").write_text(DATASET)
    return JobSpec(
        model=MODEL,
        dataset=tmp_path / "train.jsonl",
        training_params=PARAMS,
        output_dir=tmp_path / "out",
        deploy=True,
    )


def count_requests(patch, rpc_url):
    """Count all that goes out of the process, below both transports."""
    provider, node = [], []
    request = aiohttp.ClientSession._request

    async def counted(session, method, url, **options):
        if str(url).rstrip("/") == rpc_url.rstrip("/"):
            body = options.get("data") or options.get("json")
            node.append(body if isinstance(body, bytes) else json.dumps(body).encode())
        else:
            provider.append(method)
        return await request(session, method, url, **options)

    patch.setattr(aiohttp.ClientSession, "_request", counted)
    return provider, node


@pytest.mark.goal("RUN-02")
async def test_a_plan_lists_all_that_the_job_then_does_and_sends_nothing(devnet, broker, spec, tmp_path, monkeypatch):
    before = await broker.chain.balance(broker.address)
    async with JobRunner(broker) as runner:
        with monkeypatch.context() as patch:
            to_provider, to_node = count_requests(patch, devnet.rpc_url)
            plan = await runner.plan(spec)
        assert len(to_node) > 3
        assert not any(b"eth_send" in body for body in to_node)
        assert set(to_provider) == {"GET"}
        assert await broker.chain.balance(broker.address) == before
        assert await broker.chain.transaction_count(broker.address, block="pending") == 0
        assert await runner.list_jobs() == ()
        assert not (tmp_path / "out").exists()

        job = await runner.submit(spec)
        result = await job.result()
        state = await job.state()
    rows = [broker.chain._lanes[broker.address].book.find_hash(tx_hash) for tx_hash in result.transactions]
    assert plan.problems == ()
    assert [t.name for t in plan.transactions] == [_snake(row.name) for row in rows]
    assert plan.deposit == sum(row.value for row in rows)
    assert plan.gas_cost >= result.gas > 0
    assert [(u.provider, u.size, u.keccak256) for u in plan.uploads] == [
        (result.provider, len(DATASET), state.dataset_hash)
    ]
    assert plan.estimate.fee_low <= result.fee <= plan.estimate.fee_high
    assert plan.cost_high >= result.fee + result.gas
    assert json.loads(json.dumps(plan.to_json()))["fee"]["high"] == str(plan.estimate.fee_high)


def _snake(name: str) -> str:
    return "".join("_" + c.lower() if c.isupper() else c for c in name.split(".")[1])


@pytest.mark.goal("RUN-03", part="estimate before, final fee after, both on record")
async def test_the_estimate_is_on_record_before_the_first_payment_and_the_fee_at_the_end(broker, spec):
    async with JobRunner(broker) as runner:
        job = await runner.submit(spec)
        kinds = [event.kind async for event in job.events()]
        state = await job.state()
    assert kinds.index("cost_estimated") < kinds.index("provider_funded")
    assert state.estimate.fee_low <= state.result.fee <= state.estimate.fee_high


@pytest.mark.goal("RUN-02", part="what stands in the way")
async def test_a_plan_says_what_stands_in_the_way(devnet, spec, tmp_path):
    async with open_broker(devnet, new_key(devnet, 10**18), tmp_path / "poor") as poor, JobRunner(poor) as runner:
        (problem,) = (await runner.plan(spec)).problems
        assert "come to" in problem
        with pytest.raises(ConfigError, match="no fine-tuning provider"):
            await runner.plan(dataclasses.replace(spec, provider=poor.address))


@pytest.mark.goal("DAT-04", part="peers' method")
async def test_the_peers_method_counts_and_knows_the_models(broker, provider, spec):
    count = await broker.fine_tuning.calculate_token(spec.dataset, MODEL)
    assert count >= (await broker.fine_tuning.count_tokens(spec.dataset)).likely > 0
    assert await broker.fine_tuning.calculate_token(spec.dataset, MODEL, True, provider) == count
    with pytest.raises(ConfigError, match="no predefined model"):
        await broker.fine_tuning.calculate_token(spec.dataset, "none such")
