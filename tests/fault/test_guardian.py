"""The acknowledgement window against everything that goes wrong, in virtual time."""

import dataclasses
import datetime as dt
import random

import anyio
import anyio.to_thread
import pytest

from tests.fault.virtual_clock import VirtualClock, inline
from tests.fault.world import PARAMS, PROVIDERS, SIGNER, WINDOW, Process, World
from zg_async.errors import ChainUnavailableError, ProviderUnavailableError
from zg_async.jobs.events import JobMoved
from zg_async.jobs.runner import JobRunner
from zg_async.jobs.state import JobStatus
from zg_async.jobs.store import Journal, MemoryStore
from zg_async.wire.records import TaskProgress

SECONDS = WINDOW.total_seconds()
ROOT = "0x" + "11" * 32


@pytest.fixture(autouse=True)
def _no_threads(monkeypatch):
    monkeypatch.setattr(anyio.to_thread, "run_sync", inline)


class Case:
    """A delivered task, its window running, and a process that comes and goes."""

    def __init__(self, folder, *, foreign=True, **spec):
        folder.mkdir(exist_ok=True)
        self.world = World(folder)
        self.clock = self.world.clock = VirtualClock()
        self.world.guarded = True
        self.world.acknowledge = self.acknowledge
        self.journal = Journal()
        self.foreign, self.spec = foreign, spec
        self.acknowledged_at = None
        self.fails = lambda kind, part: False
        """Whether `rpc` or `provider` is out when so much of the window is over."""
        self.armed = False

    @property
    def start(self):
        return self.world.delivered_at.timestamp()

    @property
    def part(self):
        return (self.clock.now() - self.start) / SECONDS

    def acknowledge(self, task_id):
        self.acknowledged_at = self.part
        World.acknowledge(self.world, task_id)

    def fail(self, process, count, name):
        if not self.armed:
            return
        if ("rpc" in name or name.endswith(" poll")) and self.fails("rpc", self.part):
            raise ChainUnavailableError("no answer")
        if name.endswith((" download", " list")) and self.fails("provider", self.part):
            raise ProviderUnavailableError("no answer")

    def runner(self):
        return JobRunner(Process(self.world, self.fail).broker, MemoryStore(self.journal))

    async def deliver(self):
        """Let the provider deliver; a job of our own sees it, and its process ends there."""
        if self.foreign:
            task = self.world.create(PROVIDERS[0], 40, ROOT, "{}")
            while self.world.task(task.id).progress is not TaskProgress.DELIVERED:
                self.world.advance(task.id)
        else:
            delivered = lambda: any(e.kind == "task_delivered" for e in self.journal.rows)  # noqa: E731
            self.fails = lambda kind, part: bool(self.world.deliverables) and kind == "provider"
            self.armed = True
            async with self.runner() as runner:
                await runner.submit(self.world.spec(deploy=False, training_params=PARAMS, **self.spec))
                await self.clock.run_until(self.clock.now() + 300, delivered)
        self.armed, self.fails = True, lambda kind, part: False

    async def alive(self, begin, end):
        """Run a process for a part of the window; wait without one before."""
        await self.clock.run_until(self.start + begin * SECONDS)
        async with self.runner() as runner:
            await self.clock.run_until(self.start + end * SECONDS)
            return await runner.list_jobs()

    def events(self, kind):
        return [e for e in self.journal.rows if e.kind == kind]


def random_case(seed, folder):
    rng = random.Random(seed)
    case = Case(folder, foreign=rng.random() < 0.5)
    begin = rng.uniform(0.80, 0.985)
    end = begin + (1 - begin) * rng.uniform(0.3, 0.9)
    outages = {
        kind: [(a := rng.uniform(0, 1), a + rng.expovariate(4)) for _ in range(rng.randrange(6))]
        for kind in ("rpc", "provider")
    }
    if rng.random() < 0.5:
        outages[rng.choice(["rpc", "provider"])] = [(0.0, 2.0)]

    def fails(kind, part):
        return not begin <= part <= end and any(a <= part <= b for a, b in outages[kind])

    lives, at = [], 0.0
    while at < begin and rng.random() < 0.7:
        first = rng.uniform(at, begin)
        last = rng.uniform(first, end)
        lives.append((first, min(last, begin)))
        at = last
    lives.append((begin, end) if rng.random() < 0.5 or not lives else (max(lives.pop()[0], 0), end))
    return case, fails, lives


