"""Uploads and downloads against real storage nodes, honest ones and others."""

import contextlib
import dataclasses
import os
import shutil
from collections import namedtuple

import anyio
import pytest

from tests.devnet.storage_kit import make_file, storage_devnet
from zg_async.broker import create_broker
from zg_async.devnet.accounts import dev_account
from zg_async.devnet.deploy_storage import PRICE_PER_SECTOR
from zg_async.devnet.storage_network import hash_path
from zg_async.errors import (
    ConfigError,
    EnvelopeError,
    FeeCapError,
    HashMismatchError,
    InsufficientGasFundsError,
    NotStoredError,
    StorageError,
    StorageUnavailableError,
    ZgError,
)
from zg_async.networks import NETWORKS
from zg_async.transport import storage_download, storage_part, storage_upload
from zg_async.transport.storage_settings import StorageProgress, StorageSettings
from zg_async.wire.contract_abi import contract_abi
from zg_async.wire.envelope import public_key
from zg_async.wire.merkle import SEGMENT, padded_chunk_count

pytestmark = pytest.mark.slow
BIG = 9 * SEGMENT + 1000
FAST = StorageSettings(entry_seconds=2.0, finality_seconds=2.0, busy_seconds=3.0, locate_seconds=0.5)


class Kit:
    def __init__(self, devnet, folder):
        self.devnet = devnet
        self.storage = devnet.storage
        self.nodes = devnet.storage.nodes
        self.folder = folder

    @contextlib.asynccontextmanager
    async def broker(self, account=None, settings=FAST, **options):
        key = (account or self.devnet.accounts[0]).private_key
        options.setdefault("indexer_url", self.storage.indexer.url)
        async with create_broker(
            key, "local", rpc_url=self.devnet.rpc_url, state_dir=self.folder / "state", storage=settings, **options
        ) as broker:
            yield broker

    def file(self, size=BIG, seed=1):
        return make_file(self.folder / f"source-{size}-{seed}", size, seed)

    async def submissions(self):
        return await self.devnet.client.call(self.storage.flow.num_submissions())


@pytest.fixture
async def kit(tmp_path):
    async with storage_devnet(4, "2") as devnet:  # two shards, each twice
        yield Kit(devnet, tmp_path)


def leftovers(kit):
    return sorted(p.name for p in kit.folder.iterdir() if p.name.startswith("out"))


# --- what works -------------------------------------------------------------------------------------------------------


async def test_what_was_stored_comes_back_for_the_exact_fee(kit):
    source, out = kit.file(), kit.folder / "out"
    progress = StorageProgress()
    async with kit.broker() as broker:
        assert await broker.storage.root(source) == hash_path(source).root_hash
        stored = await broker.storage.upload(source, progress=progress)
        assert stored.fee == padded_chunk_count(BIG) * PRICE_PER_SECTOR == await broker.storage.fee(source)
        assert (stored.root_hash, stored.size, stored.roots) == (hash_path(source).root_hash, BIG, (stored.root_hash,))
        assert (progress.stage, progress.bytes_done, progress.bytes_total) == ("done", BIG, BIG)
        fetched = await broker.storage.download(stored.root_hash, out, size=BIG)
    assert out.read_bytes() == source.read_bytes()
    assert (fetched.size, fetched.resumed) == (BIG, 0)
    assert len(fetched.nodes) >= 2
    assert leftovers(kit) == ["out"]
    assert await kit.devnet.client.balance(kit.storage.flow.address) == 0


async def test_each_replica_holds_its_shard(kit):
    source = kit.file()
    async with kit.broker() as broker:
        stored = await broker.storage.upload(source, replicas=2)
    assert (len(stored.nodes), stored.replicas) == (4, 2)
    root = hash_path(source).root
    assert all(node.is_final(node.find(root)) for node in kit.nodes)


class Gate:
    """Opens when enough calls wait at it together; one after another never would."""

    def __init__(self, wanted):
        self.wanted, self.inside, self.opened = wanted, set(), anyio.Event()

    async def pass_by(self, who):
        self.inside.add(who)
        if len(self.inside) >= self.wanted:
            self.opened.set()
        await self.opened.wait()

    def before(self, monkeypatch, owner, name, who):
        original = getattr(owner, name)

        async def call(*arguments):
            await self.pass_by(who(*arguments))
            return await original(*arguments)

        monkeypatch.setattr(owner, name, call)


