"""Chat with a provider over real sockets: streams, proofs, turns, funds, keys, and the stock OpenAI client."""

import base64
import contextlib
import json
from decimal import Decimal

import aiohttp
import anyio
import openai
import pytest

from tests.devnet.conftest import MODEL, new_key, open_broker
from tests.http_server import serving
from zg_async import (
    AnswerStatus,
    AutoFunding,
    ChatDelta,
    ClosedError,
    ConfigError,
    HashMismatchError,
    HttpSettings,
    ImageJobStatus,
    InferencePolicy,
    LimitError,
    ProviderError,
    ProviderLimits,
    ProviderRejectedError,
    ProviderReplyError,
    ProviderUnavailableError,
    SignatureMismatchError,
    get_network,
)
from zg_async.units import NEURON_PER_0G

pytestmark = pytest.mark.slow
TURNS = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": "Hi"},
    {"role": "user", "content": "Where are you?"},
]


@pytest.fixture
def inference(devnet):
    """Switch the first provider's inference side; everything is as before afterwards."""
    before = devnet.control("inference", provider=0)["inference"][0]
    yield lambda **changes: devnet.control("inference", provider=0, **changes)
    devnet.control("inference", provider=0, **before)


@pytest.fixture
async def funded(broker, provider):
    """A broker whose sub-account can pay."""
    await broker.ledger.ensure_funded(provider, "inference", "2")
    return broker


# ---- streams


@pytest.mark.goal("CHT-01")
async def test_a_conversation_streams_typed_deltas_with_any_openai_field(funded, provider):
    whole = await funded.inference.chat(provider, TURNS, max_tokens=12, temperature=0, user="me")
    async with funded.inference.chat_stream(provider, TURNS, max_tokens=12, temperature=0, user="me") as stream:
        deltas = [delta async for delta in stream]
        answer = await stream.answer()
    assert all(isinstance(d, ChatDelta) for d in deltas)
    assert "".join(d.content for d in deltas) == answer.content == stream.text == whole.content
    assert (answer.usage, answer.fee, answer.model) == (whole.usage, whole.fee, MODEL)
    assert answer.usage.prompt_tokens == sum(len(t["content"]) for t in TURNS)
    assert deltas[-1].finish_reason == answer.finish_reason == whole.finish_reason


async def test_a_stream_is_read_inside_its_context_and_entered_once(funded, provider):
    stream = funded.inference.chat_stream(provider, "Hello", max_tokens=1)
    with pytest.raises(ClosedError):
        await anext(stream)
    async with stream:
        await stream.answer()
    assert await anext(stream, None) is None
    with pytest.raises(ClosedError):
        await stream.__aenter__()
    with pytest.raises(ConfigError, match="chat_stream"):
        await funded.inference.chat(provider, "Hello", stream=True)


async def test_usage_is_left_out_if_the_caller_wants_and_words_are_counted(funded, provider):
    async with funded.inference.chat_stream(provider, "One two", max_tokens=3, stream_options=None) as stream:
        answer = await stream.answer()
    assert answer.usage is None
    assert answer.fee > 0


async def test_a_cut_stream_is_an_error_and_its_text_is_still_there(funded, provider, inference):
    inference(cut_stream=1)
    async with funded.inference.chat_stream(provider, "Hello", max_tokens=30) as stream:
        with pytest.raises(ProviderReplyError, match="end mark"):
            [delta async for delta in stream]
        assert stream.text
        with pytest.raises(ProviderReplyError, match="end mark"):
            await stream.answer()


async def test_leaving_a_stream_early_gives_its_turn_back(devnet, key, provider, inference, tmp_path):
    inference(stream_delay=0.05)
    async with open_broker(devnet, key, tmp_path / "s", inference=InferencePolicy(in_flight=1)) as broker:
        await broker.ledger.ensure_funded(provider, "inference", "2")
        for _ in range(3):
            async with broker.inference.chat_stream(provider, "Hello", max_tokens=40) as stream:
                await anext(stream)
        with anyio.move_on_after(0.2) as scope:
            async with broker.inference.chat_stream(provider, "Hello", max_tokens=40) as stream:
                async for _ in stream:
                    pass
        assert scope.cancelled_caught
        with anyio.fail_after(5):
            assert (await broker.inference.chat(provider, "Hello", max_tokens=1)).content


