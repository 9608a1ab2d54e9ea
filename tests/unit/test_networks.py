import dataclasses

import pytest

from zg_async import HttpSettings, ProviderLimits, create_broker
from zg_async.errors import ConfigError
from zg_async.networks import NETWORKS, get_network
from zg_async.wire.hashing import checksum_address


@pytest.mark.parametrize(
    ("name", "chain_id"), [("mainnet", 16661), ("testnet", 16602), ("testnet-dev", 16602), ("local", 31337)]
)
def test_a_network_has_its_chain_id(name, chain_id):
    assert get_network(name).chain_id == chain_id
    assert get_network(name).name == name


@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
def test_every_pinned_address_is_checksummed(network):
    addresses = [network.ledger, network.inference, network.fine_tuning, network.flow]
    assert all(a == checksum_address(a) for a in addresses if a is not None)


def test_no_two_roles_or_networks_share_a_serving_contract():
    addresses = [a for n in NETWORKS.values() for a in (n.ledger, n.inference, n.fine_tuning)]
    assert len(set(addresses)) == len(addresses)


@pytest.mark.parametrize("network", [n for n in NETWORKS.values() if n.name != "local"], ids=lambda n: n.name)
def test_public_networks_are_asked_over_https_and_allow_no_private_host(network):
    urls = [network.rpc_url, network.indexer_url, network.status_url, network.explorer_url]
    assert all(u.startswith("https://") for u in urls)
    assert network.allow_hosts == ()
    assert network.confirmations == 12
    assert network.provider_rate == ProviderLimits().rate


@pytest.mark.parametrize("name", ["testnet", "local"])
def test_a_broker_keeps_the_networks_limit_unless_it_is_given_one(name, tmp_path):
    own = HttpSettings(limits=ProviderLimits(rate=3.0))
    assert create_broker(network=name, state_dir=tmp_path).http.settings.limits.rate == get_network(name).provider_rate
    assert create_broker(network=name, state_dir=tmp_path, http=own).http.settings.limits.rate == 3.0


def test_an_underscore_does_for_a_dash():
    assert get_network("testnet_dev") is NETWORKS["testnet-dev"]


def test_an_own_record_is_taken_as_it_is():
    own = dataclasses.replace(NETWORKS["local"], name="mine", chain_id=5)
    assert get_network(own) is own


@pytest.mark.parametrize("name", ["", "Mainnet", "goerli", "x" * 1000])
def test_an_unknown_name_is_refused_with_the_known_ones(name):
    with pytest.raises(ConfigError, match="unknown network") as caught:
        get_network(name)
    assert "local, mainnet, testnet, testnet-dev" in caught.value.hint
    assert len(str(caught.value)) < 250


def test_records_and_table_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        NETWORKS["local"].rpc_url = "http://evil"


def test_a_chain_id_is_no_network_name():
    with pytest.raises(ConfigError, match="unknown network '16602'"):
        get_network(16602)
