import json

import aiohttp
import anyio
import pytest

from tests.devnet.provider_kit import User, add_task, key_of, stub_provider
from zg_async.wire.records import TaskProgress

_ID = "de594986-253d-43d5-8ae4-6349207282db"
_MODEL = bytes(range(256)) * 20


async def _read_into(got, reply):
    async for piece in reply.content.iter_any():
        got += piece


@pytest.fixture
async def served(tmp_path, clock):
    async with stub_provider(tmp_path, clock) as (node, _, session):
        user = User(key_of("alice"), session, node.url, clock)
        await add_task(node, user, _ID, TaskProgress.DELIVERED)
        node.files.encrypted(_ID).write_bytes(_MODEL)
        yield node, user


async def test_latency_is_added_to_every_answer(served, clock):
    node, user = served
    node.faults.latency = 3.0
    await user.get("/v1/model")
    assert clock.slept == [3.0]


async def test_a_dropped_request_has_no_effect(served):
    node, user = served
    node.faults.drop = 1
    with pytest.raises(aiohttp.ClientConnectionError):
        await user.upload()
    assert not list(node.files.folder.glob("datasets/*/*"))
    assert (await user.upload())[0] == 200


async def test_a_lost_answer_leaves_its_effect(served):
    node, user = served
    node.store.forget()
    node.faults.lose_answer, node.faults.path = 1, "/task"
    with pytest.raises(aiohttp.ClientConnectionError):
        await user.create("0x" + "ab" * 32)
    assert len(json.loads((await user.get(f"/v1/user/{user.address}/task"))[1])) == 1


@pytest.mark.parametrize(
    ("fault", "status", "text"),
    [("error_5xx", 500, "Internal Server Error"), ("too_many", 429, "Too many requests. Please try again later.")],
)
async def test_an_error_is_answered_as_often_as_asked(served, fault, status, text):
    node, user = served
    setattr(node.faults, fault, 2)
    for _ in range(2):
        got, body, _ = await user.get("/v1/model")
        assert (got, json.loads(body)) == (status, {"error": text})
    assert (await user.get("/v1/model"))[0] == 200


async def test_a_fault_with_a_path_spares_the_others(served):
    node, user = served
    node.faults.error_5xx, node.faults.path = -1, "/lora"
    assert (await user.get("/v1/model"))[0] == 200
    assert (await user.download(_ID))[0] == 500


async def test_a_download_is_refused_with_503(served):
    node, user = served
    node.faults.lora_503 = 1
    assert [(await user.download(_ID))[0] for _ in range(2)] == [503, 200]


async def test_a_cut_download_ends_after_some_bytes(served):
    node, user = served
    node.faults.cut_download, node.faults.cut_bytes = 1, 1000
    got = bytearray()
    url = f"{user.base()}/task/{_ID}/lora"
    async with user.session.post(url, json=user.download_body(_ID)) as reply:
        assert reply.content_length == len(_MODEL)
        with pytest.raises(aiohttp.ClientPayloadError):
            await _read_into(got, reply)
    assert bytes(got) == _MODEL[:1000]
    status, rest, _ = await user.download(_ID, headers={"Range": "bytes=1000-"})
    assert (status, bytes(got) + rest) == (206, _MODEL)


async def test_a_stalled_download_sends_no_more_and_stays_open(served):
    node, user = served
    node.faults.stall_download = 1
    url = f"{user.base()}/task/{_ID}/lora"
    async with user.session.post(url, json=user.download_body(_ID)) as reply:
        assert await reply.content.readexactly(1000) == _MODEL[:1000]
        with pytest.raises(TimeoutError), anyio.fail_after(0.05):
            await reply.content.readany()
        assert not reply.content.at_eof()


async def test_a_wrong_hash_comes_from_one_changed_byte(served):
    node, user = served
    node.faults.wrong_hash = 1
    _, body, _ = await user.download(_ID)
    assert sum(a != b for a, b in zip(body, _MODEL, strict=True)) == 1
    assert (await user.download(_ID))[1] == _MODEL


async def test_a_wrong_dataset_hash_is_named_but_not_stored(served):
    node, user = served
    node.faults.wrong_dataset_hash = 1
    assert (await user.upload())[1]["datasetHash"] == "0x" + "ee" * 32
    assert not list(node.files.folder.glob("datasets/*/0xee*"))


@pytest.mark.parametrize(("skew", "status"), [(301.0, 401), (-61.0, 401), (300.0, 200), (-60.0, 200)])
async def test_a_stale_clock_refuses_fresh_signatures(served, skew, status):
    node, user = served
    node.faults.stale_clock = skew
    assert (await user.upload())[0] == status


async def test_a_full_queue_is_said_to_be_full(served):
    node, user = served
    node.store.forget()
    node.faults.queue_full = 1
    status, answer = await user.create("0x" + "ab" * 32)
    assert (status, answer) == (409, {"error": "register service: task queue is full"})
    assert (await user.create("0x" + "ab" * 32))[0] == 201


async def test_lost_state_forgets_every_task(served):
    node, user = served
    node.store.forget()
    assert (await user.get(f"/v1/user/{user.address}/task/{_ID}"))[0] == 404
    assert json.loads((await user.get(f"/v1/user/{user.address}/task"))[1]) == []


async def test_a_restart_reads_its_tasks_from_disk_and_fails_them(served):
    node, user = served
    node.store.forget()
    await node.restart()
    assert (await user.task(_ID))["progress"] == "Failed"
    assert user.url == node.url
