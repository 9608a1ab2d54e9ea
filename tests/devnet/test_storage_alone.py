"""0G Storage with nothing but Python: no other program, no compiler, no fast extension."""

import functools
import sys

import anyio
import pytest

from tests.devnet.storage_kit import make_file, storage_devnet
from zg_async.devnet.storage_network import hash_path
from zg_async.wire.merkle import SEGMENT

pytestmark = pytest.mark.slow
_ALONE = """
import sys

FORBIDDEN = ("subprocess.", "os.exec", "os.fork", "os.posix_spawn", "os.spawn", "os.startfile", "os.system", "pty.")


def watch(event, arguments):
    if event.startswith(FORBIDDEN):
        raise SystemExit(f"{event}: {arguments}")


sys.addaudithook(watch)
sys.modules["zg_async.wire._keccak"] = sys.modules["tiny_keccak"] = None  # neither is installed

import anyio

from zg_async import create_broker
from zg_async.wire.keccak_batch import best_backend


async def main(key, rpc_url, indexer_url, folder):
    async with create_broker(
        key, "local", rpc_url=rpc_url, indexer_url=indexer_url, state_dir=f"{folder}/state"
    ) as broker:
        stored = await broker.storage.upload(f"{folder}/source")
        await broker.storage.download(stored.root_hash, f"{folder}/out")
    print(best_backend().name, stored.root_hash)


anyio.run(main, *sys.argv[1:])
"""


@pytest.mark.goal("STO-01", part="no helper program, compiler or subprocess")
async def test_a_file_goes_up_and_comes_down_without_any_other_program(tmp_path):
    source = make_file(tmp_path / "source", 2 * SEGMENT + 1000)
    async with storage_devnet(2, "2") as devnet:
        key = "0x" + devnet.accounts[0].private_key.hex()
        words = [sys.executable, "-c", _ALONE, key, devnet.rpc_url, devnet.storage.indexer.url, str(tmp_path)]
        run = functools.partial(anyio.run_process, words, env={"PATH": "", "HOME": str(tmp_path)}, check=False)
        done = await run()
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout.split() == [b"pycryptodome", hash_path(source).root_hash.encode()]
    assert (tmp_path / "out").read_bytes() == source.read_bytes()
