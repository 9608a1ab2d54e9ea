"""A model of a node and its pool in memory, with everything that goes wrong there, by seed and in virtual time."""

import dataclasses
import random
from typing import Any

import anyio.lowlevel
import rlp

from zg_async.errors import ChainError, ChainUnavailableError
from zg_async.transport.rpc import Ask
from zg_async.transport.rpc_errors import error_of
from zg_async.wire.hashing import checksum_address, hex0x, keccak256
from zg_async.wire.signing import recover_address

GWEI = 10**9


@dataclasses.dataclass(frozen=True)
class Tx:
    raw: bytes
    tx_hash: str
    sender: str
    nonce: int
    fee: int
    tip: int
    to: str
    value: int
    data: bytes


def decode(raw: bytes) -> Tx:
    fields = rlp.decode(raw[1:])
    number = [int.from_bytes(f, "big") if isinstance(f, bytes) else 0 for f in fields]
    digest = keccak256(b"\x02" + rlp.encode(fields[:9]))
    signature = fields[10].rjust(32, b"\0") + fields[11].rjust(32, b"\0") + bytes([27 + number[9]])
    return Tx(
        raw=raw,
        tx_hash=hex0x(keccak256(raw)),
        sender=recover_address(digest, signature),
        nonce=number[1],
        tip=number[2],
        fee=number[3],
        to=checksum_address(fields[5]),
        value=number[6],
        data=fields[7],
    )


@dataclasses.dataclass
class Block:
    number: int
    hash: str
    parent: str
    base_fee: int
    txs: list[Tx]


