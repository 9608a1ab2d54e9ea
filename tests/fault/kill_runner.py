"""Runs one job against a devnet, and kills itself with SIGKILL at a given point.

Points are all HTTP requests (JSON-RPC included), all renames of files, and all commits of the journal and the outbox.
To be killed `before:17` or `after:17` means around the 17th point, `before:rpc eth_sendRawTransaction:2` around the
second one of that name, `after:journal:1` around the first of a name that begins with this word. After a request means:
the answer's head is there and nobody has looked at it.

    python -m tests.fault.kill_runner SOCKET

serves runs on a Unix socket: each connection sends `[DEVNET, FOLDER, PRIVATE_KEY, KILL]` as a line of JSON, has a
process forked off for it, and gets how that ended. Most of a job's time would otherwise be spent on imports. `DEVNET`
is what `zg devnet up --json --limits off` prints.
"""

import asyncio
import dataclasses
import json
import os
import re
import signal
import socket
import sys
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import aiohttp
import eth_account  # noqa: F401  create_broker() would import it

from zg_async.broker import create_broker
from zg_async.jobs.runner import JobRunner
from zg_async.jobs.spec import JobSpec
from zg_async.jobs.sqlite import SqliteStore
from zg_async.managers.polling import PollPolicy
from zg_async.transport.http import HttpSettings
from zg_async.transport.limiter import UNLIMITED
from zg_async.transport.sqlite_outbox import SqliteOutbox

PARAMS = {
    "neftune_noise_alpha": 5,
    "num_train_epochs": 1,
    "per_device_train_batch_size": 2,
    "learning_rate": 0.0002,
    "max_steps": 3,
}
ROWS = 12
RESULT, POINTS, STDERR, DIED = "result.json", "points", "stderr", "died"
Work = Callable[[dict[str, Any], Path, Any], Coroutine[Any, Any, None]]
"""What a forked process does, given the devnet, its folder and its key or keys."""
_ID = re.compile(r"0x[0-9a-fA-F]{40}|[0-9a-f]{8}-[0-9a-f-]{27}|job-[0-9a-f]{20}")


class Points:
    """Counts points, in all and by name, and dies when told."""

    def __init__(self, kill: str, log: Path) -> None:
        self.when, _, rest = kill.partition(":")
        name, _, number = rest.rpartition(":")
        self.name, self.number = name, int(number or 0)
        self.log = log
        self.counts: dict[str, int] = {}
        self.lock = threading.Lock()

    def enter(self, name: str) -> int:
        with self.lock:
            keys = (name, name.split()[0], "")
            for key in keys:
                self.counts[key] = self.counts.get(key, 0) + 1
            count = self.counts[self.name] if self.name in keys else 0
            self.note(name)
        self.die_if("before", name, count)
        return count

    def die_if(self, when: str, name: str, count: int) -> None:
        if count and (when, count) == (self.when, self.number):
            self.note(f"{DIED} {when} {name}")
            os.kill(os.getpid(), signal.SIGKILL)

    def note(self, line: str) -> None:
        with self.log.open("a") as file:
            file.write(line + "\n")


def name_of(method: str, url: Any, arguments: dict[str, Any]) -> str:
    body = arguments.get("json")
    data = arguments.get("data")
    if body is None and isinstance(data, bytes) and data[:1] in b"[{":
        body = json.loads(data)
    asks = body if isinstance(body, list) else [body]
    if all(isinstance(ask, dict) and "method" in ask for ask in asks):
        return "rpc " + "+".join(sorted({ask["method"] for ask in asks}))
    return f"{method} {_ID.sub('*', str(getattr(url, 'path', url)))}"


def install(points: Points) -> None:
    """Put a point around everything that leaves the process or is to outlive it."""
    request = aiohttp.ClientSession._request

    async def counted_request(self: Any, method: str, url: Any, **arguments: Any) -> Any:
        name = name_of(method, url, arguments)
        count = points.enter(name)
        response = await request(self, method, url, **arguments)
        points.die_if("after", name, count)
        return response

    aiohttp.ClientSession._request = counted_request  # type: ignore[method-assign]
    for function in ("replace", "rename"):
        setattr(os, function, _counted(getattr(os, function), points))
    for owner, method in ((SqliteStore, "create"), (SqliteStore, "append"), (SqliteOutbox, "append")):
        setattr(owner, method, _counted_commit(getattr(owner, method), points))


def _counted_commit(commit: Any, points: Points) -> Any:
    async def counted(self: Any, where: Any, *recorded: Any) -> Any:
        if isinstance(self, SqliteStore):
            name = "journal " + "+".join(event.kind for event in recorded)
        else:
            name = "outbox " + "+".join(entry["kind"] for entry in recorded[0])
        count = points.enter(name)
        result = await commit(self, where, *recorded)
        points.die_if("after", name, count)
        return result

    return counted


def _counted(rename: Any, points: Points) -> Any:
    def counted(source: Any, target: Any, **arguments: Any) -> None:
        name = _ID.sub("*", os.path.basename(os.fspath(target)))
        count = points.enter(f"rename {name}")
        rename(source, target, **arguments)
        points.die_if("after", name, count)

    return counted


async def main(devnet: dict[str, Any], folder: Path, key: str) -> None:
    dataset = folder / "train.jsonl"
    if not dataset.exists():
        rows = ({"instruction": f"What is {n} and {n}?", "input": "", "output": str(2 * n)} for n in range(ROWS))
        dataset.write_text("".join(json.dumps(row) + "\n" for row in rows))
    spec = JobSpec(
        model="Qwen2.5-0.5B-Instruct",
        dataset=dataset,
        training_params=PARAMS,
        output_dir=folder / "out",
        deploy=True,
        key=folder.name,
    )
    contracts = {name: devnet[name] for name in ("ledger", "inference", "fine_tuning")}
    broker = create_broker(
        key,
        "local",
        rpc_url=devnet["rpc_url"],
        contracts=contracts,
        state_dir=folder / "state",
        http=HttpSettings(limits=UNLIMITED),
        polling=PollPolicy(first=0.1, longest=0.5, rate=50.0),
    )
    async with broker, JobRunner(broker) as runner:
        result = await runner.run_job(spec)
    (folder / RESULT).write_text(json.dumps(dataclasses.asdict(result)))


def run(devnet: dict[str, Any], folder: str, key: Any, kill: str, work: Work) -> None:
    """Do the work to its end and leave `result.json`, or `stderr`, or die as told."""
    os.dup2(os.open(Path(folder) / STDERR, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), sys.stderr.fileno())
    install(Points(kill, Path(folder) / POINTS))
    asyncio.run(work(devnet, Path(folder), key))
    os._exit(0)


def serve(path: str, work: Work) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those that answer
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(64)
        print("ready", flush=True)
        while True:
            connection, _ = listener.accept()
            with connection:
                if os.fork() == 0:
                    answer(connection, work)


def answer(connection: socket.socket, work: Work) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    order = json.loads(connection.makefile().readline())
    if (runner := os.fork()) == 0:
        run(*order, work)
    _, status = os.waitpid(runner, 0)
    connection.sendall(str(os.waitstatus_to_exitcode(status)).encode())
    os._exit(0)


if __name__ == "__main__":
    serve(sys.argv[1], main)
