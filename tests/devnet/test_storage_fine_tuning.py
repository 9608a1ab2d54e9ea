"""Models and datasets through 0G Storage: storage first, then the provider, and always a reason."""

import contextlib

import pytest

from tests.devnet.conftest import MODEL, PARAMS
from tests.devnet.storage_kit import storage_devnet
from zg_async import ConfigError, DatasetError, TaskProgress, create_broker
from zg_async.devnet.network import Devnet
from zg_async.errors import StorageError
from zg_async.managers.dataset_sources import KEPT_SECONDS, DatasetBook
from zg_async.managers.polling import PollPolicy
from zg_async.transport.http import HttpSettings
from zg_async.transport.limiter import ProviderLimits
from zg_async.wire.hashing import keccak256
from zg_async.wire.records import Address

pytestmark = pytest.mark.slow
ROWS = '{"instruction": "Say hello", "input": "", "output": "hello"}\n' * 12


@pytest.fixture
async def net():
    async with storage_devnet(2, "2", providers=1, limits="off", inference=False) as devnet:
        yield devnet


@contextlib.asynccontextmanager
async def broker_of(devnet: Devnet, folder, **options):
    options.setdefault("indexer_url", devnet.storage.indexer.url)
    options.setdefault("http", HttpSettings(limits=ProviderLimits(rate=None)))
    options.setdefault("polling", PollPolicy(first=0.1, longest=0.5, rate=50.0))
    async with create_broker(
        devnet.accounts[0].private_key, "local", rpc_url=devnet.rpc_url, state_dir=folder / "state", **options
    ) as broker:
        yield broker


async def ready(broker, provider):
    await broker.ledger.add_ledger(5 * 10**18)
    await broker.ledger.transfer_fund(provider, "fine-tuning", 2 * 10**18)
    await broker.fine_tuning.acknowledge_provider_signer(provider)


async def train(broker, provider, dataset_hash):
    task = await broker.fine_tuning.create_task(provider, MODEL, dataset_hash, PARAMS)
    await broker.fine_tuning.wait_task(provider, task, TaskProgress.DELIVERED)
    return task


