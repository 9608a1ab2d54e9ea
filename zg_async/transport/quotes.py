"""What a write would cost, asked in one round trip, and whether it would succeed at all. Nothing is signed here."""

import dataclasses
from typing import Any, Final

from zg_async.clock import Clock
from zg_async.errors import (
    ChainError,
    ChainUnavailableError,
    ContractRevertedError,
    FeeCapError,
    InsufficientGasFundsError,
    RpcError,
)
from zg_async.logs import get_logger
from zg_async.transport.fees import FeePolicy, Fees, choose_fees, gas_limit
from zg_async.transport.heads import Block, parse_block
from zg_async.transport.rpc import Ask, Rpc, quantity
from zg_async.units import format_amount
from zg_async.wire.contracts import Call
from zg_async.wire.hashing import hex0x
from zg_async.wire.records import Address

_log = get_logger("zg_async.chain")
MOST_AHEAD: Final = 64
"""Transactions of one wallet in a pool; nodes keep no more."""
_MOST_MINED: Final = 2**32
BEHIND_TRIES: Final = 8
BEHIND_PAUSE: Final = 0.5


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Quote:
    """A write that would succeed on the newest block, and what it takes."""

    estimate: int
    """Gas."""
    gas: int
    fees: Fees
    base_fee: int | None
    balance: int
    """The wallet's, in neuron."""
    latest: int
    """The next nonce by the newest block."""
    pending: int
    """The next nonce by the node's pool."""
    at: float
    """Monotonic seconds."""

    @property
    def likely_cost(self) -> int:
        """Neuron of gas at today's price."""
        price = self.fees.max_fee_per_gas
        if self.base_fee is not None:
            price = min(price, self.base_fee + self.fees.max_priority_fee_per_gas)
        return self.estimate * price


class FewerError(ChainUnavailableError):
    """The newest block holds fewer transactions of the wallet than were final."""

    def __init__(self, count: int, least: int, wallet: Address) -> None:
        """Name both counts."""
        super().__init__(f"the node counts {count} transactions of {wallet}, of which {least} were mined for good")


async def quote(
    rpc: Rpc, call: Call[Any], wallet: Address, policy: FeePolicy, clock: Clock, *, above: int, least: int = 0
) -> Quote:
    """Simulate a write and price it.

    Args:
        rpc: The node.
        call: What would be sent.
        wallet: By whom.
        policy: Caps.
        clock: For waiting while the node is behind.
        above: The highest block we know; an older view isn't used.
        least: How many transactions of the wallet the chain must count.

    Raises:
        ContractRevertedError: It would be reverted, with the decoded reason.
        InsufficientGasFundsError: The wallet can't pay the value.
        FeeCapError: Gas or price above a cap.
        FewerError: The chain counts fewer transactions.
        ChainUnavailableError: No answer, or the node is behind.
    """
    answers, block = await _ask(rpc, call, wallet)
    for _ in range(BEHIND_TRIES):
        if block.number >= above:
            break
        await clock.sleep(BEHIND_PAUSE)  # another back-end behind the same URL
        answers, block = await _ask(rpc, call, wallet)
    if block.number < above:
        raise behind(block.number, above)
    _, price, tip, balance, latest, pending, estimate = answers
    if not isinstance(latest, ChainError) and quantity(latest) < least:
        raise FewerError(quantity(latest), least, wallet)
    if isinstance(estimate, ChainError):
        raise await _explained(rpc, estimate, call, wallet, balance)
    for answer in (price, balance, latest, pending):
        if isinstance(answer, ChainError):
            raise answer
    return Quote(
        estimate=quantity(estimate),
        gas=gas_limit(policy, quantity(estimate)),
        fees=choose_fees(
            policy,
            base_fee=block.base_fee,
            gas_price=quantity(price),
            tip=None if isinstance(tip, ChainError) else quantity(tip),
        ),
        base_fee=block.base_fee,
        balance=quantity(balance),
        latest=quantity(latest),
        pending=max(quantity(pending), quantity(latest)),
        at=clock.monotonic(),
    )


def behind(number: int, above: int) -> ChainUnavailableError:
    """Say that the node's view is too old."""
    return ChainUnavailableError(f"the node is at block {number}, behind {above} that it has shown before")


def call_fields(call: Call[Any], wallet: str | None) -> dict[str, str]:
    """Write a call as JSON-RPC takes it."""
    fields = {"to": call.to, "data": hex0x(call.data)}
    if call.value:
        fields["value"] = hex(call.value)
    if wallet is not None:
        fields["from"] = wallet
    return fields


