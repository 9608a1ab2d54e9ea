"""What the node's tests share: a JSON-RPC client without comforts, funded keys, a probe contract."""

import itertools
import json
from pathlib import Path
from typing import Any

import aiohttp
import anyio
import anyio.lowlevel
from eth_abi import decode, encode
from eth_account import Account
from eth_utils import to_checksum_address

OWNER, OTHER = (Account.from_key(bytes([number]) * 32) for number in (1, 2))
NEW = Account.from_key(bytes([3]) * 32)
GENESIS = {OWNER.address: 100_000 * 10**18, OTHER.address: 100_000 * 10**18}
PROBE = json.loads((Path(__file__).parents[1] / "vectors" / "devnet_probe.json").read_text())
SELECTORS = {name.split("(")[0]: (name, bytes.fromhex(value)) for name, value in PROBE["selectors"].items()}


class RpcAnswerError(Exception):
    def __init__(self, body: dict[str, Any]) -> None:
        super().__init__(body["message"])
        self.code, self.message, self.data = body["code"], body["message"], body.get("data")


class Client:
    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self.session, self.url, self._ids = session, url, itertools.count(1)

    async def post(self, body: Any) -> Any:
        async with self.session.post(self.url, json=body) as reply:
            assert reply.status == 200
            return json.loads(await reply.read())

    async def ask(self, method: str, *params: Any) -> Any:
        answer = await self.post({"jsonrpc": "2.0", "id": next(self._ids), "method": method, "params": params})
        if "error" in answer:
            raise RpcAnswerError(answer["error"])
        return answer["result"]

    async def number(self, method: str, *params: Any) -> int:
        return int(await self.ask(method, *params), 16)

    async def head(self) -> dict[str, Any]:
        return await self.ask("eth_getBlockByNumber", "latest", False)

    async def send(self, account: Any = OWNER, **fields: Any) -> str:
        return await self.ask("eth_sendRawTransaction", await self.sign(account, **fields))

    async def sign(self, account: Any = OWNER, **fields: Any) -> str:
        if "nonce" not in fields:
            fields["nonce"] = await self.number("eth_getTransactionCount", account.address, "pending")
        return sign(account, **fields)

    async def receipt(self, tx_hash: str) -> dict[str, Any]:
        """Wait for it; anvil mines a moment after it has answered."""
        with anyio.fail_after(10):
            while (found := await self.ask("eth_getTransactionReceipt", tx_hash)) is None:
                await anyio.lowlevel.checkpoint()
        return found

    async def mined(self, account: Any = OWNER, **fields: Any) -> dict[str, Any]:
        return await self.receipt(await self.send(account, **fields))

    async def deploy(self, lock: int = 0) -> str:
        code = PROBE["bytecode"] + encode(["uint256"], [lock]).hex()
        receipt = await self.mined(to=None, data=code, gas=2_000_000)
        assert receipt["status"] == "0x1"
        return receipt["contractAddress"]

    async def call(self, to: str, name: str, *args: Any, block: Any = "latest", **fields: Any) -> bytes:
        answer = await self.ask("eth_call", {"to": to, "data": calldata(name, *args), **fields}, block)
        return bytes.fromhex(answer[2:])


def sign(account: Any, **fields: Any) -> str:
    base: dict[str, Any] = {"chainId": 31337, "gas": 21_000, "to": OTHER.address, "value": 0, "data": b""}
    if "gasPrice" not in fields:
        base |= {"type": 2, "maxFeePerGas": 3 * 10**9, "maxPriorityFeePerGas": 10**9}
    chosen = {name: value for name, value in (base | fields).items() if value is not None}
    if "to" in chosen:
        chosen["to"] = to_checksum_address(chosen["to"])
    return "0x" + account.sign_transaction(chosen).raw_transaction.hex()


def calldata(name: str, *args: Any) -> str:
    signature, selector = SELECTORS[name]
    inside = signature[signature.index("(") + 1 : -1]
    return "0x" + (selector + encode(inside.split(",") if inside else [], args)).hex()


def uint(data: bytes) -> int:
    return decode(["uint256"], data)[0]