@pytest.fixture
def dataset(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(ROWS)
    return path


@pytest.mark.goal("DEL-01")
@pytest.mark.parametrize("method", ["auto", "0g-storage", "tee"])
async def test_a_stored_model_is_taken_from_the_source_asked_for(net, tmp_path, dataset, method):
    node = net.providers[0]
    node.settings.root = "storage"
    async with broker_of(net, tmp_path) as broker:
        await ready(broker, node.address)
        uploaded = await broker.fine_tuning.upload_dataset_to_tee(node.address, dataset)
        task = await train(broker, node.address, uploaded.dataset_hash)
        done = await broker.fine_tuning.acknowledge_model(node.address, task, tmp_path / "model", method)
        model = done.download
        assert model.source == ("tee" if method == "tee" else "0g-storage")
        assert (model.matched, model.fallback_reason) == ("storage_root", "")
        assert [a.source for a in model.attempts] == [model.source]
        assert model.attempts[0].seconds > 0
        assert (await broker.fine_tuning.get_deliverable(node.address, task)).acknowledged


@pytest.mark.goal("DEL-01")
async def test_a_model_that_isnt_stored_comes_from_the_provider_with_the_reason(net, tmp_path, dataset):
    node = net.providers[0]
    async with broker_of(net, tmp_path) as broker:
        await ready(broker, node.address)
        uploaded = await broker.fine_tuning.upload_dataset_to_tee(node.address, dataset)
        task = await train(broker, node.address, uploaded.dataset_hash)
        with pytest.raises(StorageError, match="no storage node knows"):
            await broker.fine_tuning.acknowledge_model(node.address, task, tmp_path / "model", "0g-storage")
        with pytest.raises(ConfigError, match="unknown method"):
            await broker.fine_tuning.acknowledge_model(node.address, task, tmp_path / "model", "ftp")
        assert not (await broker.fine_tuning.get_deliverable(node.address, task)).acknowledged
        done = await broker.fine_tuning.acknowledge_model(node.address, task, tmp_path / "model")
    model = done.download
    assert (model.source, model.matched) == ("tee", "keccak256")
    assert "no storage node knows" in model.fallback_reason
    assert [(a.source, a.seconds > 0) for a in model.attempts] == [("0g-storage", True), ("tee", True)]


async def test_a_provider_trains_on_a_dataset_that_it_reads_by_its_storage_root(net, tmp_path, dataset):
    node = net.providers[0]
    async with broker_of(net, tmp_path) as broker:
        await ready(broker, node.address)
        root = await broker.fine_tuning.upload_dataset(dataset)
        assert root == await broker.storage.root(dataset)
        await train(broker, node.address, root)
        await broker.fine_tuning.download_dataset(tmp_path / "copy.jsonl", root)
    assert (tmp_path / "copy.jsonl").read_text() == ROWS


@pytest.mark.goal("DAT-07")
async def test_a_dataset_goes_to_storage_first_and_else_into_the_tee_with_the_reason(net, tmp_path, dataset):
    node = net.providers[0]
    async with broker_of(net, tmp_path) as broker:
        first = await broker.fine_tuning.provide_dataset(node.address, dataset)
        assert (first.source, first.dataset_hash) == ("0g-storage", await broker.storage.root(dataset))
        assert first.fallback_reason == ""
        assert first.fee > 0
        asked = await broker.fine_tuning.provide_dataset(node.address, dataset, "tee")
        assert (asked.source, asked.dataset_hash) == ("tee", "0x" + keccak256(ROWS.encode()).hex())
        for one in net.storage.nodes:
            await one.stop()
        other = tmp_path / "other.jsonl"
        other.write_text(ROWS * 2)
        fallen = await broker.fine_tuning.provide_dataset(node.address, other)
        assert fallen.source == "tee"
        assert "storage node" in fallen.fallback_reason
        assert [a.source for a in fallen.attempts] == ["0g-storage", "tee"]
        with pytest.raises(StorageError):
            await broker.fine_tuning.provide_dataset(node.address, other, "0g-storage")


@pytest.mark.goal("HRD-18", part="public storage")
async def test_a_plain_dataset_isnt_published_without_consent(net, tmp_path, dataset):
    node = net.providers[0]
    async with broker_of(net, tmp_path, indexer_url="https://indexer.example") as broker:
        with pytest.raises(ConfigError, match="public"):
            await broker.fine_tuning.upload_dataset(dataset)
        taken = await broker.fine_tuning.provide_dataset(node.address, dataset)
    assert taken.source == "tee"
    assert "consent" in taken.fallback_reason


async def test_a_dataset_nobody_could_train_on_isnt_stored(net, tmp_path):
    bad = tmp_path / "bad.jsonl"
    bad.write_text("[1]\n")
    async with broker_of(net, tmp_path) as broker:
        with pytest.raises(DatasetError):
            await broker.fine_tuning.upload_dataset(bad)
    assert not net.storage.log.entries


@pytest.mark.goal("DAT-08")
async def test_the_same_bytes_arent_sent_to_the_same_provider_twice(net, tmp_path, dataset):
    node = net.providers[0]
    async with broker_of(net, tmp_path) as broker:
        first = await broker.fine_tuning.provide_dataset(node.address, dataset, "tee")
        written = node.files.dataset(Address(broker.address), first.dataset_hash).stat().st_mtime_ns
        again = await broker.fine_tuning.provide_dataset(node.address, dataset, "tee")
    async with broker_of(net, tmp_path) as other_process:
        third = await other_process.fine_tuning.upload_dataset_to_tee(node.address, dataset, reuse=True)
        assert node.files.dataset(Address(other_process.address), first.dataset_hash).stat().st_mtime_ns == written
        dataset.write_text(ROWS * 2)
        changed = await other_process.fine_tuning.upload_dataset_to_tee(node.address, dataset, reuse=True)
    assert (first.reused, again.reused, third.reused, changed.reused) == (False, True, True, False)
    assert again.dataset_hash == third.dataset_hash == first.dataset_hash != changed.dataset_hash


async def test_what_a_provider_may_have_removed_is_sent_again(clock, tmp_path):
    book = DatasetBook(tmp_path, genesis="0x" + "ab" * 32, clock=clock)
    wallet, provider, other = Address("0x1"), Address("0x2"), Address("0x3")
    assert not await book.has(wallet, provider, "0xaa")
    await book.note(wallet, provider, "0xaa")
    assert await book.has(wallet, provider, "0xaa")
    assert not await book.has(wallet, other, "0xaa")
    assert not await DatasetBook(tmp_path, genesis="0x" + "cd" * 32, clock=clock).has(wallet, provider, "0xaa")
    await clock.sleep(KEPT_SECONDS)
    assert not await book.has(wallet, provider, "0xaa")
    (tmp_path / "datasets" / ("ab" * 8 + ".json")).write_text("{")
    assert not await book.has(wallet, provider, "0xaa")
