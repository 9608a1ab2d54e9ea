import base64
import json
import uuid

import aiohttp
import pytest

from tests.clock import FakeClock
from tests.devnet.provider_kit import DATASET, TEE_KEY, User, add_task, key_of, stub_provider, vectors
from zg_async.devnet.chain_client import address_of
from zg_async.devnet.provider_settings import CustomModel
from zg_async.wire.hashing import hex0x, keccak256
from zg_async.wire.records import TaskProgress
from zg_async.wire.signing import dataset_upload_hash, eip191_hash, recover_address

_FROZEN = 1767225600.0
_ID = "de594986-253d-43d5-8ae4-6349207282db"
_OTHER_ID = "00000000-0000-4000-8000-000000000001"


@pytest.fixture
async def served(tmp_path, clock):
    async with stub_provider(tmp_path, clock) as (node, chain, session):
        yield node, chain, User(key_of("alice"), session, node.url, clock)


# --- the whole table ---


@pytest.mark.parametrize("peer", ["typescript", "python"])
async def test_requests_that_both_official_sdks_sent_are_answered(tmp_path, peer):
    keys, captured = vectors()["keys"], vectors()["wire_captures"][peer]
    alice = bytes.fromhex(keys["alice"]["private_key"][2:])
    clock = FakeClock(_FROZEN)
    async with stub_provider(tmp_path, clock) as (node, _, session):
        user = User(alice, session, node.url, clock)
        task = await add_task(node, user, _ID, TaskProgress.DELIVERED)
        await node.log(task.id, "creating task....")
        node.files.encrypted(task.id).write_bytes(b"model")
        for request in captured:
            if request["path"].endswith("/task") and request["method"] == "POST":
                node.store.forget()  # one unfinished task per user
            elif node.store.get(task.id) is None:
                await node.store.add(task)
            task.progress = TaskProgress.INIT if request["path"].endswith("/cancel") else TaskProgress.DELIVERED
            status, _ = await _replay(session, node.url, request)
            assert status == (201 if request["path"].endswith("/task") and request["method"] == "POST" else 200), (
                request
            )


async def _replay(session, url, request):
    extra = {}
    if "json" in request:
        extra["json"] = request["json"]
    if "parts" in request:
        form = extra["data"] = aiohttp.FormData()
        for part in request["parts"]:
            if "filename" in part:
                data = base64.b64decode(part["content_base64"])
                form.add_field(part["name"], data, filename=part["filename"], content_type=part["content_type"])
            else:
                form.add_field(part["name"], part["value"])
    async with session.request(request["method"], url + request["path"], **extra) as reply:
        return reply.status, await reply.read()


@pytest.mark.parametrize("path", ["/", "/v2/quote", "/v1/nothing", f"/v1/user/0x1/task/{_ID}/nothing"])
async def test_unknown_routes_get_the_frameworks_404(served, path):
    status, body, _ = await served[2].get(path)
    assert (status, body) == (404, b"404 page not found")


async def test_a_wrong_method_gets_404_too(served):
    _, _, user = served
    assert (await user.post(f"{user.url}/v1/task/pending"))[0] == 404


# --- quote, rate limit ---


async def test_the_quote_is_signed_over_its_exact_bytes(served):
    status, body, headers = await served[2].get("/v1/quote")
    assert (status, headers["Content-Type"]) == (200, "text/plain; charset=utf-8")
    signature = bytes.fromhex(headers["ZG-Quote-Signature"][2:])
    assert recover_address(eip191_hash(keccak256(body)), signature) == address_of(TEE_KEY)


@pytest.mark.parametrize(
    ("query", "is_legacy"), [("", True), ("?legacy=true", True), ("?legacy=x", True), ("?legacy=0", False)]
)
async def test_the_legacy_parameter_chooses_the_layout(served, query, is_legacy):
    _, body, _ = await served[2].get(f"/v1/quote{query}")
    data = base64.b64decode(json.loads(body)["report_data"])
    assert data.startswith(b"0x") is is_legacy
    if not is_legacy:
        assert data[32:52].hex() == address_of(TEE_KEY)[2:].lower()
        assert data[52:] == b"\0\0\0\x01" + bytes(8)


