"""Planted bugs: what a campaign has to find, or it finds nothing."""

import contextlib
import dataclasses
import uuid
from collections.abc import Callable
from typing import Any, Final
from unittest import mock

from zg_async.background import Background, Child
from zg_async.jobs import delivering, driver, state, window
from zg_async.jobs.driver import Driver
from zg_async.jobs.events import TaskRequested
from zg_async.jobs.guardian import Guardian
from zg_async.jobs.runner import JobRunner
from zg_async.jobs.scheduler import Scheduler
from zg_async.jobs.sqlite import SqliteStore
from zg_async.managers import delivery
from zg_async.managers.fine_tuning import FineTuningManager
from zg_async.managers.funding import Funder
from zg_async.transport import rpc
from zg_async.transport.budget import Budget
from zg_async.transport.chain import Chain
from zg_async.transport.lane import Lane
from zg_async.transport.outbox import MemoryOutbox

Patch = Callable[[], contextlib.AbstractContextManager[Any]]


def _patch(target: Any, name: str, value: Any) -> Patch:
    return lambda: mock.patch.object(target, name, value)


def _new_key_each_time() -> contextlib.AbstractContextManager[Any]:
    """The same effect is signed anew when it is asked for again."""
    write = Chain.write

    async def again(self: Chain, call: Any, *, wallet: str, key: str | None = None) -> Any:
        return await write(self, call, wallet=wallet, key=f"{key}/{uuid.uuid4()}")

    async def forget(self: Chain, key: str, *, wallet: str) -> None:
        return None

    stack = contextlib.ExitStack()
    stack.enter_context(mock.patch.object(Chain, "write", again))
    stack.enter_context(mock.patch.object(Chain, "recall", forget))
    return stack


def _row_after_send() -> contextlib.AbstractContextManager[Any]:
    """A crash right after a row was recorded loses it, though it may be sent: the disk had only promised."""
    append = MemoryOutbox.append

    async def late(self: Any, lane: Any, entries: Any) -> bool:
        if any(entry["kind"] == "signed" for entry in entries):
            lost = self.__dict__.setdefault("late", [])
            lost.append(lane)
            if len(lost) % 3 == 2:
                book = await self.open_lane(lane)
                book.plan(entries)
                self._books[lane] = type(book)(lane)
        return await append(self, lane, entries)

    return mock.patch.object(MemoryOutbox, "append", late)


def _request_off_the_record() -> contextlib.AbstractContextManager[Any]:
    """The request's number isn't remembered, so a lost answer can't be looked up."""
    apply = state._apply
    return mock.patch.object(
        state, "_apply", lambda known, event: known if isinstance(event, TaskRequested) else apply(known, event)
    )


async def _nothing_found(self: FineTuningManager, *asked: object) -> None:
    return None


async def _whatever_is_seen(self: Funder) -> str:
    return "latest"


def _believe(self: Any, digests: Any) -> str:
    return "keccak256"


def _any_bytes() -> contextlib.AbstractContextManager[Any]:
    """A file is taken for the model whatever its hash is."""
    return mock.patch.object(delivery._Check, "matches", _believe)


async def _close_only(self: Background) -> None:
    self._closed = True


def _go_on(self: Child) -> None:
    pass


def _leave_running() -> contextlib.AbstractContextManager[Any]:
    """What was started in the background is never cancelled."""
    stack = contextlib.ExitStack()
    stack.enter_context(mock.patch.object(Background, "aclose", _close_only))
    stack.enter_context(mock.patch.object(Child, "cancel", _go_on))
    return stack


def _signed_without_looking() -> contextlib.AbstractContextManager[Any]:
    """The next number is the chain's, whatever is signed and not mined."""
    quote = Lane.quote

    async def blind(self: Lane, call: Any) -> Any:
        found = await quote(self, call)
        self.book.next_nonce = found.latest
        return found

    return mock.patch.object(Lane, "quote", blind)


def _blind_to_reorganisations() -> contextlib.AbstractContextManager[Any]:
    """What was once seen in a block is believed to be there for ever."""
    stack = contextlib.ExitStack()
    stack.enter_context(mock.patch.object(Driver, "_payments_watched", _unwatched))
    stack.enter_context(mock.patch.object(Chain, "wait_unmoved", _unmoved))
    return stack


def _unwatched(self: Driver) -> contextlib.AbstractAsyncContextManager[None]:
    return contextlib.nullcontext()


async def _unmoved(self: Chain, *asked: object, **more: object) -> bool:
    return False


def _no_fence() -> contextlib.AbstractContextManager[Any]:
    """A runner that was superseded goes on writing, under whatever epoch there is."""
    write = SqliteStore._write

    def unfenced(self: Any, batch: Any) -> None:
        self._epoch = int(self._require().execute("select value from meta where name = 'epoch'").fetchone()[0])
        self._height, self._hash, self._last = 0, bytes(32), {}
        self._check()
        write(self, batch)

    def renew(self: Any) -> None:
        with contextlib.suppress(OSError):
            self._write_lease()
            if self._broken is not None:
                self._mend()

    stack = contextlib.ExitStack()
    stack.enter_context(mock.patch.object(SqliteStore, "_write", unfenced))
    stack.enter_context(mock.patch.object(SqliteStore, "_renew", renew))
    return stack


def _one_attempt() -> contextlib.AbstractContextManager[Any]:
    """What may pass isn't waited for."""
    policy = driver.policy_of
    return mock.patch.object(driver, "policy_of", lambda *asked: dataclasses.replace(policy(*asked), attempts=1))


async def _nothing(*asked: object) -> None:
    return None


BUGS: Final[dict[str, Patch]] = {
    "signs anew on retry": _new_key_each_time,
    "loses rows it has sent": _row_after_send,
    "takes the nonce from the chain": _signed_without_looking,
    "forgets the request": _request_off_the_record,
    "never looks a request up": _patch(FineTuningManager, "find_task_by_nonce", _nothing_found),
    "funds on an old view": _patch(Funder, "_seen", _whatever_is_seen),
    "gives up early": _patch(delivering, "_is_last_call", lambda work: True),
    "waits without a limit": _patch(window.AckWindow, "longest_pause", lambda self, now: 1e5),
    "takes any bytes": _any_bytes,
    "leaves tasks behind": _leave_running,
    "keeps the turn": _patch(Scheduler, "release", lambda self, job_id: None),
    "tries once": _one_attempt,
    "believes a block for ever": _blind_to_reorganisations,
    "pays beyond its limits": _patch(Budget, "_check", lambda self, key, money, wallet: None),
    "writes on when superseded": _no_fence,
    "stands still for good": _patch(JobRunner, "_go_on_later", _nothing),
    "adopts without a policy": _patch(Guardian, "_asked_by", _nothing),
    "believes a gateway": _patch(rpc, "_UNANSWERED", -32600),
}
