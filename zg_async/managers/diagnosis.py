"""What state a wallet is in at a provider, and the exact steps out of it. Looks only; steps are sent when asked for."""

import dataclasses
import enum
from collections.abc import Callable
from typing import Final

from zg_async.errors import AccountNotFoundError, LedgerNotFoundError, ServiceNotFoundError, ZgError
from zg_async.managers.context import Context
from zg_async.managers.funding import GAS_ACKNOWLEDGE, GAS_RETRIEVE
from zg_async.managers.provider_client import ProviderClient
from zg_async.units import format_amount
from zg_async.wire.hashing import parse_address
from zg_async.wire.records import (
    Address,
    Deliverable,
    FineTuningAccountDetails,
    FineTuningService,
    Ledger,
    Task,
    TaskId,
)

_OPEN_GAS: Final = 2 * GAS_ACKNOWLEDGE + GAS_RETRIEVE


class PairState(enum.StrEnum):
    """What stands in the way of the next task of a wallet at a provider, gravest first."""

    NOT_REGISTERED = "not_registered"
    PENALTY_LOCK = "penalty_lock"
    """The last delivery was settled without acknowledgement: the provider can't deliver to this wallet any more."""
    DELIVERED = "delivered_unacknowledged"
    DRAINED_GAS = "drained_gas"
    NO_LEDGER = "no_ledger"
    NO_ACCOUNT = "no_sub_account"
    SIGNER_NOT_APPROVED = "signer_not_approved"
    SIGNER_UNACKNOWLEDGED = "signer_unacknowledged"
    UNFINISHED_TASK = "unfinished_task"
    KEY_PENDING = "key_pending"
    """Acknowledged; the provider hasn't settled yet."""
    REFUND_PENDING = "refund_pending"
    """All money there is requested back."""
    NO_FUNDS = "no_funds"
    UNREACHABLE = "provider_unreachable"
    HEALTHY = "healthy"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RecoveryStep:
    """One step out."""

    action: str
    """A manager's method, such as `ledger.retrieve_fund`; `wait` and `ask` are for people."""
    text: str
    """What it does, with names and amounts."""
    arguments: tuple[str, ...] = ()
    """The method's."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """What was found."""

    wallet: Address
    provider: Address
    states: tuple[PairState, ...]
    """Gravest first; only `HEALTHY` when nothing is in the way."""
    explanation: str
    steps: tuple[RecoveryStep, ...]
    """Out of the gravest state, in order; nothing of it has been done."""
    task_id: TaskId | None = None
    """The task or delivery that it is about."""

    @property
    def state(self) -> PairState:
        """The gravest state."""
        return self.states[0]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Facts:
    wallet: Address
    provider: Address
    service: FineTuningService | None
    ledger: Ledger | None
    account: FineTuningAccountDetails | None
    others: int
    """Sub-accounts of this wallet elsewhere, of both services."""
    balance: int
    gas: int
    """Neuron that one acknowledgement and one retrieve take, generously."""
    tasks: tuple[Task, ...]
    silent: ZgError | None

    @property
    def last(self) -> Deliverable | None:
        return self.account.deliverables[-1] if self.account and self.account.deliverables else None

    @property
    def unfinished(self) -> Task | None:
        return next((task for task in self.tasks if not task.is_terminal), None)


async def diagnose(ctx: Context, provider: str) -> Diagnosis:
    """Look at chain and provider, and name what is there."""
    return _diagnosis(await _look(ctx, parse_address(provider, what="provider")))


async def _look(ctx: Context, provider: Address) -> _Facts:
    chain, services, wallet = ctx.chain, ctx.services, ctx.wallet
    service: FineTuningService | None
    try:
        service = await services.fine_tuning_service(provider, fresh=True)
    except ServiceNotFoundError:
        service = None
    ledger, account, own, inference = await chain.call_many(
        [
            services.ledger.get_ledger(wallet),
            services.fine_tuning.get_account(wallet, provider),
            services.fine_tuning.get_accounts_by_user(wallet, 0, 50),
            services.inference.get_accounts_by_user(wallet, 0, 50),
        ]
    )
    for answer, absent in (
        (ledger, LedgerNotFoundError),
        (account, AccountNotFoundError),
        (own, LedgerNotFoundError),
        (inference, LedgerNotFoundError),
    ):
        if isinstance(answer, ZgError) and not isinstance(answer, absent):
            raise answer
    tasks: tuple[Task, ...] = ()
    silent: ZgError | None = None
    if service is not None:
        try:
            tasks = await ProviderClient(ctx.http, service.url, provider, ctx.clock).list_tasks(wallet)
        except ZgError as error:
            silent = error
    rows = [row for found in (own, inference) if not isinstance(found, ZgError) for row in found[0]]
    return _Facts(
        wallet=wallet,
        provider=provider,
        service=service,
        ledger=None if isinstance(ledger, ZgError) else ledger,
        account=None if isinstance(account, ZgError) else account,
        others=sum(row.provider != provider for row in rows),
        balance=await chain.balance(wallet),
        gas=await chain.gas_price() * _OPEN_GAS,
        tasks=tasks,
        silent=silent,
    )


def _states(facts: _Facts) -> list[PairState]:
    account, last = facts.account, facts.last
    checks = {
        PairState.NOT_REGISTERED: facts.service is None,
        PairState.PENALTY_LOCK: last is not None and last.settled and not last.acknowledged,
        PairState.DELIVERED: last is not None and not last.settled and not last.acknowledged,
        PairState.DRAINED_GAS: facts.balance < facts.gas,
        PairState.NO_LEDGER: facts.ledger is None,
        PairState.NO_ACCOUNT: facts.ledger is not None and account is None,
        PairState.SIGNER_NOT_APPROVED: facts.service is not None and not facts.service.tee_signer_acknowledged,
        PairState.SIGNER_UNACKNOWLEDGED: account is not None and not account.acknowledged,
        PairState.KEY_PENDING: last is not None and last.acknowledged and not last.settled,
        PairState.UNFINISHED_TASK: facts.unfinished is not None and (last is None or last.id != facts.unfinished.id),
        PairState.REFUND_PENDING: account is not None and account.spendable <= 0 < account.pending_refund,
        PairState.NO_FUNDS: account is not None and account.balance == 0,
        PairState.UNREACHABLE: facts.silent is not None,
    }
    found = [state for state in PairState if checks.get(state)]
    return found or [PairState.HEALTHY]


def _diagnosis(facts: _Facts) -> Diagnosis:
    states = _states(facts)
    explanation, *steps = _ADVICE[states[0]](facts)
    task = facts.last.id if facts.last and states[0] in _ABOUT_DELIVERY else None
    if task is None and facts.unfinished is not None:
        task = facts.unfinished.id
    return Diagnosis(
        wallet=facts.wallet,
        provider=facts.provider,
        states=tuple(states),
        explanation=str(explanation),
        steps=tuple(step for step in steps if isinstance(step, RecoveryStep)),
        task_id=task,
    )


_Advice = tuple[str | RecoveryStep, ...]
_Rule = Callable[[_Facts], _Advice]
_ABOUT_DELIVERY: Final = frozenset({PairState.PENALTY_LOCK, PairState.DELIVERED, PairState.KEY_PENDING})


def _step(action: str, text: str, *arguments: str) -> RecoveryStep:
    return RecoveryStep(action=action, text=text, arguments=arguments)


def _penalty_lock(facts: _Facts) -> _Advice:
    """The whole way: a ledger that is refunded to zero is deleted with its sub-accounts and their deliverables."""
    last, account, ledger = facts.last, facts.account, facts.ledger
    held = account.balance if account else 0
    others = f", with those at {facts.others} other providers," if facts.others else ""
    steps = [
        _step(
            "ledger.retrieve_fund",
            f"ask for the {format_amount(held)} at {facts.provider} back{others} and all other fine-tuning money",
            "fine-tuning",
        )
        if held or facts.others
        else None,
        _step("ledger.retrieve_fund", "the same for inference", "inference") if facts.others else None,
        _step("wait", "wait until the refunds unlock: get_account_with_detail says when") if held else None,
        _step("ledger.retrieve_fund", "collect what is unlocked", "fine-tuning") if held or facts.others else None,
        _step("ledger.retrieve_fund", "collect what is unlocked", "inference") if facts.others else None,
        _step(
            "ledger.refund",
            (
                f"take all of the ledger, {format_amount(ledger.total_balance if ledger else 0)}, back: that deletes "
                "it with its sub-accounts, and so the delivery that is in the way"
            ),
            "all",
        ),
        _step("ledger.ensure_funded", "open ledger and sub-account anew", facts.provider, "fine-tuning", "1"),
    ]
    text = (
        f"{facts.provider} settled task {last.id if last else ''} without acknowledgement: the penalty is paid, no key "
        "will come, and the contract refuses its next delivery to this wallet. Other providers are not affected"
    )
    return (text, *[step for step in steps if step is not None])


def _delivered(facts: _Facts) -> _Advice:
    task = facts.last.id if facts.last else ""
    return (
        f"task {task} is delivered and not acknowledged; when its window closes the key is lost and a penalty due",
        _step("fine_tuning.deliver", "download, check, acknowledge, decrypt and unpack it", facts.provider, task),
        _step("JobRunner", "or enter a runner on this wallet: it adopts the delivery and does the same"),
    )


def _no_gas(facts: _Facts) -> _Advice:
    missing = format_amount(facts.gas - facts.balance)
    return (
        (
            f"{facts.wallet} holds {format_amount(facts.balance)}; one acknowledgement and one retrieve take about "
            f"{format_amount(facts.gas)} of gas"
        ),
        _step("ask", f"send at least {missing} to {facts.wallet}"),
    )


def _fund(text: str) -> _Rule:
    return lambda facts: (
        text,
        _step("ledger.ensure_funded", "open and fill what is missing", facts.provider, "fine-tuning", "1"),
    )


def _unfinished(facts: _Facts) -> _Advice:
    task = facts.unfinished
    if task is None:
        return ("",)
    wait = _step("fine_tuning.wait_task", "wait for it", facts.provider, task.id)
    cancel = _step("fine_tuning.cancel_task", "or cancel it, while that is allowed", facts.provider, task.id)
    text = f"task {task.id} is {task.progress.value}; a provider takes one unfinished task per wallet"
    return (text, wait, cancel) if task.is_cancellable else (text, wait)


def _refund_pending(facts: _Facts) -> _Advice:
    pending = facts.account.pending_refund if facts.account else 0
    return (
        f"all {format_amount(pending)} at {facts.provider} are requested back, so no task can be paid",
        _step("ledger.transfer_fund", "a transfer takes the request back first", facts.provider, "fine-tuning", "1"),
        _step("ledger.retrieve_fund", "or collect it once it is unlocked", "fine-tuning"),
    )


def _says(text: str, *steps: RecoveryStep) -> _Rule:
    return lambda facts: (text.format(provider=facts.provider, wallet=facts.wallet), *steps)


def _acknowledge(facts: _Facts) -> _Advice:
    return (
        f"{facts.wallet} has not acknowledged the TEE signer of {facts.provider}, so it refuses its tasks",
        _step("fine_tuning.acknowledge_provider_signer", "check the quote and acknowledge the signer", facts.provider),
    )


def _key_pending(facts: _Facts) -> _Advice:
    task = facts.last.id if facts.last else ""
    return (
        f"task {task} is acknowledged, and {facts.provider} hasn't settled it yet, usually one to three minutes",
        _step("fine_tuning.wait_key", "wait for its key", facts.provider, task),
    )


_ADVICE: Final[dict[PairState, _Rule]] = {
    PairState.NOT_REGISTERED: _says(
        "{provider} is no registered fine-tuning provider",
        _step("fine_tuning.list_service", "choose another one"),
        _step("ledger.retrieve_fund", "and take money that lies there back", "fine-tuning"),
    ),
    PairState.PENALTY_LOCK: _penalty_lock,
    PairState.DELIVERED: _delivered,
    PairState.DRAINED_GAS: _no_gas,
    PairState.NO_LEDGER: _fund("the wallet has no ledger"),
    PairState.NO_ACCOUNT: _fund("the wallet has no sub-account at this provider"),
    PairState.SIGNER_NOT_APPROVED: _says(
        "the contract's owner has not approved the TEE signer of {provider}: it can neither deliver nor settle",
        _step("wait", "wait for the owner's approval, or choose another provider"),
    ),
    PairState.SIGNER_UNACKNOWLEDGED: _acknowledge,
    PairState.KEY_PENDING: _key_pending,
    PairState.UNFINISHED_TASK: _unfinished,
    PairState.REFUND_PENDING: _refund_pending,
    PairState.NO_FUNDS: _fund("the sub-account is empty"),
    PairState.UNREACHABLE: _says(
        "{provider} doesn't answer; on chain nothing is in the way", _step("wait", "try again")
    ),
    PairState.HEALTHY: _says("nothing is in the way of a task of {wallet} at {provider}"),
}
