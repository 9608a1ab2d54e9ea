"""The official program's words for wallet and network: login, logout, status, setup-network, show-network.

They work on the wallet called `default` and on the current profile, so `zg wallet` and `zg profile` see the same.
"""

import dataclasses
import os
import sys
from pathlib import Path
from typing import Annotated, Final

from cyclopts import Parameter

from zg_async.cli.config import check_option
from zg_async.cli.opening import HERE, Where, network_of, settings_of
from zg_async.cli.output import UsageError, confirm, emit, note
from zg_async.cli.profiles import config_path, read_config, wallets_dir, write_config
from zg_async.cli.unlocking import wallet_address
from zg_async.cli.wallet import new_password, private_key_of, save_wallet
from zg_async.errors import ConfigError

NAME: Final = "default"
_NETWORKS: Final = ("mainnet", "testnet", "testnet-dev", "local")


def login(
    *,
    force: Annotated[bool, Parameter(name=("--force", "-f"))] = False,
    key_file: Path | None = None,
    key_fd: int | None = None,
    where: Where = HERE,
) -> None:
    """Keep the wallet's private key, encrypted with a password, for later commands.

    The key comes from a file that only you can read, from a file descriptor, from ZG_PRIVATE_KEY or PRIVATE_KEY, or it
    is asked for. The password is asked for, or given by --password-fd or ZG_PASSWORD.

    Args:
        force: Replace the wallet that is there; its file is kept under another name.
        key_file: File with the key in hex.
        key_fd: File descriptor to read the key in hex from.
        where: Output and password.
    """
    path = _path()
    if path.exists() and not force:
        raise ConfigError("you are logged in already", hint="Give --force to replace the wallet, or use `zg wallet`")
    key, password = private_key_of(key_file, key_fd), new_password(where)
    aside = _aside(path) if path.exists() else None
    try:
        address = save_wallet(NAME, key, password)
    except ConfigError:
        if aside is not None:
            aside.rename(path)
        raise
    fields = {"name": NAME, "address": address, "previous": aside}
    emit(where, "login", fields, lambda: f"Logged in: {address}")
    if aside is not None:
        note(where, f"the wallet of before is kept as {aside}")


def logout(*, where: Where = HERE) -> None:
    """Let later commands forget the wallet. Its encrypted file is kept under another name, not deleted.

    Args:
        where: Output.
    """
    path = _path()
    if not path.exists():
        raise ConfigError("not logged in: there is no wallet `default`", hint="`zg wallet list` shows all")
    confirm(where, "Forget the wallet `default`?")
    aside = _aside(path)
    emit(where, "logout", {"kept": aside}, lambda: f"Logged out; the encrypted key is kept as {aside}")


async def status(*, where: Where = HERE) -> int:
    """Show which wallet is in use; exits with 8 when there is none.

    Args:
        where: Network and wallet.
    """
    settings = await settings_of(where)
    address = None if settings.wallet is None else await wallet_address(settings.wallet)
    fields = {"logged_in": address is not None, "address": address}
    emit(where, "login_status", fields, lambda: f"Logged in: {address}" if address else "Not logged in")
    return 0 if address is not None else 8


def setup_network(*, where: Where = HERE) -> None:
    """Keep network and endpoint, given by --network and --rpc, for later commands; a key or wallet stays as it is.

    Args:
        where: Network and output.
    """
    network = where.network or _asked(where)
    if network is None and where.rpc is None:
        raise UsageError(f"--network is missing: {', '.join(_NETWORKS)}; or give --rpc")
    options = {"network": network, "rpc": where.rpc}
    for option, value in options.items():
        if value is not None:
            check_option(option, value)
    config = read_config(config_path(os.environ))
    name = where.profile or config.current or NAME
    config = config.changed(name, **options)
    write_config(dataclasses.replace(config, current=name))
    shown = ", ".join(f"{option} {value}" for option, value in options.items() if value is not None)
    emit(where, "network_set", {"profile": name, **options}, lambda: f"profile {name}: {shown}")


async def show_network(*, where: Where = HERE) -> None:
    """Show network and endpoint in force, where each comes from, and the config file.

    Args:
        where: Network and output.
    """
    settings = await settings_of(where)
    network = await network_of(settings)
    rpc = settings.text("rpc") or network.rpc_url
    source = settings.network.source if settings.network is not None else "the endpoint's chain id"
    path = config_path(os.environ)
    fields = {"network": network.name, "chain_id": network.chain_id, "rpc": rpc, "source": source, "config": path}
    emit(
        where,
        "network",
        fields,
        lambda: [f"RPC       {rpc}", f"Network   {network.name}", f"Source    {source}", f"Config    {path}"],
    )


def _asked(where: Where) -> str | None:
    if where.rpc is not None or where.as_json or not (sys.stdin.isatty() and sys.stderr.isatty()):
        return None
    print(f"Network ({', '.join(_NETWORKS)}): ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip() or None


def _path() -> Path:
    return wallets_dir(config_path(os.environ)) / f"{NAME}.json"


def _aside(path: Path) -> Path:
    """Give a keystore a name that no command looks for; it is never deleted, it may be the only copy."""
    places = (path.with_name(f"{path.stem}-{number}.kept") for number in range(1, 10_000))
    place = next(p for p in places if not p.exists())
    path.rename(place)
    return place
