"""Runs schedules by seed.

    python -m tests.sim --seeds 0:100 [--only FAMILY|none] [--without NAME ...] [--small] [--bug NAME] [--verbose]
    python -m tests.sim --seeds 0:10000 --campaign FILE [--minutes 60]

Prints, for each that fails, its seed, the faults that struck and the command that runs it again. Ends with 0 if all
kept every property. A campaign keeps in a file what it has done, and goes on from there when it is started again.
"""

import argparse
import logging
import math
import sys
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from tests.sim import runs
from tests.sim.bugs import BUGS
from tests.sim.campaign import run_campaign
from tests.sim.runs import run_seed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", default="0:100", help="first:end, or one")
    parser.add_argument("--only", help="one family of faults, or none")
    parser.add_argument("--without", nargs="*", default=[], help="families, or faults by their names")
    parser.add_argument("--small", action="store_true", help="one job at one provider, and a short window")
    parser.add_argument("--verbose", action="store_true")
    parser.add_argument("--list", action="store_true", help="a line for each schedule")
    parser.add_argument(
        "--bug", choices=(*BUGS, "all"), help="plant a bug, and stop at the first schedule that finds it"
    )
    parser.add_argument("--campaign", type=Path, metavar="FILE", help="run what this file lacks")
    parser.add_argument("--minutes", type=float, default=math.inf, help="begin nothing of a campaign after these")
    options = parser.parse_args()
    first, _, end = options.seeds.partition(":")
    seeds = range(int(first), int(end) if end else int(first) + 1)
    if options.verbose:
        runs.LOUD = True
        logging.basicConfig(level=logging.DEBUG, stream=sys.stdout)
        logging.getLogger("asyncio").setLevel(logging.ERROR)
    else:
        logging.disable(logging.CRITICAL)
    if options.campaign is not None:
        return 1 if run_campaign(options.campaign, seeds, options.minutes) else 0
    if options.bug is not None:
        return hunt(BUGS if options.bug == "all" else [options.bug], seeds, small=options.small)
    started, failed, marks, ends = time.process_time(), [], Counter[str](), Counter[str]()
    hours = turns = 0.0
    for seed in seeds:
        began = time.process_time()
        outcome = run_seed(seed, without=frozenset(options.without), only=options.only, small=options.small)
        marks += outcome.marks
        ends += outcome.ends
        hours += outcome.seconds / 3600
        turns += outcome.turns
        if outcome.problem is not None:
            failed.append(seed)
            print(outcome.told(), flush=True)
        if options.verbose or options.list:
            print(
                f"seed {seed}: trace {outcome.trace:08x}, {outcome.seconds:.0f} s, "
                f"{outcome.turns} turns, {time.process_time() - began:.2f} s of CPU",
                dict(outcome.ends),
                dict(outcome.marks),
            )
        if options.verbose:
            print("\n".join(outcome.fired))
    took = time.process_time() - started
    print(f"{len(seeds)} schedules, {len(failed)} failed {failed[:50]}, {hours:.0f} virtual hours")
    print(f"{took:.1f} s of CPU, {len(seeds) / took:.1f} schedules/s, {turns / took:.0f} turns/s")
    print("ends:", dict(ends.most_common()))
    print("reached:", dict(sorted(marks.items())))
    return 1 if failed else 0


def hunt(bugs: Iterable[str], seeds: range, *, small: bool) -> int:
    """Print for each planted bug which schedule finds it first."""
    missed = 0
    for name in bugs:
        began = time.process_time()
        for seed in seeds:
            with BUGS[name]():
                problem = run_seed(seed, small=small).problem
            if problem is not None:
                print(f"{name}: seed {seed}, {time.process_time() - began:.1f} s: {problem[-300:]}", flush=True)
                break
        else:
            missed += 1
            print(f"{name}: not found by {len(seeds)} schedules", flush=True)
    return missed


if __name__ == "__main__":
    sys.exit(main())
