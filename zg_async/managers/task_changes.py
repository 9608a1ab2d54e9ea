"""What a watch reports, and how two witnesses become one story.

The provider's answers say how far a task is; the chain says what was delivered, acknowledged and paid. Where both can
speak, the chain is believed: a provider that was restarted calls a delivered task failed, and a provider's "Delivered"
is only a claim until the deliverable is on chain. `TaskStory` is that merge, pure: facts in, changes out.
"""

import dataclasses
import datetime as dt
import json
import types
from collections.abc import Mapping
from typing import Any, Final, Literal, Self

from zg_async.wire.contracts import (
    DeliverableAbandoned,
    DeliverableAcknowledged,
    DeliverableAdded,
    FeesSettled,
)
from zg_async.wire.provider_api import ack_window
from zg_async.wire.records import TERMINAL, Address, Deliverable, Task, TaskId, TaskProgress
from zg_async.wire.strict_json import BadJsonError, decode_json
from zg_async.wire.task_log import Metric, TrainSummary, failure_reason

Source = Literal["provider", "chain", "clock"]
ChainFact = DeliverableAdded | DeliverableAcknowledged | FeesSettled | DeliverableAbandoned

MARKS: Final = (50, 80, 95)
"""Per cent of the acknowledgement window at which a change reminds of it."""

STUCK_SECONDS: Final[Mapping[TaskProgress, float]] = types.MappingProxyType(
    {
        TaskProgress.INIT: 2 * 3600.0,
        TaskProgress.SETTING_UP: 1800.0,
        TaskProgress.SET_UP: 2 * 3600.0,
        TaskProgress.TRAINING: 6 * 3600.0,
        TaskProgress.TRAINED: 1800.0,
        TaskProgress.DELIVERING: 3600.0,
        TaskProgress.USER_ACKNOWLEDGED: 1800.0,
    }
)
"""How long a task may be where it is before that is told. Providers give setup and delivery an hour per attempt, and
look at each task once a minute."""
QUEUED: Final = frozenset({TaskProgress.INIT, TaskProgress.SETTING_UP, TaskProgress.SET_UP})
_ORDER: Final = {state: number for number, state in enumerate(TaskProgress)}
_NEWER: Final = ("ahead", "stuck")
"""Fields that cursors of older releases lack."""
_AFTER_DELIVERY: Final = frozenset(
    {TaskProgress.DELIVERED, TaskProgress.USER_ACKNOWLEDGED, TaskProgress.FINISHED, TaskProgress.FAILED}
)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Change:
    id: str
    """Stable: the same fact has the same id in every watch."""
    at: dt.datetime
    """When the source says it happened; for the clock's changes, now."""
    source: Source
    provider: Address
    task_id: TaskId
    cursor: str
    """Pass it to `watch_task(cursor=...)` to go on after this change."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TaskStateChanged(_Change):
    """The task is in another state."""

    state: TaskProgress
    previous: TaskProgress | None
    """None: the first thing this watch saw."""
    state_text: str
    """The provider's own word, kept for states this release doesn't know."""
    task: Task | None
    """The provider's record, where it has been seen."""
    model_root_hash: bytes | None = None
    """From delivery on: the hash on chain."""
    ack_deadline: dt.datetime | None = None
    """From delivery on: acknowledge before this, or pay the penalty and lose the key."""
    kind: Literal["task_state_changed"] = "task_state_changed"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TaskSettled(_Change):
    """The provider was paid."""

    fee: int
    """Neuron taken from the sub-account."""
    acknowledged: bool
    """False: the window was missed; this is the penalty, and no key will come."""
    kind: Literal["task_settled"] = "task_settled"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TaskLogAppended(_Change):
    """New text in the task's log."""

    text: str
    offset: int
    """Bytes of the log before this text."""
    kind: Literal["task_log_appended"] = "task_log_appended"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TaskMetric(_Change):
    """The training logged figures."""

    metric: Metric | None
    """Of a step; None: these are the closing ones."""
    summary: TrainSummary | None
    steps_per_second: float | None
    """The speed so far; None: not known."""
    eta: float | None
    """Seconds until the training ends, at that speed; None: not known."""
    kind: Literal["task_metric"] = "task_metric"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TaskQueueMoved(_Change):
    """Why the task waits: tasks of all users are ahead of it."""

    ahead: int
    """At most so many."""
    previous: int | None
    """None: the first that this watch knows."""
    kind: Literal["task_queue_moved"] = "task_queue_moved"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TaskStuck(_Change):
    """The task hasn't got any further for longer than it should take."""

    state: TaskProgress
    """The furthest it got."""
    seconds: float
    """For how long."""
    log_line: str
    """The last line of its log; empty: it can't be read."""
    reason: str
    """Why the provider's last attempt failed, by its log; empty: it doesn't say."""
    kind: Literal["task_stuck"] = "task_stuck"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class AckDeadlineNear(_Change):
    """Part of the acknowledgement window is over and the delivery isn't acknowledged."""

    percent: int
    ack_deadline: dt.datetime
    cost: str
    """What missing it costs."""
    kind: Literal["ack_deadline_near"] = "ack_deadline_near"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DeliveredProviderLostState(_Change):
    """The provider calls the task failed, but its delivery stands on chain and can still be acknowledged."""

    state_text: str
    acknowledged: bool
    settled: bool
    kind: Literal["delivered_provider_lost_state"] = "delivered_provider_lost_state"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class WatchResynced(_Change):
    """The cursor can't be continued from (its block is gone): this is the whole state now."""

    task: Task | None
    deliverable: Deliverable | None
    kind: Literal["watch_resynced"] = "watch_resynced"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class WatchWarning(_Change):
    """Something hinders the watch; it goes on."""

    message: str
    kind: Literal["watch_warning"] = "watch_warning"