# ---- proofs


@pytest.mark.goal("CHT-04")
async def test_answers_are_proven_by_default_and_tampering_is_an_error(funded, provider, inference):
    async def stream(**options):
        async with funded.inference.chat_stream(provider, "Hello", max_tokens=8, **options) as opened:
            return await opened.answer()

    async def whole(**options):
        return await funded.inference.chat(provider, "Hello", max_tokens=8, **options)

    for ask in (whole, stream):
        answer = await ask()
        assert answer.proof.is_verified
        assert [c.outcome for c in answer.proof.checks] == ["pass"] * 3
        inference(tamper=1)
        with pytest.raises(HashMismatchError, match="response_hash"):
            await ask()
        inference(tamper=1)
        assert (await ask(verify="off")).proof.status is AnswerStatus.SKIPPED
        inference(bad_signature=1)
        with pytest.raises(SignatureMismatchError):
            await ask()
        inference(bad_signature=1)
        with pytest.raises(SignatureMismatchError):
            await ask(verify="signer")


async def test_old_builds_pass_only_where_the_caller_says_so(funded, provider, inference):
    inference(old_hashes=True)
    with pytest.raises(HashMismatchError, match="not bound"):
        await funded.inference.chat(provider, "Hello", max_tokens=2, user="x")
    answer = await funded.inference.chat(provider, "Hello", max_tokens=2, user="x", verify="signer")
    assert answer.proof.status is AnswerStatus.NOT_BOUND
    assert not answer.proof.is_verified


async def test_an_answer_whose_signature_cannot_be_found_is_not_taken(funded, provider, inference):
    inference(no_response_key=True)
    with pytest.raises(ProviderRejectedError, match="chat_id_not_found"):
        await funded.inference.chat(provider, "Hello", max_tokens=2)


async def test_process_response_says_what_the_peers_say_and_counts(funded, provider, inference):
    answer = await funded.inference.chat(provider, "Hello", max_tokens=2)
    usage = json.dumps(answer.raw["usage"])
    before = funded.inference.spending(provider).fee
    assert await funded.inference.process_response(provider, answer.response_key, usage) is True
    assert funded.inference.spending(provider).fee == before + answer.fee
    assert await funded.inference.process_response(provider) is None
    inference(bad_signature=1)
    forged = await funded.inference.chat(provider, "Hello", max_tokens=2, verify="off")
    assert await funded.inference.process_response(provider, forged.response_key) is False
    with pytest.raises(ProviderError, match="chat_id_not_found"):
        await funded.inference.process_response(provider, "00000000-0000-4000-8000-000000000000")
    proof = await funded.inference.verify_answer(provider, answer.response_key, request=b"x", response=b"y")
    assert proof.status is AnswerStatus.NOT_BOUND


# ---- cost and funds


@pytest.mark.goal("CHT-08")
async def test_each_call_has_its_fee_and_the_total_is_what_the_provider_bills(funded, provider):
    fees = [
        (await funded.inference.chat(provider, "Hello", max_tokens=3)).fee,
        (await funded.inference.generate_images(provider, "a hat", n=2)).fee,
    ]
    async with funded.inference.chat_stream(provider, "Hello", max_tokens=3) as stream:
        fees.append((await stream.answer()).fee)
    spent = funded.inference.spending(provider)
    assert (spent.calls, spent.fee) == (3, sum(fees))
    funds = await funded.inference.check_funds(provider)
    assert (funds.unsettled, funds.is_counted) == (spent.fee, False)


