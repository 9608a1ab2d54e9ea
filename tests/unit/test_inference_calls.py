"""One request to an inference provider, against servers that answer as providers must not, or only sometimes do."""

import asyncio
import contextlib
import dataclasses
import datetime as dt
import hashlib
from types import SimpleNamespace

import anyio
import pytest
from aiohttp import web

from tests.clock import FakeClock
from tests.http_server import serving
from zg_async.errors import (
    AdapterError,
    ConfigError,
    HashMismatchError,
    ProviderRejectedError,
    ProviderReplyError,
    ProviderUnavailableError,
    SignatureMismatchError,
)
from zg_async.managers.inference import InferenceManager
from zg_async.managers.inference_services import AutoFunding, InferencePolicy
from zg_async.transport.http import Http, HttpSettings
from zg_async.wire.answer_proof import AnswerStatus
from zg_async.wire.hashing import checksum_address, keccak256
from zg_async.wire.records import Address, InferenceService, SessionToken
from zg_async.wire.signing import personal_text_hash, recover_public_key, sign_digest, signature_hex

PROVIDER = Address("0x15d34AAf54267DB7D7c367839AAf71A00a2C6A65")
TEE_KEY = b"\x22" * 32
TEE = checksum_address(keccak256(recover_public_key(b"\1" * 32, sign_digest(TEE_KEY, b"\1" * 32))[1:])[12:])
MESSAGE = b'{"role":"assistant","content":"hi"}'
BODY = b'{"id":"c1","model":"m","choices":[{"index":0,"message":' + MESSAGE + b',"finish_reason":"stop"}]}'
STREAM = b'data: {"id":"c1","choices":[{"index":0,"delta":{"content":"hi"}}]}\n\ndata: [DONE]\n\n'


class Provider:
    """Answers chats from a list of (status, body, headers), the last repeating; signs what it sends."""

    def __init__(self, *replies):
        self.replies = list(replies) or [(200, BODY, {})]
        self.texts: dict[str, str] = {}
        self.chats: list[bytes] = []
        self.tokens: list[str] = []
        self.misses = 0
        self.key = TEE_KEY

    async def __call__(self, request: web.Request) -> web.StreamResponse:
        if "/signature/" in request.path:
            name = request.path.rsplit("/", 1)[1]
            if self.misses or name not in self.texts:
                self.misses -= 1
                return web.json_response({"error": "get chat signature: chat_id_not_found"}, status=400)
            text = self.texts[name]
            signature = signature_hex(sign_digest(self.key, personal_text_hash(text)))
            return web.json_response({"text": text, "signature": signature})
        raw = await request.read()
        self.chats.append(raw)
        self.tokens.append(request.headers["Authorization"])
        status, body, headers = self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]
        if status == 0:
            request.transport.abort()
            return web.Response()
        digests = f"{hashlib.sha256(raw).hexdigest()}:{hashlib.sha256(body).hexdigest()}"
        self.texts.setdefault("k1", digests)
        self.texts["k1"] = digests
        return web.Response(status=status, body=body, headers={"ZG-Res-Key": "k1", **headers})


def error(status: int, text: str, **headers: str):
    return status, f'{{"error":"{text}"}}'.encode(), headers


@contextlib.asynccontextmanager
async def manager_of(provider, **policy):
    clock, made = FakeClock(), []
    async with serving(provider) as url, Http(settings=HttpSettings(allow_hosts=("127.0.0.1",)), clock=clock) as http:
        service = InferenceService(
            provider=PROVIDER,
            service_type="chatbot",
            url=url,
            input_price=1,
            output_price=1,
            updated_at=dt.datetime.now(dt.UTC),
            model="m",
            verifiability="TeeML",
            additional_info="{}",
            tee_signer_address=TEE,
            tee_signer_acknowledged=True,
        )
        services = SimpleNamespace(inference=None, ledger=None, network=None)
        context = SimpleNamespace(http=http, clock=clock, wallet=TEE, services=services, funding=None)
        manager = InferenceManager(context, InferencePolicy(**policy))

        async def recent(_):
            return service

        async def token(_):
            if not manager._tokens:
                made.append(len(made))
                manager._tokens[PROVIDER] = SessionToken(
                    provider=PROVIDER,
                    token_id=255,
                    generation=0,
                    created_at=dt.datetime.now(dt.UTC),
                    expires_at=None,
                    raw_token=f"app-sk-{made[-1]}",
                )
            return manager._tokens[PROVIDER]

        manager.recent_service = manager.get_service = recent
        manager.session_token = token
        manager.service = service
        yield manager


