"""The runner over a scripted world: what users are promised, and what they are told when it goes wrong."""

import json
import logging
import sqlite3
import threading
from collections import Counter
from pathlib import Path

import anyio
import pytest

from tests.fault.world import FEE, GAS, PROVIDERS, SIGNER, TRANSACTIONS, WALLET, FakeChain, Process, World, crash_at
from zg_async.errors import (
    ClosedError,
    ConfigError,
    DatasetError,
    HashMismatchError,
    InsufficientBalanceError,
    JobCancelledError,
    JobFailedError,
    JournalError,
    LedgerExistsError,
    LimitError,
    ProviderUnavailableError,
    RpcError,
    TaskFailedError,
    TrainingParamsError,
)
from zg_async.jobs import delivering, preparing
from zg_async.jobs import events as e
from zg_async.jobs.batch import state_cost
from zg_async.jobs.driver import VIEW_TRIES
from zg_async.jobs.runner import JobRunner
from zg_async.jobs.sqlite import SqliteStore
from zg_async.jobs.state import JobStatus
from zg_async.jobs.store import Journal, MemoryStore
from zg_async.wire.records import TaskProgress


@pytest.fixture
def world(tmp_path) -> World:
    return World(tmp_path)


@pytest.fixture
def journal() -> Journal:
    return Journal()


@pytest.fixture
def runner(world, journal):
    return lambda fail=None: JobRunner(Process(world, fail).broker, MemoryStore(journal))


def kinds(events) -> list[str]:
    return [event.kind for event in events]


async def collect(handle, after=0) -> list[e.Event]:
    return [event async for event in handle.events(after=after)]


# ---- one call


@pytest.mark.goal("RUN-01", part="stages in order, scripted world")
async def test_run_job_goes_from_coins_to_a_deployed_adapter(world, runner):
    async with runner() as run:
        result = await run.run_job(world.spec())
    world.check(result, transactions=TRANSACTIONS)
    assert result.adapter_name == "ft-00000000-000"


@pytest.mark.goal("DEL-08", part="an adapter that may not load is told, and kept")
@pytest.mark.parametrize(("broken", "problem"), [("config", "no LoRA adapter"), ("weights", "no safetensors file")])
async def test_a_delivered_adapter_that_may_not_load_is_kept_and_told(world, runner, broken, problem):
    if broken == "config":
        world.config = "{}"
    else:
        world.encrypted = b"encrypted " * 50 + b"no weights"
    async with runner() as run:
        job = await run.submit(world.spec(deploy=False))
        result = await job.result()
        warnings = [event for event in await collect(job) if isinstance(event, e.JobWarned)]
    assert [warning.code for warning in warnings] == ["adapter"]
    assert problem in warnings[0].message
    manifest = json.loads((Path(result.adapter_path) / "zg_job.json").read_text())
    assert problem in manifest["problem"]


async def test_the_events_tell_the_whole_story_in_order(world, runner):
    async with runner() as run:
        events = await collect(await run.submit(world.spec()))
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    assert all(event.at is not None for event in events)
    assert kinds(events) == [
        "job_submitted",
        "dataset_checked",
        "provider_chosen",
        "cost_estimated",
        "provider_funded",
        "provider_funded",
        "provider_acknowledged",
        "dataset_uploaded",
        "task_requested",
        "task_created",
        *["task_progressed"] * 7,
        "task_delivered",
        "model_downloaded",
        "deliverable_acknowledged",
        "model_decrypted",
        "adapter_deployed",
        "job_succeeded",
    ]


async def test_without_deploy_nothing_is_paid_for_inference(world, runner):
    async with runner() as run:
        result = await run.run_job(world.spec(deploy=False))
    world.check(result, transactions=TRANSACTIONS - Counter({"transfer_fund": 1}))
    assert result.adapter_name is None
    assert not world.adapters


async def test_a_dataset_given_by_its_hash_is_not_uploaded(world, runner):
    async with runner() as run:
        await run.run_job(world.spec(dataset="0x" + "11" * 32))
    assert world.datasets == []
    assert world.tasks[0].dataset_hash == "0x" + "11" * 32


async def test_numbers_of_a_mapping_are_sent_without_exponent(world, runner):
    async with runner() as run:
        params = {**world.spec().training_params, "learning_rate": 1e-05}
        await run.run_job(world.spec(training_params=params))
    assert '"learning_rate":0.00001' in world.tasks[0].training_params.replace(" ", "")


# ---- detach, attach, resume


