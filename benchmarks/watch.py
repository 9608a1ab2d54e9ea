"""Many watches at once: requests per round, CPU, memory, and the delay from a change to its event.

    python benchmarks/watch.py [WATCHES:WALLETS ...]        default 1000:10 10000:10 10000:100

A devnet holds the contracts and 100 registered providers; a stub process answers for all of them, so that what is
measured is the watching side. A wallet has one task at each provider; where there are more watches than tasks, several
watch the same task. The naive way is one loop per watch that asks the provider each interval: its CPU per request is
measured with a bare aiohttp session in the same run, and its delay is half an interval. A run takes about three
minutes, most of it waiting: `--seconds` of rounds, an interval for the polled delays, a block for each event.
"""

import argparse
import asyncio
import datetime as dt
import gc
import json
import os
import random
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, ClassVar

import aiohttp
import anyio

from zg_async import Broker, HttpSettings, PollPolicy, ProviderLimits, create_broker
from zg_async.devnet.accounts import fine_tuning_provider, fine_tuning_signer, owner
from zg_async.devnet.chain_client import ChainClient, HttpRpc, Wallet
from zg_async.devnet.process import DevnetProcess
from zg_async.devnet.provider import QUOTA
from zg_async.transport.signer import LocalSigner
from zg_async.units import NEURON_PER_0G
from zg_async.wire.contracts import FineTuningContract

PROVIDERS = 100
EVENTS = 20
CHANGES = 40
NOBODY = "0x" + "11" * 20
BEGAN = dt.datetime.now(dt.UTC)
LISTED = 10
"""Tasks a wallet has at a provider when it asks for all of them; the last one of them hasn't moved for a day."""


# --- the stub providers, a process of their own ---------------------------------------------------------------------


class Stub(asyncio.Protocol):
    """Answers task reads of all providers, and counts them; `/set/<task>/<state>` changes one."""

    states: ClassVar[dict[str, tuple[str, int]]] = {}
    count: ClassVar[int] = 0

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.rest = b""

    def data_received(self, data: bytes) -> None:
        self.rest += data
        while (end := self.rest.find(b"\r\n\r\n")) >= 0:
            path = self.rest[: self.rest.index(b"\r\n")].split(b" ")[1].decode()
            self.rest = self.rest[end + 4 :]
            body = json.dumps(self.answer(path.strip("/").split("/"))).encode()
            head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
            self.transport.write(head.encode() + body)

    def answer(self, parts: list[str]) -> Any:
        if parts[0] == "set":
            Stub.states[parts[1]] = (parts[2], Stub.states.get(parts[1], ("", 0))[1] + 1)
        if parts[0] in ("set", "count"):
            return Stub.count
        Stub.count += 1
        if len(parts) > 5:
            return self.task(parts[3], parts[5])
        return [self.task(parts[3], task_id(parts[3], int(parts[0][1:]), number)) for number in range(LISTED)]

    @staticmethod
    def task(user: str, task_id: str) -> dict[str, Any]:
        progress, changes = Stub.states.get(task_id, ("Training", 0))
        began = BEGAN - dt.timedelta(days=task_id[9:13] == f"{LISTED - 1:04x}")
        return {
            "id": task_id,
            "createdAt": began.isoformat(),
            "updatedAt": (began + dt.timedelta(seconds=changes)).isoformat(),
            "userAddress": user,
            "preTrainedModelHash": "0x" + "ab" * 32,
            "datasetHash": "0x" + "cd" * 32,
            "trainingParams": '{"num_train_epochs": 1}',
            "fee": "1000",
            "nonce": "1",
            "progress": progress,
        }


async def serve() -> None:
    server = await asyncio.get_running_loop().create_server(Stub, "127.0.0.1", 0, backlog=2000)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


# --- set-up ---------------------------------------------------------------------------------------------------------


async def register(client: ChainClient, devnet: DevnetProcess, stub: str) -> None:
    """Register and approve the providers with direct contract calls."""
    contract = FineTuningContract(devnet.info["fine_tuning"])
    stake, boss = await client.call(contract.min_provider_stake()), Wallet(client, owner().private_key)
    for n in range(PROVIDERS):
        account = fine_tuning_provider(n)
        await devnet.control_async("faucet", address=account.address, amount=str(stake + 10 * NEURON_PER_0G))
        await Wallet(client, account.private_key).send(
            contract.add_or_update_service(
                url=f"{stub}/p{n}",
                quota=QUOTA,
                price_per_token=1,
                occupied=False,
                models=[],
                tee_signer_address=fine_tuning_signer(n).address,
                value=stake,
            )
        )
        await boss.send(contract.acknowledge_tee_signer_by_owner(account.address))


def task_id(wallet: str, provider: int, number: int = 0) -> str:
    return f"{provider:08x}-{number:04x}-4000-8000-{wallet[-12:].lower()}"


def rss() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


