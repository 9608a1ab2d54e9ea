"""Watching tasks: one poller per provider and one log reader per network, however many watches there are.

A `WatchHub` belongs to the broker. A `TaskWatch` registers with it when it is first awaited and holds nothing else: no
task, no socket. The hub knows its watches weakly, so one that is dropped after a `break` is gone at once, and when the
last one of a provider is gone, its poller ends.

The poller asks once per wallet and round, waits longer while nothing changes, and keeps a fixed request rate per
provider: more wallets stretch the round. An event on chain wakes it, so what the provider says is asked for at once.
"""

import collections
import copy
import datetime as dt
import weakref
from collections.abc import AsyncIterator, Mapping
from types import TracebackType
from typing import Any, Final, Self

import anyio

from zg_async.background import Background, Child
from zg_async.clock import Clock
from zg_async.errors import (
    AccountNotFoundError,
    ChainUnavailableError,
    ClosedError,
    DeliverableNotFoundError,
    TaskNotFoundError,
    ZgError,
)
from zg_async.logs import get_logger
from zg_async.managers.polling import Poller, PollPolicy, QueueLength
from zg_async.managers.provider_client import ProviderClient
from zg_async.managers.services import ServiceDirectory
from zg_async.managers.task_changes import (
    ChainFact,
    TaskChange,
    TaskStory,
    WatchCursor,
)
from zg_async.transport.chain import Chain
from zg_async.transport.heads import Block
from zg_async.transport.http import Http
from zg_async.transport.logs import Cursor, LogBatch, Resync, Rewound
from zg_async.wire.contracts import (
    TOPIC,
    DeliverableAbandoned,
    DeliverableAcknowledged,
    DeliverableAdded,
    FeesSettled,
    InferenceServiceUpdated,
    ServiceRemoved,
    ServiceUpdated,
    decode_log,
)
from zg_async.wire.records import Address, Deliverable, Task, TaskId

_log = get_logger("zg_async.watch")

_FACTS: Final = (DeliverableAdded, DeliverableAcknowledged, FeesSettled, DeliverableAbandoned)
_TOPICS: Final = tuple(f.__name__ for f in _FACTS)
_SERVICE_TOPICS: Final = ("ServiceUpdated", "ServiceRemoved", "InferenceServiceUpdated")
_SERVICE_AGE: Final = 3600.0
"""Seconds a registration is believed while the chain's events, which tell of changes, are read."""
_SERVICE_AGE_UNTOLD: Final = 60.0
_LOG_SECONDS: Final = 10.0
_LOG_TAIL: Final = 20_000
_MAX_PENDING: Final = 1000
"""Facts a watch holds for a consumer that doesn't come; older provider answers are dropped first."""


def _topic(address: Address) -> bytes:
    """Return what stands for an address in an event's indexed place."""
    return bytes.fromhex(address[2:]).rjust(32, b"\0")


