"""Providers ranked with reasons, all looked at at once."""

import dataclasses
import itertools

import anyio
import pytest
from aiohttp import web

from tests.devnet.conftest import MODEL, open_broker
from tests.http_server import serving
from zg_async import TaskProgress, raw_replies
from zg_async.managers.choosing import ProviderProbe, rank

pytestmark = pytest.mark.slow
MANY = 30


@pytest.fixture
def slow_training(devnet):
    devnet.control("settings", provider=0, train_seconds=60.0)
    yield
    devnet.control("restart", provider=0)
    devnet.control("settings", provider=0, train_seconds=0.0)


@pytest.mark.goal("DIS-02")
async def test_who_asks_for_it_learns_who_answers_how_fast_and_how_many_wait(
    devnet, broker, provider, slow_training, task, faults, monkeypatch
):
    tuning = broker.fine_tuning
    other = devnet.providers[1]["address"]

    async def probes(seconds):
        return {c.service.provider: c.probe for c in await tuning.choose(timeout_seconds=seconds)}

    with raw_replies() as replies:
        services = await tuning.list_service()
    assert replies == []  # nobody is asked by a plain list
    found = await probes(5.0)
    assert (found[provider].pending, found[other].pending) == (1, 0)
    assert all(0 < probe.latency < 5 and not probe.error for probe in found.values())
    faults(latency=60.0, path="/pending")
    with anyio.fail_after(30):
        found = await probes(0.5)
    assert (found[provider].pending, found[provider].error) == (None, "no answer in 0.5 s")
    assert found[provider].latency >= 0.5
    assert found[other].pending == 0  # its answer came in its own time
    devnet.control("stop", provider=0)
    try:
        found = await probes(5.0)
    finally:
        devnet.control("start", provider=0)
    assert (found[provider].pending, found[other].pending) == (None, 0)
    assert "can't connect" in found[provider].error
    await _all_at_once(tuning, services[0], monkeypatch)


async def _all_at_once(tuning, service, monkeypatch):
    """Each answers only when all have been asked."""
    asked, all_asked = [], anyio.Event()

    async def answer(request):
        asked.append(request.path)
        if len(asked) == MANY:
            all_asked.set()
        await all_asked.wait()
        return web.json_response(int(request.path.split("/")[1]))

    async with serving(answer) as url:

        async def many():
            return tuple(dataclasses.replace(service, provider=f"0x{n:040x}", url=f"{url}/{n}") for n in range(MANY))

        monkeypatch.setattr(tuning, "list_service", many)
        with anyio.fail_after(30):
            found = await tuning.choose(timeout_seconds=30.0)
    assert sorted(choice.probe.pending for choice in found) == list(range(MANY))


@pytest.mark.goal("DIS-05")
async def test_the_ranking_obeys_each_wish_says_why_and_is_the_same_each_time(
    devnet, broker, provider, slow_training, task, tmp_path
):
    other = devnet.providers[1]["address"]
    devnet.control("settings", provider=1, price_per_token=2 * 10**12)
    try:
        await broker.fine_tuning.wait_task(provider, task, TaskProgress.TRAINING)
        async with open_broker(devnet, None, tmp_path / "reader") as reader:  # without any key

            async def choose(model=None, **wishes):
                ranking = await reader.fine_tuning.choose(model, **wishes)
                return [c for c in ranking if c.service.provider in (provider, other)]  # whoever else is registered

            async def refusals(**wishes):
                return {c.service.provider: " ".join(c.reasons) for c in await choose(**wishes) if not c.fits}

            for _ in range(3):
                ranking = await choose(MODEL)
                assert [c.service.provider for c in ranking] == [other, provider]  # fewer ahead before cheaper
                assert all(c.fits for c in ranking)
                assert [c.reasons for c in ranking] == [
                    ("0 tasks ahead", "2000000000000 neuron per token"),
                    ("1 tasks ahead", "1000000000000 neuron per token"),
                ]
            assert await refusals(max_price=10**12) == {other: "2000000000000 neuron per token is above 1000000000000"}
            assert await refusals(free_only=True) == {provider: "it is busy: 1 tasks ahead"}
            gpus = ranking[0].service.quota.gpu_count
            assert await refusals(min_gpu=gpus) == {}
            assert set((await refusals(min_gpu=gpus + 1)).values()) == {f"it has {gpus} GPUs, not {gpus + 1}"}
            refused = await refusals(model="no-such-model")
            assert refused.keys() == {provider, other}
            assert all("unknown model" in why for why in refused.values())
            both = await choose(MODEL, max_price=1, free_only=True)
            assert [len(c.reasons) for c in both] == [1, 2]  # every reason, and who misses least comes first
            devnet.control("stop", provider=1)
            assert "doesn't answer" in (await refusals(model=MODEL))[other]
    finally:
        devnet.control("start", provider=1)
        devnet.control("settings", provider=1, price_per_token=10**12)


def _probe(pending, latency):
    return ProviderProbe(pending=pending, latency=latency)


async def test_the_order_depends_on_the_facts_only(broker):
    (service, *_) = await broker.fine_tuning.list_service()
    facts = [
        (
            dataclasses.replace(service, provider=f"0x{n:040x}", price_per_token=price),
            ProviderProbe(pending=p, latency=n),
        )
        for n, (price, p) in enumerate([(1, 0), (1, 0), (2, 0), (1, 3), (1, None)])
    ]
    orders = set()
    for mixed in itertools.permutations(facts):
        services, probes = zip(*mixed, strict=True)
        ranking = rank(services, probes, [""] * len(facts), max_price=None, min_gpu=0, free_only=False)
        orders.add(tuple(int(c.service.provider, 16) for c in ranking))
    assert orders == {(0, 1, 2, 3, 4)}
