"""Chat with an adapter, or with a provider's own model.

    ZG_PRIVATE_KEY=0x... python examples/chat.py PROVIDER "What is the code of station Hamar?" [ADAPTER_NAME]

Nothing moves money by itself: the sub-account is filled by `ensure_funded`, once, and only as far as it is short.
"""

import asyncio
import os
import sys

from zg_async import create_broker


async def main(provider: str, question: str, adapter: str | None = None) -> None:
    broker = create_broker(
        private_key=os.environ["ZG_PRIVATE_KEY"],
        network=os.environ.get("ZG_NETWORK", "local"),
        rpc_url=os.environ.get("ZG_RPC_URL"),
    )
    async with broker:
        await broker.ledger.ensure_funded(provider, "inference", "2")
        if adapter:
            answer = await broker.inference.lora.chat(provider, adapter, question)
        else:
            answer = await broker.inference.chat(provider, question, max_tokens=32)
        print(answer.content)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:4]))
