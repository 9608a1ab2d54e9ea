"""JSON-RPC values of a node: what clients send, read strictly; what ethers and web3.py insist on, written."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from zg_async.devnet.evm_records import CallRequest, EvmBlock, EvmLog, MinedTx, SignedTx

Json = dict[str, Any]
Method = Callable[..., Awaitable[Any]]
INVALID_PARAMS = -32602
SERVER_ERROR = -32000
REVERTED = 3
_TAGS = ("latest", "pending", "safe", "finalized", "earliest")


class RpcFailure(Exception):  # noqa: N818 - an answer, not a fault of ours
    """An error answer."""

    def __init__(self, code: int, message: str, data: str | None = None) -> None:
        super().__init__(message)
        self.body: Json = {"code": code, "message": message} | ({} if data is None else {"data": data})


def invalid(message: str) -> RpcFailure:
    """Make the error for a parameter that can't be read."""
    return RpcFailure(INVALID_PARAMS, message)


# --- reading ---


def read_bytes(value: Any, what: str, size: int | None = None) -> bytes:
    """Read `0x` hex of whole bytes."""
    if not isinstance(value, str) or not value.startswith(("0x", "0X")) or len(value) % 2:
        raise invalid(f"{what} is not 0x-prefixed hex of whole bytes")
    try:
        data = bytes.fromhex(value[2:])
    except ValueError:
        raise invalid(f"{what} is not hex") from None
    if (size is not None and len(data) != size) or len(data) * 2 != len(value) - 2:
        raise invalid(f"{what} has to have {size} bytes")
    return data


def read_address(value: Any, what: str = "address") -> bytes:
    """Read an address of any case."""
    return read_bytes(value, what, 20)


def read_int(value: Any, what: str) -> int:
    """Read a quantity: `0x` hex, or as the test methods of ganache take it, a decimal string or a number."""
    if isinstance(value, int) and not isinstance(value, bool):
        number = value
    elif isinstance(value, str) and 0 < len(value) <= 80:
        try:
            number = int(value, 16 if value[:2].lower() == "0x" else 10)
        except ValueError:
            raise invalid(f"{what} is not a number") from None
    else:
        raise invalid(f"{what} is not a number")
    if not 0 <= number < 2**256:
        raise invalid(f"{what} is out of range")
    return number


@dataclass(frozen=True, slots=True)
class BlockRef:
    """Which block a request means: a tag, a number or a hash."""

    tag: str | None = None
    number: int | None = None
    hash: bytes | None = None


def read_block_ref(value: Any) -> BlockRef:
    """Read a block tag, number, hash or the object of EIP-1898; None means latest."""
    if value is None:
        return BlockRef(tag="latest")
    if isinstance(value, Mapping):
        if "blockHash" in value:
            return BlockRef(hash=read_bytes(value["blockHash"], "blockHash", 32))
        return read_block_ref(value.get("blockNumber"))
    if isinstance(value, str) and value in _TAGS:
        return BlockRef(tag=value)
    if isinstance(value, str) and len(value) == 66:
        return BlockRef(hash=read_bytes(value, "block", 32))
    return BlockRef(number=read_int(value, "block"))


def read_call(value: Any, *, base_fee: int) -> CallRequest:
    """Read the transaction object of `eth_call` and `eth_estimateGas`."""
    if not isinstance(value, Mapping):
        raise invalid("the call is not an object")

    def number(name: str) -> int | None:
        return None if value.get(name) is None else read_int(value[name], name)

    data, also = value.get("data"), value.get("input")
    if data is not None and also is not None and data != also:
        raise invalid('both "data" and "input" are set and not equal')
    price, cap = number("gasPrice"), number("maxFeePerGas")
    if price is not None and cap is not None:
        raise invalid("both gasPrice and (maxFeePerGas or maxPriorityFeePerGas) specified")
    fee = price or cap or 0
    if 0 < fee < base_fee:
        raise RpcFailure(
            SERVER_ERROR, f"max fee per gas less than block base fee: maxFeePerGas: {fee}, baseFee: {base_fee}"
        )
    text = also if data is None else data
    return CallRequest(
        sender=bytes(20) if value.get("from") is None else read_address(value["from"], "from"),
        to=None if value.get("to") is None else read_address(value["to"], "to"),
        value=number("value") or 0,
        data=b"" if text is None else read_bytes(text, "data"),
        gas=number("gas"),
        gas_price=fee,
    )