async def test_an_answer_is_proven_also_when_its_signature_comes_late():
    provider = Provider()
    provider.misses = 3
    async with manager_of(provider) as inference:
        answer = await inference.chat(PROVIDER, "Hé")
    assert answer.proof.is_verified
    assert "Hé".encode() in provider.chats[0]  # the bytes sent are the bytes hashed


async def test_funds_are_looked_at_beside_a_request_and_only_the_first_waits_for_it():
    looks, allowed = [], anyio.Event()

    async def look(_, provider):
        looks.append(provider)
        if len(looks) > 1:
            await allowed.wait()
        return False

    provider, funding = Provider((200, STREAM, {})), AutoFunding(cap=1, interval=30.0)
    async with manager_of(provider, funding=funding) as inference:
        inference._fund_within = look
        async with inference.chat_stream(PROVIDER, "x", verify="off"):
            pass
        assert looks == [PROVIDER]
        inference._ctx.clock.advance(31)
        async with inference.chat_stream(PROVIDER, "x", verify="off") as stream:
            assert (await anext(stream)).content == "hi"  # answered, while the chain and the provider are still asked
            assert len(looks) == 2
            allowed.set()
        async with inference.chat_stream(PROVIDER, "x") as stream:
            await stream.answer()
    assert len(looks) == 2


async def test_a_request_that_is_given_up_ends_its_look():
    async def look(_, __):
        await anyio.sleep_forever()

    async with manager_of(Provider((200, STREAM, {})), funding=AutoFunding(cap=1, interval=0.0)) as inference:
        inference._looked_after.add(PROVIDER)
        inference._fund_within = look
        with anyio.move_on_after(0.05) as scope:
            await inference.chat(PROVIDER, "x", verify="off")
        assert scope.cancelled_caught
        assert not [t for t in asyncio.all_tasks() if "funds" in t.get_name()]


class Changing(Provider):
    """Somebody between provider and client."""

    change = b""

    async def __call__(self, request: web.Request) -> web.StreamResponse:
        response = await super().__call__(request)
        if "/signature/" not in request.path:
            body = response.body
            response.body = body + self.change if self.change.isspace() else body.replace(b"hi", self.change)
        return response


@pytest.mark.parametrize("change", [b" ", b"\n", b"ho"])
async def test_bytes_changed_or_added_are_noticed(change):
    provider = Changing((200, BODY, {}))
    provider.change = change
    async with manager_of(provider) as inference:
        with pytest.raises(HashMismatchError):
            await inference.chat(PROVIDER, "x")
        provider.replies = [(200, STREAM, {})]
        async with inference.chat_stream(PROVIDER, "x") as stream:
            with pytest.raises(HashMismatchError):
                await stream.answer()


async def test_leaving_out_every_name_of_the_signature_proves_nothing():
    nameless = BODY.replace(b'"id":"c1",', b"")
    async with manager_of(Provider((200, nameless, {"ZG-Res-Key": ""}))) as inference:
        with pytest.raises(SignatureMismatchError, match="nothing names"):
            await inference.chat(PROVIDER, "x")


async def test_an_upgraded_provider_is_judged_by_its_new_registration():
    provider = Provider()
    provider.key = b"\x33" * 32
    new = checksum_address(keccak256(recover_public_key(b"\1" * 32, sign_digest(provider.key, b"\1" * 32))[1:])[12:])
    async with manager_of(provider) as inference:
        with pytest.raises(SignatureMismatchError):
            await inference.chat(PROVIDER, "x")

        async def upgraded(_):
            return dataclasses.replace(inference.service, tee_signer_address=new)

        inference.get_service = upgraded
        assert (await inference.chat(PROVIDER, "x")).proof.signer == new


async def test_a_service_that_promises_nothing_passes_and_says_so():
    async with manager_of(Provider()) as inference:
        inference.service = dataclasses.replace(inference.service, verifiability="")

        async def plain(_):
            return inference.service

        inference.recent_service = plain
        assert (await inference.chat(PROVIDER, "x")).proof.status is AnswerStatus.NOT_VERIFIABLE
        with pytest.raises(ConfigError, match="unknown verification"):
            await inference.chat(PROVIDER, "x", verify="yes")


