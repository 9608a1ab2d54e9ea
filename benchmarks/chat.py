"""Many streaming chats at once through one broker, against a bare aiohttp client doing the same.

    python benchmarks/chat.py [chats] [tokens]        default 500 300

Both ask the same provider of a devnet with a token made before: limits raised, canned answers. First one chat after
the other, bare and ours in turn, for the time and CPU a request costs more. Then all of them: a chunk each 0.2 s, 10
begin a second, which that provider admits, and they overlap until all of them stream. Noted are the time to the first
token, the gaps between chunks, and what a chunk costs in CPU, which a busy machine distorts least. "unproven" does what
the bare client does; "proven" also checks who signed each answer, over which bytes (9 ms each in pure Python; the extra
`fast` has that in C). A last run keeps the providers' limit of 5 requests at a time and shows that the client queues.
Aims: first token +10 ms, p99 of a gap +3 ms over the bare client.
"""

import asyncio
import contextlib
import json
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path

import aiohttp
import anyio

from zg_async import Broker, HttpSettings, InferencePolicy, create_broker
from zg_async.devnet.process import DevnetProcess
from zg_async.transport.limiter import UNLIMITED

START_RATE = 10.0
SINGLE = 100
MESSAGES = [{"role": "user", "content": "Say something long about boxes and their colours."}]
Times = tuple[list[float], list[float], int]


async def bare(session: aiohttp.ClientSession, url: str, headers: dict, tokens: int, times: Times) -> int:
    """One chat with nothing but the socket."""
    body = {"messages": MESSAGES, "max_tokens": tokens, "stream": True, "stream_options": {"include_usage": True}}
    began = last = time.perf_counter()
    seen = 0
    async with session.post(url, json=body, headers=headers) as reply:
        reply.raise_for_status()
        async for line in reply.content:
            if line.startswith(b"data: {"):
                json.loads(line[6:])
                now = time.perf_counter()
                (times[1] if seen else times[0]).append(now - (last if seen else began))
                last, seen = now, seen + 1
    return seen


async def ours(broker: Broker, provider: str, tokens: int, times: Times, verify: str) -> int:
    """One chat through the broker."""
    began = last = time.perf_counter()
    seen = 0
    async with broker.inference.chat_stream(provider, MESSAGES, max_tokens=tokens, verify=verify) as stream:
        while await stream.next_chunk() is not None:
            now = time.perf_counter()
            (times[1] if seen else times[0]).append(now - (last if seen else began))
            last, seen = now, seen + 1
    return seen


@contextlib.asynccontextmanager
async def lag_watch():
    """Measure how late the loop is."""
    lags: list[float] = []

    async def watch() -> None:
        while True:
            began = time.perf_counter()
            await asyncio.sleep(0.01)
            lags.append(time.perf_counter() - began - 0.01)

    task = asyncio.get_running_loop().create_task(watch())
    try:
        yield lags
    finally:
        task.cancel()


async def measure(name: str, chats: int, one) -> tuple[float, float]:
    times: Times = ([], [], 0)
    before = resource.getrusage(resource.RUSAGE_SELF)
    began = time.perf_counter()
    outcomes: list[int] = []

    async def begin(number: int) -> None:
        await asyncio.sleep(number / START_RATE)
        outcomes.append(await one(times))

    async with lag_watch() as lags, anyio.create_task_group() as group:
        for number in range(chats):
            group.start_soon(begin, number)
    seconds = time.perf_counter() - began
    after = resource.getrusage(resource.RUSAGE_SELF)
    chunks = sum(outcomes)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    first, gap = statistics.median(times[0]) * 1000, p99(times[1]) * 1000
    print(
        f"{name:<22}{seconds:6.2f} s {chunks / seconds:8.0f} chunks/s  first token p50 {first:7.1f} ms  "
        f"gap p50 {statistics.median(times[1]) * 1000:6.2f} p99 {gap:7.2f} ms  cpu {cpu / chunks * 1e6:4.0f} us/chunk  "
        f"peak {after.ru_maxrss / 1024:5.0f} MiB  loop lag p99 {p99(lags) * 1000:6.1f} ms",
        flush=True,
    )
    return first, gap


