"""The control server's commands about storage."""

import dataclasses
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any

from zg_async.devnet.provider_settings import update
from zg_async.devnet.storage_node import StorageNode
from zg_async.errors import ConfigError

if TYPE_CHECKING:
    from zg_async.devnet.network import Devnet
    from zg_async.devnet.storage_network import StorageNetwork

Command = Callable[[Mapping[str, Any]], Awaitable[Mapping[str, Any]]]


def storage_commands(devnet: "Devnet") -> dict[str, Command]:
    """Return the commands by name."""

    def network() -> "StorageNetwork":
        if devnet.storage is None:
            raise ConfigError("this devnet has no storage nodes", hint="Start it with --storage-nodes")
        return devnet.storage

    def chosen(arguments: Mapping[str, Any]) -> list[StorageNode]:
        nodes, wanted = network().nodes, arguments.get("node")
        if wanted is None:
            return nodes
        if not isinstance(wanted, int) or isinstance(wanted, bool) or not 0 <= wanted < len(nodes):
            raise ConfigError(f"there is no storage node {wanted!r}")
        return [nodes[wanted]]

    async def settings(arguments: Mapping[str, Any]) -> Mapping[str, Any]:
        changes = {name: value for name, value in arguments.items() if name != "node"}
        nodes = chosen(arguments)
        for node in nodes:
            update(node.settings, changes)
        return {"storage": [dataclasses.asdict(node.settings) | {"requests": node.requests} for node in nodes]}

    async def indexer(arguments: Mapping[str, Any]) -> Mapping[str, Any]:
        return {"indexer": dataclasses.asdict(update(network().indexer.settings, arguments))}

    async def stop(arguments: Mapping[str, Any]) -> Mapping[str, Any]:
        for node in chosen(arguments):
            await node.stop()
        return {}

    async def start(arguments: Mapping[str, Any]) -> Mapping[str, Any]:
        for node in chosen(arguments):
            await node.start()
        return {}

    async def prune(arguments: Mapping[str, Any]) -> Mapping[str, Any]:
        root = bytes.fromhex(str(arguments.get("root", "")).removeprefix("0x"))
        for node in chosen(arguments):
            node.prune(root)
        return {}

    return {
        "storage": settings,
        "indexer": indexer,
        "storage_stop": stop,
        "storage_start": start,
        "storage_prune": prune,
    }
