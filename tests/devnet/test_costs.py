"""What is reported as paid is what is gone, to the neuron."""

import dataclasses

import pytest

from tests.devnet.conftest import MODEL, PARAMS
from zg_async import Batch, Cost, JobFailedError, JobRunner, JobSpec, TaskProgress, read_audit
from zg_async.jobs.state import JobStatus

pytestmark = pytest.mark.slow


async def wealth(broker, block):
    """All that is the wallet's: coins, and what the ledger accounts for, sub-accounts included."""
    ledger = await broker.chain.call(broker.ledger._contract.get_ledger(broker.address), block=block)
    return await broker.chain.balance(broker.address, block=block) + ledger.total_balance


@pytest.fixture
def settling(devnet):
    """The first provider collects its inference fees a second after they arose."""
    before = devnet.control("inference", provider=0)["inference"][0]
    devnet.control("inference", provider=0, settle_interval=1.0)
    devnet.control("restart_inference", provider=0)
    yield
    devnet.control("inference", provider=0, **before)
    devnet.control("restart_inference", provider=0)


@pytest.mark.goal("LED-09")
@pytest.mark.usefixtures("settling")
async def test_fees_penalties_gas_and_inference_add_up_to_what_is_gone(devnet, broker, provider, dataset, tmp_path):
    await broker.ledger.add_ledger("6")
    first = (await broker.chain.block()).number
    async with JobRunner(broker) as runner:
        spec = JobSpec(
            model=MODEL, dataset=dataset, training_params=PARAMS, output_dir=tmp_path / "out", provider=provider,
            deploy=True,
        )  # fmt: skip
        job = await runner.submit(spec)
        result = await job.result()
        paid = await job.cost_report()
    assert (paid.fee, paid.gas, paid.penalty, paid.inference) == (result.fee, result.gas, 0, 0)
    assert paid.total == result.cost > 0

    uploaded = await broker.fine_tuning.upload_dataset_to_tee(provider, dataset)
    late = await broker.fine_tuning.create_task(provider, MODEL, uploaded.dataset_hash, PARAMS)
    await broker.fine_tuning.wait_task(provider, late, TaskProgress.DELIVERED)
    devnet.control("faults", provider=0, lock_time_unreadable=-1)  # its window counts as closed
    try:
        await broker.fine_tuning.wait_task(provider, late, TaskProgress.FINISHED)
    finally:
        devnet.control("clear_faults")

    for _ in range(3):
        await broker.inference.chat(provider, "Name the colour of box 1.", max_tokens=8)
    await broker.ledger.deposit_fund("1")
    while (await broker.inference.check_funds(provider)).unsettled:
        await broker.clock.sleep(0.1)

    last = (await broker.chain.block()).number
    report = await broker.cost_report(first_block=first + 1, last_block=last)
    assert report.cost.total == await wealth(broker, first) - await wealth(broker, last)
    assert [(t.task_id, t.is_penalty) for t in report.tasks] == [(result.task_id, False), (late, True)]
    cost = report.cost
    assert (cost.fee, cost.penalty, cost.storage) == (result.fee, report.tasks[1].fee, 0)
    assert cost.penalty > 0
    assert cost.inference == broker.inference.spending(provider).fee > 0
    assert cost.gas > report.jobs[job.id].gas == paid.gas
    everything = await broker.cost_report()
    assert everything.first_block <= first
    assert everything.cost.total - cost.total == everything.cost.gas - cost.gas > 0  # the ledger's opening


async def test_a_job_that_failed_tells_what_it_paid_and_a_fresh_wallet_nothing(
    broker, provider, dataset, tmp_path, faults
):
    assert (await broker.cost_report()).cost == Cost()
    faults(signature_error=1)
    async with JobRunner(broker) as runner:
        job = await runner.submit(
            JobSpec(model=MODEL, dataset=dataset, training_params=PARAMS, output_dir=tmp_path / "o", provider=provider)
        )
        with pytest.raises(JobFailedError):
            await job.result()
        paid = await job.cost_report()
        assert paid.gas == sum(p.gas for p in (await job.state()).paid) > 0
    assert paid == Cost(gas=paid.gas)


def short_of_gas(chain, name, times):
    """Have a wallet's transactions of this name mined as failures, so many times."""
    lane, left = next(iter(chain._lanes.values())), [times]
    honest = lane._quote

    async def quote(call, least):
        price = await honest(call, least)
        if call.name != name or not left[0]:
            return price
        left[0] -= 1
        return dataclasses.replace(price, gas=60_000)

    lane._quote = quote


@pytest.mark.parametrize("times", [1, 3], ids=["once", "for good"])
async def test_gas_of_reverted_transactions_is_counted_in_job_batch_day_and_audit_log(
    broker, provider, dataset, tmp_path, monkeypatch, times
):
    monkeypatch.setattr("zg_async.jobs.driver.FIRST_WAIT", 0.01)
    await broker.ledger.add_ledger("6")
    start, chain = (await broker.chain.block()).number, broker.chain
    short_of_gas(chain, "LedgerManager.transferFund", times)
    batch = Batch(
        name="b", models=[MODEL], datasets=[dataset], params=[PARAMS], output_dir=tmp_path / "out",
        job={"provider": provider}, max_spend="3",
    )  # fmt: skip
    async with JobRunner(broker) as runner:
        (row,) = (await runner.run_batch(batch)).rows
        job = await runner.attach(row.job_id)
        state, paid = await job.state(), await job.cost_report()
    trail = read_audit(broker.audit_path)
    sent = [t for t in trail.transactions if t.key.startswith(f"{row.job_id}/")]
    failed = [t for t in sent if t.status == 0]
    assert len(failed) == times
    assert all(t.gas_cost > 0 for t in failed)
    assert state.status is (JobStatus.SUCCEEDED if times == 1 else JobStatus.FAILED)
    assert {(p.tx_hash, p.gas) for p in state.paid} == {(t.tx_hash, t.gas_cost) for t in sent}
    gas = sum(t.gas_cost for t in sent)
    assert (paid.gas, paid.total, row.cost) == (gas, gas + paid.fee, gas + paid.fee)
    assert chain.budget.gone(row.job_id) == row.cost
    assert chain.budget.today().gone == paid.fee + sum(t.gas_cost for t in trail.transactions)
    last = (await chain.block()).number
    assert await wealth(broker, start) - await wealth(broker, last) == row.cost
