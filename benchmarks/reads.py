"""The account view of 20 + 20 sub-accounts, the node 50 ms away: seconds and round trips.

    python benchmarks/reads.py [SUB-ACCOUNTS-PER-SERVICE] [MILLISECONDS]        default 20 50

Ours is `ledger.get_ledger_with_detail`. Beside it the same facts read one call after the other, and the floor: one
bare aiohttp request with the three calls in a batch, its answer only decoded from JSON. The delay is put in by the
node, once for each HTTP request. Aim: one trip.
"""

import asyncio
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp

from zg_async import Broker, create_broker
from zg_async.devnet.process import DevnetProcess
from zg_async.transport.signer import LocalSigner
from zg_async.units import NEURON_PER_0G
from zg_async.wire.contracts import FineTuningContract, InferenceContract, LedgerContract

ROUNDS = 7


class Trips:
    """Counts a broker's JSON-RPC round trips."""

    def __init__(self, broker: Broker) -> None:
        self.count = 0
        rpc: Any = broker.chain.rpc
        exchange = rpc._exchange

        async def counted(*arguments: Any) -> Any:
            self.count += 1
            return await exchange(*arguments)

        rpc._exchange = counted


async def timed(work: Callable[[], Awaitable[Any]]) -> float:
    """Return the median seconds of some rounds, after one to warm up."""
    seconds = []
    for _ in range(ROUNDS + 1):
        began = time.perf_counter()
        await work()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds[1:])


async def one_by_one(broker: Broker, devnet: DevnetProcess) -> None:
    """Read as a program does that asks for each thing when it comes to it."""
    chain, user = broker.chain, broker.address
    ledger = LedgerContract(devnet.info["ledger"])
    await chain.call(ledger.get_ledger(user))
    for address, contract in (
        (devnet.info["fine_tuning"], FineTuningContract),
        (devnet.info["inference"], InferenceContract),
    ):
        info = await chain.call(ledger.get_service_info(address))
        for provider in await chain.call(ledger.get_ledger_providers(user, info.full_name)):
            await chain.call(contract(address).get_account(user, provider))


async def main(accounts: int, latency: float) -> None:
    with tempfile.TemporaryDirectory() as folder, DevnetProcess("--providers", "0") as devnet:
        key = "0x" + os.urandom(32).hex()
        address = LocalSigner.from_key(key).address
        await devnet.control_async("faucet", address=address, amount=str(1000 * NEURON_PER_0G))
        async with create_broker(key, "local", rpc_url=devnet.rpc_url, state_dir=Path(folder)) as broker:
            await broker.ledger.add_ledger(3 * accounts * NEURON_PER_0G)
            for n in range(1, accounts + 1):
                for kind in ("fine-tuning", "inference"):
                    await broker.ledger.transfer_fund(f"0x{n:040x}", kind, "1")
            await devnet.control_async("rpc_faults", operation="*", kind="delay", seconds=latency, times=None)
            trips = Trips(broker)
            ours = await timed(broker.ledger.get_ledger_with_detail)
            our_trips, trips.count = trips.count / (ROUNDS + 1), 0
            detail = await broker.ledger.get_ledger_with_detail()
            found, trips.count = len(detail.fine_tuning) + len(detail.inference), 0
            single = await timed(lambda: one_by_one(broker, devnet))
            single_trips = trips.count / (ROUNDS + 1)
            raw = await floor(devnet, address)
    print(f"account view, {found} sub-accounts, node {latency * 1000:.0f} ms away")
    print(f"  ours                      {ours:.3f} s  {our_trips:.0f} trips")
    print(f"  one call after the other  {single:.3f} s  {single_trips:.0f} trips  {single / ours:.1f}x ours")
    print(f"  bare request              {raw:.3f} s  1 trip   {ours / raw:.2f}x is ours")


async def floor(devnet: DevnetProcess, user: str) -> float:
    info = devnet.info
    calls = (
        LedgerContract(info["ledger"]).get_ledger(user),
        FineTuningContract(info["fine_tuning"]).get_accounts_by_user(user, 0, 50),
        InferenceContract(info["inference"]).get_accounts_by_user(user, 0, 50),
    )
    batch = [
        {
            "jsonrpc": "2.0",
            "id": n,
            "method": "eth_call",
            "params": [{"to": call.to, "data": "0x" + call.data.hex()}, "latest"],
        }
        for n, call in enumerate(calls)
    ]
    async with aiohttp.ClientSession() as session:

        async def ask() -> None:
            async with session.post(devnet.rpc_url, json=batch) as reply:
                await reply.json()

        return await timed(ask)


if __name__ == "__main__":
    asyncio.run(main(int((sys.argv[1:2] or ["20"])[0]), float((sys.argv[2:3] or ["50"])[0]) / 1000))
