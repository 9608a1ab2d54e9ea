"""`zg whoami` and `zg profile`: what is in force and why, and named sets of options."""

import dataclasses
import os
from pathlib import Path
from typing import Annotated

import cyclopts
from cyclopts import Parameter

from zg_async.cli.config import check_option, values_of
from zg_async.cli.opening import HERE, Where, network_of, open_broker, settings_of
from zg_async.cli.output import emit, note
from zg_async.cli.profiles import (
    PEERS_FILE,
    ConfigFile,
    check_name,
    config_path,
    read_config,
    read_peers_config,
    write_config,
)
from zg_async.cli.unlocking import wallet_address
from zg_async.cli.wallet import check_free, new_password, save_wallet
from zg_async.errors import ConfigError
from zg_async.text import printable
from zg_async.units import format_amount

app = cyclopts.App(name="profile", help="Named sets of options: network, endpoint, wallet.")


async def whoami(*, where: Where = HERE) -> None:
    """Show the wallet's address and native balance, the network, and where each value comes from.

    Args:
        where: Network and wallet.
    """
    settings = await settings_of(where)
    network = await network_of(settings)
    address = None if settings.wallet is None else await wallet_address(settings.wallet)
    balance = None
    if address is not None:
        async with open_broker(where, wallet=False) as broker:
            balance = await broker.chain.balance(address)
    rows = {
        "network": (network.name, "the endpoint's chain id"),
        "rpc": (network.rpc_url or "", f"network {network.name}"),
        **values_of(settings),
    }
    found = {
        "address": address,
        "balance": balance,
        "network": network.name,
        "chain_id": network.chain_id,
        "settings": {name: {"value": value, "source": source} for name, (value, source) in rows.items()},
    }

    def text() -> list[str]:
        lines = [("address", address or "none: no wallet is given", ""), ("chain id", str(network.chain_id), "")]
        if balance is not None:
            lines.insert(1, ("balance", format_amount(balance), ""))
        lines += [(name.replace("_", " "), value, source) for name, (value, source) in rows.items()]
        width = max(len(value) for _, value, _ in lines)
        return [
            f"{name:<20} {printable(value, limit=300):<{width}}  {printable(source, limit=300)}".rstrip()
            for name, value, source in lines
        ]

    emit(where, "whoami", found, text)


@app.command(name="list")
def list_(*, where: Where = HERE) -> None:
    """List the profiles; the current one has a star.

    Args:
        where: Output.
    """
    config = _read()
    names = sorted(config.profiles)
    found = {"current": config.current, "profiles": names}
    emit(where, "profiles", found, lambda: [f"{'*' if n == config.current else ' '} {printable(n)}" for n in names])


@app.command
def use(name: str, *, where: Where = HERE) -> None:
    """Make a profile the current one.

    Args:
        name: Which.
        where: Output.
    """
    config = _read()
    options = dict(config.profile(name))
    write_config(dataclasses.replace(config, current=name))
    emit(where, "profile", {"name": name, "options": options}, list)


@app.command
def show(name: str | None = None, *, where: Where = HERE) -> None:
    """Show what a profile sets.

    Args:
        name: Which; without it, the current one.
        where: Output.
    """
    config = _read()
    name = name or config.current
    if name is None:
        raise ConfigError("there is no current profile", hint="Name one, or `zg profile use NAME`")
    options = dict(config.profile(name))
    found = {"name": name, "options": options}
    emit(where, "profile", found, lambda: [f"{o}={printable(value, limit=1000)}" for o, value in options.items()])


@app.command(name="set")
def set_(name: str, *assignments: str, where: Where = HERE) -> None:
    """Set options of a profile; it is made if there is none of this name. The first one made becomes the current one.

    Args:
        name: Which profile.
        assignments: OPTION=VALUE, such as network=testnet, rpc=URL or wallet=NAME; OPTION= removes it.
        where: Output.
    """
    options: dict[str, str | None] = {}
    for text in assignments:
        option, separator, value = text.partition("=")
        if not separator:
            raise ConfigError(f"{printable(text, limit=80)!r} is no OPTION=VALUE")
        options[check_option(option, value)] = value or None
    changed = _change(_read(), name, options)
    emit(where, "profile", {"name": name, "options": dict(changed.profile(name))}, list)


@app.command
def remove(name: str, *, where: Where = HERE) -> None:
    """Remove a profile. Its wallet stays.

    Args:
        name: Which.
        where: Output.
    """
    config = _read()
    options = dict(config.profile(name))
    profiles = {other: options for other, options in config.profiles.items() if other != name}
    current = None if config.current == name else config.current
    write_config(dataclasses.replace(config, current=current, profiles=profiles))
    emit(where, "profile_removed", {"name": name, "options": options}, list)


@app.command(name="import")
def import_(
    name: str = "0g-compute-cli",
    *,
    source: Annotated[Path | None, Parameter(name="--from")] = None,
    no_key: bool = False,
    where: Where = HERE,
) -> None:
    """Make a profile of the official command line's config file, and an encrypted keystore of its private key.

    The file is only read, never changed.

    Args:
        name: The profile's name, and the wallet's.
        source: The file. Default: ~/.0g-compute-cli/config.json.
        no_key: Leave the private key out.
        where: Output, and --password-fd for the new keystore's password.
    """
    path = source or Path.home() / PEERS_FILE
    peers = read_peers_config(path)
    config = _read()
    options: dict[str, str | None] = {check_option(o, value): value for o, value in peers.options.items()}
    check_name(name, what="profile")
    address = None
    if peers.private_key is not None and not no_key:
        check_free(name)
        address = save_wallet(name, peers.private_key, new_password(where))
        options["wallet"] = name
    _change(config, name, options)
    emit(
        where,
        "profile_imported",
        {"name": name, "options": options, "address": address},
        lambda: [f"profile {name}", *(f"{o}={printable(str(value), limit=300)}" for o, value in options.items())],
    )
    if peers.private_key is not None:
        note(where, f"note: {path} still holds the private key in clear text; remove it there when you can")


def _read() -> ConfigFile:
    return read_config(config_path(os.environ))


def _change(config: ConfigFile, name: str, options: dict[str, str | None]) -> ConfigFile:
    changed = config.changed(name, **options)
    write_config(changed if config.current else dataclasses.replace(changed, current=name))
    return changed
