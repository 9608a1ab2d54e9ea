"""Who waits for money of one wallet: callers that come while a round is under way are served together in the next.

Theory. One caller at a time serves all that wait, each sub-account once, and each goes on as soon as its own part is
decided. So many jobs of a wallet that begin together cost one deposit and a few blocks, not a deposit and two blocks
each. Whoever isn't served to the end, because the one who served was cancelled, waits in the line as before, and the
first in it serves next: each finds by its own key what was sent for it.

Programs of this user that share a wallet take turns by a lock on a file, which the system drops when one of them dies.
"""

import contextlib
import dataclasses
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Final

import anyio
import anyio.to_thread

from zg_async.clock import Clock
from zg_async.errors import JournalError, ZgError
from zg_async.file_lock import Lock, take_lock
from zg_async.logs import get_logger
from zg_async.managers.services import ServiceType
from zg_async.paths import make_private_dir
from zg_async.wire.records import Address, Receipt

_log = get_logger("zg_async.ledger")
_LOOK_SECONDS: Final = 0.1
_LONGEST_LOOK: Final = 1.0
_SAY_SECONDS: Final = 60.0


@dataclasses.dataclass(slots=True, kw_only=True, eq=False)
class Wish:
    """A sub-account that has to be able to pay an amount."""

    provider: Address
    service_type: ServiceType
    amount: int
    """Neuron."""
    key: str | None
    """Names the effect; its transactions are `<key>/1` and so on."""
    verify: Callable[[], Awaitable[None]]
    """Raises if nothing may be paid to this provider."""
    is_verified: bool = False
    receipts: list[Receipt] = dataclasses.field(default_factory=list)
    """What was mined under its key so far."""
    is_over: bool = False
    error: ZgError | None = None
    given_up: bool = False
    """Nobody waits for it any more: nothing more is to be sent."""
    news: anyio.Event = dataclasses.field(default_factory=anyio.Event)
    """Set when it is decided, or when nobody serves."""

    @property
    def next_key(self) -> str | None:
        """The key of its next transaction."""
        return f"{self.key}/{len(self.receipts) + 1}" if self.key else None

    def end(self, error: ZgError | None = None) -> None:
        """Decide it."""
        self.is_over, self.error = True, error
        self.news.set()


class MoneyLock:
    """One who plans and moves a wallet's money at a time, over all programs of this user."""

    def __init__(self, path: Path | None, clock: Clock) -> None:
        """Name the file; None: only this process counts."""
        self._path = path
        self._clock = clock
        self._here = anyio.Lock()

    @contextlib.asynccontextmanager
    async def held(self) -> AsyncGenerator[None, None]:
        """Wait for the turn and hold it."""
        async with self._here:
            file = None if self._path is None else await self._taken(self._path)
            try:
                yield
            finally:
                if file is not None:
                    await _close(file)

    async def _taken(self, path: Path) -> Lock:
        began = said = self._clock.monotonic()
        pause = _LOOK_SECONDS
        while True:
            file: Lock | None = None
            with anyio.CancelScope(shield=True):  # short; a lock that nobody knows of would never be let go
                file = await anyio.to_thread.run_sync(_lock, path)
            if file is not None:
                return file
            await self._clock.sleep(pause)
            pause = min(pause * 1.5, _LONGEST_LOOK)
            if self._clock.monotonic() - said > _SAY_SECONDS:
                said = self._clock.monotonic()
                _log.warning("another program plans this wallet's funding since %.0f s: waiting", said - began)


async def _close(file: Lock) -> None:
    try:
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(file.close)
    finally:
        file.close()  # nothing, unless there was no thread to be had


def _lock(path: Path) -> Lock | None:
    try:
        make_private_dir(path.parent)
        return take_lock(path)
    except OSError as error:
        raise JournalError(f"can't lock {path}: {error}", hint="Nothing was paid. See that there is room") from error


class FundingLine:
    """A wallet's callers that wait for money, and the lock under which what they need is planned and paid."""

    def __init__(self, path: Path | None, clock: Clock) -> None:
        """Begin with nobody.

        Args:
            path: The lock's file, which all programs of this user name alike for the wallet; None: there is none.
            clock: For waiting.
        """
        self.lock = MoneyLock(path, clock)
        """Held while money of the ledger is planned and moved, so that two don't spend the same balance."""
        self._waiting: list[Wish] = []
        self._is_serving = False

    async def served(self, wish: Wish, serve: Callable[[Sequence[Wish]], Awaitable[None]]) -> tuple[Receipt, ...]:
        """Wait until a wish is decided, and serve the line when nobody else does.

        Args:
            wish: What the caller wants.
            serve: Decides wishes for different sub-accounts; those it leaves undecided wait on.

        Returns:
            What was mined for the wish.

        Raises:
            ZgError: What the wish ended with.
        """
        self._waiting.append(wish)
        try:
            while not wish.is_over:
                if self._is_serving:
                    await wish.news.wait()
                    wish.news = anyio.Event()
                else:
                    await self._serve(serve)
        finally:
            wish.given_up = True
            self._leave(wish)
        if wish.error is not None:
            raise wish.error
        return tuple(wish.receipts)

    async def _serve(self, serve: Callable[[Sequence[Wish]], Awaitable[None]]) -> None:
        self._is_serving = True
        try:
            async with self.lock.held():
                first: dict[tuple[Address, str], Wish] = {}
                for wish in self._waiting:
                    first.setdefault((wish.provider, wish.service_type), wish)
                await serve(tuple(first.values()))
        finally:
            self._is_serving = False

    def _leave(self, wish: Wish) -> None:
        """Let the first who still waits serve, if nobody does."""
        self._waiting.remove(wish)
        if self._waiting and not self._is_serving:
            self._waiting[0].news.set()
