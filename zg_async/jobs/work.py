"""What stages have in common: what they work with, the provider's terms, and the traces of a forgotten task."""

import dataclasses
import datetime as dt
import json
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

from zg_async.errors import (
    ChainError,
    ConfigError,
    ContractRevertedError,
    JournalError,
    ProviderError,
    ServiceNotFoundError,
    VerificationError,
)
from zg_async.jobs.events import (
    Event,
    Paid,
    ProviderChosen,
)
from zg_async.jobs.scheduler import Scheduler
from zg_async.jobs.spec import JobSpec
from zg_async.jobs.state import JobState
from zg_async.wire.records import (
    Address,
    FineTuningService,
    Task,
    TaskId,
    TaskProgress,
)

if TYPE_CHECKING:
    from zg_async.broker import Broker

_T = TypeVar("_T")

CLOCK_SKEW: Final = dt.timedelta(minutes=10)
"""How far a provider's clock may be off when a task's age is judged."""


@dataclasses.dataclass(slots=True, kw_only=True)
class Work:
    """What a stage works with; the runner keeps `state` up to date at each commit."""

    broker: "Broker"
    """Bound to the job's wallet."""
    state: JobState
    scheduler: Scheduler
    is_plan: bool = False
    """Whether nothing is done, so no turn is taken."""
    displace: Callable[[JobState], Awaitable[None]] | None = None
    """Ends what the guardian began for the job's task; None: there is no guardian."""

    @property
    def spec(self) -> JobSpec:
        """What the user asked for."""
        return known(self.state.spec)

    @property
    def wallet(self) -> Address:
        """Who pays."""
        return known(self.state.wallet)

    @property
    def provider(self) -> Address:
        """Who trains."""
        return known(self.state.provider)

    @property
    def task_id(self) -> TaskId:
        """The provider's task."""
        return known(self.state.task_id)

    @property
    def inference_provider(self) -> Address:
        """Who serves the adapter."""
        return Address(self.spec.inference_provider or self.provider)

    @property
    def folder(self) -> Path:
        """Where the job keeps its intermediate files."""
        return Path(self.spec.output_dir) / f".zg-{self.state.job_id}"

    def keys(self, effect: str) -> list[str]:
        """Return the outbox keys of an effect: one per generation, the last is the one to use."""
        turn = len(self.state.failed_at)
        base = f"{self.state.job_id}/{effect}" + (f"/provider-{turn + 1}" if turn else "")
        count = self.state.generations.get(effect.split("/")[0], 0)
        return [base, *(f"{base}/again-{n}" for n in range(1, count + 1))]

    async def has_done(self, *keys: str) -> bool:
        """Say whether anything was mined under some keys and wasn't reverted, by this process or an earlier one."""
        for key in keys:
            with suppress(ContractRevertedError):
                if await self.broker.chain.recall(key, wallet=self.wallet) is not None:
                    return True
        return False

    async def paid(self, *keys: str) -> tuple[Paid, ...]:
        """List what is mined of the job under some keys and the steps of them, or under any: also what was reverted."""
        rows = await self.broker.chain.mined_of(self.state.job_id, wallet=self.wallet, wait_for=keys)
        mine = (row for row in rows if not keys or any(f"{row.key}/".startswith(f"{key}/") for key in keys))
        return tuple(Paid(tx_hash=row.tx_hash, gas=row.gas_cost) for row in mine)


async def chain_now(work: Work) -> dt.datetime:
    """Return the time by which deadlines count, by the newest block if the chain can be asked."""
    with suppress(ChainError):
        await work.broker.chain.block()
    return work.broker.chain.heads.time.now()


async def be_alone(work: Work) -> None:
    """See that no other job does anything about this job's task."""
    if work.displace is not None:
        await work.displace(work.state)