async def test_leaving_the_runner_detaches_and_the_next_one_goes_on(world, runner):
    async with runner() as run:
        handle = await run.submit(world.spec())
        async with handle.events() as events:
            async for event in events:
                if event.kind == "task_created":
                    break
    assert world.task(world.tasks[0].id).progress is not TaskProgress.FINISHED
    async with runner() as run:
        result = await (await run.attach(handle.id)).result()
    world.check(result, transactions=TRANSACTIONS)


@pytest.mark.goal("RUN-04", part="two runners on one journal")
async def test_an_ended_job_gives_the_same_result_to_everybody_who_attaches(world, tmp_path):
    path = tmp_path / "jobs.sqlite"
    async with JobRunner(Process(world).broker, SqliteStore(path)) as run:
        handle = await run.submit(world.spec())
        result = await handle.result()
        async with JobRunner(Process(world).broker, SqliteStore(path)) as observer:
            assert await (await observer.attach(handle.id)).result() == result
    async with JobRunner(Process(world).broker, SqliteStore(path)) as later:
        assert await (await later.attach(handle.id)).result() == result


async def test_an_observer_follows_but_can_neither_submit_nor_cancel(world, journal, runner):
    async with runner() as run, JobRunner(Process(world).broker, MemoryStore(journal)) as observer:
        handle = await run.submit(world.spec())
        await handle.result()
        seen = await observer.attach(handle.id)
        assert await seen.status() is JobStatus.SUCCEEDED
        for call in (observer.submit(world.spec()), observer.resume(handle.id), seen.cancel()):
            with pytest.raises(JournalError, match="another process"):
                await call


async def test_events_after_a_number_begin_behind_it(world, runner):
    async with runner() as run:
        handle = await run.submit(world.spec())
        events = await collect(handle)
        assert await collect(handle, after=5) == events[5:]
        assert await collect(handle, after=1000) == []


async def test_a_stream_left_half_way_leaves_the_job_alone(world, runner):
    async with runner() as run:
        handle = await run.submit(world.spec())
        async for _ in handle.events():
            break
        async with handle.events() as events:
            await anext(events)
        world.check(await handle.result(), transactions=TRANSACTIONS)


async def test_a_stream_ends_with_an_error_when_the_runner_is_left(world, runner):
    world.settles = False
    async with anyio.create_task_group() as group, runner() as run:
        handle = await run.submit(world.spec())

        async def follow():
            with pytest.raises(ClosedError):
                await collect(handle)

        group.start_soon(follow)
        while await handle.status() is JobStatus.QUEUED:
            await anyio.lowlevel.checkpoint()


async def test_leaving_the_runner_waits_for_threads_at_work(world, runner, monkeypatch):
    entered, leave, put = threading.Event(), threading.Event(), delivering._put_in_place

    def slow(*arguments):
        entered.set()
        leave.wait(5)
        return put(*arguments)

    monkeypatch.setattr(delivering, "_put_in_place", slow)
    async with runner() as run:
        handle = await run.submit(world.spec())
        await anyio.to_thread.run_sync(entered.wait)
        threading.Timer(0.05, leave.set).start()
    assert (world.folder / "out" / "adapter").exists()
    async with runner() as run:
        world.check(await (await run.attach(handle.id)).result(), transactions=TRANSACTIONS)


async def test_an_unknown_job_is_told(runner):
    async with runner() as run:
        with pytest.raises(JournalError, match="no job"):
            await run.attach("job-x")


async def test_a_runner_that_was_not_entered_says_so(world, runner):
    run = runner()
    with pytest.raises(ClosedError, match="async with"):
        await run.submit(world.spec())


# ---- the same job twice


@pytest.mark.goal("RUN-05", part="same spec and key")
async def test_the_same_specification_and_key_is_one_job_and_one_payment(world, runner):
    async with runner() as run:
        first = await run.submit(world.spec())
        second = await run.submit(world.spec())
        assert first.id == second.id
        await first.result()
        third = await run.submit(world.spec())
        assert await third.result() == await first.result()
    world.check(await third_result(world, runner), transactions=TRANSACTIONS)


async def third_result(world, runner):
    async with runner() as run:
        return await run.run_job(world.spec())


async def test_the_same_key_submitted_at_the_same_time_is_one_job(world, runner):
    ids = set()
    async with runner() as run:

        async def submit():
            ids.add((await run.submit(world.spec())).id)

        async with anyio.create_task_group() as group:
            for _ in range(4):
                group.start_soon(submit)
        (job_id,) = ids
        await (await run.attach(job_id)).result()
    assert world.posts == 1


async def test_parameters_spelled_otherwise_are_the_same_specification(world, runner):
    params = world.spec().training_params
    async with runner() as run:
        first = await run.submit(world.spec(training_params=json.dumps(params, indent=1)))
        second = await run.submit(world.spec(training_params=params))
        assert first.id == second.id


