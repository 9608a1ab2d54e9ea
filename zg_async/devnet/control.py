"""The devnet's control server: JSON over HTTP on loopback, for whoever was told the token.

`control_url` ends in the token: GET it for the state of everything; POST `{"command": NAME, ...}` to it, or the
arguments alone to `<control_url>/NAME`. Instead of in the path the token may come as `Authorization: Bearer`.
Answers are `{"ok": true, ...}`, or `{"error": text}` with 400 (the command), 403 (the token), 404, 502 (the chain).

| command | arguments | effect |
| --- | --- | --- |
| `status` | | addresses, block, clock, each provider's settings, faults and tasks |
| `increase_time` | `seconds` | moves the chain's and the providers' clock, and mines a block |
| `mine` | `blocks` = 1 | mines |
| `block_time` | `seconds` | mines by the clock from now on; 0: each transaction at once |
| `reorg` | `depth` = 1 | replaces the newest blocks by empty ones |
| `faucet` | `address`, `amount` (neuron) | adds to a balance (own chain), or sends from the owner |
| `lock_time` | `seconds` | changes the fine-tuning and inference contracts' lock time, as their owner |
| `rpc_faults` | the fields of `faults.Fault`; none: clear all | lost answers and such between clients and node |
| `restart`, `stop`, `start` | | the provider's process: a start marks unfinished tasks Failed |
| `settings` | any field of `provider_settings.Settings` | price, models and the like are also written on chain |
| `faults` | any field of `provider_settings.Faults` | switches faults; numbers count, -1 is for good, 0 is off |
| `clear_faults` | | all of a provider's faults off |
| `lose_state` | | the provider forgets its tasks |
| `clean_up` | | retention runs now |
| `approve`, `revoke` | | the owner's word on the provider's TEE signer |
| `inference` | any field of `inference_settings.InferenceSettings` | its inference side |
| `controller` | any field of `controller.ControllerSettings` | its controller |
| `restart_inference` | | its inference side's process |
| `storage` | `node`: its number; any field of `storage_settings.StorageSettings` | its settings and faults |
| `storage_stop`, `storage_start` | `node` | a storage node's process |
| `storage_prune` | `root`, `node` | a storage node throws a file away |
| `tee` | any field of `pccs.TeeSettings` | what the collateral says of the providers' platform |
| `indexer` | any field of `storage_settings.IndexerSettings` | the indexer's faults |

Commands about a provider take `provider`: its address or its number from 0; without it they are about all. So do
commands about a storage node with `node`.

Beside them, without a token, it answers what a collateral service does: see `pccs`.
"""

import dataclasses
import hmac
import json
import secrets
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

from aiohttp import web

from zg_async.devnet.pccs import PATHS, STATUSES, CollateralService
from zg_async.devnet.provider import ProviderNode
from zg_async.devnet.provider_settings import Faults, update
from zg_async.devnet.storage_control import storage_commands
from zg_async.errors import ChainError, ConfigError
from zg_async.logs import get_logger

if TYPE_CHECKING:
    from zg_async.devnet.network import Devnet

_log = get_logger("zg_async.devnet.control")
_LIMIT: Final = 2**20
_ON_CHAIN: Final = frozenset({"price_per_token", "models"})
Command = Callable[[Mapping[str, Any]], Awaitable[Mapping[str, Any]]]


