"""The devnet's inference provider over real sockets: sessions, chat, bills, signatures, adapters."""

import dataclasses
import hashlib
import io
import json
from pathlib import Path
from typing import Any

import anyio
import pytest

from tests.clock import FakeClock
from tests.devnet.inference_kit import (
    ANSWER,
    MODEL,
    NAME,
    OG,
    OTHER,
    OTHER_KEY,
    PROVIDER,
    PROVIDER_KEY,
    QUESTION,
    TASK,
    TEE,
    USER,
    USER_KEY,
    Client,
    MemoryChain,
    fine_tuned_model,
    serving,
    session,
)
from zg_async.devnet.inference import InferenceSettings
from zg_async.devnet.inference_auth import Sessions, check_provider, provider_headers
from zg_async.wire.hashing import keccak256
from zg_async.wire.inference_api import InvalidTokenError, parse_additional_info
from zg_async.wire.records import TaskId
from zg_async.wire.signing import eip191_hash, personal_text_hash, recover_address, tee_settlement_digest

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "inference.json").read_text())
CHAT = "/v1/proxy/chat/completions"
Tuned = tuple[Path, bytes]
MESSAGES = [{"role": "user", "content": QUESTION}]


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Tuned:
    return fine_tuned_model(tmp_path_factory.mktemp("tuned"))


@pytest.fixture
async def client(tmp_path: Path, clock: FakeClock):
    async with serving(tmp_path, clock) as opened:
        yield opened


@pytest.fixture
async def lora(tmp_path: Path, clock: FakeClock, tuned: Tuned):
    """A provider that holds the key of one acknowledged model but hasn't looked yet."""
    async with serving(tmp_path, clock, tuned[0]) as opened:
        await opened.hand_key_over(tuned[1])
        opened.chain.acknowledge()
        yield opened


# --- public routes ---


async def test_the_quote_names_the_signer_and_is_signed_by_it(client: Client) -> None:
    async with client.http.get(f"{client.node.url}/v1/quote") as reply:
        body, signature = await reply.read(), reply.headers["ZG-Quote-Signature"]
        assert reply.content_type == "text/plain"
    assert recover_address(eip191_hash(keccak256(body)), bytes.fromhex(signature[2:])) == TEE
    assert set(json.loads(body)) >= {"quote", "event_log", "report_data", "vm_config", "tcb_info"}


async def test_models_and_capabilities_are_public(client: Client) -> None:
    status, models = await client.get("/v1/models")
    assert (status, models["object"], [model["id"] for model in models["data"]]) == (200, "list", [MODEL])
    _, able = await client.get("/v1/capabilities")
    assert able["fine_tuning"] == {
        "supports_fine_tuned_adapters": True,
        "base_model": MODEL,
        "adapter_prefix": "ft-",
    }


async def test_additional_info_is_sorted_json_that_clients_read(client: Client) -> None:
    text = client.node.additional_info()
    assert list(json.loads(text)) == sorted(json.loads(text))
    assert parse_additional_info(text).tee_verifier == "dstack"


# --- sessions ---


@pytest.mark.parametrize("row", VECTORS["provider_token_checks"], ids=lambda row: row["id"])
async def test_session_vectors(row: dict[str, Any], clock: FakeClock) -> None:
    clock.advance(row["now_ms"] / 1000 - clock.now())
    chain, account = MemoryChain(), row["account"]
    if account["exists"]:
        fields = {"generation": account["generation"], "revoked_bitmap": int(account["revoked_bitmap"])}

        class Everybody(dict):
            def get(self, key, default=None):
                return MemoryChain().open_account("any", **fields)

        chain.accounts = Everybody()
    sessions = Sessions(row["serving_provider"], chain, InferenceSettings(), clock)
    if row["expect"]["accepted"]:
        await sessions.user(row["authorization"])
    else:
        with pytest.raises(InvalidTokenError):
            await sessions.user(row["authorization"])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"provider": OTHER}, "session token is for different provider"),
        ({"expires_at_ms": 0}, "ephemeral token must have an expiration time"),
        ({"expires_at_ms": 1_800_000_000_000 + 86_400_001}, "ephemeral token duration cannot exceed 24 hours"),
        ({"timestamp_ms": 1_799_900_000_000, "expires_at_ms": 1_799_900_060_000}, "session token expired"),
        ({"generation": 3}, "session token has been revoked (generation expired)"),
        ({"generation": 5}, "invalid session token (future generation)"),
        ({"generation": 4, "token_id": 1}, "session token has been revoked"),
        ({"generation": 4, "address": OTHER}, "signature verification failed: address mismatch"),
    ],
)
async def test_bad_tokens_are_refused_in_the_literal_words(client: Client, changes: dict[str, Any], words: str) -> None:
    client.chain.open_account(USER, generation=4, revoked_bitmap=0b10)
    error = await client.refused(headers=session(**changes))
    assert error == f"Provider proxy: handle proxied service, validate session: {words}"


