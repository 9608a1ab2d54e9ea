"""Real processes, real SIGKILL: a batch of two wallets killed at twenty points has every job once, and right books."""

import json

import anyio
import pytest

from tests.fault.kill_batch import BatchCase, batches
from zg_async.devnet.process import DevnetProcess

LAST = 6
FIRSTS = (
    "before:journal job_submitted+dataset_checked:1",
    "after:journal provider_chosen:1",
    "before:outbox signed:1",
    "before:rpc eth_sendRawTransaction:1",
    "after:rpc eth_sendRawTransaction:2",
    "before:POST /v1/user/*/dataset:1",
    "before:journal task_requested:1",
    "before:POST /v1/user/*/task:1",
    "after:POST /v1/user/*/task:2",
    "before:POST /v1/user/*/task/*/lora:1",
    "before:journal deliverable_acknowledged:1",
    "before:rename model.zip:1",
)
"""Where the first job to get there takes all others with it."""
LASTS = tuple(
    f"after:journal {fact}:{LAST}"
    for fact in (
        "provider_funded",
        "dataset_uploaded",
        "task_created",
        "task_delivered",
        "model_downloaded",
        "deliverable_acknowledged",
        "model_decrypted",
        "job_succeeded",
    )
)
"""Where the others have gone on, each as far as it got."""
CHAINS = (FIRSTS, LASTS)
"""Twenty points: every batch comes to them, however its jobs overtake one another. `benchmarks/crash.py` knows more."""


@pytest.mark.slow
@pytest.mark.goal("DUR-02", part="SIGKILL of a batch: twenty points, books to the neuron")
@pytest.mark.goal("DUR-03", part="a batch: no nonce missing, none twice")
async def test_a_batch_killed_at_twenty_points_ends_with_every_job_once_and_right_books(tmp_path):
    died, failures = [], []
    with DevnetProcess("--limits", "off", "--providers", "3") as devnet, batches() as socket:
        info = tmp_path / "devnet.json"
        info.write_text(json.dumps(dict(devnet.info)))

        async def one(number: int) -> None:
            try:
                died.extend(await BatchCase(info, socket, tmp_path / str(number)).run_to_end(*CHAINS[number]))
            except AssertionError as error:
                failures.append(f"batch {number}: {error}")

        async with anyio.create_task_group() as group:
            for number in range(len(CHAINS)):
                group.start_soon(one, number)
    assert failures == []
    assert sorted(died) == sorted(point for chain in CHAINS for point in chain)
