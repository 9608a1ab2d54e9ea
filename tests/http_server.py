"""Real servers on loopback for tests of the HTTP client."""

import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable

import anyio
import anyio.abc
from aiohttp import web

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@contextlib.asynccontextmanager
async def serving(handler: Handler, *, client_max_size: int = 2**30, ssl_context=None) -> AsyncGenerator[str, None]:
    """Serve every path and method with one handler; gives the base URL."""

    async def handle(request: web.Request) -> web.StreamResponse:
        return await handler(request)

    app = web.Application(client_max_size=client_max_size)
    app.router.add_route("*", "/{path:.*}", handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1, handler_cancellation=True)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=ssl_context)
        await site.start()
        scheme = "https" if ssl_context else "http"
        yield f"{scheme}://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@contextlib.asynccontextmanager
async def raw_serving(*answers: bytes, hold: float = 0.0) -> AsyncGenerator[tuple[str, list[bytes]], None]:
    """Answer the n-th connection with the n-th bytes, then close; gives the base URL and the requests' beginnings."""
    requests: list[bytes] = []
    left = list(answers)

    async def handle(stream: anyio.abc.SocketStream) -> None:
        async with stream:
            with contextlib.suppress(anyio.EndOfStream, anyio.BrokenResourceError):
                requests.append(await stream.receive())
                if left:
                    await stream.send(left.pop(0))
                await anyio.sleep(hold)

    async with contextlib.AsyncExitStack() as stack:
        listener = await stack.enter_async_context(await anyio.create_tcp_listener(local_host="127.0.0.1"))
        group = await stack.enter_async_context(anyio.create_task_group())
        group.start_soon(listener.serve, handle)
        try:
            yield f"http://127.0.0.1:{listener.listeners[0].extra(anyio.abc.SocketAttribute.local_port)}", requests
        finally:
            group.cancel_scope.cancel()
