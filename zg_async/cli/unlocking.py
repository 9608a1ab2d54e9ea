"""The wallet: its keystore, the password for it, the key in a file or variable, or the signer that has it."""

import contextlib
import getpass
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import anyio
import anyio.to_thread

from zg_async.cli.config import Settings, WalletChoice
from zg_async.cli.profiles import config_path, refuse_key, wallets_dir
from zg_async.errors import ConfigError
from zg_async.paths import read_private
from zg_async.text import hidden, printable
from zg_async.wire.records import Address

if TYPE_CHECKING:
    from zg_async.transport.signer import Signer

_KEYSTORE_LIMIT: Final = 64 * 1024
_KEY_LIMIT: Final = 1024
_WAYS: Final = (
    "Make one with `zg wallet new`, name one with --wallet, --private-key-file or --signer-url,"
    " or set ZG_PRIVATE_KEY; --help says more"
)


async def unlock(settings: Settings, stack: contextlib.AsyncExitStack) -> "Signer":
    """Open the chosen wallet; a password is asked for on the terminal if nothing else gives it.

    Raises:
        ConfigError: It can't be opened.
    """
    from zg_async.transport.remote_signer import RemoteSigner
    from zg_async.transport.signer import LocalSigner

    choice = settings.wallet
    if choice is None:
        raise ConfigError("no wallet is given", hint=_WAYS)
    if choice.kind == "signer":
        return await stack.enter_async_context(await RemoteSigner.connect(choice.where, choice.account))
    if choice.kind == "keystore":
        path = await anyio.to_thread.run_sync(keystore_path, choice.where)
        password = await anyio.to_thread.run_sync(read_password, settings, f"Password of {path.name}: ")
        return await anyio.to_thread.run_sync(LocalSigner.from_keystore, path, password)
    if choice.kind == "key file":
        data = await anyio.to_thread.run_sync(read_key, Path(choice.where))
        return LocalSigner.from_key(hidden(data.decode("ascii", "replace")))
    return LocalSigner.from_key(hidden(choice.key or ""))


def read_key(path: Path) -> bytes:
    """Read a private key's file.

    Raises:
        ConfigError: It can't be read, others can read it, or the path looks like the key itself.
    """
    refuse_key(str(path), what="path of the key's file")
    return hidden(read_private(path, what="private key file", limit=_KEY_LIMIT))


def keystore_path(where: str) -> Path:
    """Find a keystore by the name or address of a wallet of `zg wallet list`, or by its path. Reads files.

    Raises:
        ConfigError: There is none.
    """
    refuse_key(where, what="wallet")
    folder = wallets_dir(config_path(os.environ))
    if "/" in where or os.sep in where or where.endswith(".json"):
        return Path(where)
    path = folder / f"{where}.json"
    if path.is_file() and path.parent == folder:
        return path
    wanted = where.lower().removeprefix("0x")
    for other in sorted(folder.glob("*.json")):
        if stated_address(other).lower().removeprefix("0x") == wanted:
            return other
    raise ConfigError(f"there is no wallet {printable(where, limit=80)!r}", hint="`zg wallet list` shows all")


def stated_address(path: Path) -> str:
    """Return the address that a keystore states, empty if none; without a password it can't be proven.

    Raises:
        ConfigError: It can't be read, or others can read it.
    """
    from zg_async.wire.hashing import checksum_address
    from zg_async.wire.strict_json import BadJsonError, decode_json

    try:
        value = decode_json(read_private(path, what="keystore", limit=_KEYSTORE_LIMIT), limit=_KEYSTORE_LIMIT, depth=8)
        return checksum_address("0x" + str(value["address"]).lower().removeprefix("0x"))
    except (BadJsonError, KeyError, TypeError, ValueError):
        return ""


async def wallet_address(choice: WalletChoice) -> Address | None:
    """Tell a wallet's address without opening a keystore; None if its file doesn't state one."""
    async with contextlib.AsyncExitStack() as stack:
        if choice.kind == "keystore":
            path = await anyio.to_thread.run_sync(keystore_path, choice.where)
            return Address(found) if (found := await anyio.to_thread.run_sync(stated_address, path)) else None
        signer = await unlock(Settings(wallet=choice), stack)
        return signer.address


def read_password(
    settings: Settings, prompt: str, *, flag: str = "--password-fd, or set ZG_PASSWORD", repeat: bool = False
) -> bytes:
    """Get a keystore's password: from the file descriptor, else the environment, else the terminal.

    Args:
        settings: Where it may come from.
        prompt: What to ask on the terminal.
        flag: The flag that would give it, for the message.
        repeat: Ask twice there, for a new one.

    Returns:
        Its bytes as given; of a file descriptor the first line.

    Raises:
        ConfigError: There is none, and no terminal to ask on; or the two differ.
    """
    if settings.password_fd is not None:
        return read_descriptor(settings.password_fd)
    if settings.password is not None:
        return hidden(settings.password.encode("utf-8", "surrogateescape"))
    password = ask_secret(prompt, flag=flag)
    if repeat and password != ask_secret("Again: ", flag=flag):
        raise ConfigError("the two passwords differ", hint="Nothing was written")
    return hidden(password.encode())


def ask_secret(prompt: str, *, flag: str) -> str:
    """Ask for a secret on the terminal, without showing it.

    Raises:
        ConfigError: There is no terminal.
    """
    if not sys.stdin.isatty():
        raise ConfigError(f"{prompt.rstrip(': ')} is missing, and there is no terminal to ask on", hint=f"Give {flag}")
    return hidden(getpass.getpass(prompt))


def read_descriptor(number: int) -> bytes:
    """Read a secret's first line from a file descriptor.

    Raises:
        ConfigError: It isn't open for reading, or empty.
    """
    try:
        with open(number, "rb", closefd=False) as file:
            line = hidden(file.readline(_KEY_LIMIT + 2).rstrip(b"\r\n"))
    except OSError as error:
        raise ConfigError(f"file descriptor {number} can't be read: {error.strerror}") from None
    if not line:
        raise ConfigError(f"file descriptor {number} holds no password", hint="Its first line is taken")
    return line
