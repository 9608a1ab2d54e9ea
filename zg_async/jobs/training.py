"""The stages of the task itself: create it once, follow it until it is delivered, cancel it."""

from collections.abc import AsyncGenerator
from typing import Final

from zg_async.errors import (
    DeliverableNotFoundError,
    JournalError,
    LimitError,
    PreviousDeliverableNotAcknowledgedError,
    ProviderUnavailableError,
    ServiceNotFoundError,
    TaskFailedError,
    UnfinishedTaskError,
    ZgError,
)
from zg_async.jobs.events import (
    CancelRefused,
    Event,
    JobCancelled,
    JobWarned,
    TaskCreated,
    TaskDelivered,
    TaskProgressed,
    TaskRequested,
    TaskWaiting,
)
from zg_async.jobs.preparing import estimate_cost, needed
from zg_async.jobs.state import JobState
from zg_async.jobs.work import Work, be_alone, check_terms, known, lost_task
from zg_async.managers.task_changes import TaskQueueMoved, TaskStateChanged, TaskStuck
from zg_async.text import printable
from zg_async.units import format_amount
from zg_async.wire.hashing import hex0x
from zg_async.wire.provider_api import failure_reason
from zg_async.wire.records import (
    CANCELLABLE,
    CancelResult,
    FineTuningAccountDetails,
    Task,
    TaskId,
    TaskProgress,
)

_GONE_SECONDS: Final = 120.0
"""How long a provider has to be unregistered before its task is given up."""
_KEPT_DELIVERIES: Final = 20
"""The contract keeps a sub-account's newest ones."""
_OVER: Final = frozenset({TaskProgress.FAILED, TaskProgress.CANCELLED})
_DELIVERED: Final = frozenset({TaskProgress.DELIVERED, TaskProgress.USER_ACKNOWLEDGED, TaskProgress.FINISHED})


async def create_task(work: Work) -> AsyncGenerator[Event, None]:
    """Create the task once: by the journaled request nonce it is found again, whatever happened to the answer."""
    tuning, nonce = work.broker.fine_tuning, work.state.request_nonce
    if nonce is not None and (task := await _requested(work, nonce)):
        yield TaskCreated(task_id=task.id)
        return
    if nonce is None and work.state.suspect and (task := await lost_task(work, work.provider)):
        yield TaskRequested(request_nonce=task.request_nonce)
        yield TaskCreated(task_id=task.id)
        return
    await check_terms(work)
    account = None if nonce is None else await tuning.get_account(work.provider)
    is_void = account is not None and nonce is not None and account.account_nonce >= nonce
    if nonce is None or (is_void and (was_refused(work.state) or await _was_never_made(work, account))):
        cost = await estimate_cost(work) if work.state.estimate is None else work.state.estimate
        await charge(work, needed(work.spec, cost))
        nonce = await tuning.next_request_nonce(work.provider)
        yield TaskRequested(request_nonce=nonce)
    elif is_void:
        raise JournalError(
            f"the outcome of task request {nonce} is lost: {work.provider} doesn't list it, and settled a later task",
            hint="Compare list_task() with the sub-account's deliverables; submit a new job if its task isn't there",
        )
    try:
        task_id = await tuning.create_task(
            work.provider,
            work.spec.model,
            known(work.state.dataset_hash),
            str(work.spec.training_params),
            policy=work.spec.when_busy,
            request_nonce=nonce,
        )
    except PreviousDeliverableNotAcknowledgedError as error:
        raise await _lying(work, error) from error
    yield TaskCreated(task_id=task_id)


async def _requested(work: Work, nonce: int) -> Task | None:
    """Find the task that was asked for with a number; another program may have taken the same one for another."""
    return await work.broker.fine_tuning.find_task_by_nonce(
        work.provider, nonce, work.state.dataset_hash, str(work.spec.training_params)
    )


