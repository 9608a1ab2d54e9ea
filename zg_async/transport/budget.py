"""What may be spent: every value that leaves passes here, at the moment it is signed or promised.

Two things are counted apart. *Gone* is what doesn't come back: gas, values paid for good, task fees with their
penalties. *Bound* is what comes back after the lock time: deposits into the ledger and transfers to sub-accounts.
What is reserved counts like what is spent: a transaction from before it is signed at its dearest until it is mined, a
task's fee from before the task is asked for until it is settled.

The sums are those of the outbox, so they outlive the process: per wallet over all programs that share it, and over all
wallets of one broker. What is being signed right now is held in memory meanwhile; check and hold are one step without
an await, so that no number of payers at once gets past a limit.
"""

import contextlib
import dataclasses
import inspect
from collections.abc import Awaitable, Callable, Iterator
from collections.abc import Set as AbstractSet
from typing import Any, Final

import anyio

from zg_async.errors import ConfigError, LimitError
from zg_async.transport.chain_time import ChainTime
from zg_async.transport.rows import Money, Row, RowStatus
from zg_async.units import Amount, format_amount, parse_amount
from zg_async.wire.contracts import Call
from zg_async.wire.hashing import checksum_address
from zg_async.wire.records import Address

_MINUTE: Final = 60.0
_DAY_MINUTES: Final = 1440
_DEPOSITS: Final = frozenset({"LedgerManager.addLedger", "LedgerManager.depositFund"})
_TRANSFER: Final = "LedgerManager.transferFund"
AUTO_FUNDING: Final = "auto-funding"
"""Begins the keys of transfers that the package makes by itself."""
FILLER: Final = "filler"
"""Begins the keys of transfers of nothing, which only use a nonce up."""
_FREE: Final = frozenset({"once", AUTO_FUNDING, FILLER})
_HOUR: Final = 3600.0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class FirstTransfer:
    """The first money a wallet would send to a provider."""

    wallet: Address
    provider: Address
    amount: int
    """Neuron."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class FirstSpending:
    """The first transaction of a wallet on a chain, as far as the outbox knows."""

    wallet: Address
    name: str
    """Contract and function."""
    amount: int
    """Neuron: what it moves, and its gas at the dearest."""


Consent = Callable[[FirstTransfer], "bool | Awaitable[bool]"]
SpendingConsent = Callable[[FirstSpending], "bool | Awaitable[bool]"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SpendLimits:
    """What a broker may spend. Each limit is a wall; None: no such limit. Fees count from when limits are set."""

    per_call: Amount | None = None
    """Most that one transaction may move or cost, gas included, and most that one task's fee may be."""
    per_job: Amount | None = None
    """Most that may be gone for one job: fee and gas. `JobSpec.max_spend` can only lower it."""
    per_day: Amount | None = None
    """Most that may be gone within any 24 hours, over all wallets."""
    wallet_per_day: Amount | None = None
    """Most that may be gone within any 24 hours for any one wallet."""
    bound_per_day: Amount | None = None
    """Most that may be deposited, and most that may be transferred to sub-accounts, within any 24 hours."""
    consent: Consent | None = None
    """Asked, once per wallet and provider, before the first transfer there; False refuses it. None: a provider that
    was named by the user, or chosen for a job within its limits, is consented to."""
    first_spending: SpendingConsent | None = None
    """Asked before a wallet's first transaction on the chain; False refuses it. None: it is consented to."""

    @property
    def is_capped(self) -> bool:
        """Whether what may be gone has a bound."""
        return self.per_job is not None or self.per_day is not None or self.wallet_per_day is not None


def money_of(name: str, data: bytes, value: int) -> tuple[Money, Address | None]:
    """Say what a call does with money, gas apart, and which provider it first entrusts with some.

    Args:
        name: Contract and function.
        data: Its calldata.
        value: Neuron sent along.

    Returns:
        The amounts, and the provider that gets a transfer.
    """
    if name == _TRANSFER and len(data) >= 100:
        return Money(transferred=int.from_bytes(data[68:100], "big")), checksum_address(data[16:36])
    return (Money(deposited=value) if name in _DEPOSITS else Money(gone=value)), None


def money_of_row(row: Row) -> Money:
    """Say what a recorded transaction has taken, or may take while it isn't mined."""
    if row.status in (RowStatus.REVERTED, RowStatus.REPLACED):
        return Money(gone=row.gas_cost)
    return row.money.plus(Money(gone=row.gas_cost))


def group_of(key: str) -> str | None:
    """Return the job that a key belongs to: what stands before the first slash."""
    group, slash, _ = key.partition("/")
    return group if slash and group not in _FREE else None


def _is_automatic(key: str) -> bool:
    return key.startswith(f"{AUTO_FUNDING}/")


