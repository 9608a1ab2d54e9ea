"""What watching costs: the chain is asked about many watches at once, and not at all for what events tell."""

import anyio
import pytest

from tests.devnet.conftest import MODEL, PARAMS, open_broker
from zg_async import PollPolicy, TaskProgress

pytestmark = pytest.mark.slow


class Trips:
    """Counts JSON-RPC round trips of a broker."""

    def __init__(self, broker, monkeypatch):
        self.count = 0
        exchange = broker.chain.rpc._exchange

        async def counted(*arguments):
            self.count += 1
            return await exchange(*arguments)

        monkeypatch.setattr(broker.chain.rpc, "_exchange", counted)


async def test_fifty_watches_that_begin_together_share_their_reads(broker, provider, task, monkeypatch):
    trips, started = Trips(broker, monkeypatch), []

    async def first(number):
        async with broker.fine_tuning.watch_task(provider, task) as changes:
            async for _ in changes:
                started.append(number)
                return

    with anyio.fail_after(20):
        async with anyio.create_task_group() as group:
            for number in range(50):
                group.start_soon(first, number)
    assert len(started) == 50
    assert trips.count < 30


async def test_a_delivered_task_is_polled_without_asking_the_chain(broker, provider, task, monkeypatch):
    seen = []

    async def read():
        async for change in broker.fine_tuning.watch_task(provider, task):
            seen.append(change)

    with anyio.fail_after(20):
        await broker.fine_tuning.wait_task(provider, task, TaskProgress.DELIVERED)
        async with anyio.create_task_group() as group:
            group.start_soon(read)
            while not seen:
                await anyio.sleep(0.01)
            reads = []
            call_many = broker.chain.call_many

            async def counted(calls, **options):
                reads.append(calls)
                return await call_many(calls, **options)

            monkeypatch.setattr(broker.chain, "call_many", counted)
            await anyio.sleep(1.0)  # several rounds of the poller
            assert reads == []
            group.cancel_scope.cancel()


async def test_a_provider_that_moves_is_found_by_its_event(devnet, key, provider, dataset, tmp_path):
    polling = PollPolicy(first=0.1, longest=0.1, growth=1.0, rate=50.0)
    async with open_broker(devnet, key, tmp_path / "s", polling=polling) as broker:
        hub = broker._shared.hub
        await broker.ledger.ensure_funded(provider, "fine-tuning", "1")
        before = await broker.fine_tuning._ctx.services.fine_tuning_service(provider)

        async def read(task):
            async for _ in broker.fine_tuning.watch_task(provider, task):
                pass

        uploaded = await broker.fine_tuning.upload_dataset_to_tee(provider, dataset)
        task = await broker.fine_tuning.create_task(provider, MODEL, uploaded.dataset_hash, PARAMS)
        with anyio.fail_after(20):
            async with anyio.create_task_group() as group:
                group.start_soon(read, task)
                await anyio.sleep(0.3)
                await devnet.control_async("settings", provider=0, price_per_token=before.price_per_token + 1)
                while await hub.services.fine_tuning_service(before.provider) == before:
                    await anyio.sleep(0.05)
                group.cancel_scope.cancel()
        await devnet.control_async("settings", provider=0, price_per_token=before.price_per_token)
