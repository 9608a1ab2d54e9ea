"""Locks between the programs of one user, on small files in the state folder."""

import os
import sqlite3
from contextlib import suppress
from pathlib import Path

Lock = sqlite3.Connection
"""Holds an exclusive transaction on a file until it is closed; the system drops it when the process dies."""


def take_lock(path: Path) -> Lock | None:
    """Hold an exclusive transaction until closed; None: another program does, or this one already. Blocks shortly.

    Raises:
        OSError: The file can't be made.
    """
    with suppress(FileExistsError):  # closing another descriptor of a locked file would drop this process's lock
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
    lock = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=0)
    try:
        lock.execute("begin exclusive")
    except sqlite3.Error:
        lock.close()
        return None
    return lock
