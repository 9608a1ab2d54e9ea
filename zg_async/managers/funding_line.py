"""Who waits for money of one wallet: callers that come while a round is under way are served together in the next.

Theory. One caller at a time serves all that wait, each sub-account once, and each goes on as soon as its own part is
decided. So many jobs of a wallet that begin together cost one deposit and a few blocks, not a deposit and two blocks
each. Whoever isn't served to the end, because the one who served was cancelled, waits in the line as before, and the
first in it serves next: each finds by its own key what was sent for it.
"""

import dataclasses
from collections.abc import Awaitable, Callable, Sequence

import anyio

from zg_async.errors import ZgError
from zg_async.managers.services import ServiceType
from zg_async.wire.records import Address, Receipt


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


class FundingLine:
    """A wallet's callers that wait for money, and the lock under which what they need is planned and paid."""

    def __init__(self) -> None:
        """Begin with nobody."""
        self.lock = anyio.Lock()
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
            async with self.lock:
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
