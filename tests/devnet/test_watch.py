"""Watching tasks: two witnesses, resumable, and leaving leaves nothing."""

import asyncio
import datetime as dt
import gc
import json

import anyio
import pytest

from tests.devnet.conftest import MODEL, PARAMS, new_key, open_broker
from zg_async import (
    AckDeadlineNear,
    ClosedError,
    DeliveredProviderLostState,
    PollPolicy,
    ProviderUnavailableError,
    TaskFailedError,
    TaskNotFoundError,
    TaskProgress,
    TaskQueueMoved,
    TaskSettled,
    TaskStateChanged,
    TaskStuck,
    WatchResynced,
    WatchWarning,
)
from zg_async.managers.provider_client import ProviderClient

pytestmark = pytest.mark.slow
FORGED = json.dumps(
    {
        "block_number": 1,
        "block_hash": "0x00",
        "log_index": 0,
        "state": None,
        "state_text": "",
        "marks": 0,
        "lost": False,
    }
)


async def collect(broker, provider, task, cursor=None, *, until=None):
    changes = []
    with anyio.fail_after(30):
        async with broker.fine_tuning.watch_task(provider, task, cursor=cursor) as watch:
            async for change in watch:
                changes.append(change)
                if until and until(change):
                    break
    return changes


def states(changes):
    return [c.state for c in changes if isinstance(c, TaskStateChanged)]


def is_state(*wanted):
    return lambda change: isinstance(change, TaskStateChanged) and change.state in wanted


@pytest.mark.goal("WAT-01", part="tasks")
async def test_iterating_and_waiting_see_the_task_to_its_end(broker, provider, task, tmp_path):
    seen = []

    async def read():
        async for change in broker.fine_tuning.watch_task(provider, task):
            seen.append(change)

    with anyio.fail_after(30):
        async with anyio.create_task_group() as group:
            group.start_soon(read)
            change = await broker.fine_tuning.wait_task(provider, task, until=TaskProgress.DELIVERED)
            assert change.model_root_hash
            await broker.fine_tuning.deliver(provider, task, tmp_path / "out")
    told = states(seen)
    assert told[-3:] == [TaskProgress.DELIVERED, TaskProgress.USER_ACKNOWLEDGED, TaskProgress.FINISHED]
    assert len([c for c in seen if isinstance(c, TaskSettled) and c.acknowledged and c.fee > 0]) == 1


async def test_waiting_obeys_the_callers_deadline(broker, provider, task):
    with pytest.raises(TimeoutError), anyio.fail_after(0.05):
        await broker.fine_tuning.wait_task(provider, task, until=TaskProgress.FINISHED)


@pytest.mark.goal("WAT-02", part="state, log lines, metric, settlement")
@pytest.mark.goal("WAT-07", part="on the devnet")
async def test_every_change_is_typed_and_has_id_time_source_and_cursor(broker, provider, dataset, tmp_path):
    await broker.ledger.ensure_funded(provider, "fine-tuning", "1")
    hash_ = (await broker.fine_tuning.upload_dataset_to_tee(provider, dataset)).dataset_hash
    params = {**PARAMS, "max_steps": 20}  # a step in ten is logged
    task = await broker.fine_tuning.create_task(provider, MODEL, hash_, params)
    await broker.fine_tuning.wait_task(provider, task)
    logs = [piece async for piece in _until_delivered(broker, provider, task)]
    await broker.fine_tuning.deliver(provider, task, tmp_path / "out")
    async with broker.fine_tuning.follow_metrics(provider, task) as figures:
        metrics = [metric async for metric in figures]
    series = await broker.fine_tuning.get_metrics(provider, task)
    assert [m.metric for m in metrics if m.metric] == figures.series.points == series.points
    assert [m.step for m in series.points] == [1, 2]
    assert metrics[-1].summary == series.summary
    assert (metrics[-1].eta, series.malformed) == (0.0, 0)
    changes = [*logs, *metrics, *await collect(broker, provider, task)]
    checked(changes, task, {"task_log_appended", "task_metric", "task_state_changed"})
    assert len({c.id for c in changes}) == len(changes)