async def test_a_stale_token_is_renewed_once_and_not_for_ever():
    provider = Provider(error(400, "validate session: session token has been revoked"), (200, BODY, {}))
    async with manager_of(provider) as inference:
        await inference.chat(PROVIDER, "x")
    assert provider.tokens == ["Bearer app-sk-0", "Bearer app-sk-1"]
    provider = Provider(error(400, "session token expired"))
    async with manager_of(provider) as inference:
        with pytest.raises(ProviderRejectedError, match="expired"):
            await inference.chat(PROVIDER, "x")
    assert len(provider.chats) == 2


async def test_a_request_without_an_answer_is_never_sent_twice():
    for reply in ((0, b"", {}), error(500, "oops"), error(429, "too many requests with unsupported models, blocked")):
        provider = Provider(reply)
        async with manager_of(provider) as inference:
            with pytest.raises(ProviderUnavailableError):
                await inference.chat(PROVIDER, "x")
        assert len(provider.chats) == 1


async def test_a_busy_provider_is_asked_again_for_a_while_only():
    provider = Provider(error(429, "too many", **{"Retry-After": "2"}), error(503, "busy"), (200, BODY, {}))
    async with manager_of(provider) as inference:
        await inference.chat(PROVIDER, "x")
        assert max(inference._ctx.clock.slept) >= 2
    provider = Provider(error(503, "busy"))
    async with manager_of(provider, busy_seconds=30) as inference:
        with pytest.raises(ProviderUnavailableError):
            await inference.chat(PROVIDER, "x")
        assert sum(inference._ctx.clock.slept) <= 40


@pytest.mark.goal("CHT-03", part="every status")
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "reply",
    [
        error(400, "the model is still loading"),
        error(202, "loading"),
        error(404, "ft-x is still loading"),
        error(409, "adapter is still being downloaded or deployed, please wait"),
        error(503, "is restoring, please retry in 30 seconds"),
        error(503, "Service Unavailable"),
    ],
)
async def test_warm_up_answers_of_any_status_are_waited_out(reply, stream):
    provider = Provider(reply, reply, (200, STREAM if stream else BODY, {}))
    async with manager_of(provider) as inference:
        if stream:
            async with inference.lora.chat_stream(PROVIDER, "ft-x", "q") as opened:
                assert (await opened.answer()).content == "hi"
        else:
            assert (await inference.lora.chat(PROVIDER, "ft-x", "q")).content == "hi"
    assert len(provider.chats) == 3


@pytest.mark.parametrize(
    "reply",
    [
        error(400, "fine-tuned model not found"),
        error(403, "access denied: you are not the owner"),
        error(503, "LoRA serving not enabled"),
        error(400, "adapter failed to deploy"),
    ],
)
async def test_final_answers_are_not_waited_out(reply):
    provider = Provider(reply)
    async with manager_of(provider) as inference:
        with pytest.raises(AdapterError):
            await inference.lora.chat(PROVIDER, "ft-x", "q")
        assert inference._ctx.clock.slept == []
    assert len(provider.chats) == 1


@pytest.mark.parametrize(
    ("body", "match"),
    [
        (b"", "end mark"),
        (BODY, "end mark"),
        (STREAM[:40], "end mark"),
        (b"data: {\n\n" + STREAM, "can't be read"),
        (b"data: " + b"[" * 200 + b"\n\n" + STREAM, "can't be read"),
        (b'data: {"error":{"message":"gone"}}\n\n' + STREAM, "gone"),
        (b"data: " + b"x" * 2_000_000, "more than"),
        (b"\0" * 100 + b"\n\n", "end mark"),
    ],
)
async def test_streams_that_are_no_good_end_in_one_error(body, match):
    async with manager_of(Provider((200, body, {}))) as inference, inference.chat_stream(PROVIDER, "q") as stream:
        with pytest.raises(ProviderReplyError, match=match):
            await stream.answer()


async def test_a_request_that_cannot_be_written_is_told_before_anything_is_sent():
    provider = Provider()
    async with manager_of(provider) as inference:
        for bad in ({"x": object()}, {"temperature": float("nan")}, {"big": "x" * (33 * 1024 * 1024)}):
            with pytest.raises(ConfigError):
                await inference.chat(PROVIDER, "x", **bad)
    assert provider.chats == []
