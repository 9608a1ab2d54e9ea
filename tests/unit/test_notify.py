"""Notifications: who is told what, how it is signed, and that no receiver holds anything up."""

import hashlib
import hmac
import json

import anyio
import pytest
from aiohttp import web

from tests.clock import FakeClock
from tests.http_server import serving
from zg_async import Callback, ConfigError, MemoryStore, Webhook
from zg_async.jobs.events import CancelRefused, JobCancelled, JobWarned
from zg_async.jobs.notify import Notifier, notifying
from zg_async.jobs.store import Owner
from zg_async.transport.http import Http, HttpSettings

SECRET = "a secret that is long enough"
OWNER = Owner(chain_id=1, genesis="0x" + "11" * 32, wallets=("0x" + "22" * 20,))
WARNED = JobWarned(code="paused", message="the chain went back")
QUIET = CancelRefused(reason="too late")
CANCELLED = JobCancelled(reason="asked for")


class Told:
    """Collects what arrives and wakes who waits for it."""

    def __init__(self) -> None:
        self.all, self._news = [], anyio.Event()

    def add(self, one) -> None:
        self.all.append(one)
        self._news.set()
        self._news = anyio.Event()

    async def wait_for(self, number: int) -> list:
        with anyio.fail_after(20):
            while len(self.all) < number:
                await self._news.wait()
        return self.all


@pytest.fixture
async def journal():
    """Open a store that tells some targets; gives a function of them."""
    clock, opened = FakeClock(), []

    async def open_(*targets):
        http = Http(settings=HttpSettings(allow_hosts=("127.0.0.1",)), clock=clock)
        await http.open()
        notifier = Notifier(targets, http, clock)
        notifier.start()
        store = notifying(MemoryStore(), notifier)
        await store.open(OWNER)
        opened.append((http, notifier, store))
        return store

    open_.clock = clock
    yield open_
    for http, notifier, store in opened:
        await notifier.aclose()
        await store.aclose()
        await http.aclose()


async def refuse_the_first(told, request):
    told.add((dict(request.headers), await request.read()))
    return web.Response(status=503 if len(told.all) == 1 else 200)


@pytest.mark.goal("OBS-06")
async def test_a_webhook_gets_signed_events_of_its_kinds_again_after_a_failure_and_no_faster_than_asked(journal):
    told, called, awaited = Told(), Told(), Told()

    async def later(event):
        awaited.add(event.kind)

    async with serving(lambda request: refuse_the_first(told, request)) as url:
        hook = Webhook(url=f"{url}/hook", secret=SECRET, events={"job_warned", "job_cancelled"}, per_minute=30)
        store = await journal(
            hook, Callback(call=lambda e: called.add(e.kind)), Callback(call=later, events={"job_warned"})
        )
        await store.create("job-1", WARNED)
        await store.append("job-1", QUIET, CANCELLED)
        (_, first), (_, again), (headers, last) = await told.wait_for(3)
        await called.wait_for(2)
        await awaited.wait_for(1)
    assert first == again  # the receiver failed once
    assert [json.loads(body)["id"] for body in (first, last)] == ["job-1:1", "job-1:3"]
    assert json.loads(first)["event"]["message"] == WARNED.message
    mac = hmac.new(SECRET.encode(), headers["X-ZG-Timestamp"].encode() + b"." + last, hashlib.sha256)
    assert headers["X-ZG-Signature"] == "sha256=" + mac.hexdigest()
    assert 2.0 in journal.clock.slept  # 30 in a minute
    assert called.all == ["job_warned", "job_cancelled"]
    assert awaited.all == ["job_warned"]


async def test_what_a_callback_raises_is_logged_and_the_next_event_comes(journal, caplog):
    told = Told()

    def fails_once(event):
        told.add(event.kind)
        if len(told.all) == 1:
            raise ValueError("a user's mistake")

    store = await journal(Callback(call=fails_once))
    await store.create("job-1", WARNED, CANCELLED)
    assert await told.wait_for(2) == ["job_warned", "job_cancelled"]
    assert "zg callback failed" in caplog.text


async def test_a_receiver_that_hangs_holds_up_nothing_and_its_queue_is_bounded(journal, caplog):
    hang = Told()

    async def never(request):
        hang.add(request.path)
        await anyio.sleep_forever()

    async with serving(never) as url:
        store = await journal(Webhook(url=url, secret=SECRET))
        await store.create("job-1", WARNED)
        await hang.wait_for(1)
        await store.append("job-1", *[WARNED] * 1001)
    assert caplog.text.count("is dropped") == 1
    assert len(await store.read("job-1")) == 1002


@pytest.mark.parametrize("changes", [{"secret": "short"}, {"per_minute": 0}])
def test_a_webhook_that_cant_be_right_is_refused(changes):
    with pytest.raises(ConfigError):
        Webhook(**({"url": "https://example.org", "secret": SECRET} | changes))


def test_the_secret_is_in_no_repr():
    assert SECRET not in repr(Webhook(url="https://example.org", secret=SECRET))
