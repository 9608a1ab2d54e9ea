"""A development node: JSON-RPC over HTTP POST and WebSocket, on loopback, over an embedded EVM."""

import json
from collections.abc import Awaitable, Callable, Sequence
from types import TracebackType
from typing import Any

import anyio
from aiohttp import WSCloseCode, WSMsgType, web
from aiohttp.typedefs import Handler, Middleware

from zg_async.clock import Clock, SystemClock
from zg_async.devnet.engine import EngineControls
from zg_async.devnet.evm import Evm
from zg_async.devnet.evm_records import SignedTx
from zg_async.devnet.node_chain import Change, NodeChain
from zg_async.devnet.node_core import NodeCore
from zg_async.devnet.node_rpc import NodeRpc
from zg_async.devnet.node_rpc_filters import Watch
from zg_async.devnet.node_rpc_format import SERVER_ERROR, Method, RpcFailure, invalid
from zg_async.errors import ClosedError, RpcError
from zg_async.logs import get_logger
from zg_async.wire.strict_json import BadJsonError, decode_json

MAX_REQUEST = 8 * 2**20
_LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
_UNSENT = 4_096
_AT_ONCE = 100
_MOST_WATCHES = 100
_log = get_logger("zg_async.devnet.node")


class Node(EngineControls):
    """A node on its own port, in this process.

    Use it as an async context manager, or `start` and `aclose` it. Anybody who reaches the port can use it; so it binds
    loopback, and refuses browsers (an `Origin` header) and unknown `Host` names.

    Attributes:
        name: `pyevm`.
        core: The chain and its miner, for those in the same process.
    """

    name = "pyevm"

    def __init__(
        self,
        evm: Evm,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        block_time: float | None = None,
        clock: Clock | None = None,
        allow_hosts: Sequence[str] = (),
        middlewares: Sequence[Middleware] = (),
    ) -> None:
        """Make a node; nothing runs until `start`.

        Args:
            evm: The chain; from then on the node's alone.
            host: Address to bind.
            port: TCP port, 0 for any free one.
            block_time: Seconds between blocks; None mines each transaction before its sender gets the answer.
            clock: Wall time and waits.
            allow_hosts: More names that a `Host` header may say.
            middlewares: aiohttp middlewares in front of every request, such as `faults.Faults`.
        """
        self._host, self._port = host, port
        self._clock: Clock = clock or SystemClock()
        self._allowed = {*_LOOPBACK, host, *allow_hosts}
        self._middlewares = tuple(middlewares)
        self.core = NodeCore(NodeChain(evm, self._clock), block_time=block_time, clock=self._clock)
        self._rpc = NodeRpc(self.core)
        self._runner: web.AppRunner | None = None
        self._sockets: set[web.WebSocketResponse] = set()
        self._bound: int | None = None

    @property
    def url(self) -> str:
        """Where it listens, for HTTP and (with `ws`) for WebSocket.

        Raises:
            ClosedError: It doesn't listen.
        """
        if self._bound is None:
            raise ClosedError("the node is not running", hint="Enter it with `async with`")
        return f"http://{self._host}:{self._bound}"

    async def start(self) -> None:
        """Listen, and mine by the clock if asked for.

        Raises:
            OSError: The port is taken.
        """
        app = web.Application(client_max_size=MAX_REQUEST, middlewares=(self._guard, *self._middlewares))
        app.router.add_post("/", self._on_post)
        app.router.add_get("/", self._on_get)
        app.on_shutdown.append(self._drop_sockets)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0, handle_signals=False)
        try:
            await self._runner.setup()
            await web.TCPSite(self._runner, self._host, self._port, backlog=1024, reuse_address=True).start()
            self._bound = self._runner.addresses[0][1]
            self.core.start()
        finally:
            if self._bound is None:
                await self.aclose()

    async def aclose(self) -> None:
        """Stop listening, drop everybody, end mining. Idempotent."""
        with anyio.CancelScope(shield=True):
            self._bound = None
            if self._runner is not None:
                await self._runner.cleanup()
                self._runner = None
                self._rpc.close()
            await self.core.aclose()

    async def __aenter__(self) -> "Node":
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def request(self, method: str, *params: Any) -> Any:
        """Run a JSON-RPC method without a socket.

        Raises:
            RpcError: It answered with an error.
        """
        try:
            return await self._rpc.call(method, *params)
        except RpcFailure as failure:
            body = failure.body
            raise RpcError(body["message"], rpc_code=body["code"], data=body.get("data")) from failure

    # --- HTTP ---

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        name = request.host.rsplit(":", 1)[0] if not request.host.endswith("]") else request.host
        if name not in self._allowed or "Origin" in request.headers:
            raise web.HTTPForbidden(text="this node is for local programs only\n")
        return await handler(request)

    async def _on_post(self, request: web.Request) -> web.Response:
        answer = await self._answer(await request.read())
        return web.Response(body=b"" if answer is None else answer, content_type="application/json")

    async def _answer(self, body: bytes | str, extra: dict[str, Method] | None = None) -> bytes | None:
        try:
            request = decode_json(body, limit=MAX_REQUEST)
        except BadJsonError as error:
            failure = {"code": -32700, "message": f"parse error: {error}"}
            return _dump({"jsonrpc": "2.0", "id": None, "error": failure})
        answer = await self._rpc.answer(request, extra)
        return None if answer is None else _dump(answer)

    # --- WebSocket ---

    async def _on_get(self, request: web.Request) -> web.StreamResponse:
        socket = web.WebSocketResponse(max_msg_size=MAX_REQUEST)
        if not socket.can_prepare(request).ok:
            return web.Response(status=405, text="POST JSON-RPC here, or open a WebSocket\n")
        await socket.prepare(request)
        self._sockets.add(socket)
        client = _SocketClient(socket, self._answer)
        stop = self.core.listen(client.on_change, client.on_waiting)
        try:
            await client.serve()
        finally:
            stop()
            self._sockets.discard(socket)
        return socket

    async def _drop_sockets(self, app: web.Application) -> None:  # noqa: ARG002 - aiohttp's signature
        for socket in tuple(self._sockets):
            with anyio.move_on_after(0.5):
                await socket.close(code=WSCloseCode.GOING_AWAY)