async def _was_never_made(work: Work, account: FineTuningAccountDetails | None) -> bool:
    """Say whether every delivery since this job began is of a task the provider lists: then none is missing there.

    A request whose number is void can't be settled any more, so it has cost nothing and never will.
    """
    began = work.state.submitted_at
    deliveries = [] if account is None else list(account.deliverables)
    reaches_back = len(deliveries) < _KEPT_DELIVERIES or (began is not None and deliveries[0].timestamp < began)
    listed = {task.id for task in await work.broker.fine_tuning.list_task(work.provider)}
    return reaches_back and all(delivery.id in listed for delivery in deliveries)


def was_refused(state: JobState) -> bool:
    """Say whether the provider turned the last request down because of another task: it made none then."""
    return state.task_id is None and state.retry is not None and state.retry.code == UnfinishedTaskError.code


async def _lying(work: Work, error: PreviousDeliverableNotAcknowledgedError) -> ZgError:
    """A delivery that can still be acknowledged is only in the way until the guardian has brought it to its end."""
    task_id = TaskId(str(error.arguments[0])) if error.arguments else None
    if task_id is None or (await work.broker.fine_tuning.get_deliverable(work.provider, task_id)).settled:
        return error
    return UnfinishedTaskError(error.message, task_id=task_id, provider=work.provider, hint=error.hint)


async def charge(work: Work, fee: int, *, settled: bool = False) -> None:
    """Count the task's fee where all money is counted: the most it can be, then what it is; for each provider apart."""
    await work.broker.chain.charge(work.keys("fee")[0], fee, wallet=work.wallet, settled=settled)


async def train(work: Work) -> AsyncGenerator[Event, None]:
    """Follow the task until its deliverable is on chain."""
    await be_alone(work)
    tuning = work.broker.fine_tuning
    cursor, deadline, root, is_gone = None, None, None, False
    try:
        async with tuning.watch_task(work.provider, work.task_id) as changes:
            async for change in changes:
                cursor = change.cursor
                if isinstance(change, TaskQueueMoved):
                    yield TaskWaiting(ahead=change.ahead)
                if isinstance(change, TaskStuck):
                    yield _stuck(change)
                if not isinstance(change, TaskStateChanged):
                    continue
                deadline, root, fee = change.ack_deadline, change.model_root_hash, change.task.fee if change.task else 0
                if change.state is not work.state.progress or fee > work.state.fee:
                    yield TaskProgressed(progress=change.state, fee=fee, source=change.source)
                if change.state in _OVER or (change.state in _DELIVERED and root is not None):
                    break
                if change.task is not None and (warning := await _check_fee(work, change.task)):
                    yield warning
    except ServiceNotFoundError:
        await _require_gone(work)
        is_gone = True
    if root is None:  # "Failed" is a claim until the chain has been asked
        try:
            root = (await tuning.get_deliverable(work.provider, work.task_id)).model_root_hash
        except DeliverableNotFoundError:
            if is_gone:
                raise _vanished(work) from None
            await charge(work, 0, settled=True)
            raise await _task_failed(work) from None
    terms = await tuning.get_delivery_terms()
    yield TaskDelivered(
        root_hash=hex0x(root),
        ack_deadline=deadline,
        cursor=cursor,
        window=terms.window,
        penalty_percentage=terms.penalty_percentage,
    )


async def _require_gone(work: Work) -> None:
    """See that the provider stays unregistered: one node that is behind doesn't show a service that is there.

    Raises:
        ProviderUnavailableError: It is registered.
    """
    await work.broker.clock.sleep(_GONE_SECONDS)
    try:
        await work.broker.fine_tuning.get_service(work.provider)
    except ServiceNotFoundError:
        return
    raise ProviderUnavailableError(f"{work.provider} was not registered for a while", provider=work.provider)


def _vanished(work: Work) -> ServiceNotFoundError:
    """The task is lost, and the contract settles nothing for a provider that isn't registered.

    Should it come back it might: so its fee stays reserved, and what is tried elsewhere has to fit beside it.
    """
    return ServiceNotFoundError(
        f"{work.provider} isn't registered any more, and delivered nothing of task {work.task_id}",
        hint="Submit the job again for another provider; the money there comes back with `zg retrieve-fund`",
    )