class WatchHub:
    """All watches of one network."""

    def __init__(
        self, chain: Chain, http: Http, services: ServiceDirectory, clock: Clock, *, policy: PollPolicy | None = None
    ) -> None:
        """Make an idle hub; it starts working with its first watch."""
        self.chain = chain
        self.http = http
        self.services = services
        self.clock = clock
        self.policy = policy or PollPolicy()
        self._background = Background()
        self._pollers: dict[Address, Poller] = {}
        self._watches: dict[tuple[Address, Address, TaskId], weakref.WeakSet[TaskWatch]] = {}
        self.looks = _Looks(chain, services)
        self.request_nonces: dict[Address, int] = {}
        """The newest number that a wallet's task was given."""
        self.logs = _Logs(self)
        self._reader: Child | None = None
        self._cursor: Cursor | None = None
        self._closed = False

    async def aclose(self) -> None:
        """End all watches and pollers."""
        self._closed = True
        for watches in list(self._watches.values()):
            for watch in list(watches):
                watch.put(ClosedError("the broker was closed", hint="Watches end with their broker"))
        await self._background.aclose()

    def chain_now(self) -> dt.datetime:
        """Return the time by which deadlines count."""
        return self.chain.heads.time.now()

    # ---- registration

    def add(self, watch: "TaskWatch") -> None:
        """Register a watch."""
        if self._closed:
            raise ClosedError("the broker is closed", hint="Open a new one")
        watches = self._watches.setdefault(watch.key, weakref.WeakSet())
        if watch not in watches:
            watches.add(watch)
            # a loop that was left by force drops its watch without a word
            weakref.finalize(watch, self._background.soon, self._forget, watch.key).atexit = False
        if (poller := self._pollers.get(watch.provider)) is None:
            poller = self._pollers[watch.provider] = Poller(self, watch.provider)
            poller.task = self._background.start(poller.run(), name=f"poll {watch.provider}")
        poller.add(watch.wallet, watch.task_id)
        if self._reader is None:
            self._reader = self._background.start(self._read_chain(), name="watch chain events")

    def remove(self, watch: "TaskWatch") -> None:
        """Forget a watch."""
        if watches := self._watches.get(watch.key):
            watches.discard(watch)
            self._forget(watch.key)

    def _forget(self, key: "_Key") -> None:
        """End at once what was done for a task that nobody watches any more."""
        if self._watches.get(key):
            return
        self._watches.pop(key, None)
        wallet, provider, task_id = key
        poller = self._pollers.get(provider)
        if poller is not None and poller.drop(wallet, task_id):
            del self._pollers[provider]
        if not self._watches and self._reader is not None:
            self._reader.cancel()
            self._reader = self._cursor = None

    def watches(self, wallet: Address, provider: Address, task_id: TaskId) -> "list[TaskWatch]":
        """Return the live watches of a task."""
        return list(self._watches.get((wallet, provider, task_id), ()))

    def poke(self, provider: Address, wallet: Address) -> None:
        """Make a provider's poller ask for a wallet's tasks now."""
        if poller := self._pollers.get(provider):
            poller.poke(wallet)

    async def pace(self, provider: Address) -> None:
        """Wait until another request to a provider that is polled keeps the rate."""
        if poller := self._pollers.get(provider):
            await poller.pace()

    # ---- chain

    async def client(self, provider: Address) -> ProviderClient:
        """Return a client of a provider; asks the chain where it is only when that may have changed."""
        age = _SERVICE_AGE if self._reader is not None else _SERVICE_AGE_UNTOLD
        service = await self.services.fine_tuning_service(provider, max_age=age)
        return ProviderClient(self.http, service.url, provider, self.clock)

    async def _read_chain(self) -> None:
        while True:
            try:
                await self._follow()
            except ChainUnavailableError as e:
                self._tell_all(f"the chain can't be read ({e.message}); still trying")
                await self.clock.sleep(self.policy.longest)

    async def _follow(self) -> None:
        topics = [TOPIC[name] for name in (*_TOPICS, *_SERVICE_TOPICS)]
        addresses = [self.services.fine_tuning.address, self.services.inference.address]
        async with self.chain.logs.follow(addresses=addresses, topics=[topics], cursor=self._cursor) as batches:
            self.services.forget()  # what was read before may have changed before this began
            async for batch in batches:
                self._cursor = batch.cursor
                match batch:
                    case LogBatch():
                        self.http.metrics.observe("chain.lag", max(self.clock.now() - batch.timestamp.timestamp(), 0.0))
                        for log in batch.logs:
                            self._dispatch(decode_log(log))
                    case Rewound() | Resync():
                        self.services.forget()
                        self._tell_all(batch)

    def _tell_all(self, fact: "Rewound | Resync | str") -> None:
        for watches in self._watches.values():
            for watch in watches:
                watch.put(fact)

    def _dispatch(self, event: Any) -> None:
        if isinstance(event, ServiceUpdated | ServiceRemoved | InferenceServiceUpdated):
            self.services.forget(event.provider)
        if not isinstance(event, _FACTS):
            return
        for watch in self.watches(event.user, event.provider, TaskId(event.id)):
            watch.put(event)
        self.poke(event.provider, event.user)


_Key = tuple[Address, Address, TaskId]


class _Look:
    """A question about one delivery, for all who ask it at the same time."""

    def __init__(self) -> None:
        self.answer: tuple[Block, Deliverable | None] | None = None
        self.error: ZgError | None = None


class _Looks:
    """Reads deliveries for many watches at once: who comes while one read is under way is in the next."""

    def __init__(self, chain: Chain, services: ServiceDirectory) -> None:
        self._chain = chain
        self._services = services
        self._lock = anyio.Lock()
        self._waiting: dict[_Key, _Look] = {}

    async def read(self, key: _Key) -> tuple[Block, Deliverable | None]:
        """Return the newest block, and the delivery as it was then; None if there is none."""
        look = self._waiting.setdefault(key, _Look())
        async with self._lock:
            if look.answer is None and look.error is None:
                await self._read_all()
        if look.answer is None:
            raise copy.copy(look.error) if look.error else ClosedError("the read was given up")
        return look.answer

    async def _read_all(self) -> None:
        waiting, self._waiting = self._waiting, {}
        try:
            await self._answer(waiting)
        except ZgError as error:
            for look in waiting.values():
                look.error = error
        finally:  # cancelled: whoever comes next reads for the others too
            self._waiting = {k: w for k, w in waiting.items() if w.answer is None and w.error is None} | self._waiting

    async def _answer(self, waiting: Mapping[_Key, _Look]) -> None:
        block = await self._chain.block()
        calls = [self._services.fine_tuning.get_deliverable(*key) for key in waiting]
        found = await self._chain.call_many(calls, block=block.number)
        for look, result in zip(waiting.values(), found, strict=True):
            if isinstance(result, DeliverableNotFoundError | AccountNotFoundError):
                look.answer = (block, None)
            elif isinstance(result, ZgError):
                look.error = result
            else:
                look.answer = (block, result)


