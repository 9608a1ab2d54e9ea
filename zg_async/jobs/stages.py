"""The stages of a fine-tuning job, in order.

A stage is an async generator of events. The runner makes each event durable before the stage goes on, so `yield` means
commit. An effect that mustn't be doubled is preceded by something by which its outcome can be looked up: a transaction
has its key in the outbox, a task its request nonce in the journal; all else may be done twice without harm. So every
stage can be entered again at any time, and none remembers anything.
"""

import dataclasses
import datetime as dt
import itertools
import json
import os
import shutil
from collections.abc import AsyncGenerator, Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

import anyio
import anyio.to_thread

from zg_async.errors import (
    ConfigError,
    ContractRevertedError,
    DeliverableNotFoundError,
    HashMismatchError,
    JournalError,
    KeyNotReleasedError,
    LimitError,
    ProviderError,
    ProviderUnavailableError,
    TaskFailedError,
    VerificationError,
    ZgError,
)
from zg_async.jobs.events import (
    AdapterDeployed,
    CancelRefused,
    DatasetUploaded,
    DeliverableAcknowledged,
    Event,
    JobCancelled,
    ModelDecrypted,
    ModelDownloaded,
    Paid,
    ProviderAcknowledged,
    ProviderChosen,
    ProviderFunded,
    TaskCreated,
    TaskDelivered,
    TaskProgressed,
    TaskRequested,
)
from zg_async.jobs.scheduler import Scheduler
from zg_async.jobs.spec import JobSpec
from zg_async.jobs.state import JobState
from zg_async.managers.task_changes import TaskSettled, TaskStateChanged
from zg_async.text import printable
from zg_async.units import NEURON_PER_0G, format_amount
from zg_async.wire.hashing import hex0x
from zg_async.wire.provider_api import estimate_fee, failure_reason
from zg_async.wire.records import (
    Address,
    CancelResult,
    DownloadedModel,
    FineTuningService,
    RootHash,
    Task,
    TaskId,
    TaskProgress,
)
from zg_async.wire.rows import check_training_params

if TYPE_CHECKING:
    from zg_async.broker import Broker

_T = TypeVar("_T")

INFERENCE_BUDGET: Final = 2 * NEURON_PER_0G
"""What a provider wants to see before it serves a chat, and what the peers top up to (0g-serving-broker)."""
UNKNOWN_DATASET_BUDGET: Final = NEURON_PER_0G
"""For a dataset given by its hash, whose size we don't know: the contract's minimum transfer."""
ROW_OVERHEAD_TOKENS: Final = 64
"""Room per row for what a chat template adds; a byte is at most one token."""
DEPLOY_SECONDS: Final = 600
KEY_WAIT_SECONDS: Final = 6 * 3600.0
"""How long to wait for a settlement before saying so; usually one to three minutes."""
MANIFEST: Final = "zg_job.json"
"""Lies in the adapter's folder: whose it is."""

CLOCK_SKEW: Final = dt.timedelta(minutes=10)
"""How far a provider's clock may be off when a task's age is judged."""

_OVER: Final = frozenset({TaskProgress.FAILED, TaskProgress.CANCELLED})
_DELIVERED: Final = frozenset({TaskProgress.DELIVERED, TaskProgress.USER_ACKNOWLEDGED, TaskProgress.FINISHED})


