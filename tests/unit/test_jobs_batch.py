"""A matrix of jobs: stable ids, each once, none stops another, and the results in three forms."""

import csv
import gc
import json
import tracemalloc
from collections import Counter

import anyio
import pytest

from tests.fault.world import FEE, GAS, PARAMS, PROVIDERS, Process, World
from zg_async.errors import ConfigError, JournalError
from zg_async.jobs import batch as batches
from zg_async.jobs.batch import Batch, BatchRow, expand, read_batch
from zg_async.jobs.runner import JobRunner
from zg_async.jobs.spec import read_spec
from zg_async.jobs.sqlite import SqliteStore
from zg_async.jobs.store import Journal, MemoryStore

OTHER = {**PARAMS, "num_train_epochs": 2}
LOG = "[2027-01-15T08:00:00Z] {'loss': 2.5, 'epoch': 0.1}\n[2027-01-15T08:00:01Z] {'loss': 1.25, 'epoch': 0.2}\n"


@pytest.fixture
def world(tmp_path) -> World:
    return World(tmp_path)


@pytest.fixture
def matrix(world):
    def make(**changes):
        fields = {
            "name": "sweep",
            "models": ["Qwen2.5-0.5B-Instruct"],
            "datasets": [world.folder / "train.jsonl"],
            "params": [PARAMS, OTHER],
            "output_dir": world.folder / "out",
        }
        return Batch(**(fields | changes))

    return make


def runner(world, journal=None, fail=None):
    return JobRunner(Process(world, fail).broker, MemoryStore(journal or Journal()))


@pytest.mark.goal("BAT-01", part="object")
def test_a_matrix_expands_into_jobs_whose_ids_follow_from_what_they_are(matrix):
    jobs = list(expand(matrix(models=["a", "b"])))
    assert [(j.model, json.loads(j.training_params)["num_train_epochs"]) for j in jobs] == [
        *(("a", 1), ("a", 2)),
        *(("b", 1), ("b", 2)),
    ]
    assert len({j.key for j in jobs}) == len({j.output_dir for j in jobs}) == 4
    larger = {j.key for j in expand(matrix(models=["c", "b", "a"], params=[OTHER, dict(reversed(PARAMS.items()))]))}
    assert {j.key for j in jobs} < larger
    assert not {j.key for j in expand(matrix(name="again"))} & larger
    wallets = ["0x" + f"{n:040x}" for n in range(3)]
    assert {(j.wallet, j.wallets) for j in expand(matrix(wallets=wallets))} == {(None, tuple(wallets))}


@pytest.mark.goal("BAT-01", part="file")
def test_a_file_is_the_same_matrix_with_paths_relative_to_it(world, tmp_path):
    (tmp_path / "params.json").write_text(json.dumps(OTHER))
    value = {
        "name": "sweep",
        "models": ["Qwen2.5-0.5B-Instruct"],
        "datasets": ["train.jsonl", "0x" + "11" * 32],
        "params": [PARAMS, "params.json"],
        "output_dir": "out",
        "max_spend": "2",
        "job": {"deploy": True},
    }
    path = tmp_path / "batch.json"
    path.write_text(json.dumps(value))
    jobs = list(expand(read_batch(path)))
    assert len(jobs) == 4
    assert jobs[0].dataset == str(tmp_path / "train.jsonl")
    assert jobs[2].dataset_root is not None
    assert all(j.deploy and j.batch_max_spend == "2" and j.batch == "sweep" for j in jobs)


def test_a_job_file_is_a_job_with_paths_relative_to_it_and_what_is_given_counts_instead(tmp_path):
    value = {"model": "m", "dataset": "train.jsonl", "training_params": PARAMS, "max_spend": "2", "labels": {"a": "b"}}
    path = tmp_path / "job.json"
    path.write_text(json.dumps(value))
    spec = read_spec(path, model="other", deploy=True)
    assert (spec.model, spec.deploy, spec.max_spend, spec.labels) == ("other", True, "2", {"a": "b"})
    assert (spec.dataset, spec.output_dir) == (str(tmp_path / "train.jsonl"), str(tmp_path / "out"))
    assert spec.training_params == PARAMS
    root = "0x" + "11" * 32
    path.write_text(json.dumps(value | {"dataset": root, "training_params": json.dumps(PARAMS), "output_dir": "/o"}))
    spec = read_spec(path)
    assert (spec.dataset_root, spec.training_params, spec.output_dir) == (root, json.dumps(PARAMS), "/o")


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[]", "no JSON object"),
        ("{", "isn't JSON"),
        ('{"model": "m", "dataset": "d"}', "lacks training_params"),
        ('{"model": "m", "dataset": "d", "training_params": "p", "speed": 1}', "no 'speed'"),
        ('{"model": "m", "dataset": 5, "training_params": "p"}', "dataset can't be 5"),
        ('{"model": "m", "dataset": "d", "training_params": "p", "deploy": "yes"}', "deploy can't be"),
    ],
)
def test_a_file_that_is_no_job_is_refused_with_what_is_wrong(tmp_path, text, named):
    (tmp_path / "job.json").write_text(text)
    with pytest.raises(ConfigError, match=named):
        read_spec(tmp_path / "job.json")
    with pytest.raises(ConfigError, match="No such file"):
        read_spec(tmp_path / "none.json")


