"""A job against a scripted world: whatever happens at any point, it ends with one task, each transaction once and the
right adapter."""

import asyncio
from pathlib import Path

import anyio
import pytest

from tests.fault.world import TRANSACTIONS, Process, World, crash_at, lose_at
from zg_async.jobs.runner import JobRunner
from zg_async.jobs.sqlite import SqliteStore
from zg_async.jobs.store import Journal, MemoryStore


class Case:
    """A fresh world with a journal."""

    def __init__(self, folder: Path, *, sqlite: bool = False) -> None:
        folder.mkdir()
        self.world = World(folder)
        self.journal = Journal()
        self.path = folder / "jobs.sqlite" if sqlite else None

    def store(self):
        return MemoryStore(self.journal) if self.path is None else SqliteStore(self.path)

    async def run(self, fail=None, **changes):
        self.process = Process(self.world, fail)
        return await self.process.run(self.world.spec(**changes), self.store())


async def points_of(folder: Path) -> list[str]:
    case = Case(folder)
    case.world.check(await case.run(), transactions=TRANSACTIONS)
    return case.process.points


async def test_an_undisturbed_job_ends_with_its_adapter(tmp_path):
    points = await points_of(tmp_path / "0")
    assert points.count("before commit") == points.count("after commit") > 15
    assert "before post task" in points


@pytest.mark.slow
@pytest.mark.goal("DUR-02", part="every point, scripted world")
async def test_a_crash_at_any_point_changes_nothing(tmp_path):
    whole = Case(tmp_path / "whole")
    expected = await whole.run()
    for number, name in enumerate(whole.process.points, 1):
        case = Case(tmp_path / str(number))
        await case.run(crash_at(number))
        result = await case.run()
        case.world.check(result, transactions=TRANSACTIONS)
        assert case.world.posts == 1, name
        assert result.transactions == expected.transactions, name


@pytest.mark.slow
async def test_a_crash_at_any_commit_is_survived_by_the_file(tmp_path):
    points = await points_of(tmp_path / "whole")
    for number, name in enumerate(points, 1):
        if name in ("after commit", "after post task"):
            case = Case(tmp_path / str(number), sqlite=True)
            await case.run(crash_at(number))
            case.world.check(await case.run(), transactions=TRANSACTIONS)


@pytest.mark.slow
@pytest.mark.goal("RUN-05", part="ambiguous create, scripted world")
async def test_a_request_or_answer_lost_at_any_point_changes_nothing(tmp_path):
    for number, name in enumerate(await points_of(tmp_path / "whole"), 1):
        case = Case(tmp_path / str(number))
        result = await case.run(lose_at(number))
        if result is None:
            pytest.fail(name)
        case.world.check(result, transactions=TRANSACTIONS)


@pytest.mark.slow
@pytest.mark.goal("RUN-14", part="leaving the block at any point")
async def test_cancelled_at_any_await_a_run_leaves_no_child_and_a_journal_that_goes_on(tmp_path):
    before = asyncio.all_tasks()
    for number, name in enumerate(await points_of(tmp_path / "whole"), 1):
        case = Case(tmp_path / str(number))
        with anyio.CancelScope() as scope:

            def fail(process, count, _, number=number, scope=scope):
                if count == number:
                    scope.cancel()

            process = Process(case.world, fail)
            async with JobRunner(process.broker, case.store()) as runner:
                await runner.run_job(case.world.spec())
        assert asyncio.all_tasks() == before, name
        case.world.check(await case.run(), transactions=TRANSACTIONS)
