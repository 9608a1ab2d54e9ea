"""The local server in front of providers: a stock client on one side, the devnet on the other."""

import base64
import contextlib
import os
import signal
import sys

import aiohttp
import anyio
import openai
import pytest
from aiohttp import web
from anyio.streams.text import TextReceiveStream
from openai.types.fine_tuning import FineTuningJobEvent

from tests.devnet.conftest import MODEL
from tests.http_server import serving as fake_server
from zg_async import JobRunner
from zg_async.errors import ConfigError
from zg_async.serve.proxy import Proxy, serving
from zg_async.serve.upstreams import EndpointUpstream, ProviderUpstream, parse_endpoint, parse_provider
from zg_async.units import NEURON_PER_0G

pytestmark = pytest.mark.slow
HELLO = [{"role": "user", "content": "Hello"}]


@pytest.fixture
def inference(devnet):
    """Switch the inference side of both providers; everything is as before afterwards."""
    before = [devnet.control("inference", provider=n)["inference"][0] for n in (0, 1)]
    yield lambda number=0, **changes: devnet.control("inference", provider=number, **changes)
    for number in (0, 1):
        devnet.control("inference", provider=number, **before[number])


@pytest.fixture
async def funded(broker, devnet):
    for row in devnet.providers[:2]:
        await broker.ledger.ensure_funded(row["address"], "inference", "2")
    return broker


@contextlib.asynccontextmanager
async def client_of(broker, *upstreams, **options):
    proxy = Proxy(broker, upstreams, **options)
    async with (
        serving(proxy) as url,
        openai.AsyncOpenAI(base_url=url, api_key=proxy.token, max_retries=0) as client,
    ):
        yield client, proxy, url


async def stream_text(client, **options) -> str:
    parts = await client.chat.completions.create(model="any", messages=HELLO, max_tokens=8, stream=True, **options)
    return "".join([p.choices[0].delta.content or "" async for p in parts if p.choices])


@pytest.mark.goal("CHT-06", part="one provider for any client")
async def test_a_stock_client_chats_streams_and_makes_images_through_one_provider(funded, provider):
    async with client_of(funded, ProviderUpstream(address=provider)) as (client, proxy, url):
        raw = await client.chat.completions.with_raw_response.create(model="any", messages=HELLO, max_tokens=8)
        answer = raw.parse()
        assert raw.headers["x-provider-address"] == provider
        assert raw.headers["x-zg-proof"] == "verified"
        assert await stream_text(client) == answer.choices[0].message.content
        assert [m.id async for m in await client.models.list()] == [MODEL]
        images = await client.images.generate(model="any", prompt="a hat", n=2)
        assert [base64.b64decode(i.b64_json)[:4] for i in images.data] == [b"\x89PNG"] * 2
        edited = await client.images.edit(model="any", image=("a.png", b"\x89PNGx"), prompt="red")
        assert edited.data[0].b64_json
        said = await client.audio.transcriptions.create(model="any", file=("a.wav", bytes(32_000)))
        assert "32000 bytes" in said.text
        headers = {"Authorization": f"Bearer {proxy.token}"}
        async with aiohttp.ClientSession(headers=headers) as http:
            async with http.post(f"{url}/verify", json={"id": answer.id}) as reply:
                verdict = await reply.json()
            assert (verdict["isValid"], verdict["provider"], verdict["type"]) == (True, provider, "provider")
            async with http.post(f"{url}/verify", json={"id": "nothing"}) as reply:
                assert reply.status == 404
        assert proxy.budget.spent == funded.inference.spending(provider).fee


@pytest.mark.goal("CHT-06", part="token, host and origin")
async def test_only_who_knows_the_token_and_comes_from_no_web_page_gets_in(funded, provider):
    async with (
        client_of(funded, ProviderUpstream(address=provider), origins=["http://localhost:5173"]) as (_, proxy, url),
        aiohttp.ClientSession() as http,
    ):
        good = {"Authorization": f"Bearer {proxy.token}"}

        async def status(path="/models", **headers) -> int:
            async with http.get(url + path, headers=headers) as reply:
                assert not [name for name in reply.headers if name.lower().startswith("access-control")]
                return reply.status

        assert await status(**good) == 200
        assert await status() == 401
        assert await status(Authorization="Bearer wrong") == 401
        assert await status(Authorization=proxy.token) == 401
        assert await status(**good, Origin="http://evil.example") == 403
        assert await status(**good, Origin="null") == 403
        assert await status(**good, Origin="http://localhost:5173") == 200
        assert await status(**good, Host="evil.example") == 421
        assert await status(**good, Host="127.0.0.1.evil.example:3000") == 421
        assert await status(**good, Host="localhost:1") == 200
        async with http.get(url.removesuffix("/v1") + "/health") as reply:
            assert reply.status == 200
    with pytest.raises(ConfigError, match="at least 16"):
        Proxy(funded, [ProviderUpstream(address=provider)], token="short")