@pytest.mark.goal("LED-06")
async def test_what_is_required_is_read_live_and_nothing_moves_unasked(funded, provider, monkeypatch):
    inference = funded.inference
    await inference.chat(provider, "Hello", max_tokens=3)
    before = await inference.get_account(provider)
    funds = await inference.check_funds(provider)
    minimum = (await funded.ledger.get_limits()).min_transfer_amount
    assert funds.required == funds.unsettled + 2 * minimum
    assert funds.needed == minimum  # the smallest transfer, for a deficit of some neuron
    assert (await inference.check_funds(provider, buffer="0.5")).needed == 0

    async def silent(*_args, **_options):
        raise ProviderUnavailableError("away")

    monkeypatch.setattr(funded.http, "request", silent)
    counted = await inference.check_funds(provider)
    assert (counted.is_counted, counted.unsettled) == (True, funds.unsettled)
    assert await inference.get_account(provider) == before


async def test_funding_is_explicit_capped_and_done_once_by_many(funded, provider):
    await funded.ledger.deposit_fund("5")
    with pytest.raises(LimitError, match="cap"):
        await funded.inference.ensure_funds(provider, cap="0.5", buffer="3")
    receipts = []

    async def ensure():
        receipts.append(await funded.inference.ensure_funds(provider, cap="2", buffer="3"))

    async with anyio.create_task_group() as group:
        for _ in range(5):
            group.start_soon(ensure)
    assert [r is not None for r in receipts].count(True) == 1
    assert (await funded.inference.get_account(provider)).spendable == 3 * NEURON_PER_0G


async def test_automatic_funding_stays_under_its_cap(devnet, key, provider, tmp_path):
    policy = InferencePolicy(funding=AutoFunding(cap=2 * NEURON_PER_0G))
    async with open_broker(devnet, key, tmp_path / "s", inference=policy) as broker:
        await broker.ledger.add_ledger("8")
        answers = []

        async def ask():
            answers.append(await broker.inference.chat(provider, "Hello", max_tokens=1))

        async with anyio.create_task_group() as group:
            for _ in range(4):
                group.start_soon(ask)
        assert len(answers) == 4
        assert (await broker.inference.get_account(provider)).balance == 2 * NEURON_PER_0G
        await broker.ledger.retrieve_fund("inference")
        with pytest.raises(LimitError, match="cap"):
            await broker.inference.chat(provider, "Hello", max_tokens=1)
        assert (await broker.ledger.get_ledger()).available_balance == 6 * NEURON_PER_0G


async def test_more_chats_than_a_provider_takes_at_once_wait_their_turn(funded, provider, inference):
    inference(limits=True, user_in_flight=5, stream_delay=0.01)
    done = []

    async def ask():
        async with funded.inference.chat_stream(provider, "Hello", max_tokens=4, verify="off") as stream:
            done.append(await stream.answer())

    async with anyio.create_task_group() as group:
        for _ in range(15):
            group.start_soon(ask)
    assert len(done) == 15


async def test_a_busy_provider_is_asked_again_and_one_that_gave_no_answer_is_not(funded, provider, inference):
    inference(error_503=2)
    assert (await funded.inference.chat(provider, "Hello", max_tokens=1)).content
    inference(limits=True, user_in_flight=0)
    impatient = InferencePolicy(busy_seconds=0.5)
    funded.inference.policy = impatient
    with pytest.raises(ProviderUnavailableError, match="429"):
        await funded.inference.chat(provider, "Hello", max_tokens=1)


# ---- tokens


