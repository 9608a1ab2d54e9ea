"""Tells the other runners of this user which tasks a runner drives, so that none adopts another's.

Runners with journals of their own may share a wallet. Each keeps a small file in the state folder with its request
numbers and task ids, written before a task is asked for, and holds a lock beside it that the system drops when the
process dies: then the file counts no more, and what it named is anybody's.
"""

import itertools
import json
import os
from collections.abc import Set as AbstractSet
from contextlib import closing, suppress
from pathlib import Path
from typing import Final

import anyio
import anyio.to_thread

from zg_async.errors import JournalError
from zg_async.file_lock import Lock, take_lock
from zg_async.logs import get_logger
from zg_async.paths import make_private_dir

_log = get_logger("zg_async.jobs")
_numbers: Final = itertools.count(1)


class Presence:
    """One runner's sign of life."""

    def __init__(self, folder: Path) -> None:
        """Name the folder that this user's runners share; nothing is written before there is a task."""
        self._folder = folder
        self._name = f"{os.getpid()}-{next(_numbers)}"
        self._tasks: set[str] = set()
        self._lock: Lock | None = None
        self._writing = anyio.Lock()

    async def claim(self, *names: str) -> None:
        """Say that tasks are driven here, by request number or task id.

        Raises:
            JournalError: It can't be written, so nothing may be asked for.
        """
        if self._tasks.issuperset(names):
            return
        self._tasks.update(names)
        async with self._writing:
            try:
                await anyio.to_thread.run_sync(self._write)
            except (OSError, JournalError) as error:
                raise JournalError(f"can't write to {self._folder}: {error}", hint="See that there is room") from error

    async def others(self) -> AbstractSet[str]:
        """Return what other living runners drive; nothing if that can't be read."""
        try:
            return await anyio.to_thread.run_sync(self._read_others)
        except (OSError, JournalError) as error:
            _log.warning("can't see which tasks other runners drive: %s", error)
            return frozenset()

    async def leave(self) -> None:
        """Take the sign down. Idempotent."""
        async with self._writing:
            await anyio.to_thread.run_sync(self._leave)

    def _write(self) -> None:
        if self._lock is None:
            make_private_dir(self._folder)
            self._lock = take_lock(self._path.with_suffix(".lock"))
        temporary = self._path.with_suffix(".new")
        with closing(os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w")) as file:
            json.dump(sorted(self._tasks), file)
        temporary.replace(self._path)

    def _read_others(self) -> AbstractSet[str]:
        found: set[str] = set()
        for path in self._folder.glob("*.json") if self._folder.is_dir() else ():
            if path == self._path:
                continue
            lock = take_lock(path.with_suffix(".lock"))
            if lock is not None:  # its process is dead
                lock.close()
                _remove(path)
                continue
            with suppress(OSError, ValueError):
                found.update(map(str, json.loads(path.read_bytes())))
        return found

    def _leave(self) -> None:
        if self._lock is not None:
            lock, self._lock = self._lock, None
            lock.close()
            _remove(self._path)

    @property
    def _path(self) -> Path:
        return self._folder / f"{self._name}.json"


def _remove(path: Path) -> None:
    for one in (path, path.with_suffix(".lock")):
        with suppress(OSError):
            one.unlink()
