"""An event loop without a world: time jumps to the next timer, and a seed says whose turn it is.

Only task steps are shuffled: plain callbacks are promised their order. A loop with nothing left to do, or one that
never lets time pass, is an error instead of a hang.
"""

import asyncio
import contextlib
import contextvars
import gc
import heapq
import random
import selectors
import weakref
import zlib
from collections.abc import Callable, Coroutine, Iterator
from types import SimpleNamespace
from typing import Any, Final, TypeVar
from unittest import mock

import aiohttp.connector
import anyio._backends._asyncio
import anyio.lowlevel
import anyio.to_thread

from zg_async.managers import watch

T = TypeVar("T")
_Task: Final = asyncio.Task
_STILL: Final = 50_000
"""Turns in which time may stand still: far more than any schedule takes."""


class StuckError(Exception):
    """Nothing is scheduled, or nothing ever lets time pass."""


class _NoIO(selectors.BaseSelector):
    """Nothing is ever readable."""

    def register(self, fileobj, events, data=None):  # type: ignore[no-untyped-def]
        raise StuckError(f"real input and output in a simulation: {fileobj!r}")

    def unregister(self, fileobj):  # type: ignore[no-untyped-def]
        raise StuckError(f"real input and output in a simulation: {fileobj!r}")

    def get_map(self):  # type: ignore[no-untyped-def]
        return {}

    def select(self, timeout: float | None = None) -> list[Any]:
        return []


class _Handle(asyncio.Handle):
    """A handle that needn't ask whether anything is debugged."""

    __slots__ = ()

    def __init__(self, callback, args, loop, context=None):  # type: ignore[no-untyped-def]
        self._context = contextvars.copy_context() if context is None else context
        self._loop = loop
        self._callback = callback
        self._args = args
        self._cancelled = False
        self._repr = None
        self._source_traceback = None


