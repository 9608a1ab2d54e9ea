"""Watch a task that somebody else started, and go on after a break without missing or repeating anything.

ZG_PRIVATE_KEY=0x... python examples/watch.py PROVIDER TASK_ID [CURSOR]
"""

import asyncio
import os
import sys

from zg_async import create_broker


async def main(provider: str, task_id: str, cursor: str | None = None) -> None:
    broker = create_broker(
        private_key=os.environ["ZG_PRIVATE_KEY"],
        network=os.environ.get("ZG_NETWORK", "local"),
        rpc_url=os.environ.get("ZG_RPC_URL"),
    )
    async with broker, broker.fine_tuning.watch_task(provider, task_id, cursor=cursor) as changes:
        async for change in changes:
            print(change.at, change.source, change.kind, getattr(change, "state", ""))
            print("  go on with", change.cursor)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:4]))