@dataclasses.dataclass(slots=True, kw_only=True)
class Work:
    """What a stage works with; the runner keeps `state` up to date at each commit."""

    broker: "Broker"
    """Bound to the job's wallet."""
    state: JobState
    scheduler: Scheduler

    @property
    def spec(self) -> JobSpec:
        """What the user asked for."""
        return _known(self.state.spec)

    @property
    def wallet(self) -> Address:
        """Who pays."""
        return _known(self.state.wallet)

    @property
    def provider(self) -> Address:
        """Who trains."""
        return _known(self.state.provider)

    @property
    def task_id(self) -> TaskId:
        """The provider's task."""
        return _known(self.state.task_id)

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
        base = f"{self.state.job_id}/{effect}"
        count = self.state.generations.get(effect.split("/")[0], 0)
        return [base, *(f"{base}/again-{n}" for n in range(1, count + 1))]

    async def sent(self, *keys: str) -> tuple[Paid, ...]:
        """Look up what was mined under some keys, by this process or an earlier one."""
        found: list[Paid] = []
        for key in keys:
            try:
                receipt = await self.broker.chain.recall(key, wallet=self.wallet)
            except ContractRevertedError:
                continue
            if receipt is not None:
                found.append(Paid(tx_hash=receipt.tx_hash, gas=receipt.gas_cost))
        return tuple(found)


def _known(value: _T | None) -> _T:
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
    can_interrupt: bool = True
    """Whether a cancellation may stop it half-way; else it waits until the stage has ended."""


# ---- before money moves


async def choose_provider(work: Work) -> AsyncGenerator[Event, None]:
    """Settle who trains and on which terms."""
    chosen = work.spec.provider or work.state.provider
    services = await work.broker.fine_tuning.list_service(include_unacknowledged=chosen is not None)
    if chosen is not None:
        services = tuple(s for s in services if s.provider == chosen)
        if not services:
            raise ConfigError(f"{chosen} is no fine-tuning provider", hint="list_service() shows the registered ones")
        await _check_serving(work, services[0])
        yield _terms(services[0])
        return
    yield _terms(await _best_free(work, services))


async def _best_free(work: Work, services: Sequence[FineTuningService]) -> FineTuningService:
    """Return the best provider that answers, has the model and no unfinished task of this wallet."""
    reasons: dict[Address, str] = {}
    retryable = False
    for service in work.scheduler.order(services, work.wallet):
        try:
            await work.broker.fine_tuning.resolve_model(service.provider, work.spec.model)
            await _check_serving(work, service)
            blocking = await _foreign_task(work, service.provider)
        except (ProviderError, ConfigError) as error:
            reasons[service.provider] = error.message
            retryable |= error.retryable
            continue
        if blocking is None:
            return service
        retryable, reasons[service.provider] = True, f"has the unfinished task {blocking.id} of this wallet"
    tried = "; ".join(f"{provider}: {reason}" for provider, reason in reasons.items()) or "none is registered"
    if retryable:
        raise ProviderUnavailableError(f"no fine-tuning provider is free: {tried}")
    raise ConfigError(f"no fine-tuning provider takes this job: {tried}")


async def _check_serving(work: Work, service: FineTuningService) -> None:
    """Raise unless the adapter can be deployed later, if it is to be."""
    if work.spec.deploy:
        where = work.spec.inference_provider or service.provider
        await work.broker.inference.lora.preflight(where, work.spec.model)


async def _foreign_task(work: Work, provider: Address) -> Task | None:
    """Return an unfinished task that no job of this runner accounts for; asking also shows that the provider lives."""
    tasks = await work.broker.fine_tuning.list_task(provider)
    if work.scheduler.jobs_at(work.wallet, provider):
        return None
    return next((task for task in tasks if not task.is_terminal), None)


def _terms(service: FineTuningService) -> ProviderChosen:
    return ProviderChosen(
        provider=service.provider,
        url=service.url,
        price_per_token=service.price_per_token,
        signer=service.tee_signer_address,
    )


async def _check_terms(work: Work) -> None:
    """Raise if the provider is not the one it was when it was chosen."""
    before = _known(work.state.terms)
    services = await work.broker.fine_tuning.list_service(include_unacknowledged=True)
    now = next((_terms(s) for s in services if s.provider == before.provider), None)
    if now is None:
        raise VerificationError(f"{before.provider} is not registered any more", hint=_ACCEPT)
    changes = [
        f"{what}: {getattr(before, name)} -> {getattr(now, name)}"
        for name, what in (("url", "URL"), ("price_per_token", "price per token (neuron)"), ("signer", "TEE signer"))
        if getattr(before, name) != getattr(now, name)
    ]
    if changes:
        raise VerificationError(f"{before.provider} changed its terms; {'; '.join(changes)}", hint=_ACCEPT)


