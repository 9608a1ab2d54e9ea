"""`zg cost`: what the wallet has paid."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from zg_async.cli.opening import HERE, Where, open_broker
from zg_async.cli.output import UNIT, coins, emit, table
from zg_async.text import printable

if TYPE_CHECKING:
    from zg_async.managers.costs import Cost, CostReport

_PARTS = ("fee", "penalty", "gas", "storage", "inference")


async def cost(
    *,
    first_block: Annotated[int | None, Parameter(name="--from-block")] = None,
    last_block: Annotated[int | None, Parameter(name="--to-block")] = None,
    where: Where = HERE,
) -> None:
    """Add up what the wallet has paid: fees, penalties, gas, storage, inference; by task and by job, from the chain.

    Args:
        first_block: Where to begin. Default: with the first transaction sent from here.
        last_block: Where to end, included. Default: the newest block.
        where: Network, wallet and output.
    """
    async with open_broker(where) as broker:
        report = await broker.cost_report(first_block=first_block, last_block=last_block)
    fields = {
        "wallet": report.wallet,
        "first_block": report.first_block,
        "last_block": report.last_block,
        "cost": _fields(report.cost),
        "tasks": [
            {"provider": t.provider, "task_id": t.task_id, "fee": str(t.fee), "is_penalty": t.is_penalty}
            for t in report.tasks
        ],
        "jobs": {job: _fields(cost) for job, cost in report.jobs.items()},
    }
    emit(where, "cost_report", fields, lambda: _tables(report))


def _fields(cost: "Cost") -> dict[str, str]:
    return {**{name: str(getattr(cost, name)) for name in _PARTS}, "total": str(cost.total)}


def _tables(report: "CostReport") -> Iterable[str]:
    rows = [(name.capitalize(), coins(getattr(report.cost, name))) for name in _PARTS]
    blocks = f"{report.wallet}, blocks {report.first_block} to {report.last_block}"
    yield table([*rows, ("Total", coins(report.cost.total))], ("Paid", f"Value ({UNIT})"), title=blocks)
    if report.tasks:
        paid = [(t.task_id, t.provider, coins(t.fee), "penalty" if t.is_penalty else "fee") for t in report.tasks]
        yield table(paid, ("Task", "Provider", f"Paid ({UNIT})", "As"), title="Settled tasks")
    if report.jobs:
        sent = [(printable(job), coins(cost.gas), coins(cost.storage)) for job, cost in report.jobs.items()]
        yield table(sent, ("Job", f"Gas ({UNIT})", f"Storage ({UNIT})"), title="Transactions of jobs")