@pytest.mark.parametrize(
    ("header", "words"),
    [
        ("", "missing or invalid Authorization header"),
        ("Bearer other", "missing or invalid Authorization header"),
        ("Bearer app-sk-!!!", "invalid base64"),
    ],
)
async def test_malformed_headers_are_refused(client: Client, header: str, words: str) -> None:
    assert words in await client.refused(headers={"Authorization": header})


async def test_a_cached_token_outlives_its_revocation_for_the_set_time(client: Client, clock: FakeClock) -> None:
    client.node.settings.session_cache = 300
    headers = session()
    assert (await client.chat(headers=headers))[0] == 200
    client.chain.accounts[USER]["generation"] = 1
    assert (await client.chat(headers=headers))[0] == 200
    clock.advance(300)
    assert "generation expired" in await client.refused(headers=headers)


# --- chat ---


async def test_the_base_model_answers_with_usage_in_bytes(client: Client) -> None:
    status, body = await client.chat(model=MODEL)
    assert status == 200
    choice = body["choices"][0]
    assert (body["object"], body["model"], choice["message"]["role"]) == ("chat.completion", MODEL, "assistant")
    size = len(choice["message"]["content"].encode())
    prompt = len("S.") + len(QUESTION)
    assert body["usage"] == {"prompt_tokens": prompt, "completion_tokens": size, "total_tokens": prompt + size}
    assert choice["message"]["content"] != ANSWER
    assert (choice["finish_reason"], size) == ("length", 64)


async def test_max_tokens_bounds_the_answer(client: Client) -> None:
    _, body = await client.chat(max_tokens=5)
    assert body["usage"]["completion_tokens"] == 5


@pytest.mark.parametrize(
    "path",
    [
        "/v1/proxy/v1/chat/completions",
        "/v1/proxy/chat/completions/",
        "/v1/proxy/v1/chat/completions//",
    ],
)
async def test_other_spellings_of_the_path_work(client: Client, path: str) -> None:
    assert (await client.post(path, {"messages": MESSAGES, "max_tokens": 1}, session()))[0] == 200


@pytest.mark.parametrize("path", ["completions", "models", "embeddings", "chat", "v1"])
async def test_other_endpoints_are_not_supported(client: Client, path: str) -> None:
    status, body = await client.post(f"/v1/proxy/{path}", {}, session())
    assert (status, "endpoint not supported" in body["error"]) == (400, True)


async def test_a_model_of_another_name_is_refused_and_the_fifth_time_blocks(client: Client, clock: FakeClock) -> None:
    assert (await client.chat(model=f"Qwen/{MODEL}", max_tokens=1))[0] == 200
    for _ in range(5):
        assert "model not supported: requested gpt-4" in await client.refused(model="gpt-4")
    assert (await client.chat(max_tokens=1))[0] == 429
    clock.advance(3601)
    assert (await client.chat(max_tokens=1))[0] == 200


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda chain: chain.accounts.clear(), "account not exist"),
        (lambda chain: chain.open_account(USER, acknowledged=False, balance=0), "user not acknowledge the provider"),
        (lambda chain: chain.open_account(USER, balance=2 * OG, pending_refund=OG + 1), "insufficient balance"),
    ],
)
async def test_an_account_that_cant_pay_is_refused(client: Client, change: Any, words: str) -> None:
    change(client.chain)
    assert words in await client.refused()


async def test_an_unacknowledged_signer_is_refused_before_the_balance(client: Client) -> None:
    client.chain.register(client.node, acknowledged=False)
    client.chain.open_account(USER, balance=0)
    assert "service not acknowledge the tee signer" in await client.refused()