async def test_quote_upload_and_download_share_one_bucket(served, clock):
    node, _, user = served
    node.settings.rate_limit = True
    assert (await user.get("/v1/quote"))[0] == 200
    assert (await user.upload())[0] == 200
    status, body, headers = await user.download(_ID)
    assert (status, json.loads(body)) == (429, {"error": "Too many requests. Please try again later."})
    assert "Retry-After" not in headers
    assert (await user.get("/v1/model"))[0] == 200
    clock.advance(9.9)
    assert (await user.get("/v1/quote"))[0] == 429
    clock.advance(0.1)
    assert (await user.get("/v1/quote"))[0] == 200


async def test_the_bucket_belongs_to_the_forwarded_address(served):
    node, _, user = served
    node.settings.rate_limit = True
    for headers in ({"X-Forwarded-For": "9.9.9.9, 1.1.1.1"}, {"X-Forwarded-For": "9.9.9.9"}, {"X-Real-IP": "8.8.8.8"}):
        assert (await user.get("/v1/quote", headers=headers))[0] == 200
    assert (await user.get("/v1/quote", headers={"X-Forwarded-For": "9.9.9.9"}))[0] == 429
    assert (await user.get("/v1/quote"))[0] == 200


# --- datasets ---


async def test_an_upload_is_named_by_keccak_of_its_bytes(served):
    node, _, user = served
    status, answer = await user.upload()
    assert (status, answer["datasetHash"]) == (200, hex0x(keccak256(DATASET)))
    assert len(node.files.rows(user.address, answer["datasetHash"])) == 12


async def test_uploads_are_found_under_any_spelling_of_the_address(served):
    node, _, user = served
    for spelling in (user.address.lower(), user.address[2:], user.address[2:].upper()):
        status, answer = await user.upload(address=spelling)
        assert status == 200
        assert node.files.rows(user.address, answer["datasetHash"])


@pytest.mark.parametrize(
    ("changes", "status", "text"),
    [
        ({"signature": ""}, 401, "Signature is required"),
        ({"timestamp": "", "signature": "0x00"}, 401, "Timestamp is required"),
        ({"timestamp": "soon"}, 400, "Invalid timestamp format"),
        (
            {"timestamp": "1799999699"},
            401,
            "Authentication failed: timestamp is too old: 301 seconds ago (max 300 seconds)",
        ),
        (
            {"timestamp": "1800000061"},
            401,
            "Authentication failed: timestamp is too far in the future: 61 seconds ahead",
        ),
        ({"signature": "0x12"}, 401, "Authentication failed: invalid signature length 1, expected 65"),
        ({"signature": "0x" + "00" * 65}, 401, "Authentication failed: recover public key from signature"),
        ({"address": "0x12"}, 401, "Authentication failed: invalid user address format"),
        ({"name": None}, 400, "No file provided"),
        ({"name": "rows.csv"}, 400, "Invalid file type. Only JSONL/JSON files are allowed"),
        ({"name": "a/rows.jsonl"}, 400, "save dataset: invalid filename"),
        ({"data": b'{"a":1}\n\n[1]\n'}, 400, "save dataset: invalid JSONL format: line 3 is not valid JSON"),
        ({"data": b"\xef\xbb\xbf{}\n"}, 400, "line 1 is not valid JSON"),
    ],
)
async def test_refused_uploads_say_why(served, changes, status, text):
    got, answer = await served[2].upload(**changes)
    assert (got, text in answer["error"]) == (status, True), answer


async def test_another_wallets_signature_is_refused(served):
    _, _, user = served
    other = User(key_of("bob"), user.session, user.url, FakeClock())
    signature = other.sign(dataset_upload_hash(user.address, 1800000000))
    status, answer = await user.upload(signature=signature)
    assert status == 401
    assert f"expected {user.address}, got {other.address}" in answer["error"]


@pytest.mark.parametrize("timestamp", ["1799999700", "1800000060"])
async def test_timestamps_at_the_edges_pass(served, timestamp):
    assert (await served[2].upload(timestamp=timestamp))[0] == 200


