"""Runs `kill_runner` programs against a devnet, killed as told, then to the end, and looks at what is left."""

import contextlib
import dataclasses
import hashlib
import json
import secrets
import signal
import sqlite3
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import anyio

from tests.fault.kill_runner import DIED, RESULT, STDERR
from tests.fault.kill_runner import POINTS as POINTS_FILE
from zg_async.wire.envelope import public_key
from zg_async.wire.signing import public_key_address

ROOT = Path(__file__).parents[2]
BALANCE = 10 * 10**18
TRANSACTIONS = 4
"""add_ledger, transfer_fund for fine-tuning and for inference, acknowledge_deliverable."""
POINTS = (
    *(f"rpc eth_sendRawTransaction:{n}" for n in range(1, TRANSACTIONS + 1)),
    "POST /v1/user/*/dataset:1",
    "POST /v1/user/*/task:1",
    "POST /v1/user/*/task/*/lora:1",
    "rename model.encrypted:1",
    "rename model.zip:1",
    "rename adapter:1",
    "rename adapter:2",
)
"""Every call that changes something outside; deploying isn't among them, the devnet's provider does it by itself."""
FACTS = (
    "job_submitted+dataset_checked",
    "provider_chosen",
    "cost_estimated",
    "provider_funded",
    "provider_acknowledged",
    "dataset_uploaded",
    "task_requested",
    "task_created",
    "task_progressed",
    "task_delivered",
    "model_downloaded",
    "deliverable_acknowledged",
    "model_decrypted",
    "adapter_deployed",
    "job_succeeded",
)
"""What the journal of such a job gets, in order: the boundaries of its steps."""
MOST_DEATHS = 40
"""More than a job has commits."""


@contextlib.contextmanager
def runners(module: str = "tests.fault.kill_runner") -> Iterator[str]:
    """Start what runs the programs, and yield its socket."""
    with tempfile.TemporaryDirectory() as folder:  # a socket's path has to be short
        path = f"{folder}/runners"
        command = [sys.executable, "-m", module, path]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as process:
            try:
                assert process.stdout is not None
                assert process.stdout.readline() == b"ready\n"
                yield path
            finally:
                process.terminate()


@dataclasses.dataclass
class Case:
    """One wallet with one job, in a folder of its own."""

    devnet: Path
    runners: str
    """The socket of `runners()`."""
    folder: Path

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True)
        self.key = "0x" + secrets.token_hex(32)
        self.info = json.loads(self.devnet.read_text())
        self.address = public_key_address(public_key(bytes.fromhex(self.key[2:])))
        self.deaths = 0
        self.weights = b""
        """The adapter's digest, once it was checked."""
        self.unsent: list[int] = []
        """How many signed transactions were on disk and unknown to the node, at each death."""

    async def run(self, kill: str = "") -> dict | None:
        """Run the program in a process of its own; None if it was killed."""
        (self.folder / RESULT).unlink(missing_ok=True)
        async with await anyio.connect_unix(self.runners) as connection:
            order = [self.info, str(self.folder), self.key, kill]
            await connection.send(json.dumps(order).encode() + b"\n")
            code = int(await connection.receive())
        if code == -signal.SIGKILL:
            self.deaths += 1
            known = [await self.rpc("eth_getTransactionByHash", tx_hash) for tx_hash in self.signed()]
            self.unsent.append(known.count(None))
            return None
        if code:
            raise AssertionError(f"{kill}: {(self.folder / STDERR).read_text()[-2000:]}")
        return json.loads((self.folder / RESULT).read_text())

    async def run_to_end(self, *kills: str) -> dict:
        """Fund the wallet, die as told in one run after the other, then run undisturbed and check."""
        await self.fund()
        for kill in kills:
            if await self.run(kill) is not None:
                break  # it never came to that point
        result = await self.run()
        await self.check(result)
        return result

    async def run_dying(self, kill: str) -> None:
        """Fund the wallet, die as told in every run until one gets to the end, and check."""
        await self.fund()
        for _ in range(MOST_DEATHS):
            if (result := await self.run(kill)) is not None:
                await self.check(result)
                return
        raise AssertionError(f"{kill}: {MOST_DEATHS} runs got no further than {self.died_at()}")

    async def fund(self) -> None:
        await self.rpc("hardhat_setBalance", self.address, hex(BALANCE))

    def died_at(self) -> list[str]:
        lines = (self.folder / POINTS_FILE).read_text().splitlines()
        return [line.removeprefix(f"{DIED} ") for line in lines if line.startswith(DIED)]

    def signed(self) -> list[str]:
        """Return the hashes of all bytes that the outbox has on disk as signed, oldest first."""
        path = self.folder / "state" / "outbox.sqlite"
        if not path.exists():
            return []
        with contextlib.closing(sqlite3.connect(path)) as db:
            rows = [json.loads(body) for (body,) in db.execute("select body from entry order by height")]
        return [row["version"]["hash"] for row in rows if "version" in row]

    async def rpc(self, method: str, *params: object) -> object:
        body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}).encode()
        request = urllib.request.Request(self.info["rpc_url"], body, {"Content-Type": "application/json"})
        answer = await anyio.to_thread.run_sync(lambda: urllib.request.urlopen(request).read())
        return json.loads(answer)["result"]

    async def tasks(self) -> list:
        found = []
        for provider in self.info["providers"]:
            url = f"{provider['url']}/v1/user/{self.address}/task"
            found += json.loads(await anyio.to_thread.run_sync(lambda url=url: urllib.request.urlopen(url).read()))
        return found

    async def check(self, result: dict | None) -> None:
        """One task, each transaction once, the adapter whole, nothing else left behind."""
        assert result is not None
        count = int(await self.rpc("eth_getTransactionCount", self.address, "latest"), 16)
        assert count == len(set(result["transactions"])) == TRANSACTIONS, (count, result["transactions"])
        assert sorted(self.signed()) == sorted(result["transactions"])  # nothing was signed twice
        tasks = await self.tasks()
        assert [task["id"] for task in tasks] == [result["task_id"]]
        assert tasks[0]["progress"] == "Finished"
        assert str(result["fee"]) == tasks[0]["fee"]
        adapter = Path(result["adapter_path"])
        assert [path.name for path in adapter.parent.iterdir()] == ["adapter"]
        assert result["files"] == ["adapter_config.json", "adapter_model.safetensors"]
        data = (adapter / "adapter_model.safetensors").read_bytes()
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        end = max(tensor["data_offsets"][1] for name, tensor in header.items() if name != "__metadata__")
        assert len(data) == 8 + int.from_bytes(data[:8], "little") + end
        self.weights = hashlib.sha256(data).digest()
