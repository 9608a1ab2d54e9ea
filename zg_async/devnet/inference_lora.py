"""Fine-tuned adapters of an inference provider: how they come, where they stand, and their routes.

An adapter appears when its delivery is acknowledged on chain, and moves as inference.md 10.2 says:
loading -> ready -> loading -> active -> offloaded or archived -> loading -> active, or failed. Users can only deploy
(ready or failed -> loading); offloading and archiving are the provider's own, and a chat brings such an adapter back.
"""

import dataclasses
import zipfile
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final

import anyio
import anyio.to_thread
from aiohttp import web

from zg_async.background import Background
from zg_async.clock import Clock
from zg_async.devnet.inference_auth import Sessions
from zg_async.devnet.inference_files import AdapterFiles
from zg_async.devnet.inference_http import RefusedError, json_object, json_reply, read_body
from zg_async.devnet.inference_settings import Acknowledgement, InferenceChain, InferenceSettings
from zg_async.devnet.model import Adapter
from zg_async.errors import ZgError
from zg_async.logs import get_logger
from zg_async.wire.inference_api import InvalidTokenError, adapter_name
from zg_async.wire.records import AdapterState, Address, TaskId

_log = get_logger("zg_async.devnet.inference")
FetchModel = Callable[[TaskId], Awaitable[Path]]
"""Returns where a task's encrypted model file lies; `OSError` or `LookupError` if there is none."""
FIRST_LOOK_BACK: Final = 1000
_DOWNLOADS: Final = 3


@dataclasses.dataclass(slots=True, kw_only=True)
class AdapterEntry:
    """One adapter as its provider knows it."""

    name: str
    task_id: TaskId
    owner: Address
    storage_root: str
    state: AdapterState = AdapterState.LOADING
    error: str = ""
    last_used: float = 0.0
    is_restoring: bool = False
    weights: Adapter | None = None
    """In memory only while active."""


