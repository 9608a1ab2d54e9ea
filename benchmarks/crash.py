"""Kills batches of six jobs, on three providers and for two wallets, at named points, and balances the books.

    python benchmarks/crash.py [--seed 0] [--points 200] [--deaths 10] [--at-a-time 2] [--folder DIR]

A batch runs in a process that kills itself with SIGKILL right before or after a point: a commit of the journal or of
the outbox, a broadcast, any other request, a rename. It is started again, dies at another point, up to `--deaths`
times, and then runs undisturbed. Each point counts once: the n-th time in a batch that something of one kind happens,
before or after. A batch that nobody kills tells which points there are; the seed chooses among them, each kind at
least once.

At the end of each batch: six jobs succeeded, each with one task, one payment and one acknowledgement; every nonce up to
the chain's count was signed once and mined; the wallets' coins, ledgers and sub-accounts hold to the neuron what their
own records say. Ends with 0 if that holds for all batches.
"""

import argparse
import asyncio
import collections
import itertools
import json
import logging
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

import anyio

sys.path.insert(0, str(Path(__file__).parents[1]))  # for what the suite uses too

from tests.fault.kill_batch import JOBS, PROVIDERS, WALLETS, BatchCase, batches
from zg_async.devnet.process import DevnetProcess

OFTEN = 12
"""Occurrences of one kind that are told apart: twice the number of jobs. More are polls."""
TRIES = 3
"""How often a batch may pass a point by before the point is left out: it comes up only now and then."""


def all_points(seen: list[str]) -> list[str]:
    """List the points of an undisturbed run in the order in which they came."""
    counts: collections.Counter[str] = collections.Counter()
    found = []
    for name in seen:
        counts[name] += 1
        if counts[name] <= OFTEN:
            found += [f"{when}:{name}:{counts[name]}" for when in ("before", "after")]
    return found


def kind(point: str) -> str:
    return point.partition(":")[2].rpartition(":")[0]


class Campaign:
    """Batches until enough points were died at."""

    def __init__(self, points: list[str], options: argparse.Namespace) -> None:
        self.order = {point: number for number, point in enumerate(points)}
        chance = random.Random(options.seed)
        first = list({kind(point): point for point in chance.sample(points, len(points))}.values())
        rest = [point for point in chance.sample(points, len(points)) if point not in set(first)]
        self.left = collections.deque(first + rest)
        self.wanted = options.points
        self.passed: collections.Counter[str] = collections.Counter()
        self.died: list[str] = []
        self.failures: list[str] = []
        self.batches = 0
        self.most = options.deaths
        self.running: set[str] = set()

    def next_chain(self) -> list[str]:
        """Take the next points out, in the order in which a batch comes to them."""
        count = min(self.most, self.wanted - len(self.died) - len(self.running), len(self.left))
        chain = sorted((self.left.popleft() for _ in range(count)), key=lambda point: self.order[point])
        self.running.update(chain)
        return chain

    def note(self, chain: list[str], died: list[str]) -> None:
        self.batches += 1
        self.running.difference_update(chain)
        self.died += died
        for point in chain:
            if point not in died:
                self.passed[point] += 1
                if self.passed[point] < TRIES:
                    self.left.append(point)


async def main(options: argparse.Namespace) -> int:
    began = time.monotonic()
    base = Path(options.folder or tempfile.mkdtemp(prefix="crash-"))
    with DevnetProcess("--limits", "off", "--providers", str(PROVIDERS)) as devnet, batches() as socket:
        info = base / "devnet.json"
        info.write_text(json.dumps(dict(devnet.info)))
        calm = BatchCase(info, socket, base / "calm")
        await calm.run_to_end()
        points = all_points(calm.points())
        campaign = Campaign(points, options)
        print(
            f"{JOBS} jobs, {PROVIDERS} providers, {WALLETS} wallets: an undisturbed batch has {len(points)} points "
            f"of {len({kind(point) for point in points})} kinds",
            flush=True,
        )

        numbers = itertools.count()

        async def work() -> None:
            while chain := campaign.next_chain():
                case = BatchCase(info, socket, base / f"batch-{next(numbers)}")
                try:
                    await case.run_to_end(*chain)
                except (AssertionError, OSError) as error:
                    campaign.failures.append(f"{chain}, in {case.folder}: {error}")
                    print(campaign.failures[-1], file=sys.stderr, flush=True)
                else:
                    shutil.rmtree(case.folder)
                campaign.note(chain, case.deaths)

        async with anyio.create_task_group() as group:
            for _ in range(options.at_a_time):
                group.start_soon(work)
    return report(campaign, time.monotonic() - began)


def report(campaign: Campaign, seconds: float) -> int:
    kinds = collections.Counter(kind(point).split()[0] for point in campaign.died)
    told = ", ".join(f"{count} {name}" for name, count in kinds.most_common())
    print(
        f"{campaign.batches} batches of {JOBS} jobs, {len(campaign.died)} processes killed, each at another point\n"
        f"  points        {told}; {len({kind(point) for point in campaign.died})} kinds\n"
        f"  books wrong   {len(campaign.failures)}\n"
        f"  took          {seconds:.0f} s"
    )
    missing = campaign.wanted - len(set(campaign.died))
    if missing > 0:
        print(f"  {missing} points too few were reached")
    return 1 if campaign.failures or missing > 0 else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--points", type=int, default=200)
    parser.add_argument("--deaths", type=int, default=10)
    parser.add_argument("--at-a-time", type=int, default=2)
    parser.add_argument("--folder")
    logging.disable(logging.CRITICAL)
    sys.exit(asyncio.run(main(parser.parse_args())))