@pytest.mark.goal("STO-02", part="all nodes at once")
async def test_segments_go_to_all_nodes_at_once(kit, monkeypatch):
    Gate(4).before(monkeypatch, storage_upload._Delivery, "_request", lambda delivery, _: delivery._peer.host)
    with anyio.fail_after(30):
        async with kit.broker() as broker:
            stored = await broker.storage.upload(kit.file(), replicas=2)
    assert len(stored.nodes) == 4


@pytest.mark.goal("STO-06", part="parallel")
async def test_segments_are_fetched_side_by_side(kit, monkeypatch):
    source, out = kit.file(), kit.folder / "out"
    async with kit.broker() as broker:
        stored = await broker.storage.upload(source)
        Gate(10).before(monkeypatch, storage_download.Download, "_ask", lambda *arguments: arguments[-1])
        with anyio.fail_after(30):
            await broker.storage.download(stored.root_hash, out)
    assert out.read_bytes() == source.read_bytes()


async def test_nothing_is_paid_for_what_is_there_and_a_lost_replica_is_filled_up(kit):
    source = kit.file()
    async with kit.broker() as broker:
        await broker.storage.upload(source)
        again = await broker.storage.upload(source)
        assert (again.fee, again.tx_hashes, await kit.submissions()) == (0, (), 1)
        more = await broker.storage.upload(source, replicas=2)
        assert (more.fee, len(more.nodes), await kit.submissions()) == (0, 4, 1)
        paid = await broker.storage.upload(source, skip_existing=False)
        assert (paid.fee > 0, await kit.submissions()) == (True, 2)


async def test_equal_roots_of_different_sizes_are_different_files(kit):
    short, long = kit.folder / "short", kit.folder / "long"
    short.write_bytes(b"x" * 1000)
    long.write_bytes(b"x" * 1000 + bytes(24))
    async with kit.broker() as broker:
        first = await broker.storage.upload(short)
        second = await broker.storage.upload(long)
        assert first.root_hash == second.root_hash
        assert await kit.submissions() == 2
        fetched = await broker.storage.download(second.root_hash, kit.folder / "out", tx_seq=second.tx_seqs[0])
        assert (fetched.size, (kit.folder / "out").read_bytes()) == (1024, long.read_bytes())
        with pytest.raises(HashMismatchError, match="1000 bytes"):
            await broker.storage.download(first.root_hash, kit.folder / "out2", size=1024)


@pytest.mark.goal("STO-08")
async def test_a_file_above_the_fragment_size_has_roots_in_order(kit):
    source, out = kit.file(5 * SEGMENT + 77), kit.folder / "out"
    async with kit.broker() as broker:
        stored = await broker.storage.upload(source, fragment_size=SEGMENT)
        assert len(stored.roots) == 6
        assert len(stored.tx_hashes) == 1
        await broker.storage.download(stored.roots, out)
        text = ",".join(stored.roots)
        await broker.storage.download(text, kit.folder / "out2")
    assert out.read_bytes() == (kit.folder / "out2").read_bytes() == source.read_bytes()


@pytest.mark.parametrize("version", [1, 2])
async def test_encrypted_files_open_with_the_right_key_only(kit, version):
    source, out = kit.file(700_000), kit.folder / "out"
    account = dev_account(5)
    seal = {"encryption_key": b"k" * 32} if version == 1 else {"recipient": public_key(account.private_key)}
    opens = {"encryption_key": b"k" * 32} if version == 1 else {"private_key": account.private_key}
    async with kit.broker() as broker:
        stored = await broker.storage.upload(source, fragment_size=2 * SEGMENT, **seal)
        assert stored.size == 700_000 + (17 if version == 1 else 50)
        fetched = await broker.storage.download(stored.roots, out, **opens)
        assert (fetched.size, out.read_bytes()) == (700_000, source.read_bytes())
        other = {"private_key": account.private_key} if version == 1 else {"encryption_key": b"k" * 32}
        with pytest.raises(EnvelopeError):
            await broker.storage.download(stored.roots, kit.folder / "out2", **other)
    assert not (kit.folder / "out2").exists()