def check_count(*, latest: int, pending: int, ours: int, wallet: Address) -> None:
    """Refuse a nonce that leaves a gap nobody could fill, before anything is signed with it.

    Args:
        latest: The node's count of the wallet's mined transactions.
        pending: The same with its pool.
        ours: The nonce behind all that the outbox knows.
        wallet: For the message.

    Raises:
        RpcError: No wallet has so many, or so many in the pool.
    """
    if latest >= _MOST_MINED or pending > max(latest, ours) + MOST_AHEAD:
        raise RpcError(
            f"the node says that {wallet} has sent {latest} transactions and has {pending - latest} in the pool",
            hint="Nothing was signed. Ask another RPC endpoint",
        )


def check_money(
    policy: FeePolicy,
    wallet: Address,
    *,
    value: int,
    gas: int,
    fees: Fees,
    balance: int,
    open_cost: int,
    gas_today: int,
) -> None:
    """Refuse what the wallet can't pay or the caps don't allow, before anything is signed.

    Args:
        policy: Caps.
        wallet: For the message.
        value: Neuron sent along.
        gas: Gas limit.
        fees: Per gas.
        balance: The wallet's, in neuron.
        open_cost: Neuron that unmined transactions may still take.
        gas_today: Neuron of gas within the last 24 hours.

    Raises:
        InsufficientGasFundsError: The balance doesn't cover it.
        FeeCapError: It would break a cap.
    """
    gas_cost = gas * fees.max_fee_per_gas
    if value + gas_cost + open_cost > balance:
        needed = f"{format_amount(value)} and up to {format_amount(gas_cost)} of gas"
        busy = f", {format_amount(open_cost)} are reserved for unmined transactions" if open_cost else ""
        raise InsufficientGasFundsError(
            f"the wallet {wallet} holds {format_amount(balance)}, the transaction needs {needed}{busy}",
            hint="Fund the wallet; nothing was signed",
        )
    if policy.max_cost_per_tx is not None and value + gas_cost > policy.max_cost_per_tx:
        raise FeeCapError(
            f"the transaction may cost {format_amount(value + gas_cost)}, "
            f"the cap is {format_amount(policy.max_cost_per_tx)}",
            hint="If that is right, raise FeePolicy.max_cost_per_tx",
        )
    if policy.max_gas_cost_per_day is not None and gas_today + gas_cost > policy.max_gas_cost_per_day:
        raise FeeCapError(
            f"gas of the last 24 hours would reach {format_amount(gas_today + gas_cost)}, "
            f"the cap is {format_amount(policy.max_gas_cost_per_day)}",
            hint="Wait, or raise FeePolicy.max_gas_cost_per_day",
        )


async def _ask(rpc: Rpc, call: Call[Any], wallet: Address) -> tuple[list[Any], Block]:
    asks = [
        Ask("eth_getBlockByNumber", ["latest", False]),
        Ask("eth_gasPrice"),
        Ask("eth_maxPriorityFeePerGas"),
        Ask("eth_getBalance", [wallet, "latest"]),
        Ask("eth_getTransactionCount", [wallet, "latest"]),
        Ask("eth_getTransactionCount", [wallet, "pending"]),
        Ask("eth_estimateGas", [call_fields(call, wallet)], call.name, call.to),
    ]
    answers = await rpc.batch(asks)
    if isinstance(answers[0], ChainError):
        raise answers[0]
    return answers, parse_block(answers[0])


async def _explained(rpc: Rpc, error: ChainError, call: Call[Any], wallet: Address, balance: Any) -> ChainError:
    """Say more about a failed estimate: the revert data some nodes give to calls only, the amounts."""
    if isinstance(error, InsufficientGasFundsError) and isinstance(balance, str):
        return InsufficientGasFundsError(
            f"the wallet {wallet} holds {format_amount(quantity(balance))}, {call.name} needs "
            f"{format_amount(call.value)} and gas",
            hint="Fund the wallet; nothing was signed",
        )
    if isinstance(error, ContractRevertedError) and not error.data:
        ask = Ask("eth_call", [call_fields(call, wallet), "latest"], call.name, call.to)
        again = (await rpc.batch([ask]))[0]
        if isinstance(again, ContractRevertedError) and again.data:
            return again
    return error
