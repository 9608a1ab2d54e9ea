"""Finds what blocks an event loop, on a busy machine too.

Lateness of a timer says as much about the machine as about the program. So the probe measures the loop thread's own
CPU time in each callback, which no neighbour can stretch, and records calls that wait without using CPU: sleeping,
syncing files, waiting for a process or for a database.
"""

import asyncio
import contextlib
import gc
import os
import sqlite3
import threading
import time
import traceback
from collections.abc import Iterator
from typing import Any

WAITING = ((time, "sleep"), (os, "fsync"), (os, "waitpid"), (sqlite3, "connect"), (threading.Thread, "join"))


class LoopProbe:
    """The slowest callback, and what waited in the loop's thread."""

    def __init__(self) -> None:
        self.worst = 0.0
        """CPU seconds of the slowest callback."""
        self.what = ""
        self.waited: list[str] = []


@contextlib.contextmanager
def probing() -> Iterator[LoopProbe]:
    """Probe the running loop; only what begins inside is seen."""
    probe, thread, run = LoopProbe(), threading.get_ident(), asyncio.Handle._run
    clock = time.thread_time

    def measured(handle: Any) -> None:
        began = clock()
        try:
            run(handle)
        finally:
            if (spent := clock() - began) > probe.worst and threading.get_ident() == thread:
                probe.worst, probe.what = spent, repr(handle)

    def watched(call: Any, name: str) -> Any:
        def blocking(*arguments: Any, **options: Any) -> Any:
            if threading.get_ident() == thread:
                probe.waited.append(f"{name}: {''.join(traceback.format_stack(limit=4)[:-1])}")
            return call(*arguments, **options)

        return blocking

    gc.collect()
    gc.freeze()  # what the rest of the suite left behind isn't ours to walk through
    kept = [(home, name, getattr(home, name)) for home, name in WAITING]
    for home, name, call in kept:
        setattr(home, name, watched(call, f"{getattr(home, '__name__', home)}.{name}"))
    asyncio.Handle._run = measured  # type: ignore[method-assign]
    try:
        yield probe
    finally:
        asyncio.Handle._run = run  # type: ignore[method-assign]
        for home, name, call in kept:
            setattr(home, name, call)
        gc.unfreeze()