async def test_a_directory_comes_back_whole(kit):
    folder = kit.folder / "folder"
    (folder / "sub").mkdir(parents=True)
    (folder / "a").write_bytes(b"a" * 1000)
    (folder / "empty").touch()
    (folder / "sub" / "b").write_bytes(os.urandom(300_000))
    (folder / "link").symlink_to("sub/b")
    async with kit.broker() as broker:
        stored = await broker.storage.upload(folder)
        await broker.storage.download_directory(stored.root_hash, kit.folder / "out")
    for name in ("a", "empty", "sub/b"):
        assert (kit.folder / "out" / name).read_bytes() == (folder / name).read_bytes()
    assert os.readlink(kit.folder / "out" / "link") == "sub/b"
    assert leftovers(kit) == ["out"]


async def test_named_nodes_are_used_without_an_indexer(kit):
    source = kit.file(1000)
    urls = [node.url for node in kit.nodes[:2]]
    async with kit.broker(indexer_url=None, storage_nodes=urls) as broker:
        stored = await broker.storage.upload(source)
        await broker.storage.download(stored.root_hash, kit.folder / "out")
    assert set(stored.nodes) <= set(urls)


# --- nodes that fail --------------------------------------------------------------------------------------------------


@pytest.mark.goal("STO-02", part="one node dying")
async def test_a_node_that_dies_is_replaced(kit):
    kit.nodes[0].settings.drop, kit.nodes[0].settings.method = -1, "upload"
    source = kit.file()
    async with kit.broker() as broker:
        stored = await broker.storage.upload(source)
    assert kit.nodes[0].url not in stored.nodes
    assert kit.nodes[2].url in stored.nodes  # the same shard
    assert await kit.submissions() == 1


@pytest.mark.goal("STO-02", part="too few replicas are a failure")
async def test_too_few_replicas_are_a_failure_and_what_was_paid_is_found_again(kit):
    for node in (kit.nodes[0], kit.nodes[2]):
        node.settings.refuse = -1
    source = kit.file()
    async with kit.broker() as broker:
        with pytest.raises(NotStoredError, match="not enough storage nodes"):
            await broker.storage.upload(source)
        assert await kit.submissions() == 1
        for node in kit.nodes:
            node.settings.refuse = 0
        stored = await broker.storage.upload(source)
        assert (stored.fee, await kit.submissions()) == (0, 1)
        await broker.storage.download(stored.root_hash, kit.folder / "out")


async def test_busy_nodes_duplicates_and_lost_answers_cost_only_time(kit):
    for node in kit.nodes:
        node.settings.too_many, node.settings.duplicate = 3, 1
    kit.nodes[0].settings.lose_answer, kit.nodes[0].settings.method = 2, "upload"
    source = kit.file(25 * SEGMENT)
    async with kit.broker() as broker:
        stored = await broker.storage.upload(source, replicas=2)
        await broker.storage.download(stored.root_hash, kit.folder / "out")
    assert len(stored.nodes) == 4


async def test_a_node_that_learns_late_is_waited_for(kit):
    for node in kit.nodes:
        node.settings.late_sync = 0.4
    async with kit.broker() as broker:
        assert (await broker.storage.upload(kit.file(1000))).nodes


@pytest.mark.goal("STO-04", part="deadline and progress")
async def test_waiting_for_finality_has_a_deadline_and_tells_its_stage(kit):
    for node in kit.nodes:
        node.settings.never_final = -1
    stages = []
    progress = StorageProgress(on_stage=stages.append)
    async with kit.broker(settings=StorageSettings(entry_seconds=1.0, finality_seconds=0.3)) as broker:
        with pytest.raises(NotStoredError, match="didn't confirm"):
            await broker.storage.upload(kit.file(1000), progress=progress)
        assert progress.stage == "finality"
        assert stages[:6] == ["hashing", "looking", "paying", "entry", "sending", "finality"]
        stored = await broker.storage.upload(kit.file(1000), wait_finality=False)
        assert stored.fee == 0


