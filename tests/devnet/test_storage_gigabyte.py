"""A gigabyte over four storage nodes, one of which dies on the way."""

import hashlib
import os

import anyio
import pytest

from zg_async import NotStoredError, StorageProgress, create_broker
from zg_async.devnet.process import DevnetProcess

pytestmark = pytest.mark.slow
SIZE = 10**9


def write(path):
    """Fill a file with bytes that repeat nowhere near; return their digest."""
    block, digest = os.urandom(10**6), hashlib.sha256()
    with path.open("wb") as file:
        for number in range(SIZE // len(block)):
            piece = number.to_bytes(8, "big") + block[8:]
            file.write(piece)
            digest.update(piece)
    return digest.hexdigest()


def digest_of(path):
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@pytest.mark.goal("STO-02", part="1 GB: short of a replica it fails, without the dead node it is whole")
async def test_a_gigabyte_goes_to_four_nodes_and_is_never_called_stored_short_of_its_replicas(tmp_path):
    source, target = tmp_path / "source", tmp_path / "target"
    digest = await anyio.to_thread.run_sync(write, source)
    options = ("--providers", "0", "--storage-nodes", "4", "--shards", "2")
    async with DevnetProcess(*options) as devnet:
        broker = create_broker(
            devnet.accounts[0]["private_key"],
            "local",
            rpc_url=devnet.rpc_url,
            indexer_url=devnet.info["indexer_url"],
            state_dir=tmp_path / "state",
        )
        async with broker:
            progress = StorageProgress()

            async def stop_one():
                while progress.stage != "sending" or progress.bytes_done < SIZE / 4:
                    await anyio.sleep(0.02)
                await devnet.control_async("storage_stop", node=0)

            failure = None
            async with anyio.create_task_group() as group:
                group.start_soon(stop_one)
                try:
                    await broker.storage.upload(source, replicas=2, progress=progress)
                except NotStoredError as error:
                    failure = error
            assert failure is not None
            stored = await broker.storage.upload(source, replicas=1)
            await broker.storage.download(stored.root_hash, target, size=SIZE)
    assert await anyio.to_thread.run_sync(digest_of, target) == digest
