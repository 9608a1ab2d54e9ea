"""How long a job may wait and train before it is stopped. Pure."""

import dataclasses
import datetime as dt
from collections.abc import Iterator

from zg_async.jobs.state import JobState


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TimeLimit:
    """One limit of a specification that is running."""

    name: str
    """Its field in the specification."""
    at: dt.datetime
    """When it is reached."""
    reason: str


def next_limit(state: JobState) -> TimeLimit | None:
    """Return the limit that a job reaches next; None: none is running.

    A limit that was reached stops the job once. If that was refused, it does so again should the provider put the task
    back into a state in which it can be cancelled.
    """
    if state.status.is_terminal or state.cancel_requested or state.delivered is not None:
        return None
    running = [limit for limit in _running(state) if limit.name not in state.limits_tried]
    return min(running, key=lambda limit: limit.at, default=None)


def _running(state: JobState) -> Iterator[TimeLimit]:
    spec = state.spec
    if spec is None:
        return
    if spec.max_queue_seconds is not None and state.queued_at is not None and state.training_at is None:
        yield TimeLimit(
            name="max_queue_seconds",
            at=state.queued_at + dt.timedelta(seconds=spec.max_queue_seconds),
            reason=f"it waited {spec.max_queue_seconds:g} s without training",
        )
    if spec.max_run_seconds is not None and state.training_at is not None:
        yield TimeLimit(
            name="max_run_seconds",
            at=state.training_at + dt.timedelta(seconds=spec.max_run_seconds),
            reason=f"it trained {spec.max_run_seconds:g} s without a delivery",
        )