@pytest.mark.goal("STO-04", part="cancellation")
async def test_waiting_can_be_cancelled_and_gone_on_with(kit):
    for node in kit.nodes:
        node.settings.never_final = -1
    source = kit.file(1000)
    async with kit.broker(settings=StorageSettings()) as broker:
        with anyio.move_on_after(1.0) as scope:
            await broker.storage.upload(source)
        assert scope.cancelled_caught
        for node in kit.nodes:
            node.settings.never_final = 0
        assert (await broker.storage.upload(source)).fee == 0


@pytest.mark.goal("STO-06", part="each segment proof-checked")
@pytest.mark.parametrize("fault", ["wrong_data", "tampered_proof", "missing", "short_data", "error_5xx"])
async def test_what_a_node_gets_wrong_is_asked_of_another(kit, fault):
    source, out = kit.file(), kit.folder / "out"
    async with kit.broker() as broker:
        stored = await broker.storage.upload(source, replicas=2)
        setattr(kit.nodes[0].settings, fault, -1)
        kit.nodes[0].settings.method = "download" if fault == "error_5xx" else ""
        fetched = await broker.storage.download(stored.root_hash, out)
    assert out.read_bytes() == source.read_bytes()
    assert kit.nodes[0].url not in fetched.nodes


@pytest.mark.goal("STO-06", part="each segment proof-checked")
@pytest.mark.parametrize("size", [1000, BIG])
async def test_wrong_data_everywhere_is_an_error_and_never_a_file(kit, size):
    source, out = kit.file(size), kit.folder / "out"
    async with kit.broker() as broker:
        stored = await broker.storage.upload(source)
        for node in kit.nodes:
            node.settings.wrong_data = -1
        with pytest.raises(NotStoredError, match="can't be had"):
            await broker.storage.download(stored.root_hash, out)
        assert not out.exists()
        for node in kit.nodes:
            node.settings.wrong_data = 0
        await broker.storage.download(stored.root_hash, out)
    assert out.read_bytes() == source.read_bytes()


@pytest.mark.goal("STO-06", part="resumable")
async def test_a_cut_download_goes_on_where_it_stopped(kit):
    source, out = kit.file(), kit.folder / "out"
    settings = StorageSettings(downloads=1, locate_seconds=0.5)
    async with kit.broker(settings=settings) as broker:
        stored = await broker.storage.upload(source)
        for node in kit.nodes:
            node.settings.missing = 0
        kit.nodes[1].settings.missing = kit.nodes[3].settings.missing = -1
        with pytest.raises(NotStoredError):
            await broker.storage.download(stored.root_hash, out)
        part = kit.folder / "out.part"
        assert part.exists()
        kept = bytearray(part.read_bytes())
        for node in kit.nodes:
            node.settings.missing = 0
        fetched = await broker.storage.download(stored.root_hash, out)
    assert out.read_bytes() == source.read_bytes()
    assert 0 < fetched.resumed < BIG
    assert kept
    assert leftovers(kit) == ["out"]


@pytest.mark.goal("STO-06", part="final root checked")
async def test_segments_that_fold_to_another_root_never_get_the_name(kit, monkeypatch):
    source, out = kit.file(), kit.folder / "out"
    async with kit.broker() as broker:
        stored = await broker.storage.upload(source)
        original = storage_part.FetchedPart.write

        def swap(part, fragment, index, data, root):  # as if a wrong proof had been believed
            return original(part, fragment, index, data, b"x" * 32 if index == 3 else root)

        monkeypatch.setattr(storage_part.FetchedPart, "write", swap)
        with pytest.raises(HashMismatchError, match="was asked for"):
            await broker.storage.download(stored.root_hash, out)
    assert not out.exists()


@pytest.mark.goal("STO-06", part="atomic rename")
async def test_the_final_name_appears_with_the_last_byte_and_never_over_something(kit, monkeypatch):
    source, out, seen = kit.file(), kit.folder / "out", []
    async with kit.broker() as broker:
        stored = await broker.storage.upload(source)
        original = storage_part.publish

        def look(part, target):
            seen.append((part.read_bytes() == source.read_bytes(), out.exists()))
            original(part, target)

        monkeypatch.setattr(storage_part, "publish", look)
        await broker.storage.download(stored.root_hash, out)
        (kit.folder / "out2").write_bytes(b"precious")
        with pytest.raises(ConfigError, match="exists"):
            await broker.storage.download(stored.root_hash, kit.folder / "out2")
    assert seen == [(True, False)]
    assert (kit.folder / "out2").read_bytes() == b"precious"
    assert leftovers(kit) == ["out", "out2"]


