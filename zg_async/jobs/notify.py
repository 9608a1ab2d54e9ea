"""Tells others what happens to jobs: webhooks with a signature, and Python callbacks.

What is on record is offered to each target's queue, and a task of its own delivers it: a slow or dead receiver holds
up no job. A queue is bounded; when it is full the oldest goes. A webhook is tried again for some minutes and may come
twice; what its receiver missed by then, and what is left when the runner ends, is not sent later: the journal stays
the one complete record.
"""

import dataclasses
import hashlib
import hmac
import inspect
import json
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Iterator, Sequence
from typing import Any, Final, cast

import anyio

from zg_async.background import Background
from zg_async.clock import Clock
from zg_async.errors import ConfigError, ProviderUnavailableError, ZgError
from zg_async.jobs.events import Event, event_to_json
from zg_async.jobs.store import Store
from zg_async.logs import get_logger
from zg_async.transport.http import Http
from zg_async.transport.retry import RetryPolicy, retry
from zg_async.wire.records import JobId

_log = get_logger("zg_async.jobs")
NEWSWORTHY: Final = frozenset(
    {
        "job_succeeded",
        "job_failed",
        "job_cancelled",
        "job_warned",
        "ack_deadline_near",
        "delivery_unverified",
        "delivery_forfeited",
    }
)
"""What people want to be told of, unless they say otherwise."""
_WAITING: Final = 1000
_MIN_SECRET: Final = 16
_RETRY: Final = RetryPolicy(attempts=6, base=1.0, cap=60.0, max_elapsed=600.0)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Webhook:
    """A URL that gets a POST per event.

    The body is `{"version": 1, "id": "JOB:SEQ", "event": {...}}`; a receiver sees an id again when an answer was lost.
    `X-ZG-Timestamp` holds the time in Unix seconds, and `X-ZG-Signature` `sha256=` and the hexadecimal HMAC-SHA256 of
    timestamp, a dot and the body, with the secret: compare it, and refuse old times.
    """

    url: str
    """https, or a host that `create_broker(allow_hosts=...)` names."""
    secret: str = dataclasses.field(repr=False)
    """At least 16 characters."""
    events: Collection[str] = NEWSWORTHY
    """Kinds of events to send."""
    per_minute: int = 60
    """Most requests in a minute; what is more waits."""

    def __post_init__(self) -> None:
        """Refuse a secret that can be guessed."""
        if len(self.secret) < _MIN_SECRET:
            raise ConfigError(f"a webhook's secret needs at least {_MIN_SECRET} characters")
        if self.per_minute < 1:
            raise ConfigError(f"per_minute has to be at least 1, not {self.per_minute}")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Callback:
    """A function that is called with each event; a coroutine is awaited. What it raises is logged."""

    call: Callable[[Event], Awaitable[object] | object]
    events: Collection[str] = NEWSWORTHY
    """Kinds of events to call it with."""


Notify = Webhook | Callback


class Notifier:
    """Queues and delivers events for several targets."""

    def __init__(self, targets: Sequence[Notify], http: Http, clock: Clock) -> None:
        """Make one queue per target.

        Args:
            targets: Who is told.
            http: Sends webhooks, under its address policy.
            clock: For throttling, retries and timestamps.
        """
        self._http, self._clock = http, clock
        self._background = Background()
        self._queues = [_Queue(target) for target in targets]

    def offer(self, events: Sequence[Event]) -> None:
        """Queue what each target wants to know. Never waits."""
        for queue in self._queues:
            queue.put(event for event in events if event.kind in queue.target.events)

    def start(self) -> None:
        """Begin to deliver."""
        for number, queue in enumerate(self._queues):
            self._background.start(self._deliver(queue), name=f"zg notifications {number}")

    async def aclose(self) -> None:
        """Deliver nothing more."""
        await self._background.aclose()

    async def _deliver(self, queue: "_Queue") -> None:
        while True:
            event = await queue.take()
            match queue.target:
                case Webhook():
                    await self._post(queue.target, event)
                    await self._clock.sleep(60 / queue.target.per_minute)
                case Callback():
                    # a task of its own: what a user's function raises is logged there, and ends nothing here
                    await self._background.start(_call(queue.target, event), name="zg callback").wait()

    async def _post(self, hook: Webhook, event: Event) -> None:
        value = {"version": 1, "id": f"{event.job_id}:{event.seq}", "event": event_to_json(event)}
        body = json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()

        async def attempt() -> None:
            sent_at = str(int(self._clock.now()))
            headers = {
                "Content-Type": "application/json",
                "X-ZG-Timestamp": sent_at,
                "X-ZG-Signature": "sha256=" + sign(hook.secret, sent_at, body),
            }
            async with self._http.exchange("POST", hook.url, data=body, headers=headers) as answer:
                if answer.status == 429 or answer.status >= 500:
                    raise ProviderUnavailableError(f"the webhook answered {answer.status}", status=answer.status)
                if not 200 <= answer.status < 300:
                    _log.warning("a webhook refuses %s: status %d", event.kind, answer.status)

        try:
            await retry(attempt, clock=self._clock, policy=_RETRY)
        except ZgError as error:
            _log.warning("a webhook did not get %s of job %s: %s", event.kind, event.job_id, error)


class _Queue:
    """Events that wait for one target."""

    def __init__(self, target: Notify) -> None:
        self.target = target
        self._events: deque[Event] = deque()
        self._news = anyio.Event()

    def put(self, events: Iterator[Event]) -> None:
        for event in events:
            if len(self._events) >= _WAITING:
                lost = self._events.popleft()
                _log.warning("too many notifications wait: %s of job %s is dropped", lost.kind, lost.job_id)
            self._events.append(event)
            self._news.set()

    async def take(self) -> Event:
        while not self._events:
            self._news = anyio.Event()
            await self._news.wait()
        return self._events.popleft()


async def _call(target: Callback, event: Event) -> None:
    result = target.call(event)
    if inspect.isawaitable(result):
        await result


def sign(secret: str, timestamp: str, body: bytes) -> str:
    """Return the hexadecimal HMAC-SHA256 that a webhook's receiver compares."""
    return hmac.new(secret.encode(), f"{timestamp}.".encode() + body, hashlib.sha256).hexdigest()


class _NotifyingStore:
    """A journal that offers what it has recorded to a notifier; all else is the store's."""

    def __init__(self, store: Store, notifier: Notifier) -> None:
        self._store, self._notifier = store, notifier

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def create(self, job_id: JobId, *events: Event) -> tuple[Event, ...] | None:
        recorded = await self._store.create(job_id, *events)
        self._notifier.offer(recorded or ())
        return recorded

    async def append(self, job_id: JobId, *events: Event) -> tuple[Event, ...]:
        recorded = await self._store.append(job_id, *events)
        self._notifier.offer(recorded)
        return recorded


def notifying(store: Store, notifier: Notifier) -> Store:
    """Return a store that tells a notifier of all it records."""
    return cast("Store", _NotifyingStore(store, notifier))
