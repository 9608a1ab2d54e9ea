"""Asks a provider for the state of watched tasks: soon after a change, ever later while nothing happens."""

import dataclasses
import datetime as dt
import math
import random
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import anyio

from zg_async.background import Child
from zg_async.correlation import correlated
from zg_async.errors import TaskNotFoundError, ZgError
from zg_async.managers.task_changes import QUEUED, STUCK_SECONDS
from zg_async.wire.records import Address, Task, TaskId, TaskProgress

if TYPE_CHECKING:
    from zg_async.managers.watch import TaskWatch, WatchHub

_WARN_AFTER: Final = 3
"""Requests that fail in a row before watches are told."""

_CHAIN_TELLS: Final = frozenset({TaskProgress.DELIVERED, TaskProgress.USER_ACKNOWLEDGED})
"""States whose end is an event on chain."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PollPolicy:
    """How politely providers are asked."""

    first: float = 0.5
    """Seconds until a wallet's tasks are asked for again after something changed."""
    longest: float = 15.0
    """Seconds between two questions for a wallet's tasks at most, while few wallets are watched."""
    growth: float = 1.4
    """How much longer each quiet round waits."""
    rate: float = 5.0
    """Requests per second to one provider, at most."""
    stuck_seconds: Mapping[TaskProgress, float] = dataclasses.field(default_factory=lambda: STUCK_SECONDS)
    """How long a task may be in each state before that is told; a state that isn't named may last."""


@dataclasses.dataclass(frozen=True, slots=True)
class QueueLength:
    """How many tasks of all users a provider has in setup or training."""

    pending: int


class _Turn:
    """When something is asked for next."""

    def __init__(self, hub: "WatchHub") -> None:
        self._hub = hub
        self._pause = hub.policy.first
        self.due = hub.clock.monotonic()

    def begin(self) -> None:
        """Note that it is asked for now; who wants it sooner than it would be next sets `due` meanwhile."""
        self._hub.http.metrics.observe("poll.lag", max(self._hub.clock.monotonic() - self.due, 0.0))
        self.due = math.inf

    def soon(self) -> None:
        """Make it due now, and often from then on."""
        self._pause = self._hub.policy.first
        self.due = min(self.due, self._hub.clock.monotonic())

    def end(self, *, changed: bool, rests: bool = False) -> None:
        """Plan the next time: soon after a change, or late where others will tell of the next one."""
        policy = self._hub.policy
        if changed:
            self._pause = policy.longest if rests else policy.first
        else:
            self._pause = min(self._pause * policy.growth, policy.longest)
        self.due = min(self.due, self._hub.clock.monotonic() + self._pause * random.uniform(0.8, 1.2))


class _WalletTurn(_Turn):
    """A wallet's watched tasks."""

    def __init__(self, hub: "WatchHub") -> None:
        super().__init__(hub)
        self.tasks: set[TaskId] = set()
        self.failures = 0


