"""A batch of six jobs for two wallets against a devnet, in processes that are killed, and what has to be left of it.

    python -m tests.fault.kill_batch SOCKET

serves runs as `kill_runner` does, an order being `[DEVNET, FOLDER, KEYS, KILL]`.
"""

import collections
import contextlib
import dataclasses
import json
import secrets
import signal
import sqlite3
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import anyio
import anyio.to_thread

from tests.fault.books import Books
from tests.fault.kill_cases import runners
from tests.fault.kill_runner import DIED, PARAMS, POINTS, RESULT, STDERR, serve
from zg_async.broker import create_broker
from zg_async.jobs.batch import Batch
from zg_async.jobs.runner import JobRunner
from zg_async.managers.polling import PollPolicy
from zg_async.transport.audit import read_audit
from zg_async.transport.http import HttpSettings
from zg_async.transport.limiter import UNLIMITED
from zg_async.units import NEURON_PER_0G
from zg_async.wire.envelope import public_key
from zg_async.wire.records import Address
from zg_async.wire.signing import public_key_address

JOBS, WALLETS, PROVIDERS = 6, 2, 3
BALANCE = 30 * NEURON_PER_0G
ROWS = 12
MODEL = "Qwen2.5-0.5B-Instruct"


# --- the process that is killed --------------------------------------------------------------------------------------


def matrix(folder: Path, wallets: tuple[Address, ...]) -> Batch:
    """Make the batch: three datasets, two sets of parameters."""
    datasets = [folder / f"{name}.jsonl" for name in ("amber", "birch", "cedar")]
    for path in datasets:
        if not path.exists():
            path.write_text(
                "".join(
                    json.dumps({"instruction": f"What is {n} and {n}?", "input": "", "output": f"{path.stem} {2 * n}"})
                    + "\n"
                    for n in range(ROWS)
                )
            )
    return Batch(
        name=folder.name,
        models=[MODEL],
        datasets=datasets,
        params=[PARAMS, PARAMS | {"num_train_epochs": 2}],
        output_dir=folder / "out",
        wallets=wallets,
        job={"max_spend": "5"},
    )


async def main(devnet: dict[str, Any], folder: Path, keys: list[str]) -> None:
    contracts = {name: devnet[name] for name in ("ledger", "inference", "fine_tuning")}
    broker = create_broker(
        None,
        "local",
        private_keys=keys,
        rpc_url=devnet["rpc_url"],
        contracts=contracts,
        state_dir=folder / "state",
        http=HttpSettings(limits=UNLIMITED),
        polling=PollPolicy(first=0.1, longest=0.5, rate=50.0),
    )
    async with broker, JobRunner(broker) as runner:
        result = await runner.run_batch(matrix(folder, broker.wallets))
        jobs = [
            {"wallet": state.wallet} | (dataclasses.asdict(state.result) if state.result else {})
            for state in await runner.list_jobs()
        ]
        audits = {wallet: str(broker.using(wallet).audit_path) for wallet in broker.wallets}
    (folder / RESULT).write_text(json.dumps({"rows": result.to_json(), "jobs": jobs, "audits": audits}))


# --- what has to be left ---------------------------------------------------------------------------------------------


@contextlib.contextmanager
def batches() -> Iterator[str]:
    """Start what runs the batches, and yield its socket."""
    with runners("tests.fault.kill_batch") as socket:
        yield socket