@pytest.mark.goal("CHT-06", part="failover by priority and health")
async def test_the_next_takes_over_when_one_fails_and_comes_back_when_all_do(funded, devnet, inference):
    first, second = (row["address"] for row in devnet.providers[:2])
    funded.inference.policy = type(funded.inference.policy)(busy_seconds=0.1)
    upstreams = (ProviderUpstream(address=second, priority=200), ProviderUpstream(address=first, priority=1))
    async with client_of(funded, *upstreams) as (client, _, url):

        async def asked(**options) -> str:
            create = client.chat.completions.with_raw_response.create
            return (await create(model="any", messages=HELLO, max_tokens=2, **options)).headers["x-provider-address"]

        assert await asked() == first
        inference(0, error_503=-1)
        assert await asked() == second
        assert await stream_text(client)
        inference(0, error_503=0)
        assert await asked() == second  # the first is left alone for a while
        async with (
            aiohttp.ClientSession(headers={"Authorization": f"Bearer {client.api_key}"}) as http,
            http.get(f"{url}/providers/status") as reply,
        ):
            rows = (await reply.json())["providers"]
        assert [(r["id"], r["available"]) for r in rows] == [(first, False), (second, True)]
        inference(1, error_503=-1)
        with pytest.raises(openai.APIStatusError):
            await asked()
        assert await asked() == first  # all had failed: all are asked anew


async def test_a_request_that_is_itself_wrong_goes_to_nobody_else(funded, devnet):
    addresses = [row["address"] for row in devnet.providers[:2]]
    async with client_of(funded, *(ProviderUpstream(address=a) for a in addresses)) as (client, proxy, _):
        with pytest.raises(openai.BadRequestError, match="each needs a role"):
            await client.chat.completions.create(model="any", messages=[{"content": "x"}])
        with pytest.raises(openai.BadRequestError, match="field required"):
            await client.chat.completions.create(model="any", messages=[])
        with pytest.raises(openai.BadRequestError, match="verify"):
            await client.chat.completions.create(model="any", messages=HELLO, extra_body={"verify": "off"})
        assert [proxy.upstreams.failure(u) for u in proxy.upstreams.all] == [None, None]


@pytest.mark.goal("CHT-06", part="answers are verified")
async def test_a_tampered_answer_is_not_passed_on_and_a_stream_ends_in_an_error(funded, provider, inference):
    async with client_of(funded, ProviderUpstream(address=provider)) as (client, _, _):
        inference(0, tamper=1)
        with pytest.raises(openai.InternalServerError, match="not bound"):
            await client.chat.completions.create(model="any", messages=HELLO, max_tokens=8)
        inference(0, tamper=1)
        with pytest.raises(openai.APIError, match="not bound"):
            await stream_text(client)
        inference(0, cut_stream=1)
        with pytest.raises(openai.APIError, match="end mark"):
            await stream_text(client)


@pytest.mark.goal("HRD-22", part="spend cap")
@pytest.mark.goal("CHT-06", part="spend cap")
async def test_the_spend_cap_counts_what_is_being_spent_and_holds_under_concurrency(funded, provider, inference):
    inference(0, stream_delay=0.02)
    price = (await funded.inference.get_service(provider)).output_price
    cap = 3000 * price
    async with client_of(funded, ProviderUpstream(address=provider), spend_cap=cap) as (client, proxy, _):
        outcomes = []

        async def ask():
            try:
                outcomes.append(await stream_text(client))
            except openai.APIStatusError as error:
                outcomes.append(error.status_code)
            assert proxy.budget.spent + proxy.budget.reserved <= cap

        async with anyio.create_task_group() as group:
            for _ in range(8):
                group.start_soon(ask)
        assert 402 in outcomes
        assert any(isinstance(o, str) for o in outcomes)
        assert proxy.budget.reserved == 0
        assert proxy.budget.spent == funded.inference.spending(provider).fee <= cap
        with pytest.raises(openai.APIStatusError, match="cap"):
            await client.chat.completions.create(model="any", messages=HELLO, max_tokens=100_000)


