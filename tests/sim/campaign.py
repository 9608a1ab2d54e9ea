"""Many schedules, kept in a file as they are done: stopped at any moment, it goes on where it was.

Each line of the file stands for a block of seeds that was run whole: what it ran, what struck, what was reached, and
all that failed. One schedule in twelve and a half is of any size, the others are small: the mix of the test suite.
"""

import json
import re
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from tests.sim.runs import Outcome, run_seed

BLOCK: Final = 50
COUNTED: Final = ("fired", "marks", "ends")
COMMON: Final = (
    "acknowledged in time",
    "below a limit",
    "crash before chain",
    "event ack_deadline_near",
    "event job_resumed",
    "event stage_retrying acknowledge_deliverable",
    "event stage_retrying acknowledge_provider",
    "event stage_retrying create_task",
    "event stage_retrying download_model",
    "event stage_retrying fund",
    "event stage_retrying train",
    "old head",
    "paused",
    "reorg took a receipt",
    "repriced",
    "sent the same again",
)
"""States that any fifty schedules reach: each block of the first 10,000 does."""
FREQUENT: Final = (
    "answer lost: transaction",
    "crash after chain",
    "crash after commit",
    "crash before commit",
    "crash before provider",
    "crash before signing",
    "dark chain",
    "dark provider",
    "disk broken",
    "disk full",
    "event delivery_forfeited",
    "event job_failed task_failed",
    "event stage_retrying decrypt_model",
    "reorg lost a transaction",
    "transaction dropped",
)
"""More of them that any two hundred schedules reach."""
SCARCE: Final = (
    *(f"crash {when} {what}" for when in ("before", "after") for what in ("disk", "outbox")),
    "crash after provider",
    "crash after signing",
    "acknowledgeDeliverable was mined as a failure",
    "acknowledged in the last fifth",
    "acknowledged in the last twentieth",
    "acknowledged unverified",
    "answer lost: task",
    "close to a limit",
    "event job_failed limit",
    "event job_failed lost_key",
    "event job_queued",
    "event job_warned paused",
    "event provider_excluded",
    "event task_adopted",
    "provider forgot",
    "several stopped by a limit",
    "window missed",
)
"""States that a thousand schedules reach."""


def is_small(seed: int) -> bool:
    """Whether a seed of a campaign has one job, as 184 of the suite's 200 have."""
    return seed % 25 >= 2


def run_campaign(path: Path, seeds: range, minutes: float) -> int:
    """Run what the file doesn't have yet, for so long at most, and say what it has. Returns what is amiss."""
    known = {tuple(line["seeds"]) for line in _read(path)}
    end, commit = time.monotonic() + 60 * minutes, _commit()
    for first in range(seeds.start, seeds.stop, BLOCK):
        block = range(first, min(first + BLOCK, seeds.stop))
        if (block.start, block.stop) in known:
            continue
        if time.monotonic() > end:
            break
        line = _run_block(block) | {"commit": commit}
        with path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        for failure in line["failed"]:
            print(failure, flush=True)
    return _report(list(_read(path)))


def _run_block(block: range) -> dict[str, Any]:
    began, counts = time.process_time(), {name: Counter[str]() for name in COUNTED}
    failed, hours, sizes = [], 0.0, Counter[str]()
    for seed in block:
        outcome = run_seed(seed, small=is_small(seed))
        if outcome.problem is not None:
            failed.append(outcome.told())
        for name, found in (("fired", _families(outcome)), ("marks", outcome.marks), ("ends", outcome.ends)):
            counts[name].update(found)
        hours += outcome.seconds / 3600
        sizes["small" if outcome.small else "full"] += 1
    line = {"seeds": [block.start, block.stop], "cpu": time.process_time() - began, "hours": hours, "sizes": sizes}
    return line | counts | {"failed": failed}


def _families(outcome: Outcome) -> Counter[str]:
    return Counter(re.split("[: ]", name)[0] for name in outcome.fired if not name.startswith("process "))


def _read(path: Path) -> Iterator[dict[str, Any]]:
    if path.exists():
        yield from map(json.loads, path.read_text().splitlines())


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def _report(lines: list[dict[str, Any]]) -> int:
    count = sum(line["seeds"][1] - line["seeds"][0] for line in lines)
    cpu, hours = sum(line["cpu"] for line in lines), sum(line["hours"] for line in lines)
    failed = [failure for line in lines for failure in line["failed"]]
    commits = Counter[str]()
    for line in lines:
        commits[line["commit"]] += line["seeds"][1] - line["seeds"][0]
    print(f"{count} schedules, {len(failed)} failed, {hours:.0f} virtual hours, by commit {dict(commits)}")
    print(f"{cpu:.0f} s of CPU, {count / max(cpu, 1e-9):.2f} schedules/s")
    for name in ("sizes", *COUNTED):
        total = sum((Counter(line[name]) for line in lines), Counter[str]())
        print(f"{name}:", dict(total.most_common()))
    seen = sum((Counter(line["marks"]) for line in lines), Counter[str]())
    missed = [mark for mark in (*COMMON, *FREQUENT, *SCARCE) if not seen[mark]] if count >= 1000 else []
    print("never reached:", missed)
    for failure in failed:
        print(failure.splitlines()[0][:300], "|", failure.splitlines()[-1])
    return len(failed) + len(missed)
