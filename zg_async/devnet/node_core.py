"""The node between its chain and its sockets: one thread for the EVM, mining, and who is told of changes.

All that touches the chain's mutable parts runs in one worker thread at a time, so that a block's work never holds up
the event loop; changes are also serial among themselves, so that subscribers hear of them in order. What is only read
from finished blocks (receipts, logs, block numbers) is read on the loop.
"""

import math
from collections.abc import Callable
from typing import TypeVar

import anyio
import anyio.to_thread

from zg_async.background import Background, Child
from zg_async.clock import Clock
from zg_async.devnet.evm_records import EvmBlock, SignedTx
from zg_async.devnet.node_chain import Change, NodeChain
from zg_async.logs import get_logger

T = TypeVar("T")
_log = get_logger("zg_async.devnet.node")


class NodeCore:
    """A chain with a miner.

    Attributes:
        chain: The chain; change it only through this object.
        automine: Whether a transaction gets its block before its sender gets the answer.
        block_time: Seconds between blocks, None for none by the clock.
    """

    def __init__(self, chain: NodeChain, *, block_time: float | None, clock: Clock) -> None:
        self.chain = chain
        self.automine = block_time is None
        self.block_time = block_time
        self._clock = clock
        self._limiter = anyio.CapacityLimiter(1)
        self._changing = anyio.Lock()
        self._background = Background()
        self._interval: Child | None = None
        self._on_change: list[Callable[[Change], None]] = []
        self._on_waiting: list[Callable[[SignedTx], None]] = []

    def start(self) -> None:
        """Begin mining by the clock, if that's asked for."""
        if self.block_time is not None:
            self._interval = self._background.start(self._mine_by_clock(self.block_time), name="devnet-miner")

    async def aclose(self) -> None:
        """Stop mining; running work ends first."""
        await self._background.aclose()

    def listen(self, on_change: Callable[[Change], None], on_waiting: Callable[[SignedTx], None]) -> Callable[[], None]:
        """Call back for each change and each transaction that entered the pool; return how to stop that."""
        self._on_change.append(on_change)
        self._on_waiting.append(on_waiting)

        def stop() -> None:
            self._on_change.remove(on_change)
            self._on_waiting.remove(on_waiting)

        return stop

    async def run(self, work: Callable[[], T]) -> T:
        """Run something that reads or writes the chain in its thread."""
        return await anyio.to_thread.run_sync(work, limiter=self._limiter)

    async def change(self, work: Callable[[], Change]) -> Change:
        """Run something that adds or removes blocks, and tell of it."""
        async with self._changing:
            return await self._change(work)

    async def _change(self, work: Callable[[], Change]) -> Change:
        with anyio.CancelScope(shield=True):  # what has happened is told, whoever has gone
            change = await self.run(work)
            for tell in tuple(self._on_change):
                tell(change)
        return change  # pyright: ignore[reportPossiblyUnboundVariable]  a shield swallows nothing

    async def send(self, raw: bytes) -> bytes:
        """Take a signed transaction; with automine, return when its block stands.

        The transactions that arrive while a block is made share the next one.

        Raises:
            BadTransactionError: It was refused.
        """
        tx = await self.run(lambda: self.chain.accept(raw))
        for tell in tuple(self._on_waiting):
            tell(tx)
        while self.automine and self._waits(tx):
            async with self._changing:
                if not (await self._change(lambda: self.chain.mine_for(tx))).added:
                    break
        return tx.hash

    def _waits(self, tx: SignedTx) -> bool:
        return self.chain.pool.get(tx.hash) is not None

    async def mine(self, blocks: int = 1) -> list[EvmBlock]:
        """Make blocks now."""
        return list((await self.change(lambda: self.chain.mine(blocks))).added)

    async def set_automine(self, on: bool) -> None:
        """Mine each transaction at once, or only on demand; both end mining by the clock."""
        self._stop_interval()
        self.automine = on
        if on and len(self.chain.pool):
            await self.mine()

    def set_block_time(self, seconds: float | None) -> None:
        """Mine by the clock, None or 0 for only on demand."""
        if seconds is not None and not (0 <= seconds < math.inf):
            raise ValueError("not a duration")
        self._stop_interval()
        self.automine = False
        self.block_time = seconds or None
        self.start()

    def _stop_interval(self) -> None:
        if self._interval is not None:
            self._interval.cancel()
            self._interval = None
        self.block_time = None

    async def _mine_by_clock(self, seconds: float) -> None:
        due = self._clock.monotonic() + seconds
        while True:
            await self._clock.sleep(max(0.0, due - self._clock.monotonic()))
            due = max(due + seconds, self._clock.monotonic())
            block = (await self.mine())[-1]
            _log.debug("block %d with %d transactions", block.number, len(block.mined))
