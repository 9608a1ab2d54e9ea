"""One look at the chain for everybody who waits: newest block and all that is asked about it, in one batch a round.

The watcher runs only while somebody waits. After a `nudge` (something was just sent) it looks at once, then
after 50 ms, 100, 200 and so on up to the block time it has measured; a dead node is asked ever more rarely.
"""

import contextlib
import dataclasses
import datetime as dt
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any, Final, Protocol

import anyio
import anyio.lowlevel

from zg_async.background import Background
from zg_async.clock import Clock
from zg_async.errors import ChainError, ChainUnavailableError, ClosedError, RpcError, WrongChainError, ZgError
from zg_async.logs import get_logger
from zg_async.transport.chain_time import ChainTime
from zg_async.transport.rpc import Ask, Rpc, quantity

_log = get_logger("zg_async.heads")
_QUICK: Final = 0.05
_SLOWEST: Final = 2.0
_BROKEN_SLOWEST: Final = 20.0
PATIENCE: Final = 120.0
"""Seconds without any answer after which those who wait are told."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A block's header."""

    number: int
    hash: str
    parent_hash: str
    timestamp: dt.datetime
    base_fee: int | None
    """Neuron per gas; None on a chain without one."""


def parse_block(value: Any) -> Block:
    """Read a block of an answer.

    Raises:
        ChainUnavailableError: The node has none yet, or not any more.
        RpcError: It is none.
    """
    if value is None:
        raise ChainUnavailableError("the node has no block where one should be", hint="It may lag behind; try again")
    try:
        fee = value.get("baseFeePerGas")
        return Block(
            number=quantity(value["number"]),
            hash=str(value["hash"]).lower(),
            parent_hash=str(value["parentHash"]).lower(),
            timestamp=dt.datetime.fromtimestamp(quantity(value["timestamp"]), dt.UTC),
            base_fee=None if fee is None else quantity(fee),
        )
    except (AttributeError, KeyError, TypeError, OverflowError, ValueError):
        raise RpcError("the node sent no block where one should be") from None


class Poll(Protocol):
    """Something that asks in each round."""

    def asks(self) -> Sequence[Ask]:
        """Return this round's questions."""
        ...

    async def answered(self, head: Block, answers: Sequence[Any]) -> None:
        """Take the answers, `ChainError`s in place of refused ones. Must not raise."""
        ...

    def failed(self, error: ZgError) -> None:
        """Learn that the node has given no answer for `PATIENCE` seconds, or that the watcher has ended."""
        ...


