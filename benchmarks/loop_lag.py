"""How late the loop gets while the heavy things run: hashing, decryption, a transfer of 1 GiB, 100 watches.

    python benchmarks/loop_lag.py [MiB]        default 1024

A probe sleeps 2 ms over and over and notes how much later it woke. Each phase is also measured by the loop thread's own
CPU time per callback, which a busy machine doesn't stretch. Aim: under 50 ms.
"""

import asyncio
import os
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio

sys.path.insert(0, str(Path(__file__).parents[1]))  # for the probe, which the suite uses too

from benchmarks.envelope import KEY, make, signer
from tests.loop_probe import probing
from zg_async import HttpSettings, PollPolicy, ProviderLimits, create_broker
from zg_async.devnet.process import DevnetProcess
from zg_async.managers.dataset import check_dataset
from zg_async.managers.delivery import decrypt_file
from zg_async.transport.http import MIB, Http
from zg_async.transport.signer import LocalSigner
from zg_async.transport.transfer import download_file
from zg_async.units import NEURON_PER_0G

STEP = 0.002
ROWS = '{"instruction": "What is the code of station %d?", "input": "", "output": "%s"}\n'
PARAMS = {
    "neftune_noise_alpha": 5,
    "num_train_epochs": 1,
    "per_device_train_batch_size": 2,
    "learning_rate": 0.0002,
    "max_steps": 3,
}


async def phase(name: str, work: Callable[[], Awaitable[Any]]) -> None:
    """Run something beside the probe and print how late it was."""
    late: list[float] = []

    async def probe() -> None:
        while True:
            before = time.perf_counter()
            await anyio.sleep(STEP)
            late.append(time.perf_counter() - before - STEP)

    began = time.perf_counter()
    with probing() as callbacks:
        async with anyio.create_task_group() as group:
            group.start_soon(probe)
            await work()
            group.cancel_scope.cancel()
    late.sort()
    print(
        f"{name:12} {time.perf_counter() - began:6.1f} s   late: median {late[len(late) // 2] * 1000:.1f} ms, "
        f"99 % {late[len(late) * 99 // 100] * 1000:.1f} ms, most {late[-1] * 1000:.1f} ms   "
        f"slowest callback {callbacks.worst * 1000:.1f} ms CPU, {len(callbacks.waited)} blocking calls"
    )


async def main(mebibytes: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model, part, rows = folder / "model.encrypted", folder / "model.part", folder / "train.jsonl"
        make(model, mebibytes)
        rows.write_text("".join(ROWS % (n, "x" * 4000) for n in range(min(mebibytes, 90) * 240)))
        command = [sys.executable, str(Path(__file__).with_name("envelope.py")), "serve", str(model)]
        server = await anyio.open_process(command, stderr=None)
        async with server, Http(settings=HttpSettings(allow_hosts=("127.0.0.1",))) as http:
            base = f"http://127.0.0.1:{int(await server.stdout.receive())}"  # type: ignore[union-attr]

            async def nothing() -> object:
                return {}

            await phase("hashing", lambda: check_dataset(rows))
            await phase("transfer", lambda: download_file(http, f"{base}/lora", path=part, body=nothing))
            server.terminate()
        out = folder / "model.zip"
        await phase("decryption", lambda: decrypt_file(part, out, key=KEY, expected_signer=signer()))
        print(f"             {model.stat().st_size / MIB:.0f} MiB model, {rows.stat().st_size / MIB:.0f} MiB dataset")
        await watches(folder)


async def watches(folder: Path) -> None:
    key = "0x" + os.urandom(32).hex()
    async with DevnetProcess("--limits", "off") as devnet:
        provider = devnet.providers[0]["address"]
        address = LocalSigner.from_key(key).address
        await devnet.control_async("faucet", address=address, amount=str(100 * NEURON_PER_0G))
        settings = HttpSettings(limits=ProviderLimits(rate=None))
        polling = PollPolicy(first=0.1, longest=0.2, rate=50.0)
        async with create_broker(
            key, "local", rpc_url=devnet.rpc_url, state_dir=folder / "state", http=settings, polling=polling
        ) as broker:
            tuning = broker.fine_tuning
            await broker.ledger.ensure_funded(provider, "fine-tuning", "1")
            rows = folder / "small.jsonl"
            rows.write_text("".join(ROWS % (n, "green") for n in range(20)))
            root = (await tuning.upload_dataset_to_tee(provider, rows)).dataset_hash
            task = await tuning.create_task(provider, "Qwen2.5-0.5B-Instruct", root, PARAMS)

            async def read() -> None:
                async for _ in tuning.watch_task(provider, task):
                    pass

            async def work() -> None:
                async with anyio.create_task_group() as group:
                    for _ in range(100):
                        group.start_soon(read)
                    await tuning.wait_task(provider, task)
                    await tuning.deliver(provider, task, folder / "out")

            await phase("100 watches", work)


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 1024))