async def single(ones: dict) -> None:
    """Chats of one word after each other, each kind in turn: the machine's moods hit all alike."""
    firsts: dict[str, list[float]] = {name: [] for name in ones}
    cpu = dict.fromkeys(ones, 0.0)
    for _ in range(SINGLE):
        for name, one in ones.items():
            times: Times = ([], [], 0)
            before = time.process_time()
            await one(times)
            cpu[name] += time.process_time() - before
            firsts[name] += times[0]
    base, *_ = firsts.values()
    for name, found in firsts.items():
        added = statistics.median(theirs - bare for theirs, bare in zip(found, base, strict=True)) * 1000
        each = cpu[name] / SINGLE * 1000
        print(
            f"one {name:<18} first token p50 {statistics.median(found) * 1000:6.2f} ms ({added:+.2f})  "
            f"cpu {each:5.2f} ms a request",
            flush=True,
        )


def p99(values: list[float]) -> float:
    return sorted(values)[int(len(values) * 0.99)] if values else 0.0


async def main(chats: int, tokens: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        async with DevnetProcess("--limits", "off") as devnet:
            provider = devnet.providers[0]["address"]
            key = devnet.accounts[0]["private_key"]
            http = HttpSettings(limits=UNLIMITED, max_connections=chats + 50)
            policy = InferencePolicy(in_flight=chats)
            options = {"rpc_url": devnet.rpc_url, "http": http, "state_dir": Path(folder)}
            async with create_broker(key, devnet.network, inference=policy, **options) as broker:
                await broker.ledger.ensure_funded(provider, "inference", "20")
                await run(broker, devnet, provider, chats, tokens)
            limited = InferencePolicy()
            async with create_broker(key, devnet.network, inference=limited, **options) as broker:
                devnet.control("inference", provider=0, limits=True, stream_delay=0.005)
                few = min(chats, 60)
                await measure(f"{few} at 5 in flight", few, lambda t: ours(broker, provider, 8, t, "off"))


async def run(broker: Broker, devnet: DevnetProcess, provider: str, chats: int, tokens: int) -> None:
    canned = " ".join(f"word{n}" for n in range(tokens))
    devnet.control("inference", provider=0, canned=canned, session_cache=600.0, stream_delay=0.0)
    meta = await broker.inference.get_service_metadata(provider)
    headers = await broker.inference.get_request_headers(provider)
    url = f"{meta.endpoint}/chat/completions"
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        await bare(session, url, headers, 1, ([], [], 0))
        await ours(broker, provider, 1, ([], [], 0), "bytes")
        ones = {
            "bare aiohttp": lambda t: bare(session, url, headers, 1, t),
            "broker unproven": lambda t: ours(broker, provider, 1, t, "off"),
            "broker proven": lambda t: ours(broker, provider, 1, t, "bytes"),
        }
        await single(ones)
        devnet.control("inference", provider=0, stream_delay=0.2)
        base = await measure(f"bare aiohttp, {chats}", chats, lambda t: bare(session, url, headers, tokens, t))
    plain = await measure(f"broker unproven, {chats}", chats, lambda t: ours(broker, provider, tokens, t, "off"))
    proven = await measure(f"broker proven, {chats}", chats, lambda t: ours(broker, provider, tokens, t, "bytes"))
    for name, one in (("unproven", plain), ("proven", proven)):
        print(f"added, {name}: first token {one[0] - base[0]:+.1f} ms, p99 of a gap {one[1] - base[1]:+.2f} ms")


if __name__ == "__main__":
    words = [int(w) for w in sys.argv[1:]]
    asyncio.run(main(*(words + [500, 300][len(words) :])))
