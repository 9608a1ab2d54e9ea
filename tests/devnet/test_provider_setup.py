import anyio
import anyio.lowlevel
import pytest

from tests.devnet.provider_kit import User, add_task, key_of, stub_provider
from zg_async.devnet.provider_settings import CustomModel
from zg_async.devnet.provider_workers import Workers
from zg_async.devnet.ticks import next_tick
from zg_async.wire.records import TaskProgress
from zg_async.wire.signing import sign_digest, task_create_hash


@pytest.fixture
async def provider(tmp_path, clock):
    async with stub_provider(tmp_path, clock) as (node, chain, session):
        yield node, chain, User(key_of("alice"), session, node.url, clock), Workers(node)


async def _log_of_setup(provider, task_id):
    node, _, user, workers = provider
    await workers.setup_round()
    return node.store.get(task_id).progress, (await user.log(task_id)).splitlines()


async def test_setup_computes_the_fee_and_keeps_the_signers_public_key(provider):
    node, chain, user, _ = provider
    task_id = await user.train()
    chain.calls.clear()
    progress, lines = await _log_of_setup(provider, task_id)
    task = node.store.get(task_id)
    assert (progress, task.fee) == (TaskProgress.SET_UP, (12 * (5 + 4)) * 10**12 + 10**16)
    assert bytes.fromhex(task.user_public_key)[0] == 4
    assert lines[-1].endswith(f"Training model for setup task {task_id} successfully")
    assert chain.calls == ["balance", "getAccount", "getService"]


@pytest.mark.parametrize(
    ("spoil", "text"),
    [
        (lambda chain: setattr(chain, "balance", 10**18 - 1), "insufficient provider balance"),
        (lambda chain: chain.account.update(balance=5, pending=3), "insufficient account balance after pending refund"),
        (lambda chain: chain.account.update(nonce=10**40), "invalid nonce"),
        (
            lambda chain: setattr(chain, "approved", False),
            "service TEE signer has not been acknowledged by the 0G team",
        ),
        (lambda chain: chain.account.update(acknowledged=False), "user has not acknowledged the provider's TEE signer"),
    ],
)
async def test_what_setup_finds_wrong_is_in_the_log_and_tried_again(provider, spoil, text):
    task_id = await provider[2].train()
    spoil(provider[1])
    progress, lines = await _log_of_setup(provider, task_id)
    assert progress is TaskProgress.INIT
    assert f"setup failed: {text}" in lines[-2]
    assert lines[-1].endswith(f"Retrying task {task_id}")


async def test_setup_looks_in_the_brokers_order(provider):
    _, chain, user, _ = provider
    task_id = await user.train()
    chain.balance, chain.approved = 0, False
    chain.account |= {"balance": 0, "nonce": 10**40, "acknowledged": False}
    seen = []
    for mend in (
        lambda: setattr(chain, "balance", 10**20),
        lambda: chain.account.update(balance=10**18),
        lambda: chain.account.update(nonce=0),
        lambda: setattr(chain, "approved", True),
        lambda: chain.account.update(acknowledged=True),
    ):
        seen.append((await _log_of_setup(provider, task_id))[1][-2])
        mend()
    order = ["provider balance", "account balance", "invalid nonce", "0G team", "user has not"]
    assert all(text in line for text, line in zip(order, seen, strict=True))
    assert (await _log_of_setup(provider, task_id))[0] is TaskProgress.SET_UP


async def test_a_wrong_signature_fails_the_task_at_once(provider):
    _, _, user, _ = provider
    status, answer = await user.upload()
    assert status == 200
    plain = sign_digest(user.key, task_create_hash(user.address, 1, "x"))
    _, created = await user.create(answer["datasetHash"], signature=f"0x{plain.hex()}")
    progress, lines = await _log_of_setup(provider, created["id"])
    assert progress is TaskProgress.FAILED
    assert "signature verification failed: address mismatch" in lines[-1]


async def test_setup_gives_up_after_eleven_attempts(provider):
    node, _, user, _ = provider
    task_id = await user.train()
    node.faults.fail_setup = -1
    states = [(await _log_of_setup(provider, task_id))[0] for _ in range(11)]
    assert states == [TaskProgress.INIT] * 10 + [TaskProgress.FAILED]


@pytest.mark.parametrize("data", [b'{"messages":7}\n', b"null\n"], ids=["messages", "null"])
async def test_a_dataset_that_cant_be_converted_fails_in_setup(provider, data):
    task_id = await provider[2].train(data)
    assert "setup failed: " in (await _log_of_setup(provider, task_id))[1][-2]


async def test_a_cancelled_task_isnt_revived_by_setup(provider):
    node, _, user, _ = provider
    task_id = await user.train()
    task = node.store.get(task_id)
    assert await node.store.move(task, TaskProgress.INIT, TaskProgress.SETTING_UP, 0)
    assert (await user.cancel(task_id))[0] == 200
    assert not await node.store.move(task, TaskProgress.SETTING_UP, TaskProgress.SET_UP, 0)
    assert task.progress is TaskProgress.FAILED


async def test_customised_models_pass_creation_and_fail_in_setup(provider):
    node, _, user, _ = provider
    node.settings.models = (CustomModel(name="tiny", hash="0x" + "bb" * 32),)
    task_id = await user.train(preTrainedModelHash="0x" + "BB" * 32)
    assert (await user.task(task_id))["modelType"] == 1
    assert "model configuration not found in SCRIPT_MAP" in (await _log_of_setup(provider, task_id))[1][-2]