async def test_a_damaged_part_is_fetched_again(kit):
    source, out = kit.file(), kit.folder / "out"
    async with kit.broker(settings=StorageSettings(downloads=1, locate_seconds=0.5)) as broker:
        stored = await broker.storage.upload(source)
        kit.nodes[1].settings.missing = kit.nodes[3].settings.missing = -1
        with pytest.raises(NotStoredError):
            await broker.storage.download(stored.root_hash, out)
        part = kit.folder / "out.part"
        data = bytearray(part.read_bytes())
        data[5] ^= 1
        data[SEGMENT + 5] ^= 1
        part.write_bytes(data)
        kit.nodes[1].settings.missing = kit.nodes[3].settings.missing = 0
        await broker.storage.download(stored.root_hash, out)
    assert out.read_bytes() == source.read_bytes()


async def test_the_size_that_most_nodes_name_is_taken(kit):
    source, out = kit.file(1000), kit.folder / "out"
    async with kit.broker() as broker:
        stored = await broker.storage.upload(source, replicas=2)
        kit.nodes[0].settings.wrong_size = -1
        fetched = await broker.storage.download(stored.root_hash, out)
    assert (fetched.size, out.read_bytes()) == (1000, source.read_bytes())


async def test_the_indexer_may_not_know_yet_and_may_name_dead_nodes(kit):
    kit.storage.indexer.settings.null_locations = 1
    kit.storage.indexer.settings.dead_nodes = 2
    async with kit.broker() as broker:
        stored = await broker.storage.upload(kit.file(1000))
        await broker.storage.download(stored.root_hash, kit.folder / "out")
        kit.storage.indexer.settings.lost_locations = 1
        await broker.storage.download(stored.root_hash, kit.folder / "out2")


async def test_a_reorganisation_during_an_upload_costs_no_second_fee(kit):
    for node in kit.nodes:
        node.settings.reverted = 1
    async with kit.broker() as broker:
        stored = await broker.storage.upload(kit.file(1000))
    assert stored.fee == 4 * PRICE_PER_SECTOR
    assert await kit.submissions() == 1


# --- who is paid ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lie", ["flow", "chain"])
async def test_nodes_that_name_another_contract_or_chain_arent_used_and_nobody_is_paid(kit, lie):
    async def tell(node):
        if lie == "flow":
            node.settings.flow_address = "0x" + "12" * 20
        else:
            node.settings.chain_id = 1

    await tell(kit.nodes[0])
    async with kit.broker() as broker:
        stored = await broker.storage.upload(kit.file(1000))
        assert kit.nodes[0].url not in stored.nodes
        for node in kit.nodes:
            await tell(node)
        with pytest.raises(NotStoredError, match="instead of"):
            await broker.storage.upload(kit.file(2000))
    assert await kit.submissions() == 1


def _told_by_nodes(field, value):
    def lie(kit, _broker):
        for node in kit.nodes:
            setattr(node.settings, field, value(kit) if callable(value) else value)

    return lie


def _told_by_the_chain(selector, word):
    """Answer calls of one function with another word."""

    def lie(kit, broker):
        honest = broker.chain.rpc._exchange

        async def exchange(index, asks):
            answers = [dict(answer) for answer in await honest(index, asks)]
            for ask, answer in zip(asks, answers, strict=True):
                if ask.method == "eth_call" and ask.params[0]["data"].startswith("0x" + selector.hex()):
                    answer["result"] = "0x" + (word(kit) if callable(word) else word).to_bytes(32, "big").hex()
            return answers

        broker.chain.rpc._exchange = exchange

    return lie


