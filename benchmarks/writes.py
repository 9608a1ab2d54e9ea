"""How long writes of one wallet take: all at once through the outbox, and one after the other.

    python benchmarks/writes.py [--engine pyevm|anvil] [--writes 200] [--in-turn 15] [--block-time 1]

Both run on the same chain in one go, on a file outbox with fsync. "In turn" waits for each receipt before the next
write; it is done with fewer writes, as its time per write is that of a block, and compared by the time per write.
"""

import argparse
import dataclasses
import logging
import tempfile
import time
from pathlib import Path

import anyio

from zg_async.clock import SystemClock
from zg_async.devnet.accounts import dev_account, owner
from zg_async.devnet.chain_client import ChainClient, Wallet
from zg_async.devnet.deploy import plan_deployment
from zg_async.devnet.engines import make_engine
from zg_async.networks import NETWORKS
from zg_async.transport.chain import Chain
from zg_async.transport.http import Http
from zg_async.transport.rpc import Rpc
from zg_async.transport.signer import LocalSigner
from zg_async.transport.sqlite_outbox import SqliteOutbox
from zg_async.wire.contracts import LedgerContract

ZG = 10**18
USER = dev_account(1)
LOCAL = NETWORKS["local"]


async def run(engine: str, writes: int, in_turn: int, block_time: int) -> None:
    call = LedgerContract(LOCAL.ledger).deposit_fund(value=1)
    balances = {owner().address: 1000 * ZG, USER.address: 1000 * ZG}
    async with make_engine(engine, balances) as node, Http() as http:
        client = ChainClient(node.request, SystemClock())
        deployer = Wallet(client, owner().private_key)
        for step in plan_deployment().transactions:
            await deployer.transact(step.to, step.data, step.value)
        await Wallet(client, USER.private_key).send(LedgerContract(LOCAL.ledger).add_ledger("", value=3 * ZG))
        await node.set_block_time(block_time)
        with tempfile.TemporaryDirectory() as folder:
            chain = Chain(
                dataclasses.replace(LOCAL, rpc_url=node.url),
                Rpc(node.url, http),
                outbox=SqliteOutbox(Path(folder) / "outbox.sqlite"),
                signers=[LocalSigner.from_key(USER.private_key)],
                clock=SystemClock(),
            )
            async with chain:
                await report(chain, call, writes, in_turn)


async def report(chain: Chain, call, writes: int, in_turn: int) -> None:
    await chain.write(call, wallet=USER.address)
    began = time.perf_counter()
    for _ in range(in_turn):
        await chain.write(call, wallet=USER.address)
    slow = (time.perf_counter() - began) / in_turn
    print(f"in turn:     {in_turn:4} writes, {slow:7.3f} s each")
    receipts = []

    async def write() -> None:
        receipts.append(await chain.write(call, wallet=USER.address))

    cpu, began = time.process_time(), time.perf_counter()
    async with anyio.create_task_group() as group:
        for _ in range(writes):
            group.start_soon(write)
    seconds = time.perf_counter() - began
    blocks = {receipt.block_number for receipt in receipts}
    print(f"all at once: {writes:4} writes, {seconds / writes:7.3f} s each, {seconds:.1f} s in {len(blocks)} blocks")
    print(
        f"ratio:       {slow * writes / seconds:.1f} (CPU {1000 * (time.process_time() - cpu) / writes:.1f} ms a write)"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", default="pyevm")
    parser.add_argument("--writes", type=int, default=200)
    parser.add_argument("--in-turn", type=int, default=15)
    parser.add_argument("--block-time", type=int, default=1)
    options = parser.parse_args()
    logging.basicConfig(level=logging.ERROR)
    anyio.run(run, options.engine, options.writes, options.in_turn, options.block_time)


if __name__ == "__main__":
    main()
