"""Chat: whole answers and streams, each proven before it counts as finished."""

import dataclasses
import hashlib
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing
from types import TracebackType
from typing import Any, Self

from zg_async.errors import ClosedError, ConfigError, ProviderReplyError, ZgError
from zg_async.managers.inference_calls import InferenceCalls, Request, json_request
from zg_async.managers.inference_funds import fee_of_chat
from zg_async.managers.inference_services import Verify
from zg_async.tracing import observed
from zg_async.transport.answers import Answer
from zg_async.wire import inference_api
from zg_async.wire.records import ChatAnswer, InferenceService
from zg_async.wire.sse import ChatAssembler, ChatChunk, ChatDelta, ChatStreamParser, StreamError

Message = Mapping[str, object]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class OpenAiConfig:
    """What a stock OpenAI client needs to talk to a provider directly. `repr` hides the key."""

    base_url: str
    model: str
    api_key: str = dataclasses.field(repr=False)
    """A session token, good for at least an hour; a secret."""
    refresh_api_key: Callable[[], Awaitable[str]] = dataclasses.field(repr=False)
    """Returns a token that is good now: `AsyncOpenAI(base_url=c.base_url, api_key=c.refresh_api_key)` asks it before
    each request."""


@dataclasses.dataclass(frozen=True, slots=True)
class _Open:
    """A stream that has begun."""

    service: InferenceService
    request: Request
    answer: Answer


Around = Callable[[Callable[[], Awaitable[_Open]]], Awaitable[_Open]]
Opener = Callable[[AsyncExitStack], Awaitable[_Open]]
Finish = Callable[[_Open, ChatAnswer, str, Verify | None], Awaitable[ChatAnswer]]


class ChatStream:
    """A streamed answer: an async context manager whose value is the iterator over its deltas.

    The deltas come as the provider sends them, before anything is proven; the iteration ends normally only when the
    stream was complete and its proof is as good as asked. `answer()` then has text, usage, fee and proof. Leaving early
    closes the connection; the provider bills the whole answer all the same.
    """

    def __init__(self, opener: Opener, finish: Finish, verify: Verify | None) -> None:
        """Prepare a stream; nothing is sent before it is entered. `inference.chat_stream` makes one."""
        self._opener = opener
        self._finish = finish
        self._verify: Verify | None = verify
        self._stack = AsyncExitStack()
        self._open: _Open | None = None
        self._chunks: AsyncGenerator[bytes, None] | None = None
        self._parser = ChatStreamParser()
        self._assembler = ChatAssembler()
        self._hash = hashlib.sha256()
        self._ready: deque[ChatChunk] = deque()
        self._deltas: deque[ChatDelta] = deque()
        self._result: ChatAnswer | ZgError | None = None

    async def __aenter__(self) -> Self:
        if self._open is not None:
            raise ClosedError("a stream is entered once", hint="Call chat_stream again")
        async with AsyncExitStack() as stack:
            self._open = await self._opener(stack)
            self._chunks = await stack.enter_async_context(aclosing(self._open.answer.chunks()))
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._chunks = None
        await self._stack.aclose()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> ChatDelta:
        while not self._deltas:
            chunk = await self.next_chunk()
            if chunk is None:
                raise StopAsyncIteration
            self._deltas.extend(chunk.deltas)
        return self._deltas.popleft()

    @property
    def text(self) -> str:
        """The text so far; proven only once the stream has ended."""
        return self._assembler.text

    @property
    def response_key(self) -> str | None:
        """The `ZG-Res-Key` header."""
        return self._open.answer.headers.get("ZG-Res-Key") if self._open else None

    async def next_chunk(self) -> ChatChunk | None:
        """Return the next event as the provider sent it, usage included; None at the end, which is proven then.

        Raises:
            ProviderReplyError: It can't be read, was cut, or the provider broke it off.
            ProviderUnavailableError: The connection broke.
            VerificationError: It was changed, or somebody else signed it.
        """
        while not self._ready and self._result is None:
            await self._read()
        if self._ready:
            return self._ready.popleft()
        if isinstance(self._result, ZgError):
            raise self._result
        return None

    async def answer(self) -> ChatAnswer:
        """Read to the end, and return the whole answer; see `next_chunk` for what it raises."""
        while await self.next_chunk() is not None:
            pass
        if not isinstance(self._result, ChatAnswer):  # not reached: next_chunk has raised
            raise ClosedError("the stream has no answer")
        return self._result

    async def _read(self) -> None:
        """Take what comes next, or come to the end."""
        if self._open is None or self._chunks is None:
            raise ClosedError("the stream isn't open", hint="Read it inside `async with`")
        try:
            data = await anext(self._chunks, None)
            if data is None:
                self._take(self._parser.finish())
                self._result = await self._end(self._open)
            else:
                self._hash.update(data)
                self._take(self._parser.feed(data))
        except StreamError as error:
            self._result = self._reply_error(str(error))
        except ZgError as error:
            self._result = error

    def _take(self, chunks: Iterable[ChatChunk]) -> None:
        for chunk in chunks:
            self._assembler.add(chunk)
            self._ready.append(chunk)

    async def _end(self, opened: _Open) -> ChatAnswer:
        if not self._parser.done:
            raise self._reply_error("it ended before its end mark")
        self._chunks = None
        await self._stack.aclose()  # the turn is over; the proof is another request
        answer = self._assembler.answer(response_key=self.response_key)
        return await self._finish(opened, answer, self._hash.hexdigest(), self._verify)

    def _reply_error(self, reason: str) -> ProviderReplyError:
        opened = self._open
        return ProviderReplyError(
            f"the streamed answer is no good: {reason}",
            provider=opened.service.provider if opened else None,
            endpoint=opened.answer.endpoint if opened else None,
            hint="The provider may have billed it",
        )


