"""Sessions, adapters and chat against a provider that trains and serves."""

import anyio
import pytest

from tests.devnet.conftest import MODEL, PARAMS, new_key, open_broker
from zg_async import (
    AccountNotFoundError,
    AdapterError,
    AdapterState,
    ConfigError,
    NoInferenceServiceError,
    ProviderRejectedError,
    ProviderUnavailableError,
)
from zg_async.wire.inference_api import adapter_name
from zg_async.wire.signing import decode_session_token

pytestmark = pytest.mark.slow


@pytest.fixture
def inference(devnet):
    """Switch the first provider's inference side; everything is as before afterwards."""
    before = devnet.control("inference", provider=0)["inference"][0]
    yield lambda **changes: devnet.control("inference", provider=0, **changes)
    devnet.control("inference", provider=0, **before)


@pytest.fixture
def switches():
    """How the inference side is to be when it learns of the adapter; tests parametrize it."""
    return {}


@pytest.fixture
async def adapter(broker, provider, task, tmp_path, inference, switches):
    """The id of a task whose model is trained, delivered and acknowledged."""
    inference(**switches)
    await broker.fine_tuning.wait_task(provider, task)
    await broker.fine_tuning.deliver(provider, task, tmp_path / "out")
    await broker.ledger.ensure_funded(provider, "inference", "2")
    return task


# ---- services and tokens


async def test_services_and_metadata(broker, provider, devnet):
    service = await broker.inference.get_service(provider)
    assert service in await broker.inference.list_service()
    meta = await broker.inference.get_service_metadata(provider)
    assert (meta.endpoint, meta.model) == (service.url.rstrip("/") + "/v1/proxy", MODEL)
    assert (await broker.inference.get_service_metadata(provider, "ft-x")).model == "ft-x"
    with pytest.raises(NoInferenceServiceError):
        await broker.inference.get_service("0x000000000000000000000000000000000000dEaD")


@pytest.mark.goal("CHT-05", part="session")
async def test_a_session_is_ephemeral_shared_and_ends_with_a_revocation(broker, provider):
    before = await broker.chain.balance(broker.address)
    headers = await broker.inference.get_request_headers(provider)
    fields, _, _ = decode_session_token(headers["Authorization"].removeprefix("Bearer "))
    assert (fields.token_id, fields.generation) == (255, 0)
    assert fields.expires_at_ms - fields.timestamp_ms == 24 * 3600 * 1000
    assert await broker.inference.get_request_headers(provider) == headers
    assert await broker.chain.balance(broker.address) == before
    await broker.ledger.ensure_funded(provider, "inference", "1")
    await broker.inference.revoke_all_tokens(provider)
    renewed = await broker.inference.session_token(provider)
    assert renewed.generation == 1
    assert "app-sk-" not in repr(renewed)


async def test_keys_are_made_and_revoked_by_id(broker, provider):
    await broker.ledger.ensure_funded(provider, "inference", "1")
    first = await broker.inference.create_api_key(provider)
    assert (first.token_id, first.expires_at) == (0, None)
    await broker.inference.revoke_api_key(provider, 0)
    assert (await broker.inference.create_api_key(provider)).token_id == 1
    with pytest.raises(ConfigError):
        await broker.inference.create_api_key(provider, token_id=0)
    with pytest.raises(ConfigError):
        await broker.inference.revoke_api_key(provider, 255)


async def test_an_unfunded_chat_is_refused_and_moves_nothing(broker, provider):
    before = await broker.chain.balance(broker.address)
    with pytest.raises((ProviderRejectedError, AccountNotFoundError)):
        await broker.inference.chat(provider, "Hello")
    assert await broker.chain.balance(broker.address) == before


@pytest.mark.goal("CHT-01", part="multi-turn, any field; streaming comes later")
async def test_a_conversation_with_any_openai_field(broker, provider):
    await broker.ledger.ensure_funded(provider, "inference", "2")
    turns = [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi"},
        {"role": "user", "content": "Again"},
    ]
    answer = await broker.inference.chat(provider, turns, max_tokens=5, temperature=0)
    assert answer.model == MODEL
    assert answer.usage.completion_tokens <= 5
    assert answer.raw["choices"][0]["message"]["content"] == answer.content


async def test_a_revoked_session_is_renewed_once_by_itself(broker, provider, key, devnet, tmp_path):
    await broker.ledger.ensure_funded(provider, "inference", "2")
    await broker.inference.chat(provider, "Hello", max_tokens=1)
    async with open_broker(devnet, key, tmp_path / "other") as other:
        await other.inference.revoke_all_tokens(provider)
    await broker.inference.chat(provider, "Hello", max_tokens=1)


# ---- adapters


@pytest.mark.goal("ADP-01")
async def test_adapters_are_listed_typed_and_only_ours(devnet, broker, provider, adapter, tmp_path):
    with anyio.fail_after(20):
        while not (adapters := await broker.inference.lora.list_adapters(provider)):
            await anyio.sleep(0.05)
    [mine] = adapters
    assert (mine.task_id, mine.user, mine.state in set(AdapterState)) == (adapter, broker.address, True)
    assert mine.storage_root.startswith("0x")
    status = await broker.inference.lora.get_adapter_status(provider, mine.adapter_name)
    assert status.adapter_name == mine.adapter_name
    async with open_broker(devnet, new_key(devnet), tmp_path / "other") as other:
        assert await other.inference.lora.list_adapters(provider) == ()
    with pytest.raises(AdapterError, match="not found"):
        await broker.inference.lora.get_adapter_status(provider, "ft-nothing-00000000-000")


