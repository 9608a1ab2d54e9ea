"""Faults on the way: lost requests and answers, delays, refusals, cut downloads, false results.

`Faults` holds what shall go wrong. Its `middleware` stands in front of any aiohttp server of the devnet; `FaultProxy`
does the same in front of any URL (anvil, a real node, a provider in another process).

An operation is named by the JSON-RPC method (`eth_sendRawTransaction`) or by verb and path (`POST /v1/quote`);
patterns are those of `fnmatch`. A batch has the names of all its requests, and the fault hits the batch.
"""

import contextlib
import json
import random
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from types import TracebackType
from typing import Any, Literal

import aiohttp
import anyio
from aiohttp import web
from aiohttp.typedefs import Handler
from yarl import URL

from zg_async.clock import Clock, SystemClock
from zg_async.errors import ClosedError
from zg_async.wire.strict_json import BadJsonError, decode_json

Kind = Literal["lose_request", "lose_answer", "delay", "status", "rpc_error", "result", "cut"]
_HOP_HEADERS = frozenset(
    ("connection", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade", "host", "content-length", "expect")
)
_JSON_LIMIT = 8 * 2**20
_PIECE = 2**18
_SMALL = 2**16
"""Bodies up to this many bytes are passed on whole, which costs half of streaming them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One thing to go wrong."""

    kind: Kind
    """`lose_request`: closed before any effect. `lose_answer`: closed after the effect. `delay`: later by `seconds`.
    `status`: HTTP `status` with `body`. `rpc_error`: a JSON-RPC error. `result`: a JSON-RPC result replaced by
    `result`. `cut`: the body ends after `after` bytes and the connection with it. The last two need the effect."""
    operation: str = "*"
    times: int | None = 1
    """How often; None for ever."""
    skip: int = 0
    """How many matching requests are spared first."""
    chance: float = 1.0
    """Of being hit, for each matching request."""
    seconds: float = 0.0
    status: int = 503
    body: str = ""
    retry_after: str | None = None
    """The `Retry-After` header of `status`."""
    code: int = -32005
    message: str = "rate limit exceeded"
    result: Any = None
    after: int = 0


class Faults:
    """What shall go wrong, and what did.

    Attributes:
        hits: Operation names and kind of each fault that struck, oldest first.
    """

    def __init__(self, *, seed: int = 0, clock: Clock | None = None) -> None:
        """Make an empty set; `seed` decides where `chance` strikes."""
        self.hits: list[tuple[str, Kind]] = []
        self._random = random.Random(seed)
        self._clock = clock or SystemClock()
        self._armed: dict[int, tuple[Fault, list[int]]] = {}
        self._count = 0

    def add(self, fault: Fault) -> int:
        """Arm a fault; return its number."""
        self._count += 1
        self._armed[self._count] = (fault, [fault.skip, -1 if fault.times is None else fault.times])
        return self._count

    def remove(self, number: int) -> bool:
        """Disarm a fault; return whether it was armed."""
        return self._armed.pop(number, None) is not None

    @property
    def armed(self) -> bool:
        """Whether any fault could strike."""
        return bool(self._armed)

    def clear(self) -> None:
        """Disarm all."""
        self._armed.clear()

    def take(self, names: Iterable[str]) -> list[Fault]:
        """List the faults that strike a request, each used up by one."""
        struck = []
        for number, (fault, left) in tuple(self._armed.items()):
            name = next((one for one in names if fnmatchcase(one, fault.operation)), None)
            if name is None or self._random.random() >= fault.chance:
                continue
            if left[0]:
                left[0] -= 1
                continue
            left[1] -= 1
            if not left[1]:
                self._armed.pop(number)
            self.hits.append((name, fault.kind))
            struck.append(fault)
        return struck

    @web.middleware
    async def middleware(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Let the armed faults strike a request of an aiohttp server."""
        if not self._armed:
            return await handler(request)
        seen = await look(request)
        faults = self.take(seen.names)
        early = await self.before(faults, request, seen.rpc)
        if early is not None:
            return early
        answer = await handler(request)
        return await after_effect(faults, request, answer)

    async def before(self, faults: Sequence[Fault], request: web.Request, rpc: Any) -> web.StreamResponse | None:
        """Strike before the effect; None if the request goes on."""
        for fault in faults:
            match fault.kind:
                case "delay":
                    await self._clock.sleep(fault.seconds)
                case "lose_request":
                    return hang_up(request)
                case "status":
                    headers = {} if fault.retry_after is None else {"Retry-After": fault.retry_after}
                    return web.Response(status=fault.status, text=fault.body, headers=headers)
                case "rpc_error":
                    return web.json_response(_rpc_errors(rpc, fault))
                case _:
                    pass
        return None


async def after_effect(faults: Sequence[Fault], request: web.Request, answer: web.StreamResponse) -> web.StreamResponse:
    """Strike after the effect."""
    for fault in faults:
        if fault.kind == "lose_answer":
            return hang_up(request)
        if fault.kind in ("result", "cut") and isinstance(answer, web.Response) and isinstance(answer.body, bytes):
            if fault.kind == "result":
                answer.body = _replaced(answer.body, fault.result)
            else:
                return await _cut(request, answer, fault.after)
    return answer


@dataclass(frozen=True, slots=True)
class Seen:
    """What was read of a request to find its names."""

    names: tuple[str, ...]
    rpc: Any = None
    """Its JSON-RPC content."""
    body: bytes | None = None
    """Its body, if it was read."""


async def look(request: web.Request) -> Seen:
    """Find a request's operation names."""
    path = f"{request.method} {request.path}"
    if request.method != "POST" or request.content_type != "application/json" or not request.can_read_body:
        return Seen((path,))
    body = await request.read()
    try:
        rpc = decode_json(body, limit=_JSON_LIMIT)
    except BadJsonError:
        return Seen((path,), body=body)
    requests = rpc if isinstance(rpc, list) else [rpc]
    methods = [one.get("method") for one in requests if isinstance(one, dict)]
    return Seen((path, *(name for name in methods if isinstance(name, str))), rpc, body)


def hang_up(request: web.Request) -> web.StreamResponse:
    """End the connection without an answer."""
    if request.transport is not None:
        request.transport.abort()
    return web.Response()


def _rpc_errors(rpc: Any, fault: Fault) -> Any:
    error = {"code": fault.code, "message": fault.message}

    def one(request: Any) -> dict[str, Any]:
        number = request.get("id") if isinstance(request, dict) else None
        return {"jsonrpc": "2.0", "id": number, "error": error}

    return [one(request) for request in rpc] if isinstance(rpc, list) else one(rpc)


def _replaced(body: bytes, result: Any) -> bytes:
    answers = json.loads(body)
    for answer in answers if isinstance(answers, list) else [answers]:
        if "result" in answer:
            answer["result"] = result
    return json.dumps(answers).encode()


async def _cut(request: web.Request, answer: web.Response, after: int) -> web.StreamResponse:
    body = answer.body if isinstance(answer.body, bytes) else b""
    short = web.StreamResponse(status=answer.status, headers={"Content-Type": answer.content_type})
    short.content_length = len(body)
    with contextlib.suppress(ConnectionError):  # who asked may have gone
        await short.prepare(request)
        await short.write(body[:after])
    if request.transport is not None:
        request.transport.close()
    return short


class FaultProxy:
    """A proxy on loopback in front of one URL; all but the faults goes through unchanged, WebSockets too.

    Attributes:
        faults: What shall go wrong.
    """

    def __init__(self, target: str, faults: Faults | None = None, *, host: str = "127.0.0.1", port: int = 0) -> None:
        """Make a proxy; nothing runs until it is entered.

        Args:
            target: The URL to stand in front of, without a path.
            faults: Shared with others, None for its own.
            host: Address to bind.
            port: TCP port, 0 for any free one.
        """
        self.faults = faults or Faults()
        self._target = target.rstrip("/")
        self._host, self._port = host, port
        self._runner: web.AppRunner | None = None
        self._session: aiohttp.ClientSession | None = None
        self._bound: int | None = None
        self._sockets: set[web.WebSocketResponse] = set()

    @property
    def url(self) -> str:
        """Where it listens.

        Raises:
            ClosedError: It doesn't.
        """
        if self._bound is None:
            raise ClosedError("the fault proxy is not running", hint="Enter it with `async with`")
        return f"http://{self._host}:{self._bound}"

    async def start(self) -> None:
        """Listen.

        Raises:
            OSError: The port is taken.
        """
        app = web.Application(client_max_size=_JSON_LIMIT)
        app.router.add_route("*", "/{path:.*}", self._forward)
        app.on_shutdown.append(self._shut)
        self._session = aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=10),
            connector=aiohttp.TCPConnector(limit=0),
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
        )
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0, handle_signals=False)
        try:
            await self._runner.setup()
            await web.TCPSite(self._runner, self._host, self._port, backlog=1024, reuse_address=True).start()
            self._bound = self._runner.addresses[0][1]
        finally:
            if self._bound is None:
                await self.aclose()

    async def aclose(self) -> None:
        """Stop listening. Idempotent."""
        with anyio.CancelScope(shield=True):
            self._bound = None
            if self._runner is not None:
                await self._runner.cleanup()
                self._runner = None
            if self._session is not None:
                await self._session.close()
                self._session = None

    async def drop_sockets(self) -> None:
        """End all WebSockets, as a restarted node does."""
        for socket in tuple(self._sockets):
            with anyio.move_on_after(0.5):
                await socket.close()

    async def _shut(self, app: web.Application) -> None:  # noqa: ARG002 - aiohttp's signature
        await self.drop_sockets()

    async def __aenter__(self) -> "FaultProxy":
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def _forward(self, request: web.Request) -> web.StreamResponse:
        seen, faults = Seen(()), list[Fault]()
        if self.faults.armed:
            seen = await look(request)
            faults = self.faults.take(seen.names)
            early = await self.faults.before(faults, request, seen.rpc)
            if early is not None:
                return early
        if "Upgrade" in request.headers and web.WebSocketResponse().can_prepare(request).ok:
            return await self._bridge(request)
        try:
            async with self._upstream(request, seen) as answer:
                if any(fault.kind in ("lose_answer", "result") for fault in faults):
                    whole = web.Response(
                        status=answer.status, headers=_passed(answer.headers), body=await answer.read()
                    )
                    return await after_effect(faults, request, whole)
                cut = next((fault.after for fault in faults if fault.kind == "cut"), None)
                return await _stream(request, answer, cut)
        except aiohttp.ClientError:
            return hang_up(request)

    @asynccontextmanager
    async def _upstream(self, request: web.Request, seen: Seen) -> AsyncGenerator[aiohttp.ClientResponse, None]:
        if self._session is None:
            raise ClosedError("the fault proxy is closed")
        headers = _passed(request.headers)
        if request.content_length is not None:
            headers["Content-Length"] = str(request.content_length)
        if seen.rpc is not None:
            headers.pop("Accept-Encoding", None)  # the answer may have to be changed
        body: bytes | aiohttp.StreamReader | None = seen.body
        if body is None and request.can_read_body:
            body = await request.read() if _is_small(request.content_length) else request.content
        async with self._session.request(
            request.method, self._address(request), headers=headers, data=body, allow_redirects=False
        ) as answer:
            yield answer

    def _address(self, request: web.Request) -> URL:
        return URL(self._target + request.raw_path, encoded=True)

    async def _bridge(self, request: web.Request) -> web.StreamResponse:
        near = web.WebSocketResponse(max_msg_size=0)
        await near.prepare(request)
        self._sockets.add(near)
        try:
            if self._session is None:
                return near
            async with (
                self._session.ws_connect(self._address(request), max_msg_size=0) as far,
                anyio.create_task_group() as group,
            ):
                group.start_soon(_pump, far, near, group.cancel_scope)
                await _pump(near, far, group.cancel_scope)
        except aiohttp.ClientError:
            pass
        finally:
            self._sockets.discard(near)
            with anyio.move_on_after(0.5, shield=True):
                await near.close()
        return near


