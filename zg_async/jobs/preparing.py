"""The stages before there is a task: choose the provider, fund it, acknowledge it, give it the dataset."""

import dataclasses
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from typing import Final

import anyio

from zg_async.errors import (
    ConfigError,
    HashMismatchError,
    LedgerNotFoundError,
    LimitError,
    ProviderError,
    ProviderUnavailableError,
    UnfinishedTaskError,
    ZgError,
)
from zg_async.jobs.events import (
    CostEstimated,
    DatasetChecked,
    DatasetUploaded,
    Event,
    JobQueued,
    ProviderAcknowledged,
    ProviderChosen,
    ProviderFunded,
)
from zg_async.jobs.spec import JobSpec
from zg_async.jobs.work import Work, known, lost_task, terms_of
from zg_async.managers.funding import GAS_ACKNOWLEDGE, GAS_DEPOSIT, GAS_RETRIEVE, GAS_TRANSFER
from zg_async.showing import Records
from zg_async.units import NEURON_PER_0G, format_amount
from zg_async.wire.provider_api import estimate_fee
from zg_async.wire.records import (
    Address,
    FineTuningService,
    JobId,
    RootHash,
)
from zg_async.wire.rows import check_training_params

INFERENCE_BUDGET: Final = 2 * NEURON_PER_0G
"""What a provider wants to see before it serves a chat, and what the peers top up to (0g-serving-broker)."""
UNKNOWN_DATASET_BUDGET: Final = NEURON_PER_0G
"""For a dataset given by its hash, whose size we don't know: the contract's minimum transfer."""
_LOOK_AGAIN: Final = 60.0
"""Seconds a job waits for its turn elsewhere before it asks those again that couldn't take it for a moment."""
ROW_OVERHEAD_TOKENS: Final = 64
"""Room per row for what a chat template adds; a byte is at most one token."""


async def choose_provider(work: Work) -> AsyncGenerator[Event, None]:
    """Settle who trains and on which terms."""
    chosen = work.spec.provider or work.state.provider
    services = await work.broker.fine_tuning.list_service(include_unacknowledged=chosen is not None)
    if chosen is not None:
        services = Records(s for s in services if s.provider == chosen)
        if not services:
            raise ConfigError(f"{chosen} is no fine-tuning provider", hint="list_service() shows the registered ones")
        (await work.broker.ledger.get_account_room("fine-tuning")).require(Address(chosen))
        await _check_serving(work, services[0])
        yield await _terms(work, services[0])
        return
    if (traced := await _traced(work, services)) is not None:
        yield await _terms(work, traced)
        return
    async with aclosing(_best_free(work, services)) as facts:
        async for fact in facts:
            yield fact


async def _terms(work: Work, service: FineTuningService) -> ProviderChosen:
    return terms_of(service, (await work.broker.fine_tuning.resolve_model(service.provider, work.spec.model)).hash)


async def _traced(work: Work, services: Sequence[FineTuningService]) -> FineTuningService | None:
    """After the journal lost rows: return the provider that already has this job's task."""
    if not work.state.suspect:
        return None
    try:
        detail = await work.broker.ledger.get_ledger_with_detail()
    except LedgerNotFoundError:
        return None
    paid = {account.provider for account in detail.fine_tuning}  # without a sub-account there is no task
    for service in services:
        if service.provider in paid and await lost_task(work, service.provider) is not None:
            return service
    return None


