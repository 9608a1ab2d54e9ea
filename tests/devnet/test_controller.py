"""The controller of an own provider: whom it takes, and what newer ones refuse."""

from collections.abc import AsyncIterator, Iterator

import pytest

from tests.devnet.conftest import open_broker
from zg_async import Broker, ConfigError, ProviderRejectedError
from zg_async.devnet import accounts
from zg_async.managers.controller import Controller
from zg_async.wire.controller_api import controller_url

pytestmark = pytest.mark.slow


@pytest.fixture
def newer(devnet) -> Iterator[None]:
    """The first provider's controller is one of the newest."""
    devnet.control("controller", provider=0, fixed_lists=True, needs_digest=True)
    yield
    devnet.control("controller", provider=0, fixed_lists=False, needs_digest=False, fail_update=False)


@pytest.fixture
async def controller(devnet, tmp_path) -> AsyncIterator[Controller]:
    key = accounts.fine_tuning_provider(0).private_key.hex()
    async with open_broker(devnet, key, tmp_path / "own") as broker:
        yield await broker.inference.controller(devnet.providers[0]["controller_url"])


@pytest.mark.goal("PRV-01", part="what newer controllers refuse is named")
async def test_fixed_lists_and_a_missing_digest_are_named_and_a_partial_update_is_told(newer, devnet, controller):
    for call in (controller.add_admin, controller.remove_admin):
        with pytest.raises(ProviderRejectedError, match="this controller's lists are read-only"):
            await call("0x" + "11" * 20)
    for change in (controller.add_ip, controller.remove_ip):
        with pytest.raises(ProviderRejectedError, match="this controller's lists are read-only"):
            await change("10.0.0.0/8")
    assert await controller.list_ips() == ()
    with pytest.raises(ProviderRejectedError, match="refused with 400: digest is required"):
        await controller.update_images()
    done = await controller.update_images("sha256:" + "ab" * 32)
    assert (done.success, (await controller.image_info()).digest) == (True, "sha256:" + "ab" * 32)
    devnet.control("controller", provider=0, fail_update=True)
    done = await controller.update_images("sha256:" + "cd" * 32)
    assert (done.success, done.error) == (False, "not all containers were updated")
    assert [(c.status, c.error) for c in done.containers] == [("updated", ""), ("failed", "no space left")]


async def test_only_admins_are_answered_and_forbidden_keys_are_named(broker: Broker, devnet, controller):
    stranger = await broker.inference.controller(devnet.providers[0]["controller_url"])
    with pytest.raises(ProviderRejectedError, match="403: address is not an admin") as caught:
        await stranger.list_containers()
    assert "one of its admins" in str(caught.value.hint)
    with pytest.raises(ProviderRejectedError, match="403: key PRIVATE is not allowed"):
        await controller.update_config("ingress", {"PRIVATE": "x"})
    with pytest.raises(ProviderRejectedError, match="400: config is required"):
        await controller.update_config("core", " ")


@pytest.mark.parametrize(
    ("service", "wanted"),
    [
        ("https://provider.example.org:3080/v1/", "https://controller-provider.example.org"),
        ("http://p.example", "http://controller-p.example"),
    ],
)
def test_its_address_is_derived_from_the_services(service, wanted):
    assert controller_url(service) == wanted


@pytest.mark.parametrize("service", ["http://127.0.0.1:9", "http://[::1]:9", "http://localhost:1", "nothing", ""])
def test_an_address_without_a_name_has_no_controller_to_derive(service):
    with pytest.raises(ConfigError, match="derived"):
        controller_url(service)
