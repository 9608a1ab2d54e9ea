"""Registrations are read once for many, and anew when they changed or are old."""

import anyio
import pytest

from tests.devnet.conftest import MODEL, PARAMS, new_key, open_broker
from zg_async import SystemClock

pytestmark = pytest.mark.slow


class MovedClock(SystemClock):
    ahead = 0.0

    def monotonic(self):
        return super().monotonic() + self.ahead


@pytest.fixture
async def watched(devnet, tmp_path):
    """A broker with a clock to move, and what its RPC is asked, except by the followers of blocks and logs."""
    clock, asked = MovedClock(), []
    async with open_broker(devnet, new_key(devnet), tmp_path / "s", clock=clock) as broker:
        exchange = broker.chain.rpc._exchange

        async def counted(index, asks):
            asked.extend(ask.what for ask in asks if ask.method == "eth_call")
            return await exchange(index, asks)

        broker.chain.rpc._exchange = counted
        yield broker, clock, asked


def lookups(broker, provider):
    services = broker._context.services
    return {
        "fine-tuning": lambda: services.fine_tuning_service(provider),
        "inference": lambda: broker.inference.recent_service(provider),
    }


@pytest.mark.goal("DIS-08", part="1,000 lookups cause one call, TTL")
@pytest.mark.parametrize("kind", ["fine-tuning", "inference"])
async def test_a_thousand_lookups_cause_one_call_until_a_minute_has_passed(watched, provider, kind):
    broker, clock, asked = watched
    look, found = lookups(broker, provider)[kind], []

    async def one():
        found.append(await look())

    for _ in range(2):
        async with anyio.create_task_group() as group:
            for _ in range(500):
                group.start_soon(one)
    assert len(asked) == 1
    assert len(found) == 1000
    assert {service.provider for service in found} == {provider}
    clock.ahead += 59
    await one()
    assert len(asked) == 1
    clock.ahead += 2
    await one()
    assert len(asked) == 2


@pytest.mark.goal("DIS-08", part="invalidation on ServiceUpdated")
async def test_a_registration_that_changes_is_forgotten_at_once(devnet, watched, provider, dataset):
    broker, _, _ = watched
    await broker.ledger.ensure_funded(provider, "fine-tuning", "1")
    await broker.fine_tuning.acknowledge_provider_signer(provider)
    uploaded = await broker.fine_tuning.upload_dataset_to_tee(provider, dataset)
    devnet.control("settings", provider=0, train_seconds=3.0)
    before = devnet.control("inference", provider=0)["inference"][0]
    try:
        task = await broker.fine_tuning.create_task(provider, MODEL, uploaded.dataset_hash, PARAMS)
        looks = lookups(broker, provider)
        async with broker.fine_tuning.watch_task(provider, task) as watch:
            await anext(watch)
            tuning, inference = await looks["fine-tuning"](), await looks["inference"]()
            devnet.control("settings", provider=0, price_per_token=7 * 10**11)
            devnet.control("inference", provider=0, input_price=before["input_price"] + 1)
            with anyio.fail_after(30):  # half of what it would be kept otherwise
                while (await looks["fine-tuning"]()).price_per_token == tuning.price_per_token:
                    await broker.clock.sleep(0.05)
                while (await looks["inference"]()).input_price == inference.input_price:
                    await broker.clock.sleep(0.05)
        assert (await looks["fine-tuning"]()).price_per_token == 7 * 10**11
    finally:
        devnet.control("settings", provider=0, price_per_token=10**12, train_seconds=0.0)
        devnet.control("inference", provider=0, **before)