class Poller:
    """Asks one provider for the tasks of every watched wallet, one request after the other."""

    def __init__(self, hub: "WatchHub", provider: Address) -> None:
        """Make one that has nothing to ask for; its owner starts `run`."""
        self._hub = hub
        self._provider = provider
        self._wallets: dict[Address, _WalletTurn] = {}
        self._queue: _Turn | None = None
        """None: no watched task waits for training."""
        self._pending: int | None = None
        self._wake = anyio.Event()
        self._next = hub.clock.monotonic()
        """When the next request may go out."""
        self._seen: dict[TaskId, tuple[str, dt.datetime]] = {}
        self._progress: dict[TaskId, TaskProgress] = {}
        self.task: Child | None = None

    def add(self, wallet: Address, task_id: TaskId) -> None:
        """Ask for a task from now on."""
        if wallet not in self._wallets:
            self._wallets[wallet] = _WalletTurn(self._hub)
        self._wallets[wallet].tasks.add(task_id)
        self.poke(wallet)

    def drop(self, wallet: Address, task_id: TaskId) -> bool:
        """Ask no more for a task; True: that was the last one, and the poller has ended."""
        self._seen.pop(task_id, None)
        self._progress.pop(task_id, None)
        if turn := self._wallets.get(wallet):
            turn.tasks.discard(task_id)
            if not turn.tasks:
                del self._wallets[wallet]
        if not self._wallets and self.task is not None:
            self.task.cancel()
        return not self._wallets

    def poke(self, wallet: Address) -> None:
        """Ask for a wallet's tasks now."""
        if turn := self._wallets.get(wallet):
            turn.soon()
            self._wake.set()

    async def run(self) -> None:
        """Ask, for ever."""
        clock = self._hub.clock
        while True:
            self._wake = anyio.Event()
            with correlated(provider=self._provider):
                await self._round()
            turns = [*self._wallets.values(), *([self._queue] if self._queue else [])]
            due = min((turn.due for turn in turns), default=math.inf)
            if (left := min(due - clock.monotonic(), self._hub.policy.longest)) > 0:
                await clock.wait(self._wake, left)

    async def _round(self) -> None:
        """Ask for what is due."""
        now = self._hub.clock.monotonic()
        due = sorted((turn.due, wallet) for wallet, turn in self._wallets.items() if turn.due <= now)
        for _, wallet in due:
            await self.pace()
            if turn := self._wallets.get(wallet):  # else all have left meanwhile
                turn.begin()
                changed = await self._ask(wallet, turn)
                turn.end(changed=changed, rests=all(self._progress.get(t) in _CHAIN_TELLS for t in turn.tasks))
        await self._ask_queue()

    async def pace(self) -> None:
        """Wait until another request keeps the rate, however many ask."""
        clock = self._hub.clock
        at = max(self._next, clock.monotonic())
        self._next = at + 1 / self._hub.policy.rate
        if (early := at - clock.monotonic()) > 0:
            await clock.sleep(early)

    async def _ask_queue(self) -> None:
        """Ask how long the queue is, if it is due and a task waits for training."""
        waiting = self._waiting()
        if not waiting:
            self._queue = self._pending = None
            return
        if self._queue is None:
            self._queue = _Turn(self._hub)
        if self._queue.due > self._hub.clock.monotonic():
            return
        await self.pace()
        self._queue.begin()
        before = self._pending
        with suppress(ZgError):  # the tasks were answered for; how long the queue is only adds to that
            self._pending = await (await self._hub.client(self._provider)).pending()
            for watch in waiting:
                watch.put(QueueLength(self._pending))
        self._queue.end(changed=self._pending != before)

    def _waiting(self) -> "list[TaskWatch]":
        """Return the watches of tasks that wait for training."""
        return [
            watch
            for wallet, turn in self._wallets.items()
            for task_id in turn.tasks
            if self._progress.get(task_id) in QUEUED
            for watch in self._hub.watches(wallet, self._provider, task_id)
        ]

    async def _ask(self, wallet: Address, turn: _WalletTurn) -> bool:
        """Ask for a wallet's tasks; return whether anything changed."""
        try:
            answers = await self._fetch(wallet, turn.tasks)
        except ZgError as e:
            turn.failures += 1
            if isinstance(e, TaskNotFoundError) or not e.retryable:
                self._tell(wallet, turn.tasks, e)
            elif turn.failures == _WARN_AFTER:
                self._tell(wallet, turn.tasks, f"{self._provider} doesn't answer ({e.message}); still trying")
            return False
        turn.failures = 0
        changed = False
        for task in answers:
            if task.id in turn.tasks:
                seen = (task.progress_text, task.updated_at)
                changed |= self._seen.get(task.id) != seen
                self._seen[task.id] = seen
                if task.progress in QUEUED and self._progress.get(task.id) not in QUEUED:
                    self._queue = None  # one more waits: it is asked for now
                self._progress[task.id] = task.progress
                for watch in self._hub.watches(wallet, self._provider, task.id):
                    watch.put(task)
        return changed

    async def _fetch(self, wallet: Address, tasks: set[TaskId]) -> tuple[Task, ...]:
        client = await self._hub.client(self._provider)
        self._hub.http.metrics.count("polls")
        if len(tasks) == 1:
            return (await client.get_task(wallet, next(iter(tasks))),)
        return await client.list_tasks(wallet)

    def _tell(self, wallet: Address, tasks: set[TaskId], what: ZgError | str) -> None:
        for task_id in list(tasks):
            for watch in self._hub.watches(wallet, self._provider, task_id):
                watch.put(what.again() if isinstance(what, ZgError) else what)
