"""Where this user's state lies: the only thing the library takes from the environment."""

import os
import sys
from pathlib import Path


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