class SimLoop(asyncio.SelectorEventLoop):
    """Time is a number; a turn that finds nothing to do moves it."""

    def __init__(self, rng: random.Random) -> None:
        self.now = 0.0
        self.rng = rng
        self.turns = 0
        self.trace = 0
        """Changes with every turn: two runs of a seed are equal if this is."""
        self._still = 0
        self.listeners: dict[int, Callable[[], asyncio.BaseProtocol]] = {}
        self._ports = 20_000
        self._timers = 0
        """How many there were: those of one moment are called in the order in which they were set."""
        self._held: dict[object, list[asyncio.Handle]] = {}
        super().__init__(_NoIO())

    def time(self) -> float:
        return self.now

    def note(self, what: str) -> None:
        """Add a fact to the trace."""
        self.trace = hash((self.trace, zlib.crc32(what.encode())))

    # --- one turn, and what puts something into it: as asyncio does it, without what only the real world needs

    def _run_once(self) -> None:
        self._skip_cancelled()
        scheduled, ready = self._scheduled, self._ready
        if not ready and not self._stopping:
            if not scheduled:
                raise StuckError(f"nothing is scheduled at {self.now:.3f}")
            if scheduled[0][0] > self.now:
                self.now = scheduled[0][0]
                self._still = 0
        while scheduled and scheduled[0][0] <= self.now:
            handle = heapq.heappop(scheduled)[2]
            handle._scheduled = False
            ready.append(handle)
        if self._held:
            self._withhold()
        if len(ready) > 1:
            self._shuffle()
        self._still += 1
        if self._still > _STILL:
            raise StuckError(f"time stands still at {self.now:.3f}: {[_words(h) for h in list(ready)[:8]]}")
        self.turns += 1
        self.trace = hash((self.trace, self.now, len(ready)))
        for _ in range(len(ready)):
            handle = ready.popleft()
            if handle._cancelled:
                continue
            try:
                handle._context.run(handle._callback, *handle._args)
            except (SystemExit, KeyboardInterrupt):
                raise
            except BaseException as error:  # noqa: BLE001  as asyncio does
                self.call_exception_handler({"message": f"{handle}", "exception": error})
        handle = None  # type: ignore[assignment]  # it holds what has run

    def _skip_cancelled(self) -> None:
        scheduled = self._scheduled
        if self._timer_cancelled_count > 100 and 2 * self._timer_cancelled_count > len(scheduled):
            for _, _, handle in scheduled:
                handle._scheduled = not handle._cancelled
            scheduled[:] = [entry for entry in scheduled if entry[2]._scheduled]
            heapq.heapify(scheduled)
            self._timer_cancelled_count = 0
        while scheduled and scheduled[0][2]._cancelled:
            heapq.heappop(scheduled)[2]._scheduled = False
            self._timer_cancelled_count -= 1

    def _shuffle(self) -> None:
        ready = self._ready
        steps = [
            place
            for place, handle in enumerate(ready)
            if getattr(handle._callback, "__self__", None).__class__ is _Task
        ]
        if len(steps) > 1:
            handles = [ready[place] for place in steps]
            self.rng.shuffle(handles)
            for place, handle in zip(steps, handles, strict=True):
                ready[place] = handle

    def call_soon(self, callback, *args, context=None):  # type: ignore[no-untyped-def]
        handle = _Handle(callback, args, self, context)
        self._ready.append(handle)
        return handle

    def call_at(self, when, callback, *args, context=None):  # type: ignore[no-untyped-def]
        handle = asyncio.TimerHandle(when, callback, args, self, context)
        self._timers += 1
        heapq.heappush(self._scheduled, (when, self._timers, handle))
        handle._scheduled = True
        return handle

    def call_later(self, delay, callback, *args, context=None):  # type: ignore[no-untyped-def]
        return self.call_at(self.now + delay, callback, *args, context=context)

    # --- processes that stand still

    def hold(self, process: object) -> None:
        """Let nothing of a process run until it is released."""
        self._held[process] = []

    def release(self, process: object) -> None:
        """Let all run that became due meanwhile."""
        self._ready.extend(self._held.pop(process, ()))

    def _withhold(self) -> None:
        ready, held = self._ready, self._held
        handles = tuple(ready)
        ready.clear()
        for handle in handles:
            held.get(handle._context.get(current), ready).append(handle)

    # --- what would touch the machine

    def _make_self_pipe(self) -> None:
        pass

    def _close_self_pipe(self) -> None:
        pass

    def _write_to_self(self) -> None:
        pass

    def run_in_executor(self, executor, func, *args):  # type: ignore[no-untyped-def]
        future = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:  # noqa: BLE001  as an executor does
            future.set_exception(error)
        return future

    async def create_server(self, protocol_factory, host=None, port=0, **_):  # type: ignore[no-untyped-def]
        if not port:
            self._ports += 1
            port = self._ports
        if port in self.listeners:
            raise OSError(98, "address already in use")
        self.listeners[port] = protocol_factory
        return _Server(self, port)


class _Server:
    def __init__(self, loop: SimLoop, port: int) -> None:
        self._loop = loop
        self._port = port
        self.sockets = [self]

    def getsockname(self) -> tuple[str, int]:
        return "127.0.0.1", self._port

    def close(self) -> None:
        self._loop.listeners.pop(self._port, None)

    async def wait_closed(self) -> None:
        pass


def _words(handle: Any) -> str:
    task = _owner(handle._callback)
    if not isinstance(task, asyncio.Task):
        return str(handle)[:200]
    frames, where = [], task.get_coro()
    while where is not None:
        frame = getattr(where, "cr_frame", None) or getattr(where, "ag_frame", None)
        if frame is not None:
            frames.append(f"{frame.f_code.co_qualname}:{frame.f_lineno}")
        where = getattr(where, "cr_await", None) or getattr(where, "ag_await", None)
    return f"{task.get_name()}: {' < '.join(frames)}"