class Adapters:
    """All adapters of one provider."""

    def __init__(
        self,
        *,
        base_model: str,
        keys: tuple[bytes, Address],
        chain: InferenceChain,
        files: AdapterFiles,
        fetch_model: FetchModel,
        settings: InferenceSettings,
        clock: Clock,
    ) -> None:
        """Start with none; `keys` are the wallet's private key and the TEE signer's address."""
        self.base_model = base_model
        self.files = files
        self._keys = keys
        self._chain = chain
        self._fetch_model = fetch_model
        self._settings = settings
        self._clock = clock
        self._entries: dict[str, AdapterEntry] = {}
        self._known: set[TaskId] = set()
        self._rejected: dict[TaskId, Acknowledgement] = {}
        self._next_block: int | None = None
        self._downloads = anyio.CapacityLimiter(_DOWNLOADS)
        self._background = Background()
        self._working: dict[str, anyio.Event] = {}

    # --- what there is ---

    def __iter__(self) -> Iterator[AdapterEntry]:
        """Iterate over the entries, oldest first."""
        return iter(tuple(self._entries.values()))

    def get(self, name: str) -> AdapterEntry | None:
        """Return an adapter by its name."""
        return self._entries.get(name)

    def by_task(self, task_id: str) -> AdapterEntry | None:
        """Return an adapter by its task."""
        return next((entry for entry in self if entry.task_id == task_id), None)

    # --- how they come ---

    def look_from(self, block: int) -> None:
        """Begin the search for acknowledgements at a block."""
        self._next_block = block

    async def watch(self) -> None:
        """Look once for new acknowledgements, and again at those that were rejected.

        Raises:
            ZgError: The chain can't be asked; the next look begins where this one did.
        """
        head = await self._chain.block_number()
        first = max(0, head - FIRST_LOOK_BACK) if self._next_block is None else self._next_block
        found = await self._chain.acknowledged(first, head) if first <= head else ()
        waiting = [*self._rejected.values(), *found]
        for acknowledgement in waiting:
            await self._register(acknowledgement)
        self._next_block = max(first, head + 1)

    async def _register(self, acknowledgement: Acknowledgement) -> None:
        task_id, user = acknowledgement.task_id, acknowledgement.user
        if task_id in self._known:
            return
        if (code := await self._refusal(user)) is not None:
            if task_id not in self._rejected:
                _log.info("adapter of task %s not admitted: %s", task_id, code)
            self._rejected[task_id] = acknowledgement
            return
        try:
            root = await self._chain.model_root_hash(user, task_id)
        except LookupError:
            return
        self._rejected.pop(task_id, None)
        self._known.add(task_id)
        name = adapter_name(self.base_model, task_id)
        entry = AdapterEntry(name=name, task_id=task_id, owner=user, storage_root=f"0x{root.hex()}")
        entry.last_used = self._clock.monotonic()
        self._entries[name] = entry
        self._start(entry, partial(self._bring, entry, activate=self._settings.auto_deploy))

    async def _refusal(self, user: Address) -> str | None:
        """Return why another adapter of a user isn't admitted."""
        settings = self._settings
        if user.lower() in {blocked.lower() for blocked in settings.blocked_users}:
            return "user_blocked"
        if sum(entry.owner == user for entry in self) >= settings.max_user_adapters:
            return "per_user_quota_exceeded"
        if len(self._entries) >= settings.max_adapters:
            return "total_quota_exceeded"
        if await anyio.to_thread.run_sync(self.files.size) >= settings.max_disk_bytes:
            return "disk_quota_exceeded"
        return None

    # --- how they move ---

    def deploy(self, entry: AdapterEntry) -> None:
        """Do what a user's deployment does: load the files again that are here.

        Raises:
            RefusedError: 409, its state doesn't allow it.
        """
        state = entry.state
        if state is AdapterState.ACTIVE:
            raise RefusedError(f"adapter {entry.name} is already deployed", 409)
        if state is AdapterState.LOADING:
            raise RefusedError(f"adapter {entry.name} is still being downloaded or deployed, please wait", 409)
        if state not in (AdapterState.READY, AdapterState.FAILED):
            raise RefusedError(f"adapter {entry.name} is in state {state.value}, cannot deploy", 409)
        self._start(entry, partial(self._activate, entry))

    def restore(self, entry: AdapterEntry) -> None:
        """Bring an offloaded or archived adapter back."""
        entry.is_restoring = True
        self._start(entry, partial(self._bring, entry, activate=True, delay=self._settings.restore_delay))

    def offload(self, entry: AdapterEntry) -> None:
        """Take an adapter out of memory; its files stay."""
        entry.state, entry.weights = AdapterState.OFFLOADED, None

    async def archive(self, entry: AdapterEntry) -> None:
        """Take an adapter out of memory and off the disk."""
        entry.state, entry.weights = AdapterState.ARCHIVED, None
        await anyio.to_thread.run_sync(self.files.drop, entry.task_id)

    async def purge(self, entry: AdapterEntry) -> None:
        """Forget an adapter; its acknowledgement doesn't bring it back."""
        await self.archive(entry)
        self._entries.pop(entry.name, None)

    def offload_idle(self) -> None:
        """Offload what wasn't used for long."""
        if self._settings.offload_after <= 0:
            return
        since = self._clock.monotonic() - self._settings.offload_after
        for entry in self:
            if entry.state is AdapterState.ACTIVE and entry.last_used < since:
                self.offload(entry)

    async def restart(self) -> None:
        """Do what a restart of the provider does: load again what was in memory, archive what lost its files."""
        await self.aclose()
        for entry in self:
            if not await anyio.to_thread.run_sync(self.files.has, entry.task_id):
                if entry.state is not AdapterState.FAILED:
                    entry.state, entry.weights = AdapterState.ARCHIVED, None
            elif entry.state in (AdapterState.ACTIVE, AdapterState.LOADING):
                self._start(entry, partial(self._activate, entry))

    async def drain(self) -> None:
        """Wait until no adapter is being moved."""
        while self._working:
            await next(iter(self._working.values())).wait()

    async def aclose(self) -> None:
        """Stop moving adapters; what was loading goes on at `restart`."""
        await self._background.aclose()
        self._background = Background()
        self._working.clear()

    def _start(self, entry: AdapterEntry, work: Callable[[], Awaitable[None]]) -> None:
        entry.state, entry.error, entry.weights = AdapterState.LOADING, "", None
        done = self._working[entry.name] = anyio.Event()
        self._background.start(self._move(entry, work, done), name=f"devnet adapter {entry.name}")

    async def _move(self, entry: AdapterEntry, work: Callable[[], Awaitable[None]], done: anyio.Event) -> None:
        try:
            await work()
        except (ZgError, OSError, ValueError, LookupError, TypeError, zipfile.BadZipFile) as error:
            _log.warning("adapter %s failed: %s", entry.name, error)
            entry.state, entry.error = AdapterState.FAILED, str(error) or type(error).__name__
        finally:
            entry.is_restoring = False
            if self._working.get(entry.name) is done:
                del self._working[entry.name]
            done.set()

    async def _bring(self, entry: AdapterEntry, *, activate: bool, delay: float = 0.0) -> None:
        """Fetch an adapter unless its files are here, and load it if it is to be active."""
        await self._pause(delay)
        if not await anyio.to_thread.run_sync(self.files.has, entry.task_id):
            async with self._downloads:
                await self._pause(self._settings.download_delay)
                path = await self._fetch_model(entry.task_id)
                await anyio.to_thread.run_sync(self.files.open_model, entry.task_id, path, *self._keys)
        if activate:
            await self._activate(entry)
        else:
            entry.state = AdapterState.READY

    async def _activate(self, entry: AdapterEntry) -> None:
        await self._pause(self._settings.load_delay)
        if self._settings.fail_load:
            raise ValueError("load failed: devnet fault")
        entry.weights = await anyio.to_thread.run_sync(self.files.load, entry.task_id)
        entry.state, entry.last_used = AdapterState.ACTIVE, self._clock.monotonic()
        await self._make_room()

    async def _make_room(self) -> None:
        active = sorted((entry for entry in self if entry.state is AdapterState.ACTIVE), key=lambda e: e.last_used)
        for entry in active[: -self._settings.max_active] if self._settings.max_active > 0 else ():
            await self.archive(entry)

    async def _pause(self, seconds: float) -> None:
        if seconds > 0:
            await self._clock.sleep(seconds)

    # --- what a chat may do ---

    def for_chat(self, name: str, user: Address) -> AdapterEntry:
        """Return an active adapter of a user.

        Raises:
            RefusedError: With the literal words of section 11. An offloaded or archived adapter starts to come back.
        """
        if not self._settings.lora_enabled:
            raise RefusedError("LoRA serving not enabled")
        entry = self.get(name)
        if entry is None:
            raise RefusedError(f"fine-tuned model not found: {name}")
        if entry.owner != user:
            raise RefusedError("access denied: you are not the owner of this fine-tuned model")
        self._check_state(entry)
        entry.last_used = self._clock.monotonic()
        return entry

    def _check_state(self, entry: AdapterEntry) -> None:
        name, state = entry.name, entry.state
        if state in (AdapterState.OFFLOADED, AdapterState.ARCHIVED):
            self.restore(entry)
        if state is not AdapterState.ACTIVE and entry.is_restoring:
            raise RefusedError(f"fine-tuned model {name} is restoring, please retry in 30 seconds")
        if state is AdapterState.READY:
            raise RefusedError(f"fine-tuned model {name} is downloaded but not deployed, please deploy it first")
        if state is AdapterState.FAILED:
            raise RefusedError(f"fine-tuned model {name} failed to deploy")
        if state is not AdapterState.ACTIVE:
            raise RefusedError(f"fine-tuned model {name} is still loading")


