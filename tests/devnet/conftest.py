"""One devnet for the whole run, and a fresh wallet for each test."""

import json
import os
import urllib.request
from collections.abc import AsyncGenerator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.warm_zg import started
from zg_async import Broker, HttpSettings, PollPolicy, ProviderLimits, create_broker
from zg_async.devnet.fixtures import zg_devnet, zg_devnet_options
from zg_async.devnet.process import DevnetProcess
from zg_async.transport.signer import LocalSigner
from zg_async.units import NEURON_PER_0G

__all__ = ["zg_devnet", "zg_devnet_options"]


@pytest.fixture(scope="session")
def zg_devnet_options() -> tuple[str, ...]:  # noqa: F811  pytest's way to override
    return ("--limits", "off", "--providers", "2")


@pytest.fixture
def devnet(zg_devnet: DevnetProcess) -> Iterator[DevnetProcess]:
    """The shared devnet; what a test left in a provider's queue fails, so that the next one finds it empty."""
    yield zg_devnet
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    for number, provider in enumerate(zg_devnet.providers):
        with opener.open(f"{provider['url']}/v1/task/pending", timeout=60) as reply:
            waiting = int(reply.read())
        if waiting:
            zg_devnet.control("restart", provider=number)


@pytest.fixture(scope="session")
def warm_zg() -> Iterator[str]:
    """Words of a shell that run `zg` without its start."""
    with started() as words:
        yield words


@pytest.fixture
def provider(devnet: DevnetProcess) -> str:
    return devnet.providers[0]["address"]


def new_key(devnet: DevnetProcess, amount: int = 100 * NEURON_PER_0G) -> str:
    """A wallet that holds coins and nothing else."""
    key = "0x" + os.urandom(32).hex()
    if amount:
        devnet.control("faucet", address=LocalSigner.from_key(key).address, amount=str(amount))
    return key


@pytest.fixture
def key(devnet: DevnetProcess) -> str:
    return new_key(devnet)


def open_broker(devnet: DevnetProcess, key: str | None, state: Path, **options: Any) -> Broker:
    """A broker on the devnet; its provider has no rate limit, so none is kept."""
    options.setdefault("http", HttpSettings(limits=ProviderLimits(rate=None)))
    options.setdefault("polling", PollPolicy(first=0.1, longest=0.5, rate=50.0))
    network = options.pop("network", "local")
    options.setdefault("rpc_url", devnet.rpc_url)
    return create_broker(key, network, state_dir=state, **options)


@pytest.fixture
async def broker(devnet: DevnetProcess, key: str, tmp_path: Path) -> AsyncGenerator[Broker, None]:
    async with open_broker(devnet, key, tmp_path / "state") as opened:
        yield opened


@pytest.fixture
def faults(devnet: DevnetProcess) -> Iterator[Callable[..., Any]]:
    """Switch faults and settings of the first provider; all are off again afterwards."""
    yield lambda **changes: devnet.control("faults", provider=0, **changes)
    devnet.control("clear_faults")


DATASET = "".join(
    json.dumps({"instruction": f"Name the colour of box {n}.", "input": "", "output": f"Box {n} is green."}) + "\n"
    for n in range(8)
)
PARAMS = {
    "neftune_noise_alpha": 5,
    "num_train_epochs": 1,
    "per_device_train_batch_size": 2,
    "learning_rate": 0.0002,
    "max_steps": 3,
}
MODEL = "Qwen2.5-0.5B-Instruct"


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    path = tmp_path / "train.jsonl"
    path.write_text(DATASET)
    return path


@pytest.fixture
async def task(broker: Broker, provider: str, dataset: Path) -> str:
    """A task that has just been created."""
    await broker.ledger.ensure_funded(provider, "fine-tuning", "1")
    uploaded = await broker.fine_tuning.upload_dataset_to_tee(provider, dataset)
    return await broker.fine_tuning.create_task(provider, MODEL, uploaded.dataset_hash, PARAMS)