@pytest.mark.parametrize(
    "changes", [{"models": []}, {"params": None}, {"speed": 1}, {"job": {"key": "k"}}, {"job": {"warp": 9}}]
)
def test_a_file_that_is_no_matrix_is_refused(tmp_path, changes):
    value = {"name": "s", "models": ["m"], "datasets": ["d"], "params": [PARAMS], "output_dir": "o", **changes}
    (tmp_path / "batch.json").write_text(json.dumps(value))
    with pytest.raises(ConfigError):
        list(expand(read_batch(tmp_path / "batch.json")))


@pytest.mark.goal("BAT-06", part="three forms")
@pytest.mark.goal("RUN-05", part="a batch submitted twice runs once")
async def test_the_same_batch_twice_runs_once_and_tells_the_same(world, matrix):
    world.log = LOG
    journal = Journal()
    async with runner(world, journal) as run:
        done = await run.run_batch(matrix())
    async with runner(world, journal) as run:
        again = await run.run_batch(matrix())
    assert again == done
    assert len(world.tasks) == 2
    assert done.is_whole
    assert sum(row.cost for row in done.rows) == done.cost == 2 * FEE + GAS * len(world.transactions)
    assert [row.final_loss for row in done.rows] == [1.25, 1.25]
    assert all(row.seconds is not None and row.provider in PROVIDERS for row in done.rows)
    table = list(csv.DictReader(done.to_csv().splitlines()))
    assert [row["artifact"] for row in table] == [row.artifact for row in done.rows]
    assert [row["cost"] for row in json.loads(json.dumps(done.to_json()))] == [row["cost"] for row in table]
    lines = done.table().splitlines()
    assert len(lines) == 3
    assert done.rows[0].artifact in lines[1]
    assert "1.25" in lines[1]


@pytest.mark.goal("BAT-04")
async def test_a_job_that_fails_stops_no_other_and_each_outcome_is_listed(world, matrix):
    bad = world.folder / "bad.jsonl"
    bad.write_text("no json\n")
    fine = world.folder / "train.jsonl"
    cap = {"max_spend": 10**15 * 3}
    async with runner(world) as run:
        done = await run.run_batch(matrix(datasets=[bad, fine], params=[PARAMS]))
        capped = await run.run_batch(matrix(name="capped", params=[PARAMS], job=cap))
        gone = await run.run_batch(matrix(name="gone", datasets=[world.folder / "none.jsonl", fine], params=[PARAMS]))
    assert [row.status for row in done.rows] == ["refused", "succeeded"]
    assert "line" in done.rows[0].error or "row" in done.rows[0].error
    assert [(row.status, "cap" in row.error) for row in capped.rows] == [("failed", True)]
    assert [row.status for row in gone.rows] == ["refused", "succeeded"]
    assert not done.is_whole


async def test_a_journal_that_cant_be_written_ends_the_batch(world, matrix):
    async with runner(world) as run:
        run._store.damage = "rows are missing"
        with pytest.raises(JournalError):
            await run.run_batch(matrix())


@pytest.mark.slow
@pytest.mark.goal("BAT-07", part="specs wait outside of memory")
async def test_ten_thousand_queued_specs_take_no_more_memory_than_a_hundred(matrix, monkeypatch):
    async def peak(count):
        waiting = anyio.Event()
        started = []

        async def stalled(runner, spec):
            started.append(spec.key)
            if len(started) == 50:
                waiting.set()
            await waiting.wait()
            await anyio.lowlevel.checkpoint()
            return BatchRow(name=spec.name, model=spec.model, dataset="train.jsonl", status="succeeded")

        monkeypatch.setattr(batches, "run_one", stalled)
        tracemalloc.start()
        result = await batches.run_batch(None, matrix(models=[f"m{n}" for n in range(count // 2)]), at_once=50)
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert len(result.rows) == len(set(started)) == count
        return most

    small = await peak(100)
    large = await peak(10_000)
    assert large - small < 20 * 2**20


@pytest.mark.goal("BAT-07", part="ended jobs leave their row of the result and nothing else")
async def test_an_ended_job_leaves_its_row_of_the_result_in_memory_and_nothing_else(world, matrix, caplog):
    caplog.set_level("CRITICAL", logger="zg_async")  # pytest keeps what is logged

    def held():
        """How many objects of ours are held, but for the scripted world, which stands for other machines."""
        for theirs in (world.outbox, world.tasks, world.deliverables, world.datasets, world.charges, world.adapters):
            theirs.clear()
        gc.collect()
        return Counter(type(o).__name__ for o in gc.get_objects() if str(type(o).__module__).startswith("zg_async"))

    async def run(runner, count, name):
        jobs = matrix(name=name, models=[f"m{n}" for n in range(count)], params=[PARAMS])
        return await runner.run_batch(jobs, at_once=2)

    async with JobRunner(Process(world).broker, SqliteStore(world.folder / "jobs.sqlite")) as runner:
        await run(runner, 3, "warm")
        before = held()
        done = await run(runner, 12, "more")
        assert done.is_whole
        grown = held() - before
    assert grown == {"BatchRow": 12, "BatchResult": 1}
