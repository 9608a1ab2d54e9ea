"""Funding: what it takes until sub-accounts can pay, planned and carried out for all of a wallet who wait for it.

A plan is made on a view of the chain that shows everything this wallet has signed, so nothing is paid twice, whoever
asks and however often. What many miss at the same time is put into the ledger with one transaction.
"""

import dataclasses
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from functools import partial
from typing import Any, Final

import anyio

from zg_async.correlation import correlated
from zg_async.errors import (
    AccountNotFoundError,
    ContractRevertedError,
    FeeCapError,
    InsufficientGasFundsError,
    LedgerNotFoundError,
    LimitError,
    RefusedToSignError,
    ZgError,
)
from zg_async.managers.account_room import AccountRoom
from zg_async.managers.context import Context
from zg_async.managers.funding_line import Wish
from zg_async.managers.services import LedgerLimits, ServiceType
from zg_async.transport.budget import group_of
from zg_async.units import format_amount
from zg_async.wire.contracts import Call
from zg_async.wire.records import Address, FineTuningAccountDetails, InferenceAccount, Ledger, Receipt

GAS_ACKNOWLEDGE: Final = 80_000
GAS_RETRIEVE: Final = 300_000
GAS_DEPOSIT: Final = 220_000
GAS_TRANSFER: Final = 600_000
"""Gas set aside per call: what the real contracts were measured to use, plus a fifth and more."""

_PAGE: Final = 50
_LOOKS: Final = 5
"""How often a plan is made anew because somebody else took what was put into the ledger."""
_SubAccount = FineTuningAccountDetails | InferenceAccount
_REFUSALS: Final = (LimitError, FeeCapError, InsufficientGasFundsError, RefusedToSignError)
"""What a transaction is refused with before it is signed."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class FundingStep:
    """One transaction of a funding plan."""

    name: str
    call: Call[Any]
    amount: int
    """Neuron that move."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class FundingPlan:
    """What it takes until a sub-account can pay an amount."""

    provider: Address
    service_type: str
    required: int
    spendable: int
    """What the sub-account can pay now."""
    steps: tuple[FundingStep, ...]
    gas_cost: int
    """The steps' gas at today's price, at most."""
    gas_reserve: int
    """Gas kept back for the wallet's open acknowledgements and one retrieve."""
    wallet_balance: int
    left: int | None = None
    """What the ledger has available afterwards; None: there is no ledger."""
    gas_price: int = 0
    """Neuron per gas, today."""
    account_exists: bool = True
    signer_acknowledged: bool = True
    """Whether this wallet has acknowledged the provider's signer, or a step does so."""

    @property
    def value(self) -> int:
        """Neuron that leave the wallet for the ledger."""
        return sum(s.call.value for s in self.steps)


@dataclasses.dataclass(frozen=True, slots=True)
class _View:
    """The chain as plans are made on it."""

    ledger: Ledger | None
    accounts: Sequence[_SubAccount | None]
    """In the order asked for."""
    open_accounts: int
    """Fine-tuning sub-accounts, each of which may have a delivery to acknowledge."""
    price: int
    balance: int


@dataclasses.dataclass(slots=True, kw_only=True)
class _Before:
    """What earlier plans of a round take: nothing yet."""

    available: int | None
    """Left in the ledger; None: there is none."""
    spent: int = 0
    """Neuron of the wallet's: values and gas."""
    opened: int = 0
    """Fine-tuning sub-accounts opened."""
    deposits: bool = False
    """Whether there is a deposit: what more is missing goes along."""


