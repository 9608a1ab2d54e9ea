"""Anvil as the chain engine, where it is installed: faster, and a second opinion. Never downloaded, never bundled."""

import contextlib
import json
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import aiohttp
import anyio
from anyio.abc import Process
from anyio.streams.text import TextReceiveStream

from zg_async.background import Background, Child
from zg_async.clock import Clock, SystemClock
from zg_async.devnet.engine import EngineControls
from zg_async.errors import ChainUnavailableError, ClosedError, ConfigError, RpcError

ENVIRONMENT = "ZG_ANVIL"
_START_SECONDS = 20.0
_STOP_SECONDS = 5.0
_LISTENING = "Listening on "


def find_anvil(*, environ: Mapping[str, str] | None = None, node_modules: Path | None = None) -> Path | None:
    """Look for an anvil binary: the variable `ZG_ANVIL`, an npm folder, the PATH.

    Args:
        environ: The environment; None for the process's own.
        node_modules: A folder with the npm package `@foundry-rs/anvil-<platform>`; None to skip that.

    Returns:
        The binary, or None.
    """
    variables = os.environ if environ is None else environ
    named = variables.get(ENVIRONMENT)
    places = [Path(named)] if named else []
    if node_modules is not None:
        places.append(node_modules / "@foundry-rs" / f"anvil-{_npm_platform()}" / "bin" / _binary_name())
    found = shutil.which("anvil", path=variables.get("PATH", ""))
    places += [Path(found)] if found else []
    return next((place for place in places if place.is_file() and os.access(place, os.X_OK)), None)


def _binary_name() -> str:
    return "anvil.exe" if sys.platform == "win32" else "anvil"


def _npm_platform() -> str:
    machine = "arm64" if platform.machine().lower() in ("arm64", "aarch64") else "amd64"
    return f"{sys.platform}-{machine}"