async def test_retention_counts_whole_days_from_creation_and_keeps_the_log(provider, clock):
    node, _, user, workers = provider
    task_id = await user.train()
    task = node.store.get(task_id)
    node.files.encrypted(task_id).write_bytes(b"model")
    task.progress = TaskProgress.FINISHED
    clock.advance(3 * 86400)  # made at 08:00: three whole days have not passed since that day's start
    await workers.settlement.clean_up()
    assert node.files.encrypted(task_id).exists()
    clock.advance(16 * 3600)
    await workers.settlement.clean_up()
    assert not node.files.encrypted(task_id).exists()
    assert node.files.log_path(task_id).exists()


async def test_datasets_nobody_uses_are_removed_after_the_retention_time(provider, clock):
    node, _, user, workers = provider
    _, answer = await user.upload()
    task_id = await user.train(b'{"instruction":"kept","output":"x"}\n')
    clock.advance(72 * 3600 + 1)
    await workers.settlement.clean_up()
    with pytest.raises(OSError, match="No such file"):
        node.files.rows(user.address, answer["datasetHash"])
    assert node.files.rows(user.address, node.store.get(task_id).dataset_hash)


async def test_an_acknowledgement_is_confirmed_before_it_counts(provider):
    node, chain, user, workers = provider
    task = await add_task(node, user, "de594986-253d-43d5-8ae4-6349207282db", TaskProgress.DELIVERED)
    task.deliver_time = int(node.now())
    node.watch.acknowledged.add((node.address, task.id))
    await workers.settlement.round()
    assert task.progress is TaskProgress.DELIVERED
    assert not node.watch.acknowledged
    chain.acknowledged = True
    node.faults.fail_settlement = -1
    node.watch.acknowledged.add((node.address, task.id))
    await workers.settlement.round()
    assert task.progress is TaskProgress.USER_ACKNOWLEDGED


async def test_settlement_fails_for_good_after_eleven_attempts(provider):
    node, _, user, workers = provider
    task = await add_task(node, user, "de594986-253d-43d5-8ae4-6349207282db", TaskProgress.USER_ACKNOWLEDGED)
    node.faults.fail_settlement = -1
    for _ in range(10):
        await workers.settlement.round()
    assert task.progress is TaskProgress.USER_ACKNOWLEDGED
    await workers.settlement.round()
    assert task.progress is TaskProgress.FAILED


@pytest.mark.parametrize(("waited", "is_late"), [(86400 // 2 - 1, False), (86400 // 2, True)])
async def test_the_window_is_half_the_lock_time_at_most(provider, clock, waited, is_late):
    node, _, user, workers = provider
    task = await add_task(node, user, "de594986-253d-43d5-8ae4-6349207282db", TaskProgress.DELIVERED)
    task.deliver_time = int(node.now())
    node.faults.fail_settlement = -1
    clock.advance(waited)
    await workers.settlement.round()
    assert bool(task.retries) is is_late


async def test_an_unreadable_lock_time_counts_as_no_window_at_all(provider):
    node, _, user, workers = provider
    task = await add_task(node, user, "de594986-253d-43d5-8ae4-6349207282db", TaskProgress.DELIVERED)
    task.deliver_time = int(node.now())
    node.faults.lock_time_unreadable, node.faults.fail_settlement = 1, -1
    await workers.settlement.round()
    assert task.retries == {"settlement": 1}
    await workers.settlement.round()
    assert task.retries == {"settlement": 1}


async def test_a_round_settles_one_task_and_acknowledged_ones_first(provider):
    node, _, user, workers = provider
    late = await add_task(node, user, "de594986-253d-43d5-8ae4-6349207282db", TaskProgress.DELIVERED)
    ready = await add_task(node, user, "de594986-253d-43d5-8ae4-6349207282dc", TaskProgress.USER_ACKNOWLEDGED)
    node.faults.fail_settlement = -1
    await workers.settlement.round()
    assert (late.retries, ready.retries) == ({}, {"settlement": 1})


async def test_a_worker_without_work_does_nothing_and_its_next_look_is_where_it_was(provider, clock):
    node, _, _, workers = provider
    seen = []

    async def look():
        seen.append(clock.monotonic())
        await node.store.move(task, TaskProgress.INIT, TaskProgress.FAILED, node.now())

    async with anyio.create_task_group() as group:
        begin = clock.monotonic()
        group.start_soon(workers._loop, look, TaskProgress.INIT)
        await anyio.wait_all_tasks_blocked()
        clock.advance(10 * node.settings.tick + 0.05)
        clock.slept.clear()
        task = await add_task(node, provider[2], "11111111-1111-4111-8111-111111111111", TaskProgress.TRAINED)
        await anyio.wait_all_tasks_blocked()
        assert (seen, clock.slept) == ([], [])
        assert await node.store.move(task, TaskProgress.TRAINED, TaskProgress.INIT, node.now())
        await anyio.wait_all_tasks_blocked()
        group.cancel_scope.cancel()
    assert seen == [pytest.approx(begin + 11 * node.settings.tick)]
    assert task.progress is TaskProgress.FAILED


async def test_actors_with_the_same_interval_look_at_the_same_moments(clock):
    clock.advance(0.03)
    for due in (0.2, 0.4):
        await next_tick(clock, 0.2)
        assert clock.monotonic() == pytest.approx(due)
        clock.advance(0.05)
    await next_tick(clock, 0.0)
    assert clock.monotonic() == pytest.approx(0.45, abs=0.0011)