async def test_a_key_with_another_specification_is_refused(world, runner):
    async with runner() as run:
        await run.submit(world.spec())
        with pytest.raises(ConfigError, match="another specification"):
            await run.submit(world.spec(deploy=False))


async def test_a_keyed_job_whose_journal_is_gone_is_known_by_its_transactions_and_not_trained_twice(world, runner):
    async with runner() as run:
        first = await run.run_job(world.spec(output_dir=world.folder / "a"))
    paid = list(world.transactions)
    async with JobRunner(Process(world).broker, MemoryStore()) as run:
        again = await run.run_job(world.spec(output_dir=world.folder / "b"))
    assert (again.job_id, again.task_id, again.transactions) == (first.job_id, first.task_id, first.transactions)
    assert world.transactions == paid
    assert world.posts == 1


# ---- refused before anything happens


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"model": ""}, ConfigError),
        ({"dataset": "missing.jsonl"}, ConfigError),
        ({"training_params": "missing.json"}, ConfigError),
        ({"training_params": '{"learning_rate": 1e-05}'}, TrainingParamsError),
        ({"training_params": {}}, TrainingParamsError),
        ({"budget": 0.1}, ConfigError),
        ({"max_spend": "-1"}, ConfigError),
        ({"wallet": "0x3C44CdDdB6a900fa2b585dd299e03d12FA4293BC"}, ConfigError),
        ({"provider": "0x12"}, ConfigError),
        ({"key": ""}, ConfigError),
        ({"output_dir": "/proc/nowhere/out"}, ConfigError),
    ],
)
async def test_what_cannot_be_used_is_refused_and_leaves_no_trace(world, journal, runner, changes, error):
    async with runner() as run:
        with pytest.raises(error):
            await run.submit(world.spec(**changes))
        assert await run.list_jobs() == ()
    assert journal.rows == []
    assert world.transactions == []


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"not json\n", b'{"text": "x"}\n'])
async def test_a_bad_dataset_is_refused_before_money_moves(world, journal, runner, content):
    (world.folder / "train.jsonl").write_bytes(content)
    async with runner() as run:
        with pytest.raises(DatasetError):
            await run.submit(world.spec())
    assert journal.rows == []
    assert world.transactions == []


async def test_an_adapter_that_is_there_already_is_not_overwritten(world, runner):
    (world.folder / "out" / "adapter").mkdir(parents=True)
    async with runner() as run:
        with pytest.raises(ConfigError, match="exists already"):
            await run.submit(world.spec())


async def test_two_jobs_do_not_share_an_output_folder(world, runner):
    async with runner() as run:
        await run.submit(world.spec())
        with pytest.raises(ConfigError, match="writes to"):
            await run.submit(world.spec(key="other"))


async def test_a_wallet_that_cannot_decrypt_is_refused_before_it_pays(world, journal):
    broker = Process(world).broker
    broker.can_decrypt = False
    async with JobRunner(broker, MemoryStore(journal)) as run:
        with pytest.raises(ConfigError, match="can't decrypt"):
            await run.submit(world.spec())


async def test_an_unregistered_provider_is_told(world, runner):
    async with runner() as run:
        with pytest.raises(JobFailedError) as caught:
            await run.run_job(world.spec(provider=SIGNER))
    assert (caught.value.stage, caught.value.error_code) == ("choose_provider", "config")
    assert world.transactions == []


# ---- providers and turns


async def test_the_cheapest_free_provider_is_chosen(world, runner):
    world.prices = {PROVIDERS[0]: 5, PROVIDERS[1]: 4}
    async with runner() as run:
        assert (await run.run_job(world.spec())).provider == PROVIDERS[1]


async def test_a_provider_with_a_strangers_open_task_is_passed_over(world, runner):
    world.prices = {PROVIDERS[0]: 5, PROVIDERS[1]: 4}
    world.create(PROVIDERS[1], 1, "0x" + "22" * 32, "{}")
    async with runner() as run:
        assert (await run.run_job(world.spec())).provider == PROVIDERS[0]


async def test_a_provider_that_was_passed_over_is_asked_again_while_the_job_waits_elsewhere(world, runner, monkeypatch):
    monkeypatch.setattr(preparing, "_LOOK_AGAIN", 0.01)
    world.create(PROVIDERS[1], 1, "0x" + "22" * 32, "{}")
    async with runner() as run:
        run._scheduler.admit("job-for-ever", WALLET, PROVIDERS[0])
        handle = await run.submit(world.spec())
        async for event in handle.events():
            if isinstance(event, e.JobQueued):
                break
        world.tasks.clear()
        result = await handle.result()
    assert result.provider == PROVIDERS[1]


