"""Money comes back in two phases, over restarts, and never from under an open task."""

import contextlib

import anyio
import pytest

from tests.devnet.conftest import DATASET, MODEL, PARAMS, open_broker
from zg_async import ConfigError, SystemClock, TaskProgress, UnfinishedTaskError
from zg_async.wire.contracts import LedgerContract

pytestmark = pytest.mark.slow
OG = 10**18


class JumpingClock(SystemClock):
    """Long waits move the network's time instead."""

    longest = 1000.0

    def __init__(self, devnet, *, dies=False):
        self.devnet, self.dies, self.jumps = devnet, dies, []

    async def sleep(self, seconds):
        if seconds < 1000:
            await super().sleep(min(seconds, self.longest))
            return
        if self.dies:
            raise KeyboardInterrupt
        self.jumps.append(seconds)
        self.devnet.control("increase_time", seconds=int(seconds) + 1)


@pytest.fixture
def batches(monkeypatch):
    """The providers of each retrieveFund that is made."""
    made, retrieve = [], LedgerContract.retrieve_fund

    def noted(contract, providers, name):
        made.append(len(providers))
        return retrieve(contract, providers, name)

    monkeypatch.setattr(LedgerContract, "retrieve_fund", noted)
    return made


@pytest.mark.goal("LED-07")
async def test_all_money_comes_back_over_a_restart_in_batches_with_each_refund_asked_for_once(
    devnet, key, provider, tmp_path, batches
):
    async with open_broker(devnet, key, tmp_path, clock=JumpingClock(devnet, dies=True)) as broker:
        await broker.ledger.add_ledger("30")
        async with anyio.create_task_group() as group:
            for other in [provider, *(f"0x{n:040x}" for n in range(1, 22))]:
                group.start_soon(broker.ledger.transfer_fund, other, "fine-tuning", "1")
            group.start_soon(broker.ledger.transfer_fund, provider, "inference", "1")
        with pytest.raises(KeyboardInterrupt):
            await broker.ledger.retrieve_all(wait=True)
        assert batches == [20, 2, 1]  # asked back; then it slept, and died
        sent = await broker.chain.transaction_count(broker.address)
    clock = JumpingClock(devnet)
    async with open_broker(devnet, key, tmp_path, clock=clock) as broker:
        now = await broker.ledger.retrieve_all()
        assert (now.receipts, now.locked) == ((), 23 * OG)
        assert now.next_unlock is not None
        done = await broker.ledger.retrieve_all(wait=True)
        assert (done.locked, done.next_unlock, done.left) == (0, None, {})
        assert clock.jumps
        assert batches == [20, 2, 1, 20, 2, 1]  # collected
        assert await broker.chain.transaction_count(broker.address) == sent + len(done.receipts) == sent + 3
        assert (await broker.ledger.get_ledger()).available_balance == 30 * OG
        assert (await broker.ledger.retrieve_all(wait=True)).receipts == ()  # the sub-accounts are there, and empty
        assert len((await broker.ledger.get_ledger_with_detail()).fine_tuning) == 22
        assert len(batches) == 6


@pytest.mark.goal("LED-11")
async def test_a_pair_with_an_open_task_keeps_its_money_and_the_task_runs(broker, provider, tmp_path):
    (tmp_path / "train.jsonl").write_text(DATASET)
    tuning, ledger = broker.fine_tuning, broker.ledger
    other = "0x" + "00" * 19 + "01"
    await ledger.ensure_funded(provider, "fine-tuning", "1")
    await ledger.deposit_fund("2")
    await ledger.transfer_fund(other, "fine-tuning", "1")
    await tuning.acknowledge_provider_signer(provider)
    uploaded = await tuning.upload_dataset_to_tee(provider, tmp_path / "train.jsonl")
    task = await tuning.create_task(provider, MODEL, uploaded.dataset_hash, PARAMS)
    await ledger.retrieve_fund("fine-tuning")  # the task may be in setup right now
    with pytest.raises(UnfinishedTaskError, match="is needed"):
        await ledger.retrieve_fund("fine-tuning", [provider], open_tasks="refuse")
    done = await ledger.retrieve_all()
    assert list(done.left) == [provider]
    rows = {r.provider.lower(): r for r in (await ledger.get_ledger_with_detail()).fine_tuning}
    assert rows[provider.lower()].pending_refund == 0
    assert rows[other].pending_refund == OG
    await tuning.wait_task(provider, task, TaskProgress.DELIVERED)


@pytest.mark.goal("LED-11", part="a provider that can't be asked")
async def test_a_provider_that_doesnt_answer_may_hold_a_task(devnet, broker, provider):
    await broker.ledger.ensure_funded(provider, "fine-tuning", "1")
    devnet.control("stop", provider=0)
    try:
        done = await broker.ledger.retrieve_all()
        assert "can't be asked" in done.left[provider]
        assert done.receipts == ()
        assert await broker.ledger.retrieve_fund("fine-tuning", open_tasks="ignore")
    finally:
        devnet.control("start", provider=0)


@pytest.mark.goal("WAT-01", part="refunds")
async def test_refunds_are_watched_and_waited_for_until_they_can_be_collected(devnet, key, provider, tmp_path):
    clock = JumpingClock(devnet)
    clock.longest = 0.2
    async with open_broker(devnet, key, tmp_path, clock=clock) as broker:
        ledger = broker.ledger
        await ledger.add_ledger("10")
        await ledger.transfer_fund(provider, "fine-tuning", "2")
        assert (await ledger.wait_refunds(provider)).is_over
        await ledger.retrieve_fund("fine-tuning")
        with pytest.raises(TimeoutError), anyio.fail_after(0.5):
            await ledger.wait_refunds(provider)
        seen = []
        with anyio.fail_after(60):
            async with contextlib.aclosing(ledger.watch_refunds(provider)) as changes:
                async for change in changes:
                    seen.append(change)
                    if len(seen) == 1:
                        left = (change.next_unlock - change.at).total_seconds()
                        devnet.control("increase_time", seconds=int(left) + 1)
                        assert (await ledger.wait_refunds(provider)).collectable == 2 * OG
                    elif change.collectable:
                        await ledger.retrieve_fund("fine-tuning")
        assert [(c.locked, c.collectable) for c in seen] == [(2 * OG, 0), (0, 2 * OG), (0, 0)]
        assert all(c.id and c.at.tzinfo and c.source == "chain" for c in seen)
        with pytest.raises(ConfigError, match="service type"):
            await ledger.wait_refunds(provider, "cooking")
