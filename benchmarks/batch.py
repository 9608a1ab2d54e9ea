"""Batches of jobs without training time: jobs/s, CPU, memory, lag and requests, beside a thread per job.

    python benchmarks/batch.py [JOBS ...] [--providers 50] [--engine pyevm|anvil] [--dataset-kb 1] [--delivery-mb 0]
                               [--real-limits]                                     default 100 300 1000

A devnet in its own processes, its providers' limits off, their ticks and its blocks 0.2 s; every run has fresh
wallets, one for each 50 jobs: so many sub-accounts a wallet may have. Each run is a process of its own, twice for each
size: one runner with all jobs in one event loop, and a thread per job that makes the same calls through
`zg_async.sync`. Both sign with pure Python, and once more with coincurve where it is installed. `--real-limits`
measures one batch against a devnet whose providers limit requests as real ones do, with the client's own limits on.

CPU is the client process's, all threads; what elliptic curves took of it (signing, checking signatures, unwrapping
keys) is given apart. A job in flight takes the growth of the resident memory at its highest, divided by the jobs. The
lag is how much later than asked a timer fires. A bare request is what aiohttp alone takes to ask the node for its chain
id, measured in the same process: the machine's share in all figures.
"""

import argparse
import asyncio
import importlib.util
import itertools
import json
import os
import queue
import resource
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import aiohttp
import anyio

from zg_async import Batch, HttpSettings, JobRunner, PollPolicy, ProviderLimits, create_broker
from zg_async.devnet.process import DevnetProcess
from zg_async.sync import create_broker as create_blocking_broker
from zg_async.transport.signer import LocalSigner
from zg_async.units import NEURON_PER_0G

MODEL = "Qwen2.5-0.5B-Instruct"
ACCOUNTS = 50
"""Jobs per wallet: the contract lets it have so many sub-accounts for one service."""
PARAMS = {
    "neftune_noise_alpha": 5,
    "num_train_epochs": 1,
    "per_device_train_batch_size": 2,
    "learning_rate": 0.0002,
    "max_steps": 1,
}
BLOCK_TIME = 0.2
PROBE = 0.02
LIMITED_JOBS = 12
BARE = 200


# --- what is counted in the measured process -------------------------------------------------------------------------