class Anvil(EngineControls):
    """An anvil process on loopback.

    Attributes:
        name: `anvil`.
    """

    name = "anvil"

    def __init__(
        self,
        balances: Mapping[str, int],
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        binary: Path | None = None,
        chain_id: int = 31337,
        gas_limit: int = 60_000_000,
        block_time: float | None = None,
        clock: Clock | None = None,
    ) -> None:
        """Make an engine; the process begins with `start`.

        Args:
            balances: What each address owns, in neuron.
            host: Address to bind.
            port: TCP port, 0 for any free one.
            binary: The program; None looks for it.
            chain_id: The chain's id.
            gas_limit: Gas in a block.
            block_time: Seconds between blocks; None mines each transaction at once.
            clock: Wall time.
        """
        self._balances = dict(balances)
        self._host, self._port = host, port
        self._binary = binary
        self._chain_id, self._gas_limit, self._block_time = chain_id, gas_limit, block_time
        self._clock = clock or SystemClock()
        self._background = Background()
        self._ticker: Child | None = None
        self._process: Process | None = None
        self._session: aiohttp.ClientSession | None = None
        self._socket: aiohttp.ClientWebSocketResponse | None = None
        self._connecting = anyio.Lock()
        self._asked: dict[int, _Ask] = {}
        self._home: tempfile.TemporaryDirectory[str] | None = None
        self._url: str | None = None
        self._requests = 0

    @property
    def url(self) -> str:
        """Where it listens, for HTTP and (with `ws`) for WebSocket.

        Raises:
            ClosedError: It doesn't run.
        """
        if self._url is None:
            raise ClosedError("anvil is not running", hint="Enter it with `async with`")
        return self._url

    async def start(self) -> None:
        """Start the process and fund the accounts.

        Raises:
            ConfigError: There is no anvil.
            ChainUnavailableError: It didn't come up.
        """
        binary = self._binary or find_anvil()
        if binary is None:
            raise ConfigError("anvil is not installed", hint=f"Set {ENVIRONMENT} to the binary, or use engine pyevm")
        self._home = tempfile.TemporaryDirectory(prefix="zg-anvil-")
        started = False
        try:
            self._process = await anyio.open_process(
                [str(binary), *self._arguments()],
                env={"HOME": self._home.name, "NO_COLOR": "1", "PATH": os.defpath},
                stdin=None,
                stderr=None,
            )
            with anyio.fail_after(_START_SECONDS):
                self._url = f"http://{await self._read_address(self._process)}"
            self._session = aiohttp.ClientSession()
            for address, amount in self._balances.items():
                await self.set_balance(address, amount)
            started = True
        except (OSError, TimeoutError) as error:
            raise ChainUnavailableError(f"{binary.name} didn't start: {str(error) or 'no answer'}") from error
        finally:
            if not started:
                await self.aclose()

    def _arguments(self) -> list[str]:
        known = {
            "--host": self._host,
            "--port": self._port,
            "--chain-id": self._chain_id,
            "--gas-limit": self._gas_limit,
            "--accounts": 0,
            "--hardfork": "prague",
            "--order": "fifo",
            "--base-fee": 10**9,
        }
        if self._block_time is not None:
            known["--block-time"] = f"{self._block_time:g}"
        return [str(part) for pair in known.items() for part in pair]

    async def _read_address(self, process: Process) -> str:
        """Wait for the line that says where it listens; what comes later is read and dropped, or it would block."""
        if process.stdout is None:
            raise OSError("no output to read")
        output, text = TextReceiveStream(process.stdout, errors="replace"), ""
        async for piece in output:
            text += piece
            if _LISTENING in text and "\n" in text.split(_LISTENING, 1)[1]:
                self._background.start(_drain(output), name="devnet-anvil-output")
                return text.split(_LISTENING, 1)[1].split()[0]
        raise OSError("it ended at once")

    async def aclose(self) -> None:
        """End the process. Idempotent."""
        with anyio.CancelScope(shield=True):
            self._url = None
            self._stop_ticker()
            if self._session is not None:
                await self._session.close()
                self._session = None
            if self._process is not None:
                await _end(self._process)
                await self._background.aclose()
                await self._process.aclose()
                self._process = None
            if self._home is not None:
                self._home.cleanup()
                self._home = None

    async def __aenter__(self) -> "Anvil":
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def request(self, method: str, *params: Any) -> Any:
        """Run a JSON-RPC method.

        Raises:
            RpcError: It answered with an error.
            ChainUnavailableError: It didn't answer.
        """
        self._requests += 1
        number, ask = self._requests, _Ask()
        self._asked[number] = ask
        body = {"jsonrpc": "2.0", "id": number, "method": method, "params": params}
        try:
            await (await self._connected()).send_str(json.dumps(body))
            await ask.answered.wait()
        except (aiohttp.ClientError, ConnectionError, TimeoutError) as error:
            raise ChainUnavailableError(f"anvil didn't answer {method}") from error
        finally:
            self._asked.pop(number, None)
        if ask.answer is None:
            raise ChainUnavailableError(f"anvil didn't answer {method}: the connection ended")
        if failure := ask.answer.get("error"):
            raise RpcError(str(failure.get("message")), rpc_code=failure.get("code"), data=failure.get("data"))
        return ask.answer.get("result")

    async def set_block_time(self, seconds: float) -> None:
        """Mine by the clock every so many seconds; 0 for only on demand."""
        self._stop_ticker()
        if float(seconds).is_integer():
            await super().set_block_time(int(seconds))
            return
        await self.set_automine(False)  # its own interval takes whole seconds only
        self._ticker = self._background.start(self._mine_every(seconds), name="devnet-anvil-blocks")

    def _stop_ticker(self) -> None:
        if self._ticker is not None:
            self._ticker.cancel()
            self._ticker = None

    async def _mine_every(self, seconds: float) -> None:
        while True:
            await self._clock.sleep(seconds)
            with contextlib.suppress(ChainUnavailableError):
                await self.mine()

    async def _connected(self) -> aiohttp.ClientWebSocketResponse:
        """Return the one connection for all requests: over HTTP each would cost this process three times as much."""
        if self._session is None:
            raise ClosedError("anvil is not running", hint="Enter it with `async with`")
        async with self._connecting:
            if self._socket is None or self._socket.closed:
                url = self.url.replace("http", "ws", 1)
                self._socket = await self._session.ws_connect(url, max_msg_size=0)
                self._background.start(self._read_answers(self._socket), name="devnet-anvil-answers")
            return self._socket

    async def _read_answers(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        try:
            async for message in socket:
                answer = json.loads(message.data)
                if (ask := self._asked.get(answer.get("id"))) is not None:
                    ask.answer = answer
                    ask.answered.set()
        finally:
            for ask in self._asked.values():
                ask.answered.set()


class _Ask:
    """A request on its way."""

    def __init__(self) -> None:
        self.answered = anyio.Event()
        self.answer: dict[str, Any] | None = None


async def _drain(output: TextReceiveStream) -> None:
    try:
        async for _ in output:
            pass
    except (anyio.ClosedResourceError, anyio.BrokenResourceError):
        pass


async def _end(process: Process) -> None:
    if process.returncode is not None:
        return
    process.terminate()
    with anyio.move_on_after(_STOP_SECONDS):
        await process.wait()
        return
    process.kill()
    await process.wait()
