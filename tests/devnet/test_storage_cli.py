"""`zg upload`, `zg download` and `zg storage root` as a user types them."""

import functools
import json
import sys

import anyio
import anyio.to_thread
import pytest

from tests.devnet.storage_kit import make_file, storage_devnet
from zg_async.devnet.storage_network import hash_path

pytestmark = pytest.mark.slow
_MAIN = "import sys; from zg_async.cli.main import run; sys.exit(run(sys.argv[1:]))"


async def zg(*words, **environment):
    run = functools.partial(
        anyio.run_process, [sys.executable, "-c", _MAIN, *map(str, words)], env=environment, check=False
    )
    return await run()


async def test_a_file_goes_up_and_comes_down_by_the_command_line(tmp_path):
    source = make_file(tmp_path / "source", 700_000)
    known = hash_path(source)
    async with storage_devnet(2, "2") as devnet:
        environment = {
            "ZG_PRIVATE_KEY": devnet.accounts[0].private_key.hex(),
            "ZG_RPC_ENDPOINT": devnet.rpc_url,
            "ZG_INDEXER_URL": devnet.storage.indexer.url,
            "HOME": str(tmp_path),
        }
        up = await zg("upload", "--data-path", source, "--json", **environment)
        assert up.returncode == 0, up.stderr
        told = json.loads(up.stdout.decode().splitlines()[-1])
        assert (told["root"], told["size"]) == (known.root_hash, 700_000)
        out = tmp_path / "out"
        root, words = known.root_hash, ["download", "--data-path", out, "--data-root"]
        down = await zg(*words, root, "--json", **environment)
        assert down.returncode == 0, down.stderr
        told = json.loads(down.stdout.decode().splitlines()[-1])
        assert (told["root"], told["size"]) == (root, 700_000)
        assert out.read_bytes() == source.read_bytes()
        (tmp_path / "other").write_bytes(b"precious")
        words[2] = tmp_path / "other"
        taken = await zg(*words, root, **environment)
        assert (taken.returncode, b"exists" in taken.stderr) == (8, True)
        words[2] = tmp_path / "none"
        unknown = await zg(*words, "0x" + "ab" * 32, **environment)
        assert (unknown.returncode, b"no storage node knows" in unknown.stderr) == (7, True)
        keyless = await zg("upload", "--data-path", source, **{k: v for k, v in environment.items() if "KEY" not in k})
        assert (keyless.returncode, b"ZG_PRIVATE_KEY" in keyless.stderr) == (8, True)


async def test_a_root_is_computed_without_any_network(tmp_path):
    source = make_file(tmp_path / "source", 300_000)
    done = await zg("storage", "root", source, "--json", HOME=str(tmp_path))
    assert json.loads(done.stdout) == {
        "version": 1,
        "kind": "root",
        "root": hash_path(source).root_hash,
        "size": 300_000,
    }
    (tmp_path / "empty").touch()
    failed = await zg("storage", "root", tmp_path / "empty", HOME=str(tmp_path))
    assert (failed.returncode, b"empty" in failed.stderr) == (8, True)