TaskChange = (
    TaskStateChanged
    | TaskSettled
    | TaskLogAppended
    | TaskMetric
    | TaskQueueMoved
    | TaskStuck
    | AckDeadlineNear
    | DeliveredProviderLostState
    | WatchResynced
    | WatchWarning
)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class WatchCursor:
    """Where a watch stands: a block, and what has been told."""

    block_number: int
    block_hash: str
    log_index: int = -1
    """The last log told of the block after `block_number`; -1: none."""
    state: str | None = None
    state_text: str = ""
    marks: int = 0
    """The highest per cent mark told."""
    lost: bool = False
    ahead: int | None = None
    """The last queue position told."""
    stuck: str | None = None
    """The state that was last told to last too long."""

    def encode(self) -> str:
        """Write it as text."""
        return json.dumps(dataclasses.asdict(self), separators=(",", ":"))

    @classmethod
    def decode(cls, text: str) -> Self | None:
        """Read it back; None when it can't be read, which is treated as an expired cursor."""
        try:
            value = decode_json(text, limit=4096)
            fields = {f.name: value[f.name] for f in dataclasses.fields(cls) if f.name not in _NEWER}
            cursor = cls(**fields, **{name: value.get(name) for name in _NEWER})
        except (BadJsonError, KeyError, TypeError, AttributeError):
            return None
        kinds = (int, str, int, str | None, str, int, bool, int | None, str | None)
        values = dataclasses.astuple(cursor)
        return cursor if all(isinstance(v, k) for v, k in zip(values, kinds, strict=True)) else None