async def test_jobs_at_one_provider_take_turns(world, runner):
    async with runner() as run:
        handles = [
            await run.submit(world.spec(key=f"k{n}", output_dir=world.folder / str(n), provider=PROVIDERS[0]))
            for n in range(3)
        ]
        results = [await handle.result() for handle in handles]
        queued = [event for event in await collect(handles[2]) if isinstance(event, e.JobQueued)]
    assert len({result.task_id for result in results}) == 3
    assert [event.behind for event in queued] == [handles[1].id]
    assert world.posts == 3


class ReadsLate(MemoryStore):
    """Reads one job's events later than all others', as threads may."""

    late = ""

    async def read(self, job_id, after=0):
        for _ in range(100 * (job_id == self.late)):
            await anyio.lowlevel.checkpoint()
        return await super().read(job_id, after)


@pytest.mark.goal("DUR-02", part="two jobs of one pair: the one that may have a task keeps the turn")
async def test_after_a_restart_the_job_that_asked_for_a_task_goes_first_whoever_is_faster(world, journal):
    process = Process(world, lambda process, _, name: process.die() if name == "before post task" else None)
    specs = [world.spec(key=f"k{n}", output_dir=world.folder / str(n), provider=PROVIDERS[0]) for n in range(2)]
    submitted = anyio.Event()

    async def approve(_):
        await submitted.wait()
        return True

    async with JobRunner(process.broker, MemoryStore(journal), approve=approve) as run:
        handles = [await run.submit(spec) for spec in specs]
        with anyio.CancelScope() as scope:
            process.on_crash = scope.cancel
            submitted.set()
            await anyio.sleep_forever()
    asked = [row.job_id for row in journal.rows if row.kind == "task_requested"]
    store = ReadsLate(journal)
    store.late = asked[0]
    async with JobRunner(Process(world).broker, store) as run:
        for handle in handles:
            await (await run.attach(handle.id)).result()
    assert len(asked) == 1
    by_turn = sorted((handle.id for handle in handles), key=lambda job_id: job_id not in asked)
    order = [(row.kind, row.job_id) for row in journal.rows if row.kind in ("task_requested", "task_created")]
    assert order == [(kind, job_id) for job_id in by_turn for kind in ("task_requested", "task_created")]


async def test_a_request_that_was_refused_is_made_anew_once_a_later_task_is_settled(world, runner):
    later = 10**20

    def fail(process, _, name):
        if name == "before post task" and not world.tasks:
            world.create(PROVIDERS[0], later, "0x" + "22" * 32, "{}")
        if name == "after post task" or name == "before list":
            for task in world.tasks[:1]:
                world.set_task(task.id, TaskProgress.FINISHED)
                world.account_nonce = max(world.account_nonce, later)

    async with runner(fail) as run:
        handle = await run.submit(world.spec(provider=PROVIDERS[0]))
        result = await handle.result()
        asked = [event.request_nonce for event in await collect(handle) if event.kind == "task_requested"]
    assert [nonce > later for nonce in asked] == [False, True]
    assert world.task(result.task_id).request_nonce == asked[1]
    assert len(world.tasks) == 2


async def test_one_failing_job_leaves_the_others_alone(world, runner):
    world.fail_at = TaskProgress.TRAINING
    async with runner() as run:
        bad = await run.submit(world.spec(key="bad", output_dir=world.folder / "bad", provider=PROVIDERS[0]))
        with pytest.raises(JobFailedError):
            await bad.result()
        world.fail_at = None
        good = await run.run_job(world.spec(key="good", output_dir=world.folder / "good", provider=PROVIDERS[0]))
    assert good.fee == FEE


async def test_changed_terms_stop_the_job_and_are_shown(world, runner):
    def raise_price(process, count, name):
        if name == "after upload":
            world.prices[PROVIDERS[0]] = world.prices[PROVIDERS[1]] = 7

    async with runner(raise_price) as run:
        handle = await run.submit(world.spec())
        with pytest.raises(JobFailedError, match=r"price per token \(neuron\): 1000000000 -> 7") as caught:
            await handle.result()
        assert caught.value.error_code == "verification"
        assert world.posts == 0
        await run.resume(handle.id)
        with pytest.raises(JobFailedError):
            await handle.result()
        await run.resume(handle.id, accept_changes=True)
        world.check(await handle.result(), transactions=TRANSACTIONS)


def _price(world):
    world.prices[PROVIDERS[0]] = 7


def _url(world):
    world.urls[PROVIDERS[0]] = "https://other.example"