async def test_the_size_limit_counts_the_files_bytes(served):
    node, _, user = served
    node.settings.maximum_dataset_bytes = len(DATASET)
    assert (await user.upload())[0] == 200
    assert await user.upload(DATASET + b"\n") == (400, {"error": "File too large. Maximum size is 100MB"})


@pytest.mark.parametrize("data", [b"", b" \n\t\r\n", b"null\n"], ids=["empty", "blank", "null"])
async def test_what_the_broker_takes_by_accident_is_taken(served, data):
    assert (await served[2].upload(data))[0] == 200


async def test_upload_without_a_form_lacks_its_signature(served):
    _, _, user = served
    assert await user.post(f"{user.base()}/dataset", json={}) == (401, {"error": "Signature is required"})


# --- creating ---

_PREFIX = "register service: "


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"signature": ""}, "bind service: Key: 'Task.Signature' Error:Field validation"),
        ({"fee": ""}, "'Fee' failed on the 'required' tag"),
        ({"nonce": 5}, "cannot unmarshal value into Go struct field Task.nonce of type string"),
        ({"userAddress": "0x12"}, 'userAddress "0x12" is not a valid hex address'),
        ({"preTrainedModelHash": "0x" + "00" * 32}, _PREFIX + "unsupported model: not found in predefined models"),
        ({"trainingParams": "{"}, _PREFIX + "invalid training params JSON format"),
    ],
)
async def test_refused_creations_say_why(served, changes, text):
    status, answer = await served[2].create("0x" + "ab" * 32, **changes)
    assert (status, text in answer["error"]) == (400, True), answer


async def test_a_body_that_isnt_json_is_refused(served):
    _, _, user = served
    status, answer = await user.post(f"{user.base()}/task", data=b"{")
    assert (status, answer["error"].startswith("bind service: ")) == (400, True)


async def test_the_creation_checks_keep_their_order(served):
    node, chain, user = served
    node.settings.supported_predefined_models = ("0xother",)
    chain.account["acknowledged"], chain.approved = False, False
    other = User(key_of("bob"), user.session, user.url, FakeClock())
    await add_task(node, user, _ID, TaskProgress.INIT)
    for _ in range(6):
        await add_task(node, other, str(uuid.uuid4()), TaskProgress.INIT)

    async def refusal(**changes):
        status, answer = await user.create("0x" + "ab" * 32, wait=False, **changes)
        return status, answer["error"].removeprefix(_PREFIX)

    bad_params = {"trainingParams": "{}"}
    assert await refusal(**bad_params) == (400, "unsupported model: not in provider's supported model list")
    node.settings.supported_predefined_models = ()
    assert (await refusal(**bad_params))[1].startswith("training config missing required parameter")
    assert await refusal() == (400, "service TEE signer has not been acknowledged by 0G team")
    chain.approved = True
    assert (await refusal())[1].startswith("user has not acknowledged the provider's TEE signer")
    chain.account["acknowledged"] = True
    assert await refusal() == (400, "cannot create a new task while there is an unfinished task")
    node.store.get(_ID).progress = TaskProgress.FAILED
    assert await refusal() == (409, "task queue is full")
    node.settings.max_task_queue_size = 6
    assert await refusal() == (409, "cannot create a new task while there are in-progress tasks")
    assert (await user.create("0x" + "ab" * 32, wait=True))[0] == 201


async def test_signature_nonce_and_balance_are_not_looked_at_yet(served):
    _, chain, user = served
    chain.account |= {"balance": 0, "nonce": 10**30}
    assert (await user.create("0x" + "ab" * 32, signature="junk", nonce="x"))[0] == 201


async def test_a_tasks_json_has_the_brokers_fields(served):
    _, _, user = served
    body = user.task_body("0x" + "ab" * 32)
    _, answer = await user.post(f"{user.base()}/task", json=body)
    task = await user.task(answer["id"])
    assert task == {
        "id": answer["id"],
        "createdAt": "2027-01-15T08:00:00.000000Z",
        "updatedAt": "2027-01-15T08:00:00.000000Z",
        **{k: v for k, v in body.items() if k != "wait"},
        "fee": "0",
        "progress": "Init",
        "deliverIndex": 0,
        "deliverTime": 0,
        "modelType": 0,
        "wait": False,
    }


