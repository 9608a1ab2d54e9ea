"""What a wallet has paid: gas and storage by the receipts of its outbox, fees and penalties by the chain's events.

Deposits, transfers and refunds aren't costs: that money still is the wallet's. So the total is exactly what wallet and
ledger together have lost, as long as nobody else sends with this key or to this wallet.
"""

import dataclasses
from collections.abc import Iterable, Mapping

from zg_async.managers.context import Context
from zg_async.transport.budget import group_of
from zg_async.transport.rows import Row, RowStatus
from zg_async.wire.contract_events import TOPIC, FeesSettled, FundSpent
from zg_async.wire.contracts import decode_log
from zg_async.wire.records import Address, TaskId


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SettledTask:
    """A task that was paid for; its fee in neuron."""

    provider: Address
    task_id: TaskId
    fee: int
    is_penalty: bool
    """It wasn't acknowledged in time: the fee is the penalty, and no key will come."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What was paid, in neuron."""

    fee: int = 0
    """Of tasks that were acknowledged."""
    penalty: int = 0
    """Of tasks that weren't."""
    gas: int = 0
    """Of all transactions, reverted ones included."""
    storage: int = 0
    """To the storage contract."""
    inference: int = 0
    """Settled fees of inference calls. Jobs make none."""

    @property
    def total(self) -> int:
        """All of it."""
        return self.fee + self.penalty + self.gas + self.storage + self.inference


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CostReport:
    """What a wallet paid in a range of blocks."""

    wallet: Address
    first_block: int
    last_block: int
    cost: Cost
    tasks: tuple[SettledTask, ...]
    """In the order in which they were settled."""
    jobs: Mapping[str, Cost]
    """Job id to the gas and storage of its transactions; `JobHandle.cost_report` adds its task's fee."""


async def cost_report(context: Context, *, first_block: int | None = None, last_block: int | None = None) -> CostReport:
    """Add up what a wallet paid; see `Broker.cost_report`."""
    wallet, chain = context.wallet, context.chain
    rows = [(row, row.inclusion.block_number) for row in await chain.mined_rows(wallet) if row.inclusion is not None]
    last = (await chain.block()).number if last_block is None else last_block
    first = min((number for _, number in rows), default=last) if first_block is None else first_block
    ours = [row for row, number in rows if first <= number <= last]
    settled, spent = await _events(context, first, last)
    tasks = tuple(
        SettledTask(provider=e.provider, task_id=TaskId(e.id), fee=e.fee, is_penalty=not e.acknowledged)
        for e in settled
    )
    sent = _sent(ours)
    cost = dataclasses.replace(
        fees_of(tasks),
        gas=sent.gas,
        storage=sent.storage,
        inference=sum(e.amount for e in spent if e.service == context.services.inference.address),
    )
    jobs = {job for row in ours if (job := group_of(row.key)) is not None}
    by_job = {job: _sent(row for row in ours if group_of(row.key) == job) for job in sorted(jobs)}
    return CostReport(wallet=wallet, first_block=first, last_block=last, cost=cost, tasks=tasks, jobs=by_job)


def fees_of(tasks: Iterable[SettledTask]) -> Cost:
    """Add up the fees and penalties of tasks."""
    found = tuple(tasks)
    return Cost(
        fee=sum(task.fee for task in found if not task.is_penalty),
        penalty=sum(task.fee for task in found if task.is_penalty),
    )


def _sent(rows: Iterable[Row]) -> Cost:
    found = tuple(rows)
    return Cost(
        gas=sum(row.gas_cost for row in found),
        storage=sum(row.money.gone for row in found if row.status is RowStatus.MINED),
    )


async def _events(context: Context, first: int, last: int) -> tuple[list[FeesSettled], list[FundSpent]]:
    services = context.services
    user = bytes(12) + bytes.fromhex(context.wallet[2:])
    topics = [[TOPIC["FeesSettled"], TOPIC["FundSpent"]], [user]]
    logs = await context.chain.get_logs([services.fine_tuning.address, services.ledger.address], topics, first, last)
    events = [decode_log(log) for log in logs]
    settled = [e for e in events if isinstance(e, FeesSettled) and e.log.address == services.fine_tuning.address]
    return settled, [e for e in events if isinstance(e, FundSpent) and e.log.address == services.ledger.address]
