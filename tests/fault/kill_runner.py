"""Runs one job against a devnet, and kills itself with SIGKILL at a given outward call.

    python -m tests.fault.kill_runner DEVNET.json FOLDER PRIVATE_KEY

`DEVNET.json` is what `zg devnet up --json --limits off` prints. Outward calls are all HTTP requests (JSON-RPC included)
and all renames of files. Environment: `ZG_KILL=before:17` or `after:17` dies around the 17th call,
`before:rpc eth_sendRawTransaction:2` around the second one of that name; `ZG_POINTS=FILE` gets the name of each call.
After a request means: the answer's head is there and nobody has looked at it. On success the result is printed as JSON.
"""

import asyncio
import dataclasses
import json
import os
import re
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import aiohttp

from zg_async.broker import create_broker
from zg_async.jobs.runner import JobRunner
from zg_async.jobs.spec import JobSpec
from zg_async.managers.watch import PollPolicy
from zg_async.transport.http import HttpSettings
from zg_async.transport.limiter import UNLIMITED

PARAMS = {
    "neftune_noise_alpha": 5,
    "num_train_epochs": 1,
    "per_device_train_batch_size": 2,
    "learning_rate": 0.0002,
    "max_steps": 3,
}
ROWS = 12
_ID = re.compile(r"0x[0-9a-fA-F]{40}|[0-9a-f]{8}-[0-9a-f-]{27}|job-[0-9a-f]{20}")


class Points:
    """Counts outward calls, in all and by name, and dies when told."""

    def __init__(self, kill: str, log: str) -> None:
        self.when, _, rest = kill.partition(":")
        name, _, number = rest.rpartition(":")
        self.name, self.number = name, int(number or 0)
        self.log = log
        self.counts: dict[str, int] = {}
        self.lock = threading.Lock()

    def enter(self, name: str) -> int:
        with self.lock:
            for key in (name, ""):
                self.counts[key] = self.counts.get(key, 0) + 1
            count = self.counts[self.name] if self.name in (name, "") else 0
            if self.log:
                with open(self.log, "a") as file:
                    file.write(name + "\n")
        self.die_if("before", count)
        return count

    def die_if(self, when: str, count: int) -> None:
        if count and (when, count) == (self.when, self.number):
            os.kill(os.getpid(), signal.SIGKILL)


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
    """Put a point around everything that leaves the process."""
    request = aiohttp.ClientSession._request

    async def counted_request(self: Any, method: str, url: Any, **arguments: Any) -> Any:
        count = points.enter(name_of(method, url, arguments))
        response = await request(self, method, url, **arguments)
        points.die_if("after", count)
        return response

    aiohttp.ClientSession._request = counted_request  # type: ignore[method-assign]
    for function in ("replace", "rename"):
        setattr(os, function, _counted(getattr(os, function), points))


def _counted(rename: Any, points: Points) -> Any:
    def counted(source: Any, target: Any, **arguments: Any) -> None:
        name = _ID.sub("*", os.path.basename(os.fspath(target)))
        count = points.enter(f"rename {name}")
        rename(source, target, **arguments)
        points.die_if("after", count)

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
    print(json.dumps(dataclasses.asdict(result)))


if __name__ == "__main__":
    install(Points(os.environ.get("ZG_KILL", ""), os.environ.get("ZG_POINTS", "")))
    asyncio.run(main(json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2]), sys.argv[3]))