class Control:
    """The server and its commands."""

    def __init__(self, devnet: "Devnet") -> None:
        """Make a server; it listens after `start`."""
        self.token = secrets.token_urlsafe(24)
        self.port = 0
        self.collateral = CollateralService(devnet.clock)
        self._devnet = devnet
        self._runner: web.AppRunner | None = None
        self._commands: dict[str, Command] = {
            "status": self._status,
            "increase_time": self._increase_time,
            "mine": self._mine,
            "block_time": self._block_time,
            "reorg": self._reorg,
            "faucet": self._faucet,
            "lock_time": self._lock_time,
            "rpc_faults": self._rpc_faults,
            "restart": self._each(ProviderNode.restart),
            "stop": self._each(ProviderNode.stop),
            "start": self._each(ProviderNode.start),
            "settings": self._settings,
            "faults": self._faults,
            "clear_faults": self._clear_faults,
            "lose_state": self._lose_state,
            "clean_up": self._each(ProviderNode.clean_up),
            "approve": self._approve,
            "revoke": self._revoke,
            "inference": self._inference,
            "controller": self._controller,
            "restart_inference": self._restart_inference,
            "tee": self._tee,
            **storage_commands(devnet),
        }

    @property
    def url(self) -> str:
        """Where to send commands, token included."""
        return f"http://127.0.0.1:{self.port}/{self.token}"

    @property
    def pccs_url(self) -> str:
        """Where collateral for quotes is; needs no token."""
        return f"http://127.0.0.1:{self.port}"

    async def start(self) -> None:
        """Listen on a free port of the loopback interface."""
        app = web.Application(client_max_size=_LIMIT)
        app.router.add_route("*", "/{path:.*}", self._answer)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.5)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.port = self._runner.addresses[0][1]

    async def aclose(self) -> None:
        """Stop listening. Idempotent."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def run(self, command: str, arguments: Mapping[str, Any] | None = None) -> Mapping[str, Any]:
        """Run a command from inside the process.

        Raises:
            ConfigError: Unknown command or wrong arguments.
            ChainError: The chain refused.
        """
        handler = self._commands.get(command)
        if handler is None:
            raise ConfigError(f"there is no command {command[:40]!r}", hint=f"Known are {', '.join(self._commands)}")
        return await handler(arguments or {})

    # --- HTTP ---

    async def _answer(self, request: web.Request) -> web.Response:
        if not self._is_local(request):
            return web.json_response({"error": "this server is for local programs"}, status=403)
        if request.match_info["path"].startswith(PATHS):
            return self.collateral.answer(request)
        parts = [part for part in request.match_info["path"].split("/") if part]
        if parts and hmac.compare_digest(parts[0].encode(), self.token.encode()):
            parts.pop(0)
        elif not hmac.compare_digest(
            request.headers.get("Authorization", "").encode(), f"Bearer {self.token}".encode()
        ):
            return web.json_response({"error": "the token is missing or wrong"}, status=403)
        try:
            command, arguments = await self._read(request, parts)
            return web.json_response({"ok": True, **await self.run(command, arguments)})
        except (ConfigError, TypeError, ValueError) as error:
            return web.json_response({"error": str(error)}, status=400)
        except ChainError as error:
            return web.json_response({"error": str(error)}, status=502)

    def _is_local(self, request: web.Request) -> bool:
        """Refuse browsers and rebound names: a page elsewhere must not reach this."""
        hosts = {f"{name}:{self.port}" for name in ("127.0.0.1", "localhost")}
        return request.host in hosts and "Origin" not in request.headers

    @staticmethod
    async def _read(request: web.Request, parts: list[str]) -> tuple[str, dict[str, Any]]:
        body = await request.read()
        arguments = json.loads(body) if body else {}
        if not isinstance(arguments, dict) or len(parts) > 1:
            raise ConfigError("the body must be a JSON object, the path one command")
        named = arguments.pop("command", None)
        command = parts[0] if parts else named if named is not None else "status" if request.method == "GET" else None
        if not isinstance(command, str):
            raise ConfigError("which command?")
        if request.method != "POST" and command != "status":
            raise ConfigError("commands are sent with POST")
        return command, arguments

    async def _tee(self, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
        if arguments.get("status", "UpToDate") not in STATUSES:
            raise ConfigError(f"status is one of {', '.join(STATUSES)}")
        update(self.collateral.settings, arguments)
        return {"tee": dataclasses.asdict(self.collateral.settings)}

    # --- commands about the chain ---

    async def _status(self, _: Mapping[str, Any]) -> Mapping[str, Any]:
        devnet = self._devnet
        number, block_hash, timestamp = await devnet.client.head()
        return {
            **devnet.describe(),
            "block": {"number": number, "hash": block_hash, "timestamp": timestamp},
            "clock_offset": devnet.watch.offset,
            "state": [_provider_state(node) for node in devnet.providers],
            "rpc_faults": dict(Counter(kind for _, kind in devnet.rpc_faults.hits)) if devnet.rpc_faults else {},
        }

    async def _increase_time(self, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
        await self._devnet.increase_time(_number(arguments, "seconds"))
        return {"clock_offset": self._devnet.watch.offset}

    async def _mine(self, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
        for _ in range(_number(arguments, "blocks", 1)):
            await self._devnet.client.request("evm_mine")
        return {"block": (await self._devnet.client.head())[0]}

    async def _block_time(self, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
        seconds, engine = _number(arguments, "seconds"), self._devnet.engine
        if engine is None:
            raise ConfigError("the attached chain makes its blocks itself")
        await engine.set_block_time(seconds)
        if not seconds:
            await engine.set_automine(True)
        return {}

    async def _reorg(self, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
        await self._devnet.client.request("anvil_reorg", _number(arguments, "depth", 1), [])
        return {"block": (await self._devnet.client.head())[0]}

    async def _faucet(self, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
        address = arguments.get("address")
        if not isinstance(address, str):
            raise ConfigError("faucet needs an address")
        await self._devnet.fund(address, _number(arguments, "amount"))
        return {"balance": str(await self._devnet.client.balance(address))}  # type: ignore[arg-type]

    async def _lock_time(self, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
        devnet, seconds = self._devnet, _number(arguments, "seconds")
        for contract in (devnet.fine_tuning_contract, devnet.inference_contract):
            await devnet.owner.send(contract.update_lock_time(seconds))
        return {}

    async def _rpc_faults(self, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
        return self._devnet.set_rpc_faults(arguments)

    # --- commands about providers ---

    def _chosen(self, arguments: Mapping[str, Any]) -> list[ProviderNode]:
        providers = self._devnet.providers
        wanted = arguments.get("provider")
        if wanted is None:
            return providers
        if isinstance(wanted, int) and not isinstance(wanted, bool) and 0 <= wanted < len(providers):
            return [providers[wanted]]
        found = [node for node in providers if isinstance(wanted, str) and node.address.lower() == wanted.lower()]
        if not found:
            raise ConfigError(f"there is no provider {wanted!r}")
        return found

    def _each(self, action: Callable[[ProviderNode], Awaitable[None]]) -> Command:
        async def run(arguments: Mapping[str, Any]) -> Mapping[str, Any]:
            for node in self._chosen(arguments):
                await action(node)
            return {}

        return run

    async def _settings(self, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
        changes = {name: value for name, value in arguments.items() if name != "provider"}
        nodes = self._chosen(arguments)
        for node in nodes:
            update(node.settings, changes)
            if _ON_CHAIN & changes.keys():
                await node.publish(occupied=node.is_training)
        return {"settings": [dataclasses.asdict(node.settings) for node in nodes]}

    async def _faults(self, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
        changes = {name: value for name, value in arguments.items() if name != "provider"}
        nodes = self._chosen(arguments)
        for node in nodes:
            update(node.faults, changes)
        return {"faults": [dataclasses.asdict(node.faults) for node in nodes]}

    async def _clear_faults(self, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
        for node in self._chosen(arguments):
            fresh = dataclasses.asdict(Faults())
            fresh.pop("struck")
            update(node.faults, fresh)
            node.faults.struck.clear()
        return {}

    async def _lose_state(self, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
        for node in self._chosen(arguments):
            node.store.forget()
        return {}

    async def _approve(self, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
        for node in self._chosen(arguments):
            await self._devnet.approve(node.address)
        return {}

    async def _revoke(self, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
        for node in self._chosen(arguments):
            await self._devnet.revoke(node.address)
        return {}

    async def _restart_inference(self, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
        for node in self._chosen(arguments):
            if (inference := self._devnet.inference.get(node.address)) is not None:
                await inference.restart()
        return {}

    async def _controller(self, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
        changes = {name: value for name, value in arguments.items() if name != "provider"}
        for node in self._chosen(arguments):
            if (controller := self._devnet.controllers.get(node.address)) is not None:
                update(controller.settings, changes)
        return {}

    async def _inference(self, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
        changes = {name: value for name, value in arguments.items() if name != "provider"}
        return await self._devnet.switch_inference([node.address for node in self._chosen(arguments)], changes)


def _number(arguments: Mapping[str, Any], name: str, default: int | None = None) -> int:
    value = arguments.get(name, default)
    if isinstance(value, str) and value.isdecimal():
        value = int(value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ConfigError(f"{name} must be a whole number, 0 or more")
    return value


def _provider_state(node: ProviderNode) -> dict[str, Any]:
    return {
        "address": node.address,
        "url": node.url,
        "tee_signer": node.tee_signer,
        "settings": dataclasses.asdict(node.settings),
        "faults": dataclasses.asdict(node.faults),
        "tasks": [
            {"id": task.id, "user": task.user, "progress": task.progress.value, "root_hash": task.root_hash}
            for task in node.store
        ],
    }