class _Logs:
    """Reads logs for many watches: who comes soon after another gets the same."""

    def __init__(self, hub: WatchHub) -> None:
        self._hub = hub
        self._locks: collections.defaultdict[Address, anyio.Lock] = collections.defaultdict(anyio.Lock)
        self._read: dict[_Key, tuple[float, str]] = {}

    async def read(self, key: _Key) -> str:
        """Return a task's log; empty when it can't be read."""
        wallet, provider, task_id = key
        async with self._locks[provider]:
            now = self._hub.clock.monotonic()
            self._read = {k: (at, log) for k, (at, log) in self._read.items() if now - at < _LOG_SECONDS}
            if key not in self._read:
                await self._hub.pace(provider)
                try:
                    log = await (await self._hub.client(provider)).get_log(wallet, task_id)
                except ZgError:
                    log = ""
                self._read[key] = (self._hub.clock.monotonic(), log[-_LOG_TAIL:])
            return self._read[key][1]


_Fact = Task | QueueLength | ChainFact | Rewound | Resync | ZgError | str


class TaskWatch:
    """The changes of one task, as an iterator; also a context manager whose value is itself.

    Ends by itself when nothing more can happen. `cursor` always says where to go on from.
    """

    def __init__(
        self, hub: WatchHub, wallet: Address, provider: Address, task_id: TaskId, *, cursor: str | None = None
    ) -> None:
        """Make a watch; it starts when it is first awaited."""
        self._hub = hub
        self.wallet = wallet
        self.provider = provider
        self.task_id = task_id
        self._from = cursor
        self._story: TaskStory | None = None
        self._facts: collections.deque[_Fact] = collections.deque()
        self._answer: Task | None = None
        """The provider's last answer handed in."""
        self._queue: QueueLength | None = None
        self._changes: collections.deque[TaskChange] = collections.deque()
        self._wake = anyio.Event()
        self._started = self._closed = False

    @property
    def key(self) -> tuple[Address, Address, TaskId]:
        """Which task is watched."""
        return self.wallet, self.provider, self.task_id

    @property
    def cursor(self) -> str | None:
        """Where to go on from; None before anything was seen."""
        if self._changes:
            return self._from  # what waits here hasn't been told
        return self._story.cursor.encode() if self._story else self._from

    def put(self, fact: _Fact) -> None:
        """Hand in a fact; called by the hub. An answer like the last one counts only if the chain has yet to agree."""
        if isinstance(fact, Task):
            if fact == self._answer and not (self._story and self._story.wants_chain(fact)):
                return
            self._answer = fact
        if isinstance(fact, QueueLength):
            if fact == self._queue:
                return
            self._queue = fact
        if len(self._facts) >= _MAX_PENDING:
            self._facts = collections.deque(f for f in self._facts if not isinstance(f, Task | QueueLength | str))
            self._answer = self._queue = None
        self._facts.append(fact)
        self._wake.set()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """End the watch. The task goes on."""
        self._closed = True
        self._hub.remove(self)

    def __aiter__(self) -> AsyncIterator[TaskChange]:
        return self

    async def __anext__(self) -> TaskChange:
        while not self._changes:
            if self._closed:
                raise StopAsyncIteration
            if not self._started:
                await self._start()
                continue
            story = self._require_story()
            if story.over:
                await self.aclose()
                raise StopAsyncIteration
            if self._facts:
                await self._take(self._facts[0])
                self._facts.popleft()  # only now: cancelled before, the fact is taken again
                continue
            await self._wait()
        change = self._changes.popleft()
        self._from = change.cursor
        return change

    def _require_story(self) -> TaskStory:
        if self._story is None:
            raise ClosedError("the watch has not started")
        return self._story

    async def _wait(self) -> None:
        """Wait for a fact, or for the next reminder of the deadline."""
        story = self._require_story()
        self._wake = anyio.Event()
        mark, stuck = story.next_mark(), story.stuck_at(self._hub.policy.stuck_seconds)
        due = min((moment for moment in (mark, stuck) if moment is not None), default=None)
        if due is None:
            await self._wake.wait()
        else:
            left = (due - self._hub.chain_now()).total_seconds()
            if left > 0:
                await self._hub.clock.wait(self._wake, left)
        if stuck is not None and self._hub.chain_now() >= stuck and not self._facts:
            log = await self._hub.logs.read(self.key)
            self._changes.extend(story.see_stuck(self._hub.chain_now(), log))
        self._changes.extend(story.see_time(self._hub.chain_now()))

    async def _start(self) -> None:
        hub = self._hub
        self._facts.clear()
        self._answer = self._queue = None
        hub.add(self)  # first, so that nothing falls between what is read here and what the hub reads
        lock_time, penalty = await hub.services.delivery_terms()
        story = TaskStory(self.provider, self.task_id, lock_time=lock_time, penalty_percentage=penalty)
        cursor = WatchCursor.decode(self._from) if self._from else None
        head, deliverable = await hub.looks.read(self.key)
        changes: list[TaskChange] = []
        if cursor is not None and await self._on_chain(cursor):
            story.restore(cursor)
            if deliverable is not None:
                story.recall(deliverable)
            for event in await self._events(cursor.block_number, head.number):
                changes += story.see_event(event)
            story.see_block(head.number, head.hash)
        else:
            story.see_block(head.number, head.hash)
            if self._from is not None:
                task = await self._task_or_none()
                changes.append(story.resynced(hub.chain_now(), task, deliverable))
            elif deliverable is not None:
                changes += story.see_deliverable(deliverable)
        self._story = story
        self._changes.extend(changes)
        self._started = True

    async def _on_chain(self, cursor: WatchCursor) -> bool:
        try:
            block = await self._hub.chain.block(cursor.block_number)
        except ZgError as e:
            if e.retryable:
                raise
            return False
        return block.hash == cursor.block_hash

    async def _events(self, first: int, last: int) -> list[ChainFact]:
        """Read this task's events of some blocks from the chain."""
        hub = self._hub
        topics = [[TOPIC[name] for name in _TOPICS], [_topic(self.wallet)], [_topic(self.provider)]]
        logs = await hub.chain.get_logs([hub.services.fine_tuning.address], topics, first, last)
        events = [decode_log(log) for log in logs]
        return [e for e in events if isinstance(e, _FACTS) and (e.user, e.provider, e.id) == self.key]

    async def _ask_chain(self, story: TaskStory) -> list[TaskChange]:
        """See whether the chain bears the provider out: by what happened since, else by the deliverable as it is."""
        head, deliverable = await self._hub.looks.read(self.key)
        events = await self._events(story.position[0], head.number)
        changes = [change for event in events for change in story.see_event(event)]
        return changes + (story.see_deliverable(deliverable) if deliverable is not None else [])

    async def _deliverable(self, block: int | None = None) -> Deliverable | None:
        call = self._hub.services.fine_tuning.get_deliverable(self.wallet, self.provider, self.task_id)
        try:
            return await self._hub.chain.call(call, block="latest" if block is None else block)
        except (DeliverableNotFoundError, AccountNotFoundError):
            return None

    async def _task_or_none(self) -> Task | None:
        try:
            client = await self._hub.client(self.provider)
            return await client.get_task(self.wallet, self.task_id)
        except ZgError:
            return None

    async def _take(self, fact: _Fact) -> None:
        """Turn a fact into changes; may ask the chain, changes nothing before it has the answer."""
        story = self._require_story()
        if isinstance(fact, ZgError):
            fact.learn({"provider": self.provider, "task_id": self.task_id})
        if isinstance(fact, str):
            self._changes.append(story.warning(self._hub.chain_now(), fact, "provider"))
        elif isinstance(fact, TaskNotFoundError):
            await self._not_found(fact)
        elif isinstance(fact, ZgError):
            self._closed = True
            self._hub.remove(self)
            raise fact
        elif isinstance(fact, QueueLength):
            self._changes.extend(story.see_pending(self._hub.chain_now(), fact.pending))
        elif isinstance(fact, Rewound):
            story.rewind(fact.cursor.block_number, fact.cursor.block_hash)
        elif isinstance(fact, Resync):
            deliverable = await self._deliverable()
            if deliverable is not None:
                self._changes.extend(story.see_deliverable(deliverable))
        elif isinstance(fact, Task):
            chain = await self._ask_chain(story) if story.wants_chain(fact) else []
            self._changes.extend([*chain, *story.see_task(fact)])
        else:
            self._changes.extend(story.see_event(fact))

    async def _not_found(self, error: TaskNotFoundError) -> None:
        """The provider doesn't know the task: final, unless the chain does."""
        story = self._require_story()
        deliverable = await self._deliverable()
        if deliverable is None:
            await self.aclose()
            raise error
        if story.root is None:
            self._changes.extend(story.see_deliverable(deliverable))