def checked(changes, task, kinds):
    assert {c.kind for c in changes} >= kinds
    for change in changes:
        assert change.id
        assert change.at.tzinfo is not None
        assert change.source in ("provider", "chain", "clock")
        assert change.task_id == task


@pytest.mark.goal("WAT-04", part="on the devnet, with changes")
@pytest.mark.goal("TSK-05")
@pytest.mark.goal("WAT-02", part="queue position")
async def test_a_queued_task_tells_who_is_ahead_and_one_that_gets_no_further_its_last_words(
    devnet, provider, dataset, tmp_path
):
    keys = [new_key(devnet) for _ in range(3)]
    policy = PollPolicy(first=0.1, longest=0.2, rate=50.0, stuck_seconds={TaskProgress.TRAINING: 0.5})
    devnet.control("settings", provider=0, train_seconds=60.0)
    try:
        async with open_broker(devnet, None, tmp_path, private_keys=keys, polling=policy) as first:
            tasks = []
            for wallet in first.wallets:
                view = first.using(wallet)
                await view.ledger.ensure_funded(provider, "fine-tuning", "1")
                hash_ = (await view.fine_tuning.upload_dataset_to_tee(provider, dataset)).dataset_hash
                tasks.append((view, await view.fine_tuning.create_task(provider, MODEL, hash_, PARAMS)))
            (one, training), (two, leaving), (three, waiting) = tasks
            queue = []
            with anyio.fail_after(60):
                async with three.fine_tuning.watch_task(provider, waiting) as changes:
                    async for change in changes:
                        if not isinstance(change, TaskQueueMoved):
                            continue
                        queue.append(change)
                        if len(queue) == 2:
                            break
                        outcome = await two.fine_tuning.cancel_task(provider, leaving)
                        assert outcome.result.value == "cancelled"
            assert [(c.ahead, c.previous) for c in queue] == [(2, None), (1, 2)]
            checked(queue, waiting, {"task_queue_moved"})
            told = await collect(one, provider, training, until=lambda c: isinstance(c, TaskStuck))
            checked(told, training, {"task_stuck"})
            log = await one.fine_tuning.get_log(provider, training)
            assert told[-1].log_line in log.strip().splitlines()
            assert told[-1].seconds >= 0.5
            assert told[-1].state is TaskProgress.TRAINING
            devnet.control("restart", provider=0)  # fails it
            again = await collect(one, provider, training, told[-1].cursor)
            assert [c.kind for c in again] == ["task_state_changed"]  # told once
    finally:
        devnet.control("restart", provider=0)
        devnet.control("settings", provider=0, train_seconds=0.0)


async def _until_delivered(broker, provider, task):
    async with broker.fine_tuning.follow_log(provider, task) as pieces:
        async for piece in pieces:
            yield piece
            break


@pytest.mark.goal("WAT-03", part="chain events and state")
async def test_a_watch_goes_on_from_its_cursor_in_another_process(devnet, broker, key, provider, task, tmp_path):
    first = await collect(broker, provider, task, until=is_state(TaskProgress.DELIVERED))
    cursor = first[-1].cursor
    await broker.fine_tuning.deliver(provider, task, tmp_path / "out")
    async with open_broker(devnet, key, tmp_path / "elsewhere") as other:
        rest = await collect(other, provider, task, cursor)
        assert states(rest) == [TaskProgress.USER_ACKNOWLEDGED, TaskProgress.FINISHED]
        assert [type(c) for c in rest] == [TaskStateChanged, TaskSettled, TaskStateChanged]
        assert await collect(other, provider, task, rest[-1].cursor) == []
        middle = await collect(other, provider, task, rest[0].cursor)
        assert [c.id for c in middle] == [c.id for c in rest[1:]]


@pytest.mark.goal("WAT-03", part="expired cursor")
@pytest.mark.parametrize("cursor", ["gone", FORGED])
async def test_an_expired_cursor_yields_one_resync_with_the_full_state(broker, provider, task, tmp_path, cursor):
    await broker.fine_tuning.wait_task(provider, task)
    first, *rest = await collect(broker, provider, task, cursor, until=lambda c: True)
    assert isinstance(first, WatchResynced)
    assert first.deliverable.id == task
    assert first.task.id == task
    assert rest == []