_ACCEPT: Final = "JobRunner.resume(job_id, accept_changes=True) goes on with the new terms"


async def fund(work: Work) -> AsyncGenerator[Event, None]:
    """Make the sub-accounts hold what the job needs."""
    amount = await _needed(work)
    cap = work.spec.max_spend
    if cap is not None and amount > int(cap):
        raise LimitError(
            f"the task may cost up to {format_amount(amount)}, the cap is {format_amount(int(cap))}",
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
    keys = work.keys(f"fund/{service_type}")
    await work.broker.ledger.ensure_funded(provider, service_type, amount, key=keys[-1])
    paid: tuple[Paid, ...] = ()
    for key in keys:  # one transaction per step, numbered by the manager
        for step in itertools.count(1):
            found = await work.sent(f"{key}/{step}")
            if not found:
                break
            paid += found
    return ProviderFunded(provider=provider, service_type=service_type, amount=amount, transactions=paid)


async def _needed(work: Work) -> int:
    """Return the most the task can cost: every byte a token."""
    if work.spec.budget is not None:
        return int(work.spec.budget)
    dataset, terms = work.state.dataset, _known(work.state.terms)
    if dataset is None:
        return UNKNOWN_DATASET_BUDGET
    model = await work.broker.fine_tuning.resolve_model(work.provider, work.spec.model)
    params = check_training_params(str(work.spec.training_params))
    tokens = dataset.size + ROW_OVERHEAD_TOKENS * dataset.rows
    return estimate_fee(tokens, terms.price_per_token, params.num_train_epochs, model)


async def acknowledge_provider(work: Work) -> AsyncGenerator[Event, None]:
    """Check the provider's quote, and acknowledge its TEE signer if no transfer did."""
    keys = work.keys("acknowledge_provider")
    await work.broker.fine_tuning.acknowledge_provider_signer(work.provider, key=keys[-1])
    yield ProviderAcknowledged(transactions=await work.sent(*keys))


# ---- the task


async def upload_dataset(work: Work) -> AsyncGenerator[Event, None]:
    """Give the provider the dataset. Twice is harmless: it is stored by its hash."""
    if root := work.spec.dataset_root:
        yield DatasetUploaded(root_hash=RootHash(root), size=None)
        return
    uploaded = await work.broker.fine_tuning.upload_dataset_to_tee(work.provider, str(work.spec.dataset))
    checked = _known(work.state.dataset)
    if uploaded.dataset_hash != checked.keccak256:
        raise HashMismatchError(
            f"the dataset {work.spec.dataset} changed after it was checked", hint="Submit a new job for the new file"
        )
    yield DatasetUploaded(root_hash=uploaded.dataset_hash, size=uploaded.size)


async def create_task(work: Work) -> AsyncGenerator[Event, None]:
    """Create the task once: by the journaled request nonce it is found again, whatever happened to the answer."""
    tuning, nonce = work.broker.fine_tuning, work.state.request_nonce
    if nonce is not None and (task := await tuning.find_task_by_nonce(work.provider, nonce)):
        yield TaskCreated(task_id=task.id)
        return
    if nonce is None and work.state.suspect and (task := await _lost_task(work)):
        yield TaskRequested(request_nonce=task.request_nonce)
        yield TaskCreated(task_id=task.id)
        return
    await _check_terms(work)
    if nonce is None:
        nonce = await tuning.next_request_nonce(work.provider)
        yield TaskRequested(request_nonce=nonce)
    elif (await tuning.get_account(work.provider)).account_nonce >= nonce:
        raise JournalError(
            f"the outcome of task request {nonce} is lost: {work.provider} doesn't list it, and settled a later task",
            hint="Compare list_task() with the sub-account's deliverables; submit a new job if its task isn't there",
        )
    yield TaskCreated(
        task_id=await tuning.create_task(
            work.provider,
            work.spec.model,
            _known(work.state.dataset_hash),
            str(work.spec.training_params),
            policy=work.spec.when_busy,
            request_nonce=nonce,
        )
    )


async def _lost_task(work: Work) -> Task | None:
    """After the journal lost rows: find the task that this job created and forgot.

    The rule: a task of this wallet at this provider, for the same model, dataset and parameters, created after the job
    was submitted (at any time, if the submission itself may be a repeated one). More than one is not ours to guess.
    """
    model = await work.broker.fine_tuning.resolve_model(work.provider, work.spec.model)
    tasks = await work.broker.fine_tuning.list_task(work.provider)
    known = (model.hash.lower(), work.state.dataset_hash, json.loads(str(work.spec.training_params)))
    same = [
        task
        for task in tasks
        if (task.model_hash.lower(), task.dataset_hash.lower(), _json_or_none(task.training_params)) == known
        and task.progress not in (TaskProgress.FAILED, TaskProgress.CANCELLED)
        and (work.state.resubmitted or task.created_at >= _known(work.state.submitted_at) - CLOCK_SKEW)
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


async def train(work: Work) -> AsyncGenerator[Event, None]:
    """Follow the task until its deliverable is on chain."""
    tuning = work.broker.fine_tuning
    cursor, deadline, root = None, None, None
    async with tuning.watch_task(work.provider, work.task_id) as changes:
        async for change in changes:
            cursor = change.cursor
            if not isinstance(change, TaskStateChanged):
                continue
            deadline, root, fee = change.ack_deadline, change.model_root_hash, change.task.fee if change.task else 0
            if change.state is not work.state.progress or fee > work.state.fee:
                yield TaskProgressed(progress=change.state, fee=fee, source=change.source)
            if change.state in _OVER or (change.state in _DELIVERED and root is not None):
                break
            if change.task is not None:
                await _check_fee(work, change.task)
    if root is None:  # "Failed" is a claim until the chain has been asked
        try:
            root = (await tuning.get_deliverable(work.provider, work.task_id)).model_root_hash
        except DeliverableNotFoundError:
            raise await _task_failed(work) from None
    yield TaskDelivered(root_hash=hex0x(root), ack_deadline=deadline, cursor=cursor)


async def _check_fee(work: Work, task: Task) -> None:
    """Cancel a task that turns out dearer than the cap, while the provider still does that."""
    cap = work.spec.max_spend
    if cap is None or task.fee <= int(cap) or not task.is_cancellable:
        return
    outcome = await work.broker.fine_tuning.cancel_task(work.provider, task.id)
    if outcome.result is CancelResult.CANCELLED:
        raise LimitError(
            f"task {task.id} would cost {format_amount(task.fee)}, the cap is {format_amount(int(cap))}: cancelled",
            hint="Nothing was charged; raise max_spend to train it",
        )


async def _task_failed(work: Work) -> TaskFailedError:
    try:
        log = await work.broker.fine_tuning.get_log(work.provider, work.task_id, tail=60)
    except ZgError:
        log = ""
    reason = failure_reason(log)
    hint = "The end of the task's log holds the reason"
    if reason and "insufficient account balance" in reason:
        hint = "The sub-account held less than the fee; submit a new job with a higher budget"
    return TaskFailedError(
        f"task {work.task_id} at {work.provider} failed" + (f": {printable(reason)}" if reason else ""),
        task_id=work.task_id,
        log=log,
        hint=hint,
    )


# ---- the result


async def download_model(work: Work) -> AsyncGenerator[Event, None]:
    """Fetch the encrypted model; it is there only if it equals the hash on chain."""
    yield await _download(work)


async def _download(work: Work) -> ModelDownloaded:
    await anyio.Path(work.folder).mkdir(parents=True, exist_ok=True)
    model = await work.broker.fine_tuning.download_model(work.provider, work.task_id, work.folder / "model.encrypted")
    return ModelDownloaded(
        path=model.path, size=model.size, root_hash=model.root_hash, matched=model.matched, source=model.source
    )


async def acknowledge_deliverable(work: Work) -> AsyncGenerator[Event, None]:
    """Acknowledge what was downloaded; the file is compared with the chain's hash once more."""
    keys = work.keys("acknowledge_deliverable")
    if not await work.sent(*keys):
        await _check_terms(work)
    model = _known(work.state.model)
    if not await anyio.Path(model.path).exists():
        model = await _download(work)
        yield model
    await work.broker.fine_tuning.acknowledge_deliverable(
        work.provider,
        work.task_id,
        verified=DownloadedModel(
            path=model.path, size=model.size, root_hash=model.root_hash, matched=model.matched, source=model.source
        ),
        key=keys[-1],
    )
    yield DeliverableAcknowledged(transactions=await work.sent(*keys))


async def decrypt_model(work: Work) -> AsyncGenerator[Event, None]:
    """Wait until the provider has settled, open the model, and put the adapter in place with one rename."""
    fee = await _wait_settled(work)
    target = work.spec.adapter_dir
    if (files := await anyio.to_thread.run_sync(_files_of, target, work.state.job_id)) is None:
        model = _known(work.state.model)
        if not await anyio.Path(model.path).exists():
            model = await _download(work)
            yield model
        files = await _unpack(work, model.path)
    yield ModelDecrypted(path=str(target), files=files, fee=work.state.fee if fee is None else fee)


async def _wait_settled(work: Work) -> int | None:
    """Wait for the settlement and return what it took; None when its event can't be seen any more."""
    tuning, fee = work.broker.fine_tuning, None
    with anyio.move_on_after(KEY_WAIT_SECONDS):
        cursor = _known(work.state.delivered).cursor
        async with tuning.watch_task(work.provider, work.task_id, cursor=cursor) as changes:
            async for change in changes:
                if isinstance(change, TaskSettled):
                    fee = change.fee
                    break
        await tuning.wait_key(work.provider, work.task_id)
        return fee
    raise KeyNotReleasedError(
        f"{work.provider} has not settled task {work.task_id} for {KEY_WAIT_SECONDS / 3600:g} hours",
        hint="The acknowledgement is on chain, so the key can still come: ask the provider, then resume the job",
    )


async def _unpack(work: Work, encrypted: str) -> tuple[str, ...]:
    tuning, folder = work.broker.fine_tuning, work.folder
    archive, unpacked = folder / "model.zip", folder / "adapter"
    await anyio.to_thread.run_sync(lambda: shutil.rmtree(unpacked, ignore_errors=True))
    await tuning.decrypt_model(
        work.provider, work.task_id, encrypted, archive, expected_signer=_known(work.state.terms).signer
    )
    await tuning.unpack_model(archive, unpacked)
    return await anyio.to_thread.run_sync(_put_in_place, unpacked, work.spec.adapter_dir, _manifest(work))


def _manifest(work: Work) -> dict[str, object]:
    state = work.state
    return {
        "job_id": state.job_id,
        "task_id": state.task_id,
        "provider": state.provider,
        "wallet": state.wallet,
        "model": work.spec.model,
        "dataset_hash": state.dataset_hash,
        "model_root_hash": _known(state.delivered).root_hash,
    }


def _put_in_place(unpacked: Path, target: Path, manifest: dict[str, object]) -> tuple[str, ...]:
    """Add the manifest and rename, so that the adapter is whole or absent, and known as this job's."""
    with (unpacked / MANIFEST).open("w", encoding="utf-8") as file:
        json.dump(manifest, file, indent=2)
        file.flush()
        os.fsync(file.fileno())
    try:
        unpacked.rename(target)
    except OSError as error:
        hint = "Move what is there, then resume the job"
        raise ConfigError(f"can't put the adapter at {target}: {error}", hint=hint) from error
    return _known(_files_of(target, str(manifest["job_id"])))


def _files_of(folder: Path, job_id: str) -> tuple[str, ...] | None:
    """Return the adapter's files if this job put it there."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(manifest, dict) or manifest.get("job_id") != job_id:
        return None
    names = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return tuple(sorted(name for name in names if name != MANIFEST))


async def deploy_adapter(work: Work) -> AsyncGenerator[Event, None]:
    """Have the adapter served for chatting."""
    deployed = await work.broker.inference.lora.deploy_adapter(
        work.inference_provider, work.spec.model, work.task_id, wait=True, timeout_seconds=DEPLOY_SECONDS
    )
    yield AdapterDeployed(adapter_name=deployed.adapter_name, state=deployed.state.value)


async def clean_up(work: Work) -> None:
    """Remove the job's intermediate files."""
    await anyio.to_thread.run_sync(lambda: shutil.rmtree(work.folder, ignore_errors=True))


# ---- cancel


async def cancel(work: Work) -> AsyncGenerator[Event, None]:
    """Stop the job: by itself before there is a task, by asking the provider afterwards."""
    state = work.state
    if state.request_nonce is None:
        yield JobCancelled(reason="before a task was created")
        return
    tuning = work.broker.fine_tuning
    if state.task_id is None:
        task = await tuning.find_task_by_nonce(work.provider, state.request_nonce)
        if task is None:
            yield JobCancelled(reason="before a task was created")
            return
        yield TaskCreated(task_id=task.id)
    if state.delivered is not None:
        yield CancelRefused(reason="the task is delivered")
        return
    outcome = await tuning.cancel_task(work.provider, work.task_id)
    if outcome.result is CancelResult.CANCELLED:
        yield JobCancelled(reason=outcome.message)
    else:
        yield CancelRefused(reason=outcome.message)


def _is_funded(state: JobState) -> bool:
    needed = {"fine-tuning", "inference"} if state.spec and state.spec.deploy else {"fine-tuning"}
    return needed <= state.funded


STAGES: Final = (
    Stage(name="choose_provider", run=choose_provider, is_done=lambda s: s.terms is not None, needs_turn=False),
    Stage(name="fund", run=fund, is_done=_is_funded, can_interrupt=False),
    Stage(
        name="acknowledge_provider",
        run=acknowledge_provider,
        is_done=lambda s: s.signer_acknowledged,
        can_interrupt=False,
    ),
    Stage(name="upload_dataset", run=upload_dataset, is_done=lambda s: s.dataset_hash is not None),
    Stage(name="create_task", run=create_task, is_done=lambda s: s.task_id is not None, can_interrupt=False),
    Stage(name="train", run=train, is_done=lambda s: s.delivered is not None),
    Stage(name="download_model", run=download_model, is_done=lambda s: s.model is not None),
    Stage(
        name="acknowledge_deliverable",
        run=acknowledge_deliverable,
        is_done=lambda s: s.deliverable_acknowledged,
        can_interrupt=False,
    ),
    Stage(name="decrypt_model", run=decrypt_model, is_done=lambda s: s.decrypted is not None),
    Stage(
        name="deploy_adapter",
        run=deploy_adapter,
        is_done=lambda s: s.deployed is not None or s.spec is None or not s.spec.deploy,
        needs_turn=False,
    ),
)
CANCEL: Final = Stage(
    name="cancel", run=cancel, is_done=lambda s: not s.cancel_requested, needs_turn=False, can_interrupt=False
)


def next_stage(state: JobState) -> Stage | None:
    """Return the first stage whose closing fact is missing; None: all is done."""
    if state.cancel_requested:
        return CANCEL
    return next((stage for stage in STAGES if not stage.is_done(state)), None)
