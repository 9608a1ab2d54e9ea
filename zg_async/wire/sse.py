"""Server-sent events -> chat chunks. Pure: whatever way the bytes are split, the same chunks come out.

Tolerated, as upstreams differ: any line end, comments, `event:` and `id:` lines, a missing blank line at the end.
Source: WHATWG HTML 9.2 (parsing), OpenAI chat completion chunks, 0g-serving-broker api/inference (proxy of streams).
"""

import re
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from zg_async.text import printable
from zg_async.wire.inference_api import parse_usage
from zg_async.wire.records import ChatAnswer, Usage
from zg_async.wire.strict_json import BadJsonError, decode_json

EVENT_LIMIT: Final = 1024 * 1024
"""Bytes of one event, its unfinished line included."""
STREAM_LIMIT: Final = 64 * 1024 * 1024
"""Bytes of a whole stream."""
_LINE_END: Final = re.compile(rb"\r\n|\n|\r")
_BOM: Final = b"\xef\xbb\xbf"
_DONE: Final = b"[DONE]"


class StreamError(ValueError):
    """A stream can't be read: an event is too large or isn't JSON, or it says that the answer failed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SseEvent:
    """One event."""

    event: str
    """`message` where the stream names none."""
    data: bytes


class SseParser:
    """Bytes in, events out."""

    def __init__(self, *, event_limit: int = EVENT_LIMIT) -> None:
        """Begin at a stream's first byte."""
        self._limit = event_limit
        self._line = bytearray()
        self._data: list[bytes] = []
        self._size = 0
        self._event = ""
        self._after_cr = False
        self._at_start = True

    def feed(self, data: bytes) -> Generator[SseEvent, None, None]:
        """Take the next bytes; use the generator up before the next call.

        Raises:
            StreamError: An event over the limit.
        """
        if not data:
            return
        is_same_end = self._after_cr and data.startswith(b"\n")
        self._after_cr = data.endswith(b"\r")
        if is_same_end:
            data = data[1:]
        begun, *rest = _LINE_END.split(data) if b"\r" in data else data.split(b"\n")
        self._line += begun
        if rest:
            lines = [bytes(self._line), *rest]
            self._line = bytearray(lines.pop())
            for line in lines:
                if (line or self._data or self._event or self._at_start) and (event := self._take(line)) is not None:
                    yield event
        self._check(len(self._line))

    def finish(self) -> Iterator[SseEvent]:
        """Take the end: an event whose blank line is missing counts, a line without its end only if it is the mark."""
        line = bytes(self._line)
        self._line.clear()
        if line in (b"data: [DONE]", b"data:[DONE]"):
            self._take(line)
        if (event := self._dispatch()) is not None:
            yield event

    def _take(self, line: bytes) -> SseEvent | None:
        if self._at_start:
            self._at_start = False
            line = line.removeprefix(_BOM)
        if not line:
            return self._dispatch()
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"data":
            self._check(len(value))
            self._size += len(value)
            self._data.append(value)
        elif name == b"event":
            self._check(len(value))
            self._event = value.decode(errors="replace")
        return None  # comments, ids, retry times and unknown fields

    def _dispatch(self) -> SseEvent | None:
        lines, event = self._data, self._event
        self._data, self._event, self._size = [], "", 0
        return SseEvent(event=event or "message", data=b"\n".join(lines)) if lines else None

    def _check(self, more: int) -> None:
        if self._size + more > self._limit:
            raise StreamError(f"an event of more than {self._limit} bytes")


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatDelta:
    """A piece of a streamed answer."""

    content: str = ""
    """Text to append; often one token."""
    reasoning: str = ""
    """The same of a thinking model's thoughts, where the provider sends them apart."""
    role: str | None = None
    finish_reason: str | None = None
    index: int = 0
    """Which of several answers; only where `n` was asked for."""
    tool_calls: tuple[Mapping[str, Any], ...] = ()
    """Pieces of calls as the provider sent them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatChunk:
    """One event of a chat stream."""

    deltas: tuple[ChatDelta, ...]
    usage: Usage | None
    raw: Mapping[str, Any] = field(repr=False)


class ChatStreamParser:
    """Bytes in, chunks out; `done` tells whether the end mark came, `size` how many bytes there were."""

    def __init__(self) -> None:
        """Begin at a stream's first byte."""
        self.done = False
        self.size = 0
        self._events = SseParser()

    def feed(self, data: bytes) -> Generator[ChatChunk, None, None]:
        """Take the next bytes; use the generator up before the next call.

        Raises:
            StreamError: It can't be read, is over the limits, or holds an error of the provider.
        """
        self.size += len(data)
        for event in self._events.feed(data):
            if (chunk := self._chunk(event)) is not None:
                yield chunk
        if self.size > STREAM_LIMIT:
            raise StreamError(f"a stream of more than {STREAM_LIMIT} bytes")

    def finish(self) -> Generator[ChatChunk, None, None]:
        """Take the end; without the end mark before it, the stream was cut.

        Raises:
            StreamError: What was left can't be read.
        """
        for event in self._events.finish():
            if (chunk := self._chunk(event)) is not None:
                yield chunk

    def _chunk(self, event: SseEvent) -> ChatChunk | None:
        if self.done:
            return None  # whatever follows the end mark is not part of the answer
        if event.data.strip() == _DONE:
            self.done = True
            return None
        try:
            value = decode_json(event.data, limit=EVENT_LIMIT)
        except BadJsonError as error:
            raise StreamError(f"an event can't be read: {error}") from None
        if not isinstance(value, dict):
            raise StreamError("an event is no object")
        if "error" in value and value["error"] is not None:
            raise StreamError(f"the provider ended the answer: {_error_text(value['error'])}")
        return _read_chunk(value)


