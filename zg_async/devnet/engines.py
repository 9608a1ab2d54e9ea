"""Makes the chain engine that was asked for."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from aiohttp.typedefs import Middleware

from zg_async.clock import Clock, SystemClock
from zg_async.devnet.anvil import Anvil
from zg_async.devnet.engine import Engine
from zg_async.errors import ConfigError

ENGINES = ("pyevm", "anvil")


def make_engine(
    kind: str,
    balances: Mapping[str, int],
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    chain_id: int = 31337,
    block_time: float | None = None,
    clock: Clock | None = None,
    middlewares: Sequence[Middleware] = (),
    binary: Path | None = None,
) -> Engine:
    """Make an engine; it runs once it is entered.

    Args:
        kind: `pyevm` (embedded, always there) or `anvil` (faster, if installed).
        balances: What each address owns at the start, in neuron.
        host: Address to bind.
        port: TCP port, 0 for any free one.
        chain_id: The chain's id.
        block_time: Seconds between blocks; None mines each transaction at once.
        clock: Wall time.
        middlewares: In front of pyevm's requests. For anvil put a `faults.FaultProxy` in front.
        binary: The anvil program; None looks for it.

    Raises:
        ConfigError: There is no such engine.
    """
    if kind == "anvil":
        return Anvil(balances, host, port, chain_id=chain_id, block_time=block_time, clock=clock, binary=binary)
    if kind != "pyevm":
        raise ConfigError(f"no engine {kind!r}", hint=f"Known are {', '.join(ENGINES)}")
    from zg_async.devnet.evm import Evm
    from zg_async.devnet.node import Node

    wall = clock or SystemClock()
    accounts = {bytes.fromhex(address.removeprefix("0x")): amount for address, amount in balances.items()}
    evm = Evm(accounts, timestamp=int(wall.now()), chain_id=chain_id)
    return Node(evm, host, port, block_time=block_time, clock=wall, middlewares=middlewares)