async def _best_free(work: Work, services: Sequence[FineTuningService]) -> AsyncGenerator[Event, None]:
    """Choose, with the reasons, the best provider that answers, has the model and no unfinished task of this wallet.

    The turn there is taken first, so that many jobs that choose at once choose differently; it stays held.
    """
    scheduler, wallet, job_id = work.scheduler, work.wallet, work.state.job_id
    excluded = {provider: f"failed this job: {why}" for provider, why in work.state.excluded.items()}
    tried: dict[Address, ZgError] = {}
    told: tuple[Address, JobId] | None = None
    room = await work.broker.ledger.get_account_room("fine-tuning")
    while True:
        against = excluded | {provider: error.message for provider, error in tried.items()}
        left = [s.provider for s in scheduler.order(services, wallet) if s.provider not in against]
        if not left:
            raise _none_free(against, tuple(tried.values()))
        ahead = None if work.is_plan else scheduler.ahead(job_id, wallet, left)
        if ahead is not None and ahead != told:
            yield JobQueued(provider=ahead[0], behind=ahead[1])
            told = ahead
        provider = left[0] if work.is_plan else None
        if not work.is_plan:
            lasting = {p: e for p, e in tried.items() if not (e.retryable or isinstance(e, UnfinishedTaskError))}
            with anyio.move_on_after(_LOOK_AGAIN if len(lasting) < len(tried) else None):
                provider = await scheduler.claim(job_id, wallet, left)
            if provider is None:  # somebody else may take it by now
                tried = lasting
                continue
        service = next(s for s in services if s.provider == provider)
        try:
            room.require(service.provider)
            terms = await _terms(work, service)
            await _check_serving(work, service)
            await _require_no_task(work, service.provider)
        except (ProviderError, ConfigError, LimitError) as error:
            scheduler.release(job_id)
            tried[service.provider] = error
            continue
        passed = tuple(f"not {provider}: {reason}" for provider, reason in against.items())
        others = len(scheduler.jobs_at(wallet, service.provider)) - (not work.is_plan)
        yield dataclasses.replace(terms, reasons=(scheduler.reason(service, services, others), *passed))
        return


def _none_free(against: Mapping[Address, str], found: Sequence[ZgError]) -> ZgError:
    """Say why no provider takes the job; a wait helps if it helps with one of them."""
    tried = "; ".join(f"{provider}: {reason}" for provider, reason in against.items()) or "none is registered"
    message = f"no fine-tuning provider is free: {tried}"
    if busy := next((error for error in found if isinstance(error, UnfinishedTaskError)), None):
        return UnfinishedTaskError(message, task_id=busy.task_id, provider=busy.provider, hint=busy.hint)
    if any(error.retryable for error in found):
        return ProviderUnavailableError(message, hint="Try again later")
    hint = next((error.hint for error in found if error.hint), None)
    return ConfigError(
        f"no fine-tuning provider takes this job: {tried}",
        hint=hint or "list_service() shows the providers there are, list_model() their models",
    )


async def _check_serving(work: Work, service: FineTuningService) -> None:
    """Raise unless the adapter can be deployed later, if it is to be."""
    if work.spec.deploy:
        where = work.spec.inference_provider or service.provider
        (await work.broker.ledger.get_account_room("inference")).require(Address(where))
        await work.broker.inference.lora.preflight(where, work.spec.model)


async def _require_no_task(work: Work, provider: Address) -> None:
    """Raise if an unfinished task of this wallet is there; asking also shows that the provider lives."""
    tasks = await work.broker.fine_tuning.list_task(provider)
    if work.is_plan and work.scheduler.jobs_at(work.wallet, provider):
        return  # it will be over when it is this job's turn
    if task := next((task for task in tasks if not task.is_terminal), None):
        raise UnfinishedTaskError(
            f"has the unfinished task {task.id} of this wallet", task_id=task.id, provider=provider, hint="Wait for it"
        )


async def estimate(work: Work) -> AsyncGenerator[Event, None]:
    """Put what the job will cost on record, before anything is paid."""
    yield await estimate_cost(work)


async def fund(work: Work) -> AsyncGenerator[Event, None]:
    """Make the sub-accounts hold what the job needs."""
    cost = work.state.estimate
    if cost is None or cost.provider != work.provider:
        cost = await estimate_cost(work)
        yield cost
    amount = needed(work.spec, cost)
    cap = work.spec.max_spend
    if cap is not None and amount + cost.gas > int(cap):
        raise LimitError(
            f"the task may cost up to {format_amount(amount)}, and {format_amount(cost.gas)} of gas; "
            f"the cap is {format_amount(int(cap))}",
            hint="Raise max_spend, or set budget to what you expect it to cost",
        )
    if "fine-tuning" not in work.state.funded:
        yield await _fund(work, work.provider, "fine-tuning", amount)
    if work.spec.deploy and "inference" not in work.state.funded:
        budget = work.spec.inference_budget
        yield await _fund(
            work, work.inference_provider, "inference", INFERENCE_BUDGET if budget is None else int(budget)
        )