@pytest.mark.slow
@pytest.mark.goal("RUN-10")
async def test_alive_and_reachable_in_the_last_fifth_the_acknowledgement_lands_in_time(tmp_path):
    for seed in range(150):
        case, fails, lives = random_case(seed, tmp_path / str(seed))
        await case.deliver()
        case.fails = fails
        for begin, end in lives:
            await case.alive(begin, end)
        assert case.acknowledged_at is not None, f"seed {seed}: never acknowledged"
        assert case.acknowledged_at < 1, f"seed {seed}: at {case.acknowledged_at}"
        assert case.world.transactions.count("acknowledge_deliverable") == 1, f"seed {seed}"


async def test_a_task_nobody_accounts_for_is_adopted_and_brought_to_its_end(tmp_path):
    case = Case(tmp_path)
    await case.deliver()
    (state,) = await case.alive(0, 0.1)
    assert case.acknowledged_at < 0.01
    assert state.status is JobStatus.SUCCEEDED
    assert state.adopted
    assert state.spec.labels == {"adopted": "true"}
    assert state.result.adapter_path.startswith(str(tmp_path / "state" / "adopted"))
    assert case.world.transactions == ["acknowledge_deliverable"]


async def test_a_job_of_its_own_is_not_adopted(tmp_path):
    case = Case(tmp_path, foreign=False)
    await case.deliver()
    (state,) = await case.alive(0, 0.1)
    assert state.status is JobStatus.SUCCEEDED
    assert not state.adopted


@pytest.mark.parametrize("foreign", [True, False])
async def test_without_any_copy_it_is_acknowledged_when_the_window_is_about_to_close_and_says_so(tmp_path, foreign):
    case = Case(tmp_path, foreign=foreign)
    await case.deliver()
    case.fails = lambda kind, part: kind == "provider" and part < 1.2
    (state,) = await case.alive(0, 1)
    assert 0.949 < case.acknowledged_at < 0.97
    assert state.unverified
    (event,) = case.events("delivery_unverified")
    assert event.reason == "no answer"
    (state,) = await case.alive(1.3, 1.4)
    assert state.status is JobStatus.SUCCEEDED  # the provider came back: fetched and checked before it is opened


async def test_a_clock_that_is_set_right_during_the_last_attempt_gives_the_window_back(tmp_path):
    case = Case(tmp_path)
    await case.deliver()
    case.world.chain_ahead = 0.97 * SECONDS

    def fails(kind, part):
        if case.events("ack_deadline_near"):  # told just before the attempt
            case.world.chain_ahead = 0.0
        return kind == "provider" and part < 0.3

    case.fails = fails
    (state,) = await case.alive(0, 0.5)
    assert state.status is JobStatus.SUCCEEDED
    assert not case.events("delivery_unverified")
    assert 0.3 <= case.acknowledged_at < 0.45


@pytest.mark.goal("WAT-10", part="journal")
async def test_the_marks_of_the_window_are_told_once_with_what_missing_it_costs(tmp_path):
    case = Case(tmp_path)
    await case.deliver()
    case.fails = lambda kind, part: kind == "provider"
    for begin in (0, 0.3, 0.6, 0.9):
        await case.alive(begin, begin + 0.25)
    told = case.events("ack_deadline_near")
    assert [e.percent for e in told] == [50, 80, 95]
    for event in told:
        late = (event.at - case.world.delivered_at) / dt.timedelta(seconds=SECONDS) - event.percent / 100
        assert -1e-6 <= late < 0.11
    assert told[0].cost == "30 % of the fee (0.003 0G) and the decryption key"


async def test_a_job_may_forfeit_instead(tmp_path):
    case = Case(tmp_path, foreign=False, on_unverified="forfeit")
    await case.deliver()
    case.fails = lambda kind, part: kind == "provider"
    (state,) = await case.alive(0, 1)
    assert state.status is JobStatus.FAILED
    assert len(case.events("delivery_forfeited")) == 1
    assert case.acknowledged_at is None


async def test_a_wrong_copy_is_forfeited_and_never_acknowledged(tmp_path):
    case = Case(tmp_path)
    await case.deliver()
    case.world.encrypted = b"something else"
    (state,) = await case.alive(0, 1)
    assert case.acknowledged_at is None
    assert state.status is JobStatus.FAILED
    assert state.failure.code == "hash_mismatch"
    assert len(case.events("delivery_forfeited")) == 1


async def test_a_wrong_copy_is_acknowledged_at_the_end_if_the_job_says_so_and_never_opened(tmp_path):
    case = Case(tmp_path, foreign=False, on_unverified="acknowledge_unverified")
    await case.deliver()
    case.fails = lambda kind, part: False
    case.world.encrypted = b"something else"
    (state,) = await case.alive(0, 1)
    assert 0.949 < case.acknowledged_at < 0.97
    assert state.status is JobStatus.FAILED
    assert state.failure.stage == "decrypt_model"
    assert state.result is None