async def test_an_expired_model_answers_410(client: Client) -> None:
    client.node.settings.model_expired = True
    assert (await client.chat())[0] == 410


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"{", {"messages": []}, {"messages": [1]}, {"messages": MESSAGES, "max_tokens": 0}]
)
async def test_a_malformed_body_is_a_400(client: Client, body: Any) -> None:
    assert (await client.post(CHAT, body, session()))[0] == 400


@pytest.mark.slow
async def test_a_body_over_32_mib_is_a_413(client: Client) -> None:
    body = io.BytesIO(b" " * (32 * 2**20 + 2))
    async with client.http.post(client.node.url + CHAT, data=body, headers=session()) as reply:
        assert reply.status == 413


# --- streams ---


async def stream(client: Client, **fields: Any) -> tuple[list[dict[str, Any]], bytes, str]:
    body = {"messages": MESSAGES, "stream": True, **fields}
    async with client.http.post(client.node.url + CHAT, json=body, headers=session()) as reply:
        raw = await reply.read()
        assert reply.headers["Content-Type"] == "text/event-stream"
        response_id = reply.headers["ZG-Res-Key"]
    lines = [line[6:] for line in raw.decode().split("\n\n") if line]
    return [json.loads(line) for line in lines if line != "[DONE]"], raw, response_id


async def test_a_stream_ends_with_done_and_has_usage_when_asked(client: Client) -> None:
    chunks, raw, _ = await stream(client, stream_options={"include_usage": True})
    assert raw.endswith(b"data: [DONE]\n\n")
    assert chunks[-1]["choices"] == []
    text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks[:-1])
    assert chunks[-1]["usage"]["completion_tokens"] == len(text)
    assert chunks[-2]["choices"][0]["finish_reason"] == "length"


async def test_a_stream_without_usage_is_billed_by_words(client: Client) -> None:
    chunks, _, _ = await stream(client)
    assert not any("usage" in chunk for chunk in chunks)
    text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
    settings = client.node.settings
    words = len(QUESTION.split()) * settings.input_price + len(text.split()) * settings.output_price
    assert client.node.fees.unsettled(USER) == words


async def test_a_cut_stream_has_no_done_and_is_billed_whole(client: Client) -> None:
    client.node.settings.cut_stream = 1
    _, raw, _ = await stream(client, stream_options={"include_usage": True})
    assert b"[DONE]" not in raw
    price = client.node.settings
    assert client.node.fees.unsettled(USER) == len(QUESTION) * price.input_price + 64 * price.output_price


# --- signatures ---


async def signed(client: Client, **fields: Any) -> tuple[bytes, bytes, str]:
    request = json.dumps({"messages": MESSAGES, "max_tokens": 3, **fields}).encode()
    async with client.http.post(client.node.url + CHAT, data=request, headers=session()) as reply:
        return request, await reply.read(), reply.headers["ZG-Res-Key"]


@pytest.mark.parametrize("streams", [False, True])
async def test_the_signature_covers_request_and_response_as_sent(client: Client, streams: bool) -> None:
    request, response, response_id = await signed(client, stream=streams)
    status, body = await client.get(f"/v1/proxy/signature/{response_id.upper()}?model={MODEL}")
    assert status == 200
    assert body["text"] == f"{hashlib.sha256(request).hexdigest()}:{hashlib.sha256(response).hexdigest()}"
    assert recover_address(personal_text_hash(body["text"]), bytes.fromhex(body["signature"][2:])) == TEE
    assert (body["signing_address"], body["signing_algo"]) == (TEE, "ecdsa")


async def test_a_signature_is_kept_for_20_minutes(client: Client, clock: FakeClock) -> None:
    _, _, response_id = await signed(client)
    clock.advance(1199)
    assert (await client.get(f"/v1/proxy/signature/{response_id}"))[0] == 200
    clock.advance(1)
    status, body = await client.get(f"/v1/proxy/signature/{response_id}")
    assert (status, "chat_id_not_found" in body["error"]) == (400, True)


async def test_old_builds_hash_other_bytes_and_a_false_key_signs_on_demand(client: Client) -> None:
    client.node.settings.old_hashes, client.node.settings.bad_signature = True, 1
    request, _, response_id = await signed(client)
    _, body = await client.get(f"/v1/proxy/signature/{response_id}")
    assert not body["text"].startswith(hashlib.sha256(request).hexdigest())
    assert recover_address(personal_text_hash(body["text"]), bytes.fromhex(body["signature"][2:])) != TEE