@dataclass(frozen=True, slots=True)
class LogFilter:
    """Which logs are wanted; an empty set at a place means any."""

    addresses: frozenset[bytes]
    topics: tuple[frozenset[bytes], ...]

    def matches(self, log: EvmLog) -> bool:
        """Return whether a log is wanted."""
        if self.addresses and log.address not in self.addresses:
            return False
        if len(self.topics) > len(log.topics):
            return False
        return all(not wanted or topic in wanted for wanted, topic in zip(self.topics, log.topics, strict=False))


def read_log_filter(value: Any) -> LogFilter:
    """Read `address` (one or a list) and `topics` (null, one or a list, by place)."""
    if not isinstance(value, Mapping):
        raise invalid("the filter is not an object")
    addresses = value.get("address")
    listed = addresses if isinstance(addresses, Sequence) and not isinstance(addresses, str) else [addresses]
    topics = value.get("topics") or []
    if not isinstance(topics, Sequence) or isinstance(topics, str) or len(topics) > 4:
        raise invalid("topics is not a list of up to four")
    return LogFilter(
        frozenset(read_address(one) for one in listed if one is not None),
        tuple(_read_topic(one) for one in topics),
    )


def _read_topic(value: Any) -> frozenset[bytes]:
    if value is None:
        return frozenset()
    if isinstance(value, str):
        return frozenset((read_bytes(value, "topic", 32),))
    if not isinstance(value, Sequence):
        raise invalid("a topic is null, hex or a list of hex")
    if None in value:
        return frozenset()
    return frozenset(read_bytes(one, "topic", 32) for one in value)


# --- writing ---


def hex_data(data: bytes) -> str:
    """Write bytes."""
    return "0x" + data.hex()


def word(number: int) -> str:
    """Write a number as 32 bytes."""
    return f"0x{number:064x}"


def bloom(number: int) -> str:
    """Write a log bloom."""
    return f"0x{number:0512x}"


def block_json(block: EvmBlock, *, full: bool) -> Json:
    """Write a block, with whole transactions or only their hashes."""
    header = block.header
    transactions: list[Any] = [
        transaction_json(one.tx, block=block, mined=one) if full else hex_data(one.tx.hash) for one in block.mined
    ]
    return header_json(block) | {
        "size": hex(block.size),
        "transactions": transactions,
        "uncles": [],
        "withdrawals": [],
        "totalDifficulty": hex(header.difficulty),
    }


def header_json(block: EvmBlock) -> Json:
    """Write a block's header, from which its hash can be computed."""
    header = block.header
    return {
        "number": hex(block.number),
        "hash": hex_data(block.hash),
        "parentHash": hex_data(header.parent_hash),
        "sha3Uncles": hex_data(header.uncles_hash),
        "miner": hex_data(header.coinbase),
        "stateRoot": hex_data(header.state_root),
        "transactionsRoot": hex_data(header.transaction_root),
        "receiptsRoot": hex_data(header.receipt_root),
        "logsBloom": bloom(header.bloom),
        "difficulty": hex(header.difficulty),
        "gasLimit": hex(header.gas_limit),
        "gasUsed": hex(header.gas_used),
        "timestamp": hex(block.timestamp),
        "extraData": hex_data(header.extra_data),
        "mixHash": hex_data(header.mix_hash),
        "nonce": hex_data(header.nonce),
        "baseFeePerGas": hex(block.base_fee),
        "withdrawalsRoot": hex_data(header.withdrawals_root),
        "blobGasUsed": hex(header.blob_gas_used),
        "excessBlobGas": hex(header.excess_blob_gas),
        "parentBeaconBlockRoot": hex_data(header.parent_beacon_block_root),
        "requestsHash": hex_data(header.requests_hash),
    }


