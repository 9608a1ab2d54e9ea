"""Kills jobs at seeded places until they end, polls included: over a scripted world, or as processes against a devnet.

    python -m tests.fault.crash_everywhere [--seeds 200] [--first 0]
    python -m tests.fault.crash_everywhere --devnet DEVNET.json --folder DIR [--seeds 20] [--first 0] [--at-a-time 2]

Each seed is one job. In the scripted world it dies, loses requests and answers, and is cancelled, up to six times, at
any point; against a devnet (`zg devnet up --json --limits off > DEVNET.json`) it is killed up to four times, around any
HTTP request, rename or commit. The same seed makes the same choices. Ends with 0 if all jobs ended with one task, each
transaction once and the right adapter.
"""

import argparse
import asyncio
import contextlib
import logging
import random
import sys
import tempfile
import time
import traceback
from pathlib import Path

import anyio

from tests.fault.kill_cases import Case, runners
from tests.fault.world import TRANSACTIONS, Process, World, crash_at, lose_at
from zg_async.errors import ZgError
from zg_async.jobs.store import Journal, MemoryStore

POINTS = 160
"""About as many as an undisturbed job has in the scripted world."""
CALLS = 160
"""About as many as an undisturbed job has against a devnet."""


async def scripted(seed: int, folder: Path) -> None:
    chance, world, journal = random.Random(seed), World(folder), Journal()
    for _ in range(chance.randint(1, 6)):
        number = chance.randint(1, POINTS)
        match chance.choice(["crash", "crash", "lose", "cancel"]):
            case "crash":
                await Process(world, crash_at(number)).run(world.spec(), MemoryStore(journal))
            case "lose":
                await Process(world, lose_at(number)).run(world.spec(), MemoryStore(journal))
            case "cancel":
                with anyio.CancelScope() as scope:

                    def stop(process: Process, count: int, _: str, number: int = number, scope: object = scope) -> None:
                        if count == number:
                            scope.cancel()

                    await Process(world, stop).run(world.spec(), MemoryStore(journal))
    result = await Process(world).run(world.spec(), MemoryStore(journal))
    world.check(result, transactions=TRANSACTIONS)


async def killed(seed: int, folder: Path, devnet: Path, socket: str) -> int:
    chance = random.Random(seed)
    kills = [f"{chance.choice(['before', 'after'])}:{chance.randint(1, CALLS)}" for _ in range(chance.randint(1, 4))]
    case = Case(devnet, socket, folder)
    await case.run_to_end(*kills)
    return case.deaths


async def main(options: argparse.Namespace) -> int:
    started, failed, deaths = time.monotonic(), [], 0
    limiter = anyio.CapacityLimiter(options.at_a_time if options.devnet else 1)
    base = Path(options.folder or tempfile.mkdtemp(prefix="crash-"))

    async def one(seed: int) -> None:
        nonlocal deaths
        folder = base / f"seed-{seed}"
        async with limiter:
            try:
                if options.devnet:
                    deaths += await killed(seed, folder, Path(options.devnet), socket)
                else:
                    folder.mkdir(parents=True)
                    await scripted(seed, folder)
            except (AssertionError, ZgError):
                failed.append(seed)
                print(f"seed {seed} failed:\n{traceback.format_exc()}", file=sys.stderr)

    with runners() if options.devnet else contextlib.nullcontext("") as socket:
        async with anyio.create_task_group() as group:
            for seed in range(options.first, options.first + options.seeds):
                group.start_soon(one, seed)
    took = time.monotonic() - started
    print(f"{options.seeds} jobs, {len(failed)} wrong, {deaths} processes killed, {took:.1f} s")
    return 1 if failed else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=200)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--devnet")
    parser.add_argument("--folder")
    parser.add_argument("--at-a-time", type=int, default=2)
    logging.disable(logging.CRITICAL)
    sys.exit(asyncio.run(main(parser.parse_args())))
