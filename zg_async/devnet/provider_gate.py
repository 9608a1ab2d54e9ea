"""What stands before a provider's routes: the shared rate limiter and the HTTP faults."""

import math
from collections.abc import Awaitable, Callable

import anyio
from aiohttp import web

from zg_async.clock import Clock
from zg_async.devnet.provider_rules import Refused
from zg_async.devnet.provider_settings import Faults, Settings

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
_TOO_MANY = "Too many requests. Please try again later."


class Gate:
    """One per provider; survives its restarts."""

    def __init__(self, settings: Settings, faults: Faults, clock: Clock) -> None:
        """Make a gate with full buckets."""
        self.closing = anyio.Event()
        """Set when the server stops, so that stalled transfers end."""
        self.requests: list[tuple[str, str]] = []
        """(method, path) of the latest requests, oldest first, for tests and the control answer."""
        self._settings = settings
        self._faults = faults
        self._clock = clock
        self._buckets: dict[str, tuple[float, float]] = {}

    def limit(self, request: web.Request) -> None:
        """Take one of the client's tokens.

        Raises:
            Refused: 429, the bucket is empty.
        """
        if not self._settings.rate_limit:
            return
        client, now = client_address(request), self._clock.monotonic()
        burst = float(self._settings.rate_burst)
        tokens, since = self._buckets.get(client, (burst, now))
        tokens = min(burst, tokens + (now - since) * self._settings.rate_per_second)
        if tokens < 1 and not math.isclose(tokens, 1):
            self._buckets[client] = (tokens, now)
            raise Refused(_TOO_MANY, 429)
        self._buckets[client] = (tokens - 1, now)

    async def middleware(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Apply the HTTP faults around a route."""
        faults, path = self._faults, request.path
        self.requests.append((request.method, request.path_qs))
        del self.requests[:-500]
        if faults.latency and faults.path in path:
            await self._clock.sleep(faults.latency)
        if faults.strikes("drop", path):
            return _hang_up(request)
        if faults.strikes("error_5xx", path):
            return web.json_response({"error": "Internal Server Error"}, status=500)
        if faults.strikes("too_many", path):
            return web.json_response({"error": _TOO_MANY}, status=429)
        answer = await handler(request)
        if not answer.prepared and faults.strikes("lose_answer", path):
            return _hang_up(request)
        return answer

    middleware.__middleware_version__ = 1  # type: ignore[attr-defined]  # what aiohttp's decorator sets


def client_address(request: web.Request) -> str:
    """Return whose bucket a request takes from, by the headers a proxy in front would set."""
    forwarded = request.headers.get("X-Forwarded-For", "").split(",")[0].strip()
    return forwarded or request.headers.get("X-Real-IP", "").strip() or request.remote or ""


def _hang_up(request: web.Request) -> web.Response:
    if request.transport is not None:
        request.transport.abort()
    return web.Response(status=500)