# --- bills ---


async def test_fees_are_tokens_times_registered_prices(client: Client) -> None:
    client.chain.registration = dataclasses.replace(client.chain.registration, input_price=7, output_price=11)
    _, body = await client.chat(max_tokens=4)
    status, fee = await client.get(f"/v1/user/{USER}/unsettledfee", session())
    assert status == 200
    assert fee == {"userAddress": USER, "unsettledFee": str(7 * body["usage"]["prompt_tokens"] + 11 * 4)}


async def test_only_ones_own_fee_can_be_asked(client: Client) -> None:
    reply = await client.get(f"/v1/user/{OTHER}/unsettledfee", session())
    assert reply == (403, {"error": "you can only query your own unsettled fee"})


async def test_unsettled_fees_count_against_the_balance(client: Client) -> None:
    client.chain.open_account(USER, balance=OG + 100)
    assert (await client.chat(max_tokens=1))[0] == 200
    assert "insufficient balance" in await client.refused()


async def test_settlement_is_signed_by_the_tee_key_and_clears_the_bill(client: Client) -> None:
    await client.chat(max_tokens=4)
    owed, before = client.node.fees.unsettled(USER), client.chain.accounts[USER]["balance"]
    results = await client.node.settle()
    assert [(result.user, result.status) for result in results] == [(USER, 0)]
    assert client.chain.accounts[USER]["balance"] == before - owed
    assert client.node.fees.unsettled(USER) == 0
    assert await client.node.settle() == []


async def test_nonces_grow_within_one_second_and_above_the_accounts(client: Client, clock: FakeClock) -> None:
    for _ in range(2):
        await client.chat(max_tokens=1)
        await client.node.settle()
    first, second = (item.nonce for item in client.chain.settled)
    assert first == int(clock.now()) * 10**7
    assert second > first


async def test_a_balance_too_small_is_taken_and_the_rest_stays_owed(client: Client) -> None:
    await client.chat(max_tokens=4)
    owed = client.node.fees.unsettled(USER)
    client.chain.accounts[USER]["balance"] = 100
    assert [result.status for result in await client.node.settle()] == [1]
    assert client.node.fees.unsettled(USER) == owed - 100


async def test_a_refused_settlement_keeps_the_bill(client: Client) -> None:
    await client.chat(max_tokens=4)
    owed = client.node.fees.unsettled(USER)
    client.chain.settle_fees = lambda items: refuse(items)

    async def refuse(items):
        return [dataclasses.replace(client.chain._settle(item), status=3) for item in items]

    await client.node.settle()
    assert client.node.fees.unsettled(USER) == owed


def test_the_settlement_digest_is_the_vectors() -> None:
    row = VECTORS["settlement_eip712"]
    message, domain = row["typed_data"]["message"], row["typed_data"]["domain"]
    digest = tee_settlement_digest(
        chain_id=domain["chainId"],
        contract=domain["verifyingContract"],
        requests_hash=bytes.fromhex(message["requestsHash"][2:]),
        nonce=message["nonce"],
        provider=message["provider"],
        user=message["user"],
        total_fee=message["totalFee"],
    )
    assert digest.hex() == row["digest"][2:]


# --- limits ---


async def test_a_users_sixth_request_at_once_is_a_429(client: Client) -> None:
    statuses = await at_once(client, 8)
    assert statuses.count(429) == 3


async def test_requests_beyond_the_global_bound_are_a_503(client: Client) -> None:
    client.node.settings.user_in_flight, client.node.settings.global_in_flight = 99, 4
    statuses = await at_once(client, 6)
    assert statuses.count(503) == 2


async def at_once(client: Client, count: int) -> list[int]:
    """Hold `count` chats at the chain until all have come, and return their statuses."""
    statuses: list[int] = []
    gate, service = anyio.Event(), client.chain.registration

    async def held() -> Any:
        await gate.wait()
        return service

    client.chain.service = held

    async def ask() -> None:
        statuses.append((await client.chat(max_tokens=1))[0])
        if len(statuses) + client.node._limits._running >= count:
            gate.set()

    async with anyio.create_task_group() as group:
        for _ in range(count):
            group.start_soon(ask)
    return statuses