def _signer(world):
    world.signers[PROVIDERS[0]] = "0x" + "99" * 20


def _model(world):
    world.model_hash = "0xother"


def _nothing(world):
    del world.prices[PROVIDERS[0]]


@pytest.mark.goal("HRD-07", part="a change before create or before acknowledge stops with the difference")
@pytest.mark.parametrize("point", ["after upload", "after download"])
@pytest.mark.parametrize(
    ("change", "told"),
    [
        (_price, r"price per token \(neuron\): 1000000000 -> 7"),
        (_url, r"URL: https://p\.example -> https://other\.example"),
        (_signer, f"TEE signer: {SIGNER} -> 0x9999"),
        (_model, "model: 0xmodel -> 0xother"),
        (_nothing, "is not registered any more"),
    ],
)
async def test_what_the_provider_changes_stops_the_job_before_the_next_step_that_binds(
    world, runner, point, change, told
):
    def fail(process, _, name):
        if name == point:
            change(world)

    async with runner(fail) as run:
        handle = await run.submit(world.spec(provider=PROVIDERS[0]))
        with pytest.raises(JobFailedError, match=told) as caught:
            await handle.result()
        assert caught.value.error_code == ("service_not_found" if change is _nothing else "verification")
        assert world.posts == (point == "after download")
        assert not any(d.acknowledged for d in world.deliverables.values())
        if change is not _nothing:
            await run.resume(handle.id, accept_changes=True)
            assert (await handle.result()).fee


@pytest.mark.goal("HRD-07", part="the sub-account gets what the estimate says")
@pytest.mark.parametrize("price", [10**9, 10**16])
async def test_the_sub_account_gets_no_more_than_the_estimate_says_and_the_rest_is_asked_back(world, runner, price):
    world.prices = dict.fromkeys(PROVIDERS, price)
    account, moved = (PROVIDERS[0], "fine-tuning"), []
    async with runner() as run:
        handle = await run.submit(world.spec(provider=PROVIDERS[0], return_rest=True))
        async for event in handle.events():
            if event.kind == "cost_estimated":
                most = event.fee_high * 11 // 10
            moved.append(world.accounts.get(account, 0))
        await handle.result()
    assert 0 < max(moved) <= most
    assert world.refunds == {account: world.accounts[account]}
    assert [row.name for row in world.outbox.values()].count("retrieve_fund") == 1


async def test_money_that_cant_be_asked_back_is_a_warning(world, runner):
    def full(process, _, name):
        if name == "before outbox disk" and world.adapters:
            raise LimitError("five open refunds")

    async with runner(full) as run:
        handle = await run.submit(world.spec(provider=PROVIDERS[0], return_rest=True))
        await handle.result()
        assert [e.code for e in await collect(handle) if e.kind == "job_warned"] == ["rest_stays"]


async def test_a_model_that_is_gone_is_a_change_too(world, runner):
    def fail(process, _, name):
        if name == "after upload":
            world.model_hash = None

    async with runner(fail) as run:
        with pytest.raises(JobFailedError, match="model: 0xmodel -> none"):
            await run.run_job(world.spec(provider=PROVIDERS[0]))


# ---- things go wrong


async def test_a_failed_task_tells_why(world, runner):
    world.fail_at = TaskProgress.SET_UP
    world.log = (
        "[2027-01-15T08:00:00Z] creating task....\n[2027-01-15T08:00:01Z] setup failed: insufficient account balance "
        "after pending refund: required 20, available 10\n"
    )
    async with runner() as run:
        with pytest.raises(JobFailedError, match="insufficient account balance") as caught:
            await run.run_job(world.spec())
    assert isinstance(caught.value.__cause__, TaskFailedError)
    assert caught.value.error_code == "task_failed"
    assert "higher budget" in caught.value.hint


@pytest.mark.goal("DEL-02", part="job")
async def test_a_tampered_download_is_never_acknowledged_nor_retried(world, runner):
    def tamper(process, count, name):
        if name == "before download":
            world.encrypted = b"something else"

    async with runner(tamper) as run:
        handle = await run.submit(world.spec())
        with pytest.raises(JobFailedError) as caught:
            await handle.result()
        assert isinstance(caught.value.__cause__, HashMismatchError)
        assert "stage_retrying" not in kinds(await collect(handle))
    assert "acknowledge_deliverable" not in world.transactions


async def test_a_file_changed_after_its_check_is_not_acknowledged(world, runner):
    def tamper(process, count, name):
        if name == "after rename disk":
            next((world.folder / "out").glob(".zg-*/model.encrypted")).write_bytes(b"else")

    async with runner(tamper) as run:
        with pytest.raises(JobFailedError) as caught:
            await run.run_job(world.spec())
    assert caught.value.error_code == "hash_mismatch"
    assert "acknowledge_deliverable" not in world.transactions


