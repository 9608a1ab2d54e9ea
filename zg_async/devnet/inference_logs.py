"""A simulated provider's log files, for its own wallet only. Source: inference.md 5.4."""

import collections
import datetime as dt
from typing import Final

from aiohttp import web

from zg_async.clock import Clock
from zg_async.devnet.inference_auth import check_provider
from zg_async.devnet.inference_http import RefusedError, json_reply
from zg_async.wire.inference_api import InvalidTokenError
from zg_async.wire.records import Address

COMPONENTS: Final = ("broker", "event")
_LINES: Final = 1000


class ProviderLogs:
    """One file per component, held in memory."""

    def __init__(self, provider: Address, clock: Clock) -> None:
        """Begin empty; only `provider` may read."""
        self._provider = provider
        self._clock = clock
        self._lines: dict[str, collections.deque[str]] = {c: collections.deque(maxlen=_LINES) for c in COMPONENTS}
        self._changed: dict[str, float] = dict.fromkeys(COMPONENTS, clock.now())

    def note(self, component: str, text: str) -> None:
        """Write a line."""
        self._changed[component] = self._clock.now()
        time = dt.datetime.fromtimestamp(self._changed[component], dt.UTC)
        self._lines[component].append(f"[{time.isoformat(timespec='milliseconds')}] {text}\n")

    def routes(self) -> list[web.RouteDef]:
        """Return the routes."""
        return [web.get("/v1/logs", self._list), web.get("/v1/logs/{component}/{name}", self._read)]

    async def _list(self, request: web.Request) -> web.Response:
        self._check(request)
        wanted = request.query.get("component", "both")
        if wanted not in (*COMPONENTS, "both"):
            raise RefusedError("component must be broker, event or both")
        rows = [
            {
                "component": component,
                "name": _name(component),
                "size": len(self._text(component)),
                "modifiedTime": int(self._changed[component]),
                "isCurrentLog": True,
            }
            for component in COMPONENTS
            if wanted in (component, "both")
        ]
        return json_reply({"logs": rows})

    async def _read(self, request: web.Request) -> web.Response:
        self._check(request)
        component = request.match_info["component"]
        if component not in COMPONENTS or request.match_info["name"] != _name(component):
            raise RefusedError("log file not found", 404)
        return web.Response(body=self._text(component), content_type="text/plain")

    def _check(self, request: web.Request) -> None:
        try:
            check_provider(request.headers, self._provider, self._clock.now())
        except InvalidTokenError as error:
            raise RefusedError(str(error), 401) from None

    def _text(self, component: str) -> bytes:
        return "".join(self._lines[component]).encode()


def _name(component: str) -> str:
    return f"{component}.log"