class LoraRoutes:
    """The routes under `/v1/lora`. Source: inference.md section 10."""

    def __init__(self, adapters: Adapters, sessions: Sessions, settings: InferenceSettings) -> None:
        """Serve a provider's adapters."""
        self._adapters = adapters
        self._sessions = sessions
        self._settings = settings

    def routes(self) -> list[web.RouteDef]:
        """Return the routes."""
        return [
            web.get("/v1/lora/adapters", self._list),
            web.post("/v1/lora/adapters/deploy", self._deploy),
            web.get("/v1/lora/adapters/{name}", self._status),
        ]

    async def _user(self, request: web.Request) -> Address:
        if not self._settings.lora_enabled:
            raise RefusedError("LoRA serving not enabled", 503)
        try:
            return await self._sessions.user(request.headers.get("Authorization", ""))
        except InvalidTokenError as error:
            raise RefusedError(f"authentication required: {error}", 401) from None

    async def _list(self, request: web.Request) -> web.Response:
        user = await self._user(request)
        shown = [e for e in self._adapters if not self._settings.owner_restricted or e.owner == user]
        return json_reply({"adapters": [self._json(entry) for entry in shown]})

    async def _status(self, request: web.Request) -> web.Response:
        user, name = await self._user(request), request.match_info["name"]
        entry = self._adapters.get(name)
        if entry is None:
            raise RefusedError(f"adapter not found: {name}", 404)
        self._check_owner(entry, user)
        return json_reply(self._json(entry))

    async def _deploy(self, request: web.Request) -> web.Response:
        user = await self._user(request)
        body = json_object(await read_body(request))
        if body is None:
            raise RefusedError("invalid request body")
        entry = self._wanted(body)
        self._check_owner(entry, user)
        self._adapters.deploy(entry)
        return json_reply({"status": "deploying", "adapterName": entry.name, "message": "adapter deployment started"})

    def _wanted(self, body: dict[str, Any]) -> AdapterEntry:
        """Find the adapter that a deployment names."""
        restricted = self._settings.owner_restricted
        name, task_id, model = (body.get(key) or "" for key in ("adapterName", "taskId", "baseModel"))
        if not all(isinstance(text, str) for text in (name, task_id, model)):
            raise RefusedError("json: cannot unmarshal into Go struct field of type string")
        if restricted and not (task_id and model):
            field = "BaseModel" if task_id else "TaskID"
            raise RefusedError(
                f"Key: 'DeployRequest.{field}' Error:Field validation for '{field}' failed on the 'required' tag"
            )
        if not name and not (task_id and model):
            raise RefusedError("provide either adapterName, or both taskId and baseModel")
        name = adapter_name(model, task_id) if restricted or not name else name
        entry = self._adapters.get(name) or (self._adapters.by_task(task_id) if task_id else None)
        if entry is None:
            if restricted:
                raise RefusedError("adapter not found", 404)
            raise RefusedError(f"adapter {name} not found", 409)
        return entry

    def _check_owner(self, entry: AdapterEntry, user: Address) -> None:
        if self._settings.owner_restricted and entry.owner != user:
            raise RefusedError("you do not own this adapter", 403)

    def _json(self, entry: AdapterEntry) -> dict[str, str]:
        return {
            "adapterName": entry.name,
            "taskId": entry.task_id,
            "baseModel": self._adapters.base_model,
            "state": entry.state.value,
            "userAddress": entry.owner,
            "storageRootHash": entry.storage_root,
        }
