"""Running `zg` in a test, and reading what it drew."""

import itertools
import os
import sys
from pathlib import Path

import pytest

from zg_async.cli.main import run
from zg_async.devnet.process import DevnetProcess

COMMAND = (sys.executable, "-m", "zg_async.cli.main")


class Zg:
    """Runs commands in this process, with one wallet, and without a terminal."""

    def __init__(self, devnet: DevnetProcess, key: str, state: Path, monkeypatch, capsys) -> None:
        for name in [n for n in os.environ if n.startswith("ZG_") or n in ("NETWORK", "PRIVATE_KEY", "RPC_URL")]:
            monkeypatch.delenv(name)
        self.environment = {
            "ZG_RPC_ENDPOINT": devnet.rpc_url,
            "NETWORK": "local",
            "ZG_PRIVATE_KEY": key,
            "ZG_STATE_DIR": str(state),
        }
        for name, value in self.environment.items():
            monkeypatch.setenv(name, value)
        self._capsys = capsys
        self.out = self.err = ""

    def __call__(self, *words: object) -> int:
        code = run([str(word) for word in words])
        self.out, self.err = self._capsys.readouterr()
        return code

    def ok(self, *words: object) -> str:
        """Run a command that has to succeed; returns its standard output."""
        assert self(*words) == 0, self.err
        return self.out


@pytest.fixture
def zg(devnet, key, tmp_path, monkeypatch, capsys) -> Zg:
    return Zg(devnet, key, tmp_path / "state", monkeypatch, capsys)


def tables(text: str) -> list[tuple[str, list[list[str]]]]:
    """Each table with the line above it, as rows of cells; what was folded is put together."""
    found: list[tuple[str, list[list[str]]]] = []
    above = ""
    for line in text.splitlines():
        if line.startswith("┌"):
            found.append((above, []))
            fresh = True
        elif line.startswith("├"):
            fresh = True
        elif line.startswith("│"):
            cells = [cell.strip() for cell in line.strip("│").split("│")]
            rows = found[-1][1]
            if fresh:
                rows.append(cells)
            else:
                rows[-1] = [a + b for a, b in itertools.zip_longest(rows[-1], cells, fillvalue="")]
            fresh = False
        above = line
    return found