async def test_a_client_that_leaves_ends_the_request_to_the_provider(funded, provider, inference):
    inference(0, stream_delay=0.1)
    async with client_of(funded, ProviderUpstream(address=provider)) as (client, proxy, _):
        parts = await client.chat.completions.create(model="any", messages=HELLO, max_tokens=60, stream=True)
        await anext(aiter(parts))
        await parts.close()
        with anyio.fail_after(5):
            while proxy.budget.reserved:
                await anyio.sleep(0.01)


@pytest.mark.goal("CHT-06", part="plain endpoints")
async def test_a_plain_endpoint_serves_with_its_own_model_and_key_and_is_never_called_valid(funded, provider):
    seen = []

    async def endpoint(request: web.Request) -> web.StreamResponse:
        seen.append((request.headers["Authorization"], (await request.json())["model"]))
        message = {"role": "assistant", "content": "from outside"}
        head = {"id": "c1", "object": "chat.completion", "created": 1, "model": "m"}
        if (await request.json()).get("stream"):
            text = 'data: {"id":"c1","object":"chat.completion.chunk","created":1,"model":"m",'
            text += (
                '"choices":[{"index":0,"delta":{"content":"from outside"},"finish_reason":null}]}\n\ndata: [DONE]\n\n'
            )
            return web.Response(text=text, content_type="text/event-stream")
        return web.json_response({**head, "choices": [{"index": 0, "message": message, "finish_reason": "stop"}]})

    async with fake_server(endpoint) as outside:
        own = EndpointUpstream(id="mine", url=f"{outside}/v1", api_key="k" * 20, model="gpt-x")
        async with client_of(funded, ProviderUpstream(address=provider), own) as (client, proxy, url):
            answer = await client.chat.completions.create(model="any", messages=HELLO)
            assert answer.choices[0].message.content == "from outside" == await stream_text(client)
            assert seen == [("Bearer " + "k" * 20, "gpt-x")] * 2
            images = await client.images.generate(model="any", prompt="a hat")  # an endpoint serves chat only
            assert images.data
            headers = {"Authorization": f"Bearer {proxy.token}"}
            async with (
                aiohttp.ClientSession(headers=headers) as http,
                http.post(f"{url}/verify", json={"id": "c1"}) as reply,
            ):
                assert (await reply.json())["isValid"] is False
        assert "k" * 20 not in repr(own)


def test_upstreams_are_read_from_words_and_keys_only_from_the_environment(provider):
    assert parse_provider(provider).priority == 100
    assert parse_provider(f"{provider},7").priority == 7
    full = parse_endpoint("me,https://x/v1/,env:K,m,3", {"K": "secret-key"})
    assert (full.id, full.url, full.model, full.priority, full.api_key) == ("me", "https://x/v1", "m", 3, "secret-key")
    assert parse_endpoint("me,https://x/v1,env:K", {"K": "v"}).priority == 50
    for bad in ("me,https://x", "me,https://x,plain-key", "me,https://x,env:NONE", "me,https://x,env:K,m,high"):
        with pytest.raises(ConfigError) as caught:
            parse_endpoint(bad, {"K": "v"})
        assert "plain-key" not in str(caught.value)
    with pytest.raises(ConfigError):
        parse_provider("nobody")


@pytest.mark.goal("CHT-06", part="command")
async def test_the_command_serves_until_it_is_interrupted_and_tells_address_and_token(
    funded, devnet, key, provider, tmp_path
):
    environment = {**os.environ, "ZG_PRIVATE_KEY": key, "ZG_STATE_DIR": str(tmp_path / "serve")}
    words = ["serve", "--provider", provider, "--network", "local", "--rpc", devnet.rpc_url, "--port", "0"]
    command = [sys.executable, "-m", "zg_async.cli.main", *words]
    async with await anyio.open_process(command, env=environment, stderr=None) as process:
        lines = TextReceiveStream(process.stdout)
        text = ""
        with anyio.fail_after(30):
            while text.count("\n") < 2:
                text += await lines.receive()
        told = dict(line.split("=", 1) for line in text.splitlines())
        async with openai.AsyncOpenAI(
            base_url=told["OPENAI_BASE_URL"], api_key=told["OPENAI_API_KEY"], max_retries=0
        ) as client:
            assert await stream_text(client)
        process.send_signal(signal.SIGINT)
        with anyio.fail_after(15):
            assert await process.wait() == 130


