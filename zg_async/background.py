"""Background tasks of objects that users hold open: the one place that starts asyncio tasks.

A task group may not stay open across `__aenter__` and `__aexit__` (a fixture or a notebook enters and leaves in
different tasks), so such an object owns a `Background`, and its `aclose` cancels and awaits what runs there.
"""

import asyncio
import contextlib
import contextvars
from collections.abc import Callable, Coroutine
from typing import Any

import anyio

from zg_async.logs import get_logger
from zg_async.tracing import unbound

_log = get_logger("zg_async.background")


class Background:
    """A set of tasks with one owner."""

    def __init__(self) -> None:
        """Make an empty set; nothing runs until `start`."""
        self._tasks: dict[asyncio.Task[None], None] = {}  # in the order of their beginning
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = False

    def start(self, work: Coroutine[Any, Any, None], *, name: str) -> "Child":
        """Run a coroutine until it ends or the set is closed.

        Args:
            work: What to run. It has to handle its own errors: one that escapes is logged, not raised.
            name: Shown in debuggers; no secrets.

        Returns:
            A handle with `cancel()`, `done` and `wait()`.

        Raises:
            RuntimeError: The set is closed; `work` is closed unrun.
        """
        if self._closed:
            work.close()
            raise RuntimeError("closed")
        context = contextvars.copy_context()
        context.run(unbound)  # it may serve others than who happens to start it
        self._loop = asyncio.get_running_loop()
        task = self._loop.create_task(work, name=name, context=context)
        self._tasks[task] = None
        task.add_done_callback(self._ended)
        return Child(task)

    def soon(self, call: Callable[..., None], *args: Any) -> None:
        """Have the loop call a function soon; from any thread, and from finalizers. Does nothing once it is closed."""
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed, and all its tasks are gone
                self._loop.call_soon_threadsafe(call, *args)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.pop(task, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("background task %s failed", task.get_name(), exc_info=error)

    async def wait(self) -> None:
        """Wait until everything has ended."""
        while self._tasks:
            await asyncio.wait(tuple(self._tasks))

    async def aclose(self) -> None:
        """Cancel everything and wait until it has ended. Idempotent; safe under cancellation."""
        self._closed = True
        with anyio.CancelScope(shield=True):
            while self._tasks:
                tasks = tuple(self._tasks)
                for task in tasks:
                    task.cancel()
                await asyncio.wait(tasks)


class Child:
    """One background task, as its owner sees it."""

    def __init__(self, task: asyncio.Task[None]) -> None:
        """Wrap a task."""
        self._task = task

    @property
    def done(self) -> bool:
        """Whether it has ended."""
        return self._task.done()

    def cancel(self) -> None:
        """Ask it to end; returns at once."""
        self._task.cancel()

    async def wait(self) -> None:
        """Wait until it has ended, however it ended."""
        if not self._task.done():
            await asyncio.wait((self._task,))
