"""One poller for all simulated providers: the chain's time and the deliverables its users acknowledged.

It asks for the newest block and, when that changed, for logs: both cost a node nothing, where polling views would
keep it busy. The last blocks are read again each time, so that a reorg is noticed.
"""

import bisect
import math
from collections.abc import Sequence
from operator import itemgetter
from typing import Final

import anyio

from zg_async.background import Background
from zg_async.devnet.chain_client import ChainClient
from zg_async.errors import ZgError
from zg_async.logs import get_logger
from zg_async.wire.contracts import TOPIC, DeliverableAcknowledged, decode_log
from zg_async.wire.records import Address, Log

_log = get_logger("zg_async.devnet.watch")
_OVERLAP: Final = 3
_SPAN: Final = 5000
_ROUNDING: Final = 2.0


class ChainWatch:
    """Follows a chain and keeps what providers ask of it all the time."""

    def __init__(self, client: ChainClient, contracts: tuple[Address, ...], *, interval: float = 0.2) -> None:
        """Make a watch of some contracts' logs; `interval` is in seconds."""
        self.client = client
        self.interval = interval
        self.offset = 0.0
        """Seconds the chain's clock is ahead of the machine's: moved by `evm_increaseTime`, never negative."""
        self.acknowledged: set[tuple[Address, str]] = set()
        """(provider, deliverable id) of acknowledgements seen; to be confirmed by a view, a reorg may take one back."""
        self.logs: list[Log] = []
        """Logs of the last round, for whoever waits on `changed`."""
        self.changed = anyio.Event()
        """Set and replaced after each round that saw a new block."""
        self._taken: list[tuple[int, DeliverableAcknowledged]] = []
        """Block and event of the acknowledgements since block `_since`, in order."""
        self._since: int | None = None
        self._rounds = anyio.Lock()
        self._contracts = contracts
        self._seen: tuple[int, str] | None = None
        self._background = Background()

    async def start(self) -> None:
        """Read the head once and follow it from then on."""
        await self.round()
        self._background.start(self._run(), name="devnet chain watch")

    async def aclose(self) -> None:
        """Stop following."""
        await self._background.aclose()

    async def _run(self) -> None:
        while True:
            await self.client.clock.sleep(self.interval)
            try:
                await self.round()
            except ZgError as error:
                _log.debug("the chain doesn't answer: %s", error)

    async def round(self) -> None:
        """Look once."""
        async with self._rounds:
            await self._round()

    async def _round(self) -> None:
        number, block_hash, timestamp = await self.client.head()
        if (number, block_hash) == self._seen:
            return
        # Block times are whole seconds: what is up to two ahead is rounding, not a moved clock.
        ahead = timestamp - self.client.clock.now()
        self.offset = float(math.ceil(ahead)) if ahead > _ROUNDING else 0.0
        next_block = number if self._seen is None else min(self._seen[0], number) + 1
        first = max(next_block - (0 if self._seen is None else _OVERLAP), number - _SPAN, 0)
        self.logs = await self.client.logs(self._contracts, first, number)
        self._take(first, gap=first > next_block)
        self._seen = (number, block_hash)
        changed, self.changed = self.changed, anyio.Event()
        changed.set()

    def _take(self, first: int, *, gap: bool) -> None:
        if self._since is None or gap:
            self._since = first
            self._taken.clear()
        while self._taken and self._taken[-1][0] >= first:
            self._taken.pop()
        for log in self.logs:
            event = decode_log(log)
            if isinstance(event, DeliverableAcknowledged):
                self.acknowledged.add((event.provider, event.id))
                self._taken.append((log.block_number, event))

    async def block_number(self) -> int:
        """Return the newest block that was looked at."""
        if self._seen is None:
            await self.round()
        return self._seen[0] if self._seen is not None else 0

    async def acknowledgements(self, first: int, last: int) -> Sequence[DeliverableAcknowledged]:
        """Return the acknowledgements in some blocks, both ends included; older ones than its own are asked for."""
        if self._since is None or first < self._since:
            topic = TOPIC["DeliverableAcknowledged"]
            events = [decode_log(log) for log in await self.client.logs(self._contracts, first, last, topic=topic)]
            return [event for event in events if isinstance(event, DeliverableAcknowledged)]
        start = bisect.bisect_left(self._taken, first, key=itemgetter(0))
        end = bisect.bisect_right(self._taken, last, key=itemgetter(0))
        return [event for _, event in self._taken[start:end]]

    def now(self) -> float:
        """Return the time by the chain's clock, in unix seconds."""
        return self.client.clock.now() + self.offset
