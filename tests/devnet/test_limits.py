"""No value leaves past a limit: not many at once, not after a restart, not piece by piece."""

import functools
import re

import anyio
import pytest

from tests.devnet.conftest import DATASET, MODEL, PARAMS, open_broker
from zg_async import ConfigError, JobFailedError, JobRunner, JobSpec, LimitError, SpendLimits, create_broker
from zg_async.units import parse_amount
from zg_async.wire.contracts import LedgerContract

pytestmark = pytest.mark.slow
OG = 10**18


@pytest.fixture
def limited(devnet, key, tmp_path):
    return lambda **limits: open_broker(devnet, key, tmp_path / "state", limits=SpendLimits(**limits))


@pytest.fixture
def spec(tmp_path):
    (tmp_path / "train.jsonl").write_text(DATASET)

    def make(name="out", **changes):
        fields = {"model": MODEL, "dataset": tmp_path / "train.jsonl", "training_params": PARAMS}
        return JobSpec(**fields, output_dir=tmp_path / name, **changes)

    return make


@pytest.mark.goal("SEC-05", part="fifty payers at once")
async def test_fifty_payers_at_once_never_get_past_the_bound_and_a_restart_forgets_nothing(limited):
    refused = []
    async with limited(bound_per_day="5") as broker:
        await broker.ledger.add_ledger("3")

        async def pay():
            try:
                await broker.ledger.deposit_fund("0.1")
            except LimitError as error:
                refused.append(error)

        async with anyio.create_task_group() as group:
            for _ in range(50):
                group.start_soon(pay)
        assert len(refused) == 30
        assert "the limit bound_per_day is 5 0G" in str(refused[0])
        assert (await broker.ledger.get_ledger()).total_balance == 5 * OG
    async with limited(bound_per_day="5") as broker:
        with pytest.raises(LimitError):
            await broker.ledger.deposit_fund("0.1")
    async with limited(bound_per_day="5.1") as broker:
        await broker.ledger.deposit_fund("0.1")


@pytest.mark.goal("SEC-05", part="per call and per day")
async def test_calls_and_days_have_caps(limited, provider):
    async with limited(per_call="3.5") as broker:
        with pytest.raises(LimitError, match="per_call"):
            await broker.ledger.add_ledger("3.5")  # and gas
        await broker.ledger.add_ledger("3")
        with pytest.raises(LimitError, match="per_call"):
            await broker.ledger.deposit_fund("4")
    gas = broker.chain.budget.today().gone
    assert gas > 0
    async with limited(per_day=gas + 1) as broker:
        with pytest.raises(LimitError, match="per_day"):
            await broker.ledger.transfer_fund(provider, "fine-tuning", "1")
        assert broker.chain.budget.today() == (gas, 3 * OG, 0)


@pytest.mark.goal("SEC-05", part="consent")
@pytest.mark.parametrize("is_async", [False, True])
async def test_the_first_transfer_to_a_provider_asks_and_later_ones_dont(devnet, limited, provider, is_async):
    asked, answers = [], [False, True]

    def consent(transfer):
        asked.append((transfer.provider, transfer.amount))
        return answers.pop(0)

    async def consent_later(transfer):
        return consent(transfer)

    async with limited(consent=consent_later if is_async else consent) as broker:
        await broker.ledger.add_ledger("5")
        with pytest.raises(LimitError, match="not consented"):
            await broker.ledger.transfer_fund(provider, "fine-tuning", "1")
        for _ in range(2):
            await broker.ledger.transfer_fund(provider, "fine-tuning", "1")
    assert asked == [(provider, OG)] * 2
    async with limited(consent=consent) as broker:
        await broker.ledger.transfer_fund(provider, "fine-tuning", "1")
    assert len(asked) == 2