class Totals:
    """Running sums of one lane: per job, and per minute of the last day."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self._groups: dict[str, int] = {}
        self._minutes: dict[int, Money] = {}
        self._automatic: dict[int, int] = {}

    def clear(self) -> None:
        """Begin anew."""
        self._groups.clear()
        self._minutes.clear()
        self._automatic.clear()

    def add(self, key: str, at: float, money: Money, sign: int = 1) -> None:
        """Count something, or with sign -1 count it no more."""
        minute = int(at // _MINUTE)
        self._minutes[minute] = self._minutes.get(minute, Money()).plus(money, sign)
        if _is_automatic(key):
            self._automatic[minute] = self._automatic.get(minute, 0) + sign * money.transferred
        if (group := group_of(key)) is not None:
            self._groups[group] = self._groups.get(group, 0) + sign * money.gone

    def gone(self, group: str) -> int:
        """Return what is gone for one job."""
        return self._groups.get(group, 0)

    def automatic(self, at: float) -> int:
        """Return what automatic funding has transferred from a unix time on, by whole minutes."""
        return sum(amount for minute, amount in self._automatic.items() if minute >= int(at // _MINUTE))

    def since(self, at: float) -> Money:
        """Sum up from a unix time on, by whole minutes, rather too much than too little."""
        first, total = int(at // _MINUTE), Money()
        for minute in [m for m in self._minutes if m < first - _DAY_MINUTES]:
            if self._minutes[minute] == Money():
                del self._minutes[minute]
        for minute, money in self._minutes.items():
            if minute >= first:
                total = total.plus(money)
        return total


class Budget:
    """The limits of one broker and what counts against them."""

    def __init__(self, limits: SpendLimits | None, time: ChainTime) -> None:
        """Begin without books; each lane adds its own.

        Raises:
            ConfigError: A limit is no amount.
        """
        self.limits = limits or SpendLimits()
        self._time = time
        self._per_call = _limit("per_call", self.limits.per_call)
        self._per_job = _limit("per_job", self.limits.per_job)
        self._per_day = _limit("per_day", self.limits.per_day)
        self._per_wallet = _limit("wallet_per_day", self.limits.wallet_per_day)
        self._bound = _limit("bound_per_day", self.limits.bound_per_day)
        self._totals: dict[Address, Totals] = {}
        self._caps: dict[str, int] = {}
        self._batch_of: dict[str, str] = {}
        self._batch_caps: dict[str, int] = {}
        self._jobs_of: dict[str, set[str]] = {}
        self._held: dict[int, tuple[str, Money, Address | None]] = {}
        self._hold_count = 0
        self._auto_funding = False
        self._auto_per_hour: int | None = None
        self._asking = anyio.Lock()
        self._agreed: set[Address] = set()

    @property
    def is_set(self) -> bool:
        """Whether there is any limit, so that fees have to be counted."""
        fixed = (self._per_call, self._per_job, self._per_day, self._per_wallet, self._bound)
        return bool(self._caps or self._batch_caps or self._auto_funding) or any(limit is not None for limit in fixed)

    def watch(self, wallet: Address, totals: Totals) -> None:
        """Count a wallet's lane from now on."""
        self._totals[wallet] = totals

    def cap_job(self, job: str, cap: int | None, *, batch: str | None = None, batch_cap: int | None = None) -> None:
        """Bound what may be gone for a job, and for the batch it belongs to."""
        if cap is not None:
            self._caps[job] = cap
        if batch is not None and batch_cap is not None:
            self._batch_of[job] = batch
            self._jobs_of.setdefault(batch, set()).add(job)
            self._batch_caps[batch] = batch_cap

    @property
    def auto_funding(self) -> bool:
        """Whether transfers that the package makes by itself are allowed."""
        return self._auto_funding

    def allow_auto_funding(self, allowed: bool, *, per_hour: int | None = None) -> None:
        """Allow or forbid transfers that the package makes by itself, up to so many neuron within any hour."""
        self._auto_funding, self._auto_per_hour = allowed, per_hour

    def auto_funded(self) -> int:
        """Return what automatic funding has transferred, or is about to, within the last hour, over all wallets."""
        held = sum(money.transferred for key, money, _ in self._held.values() if _is_automatic(key))
        return held + sum(totals.automatic(self._time.earliest() - _HOUR) for totals in self._totals.values())

    def gone(self, job: str) -> int:
        """Return what is gone or reserved for a job, over all wallets."""
        held = sum(money.gone for key, money, _ in self._held.values() if group_of(key) == job)
        return held + sum(totals.gone(job) for totals in self._totals.values())

    def today(self) -> Money:
        """Return what was spent or reserved within the last 24 hours, over all wallets."""
        total = Money()
        for _, money, _ in self._held.values():
            total = total.plus(money)
        for totals in self._totals.values():
            total = total.plus(totals.since(self._day_ago()))
        return total

    def today_of(self, wallet: Address) -> Money:
        """Return what was spent or reserved within the last 24 hours for one wallet."""
        total = self._totals[wallet].since(self._day_ago()) if wallet in self._totals else Money()
        for _, money, owner in self._held.values():
            total = total.plus(money) if owner == wallet else total
        return total

    def _day_ago(self) -> float:
        return self._time.earliest() - _DAY_MINUTES * _MINUTE

    @contextlib.contextmanager
    def hold(self, key: str, money: Money, wallet: Address | None = None) -> Iterator[None]:
        """Reserve something while it is being recorded.

        Args:
            key: The effect it belongs to.
            money: What it adds, at most.
            wallet: Who pays.

        Raises:
            LimitError: It would break a limit. Nothing was signed.
        """
        self._check(key, money, wallet)
        self._hold_count += 1
        number = self._hold_count
        self._held[number] = (key, money, wallet)
        try:
            yield
        finally:
            del self._held[number]

    def _check(self, key: str, money: Money, wallet: Address | None) -> None:
        if _is_automatic(key):
            if not self._auto_funding:
                raise LimitError("automatic funding is off", hint="Nothing was signed")
            moved = self.auto_funded() + money.transferred
            _require("AutoFunding.per_hour", self._auto_per_hour, moved, "automatic funding within the last hour")
        if not self.is_set:
            return
        _require("per_call", self._per_call, sum(money), "this alone")
        job = group_of(key)
        if job is not None:
            caps = [cap for cap in (self._caps.get(job), self._per_job) if cap is not None]
            if caps:
                _require("per_job (or max_spend)", min(caps), self.gone(job) + money.gone, f"job {job}")
            if (batch := self._batch_of.get(job)) is not None:
                spent = sum(map(self.gone, self._jobs_of[batch]))
                _require("max_spend of the batch", self._batch_caps[batch], spent + money.gone, f"batch {batch}")
        if self._per_wallet is not None and wallet is not None and money.gone:
            spent = self.today_of(wallet).gone
            _require("wallet_per_day", self._per_wallet, spent + money.gone, f"the last 24 hours of {wallet}")
        if self._per_day is None and self._bound is None:
            return
        total = self.today().plus(money)
        if money.gone:
            _require("per_day", self._per_day, total.gone, "the last 24 hours")
        if money.deposited or money.transferred:
            _require("bound_per_day", self._bound, max(total.deposited, total.transferred), "the last 24 hours")

    async def require_consent(self, call: Call[Any], wallet: Address, known: AbstractSet[Address]) -> None:
        """Ask before the first transfer to a provider, if the user wants to be asked.

        Raises:
            LimitError: The user doesn't consent. Nothing was signed.
        """
        if self.limits.consent is None:
            return
        money, provider = money_of(call.name, call.data, call.value)
        if provider is None or provider in known:
            return
        if not await _agreed(
            self.limits.consent(FirstTransfer(wallet=wallet, provider=provider, amount=money.transferred))
        ):
            raise LimitError(
                f"the first transfer to {provider}, of {format_amount(money.transferred)}, was not consented to",
                hint="SpendLimits(consent=...) decides; nothing was signed",
            )

    async def require_first_consent(self, call: Call[Any], wallet: Address, gas_cost: int) -> None:
        """Ask before a wallet's first transaction, once, if the user wants to be asked.

        Raises:
            LimitError: The user doesn't consent. Nothing was signed.
        """
        if self.limits.first_spending is None:
            return
        async with self._asking:
            if wallet in self._agreed:
                return
            money, _ = money_of(call.name, call.data, call.value)
            first = FirstSpending(wallet=wallet, name=call.name, amount=sum(money) + gas_cost)
            if not await _agreed(self.limits.first_spending(first)):
                raise LimitError(
                    f"the first spending of {wallet}, of {format_amount(first.amount)}, was not consented to",
                    hint="Nothing was signed",
                )
            self._agreed.add(wallet)


async def _agreed(answer: bool | Awaitable[bool]) -> bool:
    return (await answer if inspect.isawaitable(answer) else answer) is True


def _limit(name: str, amount: Amount | None) -> int | None:
    try:
        return None if amount is None else parse_amount(amount)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"SpendLimits.{name}: {error}") from error


def _require(name: str, limit: int | None, total: int, what: str) -> None:
    if limit is not None and total > limit:
        raise LimitError(
            f"{what} would come to {format_amount(total)}, the limit {name} is {format_amount(limit)}",
            hint="Nothing was signed. What is reserved counts; raise the limit if that is right",
        )