def _stuck(change: TaskStuck) -> JobWarned:
    words = printable(change.reason or change.log_line, limit=500) or "nothing"
    hint = "The provider's operator has to look; it can't be cancelled any more"
    if change.state in CANCELLABLE:
        hint = "Cancel the job to try another provider; max_queue_seconds does so by itself"
    return JobWarned(
        code="stuck",
        message=f"task {change.task_id} is {change.state.value} for {change.seconds:.0f} s; its log ends with: {words}",
        hint=hint,
    )


async def _check_fee(work: Work, task: Task) -> JobWarned | None:
    """Cancel a task that turns out dearer than the cap, while the provider still does that; else say so."""
    if not task.fee:
        return None
    cap, gas = work.spec.max_spend, sum(paid.gas for paid in work.state.paid)
    try:
        await charge(work, task.fee)
        if cap is None or task.fee + gas <= int(cap):
            return None
        why = f"with gas {format_amount(task.fee + gas)}; the cap is {format_amount(int(cap))}"
    except LimitError as error:
        why = error.message
    what, refused = f"task {task.id} would cost {format_amount(task.fee)}, {why}", f"it is {task.progress.value}"
    if task.is_cancellable:
        outcome = await work.broker.fine_tuning.cancel_task(work.provider, task.id)
        if outcome.result is CancelResult.CANCELLED:
            await charge(work, 0, settled=True)
            raise LimitError(f"{what}: cancelled", hint="Nothing was charged; raise max_spend to train it")
        refused = outcome.message
    await charge(work, task.fee, settled=True)  # it will be taken: the books say so, whatever the cap is
    message = f"{what}: too late to cancel it ({printable(refused)})"
    hint = "It goes on to its end, so that what is paid for isn't lost; what follows in its batch has less left"
    return None if "fee_cap" in work.state.warned else JobWarned(code="fee_cap", message=message, hint=hint)


_NEXT_STEPS: Final = (
    ("insufficient account balance", "The sub-account held less than the fee; submit a new job with a higher budget"),
    ("signature", "The provider read another signature than was sent; submit the job again, then try another provider"),
    ("invalid nonce", "A later task of this wallet was settled meanwhile; submit the job again"),
    ("insufficient provider balance", "The provider's own wallet is empty: take another, or tell its operator"),
    ("previous deliverable", "An older delivery there isn't acknowledged; `JobRunner.doctor` names the way out"),
    ("download failed", "The provider couldn't fetch the dataset; submit the job with the file instead of its hash"),
    ("signer", "The provider's TEE signer isn't acknowledged; `JobRunner.doctor` names who has to do it"),
)
"""What to do about a reason that providers write into a failed task's log."""


async def _task_failed(work: Work) -> TaskFailedError:
    try:
        log = await work.broker.fine_tuning.get_log(work.provider, work.task_id, tail=60)
    except ZgError:
        log = ""
    reason = failure_reason(log)
    hint = next((step for words, step in _NEXT_STEPS if words in reason), "The end of the task's log holds the reason")
    return TaskFailedError(
        f"task {work.task_id} at {work.provider} failed" + (f": {printable(reason)}" if reason else ""),
        task_id=work.task_id,
        log=log,
        hint=hint,
    )


async def cancel(work: Work) -> AsyncGenerator[Event, None]:
    """Stop the job: by itself before there is a task, by asking the provider afterwards."""
    state = work.state
    why = f"{state.cancel_reason}; " if state.cancel_reason else ""
    if state.request_nonce is None:
        yield JobCancelled(reason=f"{why}before a task was created")
        return
    tuning = work.broker.fine_tuning
    if state.task_id is None:
        task = await _requested(work, state.request_nonce)
        if task is None:
            await charge(work, 0, settled=True)
            yield JobCancelled(reason=f"{why}before a task was created")
            return
        yield TaskCreated(task_id=task.id)
    if state.delivered is not None:
        yield CancelRefused(reason="the task is delivered")
        return
    outcome = await tuning.cancel_task(work.provider, work.task_id)
    if outcome.result is CancelResult.CANCELLED:
        await charge(work, 0, settled=True)
        yield JobCancelled(reason=f"{why}{outcome.message}")
    else:
        yield CancelRefused(reason=outcome.message)
