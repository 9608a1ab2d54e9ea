"""Write the journals of this release: `python -m tests.journals.make VERSION`. Once per release; they stay for ever."""

import json
import shutil
import sqlite3
import sys
import tempfile
from contextlib import closing
from pathlib import Path

import anyio

from tests.fault.world import WALLET, Process, World
from tests.unit.jobs_events import ALL
from zg_async.jobs import sqlite as journal
from zg_async.jobs.events import event_to_json
from zg_async.jobs.runner import JobRunner
from zg_async.jobs.sqlite import SqliteStore
from zg_async.jobs.store import Owner

HERE = Path(__file__).parent
PLACE = "/srv"  # its name is in the journal
OWNER = Owner(chain_id=31337, genesis="0x" + "ab" * 32, wallets=(WALLET,))


async def write(version: str) -> None:
    with (HERE / f"{version}.events.jsonl").open("w") as file:
        for number, event in enumerate(ALL, 1):
            file.write(json.dumps({**event_to_json(event), "seq": number, "job_id": "job-all"}) + "\n")
    journal.process_name = lambda: "host:1"  # nobody's machine
    with tempfile.TemporaryDirectory(dir=PLACE) as folder:
        world = World(Path(folder))
        store = SqliteStore(Path(folder) / "jobs.sqlite")
        async with JobRunner(Process(world).broker, store) as runner:
            done = await runner.submit(world.spec())
            await done.result()
            world.settles = False
            waiting = await runner.submit(world.spec(key="second", output_dir=Path(folder) / "out2", deploy=False))
            async for event in waiting.events():
                if event.kind == "deliverable_acknowledged":
                    break
            await store.backup(Path(folder) / "copy.sqlite")
        with closing(sqlite3.connect(Path(folder) / "copy.sqlite")) as copy:
            (HERE / f"{version}.sql").write_text("\n".join(copy.iterdump()) + "\n")
        shutil.copyfile(Path(folder) / "copy.sqlite.head", HERE / f"{version}.head")


if __name__ == "__main__":
    anyio.run(write, sys.argv[1])