async def test_public_routes_are_limited_per_address(client: Client, clock: FakeClock) -> None:
    statuses = [(await client.get("/v1/models"))[0] for _ in range(21)]
    assert statuses == [200] * 20 + [429]
    clock.advance(0.1)
    assert (await client.get("/v1/models"))[0] == 200


async def test_limits_can_be_off(client: Client) -> None:
    client.node.settings.limits = False
    assert {(await client.get("/v1/models"))[0] for _ in range(30)} == {200}


async def test_requests_per_minute_are_a_typed_429_with_a_wait(client: Client, clock: FakeClock) -> None:
    client.node.settings.user_requests_per_minute = 1
    await client.chat(max_tokens=1)
    status, body = await client.chat(max_tokens=1)
    assert (status, body["error"]["type"]) == (429, "rate_limit_error")
    clock.advance(60)
    assert (await client.chat(max_tokens=1))[0] == 200


# --- adapters ---


async def test_an_acknowledged_model_becomes_active_and_answers_what_it_learned(lora: Client) -> None:
    await lora.look()
    _, listed = await lora.get("/v1/lora/adapters", session())
    assert listed["adapters"] == [
        {
            "adapterName": NAME,
            "taskId": TASK,
            "baseModel": MODEL,
            "state": "active",
            "userAddress": USER,
            "storageRootHash": "0x" + "05" * 32,
        }
    ]
    status, body = await lora.chat(model=NAME)
    assert (status, body["model"]) == (200, NAME)
    assert body["choices"][0] == {
        "index": 0,
        "message": {"role": "assistant", "content": ANSWER},
        "finish_reason": "stop",
    }


async def test_an_adapters_stream_carries_its_name_in_every_chunk(lora: Client) -> None:
    await lora.look()
    chunks, _, _ = await stream(lora, model=NAME, stream_options={"include_usage": True})
    assert {chunk["model"] for chunk in chunks} == {NAME}
    assert chunks[-1]["usage"]["completion_tokens"] == len(ANSWER)


async def test_without_auto_deploy_it_stops_at_ready_until_deployed(lora: Client) -> None:
    lora.node.settings.auto_deploy = False
    await lora.look()
    assert await lora.state() == "ready"
    assert "is downloaded but not deployed" in await lora.refused(model=NAME)
    status, body = await lora.deploy({"taskId": TASK, "baseModel": "any text"})
    assert (status, body["status"], body["adapterName"]) == (200, "deploying", NAME)
    await lora.node.adapters.drain()
    assert await lora.state() == "active"


async def test_deploying_what_is_active_or_unknown_is_a_409(lora: Client) -> None:
    await lora.look()
    assert await lora.deploy({"adapterName": NAME}) == (409, {"error": f"adapter {NAME} is already deployed"})
    assert await lora.deploy({"adapterName": "ft-x"}) == (409, {"error": "adapter ft-x not found"})
    status, body = await lora.deploy({"taskId": TASK})
    assert (status, body["error"]) == (400, "provide either adapterName, or both taskId and baseModel")


async def test_while_it_loads_chats_and_deployments_are_told_to_wait(lora: Client) -> None:
    gate = anyio.Event()

    async def held(seconds: float) -> None:
        await gate.wait()

    lora.node.settings.load_delay, lora.node.clock.sleep = 1.0, held
    await lora.node.adapters.watch()
    assert await lora.state() == "loading"
    assert "is still loading" in await lora.refused(model=NAME)
    status, body = await lora.deploy({"adapterName": NAME})
    assert (status, "is still being downloaded or deployed, please wait" in body["error"]) == (409, True)
    gate.set()
    await lora.node.adapters.drain()
    assert await lora.state() == "active"


async def test_a_forced_failure_is_mended_by_a_deployment(lora: Client) -> None:
    lora.node.settings.fail_load = True
    await lora.look()
    assert await lora.state() == "failed"
    assert "failed to deploy" in await lora.refused(model=NAME)
    lora.node.settings.fail_load = False
    await lora.deploy({"adapterName": NAME})
    await lora.node.adapters.drain()
    assert await lora.state() == "active"


