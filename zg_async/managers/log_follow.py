"""A task's log as it grows, and the figures of its training in it."""

import collections
import datetime as dt
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Final, Self

from zg_async.errors import ProviderUnavailableError
from zg_async.managers.task_changes import TaskLogAppended, TaskMetric, TaskStory
from zg_async.managers.watch import WatchHub
from zg_async.wire.metric_series import MetricSeries
from zg_async.wire.records import Address, Task, TaskId
from zg_async.wire.task_log import LogEntry, LogParser

_GIVE_UP_AFTER: Final = 3
"""Looks that fail in a row before the source is taken for gone."""


class LogFollow:
    """New text of a task's log, as an iterator; also a context manager whose value is itself."""

    def __init__(self, hub: WatchHub, wallet: Address, provider: Address, task_id: TaskId, *, offset: int = 0) -> None:
        """Make a follower; nothing is asked before it is awaited."""
        self._hub = hub
        self._wallet = wallet
        self._provider = provider
        self._task_id = task_id
        self.task: Task | None = None
        """The provider's record, as of the last look."""
        self.offset = offset
        """Bytes told so far."""
        self._pause = hub.policy.first
        self._failures = 0
        self._over = self._closed = False
        self.story = TaskStory(provider, task_id, lock_time=0, penalty_percentage=0)
        """Makes the changes."""

    def now(self) -> dt.datetime:
        """Return the time by which deadlines count."""
        return self._hub.chain_now()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed = True

    def __aiter__(self) -> AsyncIterator[TaskLogAppended]:
        return self

    async def __anext__(self) -> TaskLogAppended:
        """Return the next piece.

        Raises:
            ProviderUnavailableError: The provider stopped answering before the task had ended.
        """
        while not (self._closed or self._over):
            try:
                piece = await self._look()
                self._failures = 0
            except ProviderUnavailableError:
                self._failures += 1
                if self._failures > _GIVE_UP_AFTER:
                    raise
                piece = None
            if piece is not None:
                self._pause = self._hub.policy.first
                return piece
            if not self._over:
                await self._hub.clock.sleep(self._pause)
                self._pause = min(self._pause * self._hub.policy.growth, self._hub.policy.longest)
        raise StopAsyncIteration

    async def _look(self) -> TaskLogAppended | None:
        client = await self._hub.client(self._provider)
        task = self.task = await client.get_task(self._wallet, self._task_id)  # before the log: nothing of it is missed
        data = await client.get_log_bytes(self._wallet, self._task_id)
        if len(data) < self.offset:
            self.offset = 0  # truncated: begin anew
        if len(data) > self.offset:
            offset, self.offset = self.offset, len(data)
            return self.story.log_appended(task.updated_at, data[offset:].decode("utf-8", "replace"), offset)
        self._over = task.is_terminal
        return None


class MetricFollow:
    """The figures of a training as they come, as an iterator; also a context manager whose value is itself."""

    def __init__(self, log: LogFollow) -> None:
        """Read them from a log that is followed from its beginning."""
        self._log = log
        self._parser = LogParser()
        self._waiting: collections.deque[TaskMetric] = collections.deque()
        self._count = 0
        self._over = False
        self.series = MetricSeries()
        """All figures so far."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._log.__aexit__(kind, error, trace)

    def __aiter__(self) -> AsyncIterator[TaskMetric]:
        return self

    async def __anext__(self) -> TaskMetric:
        """Return the next figures.

        Raises:
            ProviderUnavailableError: The provider stopped answering before the task had ended.
        """
        while not self._waiting:
            if self._over:
                raise StopAsyncIteration
            try:
                piece = await anext(self._log)
            except StopAsyncIteration:
                self._over = True
                self._take(self._parser.finish())
                continue
            self._take(self._parser.feed(piece.text))
        return self._waiting.popleft()

    def _take(self, entries: list[LogEntry]) -> None:
        now = self._log.now()
        if self._log.task is not None:
            self.series.expect(self._log.task.training_params)
        for entry in entries:
            if not self.series.add(entry, now.timestamp()):
                continue
            self._count += 1
            self._waiting.append(
                self._log.story.metric(
                    entry.time or now,
                    f"m{self._count}",
                    metric=entry.metric,
                    summary=entry.summary,
                    steps_per_second=self.series.steps_per_second,
                    eta=self.series.eta,
                )
            )