class TaskStory:
    """Merges what provider, chain and clock say about one task into changes, each told once."""

    def __init__(self, provider: Address, task_id: TaskId, *, lock_time: int, penalty_percentage: int) -> None:
        """Begin with nothing known.

        Args:
            provider: Whose task.
            task_id: Which task.
            lock_time: The contract's, in seconds; the acknowledgement window follows from it.
            penalty_percentage: The contract's: what a missed window costs of the fee.
        """
        self.provider = provider
        self.task_id = task_id
        self.window = ack_window(lock_time)
        self.penalty_percentage = penalty_percentage
        self.position: tuple[int, str, int] = (0, "", -1)
        self.state: TaskProgress | None = None
        self.state_text = ""
        self.task: Task | None = None
        self.root: bytes | None = None
        self.delivered_at: dt.datetime | None = None
        self.acknowledged = False
        self.settled = False
        self._marks = 0
        self._lost = False
        self.ahead: int | None = None
        self._furthest: TaskProgress | None = None
        self._since: dt.datetime | None = None
        self._stuck: str | None = None

    # ---- where it stands

    @property
    def cursor(self) -> WatchCursor:
        """Where the story stands."""
        number, block_hash, log_index = self.position
        return WatchCursor(
            block_number=number,
            block_hash=block_hash,
            log_index=log_index,
            state=self.state.value if self.state else None,
            state_text=self.state_text,
            marks=self._marks,
            lost=self._lost,
            ahead=self.ahead,
            stuck=self._stuck,
        )

    def restore(self, cursor: WatchCursor) -> None:
        """Continue from a cursor: what it stands for has been told."""
        self.position = (cursor.block_number, cursor.block_hash, cursor.log_index)
        self.state = TaskProgress(cursor.state) if cursor.state in set(TaskProgress) else None
        self.state_text = cursor.state_text
        self._marks = cursor.marks
        self._lost = cursor.lost
        self.ahead, self._stuck = cursor.ahead, cursor.stuck

    def recall(self, deliverable: Deliverable) -> None:
        """Know a deliverable whose delivery has been told, without telling it again."""
        if self.state in (TaskProgress.DELIVERED, TaskProgress.USER_ACKNOWLEDGED, TaskProgress.FINISHED):
            self.root, self.delivered_at = deliverable.model_root_hash, deliverable.timestamp
            self.acknowledged = self.state is not TaskProgress.DELIVERED
            self.settled = self.state is TaskProgress.FINISHED

    @property
    def over(self) -> bool:
        """Whether nothing more can happen."""
        if self.root is not None:
            return self.settled
        return self.state in TERMINAL

    @property
    def ack_deadline(self) -> dt.datetime | None:
        """Until when the delivery has to be acknowledged; None before delivery."""
        delivered = self.delivered_at
        if self.task is not None and self.task.deliver_time is not None and self.root is not None:
            delivered = self.task.deliver_time  # the provider counts by its own stamp
        return delivered + dt.timedelta(seconds=self.window) if delivered else None

    def wants_chain(self, task: Task) -> bool:
        """Whether the chain has to be asked before this answer is believed: it claims more than the chain has told."""
        if self.over:
            return False
        match task.progress:
            case TaskProgress.DELIVERED | TaskProgress.FAILED:
                return self.root is None
            case TaskProgress.USER_ACKNOWLEDGED:
                return not self.acknowledged
            case TaskProgress.FINISHED:
                return True
            case _:
                return False

    # ---- facts

    def see_task(self, task: Task) -> list[TaskChange]:
        """Take in the provider's answer; call `see_deliverable` first where `wants_chain` says so."""
        self.task = task
        self._see_progress(task.progress, task.updated_at)
        if self.root is not None:
            return self._see_lost(task) if task.progress is TaskProgress.FAILED else []
        if task.progress in _AFTER_DELIVERY and task.progress is not TaskProgress.FAILED:
            return []  # a claim: the deliverable isn't on chain (yet)
        return self._state(task.progress, task.progress_text, "provider", task.updated_at)

    def _see_lost(self, task: Task) -> list[TaskChange]:
        if self._lost or self.settled:
            return []
        self._lost = True
        return [
            DeliveredProviderLostState(
                **self._common("provider", task.updated_at, f"p.lost.{task.id}"),
                state_text=task.progress_text,
                acknowledged=self.acknowledged,
                settled=self.settled,
            )
        ]

    def see_deliverable(self, deliverable: Deliverable) -> list[TaskChange]:
        """Take in the deliverable as read from the chain."""
        self.root = deliverable.model_root_hash
        self.delivered_at = deliverable.timestamp
        self.acknowledged = deliverable.acknowledged
        self.settled = deliverable.settled
        state = TaskProgress.DELIVERED
        if deliverable.settled:
            state = TaskProgress.FINISHED
        elif deliverable.acknowledged:
            state = TaskProgress.USER_ACKNOWLEDGED
        self._see_progress(state, deliverable.timestamp)
        return self._state(state, state.value, "chain", deliverable.timestamp)

    def see_event(self, event: ChainFact) -> list[TaskChange]:
        """Take in an event of the chain; one that was told already changes nothing."""
        log = event.log
        number, _, log_index = self.position
        if log.block_number < number or (log.block_number == number and log.log_index <= log_index):
            return []
        self.position = (log.block_number, log.block_hash, log.log_index)
        match event:
            case DeliverableAdded():
                self.root, self.delivered_at = event.model_root_hash, event.timestamp
                return self._state(TaskProgress.DELIVERED, "Delivered", "chain", event.timestamp)
            case DeliverableAcknowledged():
                self.acknowledged = True
                self._see_progress(TaskProgress.USER_ACKNOWLEDGED, event.timestamp)
                return self._state(TaskProgress.USER_ACKNOWLEDGED, "UserAcknowledged", "chain", event.timestamp)
            case FeesSettled():
                told = self.settled
                self.settled, self.acknowledged = True, event.acknowledged
                if told:
                    return []
                settled = TaskSettled(
                    **self._common("chain", self._now_at(), f"c{log.block_number}.{log.log_index}"),
                    fee=event.fee,
                    acknowledged=event.acknowledged,
                )
                return [settled, *self._state(TaskProgress.FINISHED, "Finished", "chain", self._now_at())]
            case DeliverableAbandoned():
                self.settled = self.acknowledged = True
                return self._state(TaskProgress.FINISHED, "Abandoned", "chain", event.timestamp)

    def rewind(self, number: int, block_hash: str) -> None:
        """Take note that blocks above this one are gone: their events may come again, elsewhere; states stay told."""
        if self.position[0] > number:
            self.position = (number, block_hash, 2**31)

    def see_block(self, number: int, block_hash: str) -> None:
        """Take note that everything up to a block has been seen."""
        if number > self.position[0]:
            self.position = (number, block_hash, 2**31)

    def see_time(self, now: dt.datetime) -> list[TaskChange]:
        """Take in the time: reminders of the acknowledgement window that are due."""
        deadline = self.ack_deadline
        if deadline is None or self.acknowledged or self.settled:
            return []
        due = [m for m in MARKS if m > self._marks and now >= self._mark_time(m, deadline)]
        changes: list[TaskChange] = []
        for mark in due:
            self._marks = mark
            changes.append(
                AckDeadlineNear(
                    **self._common("clock", now, f"t{mark}.{self.task_id}"),
                    percent=mark,
                    ack_deadline=deadline,
                    cost=f"{self.penalty_percentage} % of the fee and the decryption key",
                )
            )
        return changes

    def _see_progress(self, state: TaskProgress, at: dt.datetime) -> None:
        """Take note of since when the task is as far as it is; going back and forth is no progress."""
        if state is TaskProgress.UNKNOWN or (self._furthest is not None and _ORDER[state] <= _ORDER[self._furthest]):
            return
        self._furthest, self._since = state, at

    def stuck_at(self, seconds: Mapping[TaskProgress, float]) -> dt.datetime | None:
        """When the task will have been where it is for too long; None: it may stay, or it was told."""
        if self._furthest is None or self._since is None or self.over or self._stuck == self._furthest.value:
            return None
        limit = seconds.get(self._furthest)
        return None if limit is None else self._since + dt.timedelta(seconds=limit)

    def see_stuck(self, now: dt.datetime, log: str) -> list[TaskChange]:
        """Tell that the task gets no further, with the end of its log."""
        if self._furthest is None or self._since is None:
            return []
        self._stuck = self._furthest.value
        lines = [line for line in log.splitlines() if line.strip()]
        return [
            TaskStuck(
                **self._common("clock", now, f"s{self._furthest.value}.{self.task_id}"),
                state=self._furthest,
                seconds=(now - self._since).total_seconds(),
                log_line=lines[-1] if lines else "",
                reason=failure_reason(log),
            )
        ]

    def see_pending(self, now: dt.datetime, pending: int) -> list[TaskChange]:
        """Take in how many tasks of all users a provider has in setup or training.

        Args:
            now: When.
            pending: How many, this one included. Some may be behind it, so the fewest seen so far is what counts.
        """
        if self.state not in QUEUED:
            return []
        ahead, previous = max(pending - 1, 0), self.ahead
        ahead = ahead if previous is None else min(ahead, previous)
        if ahead == previous:
            return []
        self.ahead = ahead
        change = self._common("provider", now, f"q{ahead}.{self.task_id}")
        return [TaskQueueMoved(**change, ahead=ahead, previous=previous)]

    def next_mark(self) -> dt.datetime | None:
        """When `see_time` has something to say next."""
        deadline = self.ack_deadline
        if deadline is None or self.acknowledged or self.settled:
            return None
        return next((self._mark_time(m, deadline) for m in MARKS if m > self._marks), None)

    def resynced(self, now: dt.datetime, task: Task | None, deliverable: Deliverable | None) -> WatchResynced:
        """Start over from full state, and say so."""
        self.task = task
        if deliverable is not None:
            self.see_deliverable(deliverable)
        elif task is not None:
            self.state, self.state_text = task.progress, task.progress_text
        return WatchResynced(**self._common("chain", now, f"r{self.position[0]}"), task=task, deliverable=deliverable)

    def warning(self, now: dt.datetime, message: str, source: Source) -> WatchWarning:
        """Make a warning."""
        return WatchWarning(**self._common(source, now, f"w{now.timestamp():.3f}"), message=message)

    def log_appended(self, now: dt.datetime, text: str, offset: int) -> TaskLogAppended:
        """Make a change of new log text."""
        return TaskLogAppended(**self._common("provider", now, f"l{offset}"), text=text, offset=offset)

    def metric(self, at: dt.datetime, change_id: str, **figures: Any) -> TaskMetric:
        """Make a change of logged figures."""
        return TaskMetric(**self._common("provider", at, change_id), **figures)

    # ---- helpers

    def _mark_time(self, mark: int, deadline: dt.datetime) -> dt.datetime:
        return deadline - dt.timedelta(seconds=self.window * (100 - mark) / 100)

    def _now_at(self) -> dt.datetime:
        return self.task.updated_at if self.task else self.delivered_at or dt.datetime.fromtimestamp(0, dt.UTC)

    def _state(self, state: TaskProgress, text: str, source: Source, at: dt.datetime) -> list[TaskChange]:
        if (state, text) == (self.state, self.state_text) or (
            state is self.state and state is not TaskProgress.UNKNOWN
        ):
            self.state_text = text
            return []
        previous, self.state, self.state_text = self.state, state, text
        change_id = f"{source[0]}{self.position[0]}.{state.value}.{at.timestamp():.6f}"
        return [
            TaskStateChanged(
                **self._common(source, at, change_id),
                state=state,
                previous=previous,
                state_text=text,
                task=self.task,
                model_root_hash=self.root,
                ack_deadline=self.ack_deadline,
            )
        ]

    def _common(self, source: Source, at: dt.datetime, change_id: str) -> dict[str, Any]:
        return {
            "id": change_id,
            "at": at,
            "source": source,
            "provider": self.provider,
            "task_id": self.task_id,
            "cursor": self.cursor.encode(),
        }