def _error_text(error: Any) -> str:
    text = error.get("message") if isinstance(error, dict) else error
    return printable(text) if isinstance(text, str) else "no reason given"


def _read_chunk(value: dict[str, Any]) -> ChatChunk:
    choices = value.get("choices")
    deltas = tuple(_delta(c) for c in choices if isinstance(c, dict)) if isinstance(choices, list) else ()
    usage = parse_usage(value.get("usage"))
    if usage is not None and not usage.prompt_tokens and not usage.completion_tokens:
        usage = None  # some upstreams send zeros until the end
    return ChatChunk(deltas=deltas, usage=usage, raw=value)


def _delta(choice: Mapping[str, Any]) -> ChatDelta:
    delta, index = choice.get("delta"), choice.get("index")
    parts: Mapping[str, Any] = delta if isinstance(delta, dict) else {}
    calls = parts.get("tool_calls")
    return ChatDelta(
        content=_text(parts, "content") or "",
        reasoning=_text(parts, "reasoning_content") or _text(parts, "reasoning") or "",
        role=_text(parts, "role"),
        finish_reason=_text(choice, "finish_reason"),
        index=index if type(index) is int and 0 <= index < 1024 else 0,
        tool_calls=tuple(c for c in calls if isinstance(c, dict)) if isinstance(calls, list) else (),
    )


def _text(value: Mapping[str, Any], key: str) -> str | None:
    found = value.get(key)
    return found if isinstance(found, str) else None


class ChatAssembler:
    """Puts chunks together to the answer that would have come without streaming."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self.usage: Usage | None = None
        self._head: dict[str, Any] = {}
        self._usage: Any = None
        self._choices: dict[int, _Choice] = {}

    def add(self, chunk: ChatChunk) -> None:
        """Add the next chunk."""
        for key in ("id", "created", "model", "system_fingerprint"):
            if key in chunk.raw:
                self._head.setdefault(key, chunk.raw[key])
        if chunk.usage is not None:
            self.usage, self._usage = chunk.usage, chunk.raw["usage"]
        for delta in chunk.deltas:
            self._choices.setdefault(delta.index, _Choice()).add(delta)

    @property
    def text(self) -> str:
        """The first answer's text so far."""
        return "".join(self._choices[0].content) if 0 in self._choices else ""

    def answer(self, *, response_key: str | None) -> ChatAnswer:
        """Return the whole answer.

        Args:
            response_key: The `ZG-Res-Key` header; without it the completion's id names the signature.
        """
        choices = [self._choices[n].to_json(n) for n in sorted(self._choices)]
        raw = {**self._head, "object": "chat.completion", "choices": choices}
        if self._usage is not None:
            raw["usage"] = self._usage
        first = self._choices.get(0)
        return ChatAnswer(
            id=_text(self._head, "id") or "",
            model=_text(self._head, "model") or "",
            content=self.text,
            finish_reason=first.finish_reason if first else None,
            usage=self.usage,
            response_key=response_key or _text(self._head, "id"),
            raw=raw,
        )


class _ToolCall:
    """Pieces are joined at the end: a long call comes in very many."""

    def __init__(self) -> None:
        self.id, self.type = "", "function"
        self.name: list[str] = []
        self.arguments: list[str] = []

    def to_json(self) -> dict[str, Any]:
        function = {"name": "".join(self.name), "arguments": "".join(self.arguments)} if self.name else {}
        return {"id": self.id, "type": self.type, "function": function}


class _Choice:
    def __init__(self) -> None:
        self.content: list[str] = []
        self.reasoning: list[str] = []
        self.role = "assistant"
        self.finish_reason: str | None = None
        self.calls: dict[int, _ToolCall] = {}

    def add(self, delta: ChatDelta) -> None:
        if delta.content:
            self.content.append(delta.content)
        if delta.reasoning:
            self.reasoning.append(delta.reasoning)
        self.role = delta.role or self.role
        self.finish_reason = delta.finish_reason or self.finish_reason
        for piece in delta.tool_calls:
            self._add_call(piece)

    def _add_call(self, piece: Mapping[str, Any]) -> None:
        index = piece.get("index")
        call = self.calls.setdefault(index if type(index) is int else len(self.calls), _ToolCall())
        call.id, call.type = _text(piece, "id") or call.id, _text(piece, "type") or call.type
        function = piece.get("function")
        if isinstance(function, dict):
            call.name.append(_text(function, "name") or "")
            call.arguments.append(_text(function, "arguments") or "")

    def to_json(self, index: int) -> dict[str, Any]:
        message: dict[str, Any] = {"role": self.role, "content": "".join(self.content)}
        if self.reasoning:
            message["reasoning_content"] = "".join(self.reasoning)
        if self.calls:
            message["tool_calls"] = [self.calls[n].to_json() for n in sorted(self.calls)]
        return {"index": index, "message": message, "finish_reason": self.finish_reason}
