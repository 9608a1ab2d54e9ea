"""What storage tests begin with: a devnet with storage nodes, and files."""

import contextlib
import itertools
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp

from zg_async.devnet.network import Devnet, start_devnet

_ids = itertools.count(1)


@contextlib.asynccontextmanager
async def storage_devnet(nodes: int = 1, shards: str = "1", **options: Any) -> AsyncIterator[Devnet]:
    async with start_devnet(
        providers=options.pop("providers", 0), port=0, storage_nodes=nodes, shards=shards, **options
    ) as devnet:
        yield devnet


def make_file(path: Path, size: int, seed: int = 1) -> Path:
    path.write_bytes(random.Random(seed * 7919 + size).randbytes(size))
    return path


async def ask(session: aiohttp.ClientSession, url: str, method: str, *params: Any) -> Any:
    """One raw JSON-RPC call; the whole answer."""
    body = {"jsonrpc": "2.0", "id": next(_ids), "method": method, "params": list(params)}
    async with session.post(url, json=body) as reply:
        assert reply.status == 200
        return await reply.json()
