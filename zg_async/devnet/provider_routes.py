"""The twelve routes of a fine-tuning provider, with their checks in the broker's order (fine-tuning.md 3, 5-12)."""

import hashlib
import io
import json
import uuid
import zipfile
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

import anyio
from aiohttp import web

from zg_async.devnet.provider_http import (
    bind_refusal,
    check_owner,
    check_signer,
    error_reply,
    find_task,
    json_reply,
    must_bind,
    prefixed,
    task_id_of,
)
from zg_async.devnet.provider_rules import (
    Refused,
    check_params,
    custom_model,
    find_model,
    fold_address,
    is_hex_address,
    predefined_model,
)
from zg_async.devnet.provider_store import ProviderTask
from zg_async.devnet.provider_transfer import Transfers
from zg_async.devnet.quote import build_quote
from zg_async.errors import ZgError
from zg_async.wire.records import CANCELLABLE, TaskId, TaskProgress
from zg_async.wire.signing import task_cancel_hash

if TYPE_CHECKING:
    from zg_async.devnet.provider import ProviderNode

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
_FALSE: Final = frozenset({"0", "f", "F", "FALSE", "false", "False"})
_REQUIRED: Final = (
    ("userAddress", "UserAddress"),
    ("preTrainedModelHash", "PreTrainedModelHash"),
    ("datasetHash", "DatasetHash"),
    ("trainingParams", "TrainingParams"),
    ("fee", "Fee"),
    ("nonce", "Nonce"),
    ("signature", "Signature"),
)


