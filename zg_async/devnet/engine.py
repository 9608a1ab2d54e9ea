"""What the devnet needs from a chain engine, so that one can stand in for another."""

from abc import ABC, abstractmethod
from types import TracebackType
from typing import Any, Protocol

from zg_async.clock import Clock, SystemClock


class Engine(Protocol):
    """A node with a URL, and a hand on its clock, its blocks and its balances."""

    name: str

    @property
    def url(self) -> str:
        """Where it takes JSON-RPC over HTTP; with `ws` instead of `http` also over WebSocket."""
        ...

    async def request(self, method: str, *params: Any) -> Any:
        """Run a JSON-RPC method; an error answer raises `RpcError`."""
        ...

    async def now(self) -> float:
        """Return the chain's time in unix seconds: what a block would get now."""
        ...

    async def increase_time(self, seconds: int) -> int:
        """Move the chain's clock ahead; return by how many seconds it is ahead of the wall clock in all."""
        ...

    async def mine(self, blocks: int = 1) -> None:
        """Make blocks now; the first holds what waits."""
        ...

    async def set_balance(self, address: str, amount: int) -> None:
        """Set an account's balance in neuron."""
        ...

    async def set_automine(self, on: bool) -> None:
        """Mine each transaction at once, or only on demand."""
        ...

    async def set_block_time(self, seconds: float) -> None:
        """Mine by the clock every so many seconds; 0 for only on demand."""
        ...

    async def set_next_base_fee(self, fee: int) -> None:
        """Give the next block a base fee in neuron per gas."""
        ...

    async def snapshot(self) -> str:
        """Remember the present; return its name."""
        ...

    async def revert(self, snapshot: str) -> bool:
        """Go back to a snapshot, which is used up by that; return whether it was there."""
        ...

    async def reorg(self, depth: int) -> None:
        """Replace the newest blocks by empty ones; their transactions are lost."""
        ...

    async def drop(self, tx_hash: str) -> bool:
        """Lose a waiting transaction; return whether it waited."""
        ...

    async def start(self) -> None:
        """Begin to answer."""
        ...

    async def aclose(self) -> None:
        """Stop. Idempotent."""
        ...

    async def __aenter__(self) -> "Engine":
        """Start it."""
        ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""
        ...


class EngineControls(ABC):
    """The controls of `Engine` by the method names that this package's node and anvil share."""

    _clock: Clock = SystemClock()

    @abstractmethod
    async def request(self, method: str, *params: Any) -> Any:
        """Run a JSON-RPC method.

        Raises:
            RpcError: It answered with an error.
        """

    async def now(self) -> float:
        """Return the chain's time in unix seconds: what a block would get now."""
        return self._clock.now() + await self.increase_time(0)

    async def increase_time(self, seconds: int) -> int:
        """Move the chain's clock ahead; return by how many seconds it is ahead of the wall clock in all."""
        return int(await self.request("evm_increaseTime", seconds))

    async def mine(self, blocks: int = 1) -> None:
        """Make blocks now; the first holds what waits."""
        await self.request("anvil_mine", hex(blocks))

    async def set_balance(self, address: str, amount: int) -> None:
        """Set an account's balance in neuron."""
        await self.request("anvil_setBalance", address, hex(amount))

    async def set_automine(self, on: bool) -> None:
        """Mine each transaction at once, or only on demand."""
        await self.request("evm_setAutomine", on)

    async def set_block_time(self, seconds: float) -> None:
        """Mine by the clock every so many seconds; 0 for only on demand."""
        await self.request("evm_setIntervalMining", seconds)

    async def set_next_base_fee(self, fee: int) -> None:
        """Give the next block a base fee in neuron per gas."""
        await self.request("anvil_setNextBlockBaseFeePerGas", hex(fee))

    async def snapshot(self) -> str:
        """Remember the present; return its name."""
        return str(await self.request("evm_snapshot"))

    async def revert(self, snapshot: str) -> bool:
        """Go back to a snapshot, which is used up by that; return whether it was there."""
        return bool(await self.request("evm_revert", snapshot))

    async def reorg(self, depth: int) -> None:
        """Replace the newest blocks by empty ones; their transactions are lost."""
        await self.request("anvil_reorg", depth, [])

    async def drop(self, tx_hash: str) -> bool:
        """Lose a waiting transaction; return whether it waited."""
        return await self.request("anvil_dropTransaction", tx_hash) is not None