ATTACKER = "0x" + "5a" * 20
MARKET = contract_abi("FixedPriceFlow").function("market").selector
PRICE = contract_abi("FixedPriceMarket").function("pricePerSector").selector
LIES = {
    "nodes: another flow": _told_by_nodes("flow_address", ATTACKER),
    "nodes: no flow": _told_by_nodes("flow_address", "0x" + "00" * 20),
    "nodes: the ledger": _told_by_nodes("flow_address", lambda kit: kit.devnet.ledger),
    "nodes: the wallet": _told_by_nodes("flow_address", lambda kit: kit.devnet.accounts[0].address),
    "nodes: the fine-tuning contract": _told_by_nodes("flow_address", NETWORKS["local"].fine_tuning),
    "nodes: another chain": _told_by_nodes("chain_id", 1),
    "nodes: mainnet": _told_by_nodes("chain_id", 16661),
    "rpc: another market": _told_by_the_chain(MARKET, int(ATTACKER, 16)),
    "rpc: no market": _told_by_the_chain(MARKET, 0),
    "rpc: the flow is its market": _told_by_the_chain(MARKET, lambda kit: int(kit.storage.flow.address, 16)),
    "rpc: a price over the cap": _told_by_the_chain(PRICE, 10**12),
    "rpc: a price beyond all coins": _told_by_the_chain(PRICE, 10**30),
    "rpc: the largest price": _told_by_the_chain(PRICE, 2**256 - 1),
}


@pytest.mark.goal("HRD-06")
async def test_whoever_names_another_address_or_price_gets_nothing(kit):
    assert len(LIES) >= 12
    settings = dataclasses.replace(FAST, max_price_per_sector=PRICE_PER_SECTOR)
    for number, (name, lie) in enumerate(LIES.items()):
        async with kit.broker(settings=settings) as broker:
            before = await broker.chain.balance(broker.address)
            lie(kit, broker)
            with pytest.raises(ZgError):
                await broker.storage.upload(kit.file(1000, seed=number))
            assert await broker.chain.balance(broker.address) == before, name
            assert await broker.chain.balance(ATTACKER) == 0, name
        for node in kit.nodes:
            node.settings.flow_address, node.settings.chain_id = "", 0
        assert await kit.submissions() == 0, name
    async with kit.broker(settings=settings) as broker:
        await broker.storage.upload(kit.file(1000, seed=99))
    assert await kit.submissions() == 1


async def test_a_price_above_the_cap_isnt_paid(kit):
    async with kit.broker(settings=StorageSettings(max_price_per_sector=PRICE_PER_SECTOR - 1)) as broker:
        with pytest.raises(FeeCapError, match="the cap is"):
            await broker.storage.upload(kit.file(1000))
    assert await kit.submissions() == 0


@pytest.mark.goal("STO-03", part="an empty revert is explained")
async def test_a_contract_of_another_kind_is_named_as_the_cause(kit):
    wrong = kit.devnet.ledger
    async with kit.broker(contracts={"flow": wrong}) as broker:
        for node in kit.nodes:
            node.settings.flow_address = wrong
        with pytest.raises(StorageError):
            await broker.storage.upload(kit.file(1000))
    async with kit.broker(contracts={"flow": "0x" + "12" * 20}) as broker:
        for node in kit.nodes:
            node.settings.flow_address = "0x" + "12" * 20
        with pytest.raises(StorageError, match="no flow contract at"):
            await broker.storage.upload(kit.file(1000))


async def test_a_wallet_that_cant_pay_the_fee_signs_nothing(kit):
    poor = dev_account(30)
    async with kit.broker(poor) as broker:
        with pytest.raises(InsufficientGasFundsError, match="costs"):
            await broker.storage.upload(kit.file(1000))
    assert await kit.submissions() == 0


@pytest.mark.goal("HRD-18", part="public storage")
async def test_a_public_network_needs_consent(kit):
    public = create_broker(dev_account(1).private_key, "testnet", state_dir=kit.folder / "s")
    assert public.storage.is_public is True
    with pytest.raises(ConfigError, match="public"):
        await public.storage.upload(kit.file(1000))
    async with kit.broker() as broker:
        assert broker.storage.is_public is False


# --- bad input --------------------------------------------------------------------------------------------------------


async def test_files_that_cant_be_stored_are_named(kit):
    (kit.folder / "empty").touch()
    async with kit.broker() as broker:
        with pytest.raises(ConfigError, match="empty"):
            await broker.storage.upload(kit.folder / "empty")
        with pytest.raises(ConfigError, match="missing"):
            await broker.storage.upload(kit.folder / "missing")
        with pytest.raises(ConfigError, match="empty"):
            await broker.storage.root(kit.folder / "empty")
    assert await kit.submissions() == 0