async def _fund(work: Work, provider: Address, service_type: str, amount: int) -> ProviderFunded:
    keys = work.keys(_funding(service_type))
    await work.broker.ledger.ensure_funded(provider, service_type, amount, key=keys[-1])
    paid = await work.paid(*keys)  # one transaction per step, numbered by the manager
    return ProviderFunded(provider=provider, service_type=service_type, amount=amount, transactions=paid)


def _funding(service_type: str) -> str:
    return f"fund/{service_type}"


def first_key(job_id: JobId) -> str:
    """Return the outbox key of the first transaction a job sends."""
    return f"{job_id}/{_funding('fine-tuning')}/1"


def needed(spec: JobSpec, cost: CostEstimated) -> int:
    """Return what the fine-tuning sub-account has to hold."""
    return int(spec.budget) if spec.budget is not None else cost.fee_high


async def estimate_cost(work: Work) -> CostEstimated:
    """Say what the task will cost by the provider's rule, exactly or as a range, and the gas of the whole job."""
    dataset, terms = work.state.dataset, known(work.state.terms)
    gas = GAS_DEPOSIT + GAS_TRANSFER * (2 if work.spec.deploy else 1) + 2 * GAS_ACKNOWLEDGE
    gas += GAS_RETRIEVE if work.spec.return_rest else 0
    gas *= await work.broker.chain.gas_price()
    if dataset is None:
        fee = UNKNOWN_DATASET_BUDGET
        return CostEstimated(provider=work.provider, fee_low=1, fee_likely=fee, fee_high=fee, gas=gas, method="unknown")
    model = await work.broker.fine_tuning.resolve_model(work.provider, work.spec.model)
    epochs = check_training_params(str(work.spec.training_params)).num_train_epochs
    low, likely, high = (estimate_fee(tokens, terms.price_per_token, epochs, model) for tokens in token_range(dataset))
    method = "bytes" if dataset.tokens is None else "tokenizer"
    return CostEstimated(provider=work.provider, fee_low=low, fee_likely=likely, fee_high=high, gas=gas, method=method)


def token_range(dataset: DatasetChecked) -> tuple[int, int, int]:
    """Return the fewest, likely and most tokens of a dataset: counted, or from its bytes, of which most are text."""
    if dataset.tokens is not None:
        count = max(dataset.tokens, 1)
        return count, count, count
    return 1, max(dataset.size // 4, 1), dataset.size + ROW_OVERHEAD_TOKENS * dataset.rows


async def acknowledge_provider(work: Work) -> AsyncGenerator[Event, None]:
    """Check the provider's quote, and acknowledge its TEE signer if no transfer did."""
    keys = work.keys("acknowledge_provider")
    await work.broker.fine_tuning.acknowledge_provider_signer(work.provider, key=keys[-1])
    yield ProviderAcknowledged(transactions=await work.paid(*keys))


async def upload_dataset(work: Work) -> AsyncGenerator[Event, None]:
    """Give the provider the dataset. Twice is harmless: it is stored by its hash."""
    if root := work.spec.dataset_root:
        yield DatasetUploaded(root_hash=RootHash(root), size=None)
        return
    uploaded = await work.broker.fine_tuning.upload_dataset_to_tee(work.provider, str(work.spec.dataset))
    checked = known(work.state.dataset)
    if uploaded.dataset_hash != checked.keccak256:
        raise HashMismatchError(
            f"the dataset {work.spec.dataset} changed after it was checked", hint="Submit a new job for the new file"
        )
    yield DatasetUploaded(root_hash=uploaded.dataset_hash, size=uploaded.size)
