"""Money: the wallet's ledger, its sub-accounts at providers, and what moves between them.

Rules and limits: 0g-serving-contract contracts/ledger/LedgerManager.sol.
"""

import datetime as dt
from collections.abc import AsyncGenerator, Sequence
from typing import Any, Final

from zg_async.errors import (
    AccountNotFoundError,
    ConfigError,
    LedgerNotFoundError,
    LimitError,
    UnfinishedTaskError,
    ZgError,
)
from zg_async.logs import get_logger
from zg_async.managers.account_room import AccountRoom
from zg_async.managers.context import Context
from zg_async.managers.funding import Funder, FundingPlan, or_none
from zg_async.managers.pages import MOST_ACCOUNTS, PAGE, read_pages
from zg_async.managers.refund_watch import RefundsChanged, wait_refunds, watch_refunds
from zg_async.managers.retrieving import OpenTasks, Retrieval, open_pairs, standing
from zg_async.managers.services import LedgerLimits, ServiceType, Together
from zg_async.showing import Records
from zg_async.tracing import observed
from zg_async.units import Amount, format_amount, parse_amount
from zg_async.wire.contracts import Call
from zg_async.wire.hashing import parse_address
from zg_async.wire.records import (
    AccountSummary,
    Address,
    FineTuningAccountDetails,
    InferenceAccount,
    Ledger,
    LedgerDetail,
    Receipt,
)

_log = get_logger("zg_async.ledger")
_MOST_LEDGERS: Final = 200_000
MAX_OPEN_REFUNDS: Final = 5
"""Live refunds a sub-account can hold (FineTuningAccount.sol)."""

_SubAccount = FineTuningAccountDetails | InferenceAccount


def _summary(row: AccountSummary | InferenceAccount) -> AccountSummary:
    """The inference contract lists whole sub-accounts, the fine-tuning contract rows."""
    if isinstance(row, AccountSummary):
        return row
    return AccountSummary(
        user=row.user,
        provider=row.provider,
        account_nonce=row.account_nonce,
        balance=row.balance,
        pending_refund=row.pending_refund,
        acknowledged=row.acknowledged,
        refund_count=len(row.refunds),
    )


