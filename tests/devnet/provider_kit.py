"""What the provider's tests share: a user with a tiny client, and a chain that answers four questions."""

import json
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import anyio

from tests.clock import FakeClock
from zg_async.devnet.chain_client import ChainClient, HttpRpc, Wallet, address_of
from zg_async.devnet.chain_watch import ChainWatch
from zg_async.devnet.process import DevnetProcess
from zg_async.devnet.provider import ProviderNode
from zg_async.devnet.provider_settings import Settings
from zg_async.devnet.provider_store import ProviderTask
from zg_async.wire.contract_abi import FUNCTIONS, encode
from zg_async.wire.contracts import FineTuningContract, LedgerContract
from zg_async.wire.hashing import keccak256
from zg_async.wire.records import TaskId, TaskProgress
from zg_async.wire.signing import (
    dataset_upload_hash,
    eip191_hash,
    model_download_hash,
    next_request_nonce,
    sign_digest,
    signature_hex,
    task_cancel_hash,
    task_create_hash,
)

VECTORS = Path(__file__).parents[1] / "vectors" / "fine-tuning.json"
QWEN = "0xb4f76a886b8655c92bb021922d60b5e4d9271a5c9da98b6cb10937a06c2c75a7"
PARAMS = json.dumps(
    {
        "neftune_noise_alpha": 5,
        "num_train_epochs": 1,
        "per_device_train_batch_size": 2,
        "learning_rate": 0.0002,
        "max_steps": 3,
    },
    separators=(",", ":"),
)
DATASET = b"".join(
    json.dumps({"instruction": f"Where is station {n}?", "input": "", "output": f"In place {n:03}."}).encode() + b"\n"
    for n in range(12)
)
CONTRACT = "0xA51c1fc2f0D1a1b8494Ed1FE312d7C3a78Ed91C0"
WALLET_KEY, TEE_KEY = b"\x11" * 32, b"\x22" * 32


def vectors() -> dict[str, Any]:
    return json.loads(VECTORS.read_text())