# --- reading ---


async def test_lists_are_newest_first_and_per_user(served, clock):
    node, _, user = served
    for number in (_ID, _OTHER_ID):
        clock.advance(1)
        await add_task(node, user, number, TaskProgress.FAILED)

    async def ids(query="", address=user.address):
        return [task["id"] for task in json.loads((await user.get(f"/v1/user/{address}/task{query}"))[1])]

    assert await ids() == [_OTHER_ID, _ID]
    assert await ids("?order=ASC") == [_ID, _OTHER_ID]
    assert await ids("?latest=true") == [_OTHER_ID]
    assert await ids("?latest=true&order=asc") == [_ID]
    assert await ids(address=user.address.lower()) == [_OTHER_ID, _ID]
    assert await ids(address="0x" + "00" * 20) == await ids(address="nobody") == []


async def test_a_task_is_read_under_any_address(served):
    node, _, user = served
    await add_task(node, user, _ID, TaskProgress.INIT)
    assert (await user.get(f"/v1/user/nobody/task/{_ID}"))[0] == 200
    assert json.loads((await user.get(f"/v1/user/x/task/{_OTHER_ID}"))[1]) == {
        "error": f"get task: task {_OTHER_ID} not found"
    }
    status, body, _ = await user.get("/v1/user/x/task/7")
    assert (status, b"parse task id: " in body) == (400, True)


async def test_pending_counts_all_users_tasks_until_training_has_ended(served):
    node, _, user = served
    for progress in TaskProgress:
        await add_task(node, user, str(uuid.uuid4()), progress)
    assert (await user.get("/v1/task/pending"))[1] == b"4"


async def test_a_log_is_shown_to_its_owners_address(served):
    node, _, user = served
    await add_task(node, user, _ID, TaskProgress.INIT)
    path = f"/v1/user/{user.address.lower()}/task/{_ID}/log"
    status, body, _ = await user.get(path)
    assert (status, json.loads(body)) == (500, {"error": "Failed to read log file. Please ensure the task is running"})
    await node.log(_ID, "creating task....")
    status, body, headers = await user.get(path)
    assert (status, body) == (200, b"[2027-01-15T08:00:00Z] creating task....\n")
    assert headers["Content-Length"] == str(len(body))
    assert (await user.get(f"/v1/user/0x{'00' * 20}/task/{_ID}/log"))[0] == 403
    assert (await user.get(f"/v1/user/{user.address}/task/{_OTHER_ID}/log"))[0] == 404


async def test_models_are_the_customised_ones(served):
    node, _, user = served
    assert json.loads((await user.get("/v1/model"))[1]) == []
    node.settings.models = (CustomModel(name="tiny", hash="0x" + "bb" * 32, description="small"),)
    models = json.loads((await user.get("/v1/model"))[1])
    assert models[0] | {"name": "tiny", "dataType": "text", "description": "small"} == models[0]
    assert json.loads((await user.get("/v1/model/tiny"))[1]) == models[0]
    status, body, _ = await user.get("/v1/model/Qwen2.5-0.5B-Instruct")
    assert (status, json.loads(body)["error"]) == (400, "get model: Model Qwen2.5-0.5B-Instruct not found")


async def test_only_customised_models_have_a_usage_document(served):
    node, _, user = served
    node.settings.models = (CustomModel(name="tiny", hash="0x" + "bb" * 32),)
    status, body, headers = await user.get("/v1/model/desc/tiny")
    assert (status, body[:2], headers["Content-Disposition"]) == (200, b"PK", "attachment; filename=tiny.zip")
    assert (await user.get("/v1/model/desc/mock-model"))[0] == 400


async def test_the_mock_model_is_told_to_who_asks_for_it(served):
    assert json.loads((await served[2].get("/v1/model/mock-model"))[1])["hash"].startswith("0xcb42b5ca")


# --- cancelling ---


@pytest.mark.parametrize("progress", TaskProgress)
async def test_a_task_is_cancelled_before_training_only(served, progress):
    node, _, user = served
    task = await add_task(node, user, _ID, progress)
    status, answer = await user.cancel(_ID)
    if progress in ("Init", "SettingUp", "SetUp"):
        assert (status, answer, task.progress) == (200, f"task {_ID} cancelled".encode(), "Failed")
    else:
        text = f"cancel task: task cannot be cancelled in its current state ({progress})"
        assert (status, answer) == (409, {"error": text})


