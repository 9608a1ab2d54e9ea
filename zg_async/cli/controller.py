"""`zg controller`: the containers of the wallet's own provider. For people who run one."""

import contextlib
import dataclasses
import json
import os
from collections.abc import AsyncGenerator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import anyio
import anyio.to_thread
from cyclopts import Parameter

from zg_async.cli.opening import HERE, Where, open_broker, read_text, settings_of
from zg_async.cli.output import UsageError, confirm, emit, table
from zg_async.cli.params import Address
from zg_async.cli.profiles import config_path, read_config, write_config
from zg_async.cli.render import size_text
from zg_async.text import printable
from zg_async.transport.http import HttpSettings
from zg_async.wire.controller_api import ConfigType

if TYPE_CHECKING:
    from zg_async.managers.controller import Action, Controller

_PATIENCE = 300.0
"""Seconds an image update may take, as the peers wait for it."""


@Parameter(name="*", group="Network, wallet and output")
@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class AtController(Where):
    """The same, and which controller."""

    controller_endpoint: str | None = None
    """The controller's URL. Default: the profile's, else derived from the wallet's registered service."""


_AT = AtController()
Container = Annotated[str, Parameter(name="--container")]
Type = Annotated[ConfigType, Parameter(name="--type")]
Ip = Annotated[str, Parameter(name="--ip")]
Admin = Annotated[Address, Parameter(name="--address")]


async def status(*, where: AtController = _AT) -> None:
    """List the containers with state, health and image.

    Args:
        where: Network, wallet and output.
    """
    async with _controller(where) as controller:
        found = await controller.list_containers()
    rows = [(c.name, c.state, c.health, c.image) for c in found]
    emit(where, "containers", {"items": found}, lambda: table(rows, ("Name", "State", "Health", "Image")))


async def restart(*, container: Container, where: AtController = _AT) -> None:
    """Restart a container.

    Args:
        container: Its name, or broker or event.
        where: Network, wallet and output.
    """
    await _control("restart", container, where)


async def start(*, container: Container, where: AtController = _AT) -> None:
    """Start a container.

    Args:
        container: Its name, or broker or event.
        where: Network, wallet and output.
    """
    await _control("start", container, where)


async def stop(*, container: Container, where: AtController = _AT) -> None:
    """Stop a container.

    Args:
        container: Its name, or broker or event.
        where: Network, wallet and output.
    """
    await _control("stop", container, where)


async def get_config(
    *, config_type: Type, output: Path | None = None, decode: bool = False, where: AtController = _AT
) -> None:
    """Print a configuration.

    Args:
        config_type: core (YAML), ingress (names and values) or prometheus (YAML).
        output: Save it to this file instead; only you can read it.
        decode: Not needed any more: prometheus is always decoded.
        where: Network, wallet and output.
    """
    del decode
    async with _controller(where) as controller:
        found = await controller.get_config(config_type)
    text = found if isinstance(found, str) else json.dumps(dict(found), indent=2)
    if output is not None:
        from zg_async.paths import write_private

        await anyio.to_thread.run_sync(lambda: write_private(output, text.encode(), what="file", replace=True))
    fields = {"type": config_type, "config": found, "path": output}
    emit(where, "controller_config", fields, lambda: text.splitlines() if output is None else f"saved to {output}")


async def update_config(
    *, config_type: Type, config: Annotated[Path, Parameter(name="--config")], where: AtController = _AT
) -> None:
    """Change a configuration; core restarts broker and event.

    Args:
        config_type: core, ingress or prometheus.
        config: The file: YAML, for ingress a JSON object of names and values.
        where: Network, wallet and output.
    """
    text: str | Mapping[str, str] = read_text(config, "configuration")
    if config_type == "ingress":
        text = _environment(config, str(text))
    async with _controller(where) as controller:
        message = await controller.update_config(config_type, text)
    _said(where, message)


async def list_admins(*, where: AtController = _AT) -> None:
    """List the wallets that may use the controller.

    Args:
        where: Network, wallet and output.
    """
    async with _controller(where) as controller:
        found = await controller.list_admins()
    emit(where, "controller_admins", {"items": found}, lambda: [printable(a) for a in found] or "none")


