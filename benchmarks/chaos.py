"""Many jobs while all around them misbehaves: what is asked or answered gets lost, late, refused, cut, senseless.

    python benchmarks/chaos.py [--jobs 200] [--providers 20] [--wallets 10] [--rate 0.05] [--at-once 50]

A devnet in a process of its own, over real sockets. While the jobs run, every kind of fault is on at once, each with
the chance `--rate` for every request that it can apply to; the provider's workers fail in every step as often. Nothing
lies: what is false for good (a model other than the chain says, a provider that settles without an acknowledgement)
must end a job, and is tested one by one elsewhere.

Then the faults are switched off, and this has to hold: every job succeeded, or failed because each provider that it may
try failed its task, with one task, one payment and one acknowledgement per success, also where a failed task sent it to
another provider; no nonce is missing; coins, ledgers and sub-accounts are to the neuron what the wallets' audit logs
say; every kind of fault struck, if that many jobs make it sure; no task and no socket is left. Ends with 0 if it does.
"""

import argparse
import asyncio
import collections
import json
import logging
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import aiohttp
import anyio
import anyio.to_thread

sys.path.insert(0, str(Path(__file__).parents[1]))  # for what the suite uses too

from tests.fault.books import Books
from zg_async import Batch, HttpSettings, JobRunner, PollPolicy, ProviderLimits, create_broker, read_audit
from zg_async.devnet.process import DevnetProcess
from zg_async.jobs.state import JobState
from zg_async.transport.signer import LocalSigner
from zg_async.units import NEURON_PER_0G

MODEL = "Qwen2.5-0.5B-Instruct"
PARAMS = {
    "neftune_noise_alpha": 5,
    "num_train_epochs": 1,
    "per_device_train_batch_size": 2,
    "learning_rate": 0.0002,
    "max_steps": 1,
}
BALANCE = 200 * NEURON_PER_0G
LATE = 0.3
"""Seconds by which a late answer is late."""
RPC: tuple[dict[str, Any], ...] = (
    {"kind": "lose_request"},
    {"kind": "lose_answer"},
    {"kind": "delay", "seconds": LATE},
    {"kind": "status"},
    {"kind": "rpc_error"},
    {"kind": "cut", "after": 40},
    {"kind": "result", "operation": "eth_getTransactionReceipt"},
)
PROVIDER = (
    "drop",
    "error_5xx",
    "too_many",
    "lose_answer",
    "lora_503",
    "cut_download",
    "stall_download",
    "queue_full",
    "fail_setup",
    "fail_training",
    "fail_delivery",
    "fail_settlement",
)
SURE = 10.0
"""A kind that can meet a job once, with this many jobs times the rate, strikes but for one run in 20,000."""
EXPLAINED = ("devnet fault", "no fine-tuning provider is free", "container exited with code 1")
"""What a job that failed says, if it tried all the providers it may and each failed its task by a fault."""


class Requests:
    """Counts what this process asks."""

    def __init__(self) -> None:
        self.count = 0
        request = aiohttp.ClientSession._request

        async def counted(*arguments: Any, **options: Any) -> Any:
            self.count += 1
            return await request(*arguments, **options)

        aiohttp.ClientSession._request = counted  # type: ignore[method-assign]


async def switch_on(devnet: DevnetProcess, rate: float) -> None:
    for fault in RPC:
        await devnet.control_async("rpc_faults", times=None, chance=rate, **fault)
    await devnet.control_async("faults", chance=rate, **dict.fromkeys(PROVIDER, -1))


async def switch_off(devnet: DevnetProcess) -> collections.Counter[str]:
    """End all faults and return how often each struck, also those that never did."""
    told = await devnet.control_async("status")
    struck = collections.Counter(dict.fromkeys([f"rpc {fault['kind']}" for fault in RPC], 0))
    struck.update(dict.fromkeys([f"provider {kind}" for kind in PROVIDER], 0))
    struck.update({f"rpc {kind}": count for kind, count in told["rpc_faults"].items()})
    for provider in told["state"]:
        struck.update({f"provider {kind}": count for kind, count in provider["faults"]["struck"].items()})
    await devnet.control_async("rpc_faults")
    await devnet.control_async("clear_faults")
    return struck


