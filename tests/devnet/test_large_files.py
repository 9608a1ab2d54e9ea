"""Gigabytes, in processes of their own: their resident memory, and how long their loop was held up."""

import json
import sys
from pathlib import Path

import anyio
import pytest

from zg_async.transport.http import MIB

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
PROGRAM = [sys.executable, "-m", "tests.devnet.large_files"]
MODEL = 2048 * MIB
KECCAK = "0x2a4a639b0563884853197135df001f25adaea2e132356e0c2d502e48dfdcc899"
STORAGE_ROOT = "0x3a9ecf7a962fc6ebde1c011605710060a00bee300262e7c14cd383e83e55edc7"
"""Of the encrypted model, which is the same every time."""


async def measured(*words: str) -> dict:
    done = await anyio.run_process([*PROGRAM, *words], cwd=ROOT, stderr=None)
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.goal("DEL-03")
@pytest.mark.goal("TX-05", part="loop lag while 2 GiB are transferred, hashed and decrypted")
async def test_a_model_of_2_gib_is_fetched_hashed_both_ways_and_decrypted_in_little_memory(tmp_path):
    async with await anyio.open_process([*PROGRAM, "serve", str(MODEL)], cwd=ROOT, stderr=None) as server:
        port = int(await server.stdout.receive())
        done = await measured("deliver", str(port), str(tmp_path), KECCAK)
    for name in ("model", "model.zip"):
        (tmp_path / name).unlink()
    assert (done["keccak256"], done["storage_root"]) == (KECCAK, STORAGE_ROOT)
    assert (done["plain_size"], done["plain_is_right"]) == (MODEL, True)
    assert done["peak"] < 256 * MIB
    assert done["waited"] == []
    assert done["slowest_callback"] < 0.05, done["callback"]


@pytest.mark.goal("DAT-01", part="1 GB in constant memory")
async def test_a_dataset_of_1_gb_is_checked_in_constant_memory(tmp_path):
    path, count, bad = tmp_path / "large.jsonl", 250_000, [b"{", b'{"instruction": "\xff"}', b'{"messages": []}']
    row = (
        b'{"instruction": "Question %06d ' + b"lorem " * 330 + b'", "input": "", "output": "' + b"ipsum " * 330 + b'"}'
    )
    with path.open("wb") as file:
        for start in range(0, count, 250):
            file.write(b"\n".join([row % number for number in range(start, start + 250)]) + b"\n")
        file.write(b"\n".join([row % 7, *bad]))
    size = path.stat().st_size
    done = await measured("cli", "dataset", "check", str(path), "--json")
    path.unlink()
    report = json.loads(done["out"])
    assert report["size"] == size > 10**9
    assert (done["exit"], report["is_ok"], report["rows"]) == (1, False, count + 4)
    assert report["counts"] == {"too_large": 1, "duplicate": 1, "not_jsonl": 1, "not_utf8": 1, "mixed_format": 1}
    assert report["duplicates_complete"]
    assert done["peak"] < 128 * MIB
