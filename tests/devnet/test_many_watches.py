"""A thousand watches in one process, measured in one of its own."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from zg_async import PollPolicy
from zg_async.devnet.process import DevnetProcess

ROOT = Path(__file__).parents[2]
TRIES = 3
"""A machine that others keep busy takes twice as long for the same."""


@pytest.mark.slow
@pytest.mark.goal("SCL-01")
def test_a_thousand_watches_keep_the_rate_the_memory_and_the_loop():
    with DevnetProcess("--providers", "0") as devnet:  # whose clock no other test moves
        command = [sys.executable, "-m", "tests.devnet.many_watches", devnet.rpc_url]
        for _ in range(TRIES):
            done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True, timeout=90)
            found = json.loads(done.stdout)
            if found["slowest_callback"] < 0.05:
                break
    assert found["watches"] == 1000
    assert found["told"] == {"Training": 1000, "Trained": 20, "task_stuck": 100}
    assert found["rate"] <= PollPolicy().rate * 1.02  # the clock's grain
    assert found["megabytes"] < 200
    assert found["slowest_callback"] < 0.05, found["callback"]
    assert found["waited"] == []