@pytest.mark.goal("WAT-05")
@pytest.mark.goal("WAT-03", part="log bytes")
async def test_a_log_is_followed_once_over_cuts_and_truncation_and_never_ends_early(
    devnet, broker, provider, task, faults
):
    devnet.control("faults", provider=0, drop=2, path="/log")
    text, offsets = "", []
    with anyio.fail_after(30):
        async with broker.fine_tuning.follow_log(provider, task) as pieces:
            async for piece in pieces:
                text += piece.text
                offsets.append(piece.offset)
                if "Training completed" in text:
                    break
    assert text == (await broker.fine_tuning.get_log(provider, task))[: len(text)]
    assert offsets == sorted(offsets)
    late = broker.fine_tuning.follow_log(provider, task, offset=10**6)  # longer than the log: it was truncated
    assert (await anext(late)).offset == 0
    devnet.control("faults", provider=0, drop=-1, path="/task")
    with pytest.raises(ProviderUnavailableError), anyio.fail_after(60):
        async for _ in broker.fine_tuning.follow_log(provider, task, offset=10**3):
            pass


async def ended(quiet, seconds):
    """Wait until only the tasks of before are left; return what else is after so many seconds."""
    gc.collect()  # a cancelled loop's watch may hang in the exception's frames until then
    left = set()
    with anyio.move_on_after(seconds):
        while left := asyncio.all_tasks() - quiet:
            await asyncio.sleep(0.02)
    return left


@pytest.mark.goal("WAT-06")
async def test_leaving_at_any_point_leaves_no_task_and_never_touches_the_job(devnet, provider, dataset, tmp_path):
    key = new_key(devnet)
    async with open_broker(devnet, key, tmp_path / "s") as broker:
        await broker.ledger.ensure_funded(provider, "fine-tuning", "1")
        hash_ = (await broker.fine_tuning.upload_dataset_to_tee(provider, dataset)).dataset_hash
        task = await broker.fine_tuning.create_task(provider, MODEL, hash_, PARAMS)
        quiet = asyncio.all_tasks()
        async for _ in broker.fine_tuning.watch_task(provider, task):
            break
        async with broker.fine_tuning.watch_task(provider, task) as watch:
            await anext(watch)
        for delay in (0.0, 0.001, 0.005, 0.02, 0.1, 0.3):
            with anyio.move_on_after(delay):
                async for _ in broker.fine_tuning.watch_task(provider, task):
                    pass
        assert await ended(quiet, 1) == set()
        assert (await broker.fine_tuning.wait_task(provider, task)).state is TaskProgress.DELIVERED


async def test_closing_the_broker_ends_its_watches_with_a_plain_word(devnet, provider, task, key, tmp_path):
    other = open_broker(devnet, key, tmp_path / "other")
    async with other:
        watch = other.fine_tuning.watch_task(provider, task)
        await anext(watch)
        await other.aclose()
    with pytest.raises(ClosedError):
        async for _ in watch:
            pass
    with pytest.raises(ClosedError):
        await anext(other.fine_tuning.watch_task(provider, task))


@pytest.mark.goal("WAT-08")
async def test_a_restarted_provider_that_calls_a_delivery_failed_is_not_believed(
    devnet, broker, provider, task, tmp_path
):
    seen = []

    async def read():
        async for change in broker.fine_tuning.watch_task(provider, task):
            seen.append(change)

    with anyio.fail_after(30):
        async with anyio.create_task_group() as group:
            group.start_soon(read)
            await broker.fine_tuning.wait_task(provider, task)
            devnet.control("restart", provider=0)
            while not any(isinstance(c, DeliveredProviderLostState) for c in seen):
                await asyncio.sleep(0.02)
            group.cancel_scope.cancel()
    assert TaskProgress.FAILED not in states(seen)
    assert [c.source for c in seen if isinstance(c, TaskStateChanged) and c.state is TaskProgress.DELIVERED] == [
        "chain"
    ]
    fresh = await collect(broker, provider, task, until=lambda c: isinstance(c, DeliveredProviderLostState))
    assert states(fresh) == [TaskProgress.DELIVERED]


