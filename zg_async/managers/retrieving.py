"""Getting money back from sub-accounts without hurting tasks: what may be asked back now, and what still waits."""

import dataclasses
import datetime as dt
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import anyio

from zg_async.errors import ServiceNotFoundError, ZgError
from zg_async.managers.context import Context
from zg_async.managers.provider_client import ProviderClient
from zg_async.managers.services import ServiceType
from zg_async.wire.records import AccountSummary, Address, FineTuningAccountDetails, InferenceAccount, Receipt

OpenTasks = Literal["leave", "refuse", "ignore"]
"""What to do with sub-accounts whose provider has an open task: leave them alone, raise, or don't look."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Retrieval:
    """What `retrieve_all` did."""

    receipts: tuple[Receipt, ...]
    left: Mapping[Address, str]
    """Fine-tuning providers whose sub-accounts were left alone, and why."""
    locked: int
    """Neuron asked back that are still locked."""
    next_unlock: dt.datetime | None
    """When the first of them unlocks, by block time."""
    as_of: dt.datetime | None = None
    """Block time of the answer."""


async def open_pairs(context: Context, rows: Sequence[AccountSummary]) -> dict[Address, str]:
    """Say which fine-tuning sub-accounts have an open task, hence must keep their money.

    The chain is asked for deliveries that aren't settled, and each provider for tasks that aren't finished. A provider
    that is registered but doesn't answer may hold one.

    Args:
        context: Whose.
        rows: The sub-accounts.

    Returns:
        Provider to reason.
    """
    reasons: dict[Address, str] = {}
    contract = context.services.fine_tuning
    accounts = await context.chain.call_many([contract.get_account(context.wallet, row.provider) for row in rows])
    for row, account in zip(rows, accounts, strict=True):
        if isinstance(account, ZgError):
            raise account
        if any(not delivery.settled for delivery in account.deliverables):
            reasons[row.provider] = "a delivery isn't settled"

    async def ask(provider: Address) -> None:
        try:
            service = await context.services.fine_tuning_service(provider)
            client = ProviderClient(context.http, service.url, provider, context.clock)
            tasks = await client.list_tasks(context.wallet)
        except ServiceNotFoundError:
            return
        except ZgError as error:
            reasons[provider] = f"it can't be asked for open tasks: {error.message}"
            return
        if (task := next((t for t in tasks if not t.is_terminal), None)) is not None:
            reasons[provider] = f"task {task.id} is open"

    async with anyio.create_task_group() as group:
        for row in rows:
            if row.provider not in reasons:
                group.start_soon(ask, row.provider)
    return reasons


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """How far a service type's sub-accounts are on their way back."""

    due: tuple[Address, ...]
    """Something can be asked back or collected."""
    locked: int
    next_unlock: dt.datetime | None
    as_of: dt.datetime


async def standing(context: Context, service_type: ServiceType, rows: Sequence[AccountSummary]) -> Standing:
    """Look which sub-accounts have something to ask back or to collect, and when the next refund unlocks."""
    contract: Any = context.services.fine_tuning if service_type == "fine-tuning" else context.services.inference
    lock_time, *accounts = await context.chain.call_many(
        [contract.lock_time(), *(contract.get_account(context.wallet, row.provider) for row in rows)]
    )
    for answer in (lock_time, *accounts):
        if isinstance(answer, ZgError):
            raise answer
    now, lock = (await context.chain.block()).timestamp, dt.timedelta(seconds=lock_time)
    due: list[Address] = []
    waiting: list[tuple[dt.datetime, int]] = []
    for row, account in zip(rows, accounts, strict=True):
        unlocks = unlock_times(account, lock)
        if account.balance > account.pending_refund or any(at <= now for at, _ in unlocks):
            due.append(row.provider)
        waiting += [(at, amount) for at, amount in unlocks if at > now]
    return Standing(
        due=tuple(due),
        locked=sum(amount for _, amount in waiting),
        next_unlock=min((at for at, _ in waiting), default=None),
        as_of=now,
    )


def unlock_times(
    account: FineTuningAccountDetails | InferenceAccount, lock: dt.timedelta
) -> list[tuple[dt.datetime, int]]:
    """Return when each live refund unlocks, and its amount."""
    return [(refund.created_at + lock, refund.amount) for refund in account.refunds if refund.amount]
