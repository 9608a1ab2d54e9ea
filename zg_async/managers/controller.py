"""The controller beside an inference provider: starts, stops and configures its containers. For who runs it."""

import base64
import binascii
import secrets
from collections.abc import Mapping
from typing import Any, Final, Literal
from urllib.parse import quote

from zg_async.errors import ProviderRejectedError, ProviderReplyError, ProviderUnavailableError
from zg_async.managers.context import Context
from zg_async.text import printable
from zg_async.wire import controller_api as api
from zg_async.wire import signing

Action = Literal["start", "stop", "restart"]
_NOT_FOUND: Final = 404
_READ_ONLY: Final = "Newer controllers fix these lists when they start: change their configuration instead"


class Controller:
    """Requests to one controller, proven by the wallet's signature; `inference.controller` makes one."""

    def __init__(self, context: Context, endpoint: str) -> None:
        """Bind to a controller's address."""
        self._ctx = context
        self.endpoint = endpoint.rstrip("/")

    async def list_containers(self) -> tuple[api.Container, ...]:
        """List the provider's containers."""
        return api.containers(await self._call("GET", "/v1/containers"))

    async def control(self, action: Action, container: str) -> str:
        """Start, stop or restart a container.

        Args:
            action: Which.
            container: Its name, or a part of it: `broker`, `event`.

        Returns:
            The controller's words.
        """
        return _message(await self._call("POST", f"/v1/containers/{quote(container, safe='')}/{action}", {}))

    async def get_config(self, config_type: api.ConfigType) -> str | Mapping[str, str]:
        """Read a configuration.

        Args:
            config_type: `core` or `prometheus`: YAML text; `ingress`: names and values.
        """
        value = await self._call("GET", f"/v1/config/{config_type}")
        found = value.get("env" if config_type == "ingress" else "config")
        if config_type == "ingress" and isinstance(found, dict):
            return {str(name): str(text) for name, text in found.items()}
        if config_type == "ingress" or not isinstance(found, str):
            raise ProviderReplyError("the controller's configuration can't be read")
        if config_type == "core":
            return found
        try:
            return base64.b64decode(found, validate=True).decode("utf-8", "replace")
        except binascii.Error as error:
            raise ProviderReplyError("the controller's prometheus configuration isn't base64") from error

    async def update_config(self, config_type: api.ConfigType, config: str | Mapping[str, str]) -> str:
        """Change a configuration; `core` restarts broker and event.

        Args:
            config_type: Which.
            config: As `get_config` returns it.

        Returns:
            The controller's words.
        """
        body: dict[str, object] = {"env": dict(config)} if isinstance(config, Mapping) else {"config": config}
        if config_type == "prometheus" and isinstance(config, str):
            body = {"config": base64.b64encode(config.encode()).decode()}
        return _message(await self._call("PUT", f"/v1/config/{config_type}", body))

    async def list_admins(self) -> tuple[str, ...]:
        """List the wallets that may use the controller."""
        return api.texts(await self._call("GET", "/v1/admin/wallets"), "addresses")

    async def add_admin(self, address: str) -> str:
        """Let a wallet use the controller; only older controllers can."""
        return await self._change("POST", "/v1/admin/wallets", {"address": address})

    async def remove_admin(self, address: str) -> str:
        """Let a wallet not use the controller any more; only older controllers can."""
        return await self._change("DELETE", f"/v1/admin/wallets/{quote(address, safe='')}")

    async def list_ips(self) -> tuple[str, ...]:
        """List the addresses that may reach the controller; none means all."""
        return api.texts(await self._call("GET", "/v1/admin/ips"), "ips")

    async def add_ip(self, ip: str) -> str:
        """Let an address or CIDR range reach the controller; only older controllers can."""
        return await self._change("POST", "/v1/admin/ips", {"ip": ip})

    async def remove_ip(self, ip: str) -> str:
        """Take an address or CIDR range off the list; only older controllers can."""
        return await self._change("DELETE", f"/v1/admin/ips/{quote(ip, safe='')}")

    async def image_info(self) -> api.ImageInfo:
        """Read what image the containers run."""
        return api.image_info(await self._call("GET", "/v1/images/info"))

    async def update_images(self, digest: str | None = None) -> api.ImageUpdate:
        """Fetch the image and make the containers anew.

        Args:
            digest: `sha256:` and 64 hex digits; newer controllers need it. None: the newest, as older ones take it.

        Returns:
            What came of it; a failure in the middle is one, too.
        """
        body = {} if digest is None else {"digest": digest}
        reply = await self._send("POST", "/v1/images/update", body)
        value = api.parse_object(reply.body)
        if reply.status >= 400 and "updatedContainers" not in value:
            raise self._refused("POST", "/v1/images/update", reply.status, value)
        return api.image_update(value)

    async def _change(self, method: str, path: str, body: object = None) -> str:
        try:
            return _message(await self._call(method, path, body))
        except ProviderRejectedError as error:
            if error.status != _NOT_FOUND:
                raise
            error.message = "this controller's lists are read-only"
            error.hint = _READ_ONLY
            raise

    async def _call(self, method: str, path: str, body: object = None) -> Mapping[str, Any]:
        reply = await self._send(method, path, body)
        if reply.status >= 400:
            try:
                value = api.parse_object(reply.body)
            except ProviderReplyError:
                value = {"error": reply.body[:200].decode("utf-8", "replace")}
            raise self._refused(method, path, reply.status, value)
        return api.parse_object(reply.body)

    async def _send(self, method: str, path: str, body: object) -> Any:
        return await self._ctx.http.request(
            method,
            self.endpoint + path,
            json=body,
            headers=await self._headers(),
            limit=api.REPLY_LIMIT,
            idempotent=method == "GET",
            signed=True,
            raw_status=True,
        )

    def _refused(
        self, method: str, path: str, status: int, value: Mapping[str, Any]
    ) -> ProviderRejectedError | ProviderUnavailableError:
        text = printable(str(value.get("error", "no reason given")), limit=300)
        message = f"the controller at {self.endpoint} refused with {status}: {text}"
        endpoint = f"{method} {path}"
        if status >= 500 or status == 429:
            return ProviderUnavailableError(message, status=status, body=text, endpoint=endpoint)
        hint = "The wallet has to be one of its admins, and the address one it lets in" if status == 403 else None
        return ProviderRejectedError(message, status=status, body=text, endpoint=endpoint, hint=hint)

    async def _headers(self) -> Mapping[str, str]:
        now = int(self._ctx.clock.now() * 1000)
        raw = api.token_json(
            address=self._ctx.wallet,
            timestamp_ms=now,
            expires_at_ms=now + api.TOKEN_MS,
            nonce=secrets.token_hex(16),
        )
        signature = await self._ctx.sign(signing.session_token_hash(raw), purpose="controller token")
        return {"Authorization": f"Bearer {signing.encode_session_token(raw, signature)}"}


def _message(value: Mapping[str, Any]) -> str:
    return printable(str(value.get("message", "done")), limit=500)
