"""The controller beside an inference provider: its tokens and its answers. Source: inference.md 17.

Peers: TS 0.9.0 `cli/controller.js` (what is sent), 0g-serving-broker api/controller (what is answered).
"""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any, Final, Literal
from urllib.parse import urlsplit

from zg_async.errors import ConfigError, ProviderReplyError
from zg_async.text import printable
from zg_async.wire.strict_json import BadJsonError, decode_json

ConfigType = Literal["core", "ingress", "prometheus"]
REPLY_LIMIT: Final = 4 * 2**20
TOKEN_MS: Final = 3_600_000
"""How long a token lives; the peers make a new one for each call."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Container:
    """A container of the provider's broker."""

    name: str
    id: str
    state: str
    health: str
    """`healthy`, `unhealthy`, `starting` or `none`."""
    started_at: str
    image: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ImageInfo:
    """The image that the containers run."""

    image: str
    digest: str
    image_id: str
    created: str
    size: int
    """Bytes."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ContainerUpdate:
    """A container that was made anew."""

    name: str
    old_container_id: str
    new_container_id: str
    status: str
    error: str = ""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ImageUpdate:
    """What came of an image update."""

    success: bool
    image: str
    image_id: str
    digest: str
    containers: tuple[ContainerUpdate, ...]
    error: str = ""


def token_json(*, address: str, timestamp_ms: int, expires_at_ms: int, nonce: str) -> str:
    """Write a controller token's text: these keys, this order, no spaces."""
    fields = {"address": address, "timestamp": timestamp_ms, "expiresAt": expires_at_ms, "nonce": nonce}
    return json.dumps(fields, separators=(",", ":"))


def controller_url(service_url: str) -> str:
    """Derive a controller's address from a service's: `controller-` before the host, no port, no path.

    Raises:
        ConfigError: The service's URL has no host name, or is an address that can't have one.
    """
    parts = urlsplit(service_url)
    host = parts.hostname or ""
    if not host or host.replace(".", "").isdigit() or ":" in host or host == "localhost":
        raise ConfigError(
            f"no controller's address can be derived from {printable(service_url, limit=120)}",
            hint="Give --controller-endpoint",
        )
    return f"{parts.scheme}://controller-{host}"


def parse_object(body: bytes) -> Mapping[str, Any]:
    """Read an answer.

    Raises:
        ProviderReplyError: It is no JSON object.
    """
    try:
        value = decode_json(body, limit=REPLY_LIMIT)
    except BadJsonError as error:
        raise ProviderReplyError(f"the controller's answer can't be read: {error}") from None
    if not isinstance(value, dict):
        raise ProviderReplyError("the controller's answer is no object")
    return value


def container(value: object) -> Container:
    """Read one container."""
    row = _row(value)
    return Container(
        name=_text(row, "name"),
        id=_text(row, "id"),
        state=_text(row, "state"),
        health=_text(row, "health"),
        started_at=_text(row, "startedAt"),
        image=_text(row, "image"),
    )


def image_info(value: object) -> ImageInfo:
    """Read what image runs."""
    row = _row(value)
    size = row.get("size")
    return ImageInfo(
        image=_text(row, "image"),
        digest=_text(row, "digest"),
        image_id=_text(row, "imageId"),
        created=_text(row, "created"),
        size=size if isinstance(size, int) and 0 <= size < 2**53 else 0,
    )


def image_update(value: object) -> ImageUpdate:
    """Read what came of an update."""
    row = _row(value)
    return ImageUpdate(
        success=row.get("success") is True,
        image=_text(row, "image"),
        image_id=_text(row, "imageId"),
        digest=_text(row, "digest"),
        error=_text(row, "error"),
        containers=tuple(
            ContainerUpdate(
                name=_text(item, "name"),
                old_container_id=_text(item, "oldContainerId"),
                new_container_id=_text(item, "newContainerId"),
                status=_text(item, "status"),
                error=_text(item, "error"),
            )
            for item in map(_row, _items(row, "updatedContainers"))
        ),
    )


def texts(value: Mapping[str, Any], name: str) -> tuple[str, ...]:
    """Read a list of texts."""
    return tuple(str(item) for item in _items(value, name))


def containers(value: Mapping[str, Any]) -> tuple[Container, ...]:
    """Read the list of containers."""
    return tuple(map(container, _items(value, "containers")))


def _items(value: Mapping[str, Any], name: str) -> list[Any]:
    found = value.get(name)
    if found is None:
        return []
    if not isinstance(found, list):
        raise ProviderReplyError(f"the controller's {name} is no list")
    return found


def _row(value: object) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise ProviderReplyError("the controller's answer holds something else than an object")
    return value


def _text(row: Mapping[str, Any], name: str) -> str:
    found = row.get(name, "")
    return found if isinstance(found, str) else ""
