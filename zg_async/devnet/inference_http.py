"""What all routes of an inference provider share: answers, refusals, limits. Source: inference.md section 5."""

import contextlib
import json
from collections import defaultdict, deque
from collections.abc import Awaitable, Callable, Iterator
from http import HTTPStatus
from typing import Any, Final

from aiohttp import web

from zg_async.clock import Clock
from zg_async.devnet.inference_settings import InferenceSettings
from zg_async.wire.records import Address
from zg_async.wire.strict_json import BadJsonError, decode_json

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
MAX_BODY: Final = 32 * 2**20
_LIMITED_PER_IP: Final = ("/v1/quote", "/v1/models", "/v1/user/", "/v1/async/")
_PUBLIC_RATE: Final = (10.0, 20.0)
_PROXY_RATE: Final = (15.0, 20.0)


class RefusedError(Exception):
    """A request is refused; the middleware answers."""

    def __init__(
        self,
        text: str,
        status: int = 400,
        *,
        body: Any = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        """Make a refusal.

        Args:
            text: The reason, in the provider's literal words.
            status: The HTTP status.
            body: The whole body, if it isn't `{"error": text}`.
            headers: Sent along.
        """
        super().__init__(text)
        self.text = text
        self.status = status
        self.body = body
        self.headers = headers or {}

    def reply(self) -> web.Response:
        """Return the answer."""
        return json_reply(self.body if self.body is not None else {"error": self.text}, self.status, self.headers)


def json_reply(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    """Answer with JSON as the broker's framework writes it."""
    body = json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
    return web.Response(
        body=body, status=status, headers={"Content-Type": "application/json; charset=utf-8", **(headers or {})}
    )


async def read_body(request: web.Request) -> bytes:
    """Read a body.

    Raises:
        RefusedError: 413, it is larger than 32 MiB.
    """
    try:
        return await request.read()
    except web.HTTPRequestEntityTooLarge:
        raise RefusedError("request body too large", 413) from None


def json_object(body: bytes) -> dict[str, Any] | None:
    """Read a JSON object; None if the bytes are none."""
    try:
        value = decode_json(body, limit=MAX_BODY)
    except BadJsonError:
        return None
    return value if isinstance(value, dict) else None


class Limits:
    """The limits of section 5.5. One per provider."""

    def __init__(self, settings: InferenceSettings, clock: Clock) -> None:
        """Make limits with nothing used."""
        self._settings = settings
        self._clock = clock
        self._buckets: dict[tuple[str, str], tuple[float, float]] = {}
        self._running = 0
        self._per_user: defaultdict[Address, int] = defaultdict(int)
        self._recent: defaultdict[Address, deque[float]] = defaultdict(deque)

    def take(self, request: web.Request) -> None:
        """Take one of the client's tokens where a route is limited per address.

        Raises:
            RefusedError: 429.
        """
        if not self._settings.limits:
            return
        if request.path.startswith("/v1/proxy/"):
            group, (rate, burst) = "proxy", _PROXY_RATE
        elif request.path.startswith(_LIMITED_PER_IP):
            group, (rate, burst) = "public", _PUBLIC_RATE
        else:
            return
        key, now = (group, request.remote or ""), self._clock.monotonic()
        tokens, since = self._buckets.get(key, (burst, now))
        tokens = min(burst, tokens + (now - since) * rate)
        if tokens < 1:
            raise RefusedError("too many requests", 429)
        self._buckets[key] = (tokens - 1, now)

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Count a proxied request while it runs.

        Raises:
            RefusedError: 503, too many run.
        """
        if self._settings.limits and self._running >= self._settings.global_in_flight:
            raise RefusedError("server is busy, please try again later", 503, body={"error": _phrase(503)})
        self._running += 1
        try:
            yield
        finally:
            self._running -= 1

    @contextlib.contextmanager
    def running_for(self, user: Address) -> Iterator[None]:
        """Count a user's request while it runs.

        Raises:
            RefusedError: 429, too many of this user run, or came in the last minute.
        """
        settings = self._settings
        if settings.limits and self._per_user[user] >= settings.user_in_flight:
            raise RefusedError("too many concurrent requests", 429)
        if settings.limits and settings.user_requests_per_minute:
            self._count_minute(user, settings.user_requests_per_minute)
        self._per_user[user] += 1
        try:
            yield
        finally:
            self._per_user[user] -= 1

    def _count_minute(self, user: Address, most: int) -> None:
        now, recent = self._clock.monotonic(), self._recent[user]
        while recent and recent[0] <= now - 60:
            recent.popleft()
        if len(recent) >= most:
            text = f"rate limit exceeded: {most} requests per minute"
            body = {"error": {"type": "rate_limit_error", "message": text}}
            wait = max(1, round(recent[0] + 60 - now))
            raise RefusedError(text, 429, body=body, headers={"Retry-After": str(wait)})
        recent.append(now)


def hidden(status: int) -> RefusedError:
    """Return a refusal whose text is only the status phrase, as newer builds answer from 500 on."""
    return RefusedError(_phrase(status), status)


def _phrase(status: int) -> str:
    return HTTPStatus(status).phrase
