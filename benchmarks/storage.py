"""Upload to four storage nodes and download back, against a raw HTTP transfer of the same bytes; and peak memory.

    python benchmarks/storage.py [MIB] [--kill-one]        default 256

With --kill-one there are two shards at two nodes each, and a node is stopped when a quarter of the upload is done.

Nodes, indexer and chain run in a process of their own, and so does the raw server, which only counts or sends bytes.
The nodes are the devnet's: they decode, prove and write every segment in Python, on the same processors. Peak memory is
this process's, beyond what it has before the first byte.
"""

import argparse
import asyncio
import multiprocessing
import os
import resource
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import anyio
from aiohttp import web

from zg_async import create_broker
from zg_async.devnet.process import DevnetProcess
from zg_async.transport.storage_settings import StorageProgress

MIB = 2**20
NODES = 4


def peak() -> float:
    """The highest resident set so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def serve(port: Any, size: int) -> None:
    """Take and give bytes over plain HTTP."""

    async def put(request: web.Request) -> web.Response:
        count = 0
        async for piece in request.content.iter_chunked(MIB):
            count += len(piece)
        return web.json_response(count)

    async def get(request: web.Request) -> web.StreamResponse:
        reply = web.StreamResponse()
        reply.content_length = size
        await reply.prepare(request)
        piece = bytes(MIB)
        for _ in range(size // MIB):
            await reply.write(piece)
        await reply.write_eof()
        return reply

    async def main() -> None:
        app = web.Application(client_max_size=2**40)
        app.router.add_put("/", put)
        app.router.add_get("/", get)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        port.value = runner.addresses[0][1]
        await anyio.sleep_forever()

    asyncio.run(main())


async def raw(source: Path, target: Path, size: int) -> tuple[float, float]:
    """Time a plain PUT and GET."""
    context = multiprocessing.get_context("spawn")
    port = context.Value("i", 0)
    process = context.Process(target=serve, args=(port, size), daemon=True)
    process.start()
    while not port.value:
        time.sleep(0.05)  # noqa: ASYNC251  nothing else runs yet
    url = f"http://127.0.0.1:{port.value}/"

    async def pieces() -> AsyncIterator[bytes]:
        with source.open("rb") as file:
            while piece := file.read(MIB):
                yield piece

    try:
        async with aiohttp.ClientSession() as session:
            started = time.perf_counter()
            async with session.put(url, data=pieces()) as reply:
                if await reply.json() != size:
                    raise SystemExit("the raw transfer lost bytes")
            up = time.perf_counter() - started
            started = time.perf_counter()
            async with session.get(url) as reply:
                with target.open("wb") as file:
                    async for piece in reply.content.iter_chunked(MIB):
                        file.write(piece)
            return up, time.perf_counter() - started
    finally:
        process.terminate()
        process.join()


async def kill_midway(devnet: DevnetProcess, progress: StorageProgress, size: int) -> None:
    """Stop a node when a quarter of the bytes is sent."""
    while progress.stage != "sending" or progress.bytes_done < size / 4:  # noqa: ASYNC110  bytes are told to nobody
        await anyio.sleep(0.02)
    await devnet.control_async("storage_stop", node=0)


async def run(mib: int, *, kill_one: bool) -> None:
    """Measure once."""
    size = mib * MIB
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "source", Path(folder) / "target"
        with source.open("wb") as file:
            for _ in range(mib):
                file.write(os.urandom(MIB))
        raw_up, raw_down = await raw(source, Path(folder) / "raw", size)
        shards = NODES // 2 if kill_one else NODES
        async with DevnetProcess("--providers", "0", "--storage-nodes", str(NODES), "--shards", str(shards)) as devnet:
            info = devnet.info
            async with create_broker(
                info["accounts"][0]["private_key"],
                "local",
                rpc_url=info["rpc_url"],
                indexer_url=info["indexer_url"],
                state_dir=Path(folder) / "state",
            ) as broker:
                small = Path(folder) / "small"
                small.write_bytes(os.urandom(1000))
                started = time.perf_counter()
                await broker.storage.upload(small)
                small_up = time.perf_counter() - started
                before = peak()
                started = time.perf_counter()
                root = await broker.storage.root(source)
                hashing = time.perf_counter() - started
                started = time.perf_counter()
                async with anyio.create_task_group() as group:
                    progress = StorageProgress()
                    if kill_one:
                        group.start_soon(kill_midway, devnet, progress, size)
                    stored = await broker.storage.upload(source, progress=progress)
                up = time.perf_counter() - started
                started = time.perf_counter()
                await broker.storage.download(stored.root_hash, target, size=size)
                down = time.perf_counter() - started
                if stored.root_hash != root:
                    raise SystemExit("two roots")
                grown = peak() - before
    print(f"{mib} MiB, {NODES} nodes, {shards} shards{', one node stopped midway' if kill_one else ''}")
    print(f"  confirmed by {len(stored.nodes)} nodes")
    print(f"  root       {hashing:7.2f} s  {mib / hashing:7.0f} MiB/s")
    print(f"  upload     {up:7.2f} s  {mib / up:7.0f} MiB/s  {up / raw_up:5.1f} times the raw {raw_up:.2f} s")
    print(f"  download   {down:7.2f} s  {mib / down:7.0f} MiB/s  {down / raw_down:5.1f} times the raw {raw_down:.2f} s")
    print(f"  memory     {grown:7.0f} MiB above {before:.0f} MiB")
    print(f"  1000 bytes {small_up:7.2f} s")


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mib", nargs="?", type=int, default=256)
    parser.add_argument("--kill-one", action="store_true")
    options = parser.parse_args()
    asyncio.run(run(options.mib, kill_one=options.kill_one))


if __name__ == "__main__":
    main()