async def _pump(
    source: web.WebSocketResponse | aiohttp.ClientWebSocketResponse,
    sink: web.WebSocketResponse | aiohttp.ClientWebSocketResponse,
    scope: anyio.CancelScope,
) -> None:
    async for message in source:
        try:
            if message.type == aiohttp.WSMsgType.TEXT:
                await sink.send_str(message.data)
            elif message.type == aiohttp.WSMsgType.BINARY:
                await sink.send_bytes(message.data)
        except (ConnectionError, RuntimeError):
            break
    scope.cancel()


def _is_small(length: int | None) -> bool:
    return length is not None and 0 < length <= _SMALL


async def _stream(request: web.Request, answer: aiohttp.ClientResponse, cut: int | None) -> web.StreamResponse:
    if cut is None and request.method != "HEAD" and _is_small(answer.content_length):
        return web.Response(status=answer.status, headers=_passed(answer.headers), body=await answer.read())
    reply = web.StreamResponse(status=answer.status, headers=_passed(answer.headers))
    if answer.content_length is not None:
        reply.content_length = answer.content_length
    await reply.prepare(request)
    sent = 0
    async for piece in answer.content.iter_chunked(_PIECE):
        if cut is not None and sent + len(piece) >= cut:
            await reply.write(piece[: cut - sent])
            if request.transport is not None:
                request.transport.close()
            return reply
        await reply.write(piece)
        sent += len(piece)
    await reply.write_eof()
    return reply


def _passed(headers: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in headers.items() if name.lower() not in _HOP_HEADERS}