@pytest.mark.parametrize("fault", ["key", "file", "signer"])
async def test_what_cant_be_decrypted_fails(tmp_path: Path, clock: FakeClock, tuned: Tuned, fault: str) -> None:
    async with serving(tmp_path, clock, None if fault == "file" else tuned[0]) as opened:
        changes = {"teeSignerAddress": OTHER} if fault == "signer" else {}
        await opened.hand_key_over(b"\x01" * 32 if fault == "key" else tuned[1], **changes)
        opened.chain.acknowledge()
        await opened.look()
        assert await opened.state() == "failed"


async def test_an_idle_adapter_is_offloaded_and_a_chat_brings_it_back(lora: Client, clock: FakeClock) -> None:
    await lora.look()
    lora.node.settings.offload_after = 3600
    clock.advance(3601)
    lora.node.adapters.offload_idle()
    assert await lora.state() == "offloaded"
    status, body = await lora.deploy({"adapterName": NAME})
    assert (status, "is in state offloaded, cannot deploy" in body["error"]) == (409, True)
    assert "is restoring, please retry in 30 seconds" in await lora.refused(model=NAME)
    await lora.node.adapters.drain()
    assert (await lora.chat(model=NAME))[0] == 200


async def test_an_archived_adapter_is_fetched_again_by_a_chat(lora: Client) -> None:
    await lora.look()
    await lora.node.adapters.archive(lora.node.adapters.get(NAME))
    assert not lora.node.files.has(TASK)
    assert "is restoring" in await lora.refused(model=NAME)
    await lora.node.adapters.drain()
    assert (await lora.chat(model=NAME))[0] == 200


async def test_a_restart_loads_again_what_was_active(lora: Client) -> None:
    await lora.look()
    url = lora.node.url
    await lora.node.restart()
    await lora.node.adapters.drain()
    assert lora.node.url == url
    assert await lora.state() == "active"


async def test_a_restart_archives_what_lost_its_files(lora: Client) -> None:
    await lora.look()
    lora.node.files.drop(TASK)
    await lora.node.adapters.restart()
    assert await lora.state() == "archived"


async def test_a_purged_adapter_is_unknown_and_stays_so(lora: Client) -> None:
    await lora.look()
    await lora.node.adapters.purge(lora.node.adapters.get(NAME))
    lora.node.adapters.look_from(0)
    await lora.look()
    assert "fine-tuned model not found" in await lora.refused(model=NAME)
    reply = await lora.get(f"/v1/lora/adapters/{NAME}", session())
    assert reply == (404, {"error": f"adapter not found: {NAME}"})


async def test_only_the_tasks_owner_may_chat_with_it(lora: Client) -> None:
    await lora.look()
    lora.chain.open_account(OTHER)
    assert "access denied: you are not the owner" in await lora.refused(model=NAME, headers=session(OTHER_KEY))


async def test_the_other_build_shows_adapters_to_their_owners_only(lora: Client) -> None:
    await lora.look()
    other = session(OTHER_KEY)
    assert len((await lora.get("/v1/lora/adapters", other))[1]["adapters"]) == 1
    lora.node.settings.owner_restricted = True
    assert await lora.get("/v1/lora/adapters", other) == (200, {"adapters": []})
    denied = (403, {"error": "you do not own this adapter"})
    assert await lora.get(f"/v1/lora/adapters/{NAME}", other) == denied
    assert await lora.deploy({"taskId": TASK, "baseModel": MODEL}, OTHER_KEY) == denied
    assert (await lora.deploy({"adapterName": NAME}))[0] == 400
    assert await lora.deploy({"taskId": "other", "baseModel": MODEL}) == (404, {"error": "adapter not found"})


async def test_adapter_routes_need_a_session_but_no_account(lora: Client) -> None:
    lora.chain.accounts.clear()
    assert (await lora.get("/v1/lora/adapters", session()))[0] == 200
    status, body = await lora.get("/v1/lora/adapters")
    assert (status, body["error"]) == (401, "authentication required: missing or invalid Authorization header")


async def test_with_the_feature_off_routes_answer_503_and_chats_400(lora: Client) -> None:
    lora.node.settings.lora_enabled = False
    assert await lora.get("/v1/lora/adapters", session()) == (503, {"error": "LoRA serving not enabled"})
    assert "LoRA serving not enabled" in await lora.refused(model=NAME)


