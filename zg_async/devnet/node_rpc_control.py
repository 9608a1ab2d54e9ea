"""The methods by which tests move a node's clock, blocks and balances, by the names of anvil and hardhat."""

import math
from typing import Any

from zg_async.devnet.node_core import NodeCore
from zg_async.devnet.node_rpc_format import Method, hex_data, invalid, read_address, read_bytes, read_int

_MOST_MINED = 10_000


class NodeControls:
    """Controls of one node."""

    def __init__(self, core: NodeCore) -> None:
        self._core = core
        self._chain = core.chain

    def methods(self) -> dict[str, Method]:
        """List them by name."""
        balance, drop = self._set_balance, self._drop
        return {
            "evm_increaseTime": self._increase_time,
            "evm_setNextBlockTimestamp": self._set_timestamp,
            "evm_setTime": self._set_time,
            "evm_mine": self._mine,
            "anvil_mine": self._mine_many,
            "hardhat_mine": self._mine_many,
            "evm_snapshot": self._snapshot,
            "evm_revert": self._revert,
            "evm_setAutomine": self._set_automine,
            "evm_setIntervalMining": self._set_interval,
            "anvil_setIntervalMining": self._set_interval,
            "anvil_getAutomine": self._get_automine,
            "hardhat_getAutomine": self._get_automine,
            "anvil_setBalance": balance,
            "hardhat_setBalance": balance,
            "anvil_setNextBlockBaseFeePerGas": self._set_base_fee,
            "hardhat_setNextBlockBaseFeePerGas": self._set_base_fee,
            "anvil_dropTransaction": drop,
            "hardhat_dropTransaction": drop,
            "anvil_dropAllTransactions": self._drop_all,
            "anvil_reorg": self._anvil_reorg,
            "zg_reorg": self._reorg,
        }

    async def _increase_time(self, seconds: Any) -> int:
        amount = read_int(seconds, "seconds")
        return await self._core.run(lambda: self._chain.increase_time(amount))

    async def _set_time(self, timestamp: Any) -> int:
        at = read_int(timestamp, "timestamp")
        return await self._core.run(lambda: self._chain.set_time(at))

    async def _set_timestamp(self, timestamp: Any) -> None:
        at = read_int(timestamp, "timestamp")
        await self._core.run(lambda: self._chain.set_next_timestamp(at))

    async def _mine(self, options: Any = None) -> str:
        blocks, at = 1, options
        if isinstance(options, dict):
            blocks, at = read_int(options.get("blocks") or 1, "blocks"), options.get("timestamp")
        if at is not None:
            await self._set_timestamp(at)
        await self._mine_many(blocks)
        return "0x0"

    async def _mine_many(self, blocks: Any = 1, interval: Any = None) -> None:
        count = read_int(1 if blocks is None else blocks, "blocks")
        if count > _MOST_MINED:
            raise invalid(f"at most {_MOST_MINED} blocks at once")
        step = 0 if interval is None else read_int(interval, "interval")
        await self._core.change(lambda: self._chain.mine(count, step=step))

    async def _snapshot(self) -> str:
        return hex(await self._core.run(self._chain.snapshot))

    async def _revert(self, number: Any) -> bool:
        key = read_int(number, "snapshot")
        return bool((await self._core.change(lambda: self._chain.revert(key))).found)

    async def _set_automine(self, on: Any) -> bool:
        if not isinstance(on, bool):
            raise invalid("not true or false")
        await self._core.set_automine(on)
        return True

    async def _get_automine(self) -> bool:
        return self._core.automine

    async def _set_interval(self, seconds: Any) -> bool:
        number = seconds if isinstance(seconds, float) else float(read_int(seconds, "seconds"))
        if not 0 <= number < math.inf:
            raise invalid("not a duration")
        self._core.set_block_time(number)
        return True

    async def _set_balance(self, address: Any, amount: Any) -> bool:
        account, number = read_address(address), read_int(amount, "balance")
        await self._core.run(lambda: self._chain.set_balance(account, number))
        return True

    async def _set_base_fee(self, fee: Any) -> None:
        number = read_int(fee, "fee")
        await self._core.run(lambda: self._chain.set_next_base_fee(number))

    async def _drop(self, tx_hash: Any) -> str | None:
        key = read_bytes(tx_hash, "hash", 32)
        return hex_data(key) if await self._core.run(lambda: self._chain.drop(key)) else None

    async def _drop_all(self) -> None:
        await self._core.run(self._chain.pool.clear)

    async def _anvil_reorg(self, depth: Any, transactions: Any = None) -> None:
        if isinstance(depth, dict):
            depth, transactions = depth.get("depth"), depth.get("tx_block_pairs")
        if transactions:
            raise invalid("transactions in the new blocks are not supported")
        count = read_int(depth, "depth")
        await self._core.change(lambda: self._chain.reorg(count))

    async def _reorg(self, depth: Any, options: Any = None) -> None:
        count, chosen = read_int(depth, "depth"), options or {}
        if not isinstance(chosen, dict) or chosen.keys() - {"keep", "refill"}:
            raise invalid("the options are keep and refill")
        keep, refill = bool(chosen.get("keep", False)), bool(chosen.get("refill", True))
        await self._core.change(lambda: self._chain.reorg(count, keep=keep, refill=refill))