@pytest.mark.goal("CHT-09")
async def test_a_stock_client_fine_tunes_and_chats_with_the_model_it_names(broker, provider, dataset):
    async with (
        JobRunner(broker) as runner,
        client_of(broker, ProviderUpstream(address=provider), runner=runner) as (
            client,
            _,
            _,
        ),
    ):
        with pytest.raises(openai.BadRequestError):
            await client.files.create(file=("bad.jsonl", b"{}\n"), purpose="fine-tune")
        file = await client.files.create(file=("train.jsonl", dataset.read_bytes()), purpose="fine-tune")
        assert [f.id async for f in await client.files.list()] == [file.id]
        assert (await client.files.content(file.id)).content == dataset.read_bytes()
        jobs = client.fine_tuning.jobs
        with pytest.raises(openai.NotFoundError):
            await jobs.create(model=MODEL, training_file="file-000000000000000000000000")
        with pytest.raises(openai.BadRequestError, match="num_train_epochs"):
            await jobs.create(model=MODEL, training_file=file.id, hyperparameters={"n_epochs": 100})
        options = {"n_epochs": 1, "batch_size": 2, "learning_rate_multiplier": 1.0, "max_steps": 3}
        job = await jobs.create(model=MODEL, training_file=file.id, hyperparameters=options, metadata={"who": "me"})
        assert job.status in ("queued", "running")
        assert job.metadata == {"who": "me"}
        assert [j.id async for j in await jobs.list()] == [job.id]

        streamed = await client.get(
            f"/fine_tuning/jobs/{job.id}/events?stream=true",
            cast_to=FineTuningJobEvent,
            stream=True,
            stream_cls=openai.AsyncStream[FineTuningJobEvent],
        )
        with anyio.fail_after(120):
            seen = [event.id async for event in streamed]
        listed = [event.id async for event in await jobs.list_events(job.id, limit=5)]
        assert listed == seen
        assert len(seen) > 8

        done = await jobs.retrieve(job.id)
        assert (done.status, done.training_file, done.hyperparameters.n_epochs) == ("succeeded", file.id, 1)
        assert done.finished_at >= done.created_at > 0
        answer = await client.chat.completions.create(
            model=done.fine_tuned_model,
            messages=[{"role": "user", "content": "Name the colour of box 1."}],
            max_tokens=8,
        )
        assert answer.model == done.fine_tuned_model
        second = await jobs.create(model=MODEL, training_file=file.id, hyperparameters=options)
        cancelled = await jobs.cancel(second.id)
        assert cancelled.status == "cancelled"
        with pytest.raises(openai.NotFoundError):
            await jobs.retrieve("ftjob-nothing")
        assert (await client.files.delete(file.id)).deleted


async def test_a_job_holds_what_the_cap_has_left_and_gives_back_what_it_did_not_cost(broker, provider, dataset):
    cap = NEURON_PER_0G
    upstream = ProviderUpstream(address=provider)
    async with (
        JobRunner(broker) as runner,
        client_of(broker, upstream, runner=runner, spend_cap=cap) as (client, proxy, _),
    ):
        file = await client.files.create(file=("train.jsonl", dataset.read_bytes()), purpose="fine-tune")
        options = {"n_epochs": 1, "batch_size": 2, "max_steps": 3}
        job = await client.fine_tuning.jobs.create(model=MODEL, training_file=file.id, hyperparameters=options)
        assert proxy.budget.reserved == cap
        with pytest.raises(openai.APIStatusError, match="cap"):
            await client.fine_tuning.jobs.create(model=MODEL, training_file=file.id, hyperparameters=options)
        with anyio.fail_after(120):
            await (await runner.attach(job.id.removeprefix("ftjob-"))).result()
        done = await client.fine_tuning.jobs.retrieve(job.id)
        assert (done.status, proxy.budget.reserved) == ("succeeded", 0)
        assert 0 < proxy.budget.spent < cap