class PoolModel:
    """Stands in for `Rpc`."""

    host = "model"

    def __init__(self, clock: Any, rng: random.Random, *, faults: float) -> None:
        self.clock, self.rng, self.faults = clock, rng, faults
        self.blocks = [Block(0, "0x" + "00" * 32, "0x" + "00" * 32, GWEI, [])]
        self.pool: dict[tuple[str, int], Tx] = {}
        self.base_fee = GWEI
        self.mined_at = clock.monotonic()
        self.salt = 0
        self.foreign: list[Tx] = []
        self.sent: list[Tx] = []

    def expect_chain(self, chain_id: int) -> None:
        pass

    async def request(self, method: str, params: Any = (), **more: Any) -> Any:
        result = (await self.batch([Ask(method, params, more.get("what"), more.get("contract"))]))[0]
        if isinstance(result, ChainError):
            raise result
        return result

    async def batch(self, asks: Any, **_: Any) -> list[Any]:
        await anyio.lowlevel.checkpoint()
        self.pass_time()
        asks = [ask if isinstance(ask, Ask) else Ask(*ask) for ask in asks]
        opening = asks[0].method == "eth_chainId"
        if not opening and self.strikes():
            raise ChainUnavailableError("lost before")
        answers = [self.answer(ask) for ask in asks]
        if not opening and self.strikes():
            raise ChainUnavailableError("lost after")
        return answers

    def strikes(self, weight: float = 1.0) -> bool:
        return self.rng.random() < self.faults * weight

    # --- time ---

    def pass_time(self) -> None:
        while self.clock.monotonic() - self.mined_at >= 1.0:
            self.mined_at += 1.0
            if self.strikes():
                self.base_fee = self.rng.choice([GWEI // 2, 4 * GWEI, 9 * GWEI])
            if self.pool and self.strikes():
                self.pool.pop(self.rng.choice(list(self.pool)))
            if self.strikes(3) and len(self.blocks) > 4:
                self.reorg(self.rng.randrange(1, 4))
            if not self.strikes(2):
                self.mine()

    def mine(self) -> None:
        nonces: dict[str, int] = {}
        taken = []
        for (sender, nonce), tx in sorted(self.pool.items()):
            expected = nonces.get(sender, self.count(sender))
            if nonce == expected and tx.fee >= self.base_fee and len(taken) < 10:
                nonces[sender] = nonce + 1
                taken.append(tx)
        for tx in taken:
            del self.pool[tx.sender, tx.nonce]
        self.salt += 1
        number = len(self.blocks)
        digest = hex0x(keccak256(f"{number}/{self.salt}".encode()))
        self.blocks.append(Block(number, digest, self.blocks[-1].hash, self.base_fee, taken))

    def reorg(self, depth: int) -> None:
        removed = self.blocks[-depth:]
        del self.blocks[-depth:]
        for block in removed:
            for tx in block.txs:
                if not self.strikes(8):
                    self.pool[tx.sender, tx.nonce] = tx
        for _ in removed:
            self.mine()

    # --- answers ---

    def count(self, sender: str, upto: int | None = None) -> int:
        blocks = self.blocks if upto is None else self.blocks[: upto + 1]
        return sum(tx.sender == sender for block in blocks for tx in block.txs)

    def find(self, tx_hash: str) -> tuple[Block, Tx] | None:
        return next(((b, t) for b in self.blocks for t in b.txs if t.tx_hash == tx_hash), None)

    def answer(self, ask: Ask) -> Any:
        result = getattr(self, ask.method)(*ask.params)
        if isinstance(result, dict) and "error" in result:
            return error_of(result["error"], what=ask.what or ask.method, contract=ask.contract)
        return result

    def eth_chainId(self) -> str:
        return hex(31337)

    def eth_blockNumber(self) -> str:
        return hex(len(self.blocks) - 1)

    def eth_gasPrice(self) -> str:
        return hex(self.base_fee + GWEI)

    def eth_maxPriorityFeePerGas(self) -> str:
        return hex(GWEI)

    def eth_getBalance(self, *_: Any) -> str:
        return hex(10**24)

    def eth_estimateGas(self, *_: Any) -> str:
        return hex(50_000)

    def eth_getTransactionCount(self, sender: str, tag: str) -> str:
        count = self.count(sender, None if tag in ("latest", "pending") else int(tag, 16))
        if tag == "latest" and self.strikes() and count:
            return hex(count - 1)  # a back-end that is behind
        while tag == "pending" and (sender, count) in self.pool:
            count += 1
        return hex(count)

    def eth_getBlockByNumber(self, tag: str, full: bool) -> Any:
        number = len(self.blocks) - 1 if tag == "latest" else int(tag, 16)
        if number >= len(self.blocks):
            return None
        block = self.blocks[number]
        return {
            "number": hex(number),
            "hash": block.hash,
            "parentHash": block.parent,
            "timestamp": hex(1_800_000_000 + number),
            "baseFeePerGas": hex(block.base_fee),
            "transactions": [self.shown(tx, block) if full else tx.tx_hash for tx in block.txs],
        }

    def shown(self, tx: Tx, block: Block | None) -> dict[str, Any]:
        return {
            "hash": tx.tx_hash,
            "from": tx.sender.lower(),
            "to": tx.to,
            "nonce": hex(tx.nonce),
            "value": hex(tx.value),
            "input": hex0x(tx.data),
            "blockNumber": hex(block.number) if block else None,
            "blockHash": block.hash if block else None,
        }

    def eth_getTransactionByHash(self, tx_hash: str) -> Any:
        if found := self.find(tx_hash):
            return self.shown(found[1], found[0])
        return next((self.shown(tx, None) for tx in self.pool.values() if tx.tx_hash == tx_hash), None)

    def eth_getTransactionReceipt(self, tx_hash: str) -> Any:
        found = self.find(tx_hash)
        if found is None or self.strikes():
            return None
        block, tx = found
        return {
            "transactionHash": tx.tx_hash,
            "blockNumber": hex(block.number),
            "blockHash": block.hash,
            "status": "0x1",
            "gasUsed": hex(40_000),
            "effectiveGasPrice": hex(min(tx.fee, block.base_fee + tx.tip)),
            "logs": [],
        }

    def eth_sendRawTransaction(self, raw: str) -> Any:
        tx = decode(bytes.fromhex(raw[2:]))
        self.sent.append(tx)
        if tx.nonce < self.count(tx.sender):
            return refused("nonce too low")
        old = self.pool.get((tx.sender, tx.nonce))
        if old is not None and old.tx_hash == tx.tx_hash:
            return refused("already known")
        if old is not None and (tx.fee < old.fee * 110 // 100 or tx.tip < old.tip * 110 // 100 or tx.fee <= old.fee):
            return refused("replacement transaction underpriced")
        if tx.fee < self.base_fee and self.strikes(5):
            return refused("max fee per gas less than block base fee")
        self.pool[tx.sender, tx.nonce] = tx
        return tx.tx_hash

    def take_nonce(self, raw: bytes) -> None:
        """Let a stranger with the same key have a nonce, at any price."""
        tx = decode(raw)
        self.foreign.append(tx)
        self.pool[tx.sender, tx.nonce] = tx


def refused(words: str) -> dict[str, Any]:
    return {"error": {"code": -32000, "message": words}}
