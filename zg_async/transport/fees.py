"""Fees and their caps. All arithmetic is on integers; a cap is a wall, never a hint."""

import dataclasses
from typing import Final

from zg_async.errors import FeeCapError

GWEI: Final = 10**9


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class FeePolicy:
    """What a transaction may cost, and how patient we are. The defaults fit 0G's networks with much room."""

    gas_price: int | None = None
    """A fixed price in neuron per gas (both fees of a type 2 transaction, as ethers does); None: by the chain."""
    max_fee_per_gas: int = 500 * GWEI
    """Neuron per gas; also what bumping stops at."""
    max_gas: int = 10_000_000
    max_cost_per_tx: int | None = None
    """Neuron, value included; None: only the two caps above bound it."""
    max_gas_cost_per_day: int | None = 50 * 10**18
    """Neuron of gas per wallet within 24 hours, unmined ones counted at their highest fee; None: no bound."""
    bump_after: float = 30.0
    """Seconds a transaction may wait in the pool, over at least two new blocks, before its fees are raised."""
    bump_tenths: int = 11
    """What a raise multiplies the fees by, in tenths; less than 11 is 11, below which nodes refuse."""
    resend_after: float = 12.0
    """Seconds after which a transaction without receipt is looked for in the pool, and sent again if it's gone."""
    wait_seconds: float = 300.0
    """How long `write` waits to be mined before `TransactionTimeoutError`; the transaction itself lives on."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Fees:
    """The two fees of a type 2 transaction, in neuron per gas."""

    max_fee_per_gas: int
    max_priority_fee_per_gas: int


def choose_fees(policy: FeePolicy, *, base_fee: int | None, gas_price: int, tip: int | None) -> Fees:
    """Choose the fees of a new transaction.

    Args:
        policy: Caps and the user's price.
        base_fee: Of the newest block; None on a chain without one.
        gas_price: The node's `eth_gasPrice`.
        tip: The node's `eth_maxPriorityFeePerGas`; None if it doesn't say.

    Returns:
        Twice the base fee plus tip, cut to the cap as long as the next block would still take it.

    Raises:
        FeeCapError: Even the least that could be mined now is above the cap.
    """
    if policy.gas_price is not None:
        return _capped(policy, policy.gas_price, policy.gas_price, policy.gas_price)
    if base_fee is None:
        return _capped(policy, gas_price, gas_price, gas_price)
    if tip is None:
        tip = max(gas_price - base_fee, 0)
    return _capped(policy, 2 * base_fee + tip, tip, base_fee + base_fee // 8 + tip)


def _capped(policy: FeePolicy, fee: int, tip: int, least: int) -> Fees:
    if least > policy.max_fee_per_gas:
        raise FeeCapError(
            f"gas costs at least {_gwei(least)} now, the cap is {_gwei(policy.max_fee_per_gas)}",
            hint="Wait, or raise FeePolicy.max_fee_per_gas",
        )
    fee = min(fee, policy.max_fee_per_gas)
    return Fees(max_fee_per_gas=fee, max_priority_fee_per_gas=min(tip, fee))


def bump(policy: FeePolicy, old: Fees, wanted: Fees | None = None) -> Fees | None:
    """Raise the fees of a transaction in the pool so that nodes accept the new version.

    Both fees grow to `max(old + 1, old * 110 / 100 rounded up)` at least; geth refuses less
    (go-ethereum core/txpool/legacypool/list.go).

    Args:
        policy: The cap.
        old: The fees of the newest version.
        wanted: What a new transaction would be given now, if known.

    Returns:
        The new fees, or None if they would exceed the cap.
    """
    tenths = max(policy.bump_tenths, 11)
    fee, tip = _raised(old.max_fee_per_gas, tenths), _raised(old.max_priority_fee_per_gas, tenths)
    if wanted is not None:
        fee, tip = max(fee, wanted.max_fee_per_gas), max(tip, wanted.max_priority_fee_per_gas)
    fee = max(fee, tip)
    if fee > policy.max_fee_per_gas:
        fee = policy.max_fee_per_gas
        tip = min(tip, fee)
        if fee < _raised(old.max_fee_per_gas) or tip < _raised(old.max_priority_fee_per_gas):
            return None
    return Fees(max_fee_per_gas=fee, max_priority_fee_per_gas=tip)


def _raised(fee: int, tenths: int = 11) -> int:
    return max(fee + 1, -(-fee * tenths // 10))


def gas_limit(policy: FeePolicy, estimate: int) -> int:
    """Add a fifth to an estimate, within the cap.

    Args:
        policy: The cap.
        estimate: The node's estimate.

    Raises:
        FeeCapError: The estimate itself is above the cap.
    """
    if estimate > policy.max_gas:
        raise FeeCapError(
            f"the call needs {estimate} gas, the cap is {policy.max_gas}",
            hint="If that is right, raise FeePolicy.max_gas",
        )
    return min(estimate + -(-estimate // 5), policy.max_gas)


def _gwei(neuron: int) -> str:
    whole, rest = divmod(neuron, GWEI)
    fraction = f"{rest:09d}".rstrip("0")
    return f"{whole}{'.' + fraction if fraction else ''} gwei per gas"
