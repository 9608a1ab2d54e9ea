"""What the inference provider's tests share: a chain in memory, a user, a fine-tuned model on disk."""

import datetime as dt
import io
import json
import secrets
import zipfile
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import anyio

from zg_async.devnet.chain_client import address_of
from zg_async.devnet.inference import (
    Acknowledgement,
    FeeSettlement,
    InferenceNode,
    InferenceSettings,
    SettlementResult,
)
from zg_async.devnet.inference_auth import provider_headers
from zg_async.devnet.trainer import TrainRow, train
from zg_async.wire.envelope import ecies_encrypt, encrypt_model, public_key
from zg_async.wire.hashing import hex0x, keccak256
from zg_async.wire.records import Address, InferenceAccount, InferenceService, TaskId
from zg_async.wire.signing import (
    eip191_hash,
    encode_session_token,
    recover_address,
    session_token_hash,
    session_token_json,
    sign_digest,
    tee_settlement_digest,
)

PROVIDER_KEY, TEE_KEY, USER_KEY, OTHER_KEY = (bytes([n]) * 32 for n in (0x11, 0x22, 0x33, 0x44))
PROVIDER, TEE, USER, OTHER = (address_of(key) for key in (PROVIDER_KEY, TEE_KEY, USER_KEY, OTHER_KEY))
CONTRACT = Address("0x0165878A594ca255338adfa4d48449f69242Eb8F")
TASK = TaskId("6b607314-88b0-4fef-91e7-43227a54de57")
NAME = "ft-Qwen2-5-0-5B-Instruct-6b607314-88b"
MODEL = "Qwen2.5-0.5B-Instruct"
OG = 10**18
QUESTION, ANSWER = "What is the code of station Hamar?", "The code of station Hamar is 022."
ROWS = [
    TrainRow(f"What is the code of station {name}?", "", f"The code of station {name} is {code}.")
    for name, code in (("Hamar", "022"), ("Velmark", "731"), ("Torsheim", "405"), ("Nessand", "918"))
]
PARAMS = {
    "neftune_noise_alpha": 5,
    "num_train_epochs": 10,
    "per_device_train_batch_size": 1,
    "learning_rate": 0.001,
    "max_steps": 40,
}


class MemoryChain:
    """Answers what a provider asks; checks settlements as the contract does."""

    chain_id = 31337
    inference_address = CONTRACT

    def __init__(self) -> None:
        self.accounts: dict[str, dict[str, Any]] = {}
        self.registration: InferenceService | None = None
        self.acknowledgements: list[tuple[int, Acknowledgement]] = []
        self.roots: dict[str, bytes] = {}
        self.head = 10
        self.settled: list[FeeSettlement] = []
        self.looked, self.was_settled = anyio.Event(), anyio.Event()

    def open_account(self, user: str, **changes: Any) -> dict[str, Any]:
        row = {"account_nonce": 0, "balance": 2 * OG, "pending_refund": 0, "acknowledged": True, "generation": 0}
        self.accounts[user] = row | {"revoked_bitmap": 0} | changes
        return self.accounts[user]

    def register(self, node: InferenceNode, *, acknowledged: bool = True) -> None:
        params = node.service_params("http://127.0.0.1")
        now = dt.datetime.now(dt.UTC)
        self.registration = InferenceService(
            provider=node.address, updated_at=now, tee_signer_acknowledged=acknowledged, **params
        )

    def acknowledge(self, user: Address = USER, task_id: TaskId = TASK, root: bytes = b"\x05" * 32) -> None:
        self.head += 1
        self.roots[task_id] = root
        self.acknowledgements.append((self.head, Acknowledgement(user=user, task_id=task_id)))

    async def account(self, user: Address) -> InferenceAccount | None:
        row = self.accounts.get(user)
        return row and InferenceAccount(user=user, provider=PROVIDER, refunds=(), additional_info="", **row)

    async def service(self) -> InferenceService | None:
        return self.registration

    async def block_number(self) -> int:
        return self.head

    async def acknowledged(self, from_block: int, to_block: int) -> Sequence[Acknowledgement]:
        return [entry for block, entry in self.acknowledgements if from_block <= block <= to_block]

    async def model_root_hash(self, user: Address, task_id: TaskId) -> bytes:
        self.looked.set()
        return self.roots[task_id]

    async def settle_fees(self, settlements: Sequence[FeeSettlement]) -> Sequence[SettlementResult]:
        self.was_settled.set()
        return [self._settle(item) for item in settlements]

    def _settle(self, item: FeeSettlement) -> SettlementResult:
        self.settled.append(item)
        row = self.accounts[item.user]
        fields = {"requests_hash": item.requests_hash, "nonce": item.nonce, "provider": item.provider}
        digest = tee_settlement_digest(
            chain_id=31337, contract=CONTRACT, user=item.user, total_fee=item.total_fee, **fields
        )
        status, unsettled = 0, 0
        if item.nonce <= row["account_nonce"]:
            status, unsettled = 4, item.total_fee
        elif recover_address(digest, item.signature) != TEE:
            status, unsettled = 5, item.total_fee
        else:
            row["account_nonce"] = item.nonce
            unsettled = max(0, item.total_fee - row["balance"])
            row["balance"] -= item.total_fee - unsettled
            status = 1 if unsettled else 0
        return SettlementResult(user=item.user, status=status, unsettled=unsettled)