def pending_block_json(
    head: EvmBlock, waiting: Sequence[SignedTx], *, timestamp: int, base_fee: int, full: bool
) -> Json:
    """Write the block to come: no hash, and what would be in it."""
    return block_json(head, full=False) | {
        "number": hex(head.number + 1),
        "hash": None,
        "nonce": None,
        "miner": None,
        "logsBloom": None,
        "parentHash": hex_data(head.hash),
        "timestamp": hex(timestamp),
        "baseFeePerGas": hex(base_fee),
        "gasUsed": "0x0",
        "transactions": [transaction_json(tx) if full else hex_data(tx.hash) for tx in waiting],
    }


def transaction_json(tx: SignedTx, *, block: EvmBlock | None = None, mined: MinedTx | None = None) -> Json:
    """Write a transaction, mined or waiting."""
    inner = tx.inner
    answer: Json = {
        "hash": hex_data(tx.hash),
        "type": hex(tx.type),
        "chainId": hex(inner.chain_id),
        "nonce": hex(tx.nonce),
        "from": hex_data(tx.sender),
        "to": None if tx.to is None else hex_data(tx.to),
        "value": hex(tx.value),
        "gas": hex(tx.gas),
        "gasPrice": hex(tx.max_fee if mined is None else mined.gas_price),
        "input": hex_data(tx.data),
        "blockHash": None if block is None else hex_data(block.hash),
        "blockNumber": None if block is None else hex(block.number),
        "transactionIndex": None if mined is None else hex(mined.index),
        "v": hex(inner.v if tx.type == 0 else inner.y_parity),
        "r": hex(inner.r),
        "s": hex(inner.s),
    }
    if tx.type:
        answer["yParity"] = hex(inner.y_parity)
        answer["accessList"] = [
            {"address": hex_data(address), "storageKeys": [word(slot) for slot in slots]}
            for address, slots in inner.access_list
        ]
    if tx.type == 2:
        answer |= {"maxFeePerGas": hex(tx.max_fee), "maxPriorityFeePerGas": hex(tx.max_tip)}
    return answer


def receipt_json(block: EvmBlock, mined: MinedTx) -> Json:
    """Write a receipt."""
    tx = mined.tx
    return {
        "transactionHash": hex_data(tx.hash),
        "transactionIndex": hex(mined.index),
        "blockHash": hex_data(block.hash),
        "blockNumber": hex(block.number),
        "from": hex_data(tx.sender),
        "to": None if tx.to is None else hex_data(tx.to),
        "type": hex(tx.type),
        "status": hex(mined.status),
        "gasUsed": hex(mined.gas_used),
        "cumulativeGasUsed": hex(mined.cumulative_gas),
        "effectiveGasPrice": hex(mined.gas_price),
        "contractAddress": None if mined.contract is None else hex_data(mined.contract),
        "logsBloom": bloom(mined.bloom),
        "logs": [log_json(block, log) for log in mined.logs],
    }


def log_json(block: EvmBlock, log: EvmLog, *, removed: bool = False) -> Json:
    """Write a log."""
    return {
        "address": hex_data(log.address),
        "topics": [hex_data(topic) for topic in log.topics],
        "data": hex_data(log.data),
        "blockNumber": hex(block.number),
        "blockHash": hex_data(block.hash),
        "blockTimestamp": hex(block.timestamp),
        "transactionHash": hex_data(log.tx_hash),
        "transactionIndex": hex(log.tx_index),
        "logIndex": hex(log.index),
        "removed": removed,
    }