class Counter:
    """Counts the broker's JSON-RPC round trips."""

    def __init__(self, broker: Broker) -> None:
        self.trips = 0
        rpc: Any = broker.chain.rpc
        exchange = rpc._exchange

        async def counted(*arguments: Any) -> Any:
            self.trips += 1
            return await exchange(*arguments)

        rpc._exchange = counted


# --- what is measured -----------------------------------------------------------------------------------------------


class Run:
    """Some watches of one broker, each read by a task."""

    def __init__(self, broker: Broker, wallets: int, watches: int) -> None:
        self.broker = broker
        self.pairs = [(w, p) for p in range(PROVIDERS) for w in range(wallets)]
        self.watches = watches
        self.seen: dict[str, dict[str, float]] = {}
        self.started = 0
        self.change = anyio.Event()

    async def read(self, wallet: int, provider: int) -> None:
        address = self.broker.wallets[wallet]
        view, task = self.broker.using(address), task_id(address, provider)
        first = True
        async with view.fine_tuning.watch_task(fine_tuning_provider(provider).address, task) as changes:
            async for change in changes:
                self.started += first
                first = False
                self.seen.setdefault(task, {}).setdefault(getattr(change, "state_text", ""), time.perf_counter())
                self.change.set()
                self.change = anyio.Event()

    def start(self, group: Any) -> None:
        for n in range(self.watches):
            group.start_soon(self.read, *self.pairs[n % len(self.pairs)])

    async def all_started(self) -> None:
        while self.started < self.watches:
            await self.change.wait()

    async def delay(self, task: str, state: str, since: float) -> float:
        while state not in self.seen.get(task, ()):
            await self.change.wait()
        return max(self.seen[task][state] - since, 0.0)


async def naive(stub: str, interval: float, loops: int) -> tuple[float, float]:
    """One bare loop per watch; returns CPU seconds and bytes per request and loop."""
    gc.collect()
    before, count, stop = rss(), 0, time.monotonic() + 6

    async def loop(session: aiohttp.ClientSession, n: int) -> None:
        nonlocal count
        await anyio.sleep(interval * n / loops)
        while time.monotonic() < stop:
            async with session.get(f"{stub}/p{n % PROVIDERS}/v1/user/{NOBODY}/task/{task_id(NOBODY, n)}") as reply:
                json.loads(await reply.read())
            count += 1
            await anyio.sleep(interval)

    async with aiohttp.ClientSession() as session, anyio.create_task_group() as group:
        used = time.process_time()
        for n in range(loops):
            group.start_soon(loop, session, n)
    return (time.process_time() - used) / count, (rss() - before) / loops


async def get(session: aiohttp.ClientSession, url: str) -> int:
    async with session.get(url) as reply:
        return int(await reply.text())


async def measure(
    devnet: DevnetProcess, client: ChainClient, stub: str, keys: list[str], watches: int, seconds: float, state: Path
) -> None:
    wallets = len(keys)
    tasks = min(wallets * PROVIDERS, watches)
    interval = max(PollPolicy().longest, tasks / 300)
    policy = PollPolicy(first=interval, longest=interval, growth=1.0, rate=1000.0)
    broker = create_broker(
        None,
        "local",
        private_keys=keys,
        rpc_url=devnet.rpc_url,
        state_dir=state,
        http=HttpSettings(limits=ProviderLimits(rate=None)),
        polling=policy,
    )
    async with broker, aiohttp.ClientSession() as session, anyio.create_task_group() as group:
        await open_accounts(broker)
        counter, run = Counter(broker), Run(broker, wallets, watches)
        gc.collect()
        memory, began, used = rss(), time.perf_counter(), time.process_time()
        run.start(group)
        await run.all_started()
        print(
            f"\n{watches} watches of {tasks} tasks, {wallets} wallets, {PROVIDERS} providers, "
            f"a round each {interval:.0f} s"
            f"\n  start           {time.perf_counter() - began:.1f} s, {time.process_time() - used:.1f} s CPU, "
            f"{counter.trips} RPC trips; {(rss() - memory) / watches / 1024:.1f} KiB per watch"
        )
        trips, asked = counter.trips, await get(session, f"{stub}/count")
        began, used = time.perf_counter(), time.process_time()
        await anyio.sleep(seconds)
        cpu, wall = time.process_time() - used, time.perf_counter() - began
        asked, trips = await get(session, f"{stub}/count") - asked, counter.trips - trips
        rounds = wall / interval
        print(
            f"  rounds          {asked / rounds:.0f} requests per round, {cpu / asked * 1000:.2f} ms CPU per request, "
            f"{cpu / rounds / watches * 1000:.3f} ms per watch and round\n"
            f"  RPC             {trips / wall:.1f} trips/s for all ({trips / asked:.4f} per request)"
        )
        by_poll = await provider_delays(run, session, stub, interval)
        by_event = await chain_delays(run, client, devnet, broker)
        print(
            f"  delay           by polling {statistics.median(by_poll):.1f} s median, {max(by_poll):.1f} s most; "
            f"chain event {statistics.median(by_event):.3f} s median, {max(by_event):.3f} s most, "
            f"blocks each second (half an interval: {interval / 2:.1f} s)"
        )
        group.cancel_scope.cancel()
    per_request, per_loop = await naive(stub, 1.0, 500)
    print(
        f"  one loop each   {watches} requests per round, {per_request * 1000:.2f} ms CPU per request (bare aiohttp), "
        f"{per_loop / 1024:.1f} KiB per loop\n"
        f"  ratio           requests {watches * rounds / asked:.1f}x fewer, CPU per round "
        f"{per_request * watches / (cpu / rounds):.2f}x less, delay of chain events "
        f"{interval / 2 / statistics.median(by_event):.0f}x shorter"
    )


