"""Managers whose coroutines are called in an event loop in another thread. No logic of its own."""

import atexit
import contextlib
import functools
import inspect
import threading
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import CancelledError, Future, wait
from types import TracebackType
from typing import Any, Final, Self

import anyio
from anyio.from_thread import BlockingPortal, start_blocking_portal

from zg_async.broker import Broker
from zg_async.broker import create_broker as create_async_broker
from zg_async.errors import ClosedError
from zg_async.managers.inference_services import AutoFunding, InferencePolicy
from zg_async.sync.results import answering
from zg_async.units import NEURON_PER_0G

TOP_UP_CAP: Final = 2 * NEURON_PER_0G
"""The most a broker moves to inference sub-accounts by itself; what the peers move for a provider."""
_LOOK: Final = 0.5
"""Seconds until a Ctrl-C is noticed that came in the moment before waiting began."""
_PLAIN: Final = (str, bytes, int, float, bool, type(None), dict, list, tuple, set, frozenset)


class _Call:
    """A call on its way through the loop."""

    def __init__(self, call: Callable[[], Awaitable[Any]]) -> None:
        self._call = call
        self._scope: anyio.CancelScope | None = None
        self._cancelled = False
        self.begun = False
        self.ended = threading.Event()

    async def run(self) -> Any:
        self.begun = True
        try:
            with anyio.CancelScope() as self._scope:
                if self._cancelled:
                    self._scope.cancel()
                return await self._call()
            return None  # nobody waits for it any more
        finally:
            self.ended.set()

    def cancel(self) -> None:
        """Cancel it, whether it has begun or not; in the loop's thread."""
        self._cancelled = True
        if self._scope is not None:
            self._scope.cancel()


class _Loop:
    """An event loop in a thread of its own."""

    def __init__(self) -> None:
        self._stack = contextlib.ExitStack()
        self._portal: BlockingPortal | None = self._stack.enter_context(start_blocking_portal(name="zg-async"))

    def run(self, call: Callable[[], Awaitable[Any]]) -> Any:
        """Run a call to its end; an exception here, such as Ctrl-C, cancels it and waits until it has ended."""
        if self._portal is None:
            raise ClosedError("the broker is closed", hint="Call create_broker again")
        running = _Call(call)
        future: Future[Any] | None = None
        try:
            future = self._portal.start_task_soon(running.run)
            while not wait((future,), _LOOK).done:
                pass
            return future.result()
        except CancelledError:
            raise ClosedError("the broker was closed meanwhile") from None
        except BaseException:
            if future is None or not future.done():
                self._portal.call(running.cancel)  # the loop is fair: what was handed over before has begun by now
                if future is not None or running.begun:
                    running.ended.wait()
            raise

    def entered(self, target: Any) -> contextlib.AbstractContextManager[Any]:
        """Enter an asynchronous context manager, and leave it in the same task."""
        if self._portal is None:
            raise ClosedError("the broker is closed", hint="Call create_broker again")
        return self._portal.wrap_async_context_manager(target)

    def close(self) -> None:
        portal, self._portal = self._portal, None
        if portal is not None:
            portal.call(portal.stop, True)
        self._stack.close()


class Blocking:
    """An object of the asyncio API whose coroutines block."""

    def __init__(self, loop: _Loop, target: Any) -> None:
        """Wrap an object."""
        self._loop = loop
        self._target = target

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        value = getattr(self._target, name)
        if inspect.ismethod(value) or inspect.isfunction(value):
            return self._blocking(value)
        return self._wrapped(value)

    def __dir__(self) -> list[str]:
        return [name for name in dir(self._target) if not name.startswith("_")]

    def __repr__(self) -> str:
        return f"<blocking {self._target!r}>"

    def __iter__(self) -> Iterator[Any]:
        """Go through what an asynchronous stream yields; leaving the loop leaves the stream."""
        target = self._target
        if not hasattr(target, "__aiter__"):
            raise TypeError(f"{type(target).__name__} can't be gone through")
        with contextlib.ExitStack() as stack:
            if hasattr(target, "__aenter__"):
                target = stack.enter_context(self._loop.entered(target))
            source = target.__aiter__()
            if hasattr(source, "aclose"):
                stack.callback(lambda: self._loop.run(source.aclose))
            while (item := self._loop.run(lambda: _next(source))) is not _END:
                yield answering(item)

    def _blocking(self, method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def call(*args: Any, **kwargs: Any) -> Any:
            async def run() -> Any:
                result = method(*args, **kwargs)
                return await result if inspect.isawaitable(result) else result

            return self._wrapped(self._loop.run(run))

        return call

    def _wrapped(self, value: Any) -> Any:
        if isinstance(value, _PLAIN) or callable(value):
            return answering(value)
        if hasattr(value, "__aiter__") or type(value).__name__.endswith(("Manager", "Broker")):
            return Blocking(self._loop, value)
        return answering(value)


class SyncBroker(Blocking):
    """A broker whose calls block: `.ledger`, `.fine_tuning`, `.inference` with `.lora`, `.storage`.

    Open when it is made. Closed by `close`, at the end of a `with`, or with the program.
    """

    def __init__(self, loop: _Loop, target: Broker) -> None:
        """Wrap an open broker; `create_broker` is the way to make one."""
        super().__init__(loop, target)
        self._exit = atexit.register(self._close_at_exit)

    def close(self) -> None:
        """Close everything. Idempotent."""
        atexit.unregister(self._exit)
        with contextlib.suppress(ClosedError):
            self._loop.run(self._target.aclose)
        self._loop.close()

    def _close_at_exit(self) -> None:
        with contextlib.suppress(RuntimeError):  # the interpreter may refuse new threads by now
            self.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@functools.wraps(create_async_broker, assigned=("__module__", "__name__", "__qualname__"))
def create_broker(*args: Any, **kwargs: Any) -> SyncBroker:
    """Make a broker and open it; takes what `zg_async.create_broker` takes.

    Without `inference` it tops inference sub-accounts up by itself, up to `TOP_UP_CAP`.

    Raises:
        ConfigError: Wrong key, unknown network, bad address.
        ChainError: The chain doesn't answer, or is another.
    """
    if kwargs.get("inference") is None:
        kwargs["inference"] = InferencePolicy(funding=AutoFunding(cap=TOP_UP_CAP))
    broker = create_async_broker(*args, **kwargs)
    loop = _Loop()
    try:
        loop.run(broker.__aenter__)
    except BaseException:
        loop.close()
        raise
    return SyncBroker(loop, broker)


_END: Final = object()


async def _next(source: Any) -> Any:
    try:
        return await source.__anext__()
    except StopAsyncIteration:
        return _END
