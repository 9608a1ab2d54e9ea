import json
import os

import pytest
from aiohttp import web

from tests.http_server import serving
from zg_async import __version__
from zg_async.errors import (
    ConfigError,
    ProviderRejectedError,
    ProviderReplyError,
    ProviderUnavailableError,
    QueueFullError,
    SignerNotAcknowledgedError,
    TaskNotFoundError,
    UnfinishedTaskError,
)
from zg_async.managers.provider_client import ProviderClient
from zg_async.transport.http import Http, HttpSettings
from zg_async.transport.limiter import UNLIMITED
from zg_async.transport.retry import RetryPolicy
from zg_async.wire.records import TaskId, TaskProgress

USER = "0x70997970C51812dc3A010C7d01b50e0d17dc79C8"
PROVIDER = "0x3C44CdDdB6a900fa2b585dd299e03d12FA4293BC"
TASK = TaskId("11111111-2222-3333-4444-555555555555")
HASH = "0x" + "ab" * 32
TASK_JSON = {
    "id": TASK,
    "createdAt": "2026-11-20T10:00:00.123456789Z",
    "updatedAt": "2026-11-20T10:01:00Z",
    "userAddress": USER.lower(),
    "preTrainedModelHash": HASH,
    "datasetHash": HASH,
    "trainingParams": "{}",
    "fee": "123",
    "nonce": "17",
    "signature": "0x",
    "progress": "Training",
    "deliverIndex": 0,
    "deliverTime": 0,
    "modelType": 0,
    "wait": False,
}
MODEL_JSON = {"name": "deepseek-r1", "hash": HASH, "image": "", "dataType": "text", "tokenizer": "", "description": "d"}


class Provider:
    """Answers by (method, path with query)."""

    def __init__(self, **answers):
        self.answers = answers
        self.seen = []

    async def __call__(self, request):
        body = await request.read()
        self.seen.append((request.method, request.path_qs, json.loads(body) if body else None))
        answer = self.answers["any"]
        if isinstance(answer, list):
            answer = answer.pop(0) if len(answer) > 1 else answer[0]
        return answer() if callable(answer) else answer


def reply(value, status=200):
    return lambda: web.json_response(value, status=status)


def text(value, status=200):
    return lambda: web.Response(text=value, status=status)


class Talk:
    """A client and its server in one."""

    def __init__(self, clock, provider, slash=False):
        self.clock, self.provider, self.slash = clock, provider, slash

    async def __aenter__(self):
        self.server = serving(self.provider)
        base = await self.server.__aenter__()
        settings = HttpSettings(allow_hosts=("127.0.0.1",), limits=UNLIMITED, retry=RetryPolicy(attempts=2, base=0.0))
        self.http = Http(settings=settings, clock=self.clock)
        await self.http.open()
        return ProviderClient(self.http, base + ("/" if self.slash else ""), PROVIDER, self.clock)

    async def __aexit__(self, *error):
        await self.http.aclose()
        await self.server.__aexit__(*error)


async def test_a_task_is_read_into_a_record(clock):
    provider = Provider(any=reply(TASK_JSON))
    async with Talk(clock, provider, slash=True) as client:
        task = await client.get_task(USER, TASK)
    assert (task.id, task.progress, task.fee, task.request_nonce) == (TASK, TaskProgress.TRAINING, 123, 17)
    assert (task.user, task.provider) == (USER, PROVIDER)
    assert provider.seen == [("GET", f"/v1/user/{USER}/task/{TASK}", None)]


async def test_each_request_says_which_release_asks(clock):
    said = []

    async def answer(request):
        said.append(request.headers.getall("User-Agent"))
        return web.json_response(TASK_JSON)

    async with Talk(clock, answer) as client:
        await client.get_task(USER, TASK)
    assert said == [[f"zg-async/{__version__}"]]


async def test_tasks_are_listed(clock):
    provider = Provider(any=reply([TASK_JSON, TASK_JSON]))
    async with Talk(clock, provider) as client:
        assert len(await client.list_tasks(USER)) == 2
        assert len(await client.list_tasks(USER, latest=True)) == 2
    assert [path for _, path, _ in provider.seen] == [f"/v1/user/{USER}/task", f"/v1/user/{USER}/task?latest=true"]


async def test_a_task_is_created_once(clock):
    provider = Provider(any=reply({"id": TASK.upper()}, 201))
    async with Talk(clock, provider) as client:
        assert await client.create_task(USER, {"nonce": "17"}) == TASK
    assert provider.seen == [("POST", f"/v1/user/{USER}/task", {"nonce": "17"})]


@pytest.mark.parametrize("status", [500, 502, 503])
@pytest.mark.goal("TX-04", part="a task is created once")
async def test_creating_a_task_is_not_repeated_after_a_failure(clock, status):
    provider = Provider(any=text("", status))
    async with Talk(clock, provider) as client:
        with pytest.raises(ProviderUnavailableError):
            await client.create_task(USER, {})
    assert len(provider.seen) == 1