class Funder:
    """Plans and carries out the funding of one wallet's sub-accounts."""

    def __init__(self, context: Context, room: Callable[[ServiceType], Awaitable[AccountRoom]]) -> None:
        """Bind to a wallet.

        Args:
            context: The wallet's.
            room: Reads how many more sub-accounts the wallet may open.
        """
        self._ctx = context
        self._services = context.services
        self._contract = context.services.ledger
        self._room = room

    # ---- planning

    async def plan(
        self,
        provider: Address,
        service_type: ServiceType,
        required: int,
        *,
        after: FundingPlan | None,
        check: bool,
        block: int | str,
    ) -> FundingPlan:
        """Make one plan; see `LedgerManager.plan_funding`."""
        view = await self._view([(provider, service_type)], block)
        before = _Before(available=view.ledger.available_balance if view.ledger is not None else None)
        if after is not None:
            before.available, before.spent = after.left, after.value + after.gas_cost
        room = await self._room(service_type) if check and view.accounts[0] is None else None
        return await self._plan_one(view, view.accounts[0], (provider, service_type, required), before, room, check)

    async def _view(self, pairs: Sequence[tuple[Address, ServiceType]], block: int | str) -> _View:
        wallet = self._ctx.wallet
        reads: list[Call[Any]] = [
            self._contract.get_ledger(wallet),
            self._services.fine_tuning.get_accounts_by_user(wallet, 0, _PAGE),
        ]
        for provider, service_type in pairs:
            contract: Any = self._services.fine_tuning if service_type == "fine-tuning" else self._services.inference
            reads.append(contract.get_account(wallet, provider))
        found, price, balance = await self._ctx.chain.call_many_for(reads, wallet, block=block)
        if isinstance(found[1], ZgError):
            raise found[1]
        open_accounts, _ = found[1]
        return _View(
            ledger=or_none(found[0], LedgerNotFoundError),
            accounts=[or_none(one, AccountNotFoundError) for one in found[2:]],
            open_accounts=len(open_accounts),
            price=price,
            balance=balance,
        )

    async def _plan_one(
        self,
        view: _View,
        account: _SubAccount | None,
        wanted: tuple[Address, ServiceType, int],
        before: _Before,
        room: AccountRoom | None,
        check: bool,
    ) -> FundingPlan:
        """Make a plan to follow those that `before` sums up."""
        (provider, service_type, required), wallet = wanted, self._ctx.wallet
        limits, available = await self._services.limits(), before.available
        missing = max(required - (account.spendable if account else 0), 0)
        if account is None:
            if room is not None:
                room.require(provider)
            missing = max(missing, limits.min_transfer_amount)
        steps: list[FundingStep] = []
        if missing:
            leaves = missing - min(missing, account.pending_refund if account else 0)
            deposit = self._deposit_step(leaves, available, limits)
            steps = [deposit] if deposit else []
            available = (available or 0) + (deposit.amount if deposit else 0) - leaves
            transfer = self._contract.transfer_fund(provider, await self._services.full_name(service_type), missing)
            steps.append(FundingStep(name="transfer_fund", call=transfer, amount=missing))
        gas = sum(
            GAS_TRANSFER if step.name == "transfer_fund" else 0 if before.deposits else GAS_DEPOSIT for step in steps
        )
        plan = FundingPlan(
            provider=provider,
            service_type=service_type,
            required=required,
            spendable=account.spendable if account else 0,
            steps=tuple(steps),
            gas_cost=view.price * gas,
            gas_reserve=view.price * (GAS_ACKNOWLEDGE * (view.open_accounts + before.opened + 1) + GAS_RETRIEVE),
            wallet_balance=view.balance - before.spent,
            left=available,
            gas_price=view.price,
            account_exists=account is not None,
            signer_acknowledged=bool(steps) or (account is not None and account.acknowledged),
        )
        needed = plan.value + plan.gas_cost + plan.gas_reserve
        if check and steps and plan.wallet_balance < needed:
            raise InsufficientGasFundsError(
                f"{wallet} holds {format_amount(plan.wallet_balance)}; this needs {format_amount(plan.value)} to "
                f"deposit, about {format_amount(plan.gas_cost)} gas, and {format_amount(plan.gas_reserve)} kept for "
                "acknowledging deliveries and retrieving funds",
                hint=f"Send at least {format_amount(needed - plan.wallet_balance)} to {wallet}",
            )
        return plan

    def _deposit_step(self, leaves: int, available: int | None, limits: LedgerLimits) -> FundingStep | None:
        if available is None:
            return self._deposit(max(leaves, limits.min_account_balance), opens=True)
        value = leaves - available
        return self._deposit(value, opens=False) if value > 0 else None

    def _deposit(self, value: int, *, opens: bool) -> FundingStep:
        if opens:
            return FundingStep(name="add_ledger", call=self._contract.add_ledger("", value=value), amount=value)
        return FundingStep(name="deposit_fund", call=self._contract.deposit_fund(value=value), amount=value)

    # ---- carrying out

    async def ensure(
        self, provider: Address, service_type: ServiceType, required: int, *, key: str | None
    ) -> tuple[Receipt, ...]:
        """Have a sub-account funded; see `LedgerManager.ensure_funded`."""

        async def verify() -> None:
            await self._ctx.require_verified_provider(provider, service_type)

        wish = Wish(provider=provider, service_type=service_type, amount=required, key=key, verify=verify)
        return await self._ctx.funding.served(wish, self._serve)

    async def _serve(self, wishes: Sequence[Wish]) -> None:
        """Decide wishes for different sub-accounts, with one deposit for all of them."""
        for wish in wishes:
            await _decided(wish, self._recall(wish))
        for _ in range(_LOOKS):
            wishes = [wish for wish in wishes if not (wish.is_over or wish.given_up)]
            if not wishes:
                return
            try:
                chain, wallet = self._ctx.chain, self._ctx.wallet
                removals = await chain.removals(wallet)
                view, plans = await self._plans(wishes)
                if plans and await chain.wait_unmoved(wallet, self._contract.address, since=removals):
                    continue  # a reorganisation: the view may lack what is on its way back
            except ZgError as error:
                _end_all(wishes, error)
                return
            if not await _verified([wish for wish in wishes if wish in plans]):
                continue  # without those that nothing may be paid to
            if value := sum(plan.value for plan in plans.values()):
                if not await self._put(self._deposit(value, opens=view.ledger is None), plans):
                    return
                continue
            await _at_once([partial(self._transfer, wish, plan.steps[-1]) for wish, plan in plans.items()])
            return
        _end_all(
            [wish for wish in wishes if not wish.is_over],
            LimitError("what is put into the ledger is taken by another program each time", hint="End the other one"),
        )

    async def _recall(self, wish: Wish) -> None:
        while (key := wish.next_key) and (known := await self._ctx.chain.recall(key, wallet=self._ctx.wallet)):
            wish.receipts.append(known)

    async def _plans(self, wishes: Sequence[Wish]) -> tuple[_View, dict[Wish, FundingPlan]]:
        """Plan for all on one view of the chain; who needs nothing, or can't be paid for, is decided."""
        view = await self._view([(wish.provider, wish.service_type) for wish in wishes], await self._seen())
        before = _Before(available=view.ledger.available_balance if view.ledger is not None else None)
        rooms: dict[ServiceType, AccountRoom] = {}
        plans: dict[Wish, FundingPlan] = {}
        for wish, account in zip(wishes, view.accounts, strict=True):
            kind = wish.service_type
            if account is None and kind not in rooms:
                rooms[kind] = await self._room(kind)
            try:
                wanted = (wish.provider, kind, wish.amount)
                plan = await self._plan_one(view, account, wanted, before, rooms.get(kind), check=True)
            except ZgError as error:
                wish.end(error)
                continue
            if not plan.steps:
                wish.end()
                continue
            plans[wish] = plan
            before.available, before.spent = plan.left, before.spent + plan.value + plan.gas_cost
            before.deposits |= plan.value > 0
            if account is None:
                rooms[kind] = rooms[kind].with_one_at(wish.provider)
                before.opened += kind == "fine-tuning"
        return view, plans

    async def _seen(self) -> int | str:
        """Return a block that shows all that this wallet has signed, whichever program signed it."""
        chain = self._ctx.chain
        if above := await chain.wait_sent(self._ctx.wallet, self._contract.address):
            return (await chain.block_from(above)).number
        return "latest"

    async def _put(self, step: FundingStep, plans: dict[Wish, FundingPlan]) -> bool:
        """Put into the ledger what all plans miss; if that is refused, each plan's own part. False: all is decided."""
        payer = next(wish for wish, plan in plans.items() if plan.value)
        try:
            payer.receipts.append(await self._write(step, payer))
        except ZgError as error:
            was_refused = isinstance(error, _REFUSALS) or (
                isinstance(error, ContractRevertedError) and error.tx_hash is None
            )
            if was_refused and len(plans) > 1:
                for wish in plans:
                    await self._serve([wish])
            else:
                _end_all(list(plans), error)
            return False
        return True

    async def _transfer(self, wish: Wish, step: FundingStep) -> None:
        if not wish.given_up:
            await _decided(wish, self._paid(wish, step), ends=True)

    async def _paid(self, wish: Wish, step: FundingStep) -> None:
        wish.receipts.append(await self._write(step, wish))

    async def _write(self, step: FundingStep, wish: Wish) -> Receipt:
        with correlated(job_id=group_of(wish.key or ""), provider=wish.provider):
            return await self._ctx.write(step.call, key=wish.next_key)


