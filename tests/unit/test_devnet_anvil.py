"""Where anvil is looked for, and what happens without it."""

import os
import sys
from pathlib import Path

import pytest
from aiohttp import web

from tests.http_server import serving
from zg_async.devnet.anvil import Anvil, _npm_platform, find_anvil
from zg_async.devnet.engines import make_engine
from zg_async.errors import ChainUnavailableError, ClosedError, ConfigError

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the stand-in programs are shell scripts")


def program(path: Path, text: str = "#!/bin/sh\nexit 3\n") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


def test_the_variable_comes_before_npm_before_the_path(tmp_path: Path) -> None:
    named = program(tmp_path / "mine")
    packaged = program(tmp_path / "@foundry-rs" / f"anvil-{_npm_platform()}" / "bin" / "anvil")
    installed = program(tmp_path / "bin" / "anvil")
    environ = {"ZG_ANVIL": str(named), "PATH": str(installed.parent)}
    assert find_anvil(environ=environ, node_modules=tmp_path) == named
    del environ["ZG_ANVIL"]
    assert find_anvil(environ=environ, node_modules=tmp_path) == packaged
    assert find_anvil(environ=environ) == installed
    assert find_anvil(environ={"PATH": os.devnull}) is None


def test_a_file_that_cannot_run_is_passed_over(tmp_path: Path) -> None:
    plain = tmp_path / "anvil"
    plain.write_text("")
    assert find_anvil(environ={"ZG_ANVIL": str(plain), "PATH": ""}) is None


async def test_without_a_binary_the_way_out_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZG_ANVIL", "/nowhere")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ConfigError, match="pyevm"):
        await Anvil({}).start()


async def test_a_program_that_ends_at_once_is_reported(tmp_path: Path) -> None:
    engine = Anvil({}, binary=program(tmp_path / "anvil"))
    with pytest.raises(ChainUnavailableError, match="ended"):
        await engine.start()
    await engine.aclose()


async def test_an_engine_that_does_not_run_has_no_url_and_no_answers() -> None:
    engine = Anvil({})
    with pytest.raises(ClosedError):
        _ = engine.url
    with pytest.raises(ClosedError):
        await engine.request("eth_chainId")


def test_an_unknown_engine_is_refused() -> None:
    with pytest.raises(ConfigError, match="anvil"):
        make_engine("hardhat", {})


async def test_a_connection_that_ends_fails_what_was_asked_and_is_opened_again(tmp_path: Path) -> None:
    ends = iter([True, False])

    async def answer(request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        asked = await socket.receive_json()
        if next(ends):
            return socket
        await socket.send_json({"id": "another's", "result": None})
        await socket.send_json({"id": asked["id"], "result": asked["method"]})
        await socket.receive()
        return socket

    async with serving(answer) as url:
        text = f"#!/bin/sh\necho Listening on {url.removeprefix('http://')}\nexec sleep 60\n"
        async with Anvil({}, binary=program(tmp_path / "anvil", text)) as engine:
            with pytest.raises(ChainUnavailableError, match="connection ended"):
                await engine.request("eth_chainId")
            assert await engine.request("eth_gasPrice") == "eth_gasPrice"
