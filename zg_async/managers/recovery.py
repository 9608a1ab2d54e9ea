"""Taking the steps out of a state that `diagnosis` named, as far as they go now."""

import dataclasses
import datetime as dt
from typing import Any, Final

from zg_async.errors import ConfigError
from zg_async.managers.context import Context
from zg_async.managers.diagnosis import Diagnosis, PairState, diagnose
from zg_async.managers.ledger import LedgerManager
from zg_async.managers.open_tasks import read_open_tasks
from zg_async.managers.services import ServiceType
from zg_async.wire.records import AccountSummary, Receipt

_KINDS: Final[tuple[ServiceType, ...]] = ("fine-tuning", "inference")
_BY_FUNDING: Final = frozenset({PairState.NO_LEDGER, PairState.NO_ACCOUNT, PairState.NO_FUNDS})


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Recovery:
    """What was done, and what is left."""

    diagnosis: Diagnosis
    """As it was before; in a dry run its steps are what would be done."""
    receipts: tuple[Receipt, ...] = ()
    wait_until: dt.datetime | None = None
    """When the next steps can be taken; None: there are none."""


async def recover(ctx: Context, provider: str, *, dry_run: bool) -> Recovery:
    """Take the steps, or in a dry run only see that they can be taken."""
    found = await diagnose(ctx, provider)
    if found.state is PairState.HEALTHY:
        return Recovery(diagnosis=found)
    if found.state is PairState.PENALTY_LOCK:
        await _require_idle(ctx)
        return Recovery(diagnosis=found) if dry_run else await _start_anew(ctx, found)
    if found.state not in _BY_FUNDING | {PairState.SIGNER_UNACKNOWLEDGED}:
        steps = "; ".join(step.text for step in found.steps)
        raise ConfigError(f"{found.explanation}: that is not mended by itself", hint=steps or None)
    if dry_run:
        return Recovery(diagnosis=found)
    if found.state in _BY_FUNDING:
        return Recovery(
            diagnosis=found, receipts=await LedgerManager(ctx).ensure_funded(found.provider, "fine-tuning", "1")
        )
    call = ctx.services.fine_tuning.acknowledge_tee_signer(found.provider, True)
    return Recovery(diagnosis=found, receipts=(await ctx.write(call),))


async def _require_idle(ctx: Context) -> None:
    """Refuse to take money from under open tasks."""
    tasks = (await read_open_tasks(ctx)).tasks
    if tasks:
        names = ", ".join(f"{task.task_id} at {task.provider}" for task in tasks)
        raise ConfigError(
            f"the way out takes the money from every sub-account, and tasks are open: {names}",
            hint="Finish or cancel them first; other providers than this one still work",
        )


async def _start_anew(ctx: Context, found: Diagnosis) -> Recovery:
    ledger, receipts = LedgerManager(ctx), list[Receipt]()
    unlocks: list[dt.datetime] = []
    for kind in _KINDS:
        rows = await ledger.get_providers_with_balance(kind)
        if rows and await _moves(ctx, kind, rows):
            receipts += await ledger.retrieve_fund(kind)
            rows = await ledger.get_providers_with_balance(kind)
        unlocks += [await _unlocks(ctx, kind, row) for row in rows]
    if unlocks:
        return Recovery(diagnosis=found, receipts=tuple(receipts), wait_until=max(unlocks))
    held = (await ledger.get_ledger()).available_balance
    receipts.append(await ledger.refund(held) if held else await ledger.delete_ledger())
    receipts += await ledger.ensure_funded(found.provider, "fine-tuning", "1")
    return Recovery(diagnosis=found, receipts=tuple(receipts))


async def _moves(ctx: Context, kind: ServiceType, rows: tuple[AccountSummary, ...]) -> bool:
    """Say whether a retrieve would ask for or collect anything."""
    if any(row.balance > row.pending_refund for row in rows):
        return True
    now = (await ctx.chain.block()).timestamp
    return any([await _first_unlock(ctx, kind, row) <= now for row in rows])


async def _first_unlock(ctx: Context, kind: ServiceType, row: AccountSummary) -> dt.datetime:
    return min(await _refunds(ctx, kind, row))


async def _unlocks(ctx: Context, kind: ServiceType, row: AccountSummary) -> dt.datetime:
    return max(await _refunds(ctx, kind, row))


async def _refunds(ctx: Context, kind: ServiceType, row: AccountSummary) -> list[dt.datetime]:
    """Return when each of a sub-account's refunds unlocks."""
    contract: Any = ctx.services.fine_tuning if kind == "fine-tuning" else ctx.services.inference
    lock = dt.timedelta(seconds=await ctx.chain.call(contract.lock_time()))
    account = await ctx.chain.call(contract.get_account(ctx.wallet, row.provider))
    return [refund.created_at + lock for refund in account.refunds] or [(await ctx.chain.block()).timestamp + lock]
