"""Receipts, logs and transactions as nodes send them, read strictly."""

from collections.abc import Mapping
from typing import Any

from zg_async.errors import RpcError
from zg_async.transport.rows import Found, Inclusion
from zg_async.transport.rpc import blob, quantity
from zg_async.transport.transaction import intent_digest
from zg_async.wire.hashing import checksum_address
from zg_async.wire.records import Log, Receipt, TxHash


def parse_log(value: Any) -> Log:
    """Read a log.

    Raises:
        RpcError: It is none, or of a pending block.
    """
    try:
        return Log(
            address=checksum_address(value["address"]),
            topics=tuple(blob(topic) for topic in value["topics"]),
            data=blob(value["data"]),
            block_number=quantity(value["blockNumber"]),
            block_hash=str(value["blockHash"]).lower(),
            tx_hash=TxHash(str(value["transactionHash"]).lower()),
            log_index=quantity(value["logIndex"]),
        )
    except (KeyError, TypeError, ValueError):
        raise RpcError("the node sent a log that can't be read") from None


def parse_inclusion(value: Mapping[str, Any]) -> Inclusion:
    """Read what a receipt says about its place.

    Raises:
        RpcError: It can't be read.
    """
    try:
        return Inclusion(
            tx_hash=TxHash(str(value["transactionHash"]).lower()),
            block_number=quantity(value["blockNumber"]),
            block_hash=str(value["blockHash"]).lower(),
            status=quantity(value["status"]),
            gas_used=quantity(value["gasUsed"]),
            gas_price=quantity(value.get("effectiveGasPrice") or "0x0"),
        )
    except (KeyError, TypeError):
        raise RpcError("the node sent a receipt that can't be read") from None


def parse_receipt(value: Mapping[str, Any]) -> Receipt:
    """Read a whole receipt.

    Raises:
        RpcError: It can't be read.
    """
    return receipt_of(parse_inclusion(value), tuple(parse_log(log) for log in value.get("logs") or ()))


def receipt_of(inclusion: Inclusion, logs: tuple[Log, ...] = ()) -> Receipt:
    """Make the public record of a place in a block."""
    return Receipt(
        tx_hash=inclusion.tx_hash,
        block_number=inclusion.block_number,
        block_hash=inclusion.block_hash,
        status=inclusion.status,
        gas_used=inclusion.gas_used,
        effective_gas_price=inclusion.gas_price,
        logs=logs,
    )


def parse_found(value: Mapping[str, Any]) -> Found:
    """Read a mined transaction of a wallet.

    Raises:
        RpcError: It can't be read.
    """
    try:
        to = value.get("to") or "0x" + "00" * 20
        return Found(
            account_nonce=quantity(value["nonce"]),
            tx_hash=TxHash(str(value["hash"]).lower()),
            intent=intent_digest(to, blob(value.get("input", value.get("data"))), quantity(value["value"])),
            block_number=quantity(value["blockNumber"]),
            block_hash=str(value["blockHash"]).lower(),
        )
    except (KeyError, TypeError, ValueError):
        raise RpcError("the node sent a transaction that can't be read") from None
