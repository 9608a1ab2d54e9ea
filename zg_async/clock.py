"""The only source of time, so that tests can replace it."""

import time
from typing import Protocol

import anyio


class Clock(Protocol):
    """Wall time for stamps and deadlines, monotonic time for waits."""

    def now(self) -> float:
        """Return wall time in unix seconds."""
        ...

    def monotonic(self) -> float:
        """Return monotonic time in seconds, for intervals."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Wait for some seconds."""
        ...

    async def wait(self, event: anyio.Event, seconds: float) -> None:
        """Wait until an event is set or some seconds have passed."""
        async with anyio.create_task_group() as group:

            async def timer() -> None:
                await self.sleep(seconds)
                group.cancel_scope.cancel()

            group.start_soon(timer)
            await event.wait()
            group.cancel_scope.cancel()


class SystemClock(Clock):
    """The machine's clock."""

    def now(self) -> float:
        """Return wall time in unix seconds."""
        return time.time()

    def monotonic(self) -> float:
        """Return monotonic time in seconds."""
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        """Wait for some seconds on the running event loop."""
        await anyio.sleep(seconds)

    async def wait(self, event: anyio.Event, seconds: float) -> None:
        """Wait until an event is set or some seconds have passed; needs no task."""
        with anyio.move_on_after(seconds):
            await event.wait()