class BlockWatcher:
    """The chain's one poller."""

    def __init__(self, rpc: Rpc, clock: Clock, background: Background) -> None:
        """Prepare; nothing runs until somebody joins.

        Args:
            rpc: The node.
            clock: For the waits between rounds.
            background: Where the loop runs.
        """
        self._rpc = rpc
        self._clock = clock
        self._background = background
        self._polls: dict[Poll, int] = {}
        self._running = False
        self._nudged = anyio.Event()
        self._step = 0
        self._last_round = -1e9
        self._head: Block | None = None
        self._head_at = 0.0
        self._block_time = 1.0
        self._broken_since: float | None = None
        self.time = ChainTime(clock)
        """What time deadlines count by."""

    @property
    def head(self) -> Block | None:
        """The newest block as last seen; None before the first look."""
        return self._head

    @property
    def block_time(self) -> float:
        """Seconds between blocks, as measured lately."""
        return self._block_time

    def nudge(self) -> None:
        """Look soon: something was just sent."""
        self._step = 0
        self._nudged.set()

    @contextlib.asynccontextmanager
    async def joined(self, poll: Poll) -> AsyncGenerator[None, None]:
        """Ask a poll's questions in every round meanwhile; may be entered many times at once."""
        self._polls[poll] = self._polls.get(poll, 0) + 1
        if self._polls[poll] == 1:
            self.nudge()
        self._ensure_running()
        try:
            yield
        finally:
            self._polls[poll] -= 1
            if not self._polls[poll]:
                del self._polls[poll]
                self._nudged.set()  # so that an idle loop ends

    async def wait_next(self, after: int) -> Block:
        """Wait for a block above a number.

        Args:
            after: A block number; -1 for the newest block, whatever it is.

        Returns:
            The newest block.

        Raises:
            ChainUnavailableError: No answer for a long time.
        """
        waiter = _HeadWait(after)
        async with self.joined(waiter):
            while waiter.block is None:
                await waiter.change.wait()
                if waiter.error is not None:
                    raise waiter.error.again()
        return waiter.block

    def _ensure_running(self) -> None:
        if not self._running:
            self._running = True
            try:
                self._background.start(self._run(), name="zg block watcher")
            except RuntimeError:
                self._running = False
                raise ClosedError("the chain connection is closed") from None

    async def _run(self) -> None:
        self._broken_since = None
        try:
            while self._polls:
                await self._pause()
                if self._polls:
                    await self._round()
        finally:
            self._running = False
            for poll in tuple(self._polls):  # closed, or broken: nobody may wait for ever
                poll.failed(ClosedError("the chain connection is closed"))

    async def _pause(self) -> None:
        delay = self._delay()
        self._nudged = anyio.Event()
        if delay <= 0:
            await anyio.lowlevel.checkpoint()
            return
        await self._clock.wait(self._nudged, delay)

    def _delay(self) -> float:
        step, self._step = self._step, min(self._step + 1, 12)
        if self._broken_since is not None:
            wanted = min(0.25 * 2.0**step, _BROKEN_SLOWEST)
        else:
            wanted = 0.0 if step == 0 else min(_QUICK * 2.0 ** (step - 1), self._block_time)
        floor = _QUICK - (self._clock.monotonic() - self._last_round)
        return max(wanted, floor if self._last_round > 0 and step <= 1 else 0.0)

    async def _round(self) -> None:
        self._last_round = self._clock.monotonic()
        polls = [(poll, list(poll.asks())) for poll in self._polls]
        asks = [Ask("eth_getBlockByNumber", ["latest", False]), *(ask for _, some in polls for ask in some)]
        try:
            answers = await self._rpc.batch(asks, retries=False)
            if isinstance(answers[0], ChainError):
                raise answers[0]
            head = parse_block(answers[0])
        except ChainError as error:
            self._note_failure(error)
            return
        self._broken_since = None
        self._note_head(head)
        start = 1
        for poll, some in polls:
            await poll.answered(head, answers[start : start + len(some)])
            start += len(some)

    def _note_failure(self, error: ChainError) -> None:
        now = self._clock.monotonic()
        if self._broken_since is None:
            _log.warning("waiting for the node: %s", error)
            self._broken_since = now
            self._step = 0
        # One senseless answer, of a gateway or a node that lags, must not end everybody's waiting.
        if isinstance(error, WrongChainError) or now - self._broken_since > PATIENCE:
            for poll in tuple(self._polls):
                poll.failed(error)

    def _note_head(self, head: Block) -> None:
        self.time.saw(head.timestamp)
        now, old = self._clock.monotonic(), self._head
        if old is None or head.number == old.number:
            self._head_at = self._head_at or now
        elif head.number > old.number:
            seconds = (now - self._head_at) / (head.number - old.number)
            self._block_time = min(max(0.7 * self._block_time + 0.3 * seconds, 0.25), _SLOWEST)
            self._head_at = now
        self._head = head


class _HeadWait:
    def __init__(self, after: int) -> None:
        self._after = after
        self.block: Block | None = None
        self.error: ZgError | None = None
        self.change = anyio.Event()

    def asks(self) -> Sequence[Ask]:
        return ()

    async def answered(self, head: Block, answers: Sequence[Any]) -> None:  # noqa: ARG002
        if head.number > self._after:
            self.block = head
            self.change.set()

    def failed(self, error: ZgError) -> None:
        self.error = error
        self.change.set()


class ReceiptPoll:
    """Waits for the receipt of a hash that no lane knows."""

    def __init__(self, tx_hash: str) -> None:
        """Ask for one hash."""
        self._hash = tx_hash
        self._error: ZgError | None = None
        self._change = anyio.Event()
        self.receipt: Mapping[str, Any] | None = None

    async def wait_round(self) -> None:
        """Wait for the next look.

        Raises:
            ZgError: The node is away, or the chain was closed.
        """
        await self._change.wait()
        if self._error is not None:
            raise self._error.again()

    def asks(self) -> Sequence[Ask]:
        """Return the one question."""
        return (Ask("eth_getTransactionReceipt", [self._hash]),)

    async def answered(self, head: Block, answers: Sequence[Any]) -> None:  # noqa: ARG002
        """Keep the receipt once there is one."""
        if isinstance(answers[0], dict) and answers[0].get("blockHash"):
            self.receipt = answers[0]
        self._turn(None)

    def failed(self, error: ZgError) -> None:
        """Give up."""
        self._turn(error)

    def _turn(self, error: ZgError | None) -> None:
        self._error = error
        self._change.set()
        self._change = anyio.Event()