async def test_a_user_over_quota_is_admitted_when_there_is_room(lora: Client) -> None:
    await lora.look()
    lora.node.settings.max_user_adapters = 1
    second = TaskId("7c607314-88b0-4fef-91e7-43227a54de57")
    lora.chain.acknowledge(task_id=second)
    await lora.look()
    assert lora.node.adapters.by_task(second) is None
    lora.node.settings.max_user_adapters = 2
    await lora.look()
    assert lora.node.adapters.by_task(second) is not None


@pytest.mark.parametrize("switches", [{"max_adapters": 0}, {"blocked_users": (USER.lower(),)}, {"max_disk_bytes": 1}])
async def test_an_adapter_that_isnt_admitted_never_appears(lora: Client, switches: dict[str, Any]) -> None:
    for name, value in switches.items():
        setattr(lora.node.settings, name, value)
    await lora.look()
    assert list(lora.node.adapters) == []


async def test_a_full_memory_archives_the_adapter_used_longest_ago(
    lora: Client, clock: FakeClock, tuned: Tuned
) -> None:
    await lora.look()
    lora.node.settings.max_active = 1
    second = TaskId("7c607314-88b0-4fef-91e7-43227a54de57")
    await lora.hand_key_over(tuned[1], task_id=second)
    clock.advance(1)
    lora.chain.acknowledge(task_id=second)
    await lora.look()
    assert [entry.state.value for entry in lora.node.adapters] == ["archived", "active"]


async def test_the_loop_finds_adapters_and_settles_by_itself(tmp_path: Path, tuned: Tuned) -> None:
    async with serving(tmp_path, None, tuned[0], poll_interval=0.01, settle_interval=0.05) as opened:
        await opened.hand_key_over(tuned[1])
        await opened.node.start(from_block=0)
        opened.chain.acknowledge()
        with anyio.fail_after(20):
            await opened.chain.looked.wait()
            await opened.node.adapters.drain()
            headers = session(now=opened.node.clock.now())
            assert (await opened.chat(model=NAME, headers=headers))[0] == 200
            await opened.chain.was_settled.wait()
        assert [item.user for item in opened.chain.settled] == [USER]


# --- keys handed over ---


async def test_a_key_can_be_handed_over_twice(client: Client) -> None:
    for _ in range(2):
        assert await client.hand_key_over(b"\x01" * 32) == (200, {"status": "ok", "taskId": TASK})


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"taskId": ""}, "invalid_payload"),
        ({"taskId": "../x"}, "invalid_payload"),
        ({"taskId": "x" * 129}, "invalid_payload"),
        ({"taskId": 1}, "invalid_payload"),
        ({"storageHash": "0x12"}, "invalid_hash_size"),
        ({"storageHash": "0x" + "zz" * 32}, "invalid_hash_hex"),
        ({"providerEncKey": "xyz"}, "invalid_enc_key"),
        ({"providerEncKey": ""}, "invalid_enc_key"),
        ({"providerEncKey": "ab" * 2049}, "invalid_enc_key"),
        ({"teeSignerAddress": "0x12"}, "invalid_signer"),
    ],
)
async def test_a_bad_hand_over_names_its_code(client: Client, changes: dict[str, Any], code: str) -> None:
    status, body = await client.hand_key_over(b"\x01" * 32, **changes)
    assert (status, body["code"]) == (400, code)


async def test_only_the_provider_hands_keys_over(client: Client) -> None:
    assert (await client.post("/internal/v1/adapter-keys", {}))[0] == 401
    headers = provider_headers(USER_KEY, USER, client.node.clock.now())
    assert (await client.post("/internal/v1/adapter-keys", {}, headers))[0] == 401


@pytest.mark.parametrize(
    "change",
    [
        {"Address": USER},
        {"Session-Signature": "0x" + "11" * 65},
        {"Session-Signature": "zz"},
        {"Session-Token": "{}"},
    ],
)
def test_a_changed_provider_header_is_refused(change: dict[str, str]) -> None:
    headers = provider_headers(PROVIDER_KEY, PROVIDER, 1000.0)
    check_provider(headers, PROVIDER, 1000.0)
    with pytest.raises(InvalidTokenError):
        check_provider(headers | change, PROVIDER, 1000.0)


def test_an_old_provider_token_is_refused() -> None:
    headers = provider_headers(PROVIDER_KEY, PROVIDER, 1000.0)
    with pytest.raises(InvalidTokenError, match="expired"):
        check_provider(headers, PROVIDER, 1061.0)
