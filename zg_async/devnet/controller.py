"""A simulated controller beside an inference provider. Source: inference.md 17.

Its containers are only rows with a state; everything it says of them is what a real one would.
"""

import base64
import binascii
import dataclasses
import datetime as dt
import hashlib
import ipaddress
import json
from collections.abc import Mapping
from typing import Any, Final

from aiohttp import web

from zg_async.clock import Clock
from zg_async.devnet.inference_http import MAX_BODY, Handler, RefusedError, json_object, json_reply, read_body
from zg_async.errors import SignatureMismatchError
from zg_async.wire.hashing import checksum_address
from zg_async.wire.records import Address
from zg_async.wire.signing import eip191_hash, recover_address, session_token_hash, split_session_token

_IMAGE: Final = "devnet/serving-broker:latest"
_ALLOWED: Final = ("LOG_LEVEL", "SERVING_URL", "TARGET_URL")
_ACTIONS: Final = {"start": "running", "stop": "exited", "restart": "running"}


@dataclasses.dataclass(slots=True)
class ControllerSettings:
    """What can be changed while it runs."""

    fixed_lists: bool = False
    """As the newest controllers: both admin lists can only be read."""
    needs_digest: bool = False
    """As the newest controllers: an image update names its digest."""
    fail_update: bool = False
    """The second container can't be made anew."""


@dataclasses.dataclass(slots=True)
class _Container:
    name: str
    state: str
    started_at: str
    generation: int = 0

    @property
    def id(self) -> str:
        return hashlib.sha256(f"{self.name} {self.generation}".encode()).hexdigest()[:12]

    def to_json(self) -> dict[str, str]:
        health = "healthy" if self.state == "running" else "none"
        return {
            "name": self.name,
            "id": self.id,
            "state": self.state,
            "health": health,
            "startedAt": self.started_at,
            "image": _IMAGE,
        }