async def test_cancelling_checks_signature_existence_and_owner_in_this_order(served):
    node, _, user = served
    other = User(key_of("bob"), user.session, user.url)
    await add_task(node, other, _ID, TaskProgress.INIT)
    assert (await user.cancel(_OTHER_ID, signature="0x" + "11" * 65))[0] == 401
    assert await user.cancel(_OTHER_ID) == (404, {"error": f"cancel task: task {_OTHER_ID} not found"})
    assert await user.cancel(_ID) == (403, {"error": "cancel task: task does not belong to this user"})


async def test_a_body_that_must_bind_is_refused_as_text(served):
    _, _, user = served
    for route in ("cancel", "lora"):
        async with user.session.post(f"{user.base()}/task/{_ID}/{route}", data=b"{}") as reply:
            assert (reply.status, reply.content_type) == (400, "text/plain")
            assert "error" in json.loads(await reply.read())


# --- downloading ---


@pytest.mark.parametrize("progress", TaskProgress)
async def test_a_model_is_downloadable_once_delivered(served, progress):
    node, _, user = served
    await add_task(node, user, _ID, progress)
    node.files.encrypted(_ID).write_bytes(b"model")
    status, body, headers = await user.download(_ID)
    if progress in ("Delivered", "UserAcknowledged", "Finished"):
        assert (status, body) == (200, b"model")
        assert headers["Content-Disposition"] == f"attachment; filename=lora_encrypted_{_ID}.data"
    else:
        text = "get LoRA model: task is not ready for download. Please wait for 'Delivered' status"
        assert (status, json.loads(body)) == (409, {"error": text})


async def test_download_refusals_keep_their_order(served):
    node, _, user = served
    other = User(key_of("bob"), user.session, user.url)
    await add_task(node, other, _ID, TaskProgress.DELIVERED)
    url = f"{user.base()}/task/{_OTHER_ID}/lora"
    status, answer = await user.post(url, json=user.download_body(_OTHER_ID, 1799999699))
    assert (status, answer["error"]) == (
        401,
        "authentication failed: timestamp is too old: 301 seconds ago (max 300 seconds)",
    )
    status, answer = await user.post(url, json=user.download_body(_ID))
    assert (status, answer["error"].startswith("authentication failed: ")) == (401, True)
    assert (await user.download(_OTHER_ID))[0] == 404
    assert (await user.download(_ID))[0] == 403


async def test_a_missing_file_is_503_without_a_word(served):
    node, _, user = served
    await add_task(node, user, _ID, TaskProgress.DELIVERED)
    status, body, _ = await user.download(_ID)
    assert (status, json.loads(body)) == (503, {"error": "Service Unavailable"})


@pytest.mark.parametrize(
    ("asked", "status", "part", "content_range"),
    [
        ("bytes=0-", 206, slice(0, None), "bytes 0-9/10"),
        ("bytes=4-", 206, slice(4, None), "bytes 4-9/10"),
        ("bytes=2-5", 206, slice(2, 6), "bytes 2-5/10"),
        ("bytes=8-99", 206, slice(8, None), "bytes 8-9/10"),
        ("bytes=-3", 206, slice(7, None), "bytes 7-9/10"),
        ("bytes=10-", 416, None, "bytes */10"),
        ("bytes=5-2", 416, None, "bytes */10"),
    ],
)
async def test_downloads_are_resumed_by_range(served, asked, status, part, content_range):
    node, _, user = served
    await add_task(node, user, _ID, TaskProgress.DELIVERED)
    node.files.encrypted(_ID).write_bytes(b"0123456789")
    whole = (await user.download(_ID))[2]
    got, body, headers = await user.download(_ID, headers={"Range": asked, "If-Range": '"other"'})
    assert (got, headers["Content-Range"]) == (status, content_range)
    if part is not None:
        assert body == b"0123456789"[part]
        assert headers["Last-Modified"] == whole["Last-Modified"]