async def test_failed_without_a_delivery_ends_the_watch(devnet, broker, provider, dataset):
    devnet.control("settings", provider=0, train_seconds=20.0)
    try:
        await broker.ledger.ensure_funded(provider, "fine-tuning", "1")
        hash_ = (await broker.fine_tuning.upload_dataset_to_tee(provider, dataset)).dataset_hash
        task = await broker.fine_tuning.create_task(provider, MODEL, hash_, PARAMS)
        await broker.fine_tuning.wait_task(provider, task, TaskProgress.TRAINING)
        devnet.control("restart", provider=0)
        with pytest.raises(TaskFailedError):
            await broker.fine_tuning.wait_task(provider, task)
        assert states(await collect(broker, provider, task)) == [TaskProgress.FAILED]
    finally:
        devnet.control("settings", provider=0, train_seconds=0.0)


async def test_an_unknown_task_is_an_error_and_not_a_wait(broker, provider):
    await broker.ledger.ensure_funded(provider, "fine-tuning", "1")
    with pytest.raises(TaskNotFoundError), anyio.fail_after(10):
        await broker.fine_tuning.wait_task(provider, "00000000-0000-4000-8000-000000000000")


@pytest.mark.goal("WAT-09")
async def test_two_hundred_watches_share_one_poller_that_keeps_its_rate(
    devnet, provider, dataset, tmp_path, monkeypatch
):
    policy = PollPolicy(first=0.1, longest=0.1, growth=1.0, rate=10.0)
    asked = []
    call = ProviderClient._call

    async def counted(self, method, path, **options):
        asked.append(path)
        return await call(self, method, path, **options)

    devnet.control("settings", provider=0, train_seconds=20.0)
    keys = [new_key(devnet) for _ in range(4)]
    try:
        async with open_broker(devnet, None, tmp_path, private_keys=keys, polling=policy) as first:
            tasks = []
            for wallet in first.wallets:
                view = first.using(wallet)
                await view.ledger.ensure_funded(provider, "fine-tuning", "1")
                hash_ = (await view.fine_tuning.upload_dataset_to_tee(provider, dataset)).dataset_hash
                tasks.append((view, await view.fine_tuning.create_task(provider, MODEL, hash_, PARAMS)))
            monkeypatch.setattr(ProviderClient, "_call", counted)

            async def watch(view, task):
                async for _ in view.fine_tuning.watch_task(provider, task):
                    pass

            with anyio.move_on_after(3):
                async with anyio.create_task_group() as group:
                    for view, task in tasks * 50:
                        group.start_soon(watch, view, task)
            assert 8 <= len(asked) <= 3 * policy.rate + 4
            assert {path.split("/")[3] for path in asked} == {*first.wallets, "pending"}
    finally:
        devnet.control("restart", provider=0)
        devnet.control("settings", provider=0, train_seconds=0.0)


@pytest.mark.goal("WAT-02", part="warning")
async def test_an_unreachable_provider_is_a_warning_while_the_chain_still_tells(devnet, broker, provider, task):
    await broker.fine_tuning.wait_task(provider, task)
    devnet.control("stop", provider=0)
    try:
        changes = await collect(broker, provider, task, until=lambda c: isinstance(c, WatchWarning))
        assert states(changes) == [TaskProgress.DELIVERED]
        checked(changes, task, {"watch_warning"})
    finally:
        devnet.control("start", provider=0)


@pytest.mark.goal("WAT-02", part="deadline")
async def test_reminders_of_the_deadline_are_changes_like_the_others(broker, provider, task, monkeypatch):
    await broker.fine_tuning.wait_task(provider, task)
    hub = broker.fine_tuning._hub
    window = (await broker.fine_tuning.get_delivery_terms()).window
    now = type(hub).chain_now
    monkeypatch.setattr(hub, "chain_now", lambda: now(hub) + dt.timedelta(seconds=0.97 * window))
    changes = await collect(broker, provider, task, until=lambda c: getattr(c, "percent", 0) == 95)
    checked(changes, task, {"ack_deadline_near"})
    assert [c.percent for c in changes if isinstance(c, AckDeadlineNear)] == [50, 80, 95]