async def test_a_dataset_changed_between_check_and_upload_is_not_trained_on(world, runner):
    def change(process, count, name):
        if name == "after quote":
            (world.folder / "train.jsonl").write_text('{"instruction": "x", "output": "y"}\n')

    async with runner(change) as run:
        with pytest.raises(JobFailedError) as caught:
            await run.run_job(world.spec())
    assert caught.value.error_code == "hash_mismatch"
    assert world.posts == 0


async def test_a_provider_that_stays_away_is_retried_with_events_and_then_given_up(world, runner):
    def away(process, count, name):
        if name == "before upload":
            raise ProviderUnavailableError("no answer", retry_after=30.0)

    async with runner(away) as run:
        handle = await run.submit(world.spec(failovers=0))
        with pytest.raises(JobFailedError) as caught:
            await handle.result()
        retries = [event for event in await collect(handle) if isinstance(event, e.StageRetrying)]
    assert caught.value.stage == "upload_dataset"
    assert [event.attempt for event in retries] == list(range(1, 12))
    waits = [(event.retry_at - event.at).total_seconds() for event in retries]
    assert waits[0] == 30.0
    assert max(waits) == 300.0


@pytest.mark.parametrize("noise", [-5.0, float("inf"), float("nan"), 1e9])
async def test_a_senseless_retry_after_is_noise(world, runner, noise):
    failures = iter([True])

    def once(process, count, name):
        if name == "before upload" and next(failures, False):
            raise ProviderUnavailableError("no answer", retry_after=noise)

    async with runner(once) as run:
        await run.run_job(world.spec())
    assert max(world.clock.slept) <= 600.0


async def test_a_clock_that_is_put_right_while_a_retry_is_recorded_makes_no_wait_of_a_day(world, journal, monkeypatch):
    failures, append = iter([True]), MemoryStore.append

    def once(process, count, name):
        if name == "before upload" and next(failures, False):
            raise ProviderUnavailableError("no answer")

    async def put_right(self, job_id, *events):
        if isinstance(events[0], e.StageRetrying):
            world.clock._now -= 86_400.0
        return await append(self, job_id, *events)

    monkeypatch.setattr(MemoryStore, "append", put_right)
    async with JobRunner(Process(world, once).broker, MemoryStore(journal)) as run:
        await run.run_job(world.spec())
    assert max(world.clock.slept) <= 300.0


async def test_a_transaction_mined_as_a_failure_is_sent_anew_under_another_key(world, runner):
    world.reverts = ["transfer_fund"]
    async with runner() as run:
        handle = await run.submit(world.spec())
        result = await handle.result()
        retries = [event for event in await collect(handle) if isinstance(event, e.StageRetrying)]
    assert [(event.stage, event.fresh) for event in retries] == [("fund", True)]
    assert Counter(world.transactions)["transfer_fund"] == 3
    assert len(result.transactions) == len(world.transactions)  # the failed one cost gas too
    assert retries[0].transactions[-1].tx_hash in result.transactions


async def test_a_failed_transaction_that_a_reorganisation_lets_succeed_is_not_sent_anew(world, runner, monkeypatch):
    world.reverts = ["acknowledge_deliverable"]

    async def revived(self, tx_hash):
        (row,) = (row for row in self.world.outbox.values() if row.receipt.tx_hash == tx_hash)
        row.reverted = False
        row.effect()

    monkeypatch.setattr(FakeChain, "wait_final", revived)
    async with runner() as run:
        handle = await run.submit(world.spec())
        await handle.result()
        retries = [event for event in await collect(handle) if isinstance(event, e.StageRetrying)]
    assert [(event.stage, event.fresh) for event in retries] == [("acknowledge_deliverable", False)]
    assert Counter(world.transactions)["acknowledge_deliverable"] == 1


async def test_a_transaction_that_always_fails_is_given_up(world, runner):
    world.reverts = ["acknowledge_deliverable"] * 9
    async with runner() as run:
        handle = await run.submit(world.spec())
        with pytest.raises(JobFailedError) as caught:
            await handle.result()
        state = await handle.state()
    assert caught.value.stage == "acknowledge_deliverable"
    assert Counter(world.transactions)["acknowledge_deliverable"] == 3
    assert len(state.paid) == len(world.transactions)
    assert state_cost(state) == GAS * len(world.transactions)


