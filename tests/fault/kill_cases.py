"""Runs `kill_runner` programs against a devnet, killed as told, then to the end, and looks at what is left."""

import dataclasses
import json
import os
import secrets
import signal
import sys
import urllib.request
from pathlib import Path

import anyio

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


@dataclasses.dataclass
class Case:
    """One wallet with one job, in a folder of its own."""

    devnet: Path
    folder: Path

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True)
        self.key = "0x" + secrets.token_hex(32)
        self.info = json.loads(self.devnet.read_text())
        self.address = public_key_address(public_key(bytes.fromhex(self.key[2:])))
        self.deaths = 0

    async def run(self, kill: str = "") -> dict | None:
        """Run the program; None if it was killed."""
        environment = {**os.environ, "ZG_KILL": kill, "ZG_POINTS": str(self.folder / "points")}
        command = [sys.executable, "-m", "tests.fault.kill_runner", str(self.devnet), str(self.folder), self.key]
        done = await anyio.run_process(command, cwd=ROOT, env=environment, check=False)
        if done.returncode == -signal.SIGKILL:
            self.deaths += 1
            return None
        if done.returncode:
            raise AssertionError(f"{kill}: {done.stderr.decode()[-2000:]}")
        return json.loads(done.stdout)

    async def run_to_end(self, *kills: str) -> dict:
        """Fund the wallet, die as told in one run after the other, then run undisturbed and check."""
        await self.rpc("hardhat_setBalance", self.address, hex(BALANCE))
        for kill in kills:
            if (result := await self.run(kill)) is not None:
                break  # it never came to that point
        result = await self.run()
        await self.check(result)
        return result

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