@pytest.mark.goal("CHT-05")
async def test_api_keys_are_listed_revoked_and_never_share_an_id_by_accident(devnet, key, broker, provider, tmp_path):
    await broker.ledger.ensure_funded(provider, "inference", "2")
    first = await broker.inference.create_api_key(provider)
    async with open_broker(devnet, key, tmp_path / "state") as other:  # another program of the same user
        second = await other.inference.create_api_key(provider, expires_in=3600)
    assert (first.token_id, second.token_id) == (0, 1)
    made = []

    async def make():
        made.append((await broker.inference.create_api_key(provider)).token_id)

    async with anyio.create_task_group() as group:
        for _ in range(4):
            group.start_soon(make)
    assert sorted(made) == [2, 3, 4, 5]
    shared = await broker.inference.create_api_key(provider, token_id=1)
    assert shared.token_id == 1

    async def status(token) -> int:
        url = (await broker.inference.get_service_metadata(provider)).endpoint + "/chat/completions"
        body = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}
        async with aiohttp.ClientSession() as http, http.post(url, json=body, headers=token.headers) as reply:
            return reply.status

    assert [await status(t) for t in (first, second)] == [200, 200]
    await broker.inference.revoke_api_key(provider, 0)
    assert [await status(t) for t in (first, second)] == [400, 200]
    listed = await broker.inference.list_api_keys(provider)
    assert [k.issued.token_id for k in listed if not k.works] == [0]
    assert len(listed) == 6
    assert "app-sk-" not in repr(listed)
    await broker.inference.revoke_all_tokens(provider)
    assert await status(second) == 400
    assert not any(k.works for k in await broker.inference.list_api_keys(provider))
    again = await broker.inference.create_api_key(provider)
    assert (again.token_id, again.generation) == (0, 1)
    session = await broker.inference.session_token(provider)
    assert (session.token_id, session.generation, await status(session)) == (255, 1, 200)
    files = [p.read_text() for p in (tmp_path / "state").rglob("*.json")]
    assert files
    assert not any("app-sk-" in text for text in files)


# ---- images and speech


@pytest.mark.goal("CHT-07")
async def test_images_edits_speech_and_jobs_are_proven_like_chat(funded, provider, inference, tmp_path):
    ask = funded.inference
    images = await ask.generate_images(provider, "a sea otter", n=2, size="512x512")
    assert [i[:4] for i in images.images] == [b"\x89PNG"] * 2
    assert images.proof.is_verified
    picture = tmp_path / "otter.png"
    picture.write_bytes(images.images[0])
    edited = await ask.edit_images(provider, "in a hat", picture)
    assert edited.proof.is_verified
    assert edited.images != images.images[:1]
    said = await ask.transcribe(provider, b"RIFF" + bytes(64_000), language="en")
    assert said.proof.is_verified
    assert said.fee == 2 * (await ask.get_service(provider)).input_price
    inference(tamper=1)
    with pytest.raises(HashMismatchError):
        await ask.generate_images(provider, "a sea otter")
    inference(tamper=1)
    with pytest.raises(HashMismatchError):
        await ask.transcribe(provider, picture)

    inference(job_delay=0.2)
    job = await ask.submit_image_job(provider, "a sea otter", n=2)
    assert job.status is ImageJobStatus.PENDING
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("zg_async.managers.media._LONGEST_POLL", 0.02)
        async with contextlib.aclosing(ask.watch_image_job(provider, job)) as states:
            seen = [state async for state in states]
        assert [s.status_text for s in seen] in (
            ["pending", "processing", "completed"],
            ["processing", "completed"],
            ["pending", "completed"],
        )
        assert seen[-1].result.images == images.images
        assert seen[-1].result.proof.is_verified
        inference(job_delay=0.0, fail_job=1)
        failing = await ask.submit_image_job(provider, "x", image=picture)
        with pytest.raises(ProviderError, match="server failed"):
            await ask.wait_image_job(provider, failing)
        done = await ask.submit_image_job(provider, "x", image=images.images[0])
        assert (await ask.wait_image_job(provider, done)).images


async def test_jobs_of_others_unknown_ones_and_switched_off_are_told(devnet, funded, provider, inference, tmp_path):
    job = await funded.inference.submit_image_job(provider, "x")
    async with open_broker(devnet, new_key(devnet, 0), tmp_path / "other") as other:
        with pytest.raises(ProviderRejectedError, match="403"):
            await other.inference.get_image_job(provider, job.id)
    with pytest.raises(ProviderError, match="job not found"):
        await funded.inference.get_image_job(provider, "no-such-job")
    inference(async_images=False)
    funded.inference.policy = InferencePolicy(busy_seconds=0.1)
    with pytest.raises(ProviderUnavailableError, match="not enabled"):
        await funded.inference.submit_image_job(provider, "x")