async def add_admin(*, address: Admin, where: AtController = _AT) -> None:
    """Let a wallet use the controller.

    Args:
        address: The wallet's address.
        where: Network, wallet and output.
    """
    async with _controller(where) as controller:
        _said(where, await controller.add_admin(address))


async def remove_admin(*, address: Admin, where: AtController = _AT) -> None:
    """Let a wallet not use the controller any more.

    Args:
        address: The wallet's address.
        where: Network, wallet and output.
    """
    async with _controller(where) as controller:
        _said(where, await controller.remove_admin(address))


async def list_ips(*, where: AtController = _AT) -> None:
    """List the addresses that may reach the controller; none means all.

    Args:
        where: Network, wallet and output.
    """
    async with _controller(where) as controller:
        found = await controller.list_ips()
    emit(where, "controller_ips", {"items": found}, lambda: [printable(i) for i in found] or "all")


async def add_ip(*, ip: Ip, where: AtController = _AT) -> None:
    """Let an address reach the controller; with the first one, all others are shut out.

    Args:
        ip: An address, or a range such as 192.168.1.0/24.
        where: Network, wallet and output.
    """
    async with _controller(where) as controller:
        _said(where, await controller.add_ip(ip))


async def remove_ip(*, ip: Ip, where: AtController = _AT) -> None:
    """Take an address off the list.

    Args:
        ip: An address, or a range.
        where: Network, wallet and output.
    """
    async with _controller(where) as controller:
        _said(where, await controller.remove_ip(ip))


async def image_info(*, where: AtController = _AT) -> None:
    """Show what image the containers run.

    Args:
        where: Network, wallet and output.
    """
    async with _controller(where) as controller:
        found = await controller.image_info()
    rows = [
        ("Image", found.image),
        ("Digest", found.digest),
        ("Image ID", found.image_id),
        ("Created", found.created),
        ("Size", size_text(found.size)),
    ]
    emit(where, "controller_image", found, lambda: table(rows))


async def update_images(*, digest: str | None = None, where: AtController = _AT) -> int:
    """Fetch the image and make the broker's containers anew; exits with 1 when one of them fails.

    Args:
        digest: sha256: and 64 hex digits; newer controllers need it.
        where: Network, wallet and output.
    """
    confirm(where, "This makes broker and event anew; requests under way are lost. Go on?")
    async with _controller(where) as controller:
        done = await controller.update_images(digest)
    rows = [(c.name, c.old_container_id, c.new_container_id, c.error or c.status) for c in done.containers]
    emit(where, "controller_update", done, lambda: table(rows, ("Container", "Old ID", "New ID", "Status")))
    return 0 if done.success else 1


def reset_controller_endpoint(*, where: Where = HERE) -> None:
    """Forget the controller's address that the current profile holds.

    Args:
        where: Output.
    """
    config = read_config(config_path(os.environ))
    name = where.profile or config.current
    had = name is not None and "controller_endpoint" in config.profile(name)
    if name is not None and had:
        write_config(config.changed(name, controller_endpoint=None))
    said = "forgotten" if had else "none was kept"
    emit(where, "controller_endpoint_reset", {"profile": name, "was_set": had}, lambda: said)


# --- what they share --------------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def _controller(where: AtController) -> "AsyncGenerator[Controller, None]":
    settings = await settings_of(where)
    http = HttpSettings(idle_timeout=_PATIENCE, control_timeout=_PATIENCE)
    async with open_broker(where, http=http) as broker:
        yield await broker.inference.controller(settings.text("controller_endpoint"))


async def _control(action: "Action", container: str, where: AtController) -> None:
    async with _controller(where) as controller:
        _said(where, await controller.control(action, container))


def _said(where: Where, message: str) -> None:
    emit(where, "controller_reply", {"message": message}, lambda: message)


def _environment(path: Path, text: str) -> dict[str, str]:
    try:
        value: Any = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict) or not all(isinstance(v, str) for v in value.values()):
        raise UsageError(f"{path} is no JSON object of names and texts, which --type ingress needs")
    return value