async def test_a_file_that_changes_during_the_upload_is_an_error(kit):
    source = kit.file()
    for node in kit.nodes:
        node.settings.late_sync = 0.3
    async with kit.broker() as broker, anyio.create_task_group() as group:

        async def change():
            while not await kit.submissions():
                await anyio.sleep(0.01)
            source.write_bytes(source.read_bytes()[:-1] + b"!")

        group.start_soon(change)
        with pytest.raises(ConfigError, match="changed while"):
            await broker.storage.upload(source)


async def test_an_unknown_root_and_no_root_are_told_apart(kit):
    async with kit.broker() as broker:
        with pytest.raises(NotStoredError, match="no storage node knows"):
            await broker.storage.download("0x" + "ab" * 32, kit.folder / "out")
        with pytest.raises(ConfigError, match="no storage root"):
            await broker.storage.download("0x12", kit.folder / "out")
    assert leftovers(kit) == []


async def test_nobody_there_is_an_error_of_its_own(kit):
    source = kit.file(1000)
    async with kit.broker() as broker:
        stored = await broker.storage.upload(source)
        for node in kit.nodes:
            await node.stop()
        with pytest.raises((StorageUnavailableError, NotStoredError)):
            await broker.storage.upload(kit.file(2000))
        with pytest.raises(StorageUnavailableError):
            await broker.storage.download(stored.root_hash, kit.folder / "out")
        await kit.storage.indexer.stop()
        with pytest.raises(StorageUnavailableError):
            await broker.storage.upload(kit.file(2000))
    assert leftovers(kit) == []


async def test_more_replicas_than_there_are_nodes_is_refused_before_paying(kit):
    async with kit.broker() as broker:
        with pytest.raises(NotStoredError, match="3 replicas"):
            await broker.storage.upload(kit.file(1000), replicas=3)
        with pytest.raises(ConfigError):
            await broker.storage.upload(kit.file(1000), replicas=0)
    assert await kit.submissions() == 0


async def test_what_stands_at_the_target_is_never_overwritten(kit):
    source, out = kit.file(1000), kit.folder / "out"
    out.write_bytes(b"precious")
    async with kit.broker() as broker:
        stored = await broker.storage.upload(source)
        with pytest.raises(ConfigError, match="exists"):
            await broker.storage.download(stored.root_hash, out)
        assert out.read_bytes() == b"precious"
        await broker.storage.download(stored.root_hash, kit.folder / "out2")
        again = await broker.storage.download(stored.root_hash, kit.folder / "out2")
    assert again.resumed == 1000
    assert leftovers(kit) == ["out", "out2"]


async def test_a_disk_that_is_too_small_is_found_before_the_first_byte(kit, monkeypatch):
    source = kit.file()
    usage = namedtuple("usage", "total used free")
    async with kit.broker() as broker:
        stored = await broker.storage.upload(source)
        monkeypatch.setattr(storage_part.shutil, "disk_usage", lambda _: usage(10**9, 10**9, 1000))
        with pytest.raises(ConfigError, match="free"):
            await broker.storage.download(stored.root_hash, kit.folder / "out")
        monkeypatch.undo()
        assert leftovers(kit) == []

        def full(fd, data, offset):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(storage_part, "_write_once", full)
        with pytest.raises(ConfigError, match="No space left"):
            await broker.storage.download(stored.root_hash, kit.folder / "out")
    assert not (kit.folder / "out").exists()
    assert shutil.disk_usage(kit.folder).free > BIG


async def test_a_read_only_broker_downloads_and_refuses_to_upload(kit):
    source = kit.file(1000)
    async with kit.broker() as broker:
        stored = await broker.storage.upload(source)
    async with create_broker(
        None, "local", rpc_url=kit.devnet.rpc_url, indexer_url=kit.storage.indexer.url, state_dir=kit.folder / "s2"
    ) as reader:
        await reader.storage.download(stored.root_hash, kit.folder / "out")
        with pytest.raises(ConfigError, match="read-only"):
            await reader.storage.upload(source)
