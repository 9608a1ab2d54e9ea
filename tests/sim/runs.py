"""Runs schedules and words what they found."""

import contextlib
import dataclasses
import logging
import random
import shutil
import tempfile
import traceback
import warnings
from collections import Counter
from pathlib import Path

from tests.sim.chaos import Plan
from tests.sim.loop import StuckError, current, run, virtual
from tests.sim.net import in_memory
from tests.sim.oracle import Broken
from tests.sim.stubs import seeded
from tests.sim.world import World

LOUD = False
"""Whether the logs of all programs are wanted: they cost more than the programs."""


@dataclasses.dataclass
class Outcome:
    """What became of one schedule."""

    seed: int
    problem: str | None
    fired: list[str]
    trace: int
    marks: Counter[str]
    ends: Counter[str]
    seconds: float
    """Of virtual time."""
    turns: int
    small: bool

    def told(self) -> str:
        """What to print when it failed."""
        small = " --small" if self.small else ""
        lines = [f"seed {self.seed}: {self.problem}", "fired:", *(f"  {name}" for name in self.fired[-25:])]
        return "\n".join([*lines, f"again: python -m tests.sim --seeds {self.seed}:{self.seed + 1}{small} --verbose"])


def run_seed(
    seed: int, *, without: frozenset[str] = frozenset(), only: str | None = None, small: bool = False
) -> Outcome:
    """Draw one schedule and run it to its end."""
    return run_plan(Plan(seed, without, only, small))


def run_plan(plan: Plan) -> Outcome:
    """Run one schedule to its end."""
    seed = plan.seed
    folder = Path(tempfile.mkdtemp(prefix="zg-sim-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
    worlds: list[World] = []
    rng = random.Random(f"loop {seed}")

    async def main() -> None:
        world = World(plan, folder)
        worlds.append(world)
        with in_memory(world.net, current.get, world.clock.now):
            await world.run()

    problem, loop = None, None
    try:
        with _quiet(), virtual(), seeded(random.Random(f"bytes {seed}")):
            try:
                _, loop = run(main, rng)
            except (Broken, StuckError, AssertionError) as error:
                problem = f"{type(error).__name__}: {error}"
            except Exception as error:  # noqa: BLE001  whatever it is, it belongs to this seed
                while isinstance(error, ExceptionGroup) and len(error.exceptions) == 1:
                    error = error.exceptions[0]
                known = isinstance(error, Broken)
                problem = str(error) if known else "".join(traceback.format_exception(error))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    world = worlds[0]
    loop = loop or world.loop
    return Outcome(
        seed=seed,
        problem=problem,
        fired=world.chaos.fired,
        trace=loop.trace & 0xFFFFFFFF,
        marks=world.record.marks,
        ends=world.record.ends,
        seconds=loop.now,
        turns=loop.turns,
        small=plan.small,
    )


@contextlib.contextmanager
def _quiet():  # type: ignore[no-untyped-def]
    if LOUD:
        yield
        return
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # dead processes close nothing
            yield
    finally:
        logging.disable(before)
