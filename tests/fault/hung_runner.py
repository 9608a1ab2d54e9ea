"""A process that drives one journal until it is killed: `python -m tests.fault.hung_runner FOLDER`."""

import sys
from pathlib import Path

import anyio
import anyio.lowlevel

from tests.fault.world import Process, World
from zg_async.jobs.runner import JobRunner
from zg_async.jobs.sqlite import SqliteStore


async def main(folder: Path) -> None:
    world = World(folder)
    world.settles = False
    async with JobRunner(Process(world).broker, SqliteStore(folder / "jobs.sqlite")) as runner:
        handle = await runner.submit(world.spec(deploy=False))
        async for event in handle.events():
            if event.kind == "deliverable_acknowledged":
                break
        async with anyio.create_task_group() as group:
            group.start_soon(runner.until_signal)
            for _ in range(10):  # it listens then
                await anyio.lowlevel.checkpoint()
            print("acknowledged", flush=True)
    print("left", flush=True)


if __name__ == "__main__":
    anyio.run(main, Path(sys.argv[1]))
