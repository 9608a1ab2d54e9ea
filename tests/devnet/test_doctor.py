"""Naming the state of a wallet at a provider, and getting out of it."""

import pytest

from tests.devnet.conftest import DATASET, MODEL, PARAMS, new_key, open_broker
from zg_async import ConfigError, TaskProgress
from zg_async.managers.diagnosis import PairState

pytestmark = pytest.mark.slow
LOCK_SECONDS = 24 * 3600


async def state_of(broker, provider):
    return (await broker.fine_tuning.diagnose(provider)).states


async def ordered(broker, provider, folder):
    path = folder / "rows.jsonl"
    path.write_text(DATASET)
    uploaded = await broker.fine_tuning.upload_dataset_to_tee(provider, path)
    return await broker.fine_tuning.create_task(provider, MODEL, uploaded.dataset_hash, PARAMS)


async def settled_with_penalty(devnet, broker, provider, task):
    await broker.fine_tuning.wait_task(provider, task, TaskProgress.DELIVERED)
    devnet.control("faults", provider=0, lock_time_unreadable=-1)
    try:
        await broker.fine_tuning.wait_task(provider, task, TaskProgress.FINISHED)
    finally:
        devnet.control("clear_faults")


@pytest.mark.goal("RUN-09")
@pytest.mark.goal("CLI-09", part="every state and the way out, dry run first")
async def test_every_state_on_the_way_is_named_and_the_penalty_lock_is_opened_dry_first(
    devnet, broker, provider, tmp_path
):
    tuning = broker.fine_tuning
    assert await state_of(broker, provider) == (PairState.NO_LEDGER,)
    dry = await tuning.recover(provider)
    assert dry.receipts == ()
    assert [step.action for step in dry.diagnosis.steps] == ["ledger.ensure_funded"]
    assert len((await tuning.recover(provider, dry_run=False)).receipts) == 2
    assert await state_of(broker, provider) == (PairState.HEALTHY,)

    task = await ordered(broker, provider, tmp_path)
    await tuning.wait_task(provider, task, TaskProgress.DELIVERED)
    found = await tuning.diagnose(provider)
    assert found.state is PairState.DELIVERED
    assert found.task_id == task
    assert found.steps[0].arguments == (provider, task)
    with pytest.raises(ConfigError, match="not acknowledged"):
        await tuning.recover(provider)

    await settled_with_penalty(devnet, broker, provider, task)
    found = await tuning.diagnose(provider)
    assert found.state is PairState.PENALTY_LOCK
    assert task in found.explanation
    actions = ["ledger.retrieve_fund", "wait", "ledger.retrieve_fund", "ledger.refund", "ledger.ensure_funded"]
    assert [step.action for step in found.steps] == actions
    assert (await tuning.recover(provider)).receipts == ()
    assert await state_of(broker, provider) == (PairState.PENALTY_LOCK,)

    first = await tuning.recover(provider, dry_run=False)
    assert len(first.receipts) == 1
    assert first.wait_until is not None
    again = await tuning.recover(provider, dry_run=False)
    assert (again.receipts, again.wait_until) == ((), first.wait_until)  # nothing is sent twice
    devnet.control("increase_time", seconds=await tuning.get_locked_time() + 60)
    assert (await tuning.recover(provider, dry_run=False)).wait_until is None
    assert await state_of(broker, provider) == (PairState.HEALTHY,)
    task = await ordered(broker, provider, tmp_path)
    await tuning.wait_task(provider, task, TaskProgress.DELIVERED)  # the provider delivers to this wallet again


async def test_a_wallet_without_gas_and_a_stranger_are_told(devnet, provider, tmp_path):
    async with open_broker(devnet, new_key(devnet, 0), tmp_path / "state") as poor:
        assert await state_of(poor, provider) == (PairState.DRAINED_GAS, PairState.NO_LEDGER)
        found = await poor.fine_tuning.diagnose(poor.address)
        assert found.state is PairState.NOT_REGISTERED


async def test_refunds_unacknowledged_signers_and_unfinished_tasks_are_named(devnet, broker, provider, tmp_path):
    await broker.ledger.ensure_funded(provider, "fine-tuning", "1")
    await broker.ledger.retrieve_fund("fine-tuning")
    assert await state_of(broker, provider) == (PairState.REFUND_PENDING,)
    await broker.ledger.transfer_fund(provider, "fine-tuning", "1")
    devnet.control("settings", provider=0, train_seconds=60.0)
    try:
        task = await ordered(broker, provider, tmp_path)
        found = await broker.fine_tuning.diagnose(provider)
        assert (found.state, found.task_id) == (PairState.UNFINISHED_TASK, task)
        await broker.fine_tuning.wait_task(provider, task, TaskProgress.TRAINING)
    finally:
        devnet.control("settings", provider=0, train_seconds=0.0)


async def test_a_signer_without_the_owners_word_and_a_silent_provider_are_named(devnet, broker, tmp_path):
    other = devnet.providers[1]["address"]
    await broker.ledger.ensure_funded(other, "fine-tuning", "1")
    devnet.control("revoke", provider=1)
    try:
        assert PairState.SIGNER_NOT_APPROVED in await state_of(broker, other)
    finally:
        devnet.control("approve", provider=1)
    devnet.control("stop", provider=1)
    try:
        assert await state_of(broker, other) == (PairState.UNREACHABLE,)
    finally:
        devnet.control("start", provider=1)
