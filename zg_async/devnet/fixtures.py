"""Pytest fixtures for programs that use 0G: `pytest_plugins = ["zg_async.devnet.fixtures"]` in conftest.py.

`zg_devnet` is a network that lasts for the whole test run, in a process of its own, so it works with every async plugin
and event loop. To change its options, override `zg_devnet_options`:

    @pytest.fixture(scope="session")
    def zg_devnet_options():
        return ("--providers", "2")
"""

from collections.abc import Iterator

import pytest

from zg_async.devnet.process import DevnetProcess


@pytest.fixture(scope="session")
def zg_devnet_options() -> tuple[str, ...]:
    """Words for the command line of `zg devnet up`."""
    return ("--limits", "off")


@pytest.fixture(scope="session")
def zg_devnet(zg_devnet_options: tuple[str, ...]) -> Iterator[DevnetProcess]:
    """Run a devnet: its URLs, contracts, providers and funded accounts, and `control` over clock and faults."""
    with DevnetProcess(*zg_devnet_options) as devnet:
        yield devnet
