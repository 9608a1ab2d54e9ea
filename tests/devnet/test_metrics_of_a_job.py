"""What a job polls, repeats, transfers, pays and waits is counted."""

import pytest

from tests.devnet.conftest import MODEL, PARAMS
from zg_async import JobRunner, JobSpec
from zg_async.units import NEURON_PER_0G

pytestmark = pytest.mark.slow


@pytest.mark.goal("OBS-03")
async def test_polls_retries_bytes_fees_and_lag_of_a_job_are_counted(
    broker, provider, dataset, tmp_path, faults, devnet
):
    assert broker.metrics.snapshot().counters.get("transactions", 0) == 0
    faults(lora_503=1)
    spec = JobSpec(model=MODEL, dataset=dataset, training_params=PARAMS, output_dir=tmp_path / "o", provider=provider)
    devnet.control("settings", provider=0, train_seconds=1.0)
    try:
        async with JobRunner(broker) as runner:
            result = await runner.run_job(spec)
    finally:
        devnet.control("settings", provider=0, train_seconds=0.0)
    found = broker.metrics.snapshot()
    count, spread = found.counters, found.histograms
    assert count["polls"] >= 1
    assert count["retries"] >= 1
    assert count["http.requests"] >= spread["http.seconds"].count > 10  # some may be under way, or were given up
    assert count["rpc.requests"] >= spread["rpc.seconds"].count > 10
    assert count["http.bytes_uploaded"] == dataset.stat().st_size
    assert (
        count["http.bytes_received"] > sum(path.stat().st_size for path in (tmp_path / "o").rglob("*.safetensors")) / 2
    )
    assert count["rpc.bytes_received"] > count["rpc.bytes_sent"] / 10 > 0
    assert count["transactions"] == len(result.transactions)
    assert (count["fees.gas"], count["fees.tasks"]) == (result.gas, result.fee)
    left = await broker.chain.balance(broker.address)
    bound = (await broker.ledger.get_ledger()).total_balance
    assert 100 * NEURON_PER_0G - left - bound == count["fees.gas"] + count["fees.tasks"]
    assert spread["poll.lag"].count >= 1
    assert spread["poll.lag"].largest < 60
    assert spread["chain.lag"].count >= 1
    assert "transactions.reverted" not in count