def _owner(callback: Any) -> Any:
    return getattr(callback, "__self__", None)


class OrderedSet:
    """A set that is walked in the order of insertion; anyio's own are walked by address."""

    def __init__(self, items: Any = ()) -> None:
        self._items = dict.fromkeys(items)

    def add(self, item: Any) -> None:
        self._items[item] = None

    def remove(self, item: Any) -> None:
        del self._items[item]

    def discard(self, item: Any) -> None:
        self._items.pop(item, None)

    def pop(self) -> Any:
        return self._items.popitem()[0]

    def clear(self) -> None:
        self._items.clear()

    def update(self, items: Any) -> None:
        self._items.update(dict.fromkeys(items))

    def copy(self) -> "OrderedSet":
        return OrderedSet(self._items)

    def __contains__(self, item: Any) -> bool:
        return item in self._items

    def __iter__(self) -> Iterator[Any]:
        return iter(tuple(self._items))

    def __len__(self) -> int:
        return len(self._items)


class OrderedWeakSet:
    """The same for weak references; the members' own dictionary keeps the order."""

    def __init__(self) -> None:
        self._items: weakref.WeakKeyDictionary[Any, None] = weakref.WeakKeyDictionary()

    def add(self, item: Any) -> None:
        self._items[item] = None

    def discard(self, item: Any) -> None:
        self._items.pop(item, None)

    def __iter__(self) -> Iterator[Any]:
        return iter(list(self._items))

    def __len__(self) -> int:
        return len(self._items)


current: contextvars.ContextVar[Any] = contextvars.ContextVar("current", default=None)
"""Which process runs; None: no user's, a server."""
door: contextvars.ContextVar[Callable[[str], None] | None] = contextvars.ContextVar("door", default=None)
"""What the running process has to pass before and after it touches its disk."""


async def _inline(func: Callable[..., T], *args: Any, **_: Any) -> T:
    """Stands in for `anyio.to_thread.run_sync`: a thread at work looks like a task that waits for its turn."""
    pass_door = door.get()
    if pass_door is None:  # nobody's process: a server, whose disk is no matter
        return func(*args)
    await anyio.lowlevel.checkpoint()
    pass_door("before disk")
    result = func(*args)
    pass_door("after disk")
    return result


def _library() -> str:
    return "asyncio"


@contextlib.contextmanager
def virtual() -> Iterator[None]:
    """Let anyio run on `SimLoop`: threads inline, sets in order."""
    with (
        mock.patch.object(anyio.to_thread, "run_sync", _inline),
        mock.patch.object(anyio._backends._asyncio, "set", OrderedSet, create=True),
        mock.patch.object(aiohttp.connector, "set", OrderedSet, create=True),
        mock.patch.object(anyio._core._eventloop, "current_async_library", _library),
        mock.patch.object(watch, "weakref", SimpleNamespace(WeakSet=OrderedWeakSet, finalize=weakref.finalize)),
    ):
        gc.freeze()
        gc.disable()  # what only a collection ends would end at another moment in each process
        try:
            yield
        finally:
            gc.collect()
            gc.enable()
            gc.unfreeze()


def run(main: Callable[[], Coroutine[Any, Any, T]], rng: random.Random) -> tuple[T, SimLoop]:
    """Run a coroutine to its end in virtual time."""
    loop = SimLoop(rng)
    loop.set_exception_handler(_ignore)
    asyncio.set_event_loop(loop)
    try:
        return loop.run_until_complete(main()), loop
    finally:
        with contextlib.suppress(StuckError):
            left = asyncio.all_tasks(loop)
            for task in left:
                task.cancel()
            loop.run_until_complete(asyncio.wait(left) if left else asyncio.sleep(0))
        asyncio.set_event_loop(None)
        loop.close()


def _ignore(_: asyncio.AbstractEventLoop, __: dict[str, Any]) -> None:
    """What a dead process leaves is told by the oracle, if it is told."""