async def test_a_job_stopped_by_changed_terms_is_saved_at_the_last_mark(tmp_path):
    case = Case(tmp_path, foreign=False)
    await case.deliver()
    case.fails = lambda kind, part: False
    case.world.prices = {provider: 2 * price for provider, price in case.world.prices.items()}
    (state,) = await case.alive(0, 0.9)
    assert (state.status, state.failure.code) == (JobStatus.FAILED, "verification")
    assert case.acknowledged_at is None
    (state,) = await case.alive(0.9, 1)
    assert 0.949 < case.acknowledged_at < 0.97
    assert not state.unverified
    assert state.status is JobStatus.SUCCEEDED


@pytest.mark.goal("LED-10", part="guardian warns")
async def test_a_wallet_without_the_gas_to_acknowledge_is_told_once(tmp_path):
    case = Case(tmp_path)
    await case.deliver()
    case.world.balance = 100
    case.fails = lambda kind, part: kind == "provider"
    await case.alive(0, 0.2)
    (warning,) = case.events("job_warned")
    assert warning.code == "gas_reserve"
    assert "Send at least" in warning.hint


@pytest.mark.goal("RUN-13")
@pytest.mark.parametrize("change", ["another", "revoked"])
async def test_a_signer_that_changes_or_loses_its_approval_is_told_with_what_follows(tmp_path, change):
    case = Case(tmp_path)
    await case.deliver()
    case.fails = lambda kind, part: kind == "provider"
    await case.alive(0, 0.1)
    if change == "another":
        case.world.signers = dict.fromkeys(PROVIDERS, PROVIDERS[1])
    else:
        case.world.revoked = True
    await case.alive(0.1, 0.2)
    (warning,) = case.events("job_warned")
    assert warning.code == "signer"
    assert (PROVIDERS[1] if change == "another" else "approval") in warning.message
    assert SIGNER in warning.message
    assert "can't settle the task" in warning.message


async def test_deadlines_count_by_the_chains_clock_where_it_is_ahead(tmp_path):
    case = Case(tmp_path)
    await case.deliver()
    case.world.chain_ahead = 0.96 * SECONDS
    case.fails = lambda kind, part: kind == "provider"
    (state,) = await case.alive(0, 0.02)
    assert state.unverified
    assert case.acknowledged_at < 0.01
    assert [e.percent for e in case.events("ack_deadline_near")] == [50, 80, 95]


async def test_a_task_that_another_runner_with_a_journal_of_its_own_drives_is_left_to_it_while_it_lives(tmp_path):
    case, other = Case(tmp_path), Journal()
    case.world.stuck_at = TaskProgress.TRAINING
    async with JobRunner(Process(case.world).broker, MemoryStore(other)) as guard:
        async with case.runner() as first:
            job = await first.submit(case.world.spec(deploy=False))
            await case.clock.run_until(case.clock.now() + 600)
            assert await guard.list_jobs() == ()
            assert await job.status() is JobStatus.RUNNING
        await case.clock.run_until(case.clock.now() + 60)
        (adopted,) = await guard.list_jobs()
        assert adopted.adopted
        case.world.stuck_at = None
        await case.clock.run_until(case.clock.now() + 600)
        assert await (await guard.attach(adopted.job_id)).status() is JobStatus.SUCCEEDED
    assert case.world.transactions.count("acknowledge_deliverable") == 1
    assert not list((tmp_path / "state" / "runners").iterdir())


async def test_a_delivery_that_the_other_runner_doesnt_take_is_not_left_to_it_for_long(tmp_path):
    case, other = Case(tmp_path), Journal()

    async def never(request):
        if request.stage == "acknowledge_deliverable":
            await anyio.sleep_forever()
        return True

    broker = Process(case.world).broker
    async with JobRunner(broker, MemoryStore(case.journal), approve=never) as first:
        await first.submit(case.world.spec(deploy=False))
        async with JobRunner(Process(case.world).broker, MemoryStore(other)) as guard:
            await case.clock.run_until(case.clock.now() + 600)
            assert await guard.list_jobs() == ()
            await case.clock.run_until(case.clock.now() + 600)
            assert len(await guard.list_jobs()) == 1
    assert case.acknowledged_at is not None


class OldView:
    """A look that takes so long that the task's job has ended when it tells what it saw."""

    def __init__(self, broker, *, until):
        self.look, self.until = broker.fine_tuning.list_open_tasks, until
        self.told = []
        broker.fine_tuning.list_open_tasks = self.list_open_tasks

    async def list_open_tasks(self):
        found = await self.look()
        if found.tasks:
            await self.until()
            self.told.append(found)
        return found