@pytest.mark.parametrize(
    ("status", "error", "kind"),
    [
        (400, "Provider: cannot create a new task while there is an unfinished task", UnfinishedTaskError),
        (409, "task queue is full", QueueFullError),
        (409, "cannot create a new task while there are in-progress tasks", QueueFullError),
        (400, "user has not acknowledged the provider's TEE signer", SignerNotAcknowledgedError),
        (400, "unsupported model: not found in predefined models", ProviderRejectedError),
        (404, f"get task: task {TASK} not found", TaskNotFoundError),
        (403, "task does not belong to this user", ProviderRejectedError),
        (503, "Service Unavailable", ProviderUnavailableError),
    ],
)
async def test_refusals_have_their_class(clock, status, error, kind):
    async with Talk(clock, Provider(any=reply({"error": error}, status))) as client:
        with pytest.raises(kind) as caught:
            await client.create_task(USER, {})
    assert type(caught.value) is kind
    assert caught.value.provider == PROVIDER
    assert caught.value.endpoint == f"POST /v1/user/{USER}/task"


async def test_a_read_is_repeated(clock):
    provider = Provider(any=[text("", 503), reply(TASK_JSON)])
    async with Talk(clock, provider) as client:
        await client.get_task(USER, TASK)
    assert len(provider.seen) == 2


async def test_a_cancellation_is_sent_once_and_its_words_come_back(clock):
    provider = Provider(any=text(f"task {TASK} cancelled"))
    async with Talk(clock, provider) as client:
        assert await client.cancel_task(USER, TASK, "0x12") == f"task {TASK} cancelled"
    assert provider.seen == [("POST", f"/v1/user/{USER}/task/{TASK}/cancel", {"signature": "0x12"})]


async def test_a_log_is_read_with_replacement(clock):
    provider = Provider(any=lambda: web.Response(body=b"creating task....\n\xff\n"))
    async with Talk(clock, provider) as client:
        assert await client.get_log(USER, TASK) == "creating task....\n\ufffd\n"
        assert await client.get_log_bytes(USER, TASK) == b"creating task....\n\xff\n"


async def test_a_log_over_the_cap_is_cut(clock, monkeypatch):
    monkeypatch.setattr("zg_async.wire.provider_api.LOG_LIMIT", 1000)
    async with Talk(clock, Provider(any=text("x" * 5000))) as client:
        assert len(await client.get_log_bytes(USER, TASK)) == 1000


async def test_a_missing_log_is_empty_where_that_is_enough(clock):
    provider = Provider(any=reply({"error": "Failed to read log file. Please ensure the task is running"}, 500))
    async with Talk(clock, provider) as client:
        assert await client.get_log_or_empty(USER, TASK) == ""
        with pytest.raises(ProviderUnavailableError):
            await client.get_log(USER, TASK)


async def test_a_quote_comes_as_it_is(clock):
    provider = Provider(any=lambda: web.Response(text='{"quote": "ab"}', headers={"ZG-Quote-Signature": "0x1"}))
    async with Talk(clock, provider) as client:
        quote = await client.get_quote()
        await client.get_quote(legacy=False)
    assert (quote.body, quote.headers["zg-quote-signature"]) == (b'{"quote": "ab"}', "0x1")
    assert [path for _, path, _ in provider.seen] == ["/v1/quote?legacy=true", "/v1/quote?legacy=false"]


async def test_a_quote_is_limited_in_size(clock):
    async with Talk(clock, Provider(any=text("x" * (4 * 2**20 + 1)))) as client:
        with pytest.raises(ProviderReplyError, match="more than"):
            await client.get_quote()


async def test_the_queue_length_is_a_number(clock):
    async with Talk(clock, Provider(any=[text("3"), text("many")])) as client:
        assert await client.pending() == 3
        with pytest.raises(ProviderReplyError):
            await client.pending()


async def test_models_are_looked_up_by_hash_because_names_may_read_as_hex(clock):
    provider = Provider(any=[reply([MODEL_JSON]), reply(MODEL_JSON)])
    async with Talk(clock, provider) as client:
        assert (await client.model("deepseek-r1")).hash == HASH
    assert [path for _, path, _ in provider.seen] == ["/v1/model", f"/v1/model/{HASH}"]


async def test_a_usage_document_is_saved_whole(clock, tmp_path):
    provider = Provider(any=[reply([MODEL_JSON]), lambda: web.Response(body=b"PK zip")])
    async with Talk(clock, provider) as client:
        saved = await client.model_usage("deepseek-r1", tmp_path)
        assert await client.model_usage(HASH, tmp_path / "own.zip") == tmp_path / "own.zip"
    assert saved == tmp_path / "deepseek-r1.zip"
    assert saved.read_bytes() == b"PK zip"
    assert sorted(os.listdir(tmp_path)) == ["deepseek-r1.zip", "own.zip"]
    assert provider.seen[1][1] == f"/v1/model/desc/{HASH}"


@pytest.mark.parametrize("name", ["../../evil", "a/b", "..", "x" * 300, "a\x1bb"])
async def test_a_models_name_never_leads_out_of_the_folder(clock, tmp_path, name):
    provider = Provider(any=[reply([]), lambda: web.Response(body=b"PK zip")])
    async with Talk(clock, provider) as client:
        saved = await client.model_usage(name, tmp_path)
    assert saved.parent == tmp_path
    assert os.listdir(tmp_path) == [saved.name]


async def test_a_refused_usage_document_leaves_nothing(clock, tmp_path):
    provider = Provider(any=[reply([]), reply({"error": "Model Qwen not found"}, 400)])
    async with Talk(clock, provider) as client:
        with pytest.raises(ProviderRejectedError, match="not found"):
            await client.model_usage("Qwen", tmp_path / "x.zip")
        with pytest.raises(ConfigError):
            await client.model_usage(HASH, tmp_path / "none" / "x.zip")
    assert os.listdir(tmp_path) == []