@pytest.mark.parametrize("times", [2, 99])
async def test_a_senseless_answer_of_the_node_is_taken_for_a_passing_one_a_few_times(world, runner, times):
    left = [times]

    def senseless(process, count, name):
        if name == "before deploy" and left[0]:
            left[0] -= 1
            raise RpcError("the node sent 'None' where bytes should be")

    async with runner(senseless) as run:
        handle = await run.submit(world.spec())
        if times == 2:
            await handle.result()
        else:
            with pytest.raises(JobFailedError, match="'None'"):
                await handle.result()
        retries = [event for event in await collect(handle) if isinstance(event, e.StageRetrying)]
    assert len(retries) == min(times, VIEW_TRIES)


async def test_a_failed_job_goes_on_where_it_failed(world, runner):
    def break_once(process, count, name):
        if name == "before deploy":
            raise ConfigError("no GPU today")

    async with runner(break_once) as run:
        handle = await run.submit(world.spec())
        with pytest.raises(JobFailedError):
            await handle.result()
    async with runner() as run:
        assert await (await run.attach(handle.id)).status() is JobStatus.FAILED
        world.check(await (await run.resume(handle.id)).result(), transactions=TRANSACTIONS)


async def test_a_job_resumed_at_once_in_the_same_runner_goes_on(world, runner):
    failures = iter([True])

    def break_once(process, count, name):
        if name == "before deploy" and next(failures, False):
            raise ConfigError("no GPU today")

    async with runner(break_once) as run:
        handle = await run.submit(world.spec())
        with pytest.raises(JobFailedError):
            await handle.result()
        world.check(await (await run.resume(handle.id)).result(), transactions=TRANSACTIONS)


async def test_a_bug_in_a_stage_ends_only_that_job(world, runner, caplog):
    def bug(process, count, name):
        if name == "before quote":
            raise ZeroDivisionError("oops")

    async with runner(bug) as run:
        with caplog.at_level(logging.CRITICAL), pytest.raises(JobFailedError, match="ZeroDivisionError") as caught:
            await run.run_job(world.spec())
    assert caught.value.error_code == "internal"


async def test_what_cannot_be_recorded_is_not_done(world, journal):
    process = Process(world)
    store = MemoryStore(journal)
    append = store.append

    async def full(job_id, *events):
        if any(event.kind == "task_requested" for event in events):
            raise JournalError("disk full")
        return await append(job_id, *events)

    store.append = full
    async with JobRunner(process.broker, store) as run:
        handle = await run.submit(world.spec())
        with pytest.raises(JournalError, match="disk full"):
            await handle.result()
    assert world.posts == 0
    world.check(await Process(world).run(world.spec(), MemoryStore(journal)), transactions=TRANSACTIONS)


async def test_a_job_with_events_of_a_newer_version_is_not_driven(world, journal, runner):
    await Process(world, crash_at(30)).run(world.spec(), MemoryStore(journal))
    journal.rows.append(
        e.UnknownEvent(seq=len(journal.rows) + 1, job_id=journal.rows[0].job_id, kind="job_levitated", body={})
    )
    async with runner() as run:
        with pytest.raises(JournalError, match="newer version"):
            await (await run.attach(journal.rows[0].job_id)).result()


# ---- caps


@pytest.mark.goal("RUN-03", part="refuses to start")
async def test_a_job_that_may_cost_more_than_its_cap_is_refused_before_it_pays(world, runner):
    async with runner() as run:
        with pytest.raises(JobFailedError) as caught:
            await run.run_job(world.spec(max_spend=1))
    assert isinstance(caught.value.__cause__, LimitError)
    assert world.transactions == []