class User:
    """A wallet that talks to one provider over HTTP, with signatures of its own."""

    def __init__(self, key: bytes, session: aiohttp.ClientSession, url: str, clock: Any = None) -> None:
        self.key, self.session, self.url = key, session, url
        self.address = address_of(key)
        self._now = clock.now if clock else time.time
        self.nonce = 0

    def sign(self, inner: bytes) -> str:
        return signature_hex(sign_digest(self.key, eip191_hash(inner)))

    def base(self, address: str | None = None) -> str:
        return f"{self.url}/v1/user/{address or self.address}"

    async def get(self, path: str, **kwargs: Any) -> tuple[int, bytes, Any]:
        async with self.session.get(f"{self.url}{path}", **kwargs) as reply:
            return reply.status, await reply.read(), reply.headers

    async def post(self, url: str, **kwargs: Any) -> tuple[int, Any]:
        async with self.session.post(url, **kwargs) as reply:
            body = await reply.read()
            try:
                return reply.status, json.loads(body)
            except ValueError:
                return reply.status, body

    async def upload(
        self,
        data: bytes = DATASET,
        *,
        name: str | None = "rows.jsonl",
        address: str | None = None,
        timestamp: str | None = None,
        signature: str | None = None,
    ) -> tuple[int, Any]:
        address = address or self.address
        timestamp = str(int(self._now())) if timestamp is None else timestamp
        if signature is None:
            number = int(timestamp) if timestamp.lstrip("+-").isdecimal() else 0
            signature = self.sign(dataset_upload_hash(address, number))
        form = aiohttp.FormData(quote_fields=False)
        if name is not None:
            form.add_field("file", data, filename=name, content_type="application/octet-stream")
        for field, value in (("signature", signature), ("timestamp", timestamp)):
            if value:
                form.add_field(field, value)
        if not form.is_multipart:
            form.add_field("x", b"x", filename="x")
        return await self.post(f"{self.base(address)}/dataset", data=form)

    def task_body(self, dataset_hash: str, **changes: Any) -> dict[str, Any]:
        self.nonce = next_request_nonce(self._now(), self.nonce)
        body = {
            "userAddress": self.address,
            "preTrainedModelHash": QWEN,
            "datasetHash": dataset_hash,
            "trainingParams": PARAMS,
            "fee": "0",
            "nonce": str(self.nonce),
            "signature": self.sign(task_create_hash(self.address, self.nonce, dataset_hash)),
            "wait": True,
        }
        return body | changes

    async def create(self, dataset_hash: str, **changes: Any) -> tuple[int, Any]:
        return await self.post(f"{self.base()}/task", json=self.task_body(dataset_hash, **changes))

    async def train(self, data: bytes = DATASET, **changes: Any) -> str:
        """Upload and create; return the task's id."""
        status, answer = await self.upload(data)
        assert status == 200, answer
        status, answer = await self.create(answer["datasetHash"], **changes)
        assert status == 201, answer
        return answer["id"]

    async def task(self, task_id: str) -> dict[str, Any]:
        status, body, _ = await self.get(f"/v1/user/{self.address}/task/{task_id}")
        assert status == 200, body
        return json.loads(body)

    async def log(self, task_id: str) -> str:
        status, body, _ = await self.get(f"/v1/user/{self.address}/task/{task_id}/log")
        assert status == 200, body
        return body.decode()

    async def wait(self, task_id: str, *states: str) -> dict[str, Any]:
        with anyio.fail_after(40):
            while (task := await self.task(task_id))["progress"] not in states:
                assert task["progress"] not in ("Failed", "Finished"), await self.log(task_id)
                await anyio.sleep(0.03)
        return task

    async def wait_failed(self, task_id: str) -> str:
        """Wait until a task has failed; return its log."""
        with anyio.fail_after(40):
            while (await self.task(task_id))["progress"] != "Failed":
                await anyio.sleep(0.03)
        return await self.log(task_id)

    async def wait_log(self, task_id: str, text: str) -> str:
        """Wait until a task's log has a text; return it."""
        with anyio.fail_after(40):
            while text not in (log := await self.log(task_id)):
                await anyio.sleep(0.03)
        return log

    async def cancel(self, task_id: str, signature: str | None = None) -> tuple[int, Any]:
        body = {"signature": signature or self.sign(task_cancel_hash(task_id))}
        return await self.post(f"{self.base()}/task/{task_id}/cancel", json=body)

    def download_body(self, task_id: str, timestamp: int | None = None) -> dict[str, Any]:
        timestamp = int(self._now()) if timestamp is None else timestamp
        return {"signature": self.sign(model_download_hash(task_id, timestamp)), "timestamp": timestamp}

    async def download(self, task_id: str, *, headers: Any = None) -> tuple[int, bytes, Any]:
        url = f"{self.base()}/task/{task_id}/lora"
        async with self.session.post(url, json=self.download_body(task_id), headers=headers) as reply:
            return reply.status, await reply.read(), reply.headers


class ChainUser(User):
    """A funded user of a running devnet."""

    def __init__(self, key: bytes, session: aiohttp.ClientSession, devnet: DevnetProcess, provider: int = 0) -> None:
        super().__init__(key, session, devnet.providers[provider]["url"])
        self.devnet, self.provider = devnet, devnet.providers[provider]["address"]
        self.client = ChainClient(HttpRpc(devnet.rpc_url, session))
        self.wallet = Wallet(self.client, key)
        self.contract = FineTuningContract(devnet.info["fine_tuning"])
        self.ledger = LedgerContract(devnet.info["ledger"])

    async def open(self, amount: int = 2 * 10**18) -> "ChainUser":
        await self.devnet.control_async("faucet", address=self.address, amount=50 * 10**18)
        await self.wallet.send(self.ledger.add_ledger("", value=5 * 10**18))
        await self.wallet.send(self.ledger.transfer_fund(self.provider, "fine-tuning-v1.0", amount))
        return self

    async def deliverable(self, task_id: str) -> Any:
        return await self.client.call(self.contract.get_deliverable(self.address, self.provider, task_id))

    async def account(self) -> Any:
        return await self.client.call(self.contract.get_account(self.address, self.provider))

    async def acknowledge(self, task_id: str) -> None:
        await self.wallet.send(self.contract.acknowledge_deliverable(self.provider, task_id))

    async def control(self, command: str, **arguments: Any) -> dict[str, Any]:
        return await self.devnet.control_async(command, provider=self.provider, **arguments)


