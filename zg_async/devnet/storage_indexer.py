"""The indexer: says which nodes there are and which hold a file; and hands out files over REST (storage.md 9)."""

import random
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from aiohttp import web

from zg_async.devnet.faults import hang_up
from zg_async.devnet.storage_node import StorageNode
from zg_async.devnet.storage_rpc import BODY_LIMIT, Method, NodeFailureError, answer, plain
from zg_async.devnet.storage_settings import IndexerSettings
from zg_async.wire.shards import ShardConfig, covers, select_nodes

if TYPE_CHECKING:
    from zg_async.devnet.storage_log import Entry
    from zg_async.devnet.storage_network import StorageNetwork

INVALID: Final = 1
INTERNAL: Final = 2
NOT_FOUND: Final = 101
PRUNED: Final = 102
NOT_FINAL: Final = 103
NO_PATH: Final = 104
TOO_LARGE: Final = 105
NO_FILE: Final = 106
_DEAD_PORT: Final = 9
_MOST_INFOS: Final = 100


class _Refused(Exception):  # noqa: N818  never leaves this module
    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class Indexer:
    """The indexer of one devnet."""

    def __init__(self, network: "StorageNetwork", settings: IndexerSettings | None = None) -> None:
        """Make an indexer; nothing is served until `start`."""
        self.settings = settings or IndexerSettings()
        self.port = 0
        self._network = network
        self._random = random.Random(0)
        self._runner: web.AppRunner | None = None
        self._methods: dict[str, Method] = {
            "indexer_getShardedNodes": self._sharded_nodes,
            "indexer_getSelectedNodes": self._selected_nodes,
            "indexer_getFileLocations": self._file_locations,
            "indexer_getNodeLocations": self._node_locations,
        }

    @property
    def url(self) -> str:
        """Where it serves."""
        return f"http://127.0.0.1:{self.port}"

    async def start(self) -> None:
        """Open the server, on the port of the last time if there was one. Idempotent."""
        if self._runner is not None:
            return
        app = web.Application(client_max_size=BODY_LIMIT)
        app.router.add_post("/", self._on_post)
        app.router.add_get("/file", self._rest_file)
        app.router.add_get("/file/info/{file}", self._rest_info)
        app.router.add_get("/files/info", self._rest_infos)
        app.router.add_get("/node/status", self._rest_status)
        app.router.add_post("/file/segment", self._rest_segment)
        app.router.add_get("/file/{file}/{path:.*}", self._rest_path)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.2)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port).start()
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        """Stop serving. Idempotent."""
        runner, self._runner = self._runner, None
        if runner is not None:
            await runner.cleanup()

    async def _on_post(self, request: web.Request) -> web.StreamResponse:
        if self.settings.latency:
            await self._network.clock.sleep(self.settings.latency)
        if self.settings.strikes("drop"):
            return hang_up(request)
        return await answer(request, self._methods)

    # --- JSON-RPC ----------------------------------------------------------------------------------------------------

    def _listed(self, nodes: Sequence[StorageNode]) -> list[dict[str, Any]]:
        told = [_node_json(node.url, node.shard, node.shards) for node in nodes]
        for number in range(min(self.settings.dead_nodes, len(nodes))):
            twin = nodes[number]
            told.insert(number, _node_json(f"http://127.0.0.1:{_DEAD_PORT}", twin.shard, twin.shards))
        return told + [_node_json(url, 0, 1) for url in self.settings.foreign_nodes]

    def _discovered(self) -> list[Any] | None:
        return None if self.settings.null_discovered else []

    async def _sharded_nodes(self) -> dict[str, Any]:
        return {"trusted": self._listed(self._network.nodes), "discovered": self._discovered()}

    async def _selected_nodes(
        self, replica: Any, method: Any = "min", full_trusted: Any = True, dropped: Any = None
    ) -> dict[str, Any]:
        del full_trusted  # there are no others
        if self.settings.no_selection:
            raise NodeFailureError(-32601, "the method indexer_getSelectedNodes does not exist/is not available")
        told = [one for one in self._listed(self._network.nodes) if one["url"] not in (dropped or ())]
        configs = [ShardConfig(one["config"]["shardId"], one["config"]["numShard"]) for one in told]
        chosen = select_nodes(configs, replica=replica, method=method or "min", rng=self._random)
        if chosen is None:
            raise plain(
                f"cannot select a subset from the returned nodes that meets the replication requirement {replica}"
            )
        return {"trusted": [told[i] for i in chosen], "discovered": self._discovered()}

    async def _file_locations(self, root: Any) -> list[dict[str, Any]] | None:
        if self.settings.strikes("null_locations"):
            return None
        if self.settings.strikes("lost_locations"):
            raise plain("file not found")
        raw = bytes.fromhex(str(root).removeprefix("0x"))
        found = [(node, node.find(raw)) for node in self._network.nodes if node.is_up]
        holders = [node for node, entry in found if entry is not None and node.is_final(entry)]
        if not any(entry for _, entry in found):
            raise plain("file not found")
        return self._listed(holders) if covers([ShardConfig(n.shard, n.shards) for n in holders]) else None

    async def _node_locations(self) -> dict[str, Any]:
        place = {"city": "", "region": "", "country": "", "loc": "0,0", "timezone": "UTC"}
        return {"127.0.0.1": place}

    # --- REST --------------------------------------------------------------------------------------------------------

    async def _rest_file(self, request: web.Request) -> web.StreamResponse:
        name = request.query.get("name", "")
        try:
            entry = self._entry(request.query.get("root") or request.query.get("txSeq") or "")
            return await self._attachment(request, entry, name or entry.root.hex())
        except _Refused as refused:
            return _business(refused.code, str(refused))

    async def _attachment(self, request: web.Request, entry: "Entry", name: str) -> web.StreamResponse:
        if entry.size > self.settings.file_limit:
            raise _Refused(TOO_LARGE, f"File too large: {entry.size} bytes")
        reply = web.StreamResponse(headers={"Content-Type": "application/octet-stream"})
        reply.headers["Content-Disposition"] = (
            f'attachment; filename="{"".join(c for c in name if c.isalnum() or c in "._-")}"'
        )
        reply.content_length = entry.size
        await reply.prepare(request)
        async for piece in self._network.pieces(entry):
            await reply.write(piece)
        await reply.write_eof()
        return reply

    def _entry(self, file: str, *, final: bool = True) -> "Entry":
        """Find a file by root or transaction sequence number."""
        nodes = [node for node in self._network.nodes if node.is_up]
        if file.isdecimal():
            found = [node.find_seq(int(file)) for node in nodes]
        else:
            try:
                raw = bytes.fromhex(file.removeprefix("0x"))
            except ValueError:
                raw = b""
            if len(raw) != 32:
                raise _Refused(INVALID, "Either 'root' or 'txSeq' must be provided")
            found = [node.find(raw) for node in nodes]
        known = [(node, entry) for node, entry in zip(nodes, found, strict=True) if entry is not None]
        if not known:
            raise _Refused(NOT_FOUND, "File not found")
        holders = [ShardConfig(node.shard, node.shards) for node, entry in known if node.is_final(entry)]
        if final and not covers(holders):
            raise _Refused(NOT_FINAL, "File not finalized yet")
        return known[0][1]

    def _info(self, file: str) -> dict[str, Any]:
        entry = self._entry(file, final=False)
        node = next(n for n in self._network.nodes if n.is_up and n.find_seq(entry.seq) is not None)
        info = node.info(entry)
        told = {name: value for name, value in info["tx"].items() if name != "merkleNodes"}
        return {**info, "tx": {**told, "data": ""}}

    async def _rest_info(self, request: web.Request) -> web.Response:
        try:
            return _business(0, "Success", self._info(request.match_info["file"]))
        except _Refused as refused:
            return _business(refused.code, str(refused))

    async def _rest_infos(self, request: web.Request) -> web.Response:
        files = request.query.getall("cid", [])
        if len(files) > _MOST_INFOS:
            return _business(INVALID, "Too many files")
        infos: list[Any] = []
        for file in files:
            try:
                infos.append(self._info(file))
            except _Refused as refused:
                if refused.code != NOT_FOUND:
                    return _business(refused.code, str(refused))
                infos.append(None)
        return _business(0, "Success", infos)

    async def _rest_status(self, request: web.Request) -> web.Response:
        del request
        return _business(0, "Success", await self._network.nodes[0].status())

    async def _rest_segment(self, request: web.Request) -> web.Response:
        body = await request.json()
        try:
            file = str(body["txSeq"] if body.get("txSeq") is not None else body.get("root") or "")
            entry = self._entry(file, final=False)
            index = int(body["index"])
            segment = {
                "root": "0x" + entry.root.hex(),
                "data": body["data"],
                "index": index,
                "proof": body["proof"],
                "fileSize": entry.size,
            }
            for node in self._network.nodes:
                if node.is_up and entry.is_held_by(node.shard, node.shards, index):
                    await node.put_segment(segment, entry.seq)
        except _Refused as refused:
            return _business(refused.code, str(refused))
        except (KeyError, TypeError, ValueError) as error:
            return _business(INVALID, f"Invalid parameter: {error}")
        except NodeFailureError as failure:
            return _business(INTERNAL, str(failure.error), status=600)
        return _business(0, "Success")

    async def _rest_path(self, request: web.Request) -> web.StreamResponse:
        try:
            node: Mapping[str, Any] = await self._network.directory(self._entry(request.match_info["file"]))
            for name in filter(None, request.match_info["path"].split("/")):
                node = next((one for one in node.get("entries") or () if one.get("name") == name), {})
                if not node:
                    raise _Refused(NO_PATH, "File path not found")
            if node.get("type") == "directory":
                listing = [
                    {"name": one["name"], "type": one["type"], "size": one.get("size", 0)}
                    for one in node.get("entries") or ()
                ]
                return _business(0, "Success", listing)
            roots = node.get("roots") or ([node["hash"]] if node.get("hash") else [])
            if node.get("type") != "file" or len(roots) != 1:
                raise _Refused(NO_FILE, "File type unsupported")
            return await self._attachment(request, self._entry(roots[0]), node["name"])
        except _Refused as refused:
            return _business(refused.code, str(refused))
        except ValueError:
            return _business(NO_FILE, "Not a directory")


def _node_json(url: str, shard: int, shards: int) -> dict[str, Any]:
    return {"url": url, "config": {"shardId": shard, "numShard": shards}, "latency": 1, "since": 0}


def _business(code: int, message: str, data: Any = None, *, status: int = 200) -> web.Response:
    return web.json_response({"code": code, "message": message, "data": data}, status=status)