@pytest.mark.goal("RUN-12", part="cancelled while it is allowed")
async def test_a_task_that_turns_out_dearer_than_the_cap_is_cancelled(world, runner):
    async with runner() as run:
        with pytest.raises(JobFailedError, match="cancelled") as caught:
            await run.run_job(world.spec(max_spend=FEE, budget=FEE // 2))
    assert caught.value.error_code == "limit"
    assert world.tasks[0].progress is TaskProgress.FAILED


# ---- cancel


@pytest.mark.parametrize(
    ("kind", "tasks"), [("job_submitted", 0), ("provider_chosen", 0), ("task_requested", 1), ("task_created", 1)]
)
async def test_a_job_is_cancelled_while_the_provider_allows_it(world, runner, kind, tasks):
    async with runner() as run:
        handle = await run.submit(world.spec())
        async with handle.events() as events:
            async for event in events:
                if event.kind == kind:
                    break
        assert await handle.cancel()
        with pytest.raises(JobCancelledError):
            await handle.result()
        assert not await handle.cancel() or await handle.status() is JobStatus.CANCELLED
    assert len(world.tasks) <= tasks
    assert all(task.progress is TaskProgress.FAILED for task in world.tasks)


async def test_a_job_that_trains_already_is_not_cancelled_and_goes_on(world, runner):
    async with runner() as run:
        handle = await run.submit(world.spec())
        async with handle.events() as events:
            async for event in events:
                if isinstance(event, e.TaskProgressed) and event.progress is TaskProgress.TRAINING:
                    break
        assert not await handle.cancel()
        world.check(await handle.result(), transactions=TRANSACTIONS)


async def test_a_cancellation_is_finished_by_the_next_process(world, journal, runner):
    handle_id = None
    async with runner() as run:
        handle = await run.submit(world.spec())
        handle_id = handle.id
        async with handle.events() as events:
            async for event in events:
                if event.kind == "task_created":
                    break
    journal.rows.append(e.CancelRequested(seq=len(journal.rows) + 1, job_id=handle_id))
    async with runner() as run:
        with pytest.raises(JobCancelledError):
            await (await run.attach(handle_id)).result()
    assert world.tasks[0].progress is TaskProgress.FAILED


# ---- damage


async def damaged(world, path, until: str) -> None:
    """Run until an event is recorded, then lose it and everything since the dataset was uploaded."""

    def stop(process, count, name):
        if name == until:
            process.die()

    await Process(world, stop).run(world.spec(), SqliteStore(path))
    db = sqlite3.connect(path)
    db.execute(
        "delete from event where kind in ('task_requested', 'task_created', 'task_progressed', 'task_delivered')"
    )
    db.commit()
    db.close()


@pytest.mark.goal("DUR-01", part="a damaged journal is noticed and reconciled before anything is signed")
@pytest.mark.parametrize("until", ["after post task", "after poll", "before download"])
async def test_a_damaged_journal_drives_nothing_until_reconciled_and_then_creates_no_second_task(
    world, tmp_path, until
):
    path = tmp_path / "jobs.sqlite"
    await damaged(world, path, until)
    async with JobRunner(Process(world).broker, SqliteStore(path)) as run:
        with pytest.raises(JournalError, match="damaged"):
            await run.submit(world.spec())
        before = list(world.transactions)
        await anyio.wait_all_tasks_blocked()
        assert world.transactions == before
        await run.reconcile()
        world.check(await run.run_job(world.spec()), transactions=TRANSACTIONS)
    assert world.posts == 1


async def test_a_journal_that_lost_everything_finds_its_job_again_by_its_key(world, tmp_path):
    path = tmp_path / "jobs.sqlite"

    def stop(process, count, name):
        if name == "before download":
            process.die()

    await Process(world, stop).run(world.spec(), SqliteStore(path))
    path.unlink()
    async with JobRunner(Process(world).broker, SqliteStore(path)) as run:
        with pytest.raises(JournalError, match="damaged"):
            await run.submit(world.spec())
        await run.reconcile()
        world.check(await run.run_job(world.spec()), transactions=TRANSACTIONS)
    assert world.posts == 1


async def test_of_several_tasks_that_may_be_its_own_none_is_taken(world, journal, runner):
    await Process(world, lambda p, n, name: p.die() if name == "after upload" else None).run(
        world.spec(), MemoryStore(journal)
    )
    for nonce in (1, 2):
        _, root = world.datasets[0]
        task = world.create(PROVIDERS[1], nonce, root, journal.rows[0].spec.training_params)
        world.set_task(task.id, TaskProgress.FINISHED)
    journal.rows.append(e.JobReconciled(seq=len(journal.rows) + 1, job_id=journal.rows[0].job_id))
    async with runner() as run:
        with pytest.raises(JournalError, match="any of these tasks"):
            await (await run.attach(journal.rows[0].job_id)).result()
    assert world.posts == 0


@pytest.mark.parametrize("error", [LedgerExistsError, InsufficientBalanceError])
async def test_funding_that_another_program_of_the_wallet_was_faster_with_is_planned_anew(world, journal, error):
    process = Process(world)
    fund, refused = process.broker.ledger.ensure_funded, []

    async def overtaken(*arguments, **options):
        if not refused:
            refused.append(error("the chain says no"))
            raise refused[0]
        return await fund(*arguments, **options)

    process.broker.ledger.ensure_funded = overtaken
    async with JobRunner(process.broker, MemoryStore(journal)) as runner:
        job = await runner.submit(world.spec())
        world.check(await job.result(), transactions=TRANSACTIONS)
        retries = [event.stage for event in await collect(job) if isinstance(event, e.StageRetrying)]
    assert (len(refused), retries) == (1, ["fund"])
