"""Batches on a network of three providers with two wallets: all of it is used, no pair twice, no cap broken."""

import os
from collections import Counter

import anyio
import pytest

from tests.devnet.conftest import DATASET, MODEL, PARAMS, new_key, open_broker
from zg_async import Batch, JobFailedError, JobRunner, JobSpec, LimitError
from zg_async.devnet.process import DevnetProcess
from zg_async.units import NEURON_PER_0G

pytestmark = pytest.mark.slow
OVER = ("Finished", "Failed")


@pytest.fixture(scope="module")
def devnet():
    with DevnetProcess("--limits", "off", "--providers", "3") as process:
        yield process


@pytest.fixture
def keys(devnet):
    return [new_key(devnet, 60 * NEURON_PER_0G) for _ in range(2)]


@pytest.fixture
async def broker(devnet, keys, tmp_path):
    async with open_broker(devnet, keys[0], tmp_path / "state", private_keys=keys[1:]) as opened:
        yield opened


@pytest.fixture
def batch(broker, tmp_path):
    (tmp_path / "train.jsonl").write_text(DATASET)

    def make(count, **changes):
        params = [{**PARAMS, "learning_rate": round(0.0001 + n / 100_000, 6)} for n in range(count)]
        fields = {"models": [MODEL], "datasets": [tmp_path / "train.jsonl"], "params": params}
        return Batch(**({"name": "b", "output_dir": tmp_path / "out", "wallets": broker.wallets} | fields | changes))

    return make


async def unfinished(devnet):
    """The tasks that aren't over, per wallet and provider, as the providers know them."""
    status = await devnet.control_async("status")
    return Counter(
        (task["user"], provider["address"])
        for provider in status["state"]
        for task in provider["tasks"]
        if task["progress"] not in OVER
    )


@pytest.mark.goal("BAT-02", part="3 providers and 2 wallets: 6 at once, never two unfinished per pair")
@pytest.mark.goal("SCL-02", part="fair assignment, a nonce lane each")
async def test_six_jobs_run_at_once_on_three_providers_with_two_wallets(devnet, broker, batch):
    seen, at_once, all_there = [], set(), anyio.Event()

    async def approve(request):
        """Let nobody acknowledge before six deliveries wait for it at the same time."""
        seen.append(await unfinished(devnet))
        if request.stage == "acknowledge_deliverable":
            at_once.add(request.job_id)
            if len(at_once) == 6:
                all_there.set()
            with anyio.fail_after(60):
                await all_there.wait()
        return True

    async with JobRunner(broker, approve=approve) as runner:
        done = await runner.run_batch(batch(8))
        jobs = await runner.list_jobs()
    assert done.is_whole, done.table()
    assert max(sum(now.values()) for now in seen) == 6
    assert all(count == 1 for now in seen for count in now.values())
    assert set().union(*seen) == {(wallet, p["address"]) for wallet in broker.wallets for p in devnet.providers}
    assert Counter(job.wallet for job in jobs) == dict.fromkeys(broker.wallets, 4)
    for wallet in broker.wallets:  # a lane each, without a gap
        sent = sum(len(job.paid) for job in jobs if job.wallet == wallet)
        assert await broker.chain.transaction_count(wallet) == sent


@pytest.mark.goal("BAT-05")
async def test_what_a_batch_costs_stays_below_its_cap_however_many_of_its_jobs_run_at_once(devnet, broker, batch):
    async def wealth():
        """Coins and ledgers of all wallets: what gas and fees alone make less."""
        total = 0
        for wallet in broker.wallets:
            view = broker.using(wallet)
            total += await broker.chain.balance(wallet) + (await view.ledger.get_ledger()).total_balance
        return total

    providers = [p["address"] for p in devnet.providers]
    for wallet in broker.wallets:
        for provider in providers:
            await broker.using(wallet).ledger.ensure_funded(provider, "fine-tuning", "1")
    async with JobRunner(broker) as runner:
        before = await wealth()
        first = await runner.run_batch(batch(1, name="one"))
        cost = before - await wealth()
        assert cost == first.cost > 0
        cap, peak = int(3.5 * cost), 0
        hold = type(broker.chain.budget).hold

        def watched(self, *words):
            nonlocal peak
            held = hold(self, *words)
            peak = max(peak, sum(map(self.gone, self._jobs_of.get("capped", ()))))
            return held

        type(broker.chain.budget).hold, before = watched, await wealth()
        try:
            done = await runner.run_batch(batch(6, name="capped", max_spend=cap, job={"budget": cost}))
        finally:
            type(broker.chain.budget).hold = hold
        spent = before - await wealth()
    assert 0 < spent == done.cost <= cap
    assert 0 < peak <= cap
    states = Counter(row.status for row in done.rows)
    assert states["succeeded"] >= 1
    assert states["failed"] >= 6 - 3
    assert all("max_spend of the batch" in row.error for row in done.rows if row.status == "failed")


async def test_a_wallet_with_as_many_sub_accounts_as_the_contract_takes_tries_no_other(devnet, broker, tmp_path):
    (tmp_path / "train.jsonl").write_text(DATASET)
    full, other = broker.wallets
    providers = [p["address"] for p in devnet.providers]
    limits = await broker.ledger.get_limits()
    strangers = ["0x" + os.urandom(20).hex() for _ in range(limits.max_providers - 1)]
    await broker.ledger.add_ledger("53")

    async def open_account(provider):
        await broker.ledger.transfer_fund(provider, "fine-tuning", limits.min_transfer_amount)

    async with anyio.create_task_group() as group:
        for provider in (providers[2], *strangers):
            group.start_soon(open_account, provider)
    sent = await broker.chain.transaction_count(full)
    with pytest.raises(LimitError, match="as many as the contract takes") as caught:
        await broker.ledger.ensure_funded(providers[0], "fine-tuning", "1")
    assert "another wallet" in caught.value.hint
    fields = {"model": MODEL, "dataset": tmp_path / "train.jsonl", "training_params": PARAMS, "max_spend": "1"}
    async with JobRunner(broker) as runner:
        plan = await runner.plan(JobSpec(**fields, output_dir=tmp_path / "plan"))
        assert plan.provider == providers[2]  # the only one where it has an account
        named = JobSpec(**fields, output_dir=tmp_path / "named", provider=providers[0])
        with pytest.raises(JobFailedError, match="as many as the contract takes"):
            await runner.run_job(named)
        job = await runner.submit(
            JobSpec(**fields, output_dir=tmp_path / "pool", provider=providers[0], wallets=(full, other), key="pool")
        )
        assert (await job.state()).wallet == other
        again = await runner.submit(
            JobSpec(**fields, output_dir=tmp_path / "pool", provider=providers[0], wallets=(other, full), key="pool")
        )
        assert again.id == job.id
        await job.cancel()
    assert await broker.chain.transaction_count(full) == sent