class Meter:
    """CPU, memory, lag and requests of this process, from `begin` on."""

    def __init__(self) -> None:
        self.requests: Counter[str] = Counter()
        self.asks = 0
        self.curve = 0.0
        self.late: list[float] = []
        self._lock = threading.Lock()
        self._count_requests()
        self._time_curve()

    def _count_requests(self) -> None:
        request = aiohttp.ClientSession._request

        async def counted(session: Any, method: str, url: Any, **arguments: Any) -> Any:
            data = arguments.get("data")
            body = json.loads(data) if isinstance(data, bytes) and data[:1] in b"[{" and b'"jsonrpc"' in data else None
            self.requests["http" if body is None else "rpc"] += 1
            self.asks += len(body) if isinstance(body, list) else body is not None
            return await request(session, method, url, **arguments)

        aiohttp.ClientSession._request = counted  # type: ignore[method-assign]

    def _time_curve(self) -> None:
        from eth_keys import KeyAPI

        from zg_async.wire import envelope

        backend = type(KeyAPI().backend)
        for owner, name in (
            (backend, "ecdsa_sign"),
            (backend, "ecdsa_recover"),
            (backend, "private_key_to_public_key"),
            (envelope, "_shared_key"),
        ):
            setattr(owner, name, self._timed(getattr(owner, name)))

    def _timed(self, work: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any) -> Any:
            before = time.thread_time()
            try:
                return work(*arguments)
            finally:
                with self._lock:
                    self.curve += time.thread_time() - before

        return timed

    def begin(self) -> None:
        self.requests.clear()
        self.asks, self.curve, self.late = 0, 0.0, []
        self.memory = rss()
        self.wall, self.cpu = time.perf_counter(), time.process_time()

    def result(self, jobs: int, failed: int) -> dict[str, Any]:
        self.late.sort()
        return {
            "seconds": time.perf_counter() - self.wall,
            "cpu": (time.process_time() - self.cpu) / jobs,
            "curve": self.curve / jobs,
            "memory": (peak() - self.memory) / jobs,
            "late": [self.late[len(self.late) * part // 100] for part in (50, 99)] if self.late else [0.0, 0.0],
            "rpc": self.requests["rpc"] / jobs,
            "asks": self.asks / jobs,
            "http": self.requests["http"] / jobs,
            "failed": failed,
        }

    async def probe(self) -> None:
        """Note how late a timer fires, for ever."""
        while True:
            before = time.perf_counter()
            await anyio.sleep(PROBE)
            self.late.append(time.perf_counter() - before - PROBE)


def rss() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


# --- the two ways ----------------------------------------------------------------------------------------------------


def broker_options(order: Mapping[str, Any], state: Path) -> dict[str, Any]:
    devnet = order["devnet"]
    options = {
        "private_keys": order["keys"],
        "rpc_url": devnet["rpc_url"],
        "contracts": {name: devnet[name] for name in ("ledger", "inference", "fine_tuning")},
        "state_dir": state,
    }
    if not order["limited"]:
        options["http"] = HttpSettings(limits=ProviderLimits(rate=None))
        options["polling"] = PollPolicy(rate=1000.0)
    return options


def params_of(number: int) -> dict[str, Any]:
    return PARAMS | {"learning_rate": (100_000 + number) / 1e9}


async def run_batches(order: Mapping[str, Any], folder: Path, meter: Meter) -> int:
    """One runner, one batch for each wallet, all at once; return how many jobs didn't succeed."""
    shares = shared(order["jobs"], len(order["keys"]))
    broker = create_broker(None, "local", **broker_options(order, folder / "state"))
    failed: list[str] = []
    async with broker, JobRunner(broker) as runner:

        async def one(wallet: str, share: Sequence[int]) -> None:
            batch = Batch(
                name=f"bench-{wallet}",
                models=[MODEL],
                datasets=[order["dataset"]],
                params=[params_of(number) for number in share],
                output_dir=folder / wallet,
                wallets=[wallet],
            )
            rows = (await runner.run_batch(batch, at_once=len(share))).rows
            failed.extend(row.error or row.status for row in rows if row.status != "succeeded")

        async with anyio.create_task_group() as group:
            meter.begin()
            group.start_soon(meter.probe)
            async with anyio.create_task_group() as jobs:
                for wallet, share in zip(broker.wallets, shares, strict=True):
                    jobs.start_soon(one, wallet, share)
            group.cancel_scope.cancel()
    for error in failed[:3]:
        print(error, file=sys.stderr)
    return len(failed)


def run_threads(order: Mapping[str, Any], folder: Path, meter: Meter) -> int:
    """A thread per job on blocking calls; return how many jobs didn't succeed."""
    broker = create_blocking_broker(None, "local", **broker_options(order, folder / "state"))
    failed: queue.SimpleQueue[str] = queue.SimpleQueue()
    providers = [provider["address"] for provider in order["devnet"]["providers"]]

    def one(wallet: str, provider: str, number: int) -> None:
        try:
            view = broker.using(wallet)
            tuning = view.fine_tuning
            view.ledger.ensure_funded(provider, "fine-tuning", NEURON_PER_0G)
            tuning.acknowledge_provider_signer(provider)
            uploaded = tuning.upload_dataset_to_tee(provider, order["dataset"])
            task = tuning.create_task(provider, MODEL, uploaded.dataset_hash, params_of(number))
            tuning.wait_task(provider, task)
            tuning.deliver(provider, task, folder / f"{wallet}-{number}")
        except Exception as error:  # noqa: BLE001  counted and told
            failed.put(f"{type(error).__name__}: {error}")

    with broker:
        threads = [
            threading.Thread(target=one, args=(wallet, providers[place % len(providers)], number))
            for wallet, share in zip(broker.wallets, shared(order["jobs"], len(order["keys"])), strict=True)
            for place, number in enumerate(share)
        ]
        meter.begin()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    count = failed.qsize()
    for _ in range(min(count, 3)):
        print(failed.get(), file=sys.stderr)
    return count


def shared(jobs: int, wallets: int) -> list[range]:
    return [range(number, jobs, wallets) for number in range(wallets)]


async def bare(url: str) -> float:
    """Return the CPU seconds of one request that nothing but aiohttp makes."""
    ask = {"jsonrpc": "2.0", "id": 1, "method": "eth_chainId", "params": []}
    async with aiohttp.ClientSession() as session:
        for count in (20, BARE):
            before = time.process_time()
            for _ in range(count):
                async with session.post(url, json=ask) as reply:
                    await reply.read()
    return (time.process_time() - before) / BARE


def measured(order: Mapping[str, Any]) -> dict[str, Any]:
    """Do one run in this process."""
    meter = Meter()
    with tempfile.TemporaryDirectory() as name:
        if order["way"] == "runner":
            failed = asyncio.run(run_batches(order, Path(name), meter))
        else:
            failed = run_threads(order, Path(name), meter)
        found = meter.result(order["jobs"], failed)
    return found | {"bare": asyncio.run(bare(order["devnet"]["rpc_url"]))}


# --- the runs --------------------------------------------------------------------------------------------------------


class Bench:
    """Runs of one devnet."""

    def __init__(self, devnet: DevnetProcess, dataset: Path, *, limited: bool) -> None:
        self.devnet, self.dataset, self.limited = devnet, dataset, limited

    async def run(self, way: str, jobs: int, *, wallets: int, curve: str) -> dict[str, Any]:
        keys = ["0x" + os.urandom(32).hex() for _ in range(wallets)]
        for key in keys:
            address = LocalSigner.from_key(key).address
            await self.devnet.control_async("faucet", address=address, amount=str(200 * NEURON_PER_0G))
        order = {
            "way": way,
            "jobs": jobs,
            "keys": keys,
            "devnet": dict(self.devnet.info),
            "dataset": str(self.dataset),
            "limited": self.limited,
        }
        backend = "NativeECCBackend" if curve == "python" else "CoinCurveECCBackend"
        environment = {**os.environ, "ECC_BACKEND_CLASS": f"eth_keys.backends.{backend}"}
        command = [sys.executable, __file__, "measure"]
        done = await anyio.run_process(command, input=json.dumps(order).encode(), env=environment, stderr=None)
        return dict(json.loads(done.stdout))


def told(way: str, curve: str, jobs: int, found: Mapping[str, Any]) -> str:
    late = "" if way == "threads" else f", lag p50 {found['late'][0] * 1000:.1f} p99 {found['late'][1] * 1000:.0f} ms"
    return (
        f"  {way:8} {curve:10} {found['seconds']:6.1f} s, {jobs / found['seconds']:5.1f} jobs/s, CPU/job "
        f"{found['cpu'] * 1000:5.1f} ms ({(found['cpu'] - found['curve']) * 1000:.1f} without curve), "
        f"{found['memory'] / 1024:4.0f} KiB/job, {found['rpc']:.1f} RPC trips ({found['asks']:.1f} calls), "
        f"{found['http']:.1f} HTTP{late}, {found['failed']} failed; a bare request {found['bare'] * 1000:.2f} ms"
    )


def load() -> str:
    return f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"


async def main(options: argparse.Namespace) -> int:
    there = ["python"] + ["coincurve"] * bool(importlib.util.find_spec("coincurve"))
    curves = [curve for curve in options.curves if curve in there]
    failed = 0
    with tempfile.TemporaryDirectory() as name:
        dataset = Path(name) / "train.jsonl"
        dataset.write_text(rows(options.dataset_kb * 1024))
        words = ["--engine", options.engine, "--providers", str(options.providers), "--block-time", str(BLOCK_TIME)]
        words += [] if options.real_limits else ["--limits", "off"]
        with DevnetProcess(*words, ready_seconds=600) as devnet:
            if options.delivery_mb:
                await devnet.control_async("settings", filler_bytes=options.delivery_mb * 2**20)
            bench = Bench(devnet, dataset, limited=options.real_limits)
            if len(there) == 1:
                print("coincurve isn't installed: pure Python only")
            for jobs in [LIMITED_JOBS] if options.real_limits else options.jobs:
                wallets = max(-(-jobs // min(ACCOUNTS, options.providers)), 1)
                print(f"{jobs} jobs, {wallets} wallets, {options.providers} providers, {load()}", flush=True)
                for way in options.ways:
                    for curve in curves:
                        found = await bench.run(way, jobs, wallets=wallets, curve=curve)
                        failed += found["failed"]
                        print(told(way, curve, jobs, found), flush=True)
    return 1 if failed else 0


def rows(size: int) -> str:
    """Make a dataset of about a size."""
    made = (
        json.dumps({"instruction": f"Name the colour of box {n}.", "input": "", "output": "green " * 20}) + "\n"
        for n in itertools.count()
    )
    return "".join(itertools.islice(made, max(size // 200, 8)))


if __name__ == "__main__":
    if sys.argv[1:] == ["measure"]:
        print(json.dumps(measured(json.load(sys.stdin))))
        sys.exit()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("jobs", nargs="*", type=int, default=[100, 300, 1000])
    parser.add_argument("--providers", type=int, default=50)
    parser.add_argument("--engine", default="pyevm")
    parser.add_argument("--dataset-kb", type=int, default=1)
    parser.add_argument("--delivery-mb", type=int, default=0)
    parser.add_argument("--real-limits", action="store_true")
    parser.add_argument("--ways", nargs="*", default=["runner", "threads"])
    parser.add_argument("--curves", nargs="*", default=["python", "coincurve"])
    sys.exit(asyncio.run(main(parser.parse_args())))