async def test_a_job_that_ends_while_the_guardian_looks_is_not_adopted(tmp_path):
    case = Case(tmp_path, foreign=False)
    case.world.stuck_at = TaskProgress.TRAINING
    broker = Process(case.world).broker
    async with JobRunner(broker, MemoryStore(case.journal)) as runner:
        job = await runner.submit(case.world.spec(deploy=False))

        async def ended():
            case.world.stuck_at = None
            while not (await job.status()).is_terminal:
                await case.clock.sleep(0.1)

        view = OldView(broker, until=ended)
        await case.clock.run_until(case.clock.now() + 600, lambda: bool(view.told))
        await case.clock.run_until(case.clock.now() + 60)
        assert await job.status() is JobStatus.SUCCEEDED
        assert view.told[0].tasks[0].deliverable is None  # so it saw a task that was open
        assert [state.job_id for state in await runner.list_jobs()] == [job.id]


async def test_a_task_that_stays_open_though_its_job_was_cancelled_is_adopted_after_a_while(tmp_path):
    case = Case(tmp_path, foreign=False)
    case.world.stuck_at = TaskProgress.SETTING_UP
    async with case.runner() as runner:
        job = await runner.submit(case.world.spec(deploy=False))
        await case.clock.run_until(case.clock.now() + 60)
        cancelled = []

        async def cancel():
            cancelled.append(await job.cancel())

        async with anyio.create_task_group() as group:
            group.start_soon(cancel)
            await case.clock.run_until(case.clock.now() + 30, lambda: bool(cancelled))
        case.world.set_task((await job.state()).task_id, TaskProgress.TRAINING)  # the provider goes on with it
        case.world.stuck_at = None
        await case.clock.run_until(case.clock.now() + 60)
        assert len(await runner.list_jobs()) == 1
        await case.clock.run_until(case.clock.now() + 600)
        assert cancelled == [True]
        assert [(s.adopted, s.status) for s in await runner.list_jobs()] == [
            (False, JobStatus.CANCELLED),
            (True, JobStatus.SUCCEEDED),
        ]
    assert case.world.transactions.count("acknowledge_deliverable") == 1


async def test_an_acknowledged_delivery_whose_job_failed_later_is_not_resumed_on_an_old_view(tmp_path):
    case = Case(tmp_path, foreign=False)

    def fail(process, count, name):
        if name == "after decrypt disk":
            raise ProviderUnavailableError("no answer")

    case.world.stuck_at = TaskProgress.TRAINING
    broker = Process(case.world, fail).broker
    async with JobRunner(broker, MemoryStore(case.journal)) as runner:
        job = await runner.submit(case.world.spec(deploy=False, stages={"decrypt_model": {"attempts": 1}}))

        async def ended():
            case.world.stuck_at = None
            while not (await job.status()).is_terminal:
                await case.clock.sleep(0.1)

        view = OldView(broker, until=ended)
        await case.clock.run_until(case.clock.now() + 600, lambda: bool(view.told))
        view.told[0] = delivered = dataclasses.replace(
            view.told[0],
            tasks=tuple(
                dataclasses.replace(
                    task,
                    deliverable=dataclasses.replace(case.world.deliverables[task.task_id], acknowledged=False),
                )
                for task in view.told[0].tasks
            ),
        )

        async def look_again():
            return delivered

        broker.fine_tuning.list_open_tasks = look_again
        await case.clock.run_until(case.clock.now() + 60)
        assert await job.status() is JobStatus.FAILED
        assert case.events("job_resumed") == []


async def test_a_job_that_was_exported_is_left_to_the_other_machine_unless_that_lets_its_delivery_lie(tmp_path):
    case = Case(tmp_path, foreign=False)
    case.world.stuck_at = TaskProgress.TRAINING
    async with case.runner() as runner:
        job = await runner.submit(case.world.spec(deploy=False))
        await case.clock.run_until(case.clock.now() + 60)
        await runner._halt(job.id)
        await runner._store.append(job.id, JobMoved())
    case.world.stuck_at = None
    while not case.world.deliverables:
        case.world.advance(case.world.tasks[0].id)
    async with case.runner() as runner:
        await case.clock.run_until(case.clock.now() + 600)
        assert [state.moved for state in await runner.list_jobs()] == [True]
        assert case.acknowledged_at is None
        await case.clock.run_until(case.clock.now() + 600)
        assert [state.status for state in await runner.list_jobs()][1:] == [JobStatus.SUCCEEDED]
    assert case.acknowledged_at < 0.2
