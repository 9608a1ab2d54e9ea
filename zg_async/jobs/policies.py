"""How patient a job is with each of its stages, and who may say no before it pays, acknowledges or deploys."""

import dataclasses
import inspect
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

from zg_async.errors import ConfigError
from zg_async.wire.records import JobId

if TYPE_CHECKING:
    from zg_async.jobs.state import JobState

MAX_ATTEMPTS: Final = 12
"""Of one stage in a row, without anything good between; the waits add up to about half an hour."""
STAGE_NAMES: Final = (
    "choose_provider",
    "estimate",
    "fund",
    "acknowledge_provider",
    "upload_dataset",
    "create_task",
    "train",
    "download_model",
    "acknowledge_deliverable",
    "decrypt_model",
    "deploy_adapter",
    "return_rest",
)
APPROVED: Final = frozenset({"fund", "acknowledge_deliverable", "deploy_adapter"})
"""Stages that an approval hook is asked about."""
_ON_FAILURE: Final = ("other_provider", "fail")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class StagePolicy:
    """How one stage is tried."""

    timeout: float | None = None
    """Seconds for one attempt; None: as long as it takes. What was sent by then isn't lost: the next attempt finds
    it."""
    attempts: int = MAX_ATTEMPTS
    """Tries in a row. By default a task is followed as long as it lives, and its model is fetched and acknowledged
    until the window closes; a number given in a specification bounds that too, and then the guardian takes a delivery
    up again before it is lost."""
    on_failure: str = "other_provider"
    """`other_provider`, where that can help and is allowed, or `fail`."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Approval:
    """What an approval hook is asked about."""

    job_id: JobId
    stage: str
    """`fund`, `acknowledge_deliverable` or `deploy_adapter`."""
    state: "JobState"
    """All that is known of the job; its `estimate` says what it will cost."""


Approve = Callable[[Approval], bool | Awaitable[bool]]


def policy_of(stages: Mapping[str, Mapping[str, Any]], name: str) -> StagePolicy:
    """Return a stage's policy as the specification has it."""
    return StagePolicy(**stages.get(name, {}))


def check_policies(stages: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Check a specification's policies and return them as plain JSON.

    Raises:
        ConfigError: An unknown stage or field, or a value that makes no sense.
    """
    if unknown := [name for name in stages if name not in STAGE_NAMES]:
        raise ConfigError(f"unknown stages {unknown}", hint=f"They are {', '.join(STAGE_NAMES)}")
    for name, fields in stages.items():
        try:
            policy = StagePolicy(**fields)
        except TypeError:
            raise ConfigError(
                f"{name} has timeout, attempts and on_failure, not {', '.join(map(str, fields))}"
            ) from None
        if policy.timeout is not None and not 0 < policy.timeout < float("inf"):
            raise ConfigError(f"the timeout of {name} has to be a positive number of seconds")
        if type(policy.attempts) is not int or policy.attempts < 1:
            raise ConfigError(f"the attempts of {name} have to be 1 or more")
        if policy.on_failure not in _ON_FAILURE:
            raise ConfigError(f"on_failure of {name} is {' or '.join(_ON_FAILURE)}")
    return {name: dict(fields) for name, fields in stages.items()}


async def is_approved(approve: Approve | None, request: Approval) -> bool:
    """Ask the hook, if there is one and the stage is one of those it is asked about."""
    if approve is None or request.stage not in APPROVED:
        return True
    answer = approve(request)
    return (await answer if inspect.isawaitable(answer) else answer) is True