async def open_accounts(broker: Broker) -> None:
    """Give some wallets sub-accounts, so that providers can deliver to them on chain."""
    for n in range(EVENTS):
        view = broker.using(broker.wallets[n % 5])
        await view.ledger.ensure_funded(fine_tuning_provider(n).address, "fine-tuning", "1")


async def provider_delays(run: Run, session: aiohttp.ClientSession, stub: str, interval: float) -> list[float]:
    delays: list[float] = []

    async def one(wallet: int, provider: int) -> None:
        await anyio.sleep(random.uniform(0, interval))
        task, since = task_id(run.broker.wallets[wallet], provider), time.perf_counter()
        await get(session, f"{stub}/set/{task}/Trained")
        delays.append(await run.delay(task, "Trained", since))

    async with anyio.create_task_group() as group:
        for n in range(CHANGES):
            group.start_soon(one, 6, PROVIDERS - 1 - n)
    return delays


async def chain_delays(run: Run, client: ChainClient, devnet: DevnetProcess, broker: Broker) -> list[float]:
    """Deliver on chain, blocks each second; the delay counts from when the node knows the receipt."""
    delays: list[float] = []
    contract = FineTuningContract(devnet.info["fine_tuning"])
    await devnet.control_async("block_time", seconds=1)
    await anyio.sleep(10)  # let the watcher learn the block time
    for n in range(EVENTS):
        user = broker.wallets[n % 5]
        task = task_id(user, n)
        wallet = Wallet(client, fine_tuning_provider(n).private_key)
        call = contract.add_deliverable(user, task, os.urandom(32))
        hash_ = await wallet._broadcast(call.to, call.data, 0, 1_000_000)
        await anyio.sleep(random.uniform(0, 0.2))
        while await client.request("eth_getTransactionReceipt", hash_) is None:  # noqa: ASYNC110
            await anyio.sleep(0.01)
        delays.append(await run.delay(task, "Delivered", time.perf_counter()))
    await devnet.control_async("block_time", seconds=0)
    return delays


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("runs", nargs="*", default=["1000:10", "10000:10", "10000:100"])
    parser.add_argument("--seconds", type=float, default=45)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, DevnetProcess("--providers", "0") as devnet:
        for run in options.runs:
            watches, wallets = (int(part) for part in run.split(":"))
            if watches < wallets * PROVIDERS:
                parser.error(f"{wallets} wallets have {wallets * PROVIDERS} tasks: give as many watches at least")
            async with await anyio.open_process([sys.executable, __file__, "serve"], stderr=None) as server:
                try:
                    stub = f"http://127.0.0.1:{int(await server.stdout.receive())}"  # type: ignore[union-attr]
                    keys = ["0x" + os.urandom(32).hex() for _ in range(wallets)]
                    for key in keys[:5]:
                        address = LocalSigner.from_key(key).address
                        devnet.control("faucet", address=address, amount=str(100 * NEURON_PER_0G))
                    async with aiohttp.ClientSession() as session:
                        client = ChainClient(HttpRpc(devnet.rpc_url, session))
                        await (register if run == options.runs[0] else move)(client, devnet, stub)
                        state = Path(folder) / f"{watches}-{wallets}"
                        await measure(devnet, client, stub, keys, watches, options.seconds, state)
                finally:
                    server.terminate()


async def move(client: ChainClient, devnet: DevnetProcess, stub: str) -> None:
    """Register the new stub's addresses."""
    contract = FineTuningContract(devnet.info["fine_tuning"])
    for n in range(PROVIDERS):
        await Wallet(client, fine_tuning_provider(n).private_key).send(
            contract.add_or_update_service(
                url=f"{stub}/p{n}",
                quota=QUOTA,
                price_per_token=1,
                occupied=False,
                models=[],
                tee_signer_address=fine_tuning_signer(n).address,
                value=0,
            )
        )


if __name__ == "__main__":
    asyncio.run(serve() if sys.argv[1:] == ["serve"] else main())
