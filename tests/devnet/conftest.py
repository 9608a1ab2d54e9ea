"""One devnet for the whole run, and a fresh wallet for each test."""

import os
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from zg_async import Broker, create_broker
from zg_async.devnet.fixtures import zg_devnet, zg_devnet_options
from zg_async.devnet.process import DevnetProcess
from zg_async.transport.signer import LocalSigner
from zg_async.units import NEURON_PER_0G

__all__ = ["zg_devnet", "zg_devnet_options"]


@pytest.fixture(scope="session")
def zg_devnet_options() -> tuple[str, ...]:  # noqa: F811  pytest's way to override
    return ("--limits", "off", "--providers", "2")


@pytest.fixture
def devnet(zg_devnet: DevnetProcess) -> DevnetProcess:  # noqa: F811
    return zg_devnet


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


@pytest.fixture
async def broker(devnet: DevnetProcess, key: str, tmp_path: Path) -> AsyncGenerator[Broker, None]:
    async with create_broker(private_key=key, network="local", rpc_url=devnet.rpc_url, state_dir=tmp_path) as opened:
        yield opened
