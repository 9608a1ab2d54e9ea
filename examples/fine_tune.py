"""From a dataset to an adapter that answers chat.

    ZG_PRIVATE_KEY=0x... python examples/fine_tune.py train.jsonl params.json out

Works on a local devnet (`zg devnet up`) as it stands; for another network set ZG_NETWORK and, if need be, ZG_RPC_URL.
"""

import asyncio
import os
import sys

from zg_async import JobRunner, JobSpec, create_broker


async def main(dataset: str, params: str, out: str) -> None:
    broker = create_broker(
        private_key=os.environ["ZG_PRIVATE_KEY"],
        network=os.environ.get("ZG_NETWORK", "local"),
        rpc_url=os.environ.get("ZG_RPC_URL"),
    )
    async with broker, JobRunner(broker) as runner:
        job = await runner.submit(
            JobSpec(model="Qwen2.5-0.5B-Instruct", dataset=dataset, training_params=params, output_dir=out, deploy=True)
        )
        async for event in job.events():
            print(event.seq, event.kind)
        result = await job.result()
        answer = await broker.inference.lora.chat(result.provider, result.adapter_name, "What did you learn?")
        print(result.adapter_path, result.adapter_name, repr(answer.content))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:4]))