class ControllerNode:
    """One controller: its server, its containers, its lists."""

    def __init__(self, admin: Address, clock: Clock) -> None:
        """Make one that only `admin` may use, from anywhere; it listens after `serve`."""
        self.settings = ControllerSettings()
        self.port = 0
        self.clock = clock
        self._admins: list[Address] = [admin]
        self._ips: list[str] = []
        self._containers = [_Container(f"provider-{n}-1", "running", self._now()) for n in ("broker", "event", "redis")]
        self._core = "server:\n  port: 3080\n"
        self._ingress = {"LOG_LEVEL": "info"}
        self._prometheus = base64.b64encode(b"global:\n  scrape_interval: 15s\n").decode()
        self._digest = "sha256:" + hashlib.sha256(b"image 1").hexdigest()
        self._runner: web.AppRunner | None = None

    @property
    def url(self) -> str:
        """Where it serves."""
        return f"http://127.0.0.1:{self.port}"

    async def serve(self) -> None:
        """Open the server on a free port of the loopback interface."""
        app = web.Application(client_max_size=MAX_BODY, middlewares=[self._middleware])
        app.add_routes(
            [
                web.get("/v1/containers", self._list),
                web.get("/v1/containers/{name}", self._show),
                web.post("/v1/containers/{name}/{action:start|stop|restart}", self._control),
                web.get("/v1/config/{type:core|ingress|prometheus}", self._get_config),
                web.put("/v1/config/{type:core|ingress|prometheus}", self._put_config),
                web.get("/v1/admin/{list:wallets|ips}", self._get_list),
                web.post("/v1/admin/{list:wallets|ips}", self._add),
                web.delete("/v1/admin/{list:wallets|ips}/{item:.+}", self._remove),
                web.get("/v1/images/info", self._image),
                web.post("/v1/images/update", self._update),
            ]
        )
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.5)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.port = self._runner.addresses[0][1]

    async def aclose(self) -> None:
        """Stop listening. Idempotent."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    # --- who asks ---

    @web.middleware
    async def _middleware(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            self._check_ip(request.remote or "")
            self._check_token(request.headers.get("Authorization", ""))
            return await handler(request)
        except RefusedError as refusal:
            return refusal.reply()

    def _check_ip(self, remote: str) -> None:
        address = ipaddress.ip_address(remote)
        if self._ips and not any(address in ipaddress.ip_network(ip, strict=False) for ip in self._ips):
            raise RefusedError("IP not allowed", 403)

    def _check_token(self, header: str) -> None:
        try:
            raw, signature = split_session_token(header.removeprefix("Bearer "))
            fields: Mapping[str, Any] = json.loads(raw)
            signer = recover_address(eip191_hash(session_token_hash(raw)), bytes.fromhex(signature.removeprefix("0x")))
            if checksum_address(str(fields["address"])) != signer:
                raise ValueError("signature verification failed")
            expires = int(fields["expiresAt"])
        except (ValueError, KeyError, TypeError, binascii.Error, SignatureMismatchError) as error:
            raise RefusedError(str(error) or "invalid token", 401) from None
        if 0 < expires < self.clock.now() * 1000:
            raise RefusedError("session token expired", 401)
        if signer not in self._admins:
            raise RefusedError("address is not an admin", 403)

    # --- containers ---

    async def _list(self, _: web.Request) -> web.Response:
        return json_reply({"containers": [c.to_json() for c in self._containers]})

    async def _show(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        found = next((c for c in self._containers if c.name == name), None)
        if found is None:
            raise RefusedError(f"container {name} not found", 404)
        return json_reply(found.to_json())

    async def _control(self, request: web.Request) -> web.Response:
        name, action = request.match_info["name"], request.match_info["action"]
        named = sorted((c for c in self._containers if name in c.name), key=lambda c: (c.name != name, len(c.name)))
        if not named:
            raise RefusedError(f"no container matches {name}", 500)
        self._set(named[0], _ACTIONS[action])
        return json_reply({"message": f"container {named[0].name}: {action} done"})

    def _set(self, container: _Container, state: str) -> None:
        container.state, container.started_at = state, self._now()

    def _now(self) -> str:
        return dt.datetime.fromtimestamp(self.clock.now(), dt.UTC).isoformat(timespec="milliseconds")

    # --- configuration ---

    async def _get_config(self, request: web.Request) -> web.Response:
        kind = request.match_info["type"]
        if kind == "ingress":
            return json_reply({"env": self._ingress})
        return json_reply({"config": self._core if kind == "core" else self._prometheus})

    async def _put_config(self, request: web.Request) -> web.Response:
        kind, body = request.match_info["type"], json_object(await read_body(request)) or {}
        if kind == "ingress":
            self._put_ingress(body.get("env"))
        elif not isinstance(config := body.get("config"), str) or not config.strip():
            raise RefusedError("config is required")
        elif kind == "core":
            self._core = config
            for container in self._containers[:2]:
                self._set(container, "running")
        else:
            try:
                base64.b64decode(config, validate=True)
            except binascii.Error:
                raise RefusedError("config is not base64") from None
            self._prometheus = config
        return json_reply({"message": f"{kind} configuration updated"})

    def _put_ingress(self, env: object) -> None:
        if not isinstance(env, dict) or not all(isinstance(v, str) for v in env.values()):
            raise RefusedError("env is required")
        if wrong := sorted(set(env) - set(_ALLOWED)):
            raise RefusedError(f"key {wrong[0]} is not allowed", 403)
        self._ingress |= env

    # --- lists ---

    async def _get_list(self, request: web.Request) -> web.Response:
        if request.match_info["list"] == "wallets":
            return json_reply({"addresses": self._admins})
        return json_reply({"ips": self._ips})

    async def _add(self, request: web.Request) -> web.Response:
        kind, item = await self._item(request)
        if kind == "wallets" and item not in self._admins:
            self._admins.append(Address(item))
        elif kind == "ips" and item not in self._ips:
            self._ips.append(item)
        return json_reply({"message": f"{item} added"})

    async def _remove(self, request: web.Request) -> web.Response:
        kind, item = await self._item(request, request.match_info["item"])
        known: list[Any] = self._admins if kind == "wallets" else self._ips
        if item not in known:
            raise RefusedError(f"{item} is not on the list", 500)
        known.remove(item)
        return json_reply({"message": f"{item} removed"})

    async def _item(self, request: web.Request, item: str | None = None) -> tuple[str, str]:
        if self.settings.fixed_lists:
            raise web.HTTPNotFound(text="404 page not found")
        kind = request.match_info["list"]
        if item is None:
            body = json_object(await read_body(request)) or {}
            item = str(body.get("address" if kind == "wallets" else "ip", ""))
        try:
            return kind, checksum_address(item) if kind == "wallets" else str(_network(item))
        except ValueError:
            raise RefusedError(f"invalid {'address' if kind == 'wallets' else 'ip'}") from None

    # --- images ---

    async def _image(self, _: web.Request) -> web.Response:
        image_id = "sha256:" + hashlib.sha256(self._digest.encode()).hexdigest()
        created = "2026-01-01T00:00:00Z"
        return json_reply(
            {"image": _IMAGE, "imageId": image_id, "digest": self._digest, "created": created, "size": 123_456_789}
        )

    async def _update(self, request: web.Request) -> web.Response:
        wanted = (json_object(await read_body(request)) or {}).get("digest")
        if self.settings.needs_digest and not (isinstance(wanted, str) and wanted.startswith("sha256:")):
            raise RefusedError("digest is required")
        self._digest = wanted if isinstance(wanted, str) else "sha256:" + hashlib.sha256(b"image 2").hexdigest()
        rows: list[dict[str, str]] = []
        for number, container in enumerate(self._containers[:2]):
            old = container.id
            failed = self.settings.fail_update and number == 1
            if not failed:
                container.generation += 1
                self._set(container, "running")
            row = {"name": container.name, "oldContainerId": old, "newContainerId": "" if failed else container.id}
            rows.append(row | ({"status": "failed", "error": "no space left"} if failed else {"status": "updated"}))
        success = not self.settings.fail_update
        answer = {"success": success, "image": _IMAGE, "digest": self._digest, "updatedContainers": rows}
        answer |= {"imageId": "sha256:" + hashlib.sha256(self._digest.encode()).hexdigest()}
        return json_reply(
            answer | ({} if success else {"error": "not all containers were updated"}), 200 if success else 500
        )


def _network(text: str) -> str:
    """Return an address or a range as it is written, if it is one."""
    ipaddress.ip_network(text, strict=False)
    return text
