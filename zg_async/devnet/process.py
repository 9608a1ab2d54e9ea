"""A devnet in a process of its own, for programs and tests in any framework."""

import contextlib
import json
import queue
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Final

import anyio
import anyio.to_thread

from zg_async.devnet.record import network_of
from zg_async.errors import ConfigError
from zg_async.networks import Network
from zg_async.paths import child_environment

_READY_SECONDS: Final = 60.0
_STOP_SECONDS: Final = 20.0


class DevnetProcess:
    """Runs `zg devnet up` and ends it. A context manager, plain or async.

    It ends by itself when this process does: its standard input is a pipe from here.
    """

    def __init__(self, *arguments: str, ready_seconds: float = _READY_SECONDS) -> None:
        """Make a devnet that starts when entered.

        Args:
            *arguments: More words for the command line, e.g. `"--providers", "2", "--limits", "off"`. Without
                `--port` it takes any free port.
            ready_seconds: How long it may take to get ready.
        """
        self._arguments = arguments if "--port" in arguments or "--attach" in arguments else ("--port", "0", *arguments)
        self._ready_seconds = ready_seconds
        self._process: subprocess.Popen[bytes] | None = None
        self._info: dict[str, Any] = {}

    @property
    def info(self) -> Mapping[str, Any]:
        """Return what the devnet printed: rpc_url, chain_id, ledger, inference, fine_tuning, control_url, ..."""
        return self._info

    @property
    def rpc_url(self) -> str:
        """Where the chain answers."""
        return str(self._info["rpc_url"])

    @property
    def providers(self) -> list[dict[str, str]]:
        """Return address and url of each provider."""
        return list(self._info["providers"])

    @property
    def accounts(self) -> list[dict[str, str]]:
        """Return address and private_key of each funded user wallet."""
        return list(self._info["accounts"])

    @property
    def network(self) -> Network:
        """Return the record to make a broker with: the devnet's endpoints, contracts and root of trust."""
        return network_of(self._info)

    def start(self) -> Mapping[str, Any]:
        """Start it and wait until it is ready.

        Raises:
            ConfigError: It ended or said nothing in time; its own words went to standard error.
        """
        self._wait_ready(self._spawn())
        return self._info

    def _spawn(self) -> "subprocess.Popen[bytes]":
        command = [sys.executable, "-m", "zg_async.cli.main", "devnet", "up", "--json", "--until-stdin-closes"]
        self._process = subprocess.Popen(
            [*command, *self._arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            close_fds=True,
            env=child_environment("ZG_OWNER_KEY"),  # for --attach
            start_new_session=True,  # Ctrl-C is for us: we end it
        )
        return self._process

    def _wait_ready(self, process: "subprocess.Popen[bytes]") -> None:
        try:
            self._info = json.loads(self._first_line(process))
            if "rpc_url" not in self._info:
                raise ValueError(self._info.get("message"))
        except (ValueError, queue.Empty) as error:
            self.stop()
            raise ConfigError("the devnet didn't get ready", hint="Its own words are on standard error") from error

    def _first_line(self, process: subprocess.Popen[bytes]) -> bytes:
        lines: queue.Queue[bytes] = queue.Queue()

        def read() -> None:
            if process.stdout is not None:
                with contextlib.suppress(ValueError, OSError):
                    lines.put(process.stdout.readline())

        threading.Thread(target=read, daemon=True).start()
        return lines.get(timeout=self._ready_seconds)

    def stop(self) -> int | None:
        """End it and wait; return its exit code, None if it never started. Idempotent."""
        process, self._process = self._process, None
        if process is None:
            return None
        process.terminate()
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()
        return process.returncode

    def control(self, command: str, **arguments: Any) -> dict[str, Any]:
        """Run a control command; see `zg_async.devnet.control` for the table.

        Raises:
            ConfigError: It was refused.
        """
        body = json.dumps(arguments).encode()
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{self._info['control_url']}/{command}", data=body, headers=headers)
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=60) as reply:
                return dict(json.load(reply))
        except urllib.error.HTTPError as error:
            with error:
                raise ConfigError(f"{command}: {json.load(error).get('error')}") from error

    async def control_async(self, command: str, **arguments: Any) -> dict[str, Any]:
        """Run a control command without blocking the loop; see `control`."""
        return await anyio.to_thread.run_sync(lambda: self.control(command, **arguments))

    def __enter__(self) -> "DevnetProcess":
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    async def __aenter__(self) -> "DevnetProcess":
        process = self._spawn()
        try:
            await anyio.to_thread.run_sync(self._wait_ready, process, abandon_on_cancel=True)
        except BaseException:
            await self.__aexit__(None, None, None)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(self.stop)
