"""What a user gets wrong is told apart by class or code, says what to do next, and moves no money."""

import json
import os
import socket

import pytest

from tests.devnet.conftest import MODEL, PARAMS, new_key, open_broker
from zg_async import (
    BadKeyError,
    ChainUnavailableError,
    DatasetError,
    HttpSettings,
    InsufficientGasFundsError,
    JobRunner,
    JobSpec,
    ProviderLimits,
    ProviderUnavailableError,
    TrainingParamsError,
    UnknownNetworkError,
    create_broker,
)
from zg_async.transport.retry import RetryPolicy
from zg_async.wire.rows import MAX_TEE_SIZE

pytestmark = pytest.mark.slow
GOOD = {"instruction": "a", "input": "", "output": "b"}
ONCE = HttpSettings(limits=ProviderLimits(rate=None), retry=RetryPolicy(attempts=1))


def lines(*rows):
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def closed_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{taken.getsockname()[1]}"


@pytest.mark.parametrize("key", ["", "0x12", "0x" + "g" * 64, "0x" + "0" * 64, b"short", "word " * 12], ids=str)
def test_a_wrong_key(key, tmp_path):
    with pytest.raises(BadKeyError) as caught:
        create_broker(key, "local", state_dir=tmp_path)
    assert (caught.value.code, bool(caught.value.hint)) == ("bad_key", True)
    assert not key or str(key) not in str(caught.value)


def test_an_unknown_network(tmp_path):
    with pytest.raises(UnknownNetworkError, match="Known are") as caught:
        create_broker(os.urandom(32), "moonnet", state_dir=tmp_path)
    assert caught.value.code == "unknown_network"


async def test_an_unreachable_node(tmp_path):
    with pytest.raises(ChainUnavailableError) as caught:
        async with create_broker(os.urandom(32), "local", rpc_url=closed_port(), state_dir=tmp_path):
            pass
    assert (caught.value.code, bool(caught.value.hint)) == ("chain_unavailable", True)


async def test_an_unreachable_provider(devnet, provider, tmp_path, dataset):
    devnet.control("stop", provider=0)
    try:
        async with open_broker(devnet, new_key(devnet), tmp_path / "state", http=ONCE) as broker:
            with pytest.raises(ProviderUnavailableError) as caught:
                await broker.fine_tuning.list_task(provider)
    finally:
        devnet.control("start", provider=0)
    assert (caught.value.code, caught.value.provider, bool(caught.value.hint)) == (
        "provider_unavailable",
        provider,
        True,
    )


async def test_a_wallet_without_coins(devnet, provider, tmp_path):
    async with open_broker(devnet, new_key(devnet, 0), tmp_path / "state") as broker:
        with pytest.raises(InsufficientGasFundsError) as caught:
            await broker.ledger.ensure_funded(provider, "fine-tuning", "1")
    assert (caught.value.code, bool(caught.value.hint)) == ("insufficient_gas_funds", True)


@pytest.mark.parametrize(
    ("content", "reasons"),
    [
        (b"", ("too_few_rows",)),
        (b'{"instruction": "\xff", "output": "b"}\n', ("not_utf8",)),
        (b"instruction: a\n", ("not_json",)),
        (lines(GOOD | {"output": "b" * 10**6}) * (MAX_TEE_SIZE // 10**6 + 1), ("too_large",)),
        (lines({"text": "a"}, {"text": "b"}), ("text_lost",)),
        (lines(GOOD, {"messages": [{"role": "user", "content": "a"}]}), ("mixed_format",)),
    ],
    ids=["empty", "not UTF-8", "not JSON", "too large", "rows that would be emptied", "rows that would be flattened"],
)
async def test_a_dataset_that_cant_be_used(broker, tmp_path, content, reasons):
    path, out = tmp_path / "rows.jsonl", tmp_path / "out"
    path.write_bytes(content)
    before = await broker.chain.balance(broker.address)
    async with JobRunner(broker) as runner:
        with pytest.raises(DatasetError) as caught:
            await runner.submit(JobSpec(model=MODEL, dataset=path, training_params=PARAMS, output_dir=out))
        assert await runner.list_jobs() == ()
    assert (caught.value.code, caught.value.reasons, bool(caught.value.hint)) == ("dataset", reasons, True)
    assert await broker.chain.balance(broker.address) == before
    assert not out.exists()


@pytest.mark.parametrize(
    ("text", "parameter"),
    [
        ('"learning_rate": 1e-05, "num_train_epochs": 1', "learning_rate"),
        ('"learning_rate": 0.0002, "num_train_epochs": 11', "num_train_epochs"),
        ('"learning_rate": 0.0002, "num_train_epochs": 1, "lora_r": 8', "lora_r"),
    ],
)
async def test_parameters_that_a_provider_refuses(broker, dataset, tmp_path, text, parameter):
    path, out = tmp_path / "params.json", tmp_path / "out"
    path.write_text(f'{{"neftune_noise_alpha": 5, "per_device_train_batch_size": 2, "max_steps": 3, {text}}}')
    before = await broker.chain.balance(broker.address)
    async with JobRunner(broker) as runner:
        with pytest.raises(TrainingParamsError) as caught:
            await runner.submit(JobSpec(model=MODEL, dataset=dataset, training_params=path, output_dir=out))
    assert (caught.value.code, caught.value.parameter, bool(caught.value.hint)) == ("training_params", parameter, True)
    assert await broker.chain.balance(broker.address) == before
    assert not out.exists()