@pytest.mark.goal("ADP-02")
@pytest.mark.parametrize("switches", [{"auto_deploy": False}, {"auto_deploy": True}, {"owner_restricted": True}])
async def test_deploying_by_task_or_name_is_idempotent_and_names_the_adapter(broker, provider, adapter, switches):
    states = []
    first = await broker.inference.lora.deploy_adapter(provider, MODEL, adapter, wait=True, on_progress=states.append)
    assert first.state is AdapterState.ACTIVE
    assert states[-1] == "active"
    again = await broker.inference.lora.deploy_adapter(provider, MODEL, adapter)
    by_name = await broker.inference.lora.deploy_adapter_by_name(provider, first.adapter_name, wait=True)
    assert {first.adapter_name, again.adapter_name, by_name.adapter_name} == {adapter_name(MODEL, adapter)}


@pytest.mark.goal("ADP-03")
@pytest.mark.goal("WAT-01", part="adapters")
@pytest.mark.parametrize("switches", [{"auto_deploy": False, "load_delay": 30.0}])
async def test_waiting_streams_states_obeys_its_deadline_and_surfaces_errors(
    broker, provider, adapter, switches, monkeypatch
):
    lora = broker.inference.lora
    with pytest.raises(AdapterError, match="not active"):
        await lora.deploy_adapter(provider, MODEL, adapter, wait=True, timeout_seconds=3)
    name = await lora.resolve_adapter_name(provider, MODEL, adapter)
    with pytest.raises(TimeoutError), anyio.fail_after(0.2):
        await lora.wait_adapter(provider, name)
    seen = [a.state for a in [await anext(lora.watch_adapter(provider, name))]]
    assert seen == [AdapterState.LOADING]
    asked = []

    async def away(*_):
        asked.append(1)
        raise ProviderUnavailableError("away")

    monkeypatch.setattr(lora, "get_adapter_status", away)
    monkeypatch.setattr("zg_async.managers.lora._POLL", 0.01)
    with pytest.raises(ProviderUnavailableError, match="away"), anyio.fail_after(10):
        await lora.wait_adapter(provider, name)
    assert len(asked) == 6


@pytest.mark.goal("ADP-05")
async def test_no_inference_service_or_another_base_model_is_told_before_any_call(broker, provider):
    with pytest.raises(NoInferenceServiceError, match="not registered for inference"):
        await broker.inference.lora.deploy_adapter("0x000000000000000000000000000000000000dEaD", MODEL, "x")
    with pytest.raises(AdapterError, match=f"serves {MODEL}"):
        await broker.inference.lora.deploy_adapter(provider, "Qwen3-32B", "x")


@pytest.mark.goal("ADP-06", part="list first")
async def test_the_providers_list_decides_the_name(broker, provider, adapter):
    lora = broker.inference.lora
    with anyio.fail_after(20):
        while not await lora.list_adapters(provider):
            await anyio.sleep(0.05)
    assert await lora.resolve_adapter_name(provider, f"Qwen/{MODEL}", adapter) == adapter_name(MODEL, adapter)
    unknown = "00000000-0000-4000-8000-000000000000"
    assert await lora.resolve_adapter_name(provider, f"Qwen/{MODEL}", unknown) == adapter_name(MODEL, unknown)


@pytest.mark.goal("CHT-03")
@pytest.mark.parametrize("switches", [{"auto_deploy": False, "load_delay": 1.0}])
async def test_chat_waits_while_the_adapter_warms_up_and_never_on_what_is_final(
    devnet, broker, provider, adapter, inference, tmp_path
):
    lora = broker.inference.lora
    with anyio.fail_after(20):
        while not await lora.list_adapters(provider):
            await anyio.sleep(0.05)
    name = await lora.resolve_adapter_name(provider, MODEL, adapter)
    answer = await lora.chat(provider, name, "Name the colour of box 1.", max_tokens=4)
    assert answer.model == name
    with pytest.raises(AdapterError, match="not found"):
        await lora.chat(provider, "ft-nothing-00000000-000", "Hello")
    async with open_broker(devnet, new_key(devnet), tmp_path / "other") as other:
        await other.ledger.ensure_funded(provider, "inference", "2")
        with pytest.raises(AdapterError, match="owner"):
            await other.inference.lora.chat(provider, name, "Hello")
    assert PARAMS


@pytest.mark.goal("ADP-04", part="on the devnet")
@pytest.mark.parametrize("switches", [{"load_delay": 0.3}])
async def test_an_adapter_streams_while_it_warms_up_and_comes_back_after_it_was_put_aside(
    broker, provider, adapter, inference
):
    lora = broker.inference.lora
    with anyio.fail_after(20):
        while not await lora.list_adapters(provider):
            await anyio.sleep(0.05)
    name = await lora.resolve_adapter_name(provider, MODEL, adapter)
    turns = [{"role": "user", "content": "Name the colour of box 1."}]
    async with lora.chat_stream(provider, name, turns, max_tokens=6) as stream:
        text = "".join([delta.content async for delta in stream])
        answer = await stream.answer()
    assert (answer.model, answer.content, answer.proof.is_verified) == (name, text, True)
    inference(offload_after=0.05)
    with anyio.fail_after(20):
        while (await lora.get_adapter_status(provider, name)).state is not AdapterState.OFFLOADED:
            await anyio.sleep(0.05)
    inference(offload_after=0.0, restore_delay=0.2)
    assert (await lora.restore(provider, name)).state is AdapterState.ACTIVE
    assert (await lora.chat(provider, name, turns, max_tokens=6)).content == text
