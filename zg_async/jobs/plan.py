"""What a job would do and cost, worked out without sending anything."""

import dataclasses
from contextlib import aclosing
from typing import Any

from zg_async.errors import InsufficientGasFundsError, LimitError, ZgError
from zg_async.jobs.events import CostEstimated
from zg_async.jobs.preparing import INFERENCE_BUDGET, choose_provider, estimate_cost, needed
from zg_async.jobs.state import apply
from zg_async.jobs.work import Work, known
from zg_async.managers.funding import GAS_ACKNOWLEDGE, GAS_DEPOSIT, GAS_RETRIEVE, GAS_TRANSFER, FundingPlan
from zg_async.units import format_amount
from zg_async.wire.records import Address


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PlannedTransaction:
    """One transaction a job would send."""

    name: str
    """`add_ledger`, `deposit_fund`, `transfer_fund`, `acknowledge_provider` or `acknowledge_deliverable`."""
    provider: Address
    service_type: str
    amount: int
    """Neuron that move: from the wallet to the ledger, or from the ledger to the sub-account."""
    value: int
    """Neuron that leave the wallet with it."""
    gas_cost: int
    """Neuron of gas at today's price, at most."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PlannedUpload:
    """One file a job would send to its provider."""

    provider: Address
    path: str
    size: int
    """Bytes."""
    keccak256: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class JobPlan:
    """All a job would do, and what it would cost. Amounts in neuron."""

    wallet: Address
    provider: Address
    inference_provider: Address | None
    model: str
    transactions: tuple[PlannedTransaction, ...]
    uploads: tuple[PlannedUpload, ...]
    estimate: CostEstimated
    """The task's fee, low, likely and high, and how it was estimated."""
    budget: int
    """What the fine-tuning sub-account has to hold."""
    gas_reserve: int
    """Gas the wallet keeps back for acknowledgements and one retrieve; not spent by the job."""
    problems: tuple[str, ...]
    """What stands in its way now; empty: it can start."""

    @property
    def deposit(self) -> int:
        """Neuron that would leave the wallet for the ledger; what isn't used comes back after the lock time."""
        return sum(t.value for t in self.transactions)

    @property
    def gas_cost(self) -> int:
        """Neuron of gas, at most at today's price."""
        return sum(t.gas_cost for t in self.transactions)

    @property
    def cost_high(self) -> int:
        """Neuron that would be gone in the end, at most: fee and gas."""
        return self.estimate.fee_high + self.gas_cost

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON; amounts are decimal strings of neuron."""
        cost = self.estimate
        return {
            "wallet": self.wallet,
            "provider": self.provider,
            "inference_provider": self.inference_provider,
            "model": self.model,
            "transactions": [
                {
                    "name": t.name,
                    "provider": t.provider,
                    "service_type": t.service_type,
                    "amount": str(t.amount),
                    "value": str(t.value),
                    "gas_cost": str(t.gas_cost),
                }
                for t in self.transactions
            ],
            "uploads": [dataclasses.asdict(upload) for upload in self.uploads],
            "fee": {
                "low": str(cost.fee_low),
                "likely": str(cost.fee_likely),
                "high": str(cost.fee_high),
                "method": cost.method,
            },
            "budget": str(self.budget),
            "deposit": str(self.deposit),
            "gas_cost": str(self.gas_cost),
            "gas_reserve": str(self.gas_reserve),
            "cost_high": str(self.cost_high),
            "problems": list(self.problems),
        }


async def make_plan(work: Work) -> JobPlan:
    """Plan a job by the code of its own first stages, stopping before each payment.

    Args:
        work: The job as it would be submitted.

    Returns:
        The plan.
    """
    async with aclosing(choose_provider(work)) as facts:
        async for fact in facts:
            work.state = apply(work.state, fact)
    cost = await estimate_cost(work)
    amount, spec = needed(work.spec, cost), work.spec
    ledger = work.broker.ledger
    plans = [await ledger.plan_funding(work.provider, "fine-tuning", amount, check=False)]
    if spec.deploy:
        budget = INFERENCE_BUDGET if spec.inference_budget is None else int(spec.inference_budget)
        where = work.inference_provider
        plans.append(await ledger.plan_funding(where, "inference", budget, after=plans[0], check=False))
    transactions = _transactions(plans, return_rest=spec.return_rest)
    reserve = max(plan.gas_reserve for plan in plans)
    return JobPlan(
        wallet=work.wallet,
        provider=work.provider,
        inference_provider=work.inference_provider if spec.deploy else None,
        model=spec.model,
        transactions=transactions,
        uploads=_uploads(work),
        estimate=cost,
        budget=amount,
        gas_reserve=reserve,
        problems=tuple(str(error) for error in _problems(work, plans[0], transactions, cost, amount)),
    )


def _transactions(plans: list[FundingPlan], *, return_rest: bool) -> tuple[PlannedTransaction, ...]:
    steps = [
        PlannedTransaction(
            name=step.name,
            provider=plan.provider,
            service_type=plan.service_type,
            amount=step.amount,
            value=step.call.value,
            gas_cost=plan.gas_price * (GAS_TRANSFER if step.name == "transfer_fund" else GAS_DEPOSIT),
        )
        for plan in plans
        for step in plan.steps
    ]
    tuning = plans[0]
    names = ["acknowledge_deliverable"]
    if not tuning.signer_acknowledged:
        names.insert(0, "acknowledge_provider")
    if return_rest:
        names.append("retrieve_fund")
    return (
        *steps,
        *(
            PlannedTransaction(
                name=name,
                provider=tuning.provider,
                service_type="fine-tuning",
                amount=0,
                value=0,
                gas_cost=tuning.gas_price * (GAS_RETRIEVE if name == "retrieve_fund" else GAS_ACKNOWLEDGE),
            )
            for name in names
        ),
    )


def _uploads(work: Work) -> tuple[PlannedUpload, ...]:
    if work.spec.dataset_root is not None:
        return ()
    dataset = known(work.state.dataset)
    return (
        PlannedUpload(
            provider=work.provider, path=str(work.spec.dataset), size=dataset.size, keccak256=dataset.keccak256
        ),
    )


def _problems(
    work: Work, first: FundingPlan, transactions: tuple[PlannedTransaction, ...], cost: CostEstimated, amount: int
) -> list[ZgError]:
    problems: list[ZgError] = []
    cap = work.spec.max_spend
    if cap is not None and amount + cost.gas > int(cap):
        problems.append(
            LimitError(f"it may cost up to {format_amount(amount + cost.gas)}, max_spend is {format_amount(int(cap))}")
        )
    wanted = sum(t.value + t.gas_cost for t in transactions) + first.gas_reserve
    if first.wallet_balance < wanted:
        problems.append(
            InsufficientGasFundsError(
                f"{work.wallet} holds {format_amount(first.wallet_balance)}, deposits, gas and the gas kept back come "
                f"to {format_amount(wanted)}"
            )
        )
    return problems
