"""`zg wallet`: keystore files (version 3) and nothing else; a plain key is never written."""

import os
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio.to_thread
import cyclopts

from zg_async.cli.config import OPTIONS, Settings
from zg_async.cli.opening import HERE, Where, open_broker
from zg_async.cli.output import emit, note
from zg_async.cli.profiles import check_name, config_path, wallet_names, wallets_dir
from zg_async.cli.unlocking import (
    ask_secret,
    keystore_path,
    read_descriptor,
    read_key,
    read_password,
    stated_address,
)
from zg_async.errors import ConfigError, ZgError
from zg_async.paths import read_private, write_private
from zg_async.text import hidden, printable
from zg_async.units import format_amount

if TYPE_CHECKING:
    from zg_async.transport.signer import LocalSigner

app = cyclopts.App(name="wallet", help="Wallets: encrypted key files (keystore version 3).")


@app.command
def new(name: str = "default", *, where: Where = HERE) -> None:
    """Make a new wallet. Its password is asked for, or given by --password-fd or ZG_PASSWORD.

    Args:
        name: What to call it.
        where: Output and password.
    """
    check_free(name)
    address = save_wallet(name, hidden(secrets.token_bytes(32)), new_password(where))
    _told(where, name, address)
    note(where, "There is no other copy: keep the file and its password safe, both are needed")


@app.command(name="import")
def import_(
    name: str = "default",
    *,
    key_file: Path | None = None,
    key_fd: int | None = None,
    keystore: Path | None = None,
    where: Where = HERE,
) -> None:
    """Import a private key or a keystore file as a wallet.

    The key comes from a file that only you can read, from a file descriptor, from ZG_PRIVATE_KEY or PRIVATE_KEY, or it
    is asked for. The password is asked for, or given by --password-fd or ZG_PASSWORD.

    Args:
        name: What to call it.
        key_file: File with the key in hex.
        key_fd: File descriptor to read the key in hex from.
        keystore: A keystore file made elsewhere; it is opened once, to see that the password is right, and copied.
        where: Output and password.
    """
    if sum(given is not None for given in (key_file, key_fd, keystore)) > 1:
        raise ConfigError("several keys are given", hint="Give one of --keystore, --key-file and --key-fd")
    place = check_free(name)
    if keystore is None:
        _told(where, name, save_wallet(name, private_key_of(key_file, key_fd), new_password(where)))
        return
    signer = _open(keystore, _password(where, f"Password of {keystore.name}: "))
    signer.close()
    write_private(place, read_private(keystore, what="keystore", limit=64 * 1024), what="wallet", replace=False)
    _told(where, name, signer.address)


@app.command(name="list")
async def list_(*, offline: bool = False, where: Where = HERE) -> None:
    """List the wallets with their addresses and native balances.

    Args:
        offline: Ask no network for balances.
        where: Which network.
    """
    config = config_path(os.environ)
    rows: list[dict[str, Any]] = [
        {"name": name, "address": await anyio.to_thread.run_sync(stated_address, wallets_dir(config) / f"{name}.json")}
        for name in await anyio.to_thread.run_sync(wallet_names, config)
    ]
    network, trouble = None, None
    if rows and not offline:
        try:
            async with open_broker(where, wallet=False) as broker:
                network = broker.network.name
                for row in rows:
                    row["balance"] = await broker.chain.balance(row["address"]) if row["address"] else None
        except ZgError as error:
            trouble = error

    def text() -> list[str]:
        return [_line(row, network) for row in rows]

    emit(where, "wallets", {"network": network, "wallets": rows}, text)
    if trouble is not None:
        raise trouble


@app.command
def passwd(name: str = "default", *, new_password_fd: int | None = None, where: Where = HERE) -> None:
    """Change a wallet's password. The present one is asked for, or given by --password-fd or ZG_PASSWORD.

    Args:
        name: Which wallet.
        new_password_fd: File descriptor to read the new one from. Default: it is asked for.
        where: Output and present password.
    """
    path = keystore_path(name)
    signer = _open(path, _password(where, f"Present password of {path.name}: "))
    try:
        fresh = (
            read_descriptor(new_password_fd)
            if new_password_fd is not None
            else read_password(Settings(), "New password: ", flag="--new-password-fd", repeat=True)
        )
        write_private(path, signer.to_keystore(fresh), what="wallet", replace=True)
    finally:
        signer.close()
    emit(where, "wallet", {"name": path.stem, "address": signer.address}, lambda: f"{path.name} has a new password")


# --- what they share --------------------------------------------------------------------------------------------------


def check_free(name: str) -> Path:
    """Return where a new wallet will lie.

    Raises:
        ConfigError: The name can't be one, or there is such a wallet already.
    """
    path = wallets_dir(config_path(os.environ)) / f"{check_name(name, what='wallet')}.json"
    if path.exists():
        raise ConfigError(f"there is a wallet {name} already", hint="Choose another name; nothing was changed")
    return path


def save_wallet(name: str, key: str | bytes, password: bytes) -> str:
    """Encrypt a key into the wallets folder; return its address.

    Raises:
        ConfigError: No key, or there is such a wallet already.
    """
    from zg_async.transport.signer import LocalSigner

    place = check_free(name)
    signer = LocalSigner.from_key(hidden(key))
    try:
        write_private(place, signer.to_keystore(hidden(password)), what="wallet", replace=False)
        return signer.address
    finally:
        signer.close()


def new_password(where: Where) -> bytes:
    """Get the password of a new wallet, on a terminal twice.

    Raises:
        ConfigError: There is none.
    """
    return _password(where, "New password: ", repeat=True)


def _password(where: Where, prompt: str, *, repeat: bool = False) -> bytes:
    text = os.environ.get(OPTIONS["password"].env[0])
    settings = Settings(password_fd=where.password_fd, password=hidden(text) if text else None)
    return read_password(settings, prompt, repeat=repeat)


def _open(path: Path, password: bytes) -> "LocalSigner":
    from zg_async.transport.signer import LocalSigner

    return LocalSigner.from_keystore(path, password)


def private_key_of(file: Path | None, descriptor: int | None) -> str:
    """Get a private key: from a file, a file descriptor, the environment, or by asking.

    Raises:
        ConfigError: There is none.
    """
    if file is not None:
        return hidden(read_key(file).decode("ascii", "replace"))
    if descriptor is not None:
        return hidden(read_descriptor(descriptor).decode("ascii", "replace"))
    for variable in OPTIONS["private_key"].env:
        if text := os.environ.get(variable):
            return hidden(text)
    return ask_secret("Private key (64 hex digits): ", flag="--key-file, --key-fd or --keystore")


def _line(row: dict[str, Any], network: str | None) -> str:
    amount = f"{format_amount(row['balance'])} on {network}" if row.get("balance") is not None else ""
    return f"{printable(row['name']):<20} {row['address'] or 'states no address':<42}  {amount}".rstrip()


def _told(where: Where, name: str, address: str) -> None:
    emit(where, "wallet", {"name": name, "address": address}, lambda: f"{name}  {address}")