@observed("inference")
class InferenceChat(InferenceCalls):
    """Requests, and chat on top of them."""

    async def chat(
        self,
        provider: str,
        messages: str | Sequence[Message],
        *,
        model: str | None = None,
        verify: Verify | None = None,
        **fields: Any,
    ) -> ChatAnswer:
        """Ask a provider's model, and wait for the whole answer.

        Args:
            provider: The provider's address.
            messages: The conversation as OpenAI messages, or one user message.
            model: A model, or an adapter's name; None: the service's own.
            verify: How the answer has to be proven; None: as the broker's policy says, which is by its bytes.
            fields: Any other field of an OpenAI chat completion, passed through.

        Returns:
            The answer with usage, estimated fee and proof.

        Raises:
            SignerNotAcknowledgedError: This wallet or the contract's owner hasn't acknowledged the signer.
            ProviderRejectedError: The provider refused, for example for want of balance.
            VerificationError: The answer was changed, or somebody else signed it.
        """
        if fields.get("stream"):
            raise ConfigError("chat() waits for the whole answer", hint="Call chat_stream")
        service = await self.recent_service(provider)
        request = _chat_request(service, messages, model, fields)
        async with AsyncExitStack() as stack:
            answer = await self._send(service, request, stack)
            body = await answer.read(inference_api.CHAT_REPLY_LIMIT)
            opened = _Open(service, request, answer)
        key = answer.headers.get("ZG-Res-Key")
        parsed = inference_api.parse_chat(body, response_key=key, provider=service.provider)
        return await self._finish_chat(opened, parsed, hashlib.sha256(body).hexdigest(), verify)

    def chat_stream(
        self,
        provider: str,
        messages: str | Sequence[Message],
        *,
        model: str | None = None,
        verify: Verify | None = None,
        around: Around | None = None,
        **fields: Any,
    ) -> ChatStream:
        """Ask a provider's model, and take its answer as it comes.

            async with broker.inference.chat_stream(provider, "Hello") as stream:
                async for delta in stream:
                    print(delta.content, end="")
                answer = await stream.answer()

        Args:
            provider: The provider's address.
            messages: The conversation as OpenAI messages, or one user message.
            model: A model, or an adapter's name; None: the service's own.
            verify: How the answer has to be proven; None: as the broker's policy says, which is by its bytes.
            around: Calls what opens the stream, again if it likes; None: it is opened once.
            fields: Any other field of an OpenAI chat completion, passed through. Usage is asked for unless
                `stream_options` says otherwise.

        Returns:
            The stream; entering it sends the request and raises what `chat` does.
        """

        async def opener(stack: AsyncExitStack) -> _Open:
            async def begin() -> _Open:
                return await self._open_stream(stack, provider, messages, model, fields)

            return await (around(begin) if around else begin())

        return ChatStream(opener, self._finish_chat, verify)

    async def _open_stream(
        self,
        stack: AsyncExitStack,
        provider: str,
        messages: str | Sequence[Message],
        model: str | None,
        fields: Mapping[str, Any],
    ) -> _Open:
        service = await self.recent_service(provider)
        wanted = {"stream_options": {"include_usage": True}, **fields, "stream": True}
        request = _chat_request(service, messages, model, wanted)
        async with AsyncExitStack() as attempt:  # a refusal gives its turn back
            answer = await self._send(service, request, attempt)
            stack.push_async_exit(attempt.pop_all())
        return _Open(service, request, answer)

    async def _finish_chat(
        self, opened: _Open, answer: ChatAnswer, response_hash: str, verify: Verify | None
    ) -> ChatAnswer:
        """Count an answer, and prove it."""
        service, request = opened.service, opened.request
        fee = fee_of_chat(service, answer.usage, request.body.decode(), answer.content)
        self._charge(service.provider, answer.usage, fee)
        proof = await self._require_proof(service, answer.response_key, request.sha256, (response_hash,), verify)
        return dataclasses.replace(answer, fee=fee, proof=proof)

    async def openai_config(self, provider: str, model: str | None = None) -> OpenAiConfig:
        """Return what a stock OpenAI client needs to talk to a provider directly.

        Its answers aren't verified, nor counted, nor does it wait its turn: `zg serve` does all that for any client.

        Args:
            provider: The provider's address.
            model: A model, or an adapter's name; None: the service's own.
        """
        meta = await self.get_service_metadata(provider, model)

        async def refresh() -> str:
            return (await self.session_token(provider)).raw_token

        return OpenAiConfig(base_url=meta.endpoint, model=meta.model, api_key=await refresh(), refresh_api_key=refresh)


def _chat_request(
    service: InferenceService, messages: str | Sequence[Message], model: str | None, fields: Mapping[str, Any]
) -> Request:
    if isinstance(messages, str):
        messages = [{"role": "user", "content": messages}]
    return json_request("chat/completions", {"model": model or service.model, "messages": list(messages), **fields})