async def _decided(wish: Wish, work: Awaitable[None], *, ends: bool = False) -> None:
    """Do something for a wish, which ends if that fails, or if it is the last thing to do."""
    try:
        await work
    except ZgError as error:
        wish.end(error)
    else:
        if ends:
            wish.end()


async def _verified(wishes: Sequence[Wish]) -> bool:
    """Make sure that all may be paid; those that mustn't end."""

    async def look(wish: Wish) -> None:
        await _decided(wish, wish.verify())
        wish.is_verified = not wish.is_over

    await _at_once([partial(look, wish) for wish in wishes if not wish.is_verified])
    return all(wish.is_verified for wish in wishes)


async def _at_once(works: Sequence[Callable[[], Coroutine[Any, Any, None]]]) -> None:
    if len(works) == 1:
        await works[0]()
        return
    async with anyio.create_task_group() as group:
        for work in works:
            group.start_soon(work)


def _end_all(wishes: Sequence[Wish], error: ZgError) -> None:
    for wish in wishes:
        wish.end(error.again())


def or_none(result: Any, absent: type[ZgError]) -> Any:
    """Return what a call found, None where it says that there is none.

    Raises:
        ZgError: It failed otherwise.
    """
    if isinstance(result, absent):
        return None
    if isinstance(result, ZgError):
        raise result
    return result