class _SocketClient:
    """One WebSocket: its requests, answered side by side, and its subscriptions."""

    def __init__(self, socket: web.WebSocketResponse, answer: Callable[..., Awaitable[bytes | None]]) -> None:
        self._socket = socket
        self._answer = answer
        self._watches: dict[str, Watch] = {}
        self._count = 0
        self._outbox, self._inbox = anyio.create_memory_object_stream[bytes](_UNSENT)
        self._limiter = anyio.Semaphore(_AT_ONCE)
        self._methods: dict[str, Method] = {"eth_subscribe": self._subscribe, "eth_unsubscribe": self._unsubscribe}

    async def serve(self) -> None:
        """Answer until the other side, or the node, closes."""
        async with self._outbox, self._inbox, anyio.create_task_group() as group:
            group.start_soon(self._write)
            async for message in self._socket:
                if message.type in (WSMsgType.TEXT, WSMsgType.BINARY):
                    await self._limiter.acquire()
                    group.start_soon(self._reply, message.data)
            group.cancel_scope.cancel()

    async def _write(self) -> None:
        async for message in self._inbox:
            try:
                await self._socket.send_str(message.decode())
            except (ConnectionError, RuntimeError):  # gone meanwhile; the reading side ends
                return

    async def _reply(self, body: bytes | str) -> None:
        try:
            answer = await self._answer(body, self._methods)
            if answer is not None:
                await self._outbox.send(answer)
        finally:
            self._limiter.release()

    async def _subscribe(self, kind: Any, options: Any = None) -> str:
        if kind == "newBlockHashes" or not isinstance(kind, str):
            raise invalid("no such subscription")
        if len(self._watches) >= _MOST_WATCHES:
            raise RpcFailure(SERVER_ERROR, "too many subscriptions")
        watch = Watch(kind, options)
        self._count += 1
        self._watches[hex(self._count)] = watch
        return hex(self._count)

    async def _unsubscribe(self, number: Any) -> bool:
        return isinstance(number, str) and self._watches.pop(number, None) is not None

    def on_change(self, change: Change) -> None:
        """Push what a change means."""
        self._push(lambda watch: watch.of_change(change))

    def on_waiting(self, tx: SignedTx) -> None:
        """Push what a waiting transaction means."""
        self._push(lambda watch: watch.of_waiting(tx))

    def _push(self, news: Callable[[Watch], list[Any]]) -> None:
        for number, watch in tuple(self._watches.items()):
            for result in news(watch):
                params = {"subscription": number, "result": result}
                try:
                    self._outbox.send_nowait(_dump({"jsonrpc": "2.0", "method": "eth_subscription", "params": params}))
                except anyio.WouldBlock:
                    _log.warning("a subscriber reads too slowly; its subscriptions end")
                    self._watches.clear()
                    return
                except (anyio.BrokenResourceError, anyio.ClosedResourceError):
                    return


def _dump(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()
