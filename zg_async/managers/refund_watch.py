"""Watching the refunds of a sub-account: locked, collectable, gone."""

import dataclasses
import datetime as dt
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, Final, Literal

from zg_async.errors import AccountNotFoundError, ZgError
from zg_async.managers.context import Context
from zg_async.managers.retrieving import unlock_times
from zg_async.managers.services import ServiceType
from zg_async.wire.records import Address

LOOK_SECONDS: Final = 15.0
"""Between two looks at most; a refund that unlocks earlier is looked at then."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RefundsChanged:
    """A sub-account's refunds stand elsewhere than before."""

    id: str
    """Stable: the same state of the same block time has the same id in every watch."""
    at: dt.datetime
    """Block time."""
    provider: Address
    service_type: str
    locked: int
    """Neuron asked back that can't be collected yet."""
    collectable: int
    """Neuron that the next `retrieve_fund` brings back to the ledger."""
    next_unlock: dt.datetime | None
    """When the first locked one can be collected."""
    source: Literal["chain"] = "chain"
    kind: Literal["refunds_changed"] = "refunds_changed"

    @property
    def is_over(self) -> bool:
        """Whether there is nothing left to wait for or to collect."""
        return not self.locked and not self.collectable


async def watch_refunds(
    context: Context, provider: Address, service_type: ServiceType
) -> AsyncGenerator[RefundsChanged, None]:
    """Yield how a sub-account's refunds stand, now and each time that changes, until none is left."""
    last: tuple[int, int, dt.datetime | None] | None = None
    while True:
        now = await read_refunds(context, provider, service_type)
        stands = (now.locked, now.collectable, now.next_unlock)
        if stands != last:
            last = stands
            yield now
        if now.is_over:
            return
        left = LOOK_SECONDS if now.next_unlock is None else (now.next_unlock - now.at).total_seconds()
        await context.clock.sleep(min(max(left, 0.0) + 0.5, LOOK_SECONDS))


async def wait_refunds(context: Context, provider: Address, service_type: ServiceType) -> RefundsChanged:
    """Wait until none of a sub-account's refunds is locked any more."""
    async with aclosing(watch_refunds(context, provider, service_type)) as changes:
        async for change in changes:
            if not change.locked:
                return change
    raise AccountNotFoundError(f"no sub-account at {provider}", error_name="AccountNotExists")


async def read_refunds(context: Context, provider: Address, service_type: ServiceType) -> RefundsChanged:
    """Read how a sub-account's refunds stand now; without a sub-account there are none."""
    contract: Any = context.services.fine_tuning if service_type == "fine-tuning" else context.services.inference
    block = await context.chain.block()
    lock_time, account = await context.chain.call_many(
        [contract.lock_time(), contract.get_account(context.wallet, provider)], block=block.number
    )
    if isinstance(lock_time, ZgError):
        raise lock_time
    if isinstance(account, ZgError) and not isinstance(account, AccountNotFoundError):
        raise account
    unlocks = [] if isinstance(account, ZgError) else unlock_times(account, dt.timedelta(seconds=lock_time))
    locked = [(at, amount) for at, amount in unlocks if at > block.timestamp]
    total, waiting = sum(amount for _, amount in unlocks), sum(amount for _, amount in locked)
    return RefundsChanged(
        id=f"f{block.timestamp.timestamp():.0f}.{service_type}.{waiting}.{total - waiting}.{provider}",
        at=block.timestamp,
        provider=provider,
        service_type=service_type,
        locked=waiting,
        collectable=total - waiting,
        next_unlock=min((at for at, _ in locked), default=None),
    )
