"""The load benchmark with faults, small."""

import sys
from pathlib import Path

import anyio
import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.goal("SCL-05")
async def test_jobs_end_right_under_faults_and_the_books_balance():
    words = ("--jobs", "6", "--providers", "2", "--wallets", "2", "--rate", "0.03")
    done = await anyio.run_process([sys.executable, "benchmarks/chaos.py", *words], cwd=ROOT, check=False)
    told = done.stdout.decode()
    assert done.returncode == 0, told[-2000:] + done.stderr.decode()[-2000:]
    assert "ended         {'succeeded': 6}" in told
    assert "0 differences in 2 wallets" in told
    assert "faults        0" not in told
