"""Adapter flows against a provider that follows the vectors' scripts; what comes out is ours, not the peers'."""

import contextlib
import datetime as dt
import json
from types import SimpleNamespace

import pytest
from aiohttp import web

from tests.clock import FakeClock
from tests.golden import ids, vectors
from tests.http_server import serving
from zg_async.errors import AdapterError, ProviderRejectedError
from zg_async.managers.lora import LoraManager
from zg_async.transport.http import Http, HttpSettings
from zg_async.wire.records import AdapterState, Address, InferenceService

FLOWS = vectors("inference")["lora_flows"]
PROVIDER = Address("0x15d34AAf54267DB7D7c367839AAf71A00a2C6A65")
USER = Address("0x90F79bf6EB2c4f870365E785982E1f101E93b906")


class Script:
    """A provider whose answers are lists, consumed in order; the last one repeats."""

    def __init__(self, server, task_id, name):
        self.lists, self.states, self.deploys = (list(server[k]) for k in server if k.endswith("_replies"))
        self.task_id, self.name = task_id, name
        self.posts: list[dict] = []
        self.chats = 0

    @staticmethod
    def next(replies):
        return replies.pop(0) if len(replies) > 1 else replies[0]

    def adapter(self, state):
        return {
            "adapterName": self.name,
            "taskId": self.task_id,
            "baseModel": "Qwen2.5-0.5B-Instruct",
            "state": state,
            "userAddress": USER,
            "storageRootHash": "",
        }

    async def __call__(self, request: web.Request) -> web.StreamResponse:
        if request.method == "POST":
            self.posts.append(await request.json())
            status = self.next(self.deploys)
            if status != 200:
                text = f"adapter {self.name} is still being downloaded or deployed, please wait"
                if self.states == [404]:
                    text = f"adapter {self.name} not found"
                return web.json_response({"error": text}, status=status)
            if self.states[:1] in (["ready"], ["failed"]) and len(self.states) == 1:
                self.states = ["loading", "active"]
            return web.json_response({"status": "deploying", "adapterName": self.name, "message": "started"})
        if request.path.endswith("/adapters"):
            if not self.lists:
                state = self.states[0]
                return web.json_response({"adapters": [self.adapter(state)]})
            reply = self.next(self.lists)
            if isinstance(reply, int):
                return web.json_response({"error": "authentication required"}, status=reply)
            state = self.states[0]
            rows = [self.adapter(state)] if reply == "known" and isinstance(state, str) else []
            return web.json_response({"adapters": rows})
        state = self.next(self.states)
        if isinstance(state, int):
            return web.json_response({"error": f"adapter not found: {self.name}"}, status=state)
        return web.json_response(self.adapter(state))


@contextlib.asynccontextmanager
async def scripted(script):
    clock = FakeClock()
    async with (
        serving(script) as url,
        Http(settings=HttpSettings(allow_hosts=("127.0.0.1",)), clock=clock) as http,
    ):
        service = InferenceService(
            provider=PROVIDER,
            service_type="chatbot",
            url=url,
            input_price=1,
            output_price=1,
            updated_at=dt.datetime.now(dt.UTC),
            model="Qwen2.5-0.5B-Instruct",
            verifiability="TeeML",
            additional_info="{}",
            tee_signer_address=USER,
            tee_signer_acknowledged=True,
        )

        async def get_service(_):
            return service

        async def headers(_):
            return {}

        async def chat(*_args, **_options):
            """A request for an adapter that was put aside: refused, and it is being restored from then on."""
            script.chats += 1
            script.states = ["loading", "active"]
            raise ProviderRejectedError("400: the model is restoring, please retry in 30 seconds", status=400)

        inference = SimpleNamespace(get_service=get_service, get_request_headers=headers, chat=chat)
        yield LoraManager(SimpleNamespace(http=http, clock=clock, wallet=USER), inference)


def script_of(row):
    task = row["task_id"] or "1f6fef2b-e0f6-4a28-9ebe-86d5370b1934"
    name = row["adapter_name"] or "ft-Qwen2-5-0-5B-Instruct-1f6fef2b-e0f"
    return Script(row["server"], task, name)


async def run(row, lora):
    if row["operation"] == "deploy":
        return await lora.deploy_adapter(
            PROVIDER, row["base_model"], row["task_id"], wait=row["wait"], timeout_seconds=20
        )
    return await lora.deploy_adapter_by_name(PROVIDER, row["adapter_name"], wait=row["wait"], timeout_seconds=20)


FAILING = {
    "deploy-nowait-unknown-adapter",
    "deploy-nowait-legacy-no-auth-401",
    "deploy-wait-failed-before-deploy",
    "deploy-wait-failed-after-deploy",
}


@pytest.mark.parametrize("row", FLOWS, ids=ids(FLOWS))
async def test_flows_of_the_peers_end_as_the_protocol_says(row):
    script = script_of(row)
    async with scripted(script) as lora:
        if row["id"] in FAILING:
            with pytest.raises((AdapterError, ProviderRejectedError)):
                await run(row, lora)
            return
        done = await run(row, lora)
    assert done.adapter_name == script.name
    if row["wait"]:
        assert done.state is AdapterState.ACTIVE
    for body in script.posts:
        assert set(body) == {"taskId", "baseModel"}
    if "active" in row["id"] or "autodeploy" in row["id"]:
        assert script.posts == []


@pytest.mark.goal("ADP-04")
@pytest.mark.parametrize("state", ["offloaded", "archived"])
@pytest.mark.parametrize("call", ["restore", "deploy_adapter", "deploy_adapter_by_name"])
async def test_an_adapter_put_aside_comes_back_with_one_call(state, call):
    row = {"list_replies": ["known"], "status_replies": [state], "deploy_replies": [409]}
    task = "1f6fef2b-e0f6-4a28-9ebe-86d5370b1934"
    script = Script(row, task, "ft-Qwen2-5-0-5B-Instruct-1f6fef2b-e0f")
    async with scripted(script) as lora:
        if call == "deploy_adapter":
            done = await lora.deploy_adapter(PROVIDER, "Qwen2.5-0.5B-Instruct", task, wait=True)
        elif call == "restore":
            done = await lora.restore(PROVIDER, script.name)
        else:
            done = await lora.deploy_adapter_by_name(PROVIDER, script.name, wait=True)
    assert done.state is AdapterState.ACTIVE
    assert (script.chats, script.posts) == (1, [])


async def test_an_active_adapter_needs_no_restoring():
    row = {"list_replies": ["known"], "status_replies": ["active"], "deploy_replies": [409]}
    script = Script(row, "t", "ft-x-t")
    async with scripted(script) as lora:
        assert (await lora.restore(PROVIDER, "ft-x-t")).state is AdapterState.ACTIVE
    assert script.chats == 0
    assert json.dumps(script.posts) == "[]"
