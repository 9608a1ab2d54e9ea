"""Every code block of the documentation runs, page by page, against a devnet.

A page's blocks run in order: Python in one namespace with top-level `await`, shell in bash.
Names the reader fills in are given: `key`, `provider`, `model` in Python, `$PROVIDER` and so on in shell.
"""

import ast
import contextlib
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import anyio
import pytest

import zg_async
import zg_async.broker
from tests.devnet.conftest import DATASET, MODEL, PARAMS, new_key
from tests.http_server import serving
from tests.unit.test_remote_signer import SigningServer
from zg_async import PollPolicy
from zg_async.devnet.process import DevnetProcess
from zg_async.transport.signer import LocalSigner

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
STAGED = "recovery.md"
"""Its blocks need a failure first: test_recovery_pages.py runs them."""
MADE = "reference.md"
"""Made from the code; it has nothing to run."""
PAGES = sorted(
    path
    for path in [*(ROOT / "docs").glob("*.md"), ROOT / "README.md"]
    if "```" in path.read_text() and path.name not in (STAGED, MADE)
)
READ_BY_PEOPLE = {"text", "json", "console"}
INSTALLS = "pip install"
"""What README's two commands have in common: they have a test of their own."""


def blocks(page: Path) -> list[tuple[str, str]]:
    found = [(kind, text) for kind, text in BLOCK.findall(page.read_text()) if kind not in READ_BY_PEOPLE]
    return [(kind, text) for kind, text in found if page.name != "README.md" or INSTALLS not in text]


class Reader:
    """Somebody who has followed a page so far."""

    def __init__(self, devnet, folder: Path, monkeypatch, zg_words: str) -> None:
        self.folder = folder
        key = new_key(devnet)
        self.names = {
            "key": key,
            "provider": devnet.providers[0]["address"],
            "address": LocalSigner.from_key(key).address,
            "model": MODEL,
            "rpc_url": devnet.rpc_url,
            "__name__": "page",
        }
        (folder / "bin").mkdir()
        zg = folder / "bin" / "zg"
        zg.write_text(f'#!/bin/sh\nexec {zg_words} "$@"\n')
        zg.chmod(0o755)
        (folder / "train.jsonl").write_text(DATASET)
        (folder / "params.json").write_text(json.dumps(PARAMS))
        self.env = os.environ | {
            "PATH": f"{folder / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}",
            "ZG_PRIVATE_KEY": key,
            "NETWORK": "local",
            "ZG_RPC_ENDPOINT": devnet.rpc_url,
            "ZG_STATE_DIR": str(folder / "state"),
            "ZG_CONFIG": str(folder / "config" / "config.json"),
            "PROVIDER": self.names["provider"],
            "MODEL": MODEL,
        }
        create = zg_async.broker.create_broker

        def create_broker(private_key=None, network="local", **options):  # the reader's network is this devnet
            options.setdefault("rpc_url", devnet.rpc_url)
            options.setdefault("state_dir", folder / "state")
            options.setdefault("polling", PollPolicy(first=0.1, longest=0.5, rate=50.0))
            return create(private_key, "local", **options)

        monkeypatch.setattr(zg_async, "create_broker", create_broker)
        monkeypatch.chdir(folder)

    async def python(self, text: str) -> None:
        code = compile(text, "block", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        result = eval(code, self.names)
        if inspect.iscoroutine(result):
            await result

    async def sh(self, text: str) -> str:
        done = await anyio.run_process(["bash", "-euo", "pipefail", "-c", text], env=self.env, check=False)
        assert done.returncode == 0, f"{text}\n{done.stdout.decode()}\n{done.stderr.decode()}"
        return done.stdout.decode()


@pytest.fixture
async def reader(page, devnet, tmp_path, monkeypatch, warm_zg):
    """A page's reader, with what only some pages need: nodes that store files, a signer that holds the key."""
    text = page.read_text()
    async with contextlib.AsyncExitStack() as stack:
        if stores := "zg upload" in text:
            devnet = stack.enter_context(DevnetProcess("--limits", "off", "--storage-nodes", "1"))
        reader = Reader(devnet, tmp_path, monkeypatch, warm_zg)
        if stores:
            reader.env["ZG_INDEXER_URL"] = devnet.info["indexer_url"]
        if "$SIGNER_URL" in text:
            server = SigningServer(bytes.fromhex(reader.names["key"][2:]))
            reader.env["SIGNER_URL"] = await stack.enter_async_context(serving(server))
        yield reader


@pytest.mark.goal("DOC-01", part="all blocks but the two installations")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
async def test_a_page_runs_from_top_to_bottom(page, reader):
    runnable = blocks(page)
    assert runnable or page.name == "README.md"
    with anyio.fail_after(120):
        for kind, text in runnable:
            assert kind in ("python", "sh"), f"{page.name}: who runs a block of {kind}?"
            await getattr(reader, kind)(text)


@pytest.mark.goal("DOC-01", part="nothing that could run is only read")
def test_no_command_and_no_python_stands_in_a_block_that_nobody_runs():
    every = [*(ROOT / "docs").glob("*.md"), ROOT / "README.md"]
    found = [block for page in every if page.name != MADE for block in BLOCK.findall(page.read_text())]
    read = [text for kind, text in found if kind in READ_BY_PEOPLE]
    assert len(read) >= 2
    assert [
        text for text in read if re.search(r"^\s*(\$ )?(zg|pip|python3?|import|from|await|curl) ", text, re.M)
    ] == []


@pytest.mark.goal("DOC-01", part="the two installations")
def test_readmes_two_commands_install_and_run_what_they_say(tmp_path):
    """Word for word, in a copy. Dependencies are those of this environment, so that no index is asked."""
    commands = [text for _, text in BLOCK.findall((ROOT / "README.md").read_text()) if INSTALLS in text]
    assert [text.rpartition("&& ")[2].split()[:2] for text in commands] == [
        [".venv/bin/zg", "demo"],
        [".venv/bin/python", "-m"],
    ]
    hidden = shutil.ignore_patterns(".*", "__pycache__", "*.so", "node_modules", "build", "*.egg-info")
    shutil.copytree(ROOT, tmp_path / "copy", ignore=hidden)
    packages = str(Path(pytest.__file__).parents[1])
    env = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": packages}
    env |= {"PIP_NO_INDEX": "1", "PIP_NO_DEPS": "1", "PIP_NO_BUILD_ISOLATION": "0", "CC": "false"}  # 0: there is none
    env |= {"PYTEST_ADDOPTS": "-p no:cacheprovider tests/unit/test_units.py"}  # the whole suite is what runs this
    said = []
    for text in commands:
        command = ["bash", "-euo", "pipefail", "-c", text]
        done = subprocess.run(command, cwd=tmp_path / "copy", env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{text}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        said.append(done.stdout)
    assert Path(said[0].strip(), "adapter_model.safetensors").parent == tmp_path / "copy" / "out" / "adapter"
    assert (tmp_path / "copy" / "out" / "adapter" / "adapter_model.safetensors").is_file()
    assert re.search(r"\d+ passed", said[1])


def test_every_link_of_the_documentation_leads_somewhere():
    missing = []
    for page in [*(ROOT / "docs").glob("*.md"), ROOT / "README.md"]:
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text()):
            if "://" not in target and not (page.parent / target).exists():
                missing.append((page.name, target))
    assert not missing
