"""The endpoint policy is a field of the network's record."""

import dataclasses
from pathlib import Path

import pytest

from tests.devnet.conftest import open_broker
from zg_async import NETWORKS, EndpointRefusedError

README = Path(__file__).parents[2] / "README.md"


@pytest.mark.goal("SEC-06", part="field of the network's record")
def test_public_networks_allow_no_host_and_the_local_one_only_loopback():
    allowed = {name: network.allow_hosts for name, network in NETWORKS.items()}
    assert allowed.pop("local") == ("127.0.0.1", "localhost", "::1")
    assert set(allowed.values()) == {()}


@pytest.mark.goal("HRD-18", part="over http")
@pytest.mark.goal("SEC-08", part="plain http refused")
async def test_a_dataset_isnt_sent_over_plain_http_unless_the_network_or_the_user_allows_the_host(
    devnet, key, provider, dataset, tmp_path
):
    strict = dataclasses.replace(devnet.network, allow_hosts=())
    async with open_broker(devnet, key, tmp_path, network=strict) as broker:
        with pytest.raises(EndpointRefusedError, match="https") as info:
            await broker.fine_tuning.upload_dataset_to_tee(provider, dataset)
        assert "allow_hosts" in (info.value.hint or "")
        with pytest.raises(EndpointRefusedError):
            await broker.fine_tuning.verify_service(provider, None)
    async with open_broker(devnet, key, tmp_path, network=strict, allow_hosts=("127.0.0.1",)) as broker:
        uploaded = await broker.fine_tuning.upload_dataset_to_tee(provider, dataset)
        assert uploaded.size == dataset.stat().st_size


@pytest.mark.goal("SEC-08", part="documents say what is public")
def test_the_documents_say_that_task_and_log_reads_are_public():
    text = " ".join(README.read_text().split())
    assert "Anyone who knows a wallet's address can read its tasks and logs" in text
