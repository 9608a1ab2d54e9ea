"""Guard a wallet: each open task of it is fetched, verified and acknowledged inside its window, whoever created it.

    ZG_PRIVATE_KEY=0x... python examples/guardian.py

Jobs that other programs submitted to the same journal go on as well. It ends on SIGTERM and goes on where it stopped;
`zg-guardian.service`, beside this file, runs it as a systemd unit.
"""

import asyncio
import os

from zg_async import JobRunner, create_broker


async def main() -> None:
    broker = create_broker(
        private_key=os.environ["ZG_PRIVATE_KEY"],
        network=os.environ.get("ZG_NETWORK", "local"),
        rpc_url=os.environ.get("ZG_RPC_URL"),
    )
    async with broker, JobRunner(broker) as runner:
        print("guarding", *broker.wallets, flush=True)
        await runner.until_signal()
    print("left", flush=True)


if __name__ == "__main__":
    asyncio.run(main())