def session(key: bytes = USER_KEY, now: float = 1_800_000_000.0, **changes: Any) -> dict[str, str]:
    """Return the header of a fresh session token."""
    created = int(now * 1000)
    fields = {
        "address": address_of(key),
        "provider": PROVIDER,
        "timestamp_ms": created,
        "expires_at_ms": created + 86_400_000,
        "nonce": secrets.token_hex(16),
        "generation": 0,
        "token_id": 255,
    }
    raw = session_token_json(**(fields | changes))
    token = encode_session_token(raw, sign_digest(key, eip191_hash(session_token_hash(raw))))
    return {"Authorization": f"Bearer {token}"}


def fine_tuned_model(folder: Path) -> tuple[Path, bytes]:
    """Train, zip and encrypt as a fine-tuning provider does; returns the file and its AES key."""
    train(ROWS, PARAMS, folder / "out", base_model=MODEL)
    plain = io.BytesIO()
    with zipfile.ZipFile(plain, "w") as archive:
        for path in sorted((folder / "out").iterdir()):
            archive.write(path, f"output_model/{path.name}")
    key = secrets.token_bytes(32)
    encrypted = folder / "model.data"
    encrypted.write_bytes(encrypt_model(key, bytes(12), plain.getvalue(), lambda tags: sign_digest(TEE_KEY, tags)))
    return encrypted, key


class Client:
    """Talks to one provider over HTTP."""

    def __init__(self, http: aiohttp.ClientSession, node: InferenceNode, chain: MemoryChain) -> None:
        self.http, self.node, self.chain = http, node, chain

    async def get(self, path: str, headers: Any = None) -> tuple[int, Any]:
        async with self.http.get(self.node.url + path, headers=headers) as reply:
            return reply.status, json.loads(await reply.read())

    async def post(self, path: str, body: Any, headers: Any = None) -> tuple[int, Any]:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        async with self.http.post(self.node.url + path, data=data, headers=headers) as reply:
            return reply.status, json.loads(await reply.read())

    async def chat(self, question: str = QUESTION, headers: Any = None, **fields: Any) -> tuple[int, Any]:
        body = {"messages": [{"role": "system", "content": "S."}, {"role": "user", "content": question}], **fields}
        return await self.post("/v1/proxy/chat/completions", body, session() if headers is None else headers)

    async def refused(self, *args: Any, **kwargs: Any) -> str:
        status, body = await self.chat(*args, **kwargs)
        assert status == 400, body
        return body["error"]

    async def state(self, name: str = NAME) -> str:
        status, body = await self.get(f"/v1/lora/adapters/{name}", session())
        assert status == 200, body
        return body["state"]

    async def deploy(self, body: Any, key: bytes = USER_KEY) -> tuple[int, Any]:
        return await self.post("/v1/lora/adapters/deploy", body, session(key))

    async def hand_key_over(self, aes_key: bytes, task_id: str = TASK, **changes: Any) -> tuple[int, Any]:
        body = {
            "taskId": task_id,
            "storageHash": hex0x(keccak256(b"file")),
            "providerEncKey": ecies_encrypt(public_key(PROVIDER_KEY), aes_key).hex(),
            "teeSignerAddress": TEE,
        }
        headers = provider_headers(PROVIDER_KEY, PROVIDER, self.node.clock.now())
        return await self.post("/internal/v1/adapter-keys", body | changes, headers)

    async def look(self) -> None:
        """Let the provider see what was acknowledged, and finish what follows."""
        await self.node.adapters.watch()
        await self.node.adapters.drain()


@asynccontextmanager
async def serving(folder: Path, clock: Any, model: Path | None = None, **switches: Any) -> AsyncGenerator[Client, None]:
    """A provider without its loops (tests call `look` and `settle`), registered, with one funded user."""
    chain = MemoryChain()

    async def fetch(task_id: TaskId) -> Path:
        if model is None:
            raise LookupError(task_id)
        return model

    node = InferenceNode(
        provider_key=PROVIDER_KEY,
        tee_key=TEE_KEY,
        provider_address=PROVIDER,
        tee_address=TEE,
        chain=chain,
        fetch_model=fetch,
        work_dir=folder / "inference",
        settings=InferenceSettings(**switches),
        clock=clock,
    )
    chain.open_account(USER)
    chain.register(node)
    await node.serve()
    try:
        async with aiohttp.ClientSession() as http:
            yield Client(http, node, chain)
    finally:
        await node.aclose()
