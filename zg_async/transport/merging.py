"""Requests that wait while others are under way go together: many jobs then cost few round trips.

Theory. A few exchanges may be under way at once; whoever asks meanwhile waits in line. When one ends, the first in line
takes everybody behind along, up to a limit, in one exchange of its own, and hands them their answers. So with little to
do nothing waits and nothing is merged, and under load the round trips stay as few as the other side is slow. Nobody
depends on another's fate: when an exchange is given up, because the one that made it is cancelled, each of the others
is told to ask alone, and when it fails, each is told why.
"""

import dataclasses
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

import anyio

from zg_async.errors import ZgError

A = TypeVar("A")
R = TypeVar("R")


@dataclasses.dataclass(slots=True, eq=False)
class _Waiting(Generic[A, R]):
    asks: Sequence[A]
    event: anyio.Event = dataclasses.field(default_factory=anyio.Event)
    followers: "list[_Waiting[A, R]] | None" = None
    """Who to take along: set when it is this one's turn."""
    answers: Sequence[R] | ZgError | None = None
    """None when woken: nothing is known, ask alone."""
    gone: bool = False
    """Cancelled: it can't be given a turn any more."""


class Merger(Generic[A, R]):
    """Merges requests to one side."""

    def __init__(self, send: Callable[[Sequence[A]], Awaitable[Sequence[R]]], *, at_once: int, most: int) -> None:
        """Begin idle.

        Args:
            send: Makes one exchange; its answers are in order.
            at_once: How many may be under way before requests wait for each other.
            most: Requests in one exchange.
        """
        self._send = send
        self._at_once = at_once
        self._most = most
        self._under_way = 0
        self._line: list[_Waiting[A, R]] = []

    async def ask(self, asks: Sequence[A]) -> Sequence[R] | ZgError | None:
        """Send requests, with others' if that saves an exchange.

        Returns:
            The answers in order; an error: that of the whole exchange, and others' as much as ours; None: the exchange
            was given up.

        Raises:
            ZgError: What `send` raised for these requests alone.
        """
        own = _Waiting[A, R](asks)
        if self._under_way >= self._at_once:
            await self._wait(own)
            if own.followers is None:
                return own.answers
        else:
            self._under_way += 1
            own.followers = []
        return await self._lead(own, own.followers)

    async def _wait(self, own: _Waiting[A, R]) -> None:
        self._line.append(own)
        arrived = False
        try:
            await own.event.wait()
            arrived = True
        finally:
            own.gone = not arrived
            if own in self._line:
                self._line.remove(own)
            elif not arrived and own.followers is not None:  # cancelled when it was its turn
                self._line[:0] = [one for one in own.followers if not one.gone]
                self._next()

    async def _lead(self, own: _Waiting[A, R], followers: list[_Waiting[A, R]]) -> Sequence[R] | ZgError:
        together = [ask for one in (own, *followers) for ask in one.asks]
        try:
            answers = await self._send(together)
        except ZgError as error:
            if not followers:
                raise
            for one in followers:
                one.answers = error
            return error
        else:
            start = len(own.asks)
            for one in followers:
                one.answers = answers[start : start + len(one.asks)]
                start += len(one.asks)
            return answers[: len(own.asks)]
        finally:
            for one in followers:
                one.event.set()
            self._next()

    def _next(self) -> None:
        """Give the turn that has become free to the first in line."""
        if not self._line:
            self._under_way -= 1
            return
        leader = self._line.pop(0)
        count, leader.followers = len(leader.asks), []
        while self._line and count + len(self._line[0].asks) <= self._most:
            count += len(self._line[0].asks)
            leader.followers.append(self._line.pop(0))
        leader.event.set()