# ---- the stock client


@pytest.mark.goal("CHT-02")
async def test_a_stock_openai_client_works_and_its_token_is_refreshed(devnet, key, funded, provider, tmp_path):
    config = await funded.inference.openai_config(provider)
    assert "app-sk-" not in repr(config)
    async with openai.AsyncOpenAI(base_url=config.base_url, api_key=config.api_key, max_retries=0) as client:
        answer = await client.chat.completions.create(model=config.model, messages=TURNS, max_tokens=8)
        assert answer.usage.completion_tokens <= 8
    async with openai.AsyncOpenAI(base_url=config.base_url, api_key=config.refresh_api_key, max_retries=0) as client:
        parts = await client.chat.completions.create(model=config.model, messages=TURNS, max_tokens=8, stream=True)
        text = "".join([p.choices[0].delta.content or "" async for p in parts if p.choices])
        assert text == answer.choices[0].message.content
        images = await client.images.generate(model=config.model, prompt="a hat", response_format="b64_json")
        assert base64.b64decode(images.data[0].b64_json)[:4] == b"\x89PNG"
        await funded.inference.revoke_all_tokens(provider)
        renewed = await client.chat.completions.create(model=config.model, messages=TURNS, max_tokens=8)
        assert renewed.choices[0].message.content == text


# ---- the catalogue


@pytest.mark.goal("DIS-07")
async def test_services_come_with_prices_models_and_health(devnet, provider, tmp_path):
    other = devnet.providers[1]["address"]

    async def status(request: aiohttp.web.Request) -> aiohttp.web.Response:
        model = {"id": MODEL, "provider": provider, "context_length": 1024}
        model["pricing"] = {"prompt": "10", "completion": "20", "image": "5"}
        model["pricing_usd"] = {"prompt": "0.000001"}
        extra = {"id": "second", "canonical_id": "org/second", "provider": provider}
        measured = {"status": "warning", "checks": {"uptime": 97.5}, "lastCheck": "now"}
        measured["performance"] = {"response_time": {"avg": 12.5}}
        rows = {"provider": provider.lower(), "model": "org/second", **measured}
        body = {"/health": {"services": [rows]}, "/models": {"data": [model, extra]}}[request.path]
        return aiohttp.web.json_response(body)

    async with serving(status) as url:
        network = get_network("local")
        network = type(network)(**{f: getattr(network, f) for f in network.__slots__} | {"status_url": url})
        async with open_broker(devnet, None, tmp_path / "s", network=network) as broker:
            details = {d.service.provider: d for d in await broker.inference.list_service_with_detail()}
            own = await broker.inference.get_provider_models(provider)
    detail = details[provider]
    assert (detail.health.status, detail.health.uptime, detail.health.response_time) == ("warning", 97.5, 12.5)
    assert (detail.model.id, detail.model.prices.image) == (MODEL, 5)
    assert detail.model.prices_usd.prompt == Decimal("0.000001")
    assert [m.health and m.health.status for m in detail.models] == [None, "warning"]
    assert detail.prices.per_input_token == detail.service.input_price
    assert (details[other].health, details[other].models) == (None, ())
    assert [m.id for m in own] == [MODEL]


async def test_a_status_service_that_is_away_only_leaves_gaps(devnet, provider, tmp_path):
    settings = HttpSettings(limits=ProviderLimits(rate=None), connect_timeout=1)
    network = get_network("local")
    network = type(network)(
        **{f: getattr(network, f) for f in network.__slots__} | {"status_url": "http://127.0.0.1:1"}
    )
    async with open_broker(devnet, None, tmp_path / "s", network=network, http=settings) as broker:
        details = await broker.inference.list_service_with_detail()
    assert {d.health for d in details} == {None}
    assert provider in {d.service.provider for d in details}
