"""Who may use a local server: whoever knows its token, from this machine, and no web page.

A page in the user's browser can reach loopback, by its address or by a name that resolves there. So the token is asked
for in a header no page can set unasked, the Host has to be ours, an Origin may only be one that was allowed, and no
answer carries CORS headers.
"""

import hmac
import ipaddress
import secrets
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

from aiohttp import BodyPartReader, web

from zg_async.errors import ConfigError
from zg_async.wire.strict_json import BadJsonError, decode_json

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
MAX_BODY: Final = 32 * 1024 * 1024
"""Bytes of a request, as providers have it."""
TOKEN_BYTES: Final = 32
_MIN_TOKEN: Final = 16


def new_token() -> str:
    """Return a random token."""
    return secrets.token_urlsafe(TOKEN_BYTES)


def error_reply(
    status: int, message: str, *, kind: str = "invalid_request_error", code: str | None = None
) -> web.Response:
    """Refuse in the form OpenAI clients read."""
    body: dict[str, Any] = {"error": {"message": message, "type": kind, "param": None, "code": code}}
    return web.json_response(body, status=status)


class PassedOnError(Exception):
    """An upstream refused the request itself: its words go to the client, nobody else is asked."""

    def __init__(self, status: int, body: str) -> None:
        """Keep status and text."""
        super().__init__(body)
        self.status = status
        self.body = body


class Gate:
    """Checks Host, Origin and token of each request."""

    def __init__(
        self,
        token: str,
        *,
        hosts: Sequence[str] = (),
        origins: Sequence[str] = (),
        public: Sequence[str] = ("/health",),
    ) -> None:
        """Guard a server.

        Args:
            token: What clients send as their API key.
            hosts: Names under which it may be addressed besides loopback.
            origins: Web origins that may use it, for example `http://localhost:5173`.
            public: Paths that tell nothing and need no token.

        Raises:
            ConfigError: The token is too short to be a secret.
        """
        if len(token) < _MIN_TOKEN:
            raise ConfigError(
                f"a token of at least {_MIN_TOKEN} characters is needed", hint="Leave it out: one is made"
            )
        self._token = token.encode()
        self._hosts = frozenset(h.lower() for h in hosts)
        self._origins = frozenset(o.lower().rstrip("/") for o in origins)
        self._public = frozenset(public)

    @web.middleware
    async def middleware(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Let a request pass or refuse it."""
        if not self._is_ours(request.headers.get("Host", "")):
            return error_reply(421, "this server isn't addressed by that name", code="bad_host")
        origin = request.headers.get("Origin")
        if origin is not None and origin.lower().rstrip("/") not in self._origins:
            return error_reply(403, "this origin is not allowed", code="bad_origin")
        if request.path not in self._public and not self._knows(request.headers.get("Authorization", "")):
            return error_reply(401, "the bearer token is missing or wrong", code="invalid_api_key")
        return await handler(request)

    def _knows(self, authorization: str) -> bool:
        scheme, _, token = authorization.partition(" ")
        return scheme.lower() == "bearer" and hmac.compare_digest(token.strip().encode(), self._token)

    def _is_ours(self, host: str) -> bool:
        name = host.rsplit(":", 1)[0] if not host.endswith("]") else host
        name = name.strip("[]").lower()
        if name == "localhost" or name in self._hosts:
            return True
        try:
            return ipaddress.ip_address(name).is_loopback
        except ValueError:
            return False


@asynccontextmanager
async def listening(app: web.Application, *, host: str, port: int) -> AsyncGenerator[str, None]:
    """Run a server until the context ends.

    Args:
        app: What to serve.
        host: The address to listen on.
        port: 0: a free one.

    Yields:
        Its URL, without a path.
    """
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0, handler_cancellation=True)
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, host, port).start()
        except OSError as error:
            raise ConfigError(f"can't listen on {host}:{port}: {error.strerror}", hint="Give another port") from error
        shown = f"[{host}]" if ":" in host else host
        yield f"http://{shown}:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


async def read_json(request: web.Request) -> dict[str, Any]:
    """Read a request's JSON object.

    Raises:
        PassedOnError: It isn't one.
    """
    try:
        value = decode_json(await request.read(), limit=MAX_BODY)
    except BadJsonError as error:
        raise PassedOnError(400, f"the body is no JSON we take: {error}") from None
    if not isinstance(value, dict):
        raise PassedOnError(400, "the body is no object")
    return value


async def read_form(request: web.Request) -> tuple[dict[str, Any], dict[str, bytes], dict[str, str]]:
    """Read a multipart form: its texts, its files, and the files' names.

    Raises:
        PassedOnError: It isn't one, or is too large.
    """
    if not request.content_type.startswith("multipart/"):
        raise PassedOnError(400, "the body is no multipart form")
    fields: dict[str, Any] = {}
    files: dict[str, bytes] = {}
    names: dict[str, str] = {}
    left = MAX_BODY
    async for part in await request.multipart():
        if not isinstance(part, BodyPartReader) or part.name is None:
            continue
        data = bytearray()
        while chunk := await part.read_chunk():
            data += chunk
            if len(data) > left:
                raise PassedOnError(413, "the form is too large")
        left -= len(data)
        if part.filename:
            files[part.name], names[part.name] = bytes(data), part.filename
        else:
            fields[part.name] = data.decode(errors="replace")
    return fields, files, names