@web.middleware
async def _not_found(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except (web.HTTPNotFound, web.HTTPMethodNotAllowed):
        return web.Response(status=404, text="404 page not found")
    except Refused as refused:
        return error_reply(refused.status, refused.text)


def build_app(node: "ProviderNode") -> web.Application:
    """Make the provider's application."""
    app = web.Application(middlewares=[node.gate.middleware, _not_found])
    routes, transfers = Routes(node), Transfers(node)
    user = "/v1/user/{address}"
    app.add_routes(
        [
            web.get("/v1/quote", routes.quote),
            web.post(f"{user}/dataset", transfers.upload),
            web.post(f"{user}/task", routes.create),
            web.get(f"{user}/task", routes.list_tasks),
            web.get(f"{user}/task/{{id}}", routes.get_task),
            web.post(f"{user}/task/{{id}}/cancel", routes.cancel),
            web.get(f"{user}/task/{{id}}/log", routes.log),
            web.post(f"{user}/task/{{id}}/lora", transfers.download),
            web.get("/v1/task/pending", routes.pending),
            web.get("/v1/model", routes.list_models),
            web.get("/v1/model/desc/{name}", routes.model_usage),
            web.get("/v1/model/{name}", routes.get_model),
        ]
    )
    return app


class Routes:
    """The handlers."""

    def __init__(self, node: "ProviderNode") -> None:
        """Serve one provider."""
        self._node = node

    # --- quote and models ---

    async def quote(self, request: web.Request) -> web.StreamResponse:
        """Route 1."""
        node = self._node
        node.gate.limit(request)
        asked = request.query.get("legacy")
        legacy = node.settings.legacy_quote if asked is None else asked not in _FALSE
        key = hashlib.sha256(node.tee_key).digest() if node.faults.strikes("foreign_quote") else node.tee_key
        quote = build_quote(key, legacy=legacy)
        headers = {"ZG-Quote-Signature": quote.signature} if node.settings.quote_signature else {}
        return web.Response(body=quote.body, headers={"Content-Type": "text/plain; charset=utf-8"} | headers)

    async def list_models(self, _: web.Request) -> web.StreamResponse:
        """Route 10."""
        return json_reply([model.to_json() for model in self._node.settings.models])

    async def get_model(self, request: web.Request) -> web.StreamResponse:
        """Route 11."""
        with prefixed("get model"):
            return json_reply(find_model(self._node.settings.models, request.match_info["name"]))

    async def model_usage(self, request: web.Request) -> web.StreamResponse:
        """Route 12; only customised models have a document."""
        name = request.match_info["name"]
        models = self._node.settings.models
        with prefixed("get model description"):
            model = find_model(models, name)
            if not any(custom.hash == model["hash"] for custom in models):
                raise Refused(f"Model {name} not found")
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("README.md", f"# {model['name']}\n\n{model['description']}\n")
            archive.writestr("model.json", json.dumps(model, indent=2))
        headers = {"Content-Type": "application/zip", "Content-Disposition": f"attachment; filename={name}.zip"}
        return web.Response(body=packed.getvalue(), headers=headers)

    # --- tasks ---

    async def create(self, request: web.Request) -> web.StreamResponse:
        """Route 3."""
        with prefixed("bind service"):
            body = _bind(await request.read())
            for field, label in _REQUIRED:
                if not body.get(field):
                    raise Refused(
                        f"Key: 'Task.{label}' Error:Field validation for '{label}' failed on the 'required' tag"
                    )
            if not is_hex_address(body["userAddress"]):
                raise Refused(f'userAddress "{body["userAddress"]}" is not a valid hex address')
        with prefixed("register service"):
            return json_reply({"id": await self._register(body)}, 201)

    async def _register(self, body: Mapping[str, Any]) -> TaskId:
        node = self._node
        model_type = self._check_model(body["preTrainedModelHash"])
        check_params(body["trainingParams"])
        user = fold_address(body["userAddress"])
        if user is None:
            raise Refused("invalid user address")
        await self._check_acknowledged(user)
        async with node.creation:
            if node.store.unfinished(user):
                raise Refused("cannot create a new task while there is an unfinished task")
            pending = node.store.pending()
            if pending > node.settings.max_task_queue_size or node.faults.strikes("queue_full"):
                raise Refused("task queue is full", 409)
            if pending and body.get("wait") is not True:
                raise Refused("cannot create a new task while there are in-progress tasks", 409)
            now = node.now()
            task = ProviderTask(
                id=TaskId(str(uuid.uuid4())),
                created_at=now,
                updated_at=now,
                user=user,
                user_address=body["userAddress"],
                model_hash=body["preTrainedModelHash"],
                dataset_hash=body["datasetHash"],
                training_params=body["trainingParams"],
                nonce=body["nonce"],
                signature=body["signature"],
                model_type=model_type,
            )
            await node.log(task.id, "creating task....")
            if pending:
                await node.log(task.id, f"There are {pending} tasks in the queue ahead.")
            await node.store.add(task)
        return task.id

    def _check_model(self, model_hash: str) -> int:
        settings = self._node.settings
        if custom_model(settings.models, model_hash) is not None:
            return 1
        if predefined_model(model_hash) is None:
            raise Refused("unsupported model: not found in predefined models")
        if settings.supported_predefined_models and model_hash not in settings.supported_predefined_models:
            raise Refused("unsupported model: not in provider's supported model list")
        return 0

    async def _check_acknowledged(self, user: str) -> None:
        node = self._node
        try:
            account = await node.client.call(node.contract.get_account(user, node.address))
        except ZgError as error:
            raise Refused(f"get account in contract: {error.message}") from error
        try:
            service = await node.client.call(node.contract.get_service(node.address))
        except ZgError as error:
            raise Refused(f"get service from contract: {error.message}") from error
        if not service.tee_signer_acknowledged:
            raise Refused("service TEE signer has not been acknowledged by 0G team")
        if not account.acknowledged:
            raise Refused(
                "user has not acknowledged the provider's TEE signer. User must acknowledge before creating a task"
            )

    async def list_tasks(self, request: web.Request) -> web.StreamResponse:
        """Route 4."""
        tasks = self._node.store.of_user(fold_address(request.match_info["address"]))
        if request.query.get("order", "").lower() != "asc":
            tasks.reverse()
        if request.query.get("latest") == "true":
            tasks = tasks[:1]
        return json_reply([task.to_json() for task in tasks])

    async def get_task(self, request: web.Request) -> web.StreamResponse:
        """Route 5; the path address isn't looked at."""
        task_id = task_id_of(request)
        with prefixed("get task"):
            return json_reply(find_task(self._node, task_id).to_json())

    async def cancel(self, request: web.Request) -> web.StreamResponse:
        """Route 6."""
        node = self._node
        task_id = task_id_of(request)
        body = await must_bind(request)
        if body is None or not isinstance(body.get("signature"), str) or not body["signature"]:
            return bind_refusal("bind ctx", "Signature")
        address = request.match_info["address"]
        with prefixed("cancel task"):
            try:
                check_signer(task_cancel_hash(task_id), body["signature"], address)
            except Refused as refused:
                raise Refused(refused.text, 401) from refused
            task = find_task(self._node, task_id)
            check_owner(task, address)
            for state in CANCELLABLE:
                if await node.store.move(task, state, TaskProgress.FAILED, node.now()):
                    return web.Response(text=f"task {task_id} cancelled")
            raise Refused(f"task cannot be cancelled in its current state ({task.progress})", 409)

    async def log(self, request: web.Request) -> web.StreamResponse:
        """Route 7."""
        task_id = task_id_of(request)
        with prefixed("get task"):
            check_owner(find_task(self._node, task_id), request.match_info["address"])
        try:
            data = await anyio.Path(self._node.files.log_path(task_id)).read_bytes()
        except OSError:
            return json_reply({"error": "Failed to read log file. Please ensure the task is running"}, 500)
        return web.Response(body=data, headers={"Content-Type": "text/plain; charset=utf-8"})

    async def pending(self, _: web.Request) -> web.StreamResponse:
        """Route 9."""
        return web.Response(text=str(self._node.store.pending()))


def _bind(data: bytes) -> dict[str, Any]:
    try:
        body = json.loads(data) if data else None
    except (ValueError, RecursionError) as error:
        raise Refused(f"invalid JSON: {error}") from error
    if not isinstance(body, dict):
        raise Refused("EOF" if body is None else "json: cannot unmarshal into Go value of type schema.Task")
    for field, _ in _REQUIRED:
        if body.get(field) is not None and not isinstance(body[field], str):
            raise Refused(f"json: cannot unmarshal value into Go struct field Task.{field} of type string")
    if body.get("wait") is not None and not isinstance(body["wait"], bool):
        raise Refused("json: cannot unmarshal value into Go struct field Task.wait of type bool")
    return body
