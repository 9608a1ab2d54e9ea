"""A small JSON-RPC client for the devnet's own actors: calls, logs, and transactions of local keys.

It is apart from the SDK's transport on purpose: the providers shouldn't share the faults of what they test. It
works against any node, also one that has nothing to do with the devnet.
"""

import itertools
import json
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, Final, TypeVar

import aiohttp
import anyio
from eth_keys.datatypes import PrivateKey

from zg_async.clock import Clock, SystemClock
from zg_async.errors import ChainUnavailableError, ContractRevertedError, RpcError, TransactionTimeoutError
from zg_async.logs import get_logger
from zg_async.wire.contracts import Call, revert_error
from zg_async.wire.hashing import checksum_address, hex0x, keccak256
from zg_async.wire.records import Address, Log, Receipt, TxHash
from zg_async.wire.signing import sign_digest

T = TypeVar("T")
Request = Callable[..., Awaitable[Any]]
"""Runs one JSON-RPC method: name and parameters in, result out, `ChainError` on failure."""
_log = get_logger("zg_async.devnet.chain")
_USUAL_GAS: Final = 2_000_000
_RECEIPT_WAIT: Final = 120.0
_RLP_SHORT: Final = 55


def rlp(item: bytes | int | Sequence[Any]) -> bytes:
    """Encode bytes, a whole number or a sequence of these in RLP."""
    if isinstance(item, int):
        item = item.to_bytes((item.bit_length() + 7) // 8, "big")
    if isinstance(item, bytes):
        if len(item) == 1 and item[0] < 0x80:
            return item
        return _rlp_head(len(item), 0x80) + item
    body = b"".join(rlp(part) for part in item)
    return _rlp_head(len(body), 0xC0) + body


def _rlp_head(length: int, offset: int) -> bytes:
    if length <= _RLP_SHORT:
        return bytes([offset + length])
    size = length.to_bytes((length.bit_length() + 7) // 8, "big")
    return bytes([offset + _RLP_SHORT + len(size)]) + size


def address_of(private_key: bytes) -> Address:
    """Return the address of a private key."""
    return checksum_address(PrivateKey(private_key).public_key.to_canonical_address())


class HttpRpc:
    """JSON-RPC over one aiohttp session that the caller owns."""

    def __init__(self, url: str, session: aiohttp.ClientSession) -> None:
        """Make a connection; nothing is asked until the first request."""
        self.url = url
        self._session = session
        self._ids = itertools.count(1)

    async def __call__(self, method: str, *params: Any) -> Any:
        """Ask one thing.

        Raises:
            ChainUnavailableError: No answer, or none that is JSON.
            RpcError: The node answered with an error.
        """
        body = {"jsonrpc": "2.0", "id": next(self._ids), "method": method, "params": params}
        try:
            async with self._session.post(self.url, json=body, timeout=aiohttp.ClientTimeout(total=60)) as reply:
                answer = json.loads(await reply.read())
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            raise ChainUnavailableError(f"{method} wasn't answered: {error!r}") from error
        if not isinstance(answer, dict):
            raise ChainUnavailableError(f"{method}: not a JSON-RPC answer")
        if failure := answer.get("error"):
            raise RpcError(str(failure.get("message")), rpc_code=failure.get("code"), data=failure.get("data"))
        return answer.get("result")


class ChainClient:
    """What the actors ask of a chain, over any way to run a JSON-RPC method."""

    def __init__(self, request: Request, clock: Clock | None = None) -> None:
        """Make a client of `request`: an `HttpRpc`, or the method of an engine in this process."""
        self.request = request
        self.clock: Clock = clock or SystemClock()
        self._chain_id: int | None = None

    async def chain_id(self) -> int:
        """Return the chain's id; asked once."""
        if self._chain_id is None:
            self._chain_id = int(await self.request("eth_chainId"), 16)
        return self._chain_id

    async def balance(self, address: Address) -> int:
        """Return an address's coins, in neuron."""
        return int(await self.request("eth_getBalance", address, "latest"), 16)

    async def call(self, call: Call[T], *, sender: Address | None = None) -> T:
        """Run a view; a revert raises the matching `ContractRevertedError`."""
        fields = {"to": call.to, "data": hex0x(call.data)} | ({"from": sender} if sender else {})
        try:
            result = await self.request("eth_call", fields, "latest")
        except RpcError as error:
            raise translate(error, call) from error
        return call.decode(bytes.fromhex(result[2:]))

    async def head(self) -> tuple[int, str, int]:
        """Return number, hash and time (unix seconds) of the newest block."""
        block = await self.request("eth_getBlockByNumber", "latest", False)
        return int(block["number"], 16), block["hash"], int(block["timestamp"], 16)

    async def logs(
        self, addresses: Iterable[Address], first: int, last: int, *, topic: bytes | None = None
    ) -> list[Log]:
        """Return the logs of some contracts in blocks `first` to `last`, both included; with `topic` of one event."""
        wanted: dict[str, Any] = {"address": list(addresses), "fromBlock": hex(first), "toBlock": hex(last)}
        if topic is not None:
            wanted["topics"] = [hex0x(topic)]
        return [parse_log(entry) for entry in await self.request("eth_getLogs", wanted)]


def parse_log(entry: Mapping[str, Any]) -> Log:
    """Read one log object of a node."""
    return Log(
        address=checksum_address(entry["address"]),
        topics=tuple(bytes.fromhex(topic[2:]) for topic in entry["topics"]),
        data=bytes.fromhex(entry["data"][2:]),
        block_number=int(entry["blockNumber"], 16),
        block_hash=entry["blockHash"],
        tx_hash=TxHash(entry["transactionHash"]),
        log_index=int(entry["logIndex"], 16),
    )


def translate(error: RpcError, call: Call[Any]) -> ContractRevertedError | RpcError:
    """Turn a node's error into a revert with its name, where it is one."""
    data = error.data.get("data") if isinstance(error.data, dict) else error.data
    if isinstance(data, str) and data.startswith("0x"):
        return revert_error(bytes.fromhex(data[2:]), call_name=call.name, contract=call.to, message=error.message)
    return error


class Wallet:
    """One key with its own nonce lane. Safe for many users at once: only signing and sending are serial."""

    def __init__(self, client: ChainClient, private_key: bytes) -> None:
        """Make a wallet; nothing is asked until the first transaction."""
        self.client = client
        self.private_key = private_key
        self.address = address_of(private_key)
        self._lane = anyio.Lock()
        self._next = 0
        self._in_flight = 0

    async def send(self, call: Call[Any]) -> Receipt:
        """Send a contract call and wait until it is mined.

        Raises:
            ContractRevertedError: It would revert, or did.
            RpcError: The node refused it.
            TransactionTimeoutError: Not mined in two minutes.
        """
        try:
            return await self.transact(call.to, call.data, call.value)
        except RpcError as error:
            raise translate(error, call) from error

    async def transact(
        self, to: Address | None, data: bytes = b"", value: int = 0, *, gas: int | None = None
    ) -> Receipt:
        """Send a transaction and wait until it is mined; see `send`. Without `to` it creates a contract."""
        if gas is None:
            gas = await self._gas(to, data, value)
        self._in_flight += 1
        try:
            tx_hash = await self._broadcast(to, data, value, gas)
            return await self._receipt(tx_hash)
        finally:
            self._in_flight -= 1

    async def _gas(self, to: Address | None, data: bytes, value: int) -> int:
        """Return a limit with which a transaction succeeds: one that fits most, or else the node's estimate.

        Trying the transaction once is a fraction of an estimate's work, and only gas that is used is paid.
        """
        fields = {"from": self.address, "data": hex0x(data), "value": hex(value)} | ({"to": to} if to else {})
        if to is not None:
            try:
                await self.client.request("eth_call", fields | {"gas": hex(_USUAL_GAS)}, "latest")
            except RpcError:
                pass  # the estimate says why, or finds more gas
            else:
                return _USUAL_GAS
        return int(await self.client.request("eth_estimateGas", fields), 16) * 12 // 10

    async def _broadcast(self, to: Address | None, data: bytes, value: int, gas: int) -> TxHash:
        price = int(await self.client.request("eth_gasPrice"), 16)
        async with self._lane:
            for attempt in range(2):
                pending = int(await self.client.request("eth_getTransactionCount", self.address, "pending"), 16)
                nonce = max(pending, self._next) if self._in_flight > 1 and not attempt else pending
                raw = self._sign(await self.client.chain_id(), nonce, price, gas, to, value, data)
                try:
                    await self.client.request("eth_sendRawTransaction", hex0x(raw))
                except RpcError as error:
                    if "nonce" not in error.message.lower() or attempt:
                        raise
                    continue
                self._next = nonce + 1
                return TxHash(hex0x(keccak256(raw)))
        raise RpcError("the node refused two nonces")

    def _sign(
        self, chain_id: int, nonce: int, price: int, gas: int, to: Address | None, value: int, data: bytes
    ) -> bytes:
        """Make a type 2 transaction: the chain keeps the sender's check cheap with these (EIP-1559)."""
        fields = [chain_id, nonce, price, 2 * price, gas, bytes.fromhex((to or "0x")[2:]), value, data, []]
        signature = sign_digest(self.private_key, keccak256(b"\x02" + rlp(fields)))
        r, s = int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:64], "big")
        return b"\x02" + rlp([*fields, signature[64] - 27, r, s])

    async def _receipt(self, tx_hash: TxHash) -> Receipt:
        clock = self.client.clock
        until, pause = clock.monotonic() + _RECEIPT_WAIT, 0.02
        while (found := await self.client.request("eth_getTransactionReceipt", tx_hash)) is None:
            if clock.monotonic() > until:
                raise TransactionTimeoutError("a transaction isn't mined yet", tx_hash=tx_hash)
            await clock.sleep(pause)
            pause = min(2 * pause, 1.0)
        receipt = Receipt(
            tx_hash=tx_hash,
            block_number=int(found["blockNumber"], 16),
            block_hash=found["blockHash"],
            status=int(found["status"], 16),
            gas_used=int(found["gasUsed"], 16),
            effective_gas_price=int(found.get("effectiveGasPrice", "0x0"), 16),
            logs=tuple(parse_log(entry) for entry in found["logs"]),
        )
        if receipt.status != 1:
            raise RpcError(f"transaction {tx_hash} was mined and reverted")
        return receipt
