"""A process that watches 1,000 tasks and prints what that took: `python -m tests.devnet.many_watches RPC_URL`.

20 providers, for which a process of `benchmarks/watch.py` answers, and 50 tasks at each: ten of each of five wallets.
Where a provider is, it doesn't ask the chain; all else that watching asks for comes from a devnet.
All settings are the defaults. What is measured doesn't depend on how busy the machine is: CPU time per callback,
memory, and requests against the time they took.
"""

import json
import os
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import aiohttp
import anyio

from benchmarks import watch
from tests.devnet.large_files import peak
from tests.loop_probe import probing
from zg_async import TaskStateChanged, create_broker
from zg_async.devnet.accounts import fine_tuning_provider
from zg_async.managers.provider_client import ProviderClient
from zg_async.managers.services import ServiceDirectory
from zg_async.wire.records import Address, FineTuningService, Quota

PROVIDERS, WALLETS, EACH = 20, 5, watch.LISTED
WATCHES = PROVIDERS * WALLETS * EACH
ROUNDS = 2


class Asked:
    """When each provider was asked."""

    def __init__(self) -> None:
        self.at: dict[str, list[float]] = defaultdict(list)
        call = ProviderClient._call

        async def noted(client: ProviderClient, *arguments: Any, **options: Any) -> Any:
            self.at[client.provider].append(time.monotonic())
            return await call(client, *arguments, **options)

        ProviderClient._call = noted  # type: ignore[method-assign]

    @property
    def rate(self) -> float:
        """The most requests per second to one provider, from its first to its last."""
        return max((len(at) - 1) / (at[-1] - at[0]) for at in self.at.values())

    async def rounds(self, count: int) -> None:
        """Wait until every provider was asked so often for every wallet."""
        while len(self.at) < PROVIDERS or any(len(at) < count * WALLETS for at in self.at.values()):
            await anyio.sleep(0.05)


def known_at(stub: str) -> None:
    """Let every provider be at the stub."""
    numbers = {_address(n): n for n in range(PROVIDERS)}
    quota = Quota(cpu_count=1, node_memory=1, gpu_count=1, node_storage=1, gpu_type="T")

    async def found(_: ServiceDirectory, provider: str, **__: Any) -> FineTuningService:
        return FineTuningService(
            provider=Address(provider),
            url=f"{stub}/p{numbers[provider]}",
            quota=quota,
            price_per_token=1,
            occupied=False,
            models=(),
            tee_signer_address=Address(provider),
            tee_signer_acknowledged=True,
        )

    ServiceDirectory.fine_tuning_service = found  # type: ignore[method-assign]


async def run(rpc_url: str, stub: str, state: Path) -> dict[str, Any]:
    """Watch, see each task and one change at each provider, and measure."""
    known_at(stub)
    keys = ["0x" + os.urandom(32).hex() for _ in range(WALLETS)]
    asked, told, ended = Asked(), defaultdict[str, list[str]](list), 0
    async with (
        aiohttp.ClientSession() as session,
        create_broker(None, "local", private_keys=keys, rpc_url=rpc_url, state_dir=state) as broker,
    ):
        began = time.monotonic()

        async def read(place: int) -> None:
            nonlocal ended
            place, number = divmod(place, EACH)
            provider, wallet = divmod(place, WALLETS)
            address = broker.wallets[wallet]
            task = watch.task_id(address, provider, number)
            async with broker.using(address).fine_tuning.watch_task(_address(provider), task) as changes:
                async for change in changes:
                    told[task].append(change.state_text if isinstance(change, TaskStateChanged) else change.kind)
            ended += 1

        async def until(done: Callable[[], bool]) -> None:
            while not done():
                await anyio.sleep(0.05)

        with probing() as probe:
            async with anyio.create_task_group() as group:
                for place in range(WATCHES):
                    group.start_soon(read, place)
                await until(lambda: len(told) == WATCHES)
                changed = [watch.task_id(broker.wallets[n % WALLETS], n) for n in range(PROVIDERS)]
                for task in changed:
                    await watch.get(session, f"{stub}/set/{task}/Trained")
                await until(lambda: all("Trained" in told[task] for task in changed))
                await until(lambda: sum("task_stuck" in heard for heard in told.values()) >= WATCHES // EACH)
                await asked.rounds(ROUNDS)
                group.cancel_scope.cancel()
    return {
        "watches": len(told) - ended,
        "told": Counter(chain.from_iterable(told.values())),
        "rate": asked.rate,
        "requests": sum(map(len, asked.at.values())),
        "seconds": time.monotonic() - began,
        "megabytes": peak() / 2**20,
        "slowest_callback": probe.worst,
        "callback": probe.what,
        "waited": probe.waited,
    }


def _address(provider: int) -> str:
    return fine_tuning_provider(provider).address


async def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, watch.__file__, "serve"]
        async with await anyio.open_process(command, stderr=None) as server:
            try:
                stub = f"http://127.0.0.1:{int(await server.stdout.receive())}"  # type: ignore[union-attr]
                print(json.dumps(await run(sys.argv[1], stub, Path(folder))))
            finally:
                server.terminate()


if __name__ == "__main__":
    anyio.run(main)
