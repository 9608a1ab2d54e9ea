"""Every code block of the documentation runs, page by page, against a devnet.

A page's blocks run in order: Python in one namespace with top-level `await`, shell in bash.
Names the reader fills in are given: `key`, `provider`, `model`, `task` in Python, `$PROVIDER` and so on in shell.
"""

import ast
import inspect
import json
import os
import re
import sys
from pathlib import Path

import anyio
import pytest

import zg_async
import zg_async.broker
from tests.devnet.conftest import DATASET, MODEL, PARAMS, new_key, open_broker
from zg_async import HttpSettings, PollPolicy, ProviderLimits
from zg_async.transport.signer import LocalSigner

pytestmark = [pytest.mark.slow, pytest.mark.goal("DOC-01", part="all blocks but the two installations")]
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
RUN_BY_CI = {"README.md": ("pip install",)}
"""README's two commands: `.ci/run` takes the second from there, and the demo's test runs the first one's `zg demo`."""


def blocks(page: Path) -> list[tuple[str, str]]:
    found = [(kind, text) for kind, text in BLOCK.findall(page.read_text()) if kind not in READ_BY_PEOPLE]
    left_out = RUN_BY_CI.get(page.name, ())
    return [(kind, text) for kind, text in found if not any(word in text for word in left_out)]


class Reader:
    """Somebody who has followed a page so far."""

    def __init__(self, devnet, folder: Path, monkeypatch, zg_words: str) -> None:
        self.folder, self.devnet = folder, devnet
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
            "ZG_PROVIDER_RATE": "unlimited",  # as this devnet's providers
            "ZG_CONFIG": str(folder / "config" / "config.json"),
            "PROVIDER": self.names["provider"],
            "MODEL": MODEL,
        }
        create = zg_async.broker.create_broker

        def create_broker(private_key=None, network="local", **options):  # the reader's network is this devnet
            options.setdefault("rpc_url", devnet.rpc_url)
            options.setdefault("state_dir", folder / "state")
            options.setdefault("http", HttpSettings(limits=ProviderLimits(rate=None)))
            options.setdefault("polling", PollPolicy(first=0.1, longest=0.5, rate=50.0))
            return create(private_key, "local", **options)

        monkeypatch.setattr(zg_async, "create_broker", create_broker)
        monkeypatch.chdir(folder)

    async def given(self, names: str) -> None:
        """Prepare what a page takes for granted."""
        if "task" not in names:
            return
        async with open_broker(self.devnet, self.names["key"], self.folder / "state") as broker:
            provider = self.names["provider"]
            await broker.ledger.ensure_funded(provider, "fine-tuning", "1")
            uploaded = await broker.fine_tuning.upload_dataset_to_tee(provider, "train.jsonl")
            task = await broker.fine_tuning.create_task(provider, MODEL, uploaded.dataset_hash, PARAMS)
        self.names["task"] = self.env["TASK"] = task

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
def reader(devnet, tmp_path, monkeypatch, warm_zg):
    return Reader(devnet, tmp_path, monkeypatch, warm_zg)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
async def test_a_page_runs_from_top_to_bottom(page, reader):
    runnable = blocks(page)
    assert runnable or page.name == "README.md"
    given = re.search(r"<!-- given: (.*?) -->", page.read_text())
    await reader.given(given[1] if given else "")
    with anyio.fail_after(120):
        for kind, text in runnable:
            assert kind in ("python", "sh"), f"{page.name}: who runs a block of {kind}?"
            await getattr(reader, kind)(text)


def test_every_link_of_the_documentation_leads_somewhere():
    missing = []
    for page in [*(ROOT / "docs").glob("*.md"), ROOT / "README.md"]:
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text()):
            if "://" not in target and not (page.parent / target).exists():
                missing.append((page.name, target))
    assert not missing