@pytest.mark.goal("SEC-10", part="the first spending is asked about")
async def test_the_first_spending_of_a_wallet_is_asked_about_once_with_the_sum(limited):
    asked, answers = [], [False, True]

    async def ask(first):
        asked.append(first)
        return answers.pop(0)

    async with limited(first_spending=ask) as broker:
        with pytest.raises(LimitError, match="first spending"):
            await broker.ledger.add_ledger("3")
        assert await broker.chain.transaction_count(broker.address) == 0
        async with anyio.create_task_group() as group:  # two payers at once: one question
            for _ in range(2):
                call = LedgerContract(broker.network.ledger).deposit_fund_for(broker.address, value=3 * OG)
                group.start_soon(functools.partial(broker.chain.write, call, wallet=broker.address))
        await broker.ledger.deposit_fund("1")
    async with limited(first_spending=ask) as broker:  # another process: the outbox remembers
        await broker.ledger.deposit_fund("1")
    assert [(first.wallet, first.name) for first in asked[:1]] == [(broker.address, "LedgerManager.addLedger")]
    assert len(asked) == 2
    assert 3 * OG < asked[0].amount < 4 * OG


@pytest.mark.goal("SEC-05", part="per run")
@pytest.mark.goal("BAT-05", part="jobs of a batch share its cap, fees reserved before the task is asked for")
async def test_jobs_of_a_batch_share_its_cap(devnet, limited, spec):
    providers = [p["address"] for p in devnet.providers]
    async with limited() as broker, JobRunner(broker) as runner:
        alone = await runner.run_job(spec("alone"))
        cap = 2 * alone.fee + 1
        outcomes = []

        async def run(number):
            job = spec(f"out-{number}", provider=providers[number], budget=alone.fee, batch="b", batch_max_spend=cap)
            try:
                outcomes.append(await runner.run_job(job))
            except JobFailedError as error:
                outcomes.append(error)

        async with anyio.create_task_group() as group:
            for number in range(2):
                group.start_soon(run, number)
        (failed,) = [one for one in outcomes if isinstance(one, JobFailedError)]
        (done,) = [one for one in outcomes if not isinstance(one, JobFailedError)]
        assert failed.error_code == "limit"
        spent = sum(broker.chain.budget.gone(job.job_id) for job in (done, failed))
        assert done.fee + done.gas <= spent <= cap
        assert broker.chain.budget.gone(done.job_id) == done.fee + done.gas


@pytest.mark.goal("RUN-03", part="stops before the next payment")
async def test_a_job_stops_before_the_payment_that_would_break_its_cap(limited, spec):
    async with limited(per_job=1) as broker, JobRunner(broker) as runner:
        with pytest.raises(JobFailedError, match="per_job") as caught:
            await runner.run_job(spec())
        assert caught.value.error_code == "limit"
        assert await broker.chain.transaction_count(broker.address) == 0
    first = parse_amount(re.search(r"would come to ([\d.]+) 0G", str(caught.value))[1])
    async with limited(per_job=first) as broker, JobRunner(broker) as runner:
        with pytest.raises(JobFailedError, match="per_job"):
            await runner.run_job(spec("again"))
        assert await broker.chain.transaction_count(broker.address) == 1


@pytest.mark.goal("SEC-05", part="unattended on mainnet")
async def test_on_mainnet_a_job_without_any_cap_is_refused(limited, spec, monkeypatch):
    async with limited() as broker, JobRunner(broker) as runner:
        monkeypatch.setattr("zg_async.broker._MAINNET", 31337)
        with pytest.raises(ConfigError, match="runs unattended") as caught:
            await runner.submit(spec())
        assert "max_spend" in caught.value.hint
        assert "SpendLimits" in caught.value.hint
    async with limited(per_day="100") as broker:
        assert not broker.requires_cap


def test_a_limit_is_an_amount_and_nothing_else(tmp_path):
    with pytest.raises(ConfigError, match=r"SpendLimits\.per_day"):
        create_broker("11" * 32, "local", state_dir=tmp_path, limits=SpendLimits(per_day=0.5))


@pytest.mark.goal("HRD-07", part="the rest is asked back at the end where the job says so")
async def test_a_job_leaves_nothing_spendable_at_the_provider(limited, spec):
    async with limited() as broker, JobRunner(broker) as runner:
        planned = await runner.plan(spec("rest", return_rest=True))
        handle = await runner.submit(spec("rest", return_rest=True))
        result = await handle.result()
        left = await broker.fine_tuning.get_account(result.provider)
        funded = [event.amount async for event in handle.events() if event.kind == "provider_funded"]
    assert left.balance == left.pending_refund == OG - result.fee
    assert max(funded) <= planned.estimate.fee_high * 11 // 10
    assert planned.transactions[-1].name == "retrieve_fund"
    assert result.gas <= planned.gas_cost
