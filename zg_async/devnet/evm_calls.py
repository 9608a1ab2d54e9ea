"""How calls ended, so that the same call isn't run again: clients repeat themselves, and a call takes milliseconds.

Theory. What a call gives follows from its request, from what its contracts read of the state below it, and from the
block's fields that they ask for. All of that is noted while it runs. It ends the same wherever they would read the
same, in other blocks too, and reading it again takes a hundredth of the time.
"""

from collections.abc import Callable
from typing import Any, Final

from eth.vm.forks.prague.computation import PragueComputation
from eth_typing import Hash32

from zg_async.devnet.evm_records import CallRequest, EvmBlock
from zg_async.devnet.evm_state import FlatAccounts, Reads, Store

_MOST: Final = 4_096
Failure = tuple[str, bytes | None]
"""Message and revert data."""
Outcome = tuple[bytes, Failure | None]
"""Output, and how it failed."""
_OF_BALANCES: Final = (0x31, 0x47, 0xF0, 0xF1, 0xF2, 0xF5)
"""BALANCE, SELFBALANCE, CREATE, CALL, CALLCODE, CREATE2. In the other calls py-evm reads a balance for nothing."""


def _noting(instruction: Callable[..., Any]) -> Callable[..., None]:
    def run(computation: Any) -> None:
        if computation.state.reads is not None:
            computation.state.reads.balances = True
        instruction(computation=computation)

    return run


class NotingComputation(PragueComputation):
    """Runs a contract, and notes when what an account owns may matter."""

    opcodes: dict[int, Any] = PragueComputation.opcodes | {
        number: _noting(PragueComputation.opcodes[number]) for number in _OF_BALANCES
    }


class KnownCalls:
    """The last outcome of each request."""

    def __init__(self, store: Store) -> None:
        """Know nothing yet; `store` holds the states."""
        self._store = store
        self._known: dict[CallRequest, tuple[Outcome, Reads, bytes, int]] = {}

    def find(self, request: CallRequest, block: EvmBlock, time: int) -> Outcome | None:
        """Return how a call would end on the state after a block, None if it has to be run."""
        if (known := self._known.get(request)) is None:
            return None
        outcome, reads, block_hash, then = known
        if (reads.block and block_hash != block.hash) or (reads.time and then != time):
            return None
        return outcome if reads.hold(FlatAccounts(self._store, Hash32(block.state_root))) else None

    def keep(self, request: CallRequest, block: EvmBlock, time: int, outcome: Outcome, reads: Reads) -> None:
        """Remember how a call ended, unless more than its reads decides that."""
        self._known.pop(request, None)
        of_sender = any(address == request.sender for _, address in reads.parts)  # whom a call itself changes
        if request.to is None or request.value or request.gas_price or reads.wrote or of_sender:
            return
        if len(self._known) >= _MOST:
            del self._known[next(iter(self._known))]
        self._known[request] = outcome, reads, block.hash, time