async def run(devnet: DevnetProcess, options: argparse.Namespace, folder: Path) -> int:
    keys = ["0x" + os.urandom(32).hex() for _ in range(options.wallets)]
    wallets = [LocalSigner.from_key(key).address for key in keys]
    for wallet in wallets:
        await devnet.control_async("faucet", address=wallet, amount=str(BALANCE))
    since = int((await devnet.control_async("status"))["block"]["number"])
    dataset = folder / "train.jsonl"
    rows = ({"instruction": f"{n}?", "input": "", "output": "ok"} for n in range(8))
    dataset.write_text("".join(json.dumps(row) + "\n" for row in rows))
    batch = Batch(
        name="chaos",
        models=[MODEL],
        datasets=[dataset],
        params=[PARAMS | {"learning_rate": (100_000 + n) / 1e9} for n in range(options.jobs)],
        output_dir=folder / "out",
        wallets=wallets,
        job={"failovers": 5, "max_spend": "1"},
    )
    broker = create_broker(
        None,
        "local",
        private_keys=keys,
        rpc_url=devnet.rpc_url,
        contracts={name: devnet.info[name] for name in ("ledger", "inference", "fine_tuning")},
        state_dir=folder / "state",
        http=HttpSettings(limits=ProviderLimits(rate=None, pause=0.5), idle_timeout=2.0),
        polling=PollPolicy(first=0.2, longest=1.0, rate=1000.0),
    )
    requests, open_before = Requests(), sockets()
    async with broker, JobRunner(broker) as runner:
        await switch_on(devnet, options.rate)
        requests.count, began = 0, time.monotonic()
        result = await runner.run_batch(batch, at_once=options.at_once)
        seconds, asked = time.monotonic() - began, requests.count
        struck = await switch_off(devnet)
        states = await runner.list_jobs()
        kinds: collections.Counter[str] = collections.Counter()
        for state in states:
            async for event in (await runner.attach(state.job_id)).events():
                kinds[event.kind] += 1
        audits = {wallet: broker.using(wallet).audit_path for wallet in broker.wallets}
    ends = collections.Counter(row.status for row in result.rows)
    fired = ", ".join(f"{count} {kind}" for kind, count in struck.most_common())
    print(
        f"{options.jobs} jobs, {options.providers} providers, {options.wallets} wallets, faults at "
        f"{options.rate:.0%} of each kind, load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores\n"
        f"  ended         {dict(ends)} in {seconds:.0f} s, {options.jobs / seconds:.2f} jobs/s\n"
        f"  faults        {sum(struck.values())}: {fired}\n"
        f"  requests      {asked / options.jobs:.0f} per job\n"
        f"  tried again   {kinds['stage_retrying']} stages, {kinds['provider_excluded']} jobs at another provider"
    )
    failed = [row for row in result.rows if row.status != "succeeded"]
    for row in failed:
        print(f"  {row.job_id or row.name}: {row.status}: {row.error}", file=sys.stderr)
    unexplained = [row for row in failed if not any(words in row.error for words in EXPLAINED)]
    wrong = await balanced(devnet, states, wallets, audits, since)
    for line in wrong:
        print(f"  {line}", file=sys.stderr)
    print(f"  books         {len(wrong)} differences in {len(wallets)} wallets, audit logs against the chain")
    missing = sorted(kind for kind, count in struck.items() if not count)
    if missing:
        print(f"  never struck  {', '.join(missing)}")
    tasks = len(asyncio.all_tasks()) - 1
    left = sockets() - open_before
    print(f"  left          {tasks} tasks, {left} sockets; {len(unexplained)} jobs ended as no fault explains")
    is_sure = options.jobs * options.rate >= SURE
    ended = len(result.rows) == options.jobs
    return 0 if ended and not (unexplained or wrong or tasks or left > 0 or (missing and is_sure)) else 1


def sockets() -> int:
    """Count this process's open sockets."""
    count = 0
    for entry in os.listdir("/proc/self/fd") if os.path.isdir("/proc/self/fd") else ():
        try:
            count += os.readlink(f"/proc/self/fd/{entry}").startswith("socket:")
        except OSError:
            continue
    return count


async def balanced(
    devnet: DevnetProcess, states: tuple[JobState, ...], wallets: list[str], audits: dict[Any, Any], since: int
) -> list[str]:
    wrong: list[str] = []
    async with aiohttp.ClientSession() as session:
        books = Books(devnet.info, session)
        for wallet in wallets:
            own = [state for state in states if state.wallet == wallet]
            trail = await anyio.to_thread.run_sync(read_audit, audits[wallet])
            paid = sorted(paid.tx_hash for state in own for paid in state.paid)
            if paid != sorted(transaction.tx_hash for transaction in trail.transactions):
                wrong.append(f"{wallet}: the jobs' transactions aren't those of the audit log")
            fees = {state.task_id: state.fee for state in own if state.deliverable_acknowledged and state.task_id}
            found = await books.check(wallet, trail, start=BALANCE, since=since, fees=fees)
            wrong += [f"{wallet}: {line}" for line in found]
    return wrong


async def main(options: argparse.Namespace) -> int:
    words = ("--engine", options.engine, "--providers", str(options.providers), "--limits", "off")
    with tempfile.TemporaryDirectory() as folder, DevnetProcess(*words, ready_seconds=300) as devnet:
        return await run(devnet, options, Path(folder))


def parse(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=200)
    parser.add_argument("--providers", type=int, default=20)
    parser.add_argument("--wallets", type=int, default=10)
    parser.add_argument("--rate", type=float, default=0.05)
    parser.add_argument("--at-once", type=int, default=50)
    parser.add_argument("--engine", default="pyevm")
    return parser.parse_args(words)


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)
    sys.exit(asyncio.run(main(parse(sys.argv[1:]))))
