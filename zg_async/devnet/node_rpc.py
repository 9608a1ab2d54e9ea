"""The node's JSON-RPC methods, by name."""

from typing import Any

from zg_async.devnet.evm_records import BadTransactionError, EvmBlock, ExecutionFailedError
from zg_async.devnet.node_chain import NodeChain
from zg_async.devnet.node_core import NodeCore
from zg_async.devnet.node_rpc_control import NodeControls
from zg_async.devnet.node_rpc_filters import Filters, Watch
from zg_async.devnet.node_rpc_format import (
    REVERTED,
    SERVER_ERROR,
    BlockRef,
    Json,
    Method,
    RpcFailure,
    block_json,
    hex_data,
    invalid,
    log_json,
    pending_block_json,
    read_address,
    read_block_ref,
    read_bytes,
    read_call,
    read_int,
    read_log_filter,
    receipt_json,
    transaction_json,
    word,
)
from zg_async.wire.hashing import keccak256

CLIENT_VERSION = "zg-devnet/py-evm"
DEFAULT_TIP = 10**9
_MOST_BATCH = 1_000
_MOST_HISTORY = 1_024


class NodeRpc:
    """Answers requests about one node."""

    def __init__(self, core: NodeCore, *, version: str = CLIENT_VERSION) -> None:
        self._core = core
        self._chain: NodeChain = core.chain
        self._version = version
        self._filters = Filters()
        self._stop = core.listen(self._filters.on_change, self._filters.on_waiting)
        self._methods: dict[str, Method] = self._reads() | NodeControls(core).methods()

    def _reads(self) -> dict[str, Method]:
        return {
            "web3_clientVersion": self._client_version,
            "web3_sha3": self._sha3,
            "net_version": self._net_version,
            "net_listening": self._true,
            "eth_chainId": self._chain_id,
            "eth_accounts": self._nothing,
            "eth_syncing": self._false,
            "eth_blockNumber": self._block_number,
            "eth_gasPrice": self._gas_price,
            "eth_maxPriorityFeePerGas": self._tip,
            "eth_feeHistory": self._fee_history,
            "eth_getBlockByNumber": self._get_block,
            "eth_getBlockByHash": self._get_block,
            "eth_getBlockTransactionCountByNumber": self._count_transactions,
            "eth_getBlockTransactionCountByHash": self._count_transactions,
            "eth_getBlockReceipts": self._block_receipts,
            "eth_getTransactionByHash": self._get_transaction,
            "eth_getTransactionByBlockNumberAndIndex": self._get_transaction_at,
            "eth_getTransactionByBlockHashAndIndex": self._get_transaction_at,
            "eth_getTransactionReceipt": self._get_receipt,
            "eth_getRawTransactionByHash": self._get_raw,
            "eth_getTransactionCount": self._get_nonce,
            "eth_getBalance": self._get_balance,
            "eth_getCode": self._get_code,
            "eth_getStorageAt": self._get_storage,
            "eth_call": self._call,
            "eth_estimateGas": self._estimate,
            "eth_sendRawTransaction": self._send,
            "eth_getLogs": self._get_logs,
            "eth_newFilter": self._new_filter,
            "eth_newBlockFilter": self._new_block_filter,
            "eth_newPendingTransactionFilter": self._new_pending_filter,
            "eth_getFilterChanges": self._filter_changes,
            "eth_getFilterLogs": self._filter_logs,
            "eth_uninstallFilter": self._uninstall,
            "txpool_status": self._pool_status,
        }

    def close(self) -> None:
        """Stop listening to the chain."""
        self._stop()

    # --- requests ---

    async def answer(self, request: Any, extra: dict[str, Method] | None = None) -> Any:
        """Answer a request or a batch; None when nothing is to be answered.

        Args:
            request: Decoded JSON.
            extra: Methods only this connection has.
        """
        if not isinstance(request, list):
            return await self._answer_one(request, extra or {})
        if not request:
            return _failed(None, RpcFailure(-32600, "empty batch"))
        if len(request) > _MOST_BATCH:
            return _failed(None, RpcFailure(-32600, "batch too large"))
        answers = [await self._answer_one(one, extra or {}) for one in request]
        return [one for one in answers if one is not None] or None

    async def _answer_one(self, request: Any, extra: dict[str, Method]) -> Json | None:
        if not isinstance(request, dict) or not isinstance(request.get("method"), str):
            return _failed(None, RpcFailure(-32600, "invalid request"))
        number, params = request.get("id"), request.get("params") or []
        if isinstance(number, dict | list | bool):
            return _failed(None, RpcFailure(-32600, "invalid request"))
        try:
            if not isinstance(params, list):
                raise invalid("non-array args")
            result = await self.call(request["method"], *params, extra=extra)
        except RpcFailure as failure:
            return _failed(number, failure)
        if "id" not in request:
            return None
        return {"jsonrpc": "2.0", "id": number, "result": result}

    async def call(self, name: str, *params: Any, extra: dict[str, Method] | None = None) -> Any:
        """Run one method.

        Raises:
            RpcFailure: The error to answer with.
        """
        method = (extra or {}).get(name) or self._methods.get(name)
        if method is None:
            raise RpcFailure(-32601, f"the method {name} does not exist/is not available")
        if not _takes(method, len(params)):
            raise invalid(f"{len(params)} arguments are too few or too many for {name}")
        try:
            return await method(*params)
        except ExecutionFailedError as error:
            if error.data is None:
                raise RpcFailure(SERVER_ERROR, str(error)) from error
            raise RpcFailure(REVERTED, str(error), hex_data(error.data)) from error
        except BadTransactionError as error:
            raise RpcFailure(SERVER_ERROR, str(error)) from error
        except ValueError as error:
            raise invalid(str(error)) from error

    # --- constants and fees ---

    async def _true(self) -> bool:
        return True

    async def _false(self) -> bool:
        return False

    async def _nothing(self) -> list[str]:
        return []

    async def _client_version(self) -> str:
        return self._version

    async def _sha3(self, data: Any) -> str:
        return hex_data(keccak256(read_bytes(data, "data")))

    async def _net_version(self) -> str:
        return str(self._chain.evm.chain_id)

    async def _chain_id(self) -> str:
        return hex(self._chain.evm.chain_id)

    async def _block_number(self) -> str:
        return hex(self._chain.head.number)

    async def _gas_price(self) -> str:
        return hex(max(self._chain.head.base_fee, self._chain.next_base_fee()) + DEFAULT_TIP)

    async def _tip(self) -> str:
        return hex(DEFAULT_TIP)

    async def _fee_history(self, count: Any, newest: Any, percentiles: Any = None) -> Json:
        last = self._block(read_block_ref(newest))
        size = min(read_int(count, "blockCount"), _MOST_HISTORY, last.number + 1)
        blocks = self._chain.evm.blocks[last.number + 1 - size : last.number + 1]
        following = self._chain.evm.blocks[last.number + 1 : last.number + 2]
        after = following[0].base_fee if following else self._chain.next_base_fee()
        answer: Json = {
            "oldestBlock": hex(last.number + 1 - size),
            "baseFeePerGas": [hex(block.base_fee) for block in blocks] + [hex(after)],
            "gasUsedRatio": [block.header.gas_used / block.header.gas_limit for block in blocks],
            "baseFeePerBlobGas": ["0x1"] * (size + 1),
            "blobGasUsedRatio": [0.0] * size,
        }
        if percentiles:
            wanted = [float(one) for one in percentiles]
            answer["reward"] = [[hex(_tip_percentile(block, one)) for one in wanted] for block in blocks]
        return answer

    # --- blocks and transactions ---

    def _find_block(self, ref: BlockRef) -> EvmBlock | None:
        blocks = self._chain.evm.blocks
        if ref.hash is not None:
            return self._chain.block_by_hash(ref.hash)
        if ref.number is not None:
            return blocks[ref.number] if ref.number < len(blocks) else None
        return blocks[0] if ref.tag == "earliest" else blocks[-1]

    def _block(self, ref: BlockRef) -> EvmBlock:
        block = self._find_block(ref)
        if block is None:
            raise RpcFailure(SERVER_ERROR, "header not found")
        return block

    async def _get_block(self, block: Any, full: Any = False) -> Json | None:
        ref = read_block_ref(block)
        if ref.tag == "pending":
            return await self._core.run(lambda: self._pending_block(bool(full)))
        found = self._find_block(ref)
        return None if found is None else block_json(found, full=bool(full))

    def _pending_block(self, full: bool) -> Json:
        chain = self._chain
        return pending_block_json(
            chain.head, chain.ready(), timestamp=chain.next_timestamp(), base_fee=chain.next_base_fee(), full=full
        )

    async def _count_transactions(self, block: Any) -> str | None:
        found = self._find_block(read_block_ref(block))
        return None if found is None else hex(len(found.mined))

    async def _block_receipts(self, block: Any) -> list[Json] | None:
        found = self._find_block(read_block_ref(block))
        return None if found is None else [receipt_json(found, one) for one in found.mined]

    async def _get_transaction(self, tx_hash: Any) -> Json | None:
        key = read_bytes(tx_hash, "hash", 32)
        if found := self._chain.mined(key):
            return transaction_json(found[1].tx, block=found[0], mined=found[1])
        waiting = self._chain.pool.get(key)
        return None if waiting is None else transaction_json(waiting)

    async def _get_transaction_at(self, block: Any, index: Any) -> Json | None:
        found, place = self._find_block(read_block_ref(block)), read_int(index, "index")
        if found is None or place >= len(found.mined):
            return None
        return transaction_json(found.mined[place].tx, block=found, mined=found.mined[place])

    async def _get_receipt(self, tx_hash: Any) -> Json | None:
        found = self._chain.mined(read_bytes(tx_hash, "hash", 32))
        return None if found is None else receipt_json(*found)

    async def _get_raw(self, tx_hash: Any) -> str | None:
        key = read_bytes(tx_hash, "hash", 32)
        found = self._chain.mined(key)
        tx = self._chain.pool.get(key) if found is None else found[1].tx
        return None if tx is None else hex_data(tx.raw)

    async def _send(self, raw: Any) -> str:
        return hex_data(await self._core.send(read_bytes(raw, "transaction")))

    # --- state ---

    async def _get_nonce(self, address: Any, block: Any = None) -> str:
        account, ref = read_address(address), read_block_ref(block)
        if ref.tag == "pending":
            return hex(await self._core.run(lambda: self._chain.pending_nonce(account)))
        at = self._block(ref)
        return hex(await self._core.run(lambda: self._chain.evm.nonce(account, at)))

    async def _get_balance(self, address: Any, block: Any = None) -> str:
        account, at = read_address(address), self._block(read_block_ref(block))
        return hex(await self._core.run(lambda: self._chain.evm.balance(account, at)))

    async def _get_code(self, address: Any, block: Any = None) -> str:
        account, at = read_address(address), self._block(read_block_ref(block))
        return hex_data(await self._core.run(lambda: self._chain.evm.code(account, at)))

    async def _get_storage(self, address: Any, slot: Any, block: Any = None) -> str:
        account, at, place = read_address(address), self._block(read_block_ref(block)), read_int(slot, "slot")
        return word(await self._core.run(lambda: self._chain.evm.storage(account, place, at)))

    async def _call(self, request: Any, block: Any = None, overrides: Any = None) -> str:
        if overrides:
            raise invalid("state overrides are not supported")
        call, (at, timestamp) = self._read_call(request), self._at(block)
        return hex_data(await self._core.run(lambda: self._chain.evm.call(call, at, timestamp=timestamp)))

    async def _estimate(self, request: Any, block: Any = None, overrides: Any = None) -> str:
        if overrides:
            raise invalid("state overrides are not supported")
        call, (at, timestamp) = self._read_call(request), self._at(block)
        return hex(await self._core.run(lambda: self._chain.evm.estimate(call, at, timestamp=timestamp)))

    def _read_call(self, request: Any) -> Any:
        return read_call(request, base_fee=self._chain.next_base_fee())

    def _at(self, block: Any) -> tuple[EvmBlock, int | None]:
        ref = read_block_ref(block)
        timestamp = self._chain.next_timestamp() if ref.tag in ("latest", "pending") else None
        return self._block(ref), timestamp

    # --- logs and filters ---

    async def _get_logs(self, options: Any) -> list[Json]:
        wanted = read_log_filter(options)
        if options.get("blockHash") is not None:
            if options.get("fromBlock") is not None or options.get("toBlock") is not None:
                raise invalid("cannot specify both BlockHash and FromBlock/ToBlock, choose one or the other")
            block = self._find_block(read_block_ref(options["blockHash"]))
            if block is None:
                raise RpcFailure(SERVER_ERROR, "unknown block")
            blocks = [block]
        else:
            blocks = self._range(options.get("fromBlock"), options.get("toBlock"))
        return [log_json(block, log) for block in blocks for log in block.logs if wanted.matches(log)]

    def _range(self, first: Any, last: Any) -> list[EvmBlock]:
        start, end = (self._number(read_block_ref(value)) for value in (first, last))
        if start > end:
            raise RpcFailure(SERVER_ERROR, "invalid block range params")
        return self._chain.evm.blocks[start : end + 1]

    def _number(self, ref: BlockRef) -> int:
        return self._block(ref).number if ref.number is None else ref.number

    async def _new_filter(self, options: Any) -> str:
        return self._filters.add(Watch("logs", options))

    async def _new_block_filter(self) -> str:
        return self._filters.add(Watch("newBlockHashes"))

    async def _new_pending_filter(self) -> str:
        return self._filters.add(Watch("newPendingTransactions"))

    async def _filter_changes(self, number: Any) -> list[Any]:
        held = self._filters.take(number)
        if held is None:
            raise RpcFailure(SERVER_ERROR, "filter not found")
        return held

    async def _filter_logs(self, number: Any) -> list[Json]:
        watch = self._filters.get(number)
        if watch is None or watch.kind != "logs":
            raise RpcFailure(SERVER_ERROR, "filter not found")
        return [log_json(b, log) for b in self._chain.evm.blocks for log in b.logs if watch.filter.matches(log)]

    async def _uninstall(self, number: Any) -> bool:
        return self._filters.remove(number)

    async def _pool_status(self) -> Json:
        pending, waiting = await self._core.run(lambda: (len(self._chain.ready()), len(self._chain.pool)))
        return {"pending": hex(pending), "queued": hex(waiting - pending)}


def _failed(number: Any, failure: RpcFailure) -> Json:
    return {"jsonrpc": "2.0", "id": number, "error": failure.body}


def _takes(method: Method, count: int) -> bool:
    function: Any = getattr(method, "__func__", method)
    most = function.__code__.co_argcount - (1 if hasattr(method, "__self__") else 0)
    least = most - len(function.__defaults__ or ())
    return bool(least <= count <= most)


def _tip_percentile(block: EvmBlock, percentile: float) -> int:
    tips = sorted((one.gas_price - block.base_fee, one.gas_used) for one in block.mined)
    if not tips:
        return 0
    threshold, total = block.header.gas_used * percentile / 100, 0
    for tip, gas in tips:
        total += gas
        if total >= threshold:
            return tip
    return tips[-1][0]
