"""The stages of a fine-tuning job, in order.

A stage is an async generator of events. The runner makes each event durable before the stage goes on, so `yield` means
commit. An effect that mustn't be doubled is preceded by something by which its outcome can be looked up: a transaction
has its key in the outbox, a task its request nonce in the journal; all else may be done twice without harm. So every
stage can be entered again at any time, and none remembers anything.
"""

from typing import Final

from zg_async.jobs.delivering import (
    acknowledge_deliverable,
    decrypt_model,
    deploy_adapter,
    download_model,
    return_rest,
)
from zg_async.jobs.preparing import acknowledge_provider, choose_provider, estimate, fund, upload_dataset
from zg_async.jobs.state import JobState
from zg_async.jobs.training import cancel, create_task, train
from zg_async.jobs.work import Stage


def _is_funded(state: JobState) -> bool:
    needed = {"fine-tuning", "inference"} if state.spec and state.spec.deploy else {"fine-tuning"}
    return needed <= state.funded


STAGES: Final = (
    Stage(
        name="choose_provider",
        run=choose_provider,
        is_done=lambda s: s.terms is not None,
        needs_turn=False,
        keeps_turn=True,
    ),
    Stage(
        name="estimate",
        run=estimate,
        is_done=lambda s: s.estimate is not None or bool(s.funded) or s.task_id is not None,
        needs_turn=False,
        keeps_turn=True,
    ),
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
    Stage(name="download_model", run=download_model, is_done=lambda s: s.model is not None or s.unverified),
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
    Stage(
        name="return_rest",
        run=return_rest,
        is_done=lambda s: s.rest_asked_back or s.spec is None or not s.spec.return_rest,
        can_interrupt=False,
    ),
)
CANCEL: Final = Stage(
    name="cancel",
    run=cancel,
    is_done=lambda s: not s.cancel_requested,
    needs_turn=False,
    keeps_turn=True,
    can_interrupt=False,
)


def next_stage(state: JobState) -> Stage | None:
    """Return the first stage whose closing fact is missing; None: all is done."""
    if state.cancel_requested:
        return CANCEL
    return next((stage for stage in STAGES if not stage.is_done(state)), None)