def key_of(name: str) -> bytes:
    return keccak256(name.encode())


@asynccontextmanager
async def chain_user(devnet: DevnetProcess, name: str, *, provider: int = 0) -> AsyncGenerator[ChainUser, None]:
    async with aiohttp.ClientSession() as session:
        user = await ChainUser(key_of(name), session, devnet, provider).open()
        try:
            yield user
        finally:
            await user.control("clear_faults")


class StubChain:
    """Answers what a provider asks of a chain when it sends nothing: head, balance, account, service, deliverable."""

    def __init__(self, clock: FakeClock) -> None:
        self.clock = clock
        self.balance = 10**20
        self.account: dict[str, Any] = {"nonce": 0, "balance": 10**18, "pending": 0, "acknowledged": True}
        self.approved = True
        self.acknowledged = False
        self.calls: list[str] = []

    async def request(self, method: str, *params: Any) -> Any:
        if method == "eth_getBlockByNumber":
            return {"number": "0x1", "hash": "0x" + "01" * 32, "timestamp": hex(int(self.clock.now()))}
        if method == "eth_getLogs":
            return []
        if method == "eth_getBalance":
            self.calls.append("balance")
            return hex(self.balance)
        assert method == "eth_call", method
        data = bytes.fromhex(params[0]["data"][2:])
        function = FUNCTIONS["FineTuningServing"][data[:4]]
        self.calls.append(function.name)
        zero = "0x" + "00" * 20
        if function.name == "lockTime":
            return "0x" + encode(function.outputs, (86400,)).hex()
        if function.name == "getDeliverable":
            row = ("x", b"\x01" * 32, b"", self.acknowledged, 1, False)
        elif function.name == "getAccount":
            a = self.account
            row = (zero, zero, a["nonce"], a["balance"], a["pending"], [], "", [], 0, 0, 0, a["acknowledged"])
        else:
            row = (zero, "http://x", (1, 1, 1, 1, "x"), 1, False, [], address_of(TEE_KEY), self.approved)
        return "0x" + encode(function.outputs, (row,)).hex()


@asynccontextmanager
async def stub_provider(
    folder: Path, clock: FakeClock, **settings: Any
) -> AsyncGenerator[tuple[ProviderNode, StubChain, aiohttp.ClientSession], None]:
    """Serve a provider without workers over a stub chain."""
    chain = StubChain(clock)
    client = ChainClient(chain.request, clock)
    watch = ChainWatch(client, (CONTRACT,))
    await watch.round()
    async with aiohttp.ClientSession() as session:
        node = ProviderNode(
            wallet=Wallet(client, WALLET_KEY),
            tee_key=TEE_KEY,
            contract=CONTRACT,
            watch=watch,
            session=session,
            folder=folder,
            settings=Settings(**({"rate_limit": False} | settings)),
            clock=clock,
        )
        await node.serve()
        try:
            yield node, chain, session
        finally:
            await node.stop()


async def add_task(node: ProviderNode, user: User, task_id: str, progress: TaskProgress) -> ProviderTask:
    """Put a task into a provider's store."""
    task = ProviderTask(
        id=TaskId(task_id),
        created_at=node.now(),
        updated_at=node.now(),
        user=user.address,
        user_address=user.address,
        model_hash=QWEN,
        dataset_hash="0x" + "ab" * 32,
        training_params=PARAMS,
        nonce="1",
        signature="0x",
        model_type=0,
        progress=progress,
    )
    await node.store.add(task)
    return task
