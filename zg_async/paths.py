"""Where this user's state lies, which is all the library takes from the environment; and files of one user."""

import os
import secrets
import stat
import sys
from pathlib import Path
from typing import Final

from zg_async.errors import ConfigError


def state_dir() -> Path:
    """Return the folder for outbox and journal, without creating it.

    Returns:
        `$ZG_STATE_DIR` if set, else `zg_async` in the platform's place for state: `$XDG_STATE_HOME` or
        `~/.local/state`, on macOS `~/Library/Application Support`, on Windows `%LOCALAPPDATA%`.
    """
    if own := os.environ.get("ZG_STATE_DIR"):
        return Path(own)
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "zg_async"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "zg_async"
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "zg_async"


def make_private_dir(path: Path) -> Path:
    """Create a folder that only this user can read, and return it.

    Args:
        path: The folder; parents that don't exist are created alike.

    Returns:
        The same path.
    """
    for folder in (*reversed(path.parents), path):
        if not folder.exists():
            folder.mkdir(mode=0o700, exist_ok=True)
    return path


SECRET_VARIABLES: Final = frozenset({"ZG_PRIVATE_KEY", "PRIVATE_KEY", "ZG_PASSWORD", "ZG_SERVE_TOKEN", "ZG_OWNER_KEY"})
"""Environment variables that programs of this package take secrets from."""


def child_environment(*keep: str) -> dict[str, str]:
    """Return this process's environment for a child, which gets none of our secrets.

    Args:
        keep: Those of `SECRET_VARIABLES` that this child is meant to have.
    """
    return {name: value for name, value in os.environ.items() if name not in SECRET_VARIABLES or name in keep}


def require_private(path: Path, *, what: str) -> None:
    """See that only its owner can read or write a file.

    Args:
        path: The file.
        what: Names it in messages.

    Raises:
        ConfigError: Others can; the message says how to end that. Windows keeps such files in the user's profile.
        OSError: It can't be looked at.
    """
    _require_private_mode(path.stat().st_mode, path, what)


def read_private(path: Path, *, what: str, limit: int) -> bytes:
    """Read a small file that holds a secret.

    Args:
        path: The file.
        what: Names it in messages.
        limit: The most bytes it may have.

    Returns:
        Its bytes.

    Raises:
        ConfigError: It can't be read, is no regular file or too large, or others can read it.
    """
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise ConfigError(f"{path} is no regular file")
            _require_private_mode(status.st_mode, path, what)
            data = file.read(limit + 1)
    except OSError as error:
        raise ConfigError(f"can't read the {what} {path}: {error.strerror}") from None
    if len(data) > limit:
        raise ConfigError(f"the {what} {path} is larger than {limit} bytes")
    return data


def write_private(path: Path, data: bytes, *, what: str, replace: bool) -> None:
    """Write a file that only its owner can read, whole or not at all.

    Args:
        path: Where; its folder is made if need be.
        data: What.
        what: Names it in messages.
        replace: Whether a file that is there is replaced.

    Raises:
        ConfigError: It can't be written, or is there and not to be replaced.
    """
    target = path.with_name(f".{path.name}.{secrets.token_hex(8)}") if replace else path
    try:
        make_private_dir(path.parent)
        with open(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            try:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            except BaseException:
                target.unlink(missing_ok=True)
                raise
        if replace:
            target.replace(path)
    except FileExistsError:
        raise ConfigError(
            f"the {what} {path} exists already", hint="Nothing was changed; choose another name"
        ) from None
    except OSError as error:
        raise ConfigError(f"can't write the {what} {path}: {error.strerror}") from None


def _require_private_mode(mode: int, path: Path, what: str) -> None:
    if sys.platform != "win32" and mode & 0o077:
        raise ConfigError(f"other users can read the {what} {path}", hint=f"Run: chmod 600 {path}")
