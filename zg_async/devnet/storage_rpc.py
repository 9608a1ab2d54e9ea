"""JSON-RPC 2.0 as storage nodes and indexers of the field speak it: one request a body, always HTTP 200."""

import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

import anyio.to_thread
from aiohttp import web

BODY_LIMIT: Final = 128 * 2**20
_SMALL: Final = 4096
Method = Callable[..., Awaitable[Any]]


class NodeFailureError(Exception):
    """An error to answer with."""

    def __init__(self, code: int, message: str, data: Any = None) -> None:
        """Make one; `data` None leaves it out."""
        super().__init__(message)
        self.error = {"code": code, "message": message} | ({} if data is None else {"data": data})


def plain(message: str) -> NodeFailureError:
    """Make an error without a class of its own."""
    return NodeFailureError(-32000, message)


def invalid(what: str, why: str) -> NodeFailureError:
    """Make an error about a parameter."""
    return NodeFailureError(-32602, f"Invalid params: {what}", why)


class Encoded(bytes):
    """A result that is JSON already."""


class _Number(str):
    """A number with its spelling."""

    __slots__ = ()


async def answer(request: web.Request, methods: Mapping[str, Method]) -> web.Response:
    """Run the method a request asks for."""
    body = await request.read()
    number: Any = None
    try:
        try:
            asked = _decode(body) if len(body) < _SMALL else await anyio.to_thread.run_sync(_decode, body)
        except ValueError as error:
            raise NodeFailureError(-32700, "parse error") from error
        if not isinstance(asked, dict) or not isinstance(asked.get("method"), str):
            raise NodeFailureError(-32600, "invalid request")
        number = asked.get("id")
        method = methods.get(asked["method"])
        if method is None:
            raise NodeFailureError(-32601, "Method not found")
        params = asked.get("params") or []
        if not isinstance(params, list):
            raise NodeFailureError(-32602, "Invalid params: not a list")
        try:
            result = await method(*params)
        except (TypeError, KeyError, ValueError) as error:
            raise NodeFailureError(-32602, "Invalid params", str(error)) from error
        return _reply(number, b'"result":' + (result if isinstance(result, Encoded) else json.dumps(result).encode()))
    except NodeFailureError as failure:
        return _reply(number, b'"error":' + json.dumps(failure.error).encode())


def _decode(body: bytes) -> Any:
    return json.loads(body, parse_float=_Number)


def _reply(number: Any, rest: bytes) -> web.Response:
    shown = str(number) if isinstance(number, _Number) else json.dumps(number)
    body = b'{"jsonrpc":"2.0","id":' + shown.encode() + b"," + rest + b"}"
    return web.Response(body=body, content_type="application/json")
