"""What providers answer, word for word, beside what calls return."""

import ast
import json
from pathlib import Path

import anyio
import pytest

import zg_async
from tests.devnet.conftest import MODEL, PARAMS
from zg_async import TaskNotFoundError, raw_replies
from zg_async.transport.raw import KEPT
from zg_async.wire.hashing import hex0x, keccak256

PACKAGE = Path(zg_async.__file__).parent


def test_all_http_but_the_chains_passes_one_place():
    sends = {
        (path.relative_to(PACKAGE).as_posix(), call.func.attr)
        for path in PACKAGE.rglob("*.py")
        if path.relative_to(PACKAGE).parts[0] != "devnet"
        for call in ast.walk(ast.parse(path.read_text()))
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute)
        if isinstance(call.func.value, ast.Attribute) and call.func.value.attr in ("session", "_session")
    }
    assert sends - {("transport/http.py", "close")} == {("transport/http.py", "request"), ("transport/rpc.py", "post")}


async def kept(call):
    """Return what a call returns, and the last reply it got."""
    with raw_replies() as replies:
        value = await call
    for reply in replies:
        assert 200 <= reply.status < 600
        assert reply.headers["Content-Type"]
        assert len(reply.body) == min(reply.size, KEPT)
    return value, replies[-1]


@pytest.mark.slow
@pytest.mark.goal("TX-07")
async def test_each_call_of_a_provider_leaves_its_reply_beside_its_value(broker, provider, dataset, tmp_path):
    tuning, inference = broker.fine_tuning, broker.inference
    await broker.ledger.ensure_funded(provider, "fine-tuning", "1")
    await broker.ledger.ensure_funded(provider, "inference", "2")

    async def stream():
        async with inference.chat_stream(provider, "Hello", max_tokens=2) as chunks:
            return [chunk async for chunk in chunks], await chunks.answer()

    uploaded, reply = await kept(tuning.upload_dataset_to_tee(provider, dataset))
    assert reply.endpoint.startswith("POST /")
    assert uploaded.dataset_hash in reply.body.decode()
    task, reply = await kept(tuning.create_task(provider, MODEL, uploaded.dataset_hash, PARAMS))
    assert (reply.endpoint.split()[0], json.loads(reply.body)["id"]) == ("POST", task)
    seen, reply = await kept(tuning.get_task(provider, task))
    assert json.loads(reply.body)["id"] == seen.id
    listed, reply = await kept(tuning.list_task(provider))
    assert [row["id"] for row in json.loads(reply.body)] == [one.id for one in listed]
    _, reply = await kept(tuning.verify_service(provider, tmp_path))
    assert json.loads(reply.body)["quote"]
    await tuning.wait_task(provider, task)
    log, reply = await kept(tuning.get_log(provider, task))
    assert reply.body.decode() == log
    model, reply = await kept(tuning.download_model(provider, task, tmp_path / "model"))
    assert (reply.size, hex0x(keccak256(reply.body))) == (model.size, model.root_hash)
    with raw_replies() as replies, pytest.raises(TaskNotFoundError):
        await tuning.get_task(provider, "00000000-0000-4000-8000-000000000000")
    assert (replies[-1].status, len(replies[-1].body) > 0) == (404, True)
    with raw_replies() as replies:
        deltas, _ = await stream()
    assert any(reply.body.count(b"data:") >= len(deltas) > 0 for reply in replies)
    with raw_replies() as replies:
        answer = await inference.chat(provider, "Hello", max_tokens=2)
    reply = next(reply for reply in replies if reply.endpoint.endswith("/chat/completions"))
    assert (reply.request_id, reply.status) == (answer.response_key, 200)
    assert json.loads(reply.body)["choices"][0]["message"]["content"] == answer.content


@pytest.mark.slow
async def test_a_block_hears_its_own_calls_only_and_none_after_its_end(broker, provider, task):
    async def other():
        with raw_replies() as replies:
            await broker.fine_tuning.list_task(provider)
        assert len(replies) == 1

    with raw_replies() as outer:
        async with anyio.create_task_group() as group:
            with raw_replies() as inner:
                group.start_soon(other)
                await broker.fine_tuning.get_task(provider, task)
            await broker.fine_tuning.get_task(provider, task)
        watch = broker.fine_tuning.watch_task(provider, task)  # its poller is a task of the broker
        await anext(watch)
    before = len(outer)
    await anext(watch)
    await watch.aclose()
    await broker.fine_tuning.get_task(provider, task)
    assert len(outer) == before
    assert len(inner) < len(outer)
    assert {reply.provider for reply in outer} == {provider}