@observed("ledger")
class LedgerManager:
    """The ledger of one wallet."""

    def __init__(self, context: Context) -> None:
        """Bind to a wallet."""
        self._ctx = context
        self._services = context.services
        self._contract = context.services.ledger
        self._rooms: dict[ServiceType, Together[AccountRoom]] = {
            "fine-tuning": Together(lambda: self._read_room("fine-tuning")),
            "inference": Together(lambda: self._read_room("inference")),
        }
        self._funder = Funder(context, self.get_account_room)

    # ---- views

    async def get_limits(self) -> LedgerLimits:
        """Read the minima and limits from the contract."""
        return await self._services.limits()

    async def get_ledger(self) -> Ledger:
        """Read the wallet's ledger.

        Returns:
            Its balances in neuron.

        Raises:
            LedgerNotFoundError: There is none yet; `add_ledger` opens it.
        """
        return await self._ctx.chain.call(self._contract.get_ledger(self._ctx.wallet))

    async def get_ledger_with_detail(self) -> LedgerDetail:
        """Read the ledger and all sub-accounts, in one round trip up to 50 of each kind.

        Raises:
            LedgerNotFoundError: There is no ledger yet.
        """
        wallet = self._ctx.wallet
        ledger, inference, fine_tuning = await self._all(
            self._contract.get_ledger(wallet),
            self._services.inference.get_accounts_by_user(wallet, 0, PAGE),
            self._services.fine_tuning.get_accounts_by_user(wallet, 0, PAGE),
        )
        return LedgerDetail(
            ledger=ledger,
            inference=await self._rest(self._services.inference, inference),
            fine_tuning=await self._rest(self._services.fine_tuning, fine_tuning),
        )

    async def _rest(self, contract: Any, first: tuple[Sequence[Any], int]) -> tuple[AccountSummary, ...]:
        rows = await read_pages(
            lambda offset: self._ctx.chain.call(contract.get_accounts_by_user(self._ctx.wallet, offset, PAGE)),
            most=MOST_ACCOUNTS,
            first=first,
        )
        return tuple(_summary(row) for row in rows)

    async def list_ledger(self) -> tuple[Ledger, ...]:
        """Read all ledgers of the network, page by page."""
        return tuple(
            await read_pages(
                lambda offset: self._ctx.chain.call(self._contract.get_all_ledgers(offset, PAGE)), most=_MOST_LEDGERS
            )
        )

    async def get_providers_with_balance(self, service_type: ServiceType) -> Records[AccountSummary]:
        """List the sub-accounts of one service type that hold money.

        Args:
            service_type: `"fine-tuning"` or `"inference"`.
        """
        await self._services.full_name(service_type)
        contract: Any = self._services.fine_tuning if service_type == "fine-tuning" else self._services.inference
        first = await self._ctx.chain.call(contract.get_accounts_by_user(self._ctx.wallet, 0, PAGE))
        return Records(row for row in await self._rest(contract, first) if row.balance > 0)

    async def get_account_room(self, service_type: ServiceType) -> AccountRoom:
        """Read where the wallet has sub-accounts of one service type, and how many more it may open.

        Args:
            service_type: `"fine-tuning"` or `"inference"`.
        """
        return await self._rooms[_kind(service_type)].get()

    async def _read_room(self, service_type: ServiceType) -> AccountRoom:
        await self._services.full_name(service_type)
        contract: Any = self._services.fine_tuning if service_type == "fine-tuning" else self._services.inference
        wallet, limits = self._ctx.wallet, await self.get_limits()
        rows = await self._rest(contract, await self._ctx.chain.call(contract.get_accounts_by_user(wallet, 0, PAGE)))
        providers = frozenset(row.provider for row in rows)
        return AccountRoom(wallet=wallet, service_type=service_type, providers=providers, most=limits.max_providers)

    # ---- between wallet and ledger

    async def add_ledger(self, amount: Amount, *, additional_info: str = "", key: str | None = None) -> Receipt:
        """Open the wallet's ledger.

        Args:
            amount: What to put in: int of neuron or decimal string of 0G.
            additional_info: Text stored with the ledger, at most 4096 bytes.
            key: Names the effect; the same key is never paid twice.

        Returns:
            The mined transaction.

        Raises:
            LimitError: Below the contract's minimum. Nothing was sent.
            LedgerExistsError: There is one already; use `deposit_fund`.
        """
        value, limits = parse_amount(amount), await self.get_limits()
        if value < limits.min_account_balance:
            raise LimitError(
                f"a ledger needs at least {format_amount(limits.min_account_balance)}, not {format_amount(value)}",
                hint="The limit is MIN_ACCOUNT_BALANCE of the LedgerManager",
            )
        return await self._ctx.write(self._contract.add_ledger(additional_info, value=value), key=key)

    async def deposit_fund(self, amount: Amount, *, key: str | None = None) -> Receipt:
        """Put more into the ledger; opens it when there is none.

        Args:
            amount: Int of neuron or decimal string of 0G.
            key: Names the effect; the same key is never paid twice.

        Raises:
            LimitError: Zero, or below the minimum for a ledger that has to be opened.
        """
        value = _positive(amount)
        if not await self._has_ledger(self._ctx.wallet):
            await self._require_minimum(value)
        return await self._ctx.write(self._contract.deposit_fund(value=value), key=key)

    async def deposit_fund_for(self, recipient: str, amount: Amount, *, key: str | None = None) -> Receipt:
        """Put money into somebody's ledger; opens it when there is none.

        Args:
            recipient: The wallet whose ledger gets it.
            amount: Int of neuron or decimal string of 0G.
            key: Names the effect; the same key is never paid twice.

        Raises:
            LimitError: Zero, or below the minimum for a ledger that has to be opened.
        """
        value, address = _positive(amount), parse_address(recipient, what="recipient")
        if not await self._has_ledger(address):
            await self._require_minimum(value)
        return await self._ctx.write(self._contract.deposit_fund_for(address, value=value), key=key)

    async def refund(self, amount: Amount, *, key: str | None = None) -> Receipt:
        """Take money from the ledger back to the wallet.

        A refund that brings the total to zero deletes the ledger with all sub-accounts and deliverables.

        Args:
            amount: Int of neuron or decimal string of 0G.
            key: Names the effect.

        Raises:
            LimitError: More than is available, or a remainder between zero and the contract's minimum.
            LedgerNotFoundError: There is no ledger.
        """
        value = parse_amount(amount)
        ledger, limits = await self.get_ledger(), await self.get_limits()
        rest = ledger.available_balance - value
        if rest < 0:
            raise LimitError(
                f"the ledger has {format_amount(ledger.available_balance)} available, not {format_amount(value)}",
                hint="retrieve_fund brings money back from sub-accounts",
            )
        if 0 < rest < limits.min_account_balance:
            raise LimitError(
                f"a refund of {format_amount(value)} would leave {format_amount(rest)}; nothing or at least "
                f"{format_amount(limits.min_account_balance)} has to stay available",
                hint=f"Take {format_amount(ledger.available_balance)}, or at most "
                f"{format_amount(max(ledger.available_balance - limits.min_account_balance, 0))}",
            )
        return await self._ctx.write(self._contract.refund(value), key=key)

    async def delete_ledger(self, *, key: str | None = None) -> Receipt:
        """Delete an empty ledger with all its sub-accounts.

        Raises:
            LimitError: It still holds money; `refund` of everything deletes it as well.
        """
        ledger = await self.get_ledger()
        if ledger.total_balance:
            raise LimitError(
                f"the ledger still accounts for {format_amount(ledger.total_balance)}",
                hint="Retrieve it from the sub-accounts, then refund all of it: that deletes the ledger",
            )
        return await self._ctx.write(self._contract.delete_ledger(), key=key)

    # ---- between ledger and sub-accounts

    async def transfer_fund(
        self, provider: str, service_type: str, amount: Amount, *, key: str | None = None
    ) -> Receipt:
        """Move money from the ledger to the sub-account at a provider; opens it and acknowledges the signer.

        Args:
            provider: The provider's address.
            service_type: `"fine-tuning"` or `"inference"`.
            amount: Int of neuron or decimal string of 0G. Pending refunds of the sub-account are cancelled first.
            key: Names the effect; the same key is never paid twice.

        Raises:
            LimitError: Below the minimum for a new sub-account, or more than the ledger has available.
            LedgerNotFoundError: There is no ledger.
        """
        value, address = parse_amount(amount), parse_address(provider, what="provider")
        name = await self._services.full_name(service_type)
        await self._ctx.require_verified_provider(
            address, "inference" if service_type == "inference" else "fine-tuning"
        )
        limits = await self.get_limits()
        found = await self._ctx.chain.call_many(self._account_reads(address, service_type))
        ledger, account = or_none(found[0], LedgerNotFoundError), or_none(found[1], AccountNotFoundError)
        if ledger is None:
            raise _no_ledger(self._ctx.wallet)
        if account is None and value < limits.min_transfer_amount:
            raise LimitError(
                f"a new sub-account at {address} needs at least {format_amount(limits.min_transfer_amount)}, "
                f"not {format_amount(value)}",
                hint="The limit is MIN_TRANSFER_AMOUNT of the LedgerManager",
            )
        leaves = value - min(value, account.pending_refund if account else 0)
        if leaves > ledger.available_balance:
            raise LimitError(
                f"{format_amount(leaves)} are needed, the ledger has {format_amount(ledger.available_balance)}",
                hint=f"Deposit {format_amount(leaves - ledger.available_balance)} more",
            )
        return await self._ctx.write(self._contract.transfer_fund(address, name, value), key=key)

    async def retrieve_fund(
        self,
        service_type: str,
        providers: Sequence[str] | None = None,
        *,
        open_tasks: OpenTasks = "leave",
        key: str | None = None,
    ) -> tuple[Receipt, ...]:
        """Ask for the money of sub-accounts back; a second call after the lock time collects it.

        A sub-account whose provider has an open task is left alone: the task would fail for want of money.

        Args:
            service_type: `"fine-tuning"` or `"inference"`.
            providers: Whose; None: all that hold money, in batches as large as the contract takes.
            open_tasks: `"refuse"` raises when there is an open task; `"ignore"` doesn't look for any.
            key: Names the effect; batches append their number.

        Returns:
            One receipt per batch; none when there is nothing to retrieve.

        Raises:
            UnfinishedTaskError: There is an open task, and `open_tasks` is `"refuse"`.
            LimitError: A sub-account has five open refunds and none can be collected yet.
        """
        name = await self._services.full_name(service_type)
        rows = await self.get_providers_with_balance("fine-tuning" if service_type == "fine-tuning" else "inference")
        if providers is not None:
            wanted = {parse_address(p, what="provider") for p in providers}
            rows = Records(r for r in rows if r.provider in wanted)
        if service_type == "fine-tuning" and open_tasks != "ignore":
            left, _ = await self._without_open_tasks(rows, refuse=open_tasks == "refuse")
            rows = Records(left)
        await self._check_refund_slots(rows, service_type)
        size = (await self.get_limits()).max_providers_per_batch
        batches = [[r.provider for r in rows[i : i + size]] for i in range(0, len(rows), size)]
        return tuple(
            [
                await self._ctx.write(self._contract.retrieve_fund(batch, name), key=f"{key}/{i}" if key else None)
                for i, batch in enumerate(batches, 1)
            ]
        )

    async def _without_open_tasks(
        self, rows: Sequence[AccountSummary], *, refuse: bool = False
    ) -> tuple[tuple[AccountSummary, ...], dict[Address, str]]:
        left = await open_pairs(self._ctx, rows)
        for provider, reason in left.items():
            if refuse:
                raise UnfinishedTaskError(
                    f"the money at {provider} is needed: {reason}", provider=provider, hint="Retrieve it afterwards"
                )
            _log.warning("the money at %s stays there: %s", provider, reason)
        return tuple(row for row in rows if row.provider not in left), left

    async def retrieve_all(
        self, *, wait: bool = False, service_type: ServiceType | None = None, providers: Sequence[str] | None = None
    ) -> Retrieval:
        """Ask for all money of all sub-accounts back, and collect what is unlocked.

        Where it stands is on the chain, so that a call after a restart goes on where the last one stopped: what was
        asked back before isn't asked back again.

        Args:
            wait: Sleep until the locks are over, and collect everything.
            service_type: Only sub-accounts of this one.
            providers: Only sub-accounts at these.

        Returns:
            What was sent, what was left alone for open tasks, and what is still locked.
        """
        receipts: list[Receipt] = []
        kinds: tuple[ServiceType, ...] = (service_type,) if service_type else ("fine-tuning", "inference")
        for kind in kinds:
            await self._services.full_name(kind)
        wanted = None if providers is None else {parse_address(p, what="provider") for p in providers}
        while True:
            left: dict[Address, str] = {}
            unlocks: list[dt.datetime] = []
            locked = 0
            as_of: dt.datetime | None = None
            for kind in kinds:
                rows = await self._to_retrieve(kind, wanted)
                if kind == "fine-tuning":
                    rows, left = await self._without_open_tasks(rows)
                if due := (await standing(self._ctx, kind, rows)).due:
                    receipts += await self.retrieve_fund(kind, due)
                    rows = tuple(row for row in await self._to_retrieve(kind, wanted) if row.provider not in left)
                now = await standing(self._ctx, kind, rows)
                locked, as_of = locked + now.locked, now.as_of
                unlocks += [now.next_unlock] if now.next_unlock else []
            next_unlock = min(unlocks, default=None)
            if not wait or next_unlock is None:
                return Retrieval(
                    receipts=tuple(receipts), left=left, locked=locked, next_unlock=next_unlock, as_of=as_of
                )
            block = await self._ctx.chain.block()
            await self._ctx.clock.sleep(max((next_unlock - block.timestamp).total_seconds(), 0.0) + 1.0)

    async def _to_retrieve(self, service_type: ServiceType, wanted: set[Address] | None) -> tuple[AccountSummary, ...]:
        rows = await self.get_providers_with_balance(service_type)
        return tuple(row for row in rows if wanted is None or row.provider in wanted)

    def watch_refunds(self, provider: str, service_type: str = "fine-tuning") -> AsyncGenerator[RefundsChanged, None]:
        """Watch what was asked back from a sub-account: how it stands, each time that changes, until nothing is left.

        Drive it with `contextlib.aclosing`. Leaving it changes nothing.

        Args:
            provider: The provider's address.
            service_type: `"fine-tuning"` or `"inference"`.
        """
        return watch_refunds(self._ctx, parse_address(provider, what="provider"), _kind(service_type))

    async def wait_refunds(self, provider: str, service_type: str = "fine-tuning") -> RefundsChanged:
        """Wait until nothing that was asked back from a sub-account is locked; `anyio.fail_after` sets a deadline.

        Args:
            provider: The provider's address.
            service_type: `"fine-tuning"` or `"inference"`.

        Returns:
            What `retrieve_fund` would bring back now.
        """
        return await wait_refunds(self._ctx, parse_address(provider, what="provider"), _kind(service_type))

    async def _check_refund_slots(self, rows: Sequence[AccountSummary], service_type: str) -> None:
        full = [r for r in rows if r.refund_count >= MAX_OPEN_REFUNDS and r.balance > r.pending_refund]
        if not full:
            return
        contract: Any = self._services.fine_tuning if service_type == "fine-tuning" else self._services.inference
        lock_time = dt.timedelta(seconds=await self._ctx.chain.call(contract.lock_time()))
        now = (await self._ctx.chain.block()).timestamp
        for row in full:
            account: _SubAccount = await self._ctx.chain.call(contract.get_account(self._ctx.wallet, row.provider))
            unlocks = min(r.created_at + lock_time for r in account.refunds)
            if unlocks > now:
                raise LimitError(
                    f"the sub-account at {row.provider} has {len(account.refunds)} open refunds, the most the contract "
                    f"takes; the first unlocks at {unlocks:%Y-%m-%d %H:%M:%S} UTC",
                    hint="Call retrieve_fund again after that",
                )

    # ---- funding

    async def plan_funding(
        self,
        provider: str,
        service_type: str,
        amount: Amount,
        *,
        after: FundingPlan | None = None,
        check: bool = True,
        block: int | str = "latest",
    ) -> FundingPlan:
        """Work out what it takes until a sub-account can pay an amount. Sends nothing.

        The plan keeps back the gas of the wallet's open acknowledgements and of one retrieve.

        Args:
            provider: The provider's address.
            service_type: `"fine-tuning"` or `"inference"`.
            amount: What the sub-account has to be able to pay: int of neuron or decimal string of 0G.
            after: As if this plan, for another sub-account, had been carried out before.
            check: Whether to raise when the wallet can't pay.
            block: On which state of ledger and sub-account: a number, or `"latest"`.

        Returns:
            The plan; without steps when there is enough already.

        Raises:
            InsufficientGasFundsError: The wallet can't pay value, gas and the gas it has to keep back.
            LimitError: It has sub-accounts at as many other providers as the contract takes.
        """
        required, address = parse_amount(amount), parse_address(provider, what="provider")
        await self._services.full_name(service_type)
        return await self._funder.plan(address, _kind(service_type), required, after=after, check=check, block=block)

    async def ensure_funded(
        self, provider: str, service_type: str, amount: Amount, *, key: str | None = None
    ) -> tuple[Receipt, ...]:
        """Make sure a sub-account can pay an amount, with the fewest transactions; a second call sends nothing.

        Opens ledger and sub-account when they are missing, and moves exactly what is missing. Calls for several
        sub-accounts at the same time share one deposit.

        Args:
            provider: The provider's address.
            service_type: `"fine-tuning"` or `"inference"`.
            amount: Int of neuron or decimal string of 0G.
            key: Names the effect. After a crash the same key first looks for what was sent under it.

        Returns:
            The mined transactions under this key, none when there was enough; of a shared deposit only one call has
            the receipt.
        """
        required, address = parse_amount(amount), parse_address(provider, what="provider")
        await self._services.full_name(service_type)
        return await self._funder.ensure(address, _kind(service_type), required, key=key)

    # ---- helpers

    def _account_reads(self, provider: Address, service_type: str) -> list[Call[Any]]:
        """Return what reads the ledger, and the sub-account at a provider."""
        contract: Any = self._services.fine_tuning if service_type == "fine-tuning" else self._services.inference
        return [self._contract.get_ledger(self._ctx.wallet), contract.get_account(self._ctx.wallet, provider)]

    async def _has_ledger(self, wallet: Address) -> bool:
        try:
            await self._ctx.chain.call(self._contract.get_ledger(wallet))
        except LedgerNotFoundError:
            return False
        return True

    async def _require_minimum(self, value: int) -> None:
        limits = await self.get_limits()
        if value < limits.min_account_balance:
            raise LimitError(
                f"the deposit would open a ledger, which needs at least {format_amount(limits.min_account_balance)}, "
                f"not {format_amount(value)}",
                hint="The limit is MIN_ACCOUNT_BALANCE of the LedgerManager",
            )

    async def _all(self, *calls: Call[Any]) -> list[Any]:
        results = await self._ctx.chain.call_many(calls)
        for result in results:
            if isinstance(result, ZgError):
                raise result
        return results


def _kind(service_type: str) -> ServiceType:
    if service_type not in ("fine-tuning", "inference"):
        raise ConfigError(f"there is no service type {service_type[:40]!r}", hint='"fine-tuning" or "inference"')
    return "inference" if service_type == "inference" else "fine-tuning"


def _positive(amount: Amount) -> int:
    value = parse_amount(amount)
    if value == 0:
        raise LimitError("a deposit of zero does nothing", hint="Give a positive amount")
    return value


def _no_ledger(wallet: Address) -> LedgerNotFoundError:
    return LedgerNotFoundError(
        f"{wallet} has no ledger", error_name="LedgerNotExists", arguments=(wallet,), hint="Open one with add_ledger"
    )