class BatchCase:
    """Two new wallets with one batch, in a folder of its own."""

    def __init__(self, devnet: Path, socket: str, folder: Path) -> None:
        folder.mkdir(parents=True)
        self.folder, self.socket = folder, socket
        self.info = json.loads(devnet.read_text())
        self.keys = ["0x" + secrets.token_hex(32) for _ in range(WALLETS)]
        self.wallets = [public_key_address(public_key(bytes.fromhex(key[2:]))) for key in self.keys]
        self.since = 0
        self.deaths: list[str] = []
        """The points at which processes died, in order."""
        self.seen: collections.Counter[str] = collections.Counter()
        """How often each point was come to, in all processes."""

    async def fund(self) -> None:
        """Give the wallets what they begin with."""
        async with aiohttp.ClientSession() as session:
            client = Books(self.info, session).client
            self.since = (await client.head())[0]
            for wallet in self.wallets:
                await client.request("hardhat_setBalance", wallet, hex(BALANCE))

    async def run_to_end(self, *kills: str) -> list[str]:
        """Fund the wallets, die as told in one process after the other, run undisturbed, check; return where it died.

        Args:
            kills: Points as of `kill_runner`, but counted over all processes of the batch (`came`).
        """
        await self.fund()
        for kill in kills:
            when, name, number = kill.split(":")
            if (left := int(number) - self.came(name)) > 0 and not await self.run(f"{when}:{name}:{left}"):
                self.deaths.append(kill)
        await self.run()
        await self.check()
        return self.deaths

    def came(self, name: str) -> int:
        """Say how often a point was come to; one of the journal counts when it is on record: death may undo it."""
        kind = name.removeprefix("journal ")
        if kind == name or "+" in kind:
            return self.seen[name]
        count = 0
        for path in (self.folder / "state").rglob("*.sqlite"):
            if not path.name.startswith("outbox"):
                with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as db:
                    count += db.execute("select count(*) from event where kind = ?", (kind,)).fetchone()[0]
        return count

    async def run(self, kill: str = "") -> bool:
        """Run the batch in a process of its own; return whether it came to its end."""
        (self.folder / RESULT).unlink(missing_ok=True)
        (self.folder / POINTS).unlink(missing_ok=True)
        async with await anyio.connect_unix(self.socket) as connection:
            order = [self.info, str(self.folder), self.keys, kill]
            await connection.send(json.dumps(order).encode() + b"\n")
            code = int(await connection.receive())
        self.seen.update(self.points())
        if code == -signal.SIGKILL:
            if not any(point.startswith(DIED) for point in self.points()[-9:]):
                raise AssertionError(f"{kill}: killed, but not by its own hand")
        elif code:
            raise AssertionError(f"{kill}: {(self.folder / STDERR).read_text()[-4000:]}")
        return code == 0

    def points(self) -> list[str]:
        """Return the points of the last run, in order."""
        return (self.folder / POINTS).read_text().splitlines()

    async def check(self) -> None:
        """Each job has one task, one payment and one acknowledgement, no nonce is missing, and the books are right."""
        result = json.loads((self.folder / RESULT).read_text())
        rows, jobs = result["rows"], result["jobs"]
        assert [row["status"] for row in rows] == ["succeeded"] * JOBS, rows
        assert len({row["job_id"] for row in rows}) == len(jobs) == JOBS
        paid = [tx_hash for job in jobs for tx_hash in job["transactions"]]
        assert len(set(paid)) == len(paid)
        wrong: list[str] = []
        async with aiohttp.ClientSession() as session:
            books = Books(self.info, session)
            for wallet in self.wallets:
                own = [job for job in jobs if job["wallet"] == wallet]
                trail = await anyio.to_thread.run_sync(read_audit, result["audits"][wallet])
                mined = [transaction.tx_hash for transaction in trail.transactions]
                assert sorted(mined) == sorted(tx_hash for job in own for tx_hash in job["transactions"])
                tasks = await self._tasks(session, wallet)
                assert sorted(tasks) == sorted(job["task_id"] for job in own)
                assert set(tasks.values()) == {"Finished"}
                fees = {job["task_id"]: job["fee"] for job in own}
                wrong += await books.check(wallet, trail, start=BALANCE, since=self.since, fees=fees)
        assert wrong == []
        for job in jobs:
            assert sorted(path.name for path in Path(job["adapter_path"]).parent.iterdir()) == ["adapter"]
            assert job["files"] == ["adapter_config.json", "adapter_model.safetensors"]

    async def _tasks(self, session: aiohttp.ClientSession, wallet: Address) -> dict[str, str]:
        found: dict[str, str] = {}
        for provider in self.info["providers"]:
            async with session.get(f"{provider['url']}/v1/user/{wallet}/task") as reply:
                found |= {task["id"]: task["progress"] for task in await reply.json()}
        return found


if __name__ == "__main__":
    serve(sys.argv[1], main)
