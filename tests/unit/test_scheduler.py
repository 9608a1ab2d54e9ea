"""Turns: one job per wallet and provider, the oldest wish first, nobody left out, and none lost by a cancellation."""

import random

import anyio
import pytest

from zg_async.jobs.scheduler import Scheduler

WALLETS = ("w1", "w2")
PROVIDERS = ("p1", "p2", "p3")


@pytest.fixture
def scheduler() -> Scheduler:
    return Scheduler()


async def settle():
    for _ in range(5):
        await anyio.lowlevel.checkpoint()


async def test_jobs_that_would_go_anywhere_fill_all_providers_before_anyone_waits(scheduler):
    got = [await scheduler.claim(f"j{n}", "w1", PROVIDERS) for n in range(3)]
    assert sorted(got) == list(PROVIDERS)
    assert scheduler.ahead("j4", "w1", PROVIDERS) == (PROVIDERS[0], "j0")
    assert scheduler.ahead("j0", "w1", PROVIDERS) is None
    assert scheduler.ahead("j4", "w2", PROVIDERS) is None


async def test_a_turn_goes_to_the_oldest_wish_that_would_take_it(scheduler):
    order = []

    async def job(name, providers):
        where = await scheduler.claim(name, "w1", providers)
        order.append((name, where))

    await scheduler.claim("a", "w1", ["p1"])
    await scheduler.claim("b", "w1", ["p2"])
    async with anyio.create_task_group() as group:
        for name, providers in (("c", ["p2"]), ("d", ["p1", "p2"]), ("e", ["p1"])):
            group.start_soon(job, name, providers)
            await settle()
        scheduler.release("b")
        scheduler.release("a")
        await settle()
        assert order == [("c", "p2"), ("d", "p1")]
        assert scheduler.jobs_at("w1", "p1") == ("d", "e")
        scheduler.release("d")
    assert order[-1] == ("e", "p1")


async def test_a_job_with_a_task_is_let_in_at_once_and_keeps_others_out(scheduler):
    await scheduler.claim("new", "w1", ["p1"])
    assert await scheduler.claim("trained", "w1", ["p1"], has_task=True) == "p1"
    scheduler.release("new")
    assert scheduler.ahead("next", "w1", ["p1"]) == ("p1", "trained")
    scheduler.release("trained")
    assert scheduler.ahead("next", "w1", ["p1"]) is None


@pytest.mark.goal("BAT-02", part="starvation-free; a cancellation loses no turn")
@pytest.mark.parametrize("seed", range(30))
async def test_whatever_comes_and_goes_a_pair_has_one_job_and_every_job_gets_its_turn_in_bounded_order(seed):
    rng, scheduler = random.Random(seed), Scheduler()
    inside: dict[tuple[str, str], str] = {}
    asked: dict[str, int] = {}
    passed_over: dict[str, int] = {}
    done = []

    async def job(name):
        wallet = rng.choice(WALLETS)
        providers = rng.sample(PROVIDERS, rng.randint(1, 3))
        asked[name] = len(asked)
        with anyio.CancelScope() as scope:
            if rng.random() < 0.2:
                scopes.append(scope)
            waiting[name] = (wallet, providers)
            where = await scheduler.claim(name, wallet, providers)
            assert where in providers
            assert (wallet, where) not in inside
            for other, (other_wallet, other_providers) in waiting.items():
                older = asked[other] < asked[name] and other not in scheduler._pairs
                if older and other_wallet == wallet and where in other_providers:
                    passed_over[other] = passed_over.get(other, 0) + 1
            most_waiting.append(len(waiting))
            waiting.pop(name, None)
            inside[wallet, where] = name
            try:
                for _ in range(rng.randint(2, 9)):
                    await anyio.lowlevel.checkpoint()
            finally:
                del inside[wallet, where]
                scheduler.release(name)
        waiting.pop(name, None)
        done.append(name)

    waiting: dict[str, tuple[str, list[str]]] = {}
    most_waiting: list[int] = []
    scopes: list[anyio.CancelScope] = []
    with anyio.fail_after(20):
        async with anyio.create_task_group() as group:
            for number in range(80):
                group.start_soon(job, f"j{number}")
                if rng.random() < 0.5:
                    await anyio.lowlevel.checkpoint()
                if scopes and rng.random() < 0.3:
                    scopes.pop(rng.randrange(len(scopes))).cancel()
    assert len(done) == 80
    assert not passed_over
    assert max(most_waiting) >= 4
    assert (scheduler._inside, scheduler._pairs, scheduler._waiting) == ({}, {}, [])
