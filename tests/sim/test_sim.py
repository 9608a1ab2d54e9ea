"""Whole jobs through schedules of faults, and the simulation itself: it repeats, and it finds what is planted."""

import functools
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.sim.bugs import BUGS
from tests.sim.campaign import COMMON, FREQUENT
from tests.sim.chaos import Plan, Spell
from tests.sim.runs import Outcome, run_plan, run_seed

CHUNKS = 4
"""Tests over which the schedules are spread, so that several processes can share them."""
SEEDS, SMALL = 4, 46
"""Schedules in each, of any size and with one job; `python -m tests.sim --seeds 0:10000` runs as many as one likes."""


@functools.cache
def run_chunk(chunk: int) -> Counter[str]:
    """Run a part of the schedules, once; all have to keep every property. Returns the rare states they reached."""
    outcomes: list[Outcome] = [run_seed(seed) for seed in range(chunk * SEEDS, (chunk + 1) * SEEDS)]
    outcomes += [run_seed(seed, small=True) for seed in range(chunk * SMALL, (chunk + 1) * SMALL)]
    failed = [outcome.told() for outcome in outcomes if outcome.problem is not None]
    assert not failed, "\n\n".join(failed)
    return sum((outcome.marks for outcome in outcomes), Counter[str]())


@pytest.mark.slow
@pytest.mark.goal("RLB-01", part="200 schedules")
@pytest.mark.goal("RUN-10", part="real stack, 200 schedules")
@pytest.mark.goal("RLB-14", part="200 schedules")
@pytest.mark.goal("RLB-04", part="16 marks in any 50 schedules")
@pytest.mark.goal("RLB-15", part="in a tenth of 200 schedules")
@pytest.mark.goal("RLB-21", part="limits per job, batch and day, and fee spikes, in 200 schedules")
@pytest.mark.goal("RLB-22", part="steps of the clock in 80 of 200 schedules")
@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_jobs_keep_every_property_in_any_schedule(chunk):
    marks = run_chunk(chunk)
    assert marks["acknowledged in time"] >= SMALL // 2
    assert not set(COMMON) - set(marks)


@pytest.mark.slow
@pytest.mark.goal("RLB-04", part="31 marks in 200 schedules")
def test_all_schedules_together_reach_what_is_frequent():
    marks = sum(map(run_chunk, range(CHUNKS)), Counter[str]())
    assert not {*COMMON, *FREQUENT} - set(marks)


@pytest.mark.goal("RLB-11", part="in whole jobs, what is lost is sent again")
@pytest.mark.parametrize(
    ("after", "seconds"),
    [(1, 0.02), (2, 0.02), (3, 0.02), (3, 1.0)],
    ids=["deposit", "transfer", "acknowledgement", "acknowledgement, later"],
)
def test_what_a_reorganisation_loses_is_sent_again_and_paid_once(after, seconds):
    plan = Plan(0, only="none")
    plan.wallets = plan.providers = plan.jobs = 1
    plan.block_time, plan.confirmations, plan.root = 0.0, 3, "keccak"
    plan.spells = [Spell("reorg", after, seconds, how="drop", amount=2)]
    outcome = run_plan(plan)
    assert outcome.problem is None, outcome.told()
    assert outcome.marks["reorg lost a transaction"] == outcome.ends["succeeded"] == 1


def test_a_task_that_was_taken_for_failed_is_delivered_by_its_jobs_own_policy():
    plan = Plan(0, only="none", small=True)
    plan.block_time, plan.train_seconds = 0.0, 10.0
    plan.named, plan.on_unverified = False, "forfeit"
    plan.spells = [Spell("no_blocks", 5.0, 400.0), Spell("restart", 60.0, 80.0, host="provider 0")]
    outcome = run_plan(plan)
    assert outcome.problem is None, outcome.told()
    assert outcome.marks["event task_adopted"] == outcome.marks["event delivery_forfeited"] == 1


@pytest.mark.goal("RLB-09", part="a moment, in whole jobs")
@pytest.mark.parametrize("first", range(3, 66, 7))
def test_a_disk_that_is_full_for_a_moment_costs_a_job_nothing_but_time(first):
    plan = Plan(0, only="none", small=True)
    plan.durable = True
    plan.spells = [Spell("disk", first + more, 0.01, how=how) for more, how in ((0, "full"), (5, "broken"))]
    outcome = run_plan(plan)
    assert outcome.problem is None, outcome.told()
    assert outcome.ends["succeeded"] == outcome.marks["disk full"] == 1


SCRIPT = """
from tests.sim.runs import run_seed
for seed in (7, 26):
    outcome = run_seed(seed)
    print(seed, f"{outcome.trace:08x}", outcome.turns, f"{outcome.seconds:.6f}", outcome.problem)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "seed",
    [3080, 7613],
    ids=[
        "a job's fee is the chain's, though nobody saw its settlement",
        "a delivery is acknowledged once, though for a while nobody could say whose it was",
    ],
)
def test_a_schedule_that_once_went_wrong(seed):
    assert run_seed(seed, small=True).problem is None


@pytest.mark.goal("RLB-02", part="2 seeds")
def test_a_seed_gives_the_same_schedule_in_any_process():
    root = Path(__file__).parents[2]
    traces = []
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(root)}
        command = [sys.executable, "-W", "ignore", "-c", SCRIPT]
        done = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, timeout=200)
        assert done.returncode == 0, done.stderr
        traces.append(done.stdout)
    assert traces[0] == traces[1]
    assert len(set(traces[0].split())) > 6


FOUND_BY = {
    "signs anew on retry": (4, True, "no_blocks"),
    "loses rows it has sent": (0, True, "crash"),
    "never looks a request up": (26, True, "lose_answer"),
    "takes any bytes": (3, True, "wrong_bytes"),
    "leaves tasks behind": (0, True, "none"),
    "believes a block for ever": (29, True, "reorg"),
    "pays beyond its limits": (0, False, "cap"),
    "writes on when superseded": (1, False, "second"),
    "keeps the turn": (0, False, "none"),
    "gives up early": (2, True, "dark"),
    "waits without a limit": (14, True, "dark"),
}
"""Which schedule found a planted bug first, whether a small one, and with which faults; only where to begin to look."""
MOST = 100


@pytest.mark.slow
@pytest.mark.goal("RLB-03", part="11 bugs")
@pytest.mark.parametrize("name", FOUND_BY)
def test_a_planted_bug_is_found(name):
    first, small, only = FOUND_BY[name]
    for seed in (first, *range(MOST)):
        with BUGS[name]():
            problem = run_seed(seed, small=small, only=only).problem
        if problem is not None:
            assert not re.search("TypeError|AttributeError", problem), f"{name} fits no more: {problem}"
            return
    pytest.fail(f"{name}: not found in {MOST} schedules")