def known(value: _T | None) -> _T:
    """Return what an earlier stage put on record.

    Raises:
        JournalError: It isn't there.
    """
    if value is None:
        raise JournalError("the journal lacks an event that must have come before")
    return value


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One step of a job."""

    name: str
    run: Callable[[Work], AsyncGenerator[Event, None]]
    is_done: Callable[[JobState], bool]
    needs_turn: bool = True
    """Whether the wallet's turn at the provider is held meanwhile."""
    keeps_turn: bool = False
    """Whether a turn that is held stays held, though it isn't needed."""
    can_interrupt: bool = True
    """Whether a cancellation may stop it half-way; else it waits until the stage has ended."""


def terms_of(service: FineTuningService, model_hash: str) -> ProviderChosen:
    """Return a provider's present terms."""
    return ProviderChosen(
        provider=service.provider,
        url=service.url,
        price_per_token=service.price_per_token,
        signer=service.tee_signer_address,
        model_hash=model_hash,
    )


async def check_terms(work: Work, *, may_be_away: bool = False) -> None:
    """Raise if the provider is not the one it was when it was chosen.

    Args:
        work: The job.
        may_be_away: Don't ask for a model of the provider's own when it doesn't answer.
    """
    before = known(work.state.terms)
    try:
        service = await work.broker.fine_tuning.get_service(before.provider)
        now = terms_of(service, await _model_hash(work, before, may_be_away=may_be_away))
    except ServiceNotFoundError as error:
        hint = "Submit the job again for another provider, or resume it when this one is back"
        raise ServiceNotFoundError(f"{before.provider} is not registered any more", hint=hint) from error
    changes = [
        f"{what}: {getattr(before, name)} -> {getattr(now, name)}"
        for name, what in _TERMS
        if getattr(before, name) != getattr(now, name)
    ]
    if changes:
        raise VerificationError(f"{before.provider} changed its terms; {'; '.join(changes)}", hint=_ACCEPT)


async def _model_hash(work: Work, before: ProviderChosen, *, may_be_away: bool) -> str:
    if not before.model_hash:
        return ""
    try:
        return (await work.broker.fine_tuning.resolve_model(before.provider, work.spec.model)).hash
    except ConfigError:
        return "none"
    except ProviderError:
        if not may_be_away:
            raise
        return before.model_hash


_TERMS: Final = (
    ("url", "URL"),
    ("price_per_token", "price per token (neuron)"),
    ("signer", "TEE signer"),
    ("model_hash", "model"),
)
_ACCEPT: Final = "JobRunner.resume(job_id, accept_changes=True) goes on with the new terms"


async def lost_task(work: Work, provider: Address) -> Task | None:
    """After the journal lost rows: find the task that this job created and forgot.

    The rule: a task of this wallet at this provider, for the same model, dataset and parameters, created after the job
    was submitted (at any time, if the submission itself may be a repeated one). More than one is not ours to guess.
    """
    model = await work.broker.fine_tuning.resolve_model(provider, work.spec.model)
    tasks = await work.broker.fine_tuning.list_task(provider)
    dataset_hash = work.spec.dataset_root or known(work.state.dataset).keccak256
    wanted = (model.hash.lower(), dataset_hash, json.loads(str(work.spec.training_params)))
    same = [
        task
        for task in tasks
        if (task.model_hash.lower(), task.dataset_hash.lower(), _json_or_none(task.training_params)) == wanted
        and task.progress not in (TaskProgress.FAILED, TaskProgress.CANCELLED)
        and (work.state.resubmitted or task.created_at >= known(work.state.submitted_at) - CLOCK_SKEW)
    ]
    if len(same) > 1:
        ids = ", ".join(task.id for task in same)
        raise JournalError(
            f"the journal lost rows, and any of these tasks may be this job's: {ids}",
            hint="Take the right one over by hand with fine_tuning.deliver()",
        )
    return same[0] if same else None


def _json_or_none(text: str) -> object:
    try:
        return json.loads(text)
    except ValueError:
        return None
