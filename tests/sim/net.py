"""Sockets in memory: aiohttp's own client and server talk over pipes that wait, break off and fall silent."""

import asyncio
import contextlib
import contextvars
import email.utils
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Final
from unittest import mock

import aiohttp
import aiohttp.connector
import aiohttp.web_response
import anyio
from aiohttp.client_exceptions import ClientConnectorError
from aiohttp.helpers import ceil_timeout

from tests.sim.loop import SimLoop

LATENCY: Final = 0.005


class Pipe(asyncio.Transport):
    """One side of a connection."""

    def __init__(self, net: "Net", port: int, owner: object) -> None:
        super().__init__({"peername": ("127.0.0.1", 40_000), "sockname": ("127.0.0.1", port)})
        self._net = net
        self.port = port
        self.owner = owner
        self._context = net.context if owner is None else contextvars.copy_context()
        """The client's process; None on the server's side."""
        self.peer: Pipe
        self.protocol: Any = None
        self._closing = self._lost = self._paused = False
        self._inbox: list[bytes | None] = []
        self._free_at = 0.0
        self._flight: deque[tuple[Callable[..., None], tuple[Any, ...]]] = deque()
        self.limit: int | None = None
        """Bytes that still get through; then it breaks off, or falls silent."""
        self.silent = False

    # --- writing

    def write(self, data: Any) -> None:
        if self._closing or not data:
            return
        data = bytes(data)
        if self._net.is_silent(self.port) or (self.silent and self.limit == 0):
            return
        if self.limit is not None:
            data, cut = data[: self.limit], len(data) > self.limit
            self.limit -= len(data)
            if data:
                self._later(self.peer.receive, data)
            if cut and not self.silent:
                self.abort()
            return
        self._later(self.peer.receive, data)

    def writelines(self, list_of_data: Any) -> None:
        self.write(b"".join(bytes(data) for data in list_of_data))

    def _later(self, call: Callable[..., None], *arguments: Any) -> None:
        """Do something on the other side when this has arrived, in order: timers of one moment have none."""
        loop = self._net.loop
        self._free_at = max(self._free_at, loop.now + LATENCY)
        self._flight.append((call, arguments))
        loop.call_at(self._free_at, self._arrive, context=self.peer._context)

    def _arrive(self) -> None:
        call, arguments = self._flight.popleft()
        call(*arguments)

    def can_write_eof(self) -> bool:
        return False

    def get_write_buffer_size(self) -> int:
        return 0

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    # --- reading

    def receive(self, data: bytes | None) -> None:
        if self._lost:
            return
        if self._paused:
            self._inbox.append(data)
        elif data is None:
            self.protocol.eof_received()
            self.close()
        else:
            self.protocol.data_received(data)

    def is_reading(self) -> bool:
        return not self._paused

    def pause_reading(self) -> None:
        self._paused = True

    def resume_reading(self) -> None:
        self._paused = False
        while self._inbox and not self._paused:
            self.receive(self._inbox.pop(0))

    # --- the end

    def set_protocol(self, protocol: Any) -> None:
        self.protocol = protocol

    def get_protocol(self) -> Any:
        return self.protocol

    def is_closing(self) -> bool:
        return self._closing

    def close(self) -> None:
        if self._closing:
            return
        self._closing = True
        if not self._net.is_silent(self.port):
            self._later(self.peer.receive, None)
        self._net.loop.call_soon(self.lose, None, context=self._context)

    def abort(self) -> None:
        if self._lost:
            return
        self._closing = True
        self._net.loop.call_soon(self.lose, None, context=self._context)
        if not self._net.is_silent(self.port):
            self._later(self.peer.lose, ConnectionResetError(104, "reset by peer"))

    def lose(self, error: Exception | None) -> None:
        if self._lost:
            return
        self._lost = self._closing = True
        self._net.pipes.pop(self, None)
        self.protocol.connection_lost(error)


class Net:
    """All connections of a world."""

    def __init__(self, loop: SimLoop) -> None:
        self.loop = loop
        self.context = contextvars.copy_context()
        """In which the servers run: not in that of the client who speaks to them."""
        self.pipes: dict[Pipe, None] = {}
        self.down: dict[int, str] = {}
        """By port: `refuse` or `silent`."""
        self.opened = 0

    def is_silent(self, port: int) -> bool:
        return self.down.get(port) == "silent"

    def take_down(self, port: int, how: str) -> None:
        """A host is away: it refuses, or says nothing at all."""
        if how == "refuse":
            for pipe in [pipe for pipe in self.pipes if pipe.port == port]:
                pipe.abort()
        self.down[port] = how

    def bring_up(self, port: int) -> None:
        """It is back, and knows nothing of the connections of before."""
        if self.down.pop(port, None) == "silent":
            for pipe in [pipe for pipe in self.pipes if pipe.port == port]:
                pipe.abort()

    def kill(self, owner: object) -> None:
        """A process died: its kernel closes its connections."""
        for pipe in [pipe for pipe in self.pipes if pipe.owner is owner]:
            pipe.abort()

    def left_open(self, owner: object) -> list[Pipe]:
        return [pipe for pipe in self.pipes if pipe.owner is owner]

    async def connect(self, factory: Callable[[], Any], port: int, owner: object) -> tuple[Pipe, Any]:
        await asyncio.sleep(LATENCY)
        how = self.down.get(port)
        if how == "silent":
            await anyio.sleep_forever()
        server = self.loop.listeners.get(port)
        if how is not None or server is None:
            raise ConnectionRefusedError(111, "connection refused")
        near, far = Pipe(self, port, owner), Pipe(self, port, None)
        near.peer, far.peer = far, near
        self.opened += 1
        self.pipes[near] = self.pipes[far] = None
        for pipe, make in ((far, server), (near, factory)):
            pipe.protocol = make()
            pipe._context.copy().run(pipe.protocol.connection_made, pipe)
        return near, near.protocol


@contextlib.contextmanager
def in_memory(net: Net, owner: Callable[[], object], time: Callable[[], float]) -> Iterator[None]:
    """Let aiohttp's connector open pipes, and its servers tell this time; names aren't resolved, addresses are."""

    async def connect(self: Any, *args: Any, addr_infos: Any, req: Any, timeout: Any, **options: Any) -> Any:
        failed = options.get("client_error", ClientConnectorError)
        try:
            async with ceil_timeout(timeout.sock_connect, ceil_threshold=timeout.ceil_threshold):
                return await net.connect(args[0], addr_infos[0][-1][1], owner())
        except OSError as error:
            if error.errno is None and isinstance(error, asyncio.TimeoutError):
                raise
            raise failed(req.connection_key, error) from error

    def date() -> str:
        return email.utils.formatdate(time(), usegmt=True)

    sessions: list[aiohttp.ClientSession] = []
    begin = aiohttp.ClientSession.__init__

    def note(self: aiohttp.ClientSession, *args: Any, **options: Any) -> None:
        begin(self, *args, **options)
        sessions.append(self)

    with (
        mock.patch.object(aiohttp.connector.TCPConnector, "_wrap_create_connection", connect),
        mock.patch.object(aiohttp.connector, "monotonic", net.loop.time),
        mock.patch.object(aiohttp.web_response, "rfc822_formatted_time", date),
        mock.patch.object(aiohttp.ClientSession, "__init__", note),
    ):
        try:
            yield
        finally:
            for session in sessions:  # a dead process closes nothing, and its system doesn't complain
                if (connector := session.connector) is not None:
                    connector._conns.clear()
                    connector._closed = True
                    session.detach()
