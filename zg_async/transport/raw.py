"""What the other side answered, word for word, for programs that want it beside the parsed values.

All HTTP but JSON-RPC to the chain's node passes `Http.exchange`, so whoever listens here misses no call.
"""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from zg_async.transport.answers import Answer

KEPT: Final = 1024 * 1024
"""Bytes of a body that are kept."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RawReply:
    """One answer over HTTP, refusals included."""

    endpoint: str
    """`METHOD /path`."""
    provider: str | None
    """Whose endpoint it is; None: no provider's, such as a storage node's."""
    status: int
    headers: Mapping[str, str] = dataclasses.field(repr=False)
    """Case-insensitive."""
    request_id: str | None
    """The other side's name for the request, if it gave one."""
    body: bytes = dataclasses.field(repr=False)
    """The beginning of what was read of it, up to 1 MiB; a file's whole content is where the call put it."""
    size: int
    """Bytes of the body that were read."""


class _Listener:
    """A `raw_replies` block; what tasks begun in it hear after its end counts no more."""

    def __init__(self, replies: list[RawReply]) -> None:
        self.replies: list[RawReply] | None = replies


_listeners: ContextVar[tuple[_Listener, ...]] = ContextVar("zg_async_raw_replies", default=())


@contextlib.contextmanager
def raw_replies() -> Iterator[list[RawReply]]:
    """Keep what providers answer to the calls made in a block.

    Any call will do, streams and calls that make several requests included; calls of other tasks aren't heard, but for
    those that were started in the block.

    Yields:
        A list that each answer is added to once its body was read or left, also those of calls that fail or are
        repeated. It stays valid after the block.
    """
    heard: list[RawReply] = []
    listener = _Listener(heard)
    token = _listeners.set((*_listeners.get(), listener))
    try:
        yield heard
    finally:
        _listeners.reset(token)
        listener.replies = None


class Recording:
    """One answer while it is read."""

    def __init__(self, listeners: tuple[_Listener, ...]) -> None:
        """Begin for those who listen."""
        self._listeners = listeners
        self._body = bytearray()
        self._size = 0

    def feed(self, chunk: bytes) -> None:
        """Take in what was read."""
        self._size += len(chunk)
        self._body += chunk[: max(KEPT - len(self._body), 0)]

    def end(self, answer: "Answer") -> None:
        """Tell it."""
        reply = RawReply(
            endpoint=answer.endpoint,
            provider=answer.provider,
            status=answer.status,
            headers=answer.headers,
            request_id=answer.request_id,
            body=bytes(self._body),
            size=self._size,
        )
        for listener in self._listeners:
            if listener.replies is not None:
                listener.replies.append(reply)


def recording() -> Recording | None:
    """Return a recording for the answer to come; None: nobody listens."""
    listeners = _listeners.get()
    return Recording(listeners) if listeners else None
