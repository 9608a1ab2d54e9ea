"""Submit a job in one process, go away, and take it up again in another.

    python examples/resume.py submit train.jsonl params.json out     prints the job's id
    python examples/resume.py attach JOB_ID                          goes on where it was, and prints the result

The journal and the outbox lie in the user's state folder (ZG_STATE_DIR), so a killed process loses nothing.
"""

import asyncio
import os
import sys

from zg_async import Broker, JobRunner, JobSpec, create_broker


def open_broker() -> Broker:
    return create_broker(
        private_key=os.environ["ZG_PRIVATE_KEY"],
        network=os.environ.get("ZG_NETWORK", "local"),
        rpc_url=os.environ.get("ZG_RPC_URL"),
    )


async def submit(dataset: str, params: str, out: str) -> None:
    async with open_broker() as broker, JobRunner(broker) as runner:
        spec = JobSpec(model="Qwen2.5-0.5B-Instruct", dataset=dataset, training_params=params, output_dir=out)
        job = await runner.submit(spec)
        print(job.id)


async def attach(job_id: str) -> None:
    async with open_broker() as broker, JobRunner(broker) as runner:
        job = await runner.attach(job_id)
        result = await job.result()
        print(result.adapter_path, result.fee)


if __name__ == "__main__":
    command, *rest = sys.argv[1:]
    asyncio.run(submit(*rest) if command == "submit" else attach(*rest))
