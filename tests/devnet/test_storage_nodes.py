"""Storage nodes and the indexer answer as the real ones do: rules, shards, proofs, finality, locations."""

import dataclasses
import json

import pytest

from tests.devnet.storage_kit import ask, make_file, storage_devnet
from zg_async.devnet.chain_client import Wallet
from zg_async.devnet.control import Control
from zg_async.devnet.deploy_storage import PRICE_PER_SECTOR
from zg_async.devnet.storage_network import hash_path, parse_shards
from zg_async.errors import ConfigError
from zg_async.networks import NETWORKS
from zg_async.wire.hashing import hex0x, keccak256
from zg_async.wire.merkle import SEGMENT, SegmentProof, check_segment
from zg_async.wire.segments import Segment, parse_segment
from zg_async.wire.submission import place, submit_call, submitted

pytestmark = pytest.mark.slow
BIG = 2 * SEGMENT + 1000


class Kit:
    """One devnet, a wallet, raw calls."""

    def __init__(self, devnet, folder):
        self.devnet = devnet
        self.storage = devnet.storage
        self.folder = folder
        self.wallet = Wallet(devnet.client, devnet.accounts[0].private_key)

    async def ask(self, method, *params, node=0):
        return await ask(self.devnet.session, self.storage.nodes[node].url, method, *params)

    async def result(self, method, *params, node=0):
        answer = await self.ask(method, *params, node=node)
        assert "error" not in answer, answer
        return answer["result"]

    async def refused(self, method, *params, node=0):
        error = (await self.ask(method, *params, node=node))["error"]
        return error["code"], error["message"], error.get("data")

    async def index(self, method, *params):
        return await ask(self.devnet.session, self.storage.indexer.url, method, *params)

    def file(self, size, seed=1):
        path = make_file(self.folder / f"file-{size}-{seed}", size, seed)
        return path, hash_path(path)

    async def submit(self, *trees):
        call = submit_call(self.storage.flow.address, trees, submitter=self.wallet.address, price=PRICE_PER_SECTOR)
        receipt = await self.wallet.send(call)
        await self.storage.log.round()
        return [event.submission_index for event in submitted(receipt.logs, self.storage.flow.address)]

    @staticmethod
    def segment(path, tree, index):
        return Segment.of(tree, index, path.read_bytes()[index * SEGMENT : (index + 1) * SEGMENT])

    async def rest(self, path):
        async with self.devnet.session.get(f"{self.storage.indexer.url}{path}") as reply:
            return reply.status, await reply.read()


@pytest.fixture
async def one(tmp_path):
    async with storage_devnet() as devnet:
        devnet.storage.nodes[0].settings.finalize_seconds = 0.0
        yield Kit(devnet, tmp_path)


@pytest.fixture
async def two(tmp_path):
    async with storage_devnet(2, "2") as devnet:
        for node in devnet.storage.nodes:
            node.settings.finalize_seconds = 0.0
        yield Kit(devnet, tmp_path)


async def test_the_devnets_line_names_indexer_nodes_and_flow(two):
    told = json.loads(json.dumps(two.devnet.describe()))
    assert told["flow"] == NETWORKS["local"].flow
    assert told["indexer_url"] == two.storage.indexer.url
    assert [(n["shard"], n["shards"]) for n in told["storage_nodes"]] == [(0, 2), (1, 2)]
    status = await two.result("zgs_getStatus")
    assert status["networkIdentity"]["flowAddress"] == told["flow"].lower()
    assert status["networkIdentity"]["chainId"] == told["chain_id"]
    assert await two.result("zgs_getShardConfig", node=1) == {"shardId": 1, "numShard": 2}


async def test_a_file_info_tells_the_submission(one):
    _, tree = one.file(5 * 2**20 + 13)
    assert await one.result("zgs_getFileInfo", tree.root_hash, True) is None
    (seq,) = await one.submit(tree)
    info = await one.result("zgs_getFileInfoByTxSeq", seq)
    assert info == await one.result("zgs_getFileInfo", tree.root_hash)  # old clients leave the flag out
    assert info["tx"]["dataMerkleRoot"] == tree.root_hash
    assert info["tx"]["merkleNodes"] == [[n.height + 1, hex0x(n.root)] for n in tree.nodes]
    assert info["tx"]["startEntryIndex"] == place(1, tree.size)[0]
    assert (info["tx"]["size"], info["tx"]["seq"], info["finalized"]) == (tree.size, seq, False)
    assert await one.result("zgs_checkFileFinalized", seq) is False
    assert await one.result("zgs_checkFileFinalized", 99) is None


async def test_upload_rules_are_checked_in_their_order(one):
    path, tree = one.file(BIG)
    _, other = one.file(BIG, seed=2)
    (seq,) = await one.submit(tree)
    good = one.segment(path, tree, 0)

    async def refused(segment, **changes):
        return await one.refused("zgs_uploadSegmentByTxSeq", {**segment.to_json(), **changes}, seq)

    assert await refused(good, data="") == (-32000, "data is empty", None)
    assert await refused(good, data="AAAA") == (-32000, "invalid data length", None)
    assert await refused(good, root=other.root_hash) == (-32603, "Internal error", "data root and tx seq not match")
    wrong_size = "segment file size not matched with tx file size"
    assert await refused(good, fileSize=BIG + 1) == (-32602, "Invalid params: file_size", wrong_size)
    assert (await refused(good, index=3))[:2] == (-32602, "Invalid params: index")
    assert (await refused(good, index=2))[:2] == (-32602, "Invalid params: data")
    changed = bytes([good.data[0] ^ 1]) + good.data[1:]
    assert (await refused(dataclasses.replace(good, data=changed)))[1] == "Invalid params: proof"
    assert (await refused(one.segment(path, tree, 1), index=0))[0] in (-32602, -32000)
    await one.result("zgs_uploadSegmentByTxSeq", good.to_json(), seq)
    again = "segment has already been uploaded or is being uploaded"
    assert await refused(good) == (-32000, again, None)
    assert await one.refused("zgs_uploadSegments", [good.to_json()]) == (-32000, again, None)
    assert await one.result("zgs_uploadSegmentsByTxSeq", [good.to_json()], seq) is None
    rest = [one.segment(path, tree, i).to_json() for i in (1, 2)]
    assert await one.result("zgs_uploadSegmentsByTxSeq", rest, seq) is None
    assert await refused(good) == (-32602, "Invalid params: root", "already uploaded and finalized")
    assert (await one.result("zgs_getFileInfo", tree.root_hash, True))["finalized"] is True


async def test_small_files_are_kept_until_their_transaction_comes(one):
    path, tree = one.file(1000)
    assert await one.result("zgs_uploadSegments", [one.segment(path, tree, 0).to_json()]) is None
    assert await one.result("zgs_getFileInfo", tree.root_hash, True) is None
    await one.submit(tree)
    assert (await one.result("zgs_getFileInfo", tree.root_hash, True))["finalized"] is True
    path, tree = one.file(10 * 2**20 + 1)
    text = "caching of large file when tx is unavailable is not supported"
    segment = one.segment(path, tree, 0).to_json()
    assert await one.refused("zgs_uploadSegments", [segment]) == (-32602, "Invalid params: file_size", text)


async def test_a_node_holds_its_shard_only_and_is_final_without_a_segment_of_its_own(two):
    path, tree = two.file(BIG)
    _, small = two.file(100)
    seq, small_seq = (await two.submit(tree))[0], (await two.submit(small))[0]
    start = (await two.result("zgs_getFileInfoByTxSeq", seq))["tx"]["startEntryIndex"] // 1024
    for node in (0, 1):
        others_first = sorted(range(3), key=lambda i: (start + i) % 2 == node)
        segments = [two.segment(path, tree, i).to_json() for i in others_first]
        await two.result("zgs_uploadSegmentsByTxSeq", segments, seq, node=node)
        assert (await two.result("zgs_getFileInfoByTxSeq", seq, node=node))["finalized"] is True
        for index in range(3):
            got = await two.result("zgs_downloadSegmentWithProofByTxSeq", seq, index, node=node)
            assert (got is not None) == ((start + index) % 2 == node)
    entry = (await two.result("zgs_getFileInfoByTxSeq", small_seq))["tx"]["startEntryIndex"] // 1024
    finals = [(await two.result("zgs_getFileInfoByTxSeq", small_seq, node=n))["finalized"] for n in (0, 1)]
    assert finals == [entry % 2 != 0, entry % 2 != 1]


async def test_downloads_are_whole_chunks_and_proved(one):
    path, tree = one.file(BIG)
    (seq,) = await one.submit(tree)
    for index in range(3):
        await one.result("zgs_uploadSegment", one.segment(path, tree, index).to_json())
    segment = parse_segment(await one.result("zgs_downloadSegmentWithProof", tree.root_hash, 2))
    check_segment(segment.data, segment.proof, root=tree.root, size=tree.size, index=2)
    assert segment.data[:1000] == path.read_bytes()[2 * SEGMENT :]
    assert await one.result("zgs_downloadSegmentByTxSeq", 7, 0, 1) is None
    assert await one.result("zgs_downloadSegment", tree.root_hash, 2048, 2053) is None  # only 2052 are real
    assert (await one.refused("zgs_downloadSegmentByTxSeq", seq, 0, 1025))[1] == "Invalid params: end_index"
    assert len(await one.result("zgs_downloadSegmentByTxSeq", seq, 2048, 2052)) == 4 * -(-1024 // 3)


async def test_a_root_that_is_final_is_final_again_at_once(one):
    path, tree = one.file(1000)
    await one.submit(tree)
    await one.result("zgs_uploadSegment", one.segment(path, tree, 0).to_json())
    (seq,) = await one.submit(tree)
    assert (await one.result("zgs_getFileInfoByTxSeq", seq))["finalized"] is True
    assert (await one.result("zgs_getFileInfo", tree.root_hash, True))["tx"]["seq"] == 0


async def test_faults_come_through_the_control_url(one):
    control: Control = one.devnet.control
    path, tree = one.file(BIG)
    (seq,) = await one.submit(tree)

    async def arm(**fault):
        async with one.devnet.session.post(f"{control.url}/storage", json={"node": 0, **fault}) as reply:
            assert reply.status == 200, await reply.text()

    segments = [one.segment(path, tree, i).to_json() for i in range(3)]
    await arm(too_many=1)
    refused = await one.refused("zgs_uploadSegmentsByTxSeq", segments, seq)
    assert refused[1].startswith("too many data writing: ")
    await arm(duplicate=1)
    refused = await one.refused("zgs_uploadSegmentsByTxSeq", segments, seq)
    assert refused[1] == "segment has already been uploaded or is being uploaded"
    await one.result("zgs_uploadSegmentsByTxSeq", segments, seq)
    await arm(wrong_data=1, tampered_proof=1)
    bad = parse_segment(await one.result("zgs_downloadSegmentWithProofByTxSeq", seq, 0))
    assert bad.data != segments[0]
    assert bad.proof != tree.proof(0)
    await arm(missing=1)
    assert await one.result("zgs_downloadSegmentByTxSeq", seq, 0, 1) is None
    await arm(late_sync=1000.0)
    (late,) = await one.submit(tree)
    assert await one.result("zgs_getFileInfoByTxSeq", late) is None
    async with one.devnet.session.post(f"{control.url}/indexer", json={"null_locations": 1}) as reply:
        assert reply.status == 200
    assert (await one.index("indexer_getFileLocations", tree.root_hash))["result"] is None
    assert (await one.index("indexer_getFileLocations", tree.root_hash))["result"] is not None
    async with one.devnet.session.post(f"{control.url}/storage", json={"node": 5}) as reply:
        assert reply.status == 400


async def test_the_indexer_tells_nodes_and_where_a_file_is(two):
    sharded = (await two.index("indexer_getShardedNodes"))["result"]
    assert sharded["discovered"] is None
    assert [n["config"]["shardId"] for n in sharded["trusted"]] == [0, 1]
    selected = (await two.index("indexer_getSelectedNodes", 1, "min", True, None))["result"]
    assert len(selected["trusted"]) == 2
    assert (await two.index("indexer_getSelectedNodes", 2, "min", True, None))["error"]["code"] == -32000
    path, tree = two.file(BIG)
    assert (await two.index("indexer_getFileLocations", tree.root_hash))["error"]["message"] == "file not found"
    (seq,) = await two.submit(tree)
    assert (await two.index("indexer_getFileLocations", tree.root_hash))["result"] is None
    start = place(1, tree.size)[0] // 1024
    for node in (0, 1):
        assert (await two.index("indexer_getFileLocations", tree.root_hash))["result"] is None
        own = [two.segment(path, tree, i).to_json() for i in range(3) if (start + i) % 2 == node]
        await two.result("zgs_uploadSegmentsByTxSeq", own, seq, node=node)
    assert len((await two.index("indexer_getFileLocations", tree.root_hash))["result"]) == 2


async def test_files_are_served_over_rest(two):
    path, tree = two.file(BIG)
    status, body = await two.rest(f"/file?root={tree.root_hash}")
    assert (status, json.loads(body)["code"]) == (200, 101)
    await two.storage.put_file(path, two.wallet)
    status, body = await two.rest(f"/file?root={tree.root_hash}")
    assert (status, body) == (200, path.read_bytes())
    info = json.loads((await two.rest("/file/info/0"))[1])
    assert (info["code"], info["data"]["tx"]["data"], info["data"]["finalized"]) == (0, "", True)
    infos = json.loads((await two.rest("/files/info?cid=0&cid=9"))[1])
    assert [one and one["tx"]["seq"] for one in infos["data"]] == [0, None]
    assert json.loads((await two.rest("/node/status"))[1])["data"]["nextTxSeq"] == 1
    two.storage.indexer.settings.file_limit = 10
    assert json.loads((await two.rest("/file?txSeq=0"))[1])["code"] == 105


async def test_a_sectors_proof_leads_to_the_flow_root(one):
    path, tree = one.file(1000)
    await one.submit(one.file(300, seed=5)[1])
    (seq,) = await one.submit(tree)
    await one.result("zgs_uploadSegmentByTxSeq", one.segment(path, tree, 0).to_json(), seq)
    start = (await one.result("zgs_getFileInfoByTxSeq", seq))["tx"]["startEntryIndex"]
    proof = await one.result("zgs_getSectorProof", start + 1, None)
    flow_root = await one.devnet.client.call(one.storage.flow.function("getFlowRootByTxSeq", seq))
    assert proof["lemma"][-1] == hex0x(flow_root)
    lemma = tuple(bytes.fromhex(h[2:]) for h in proof["lemma"])
    node = lemma[0]
    assert node == keccak256(path.read_bytes()[256:512])
    for sibling, left in zip(lemma[1:-1], proof["path"], strict=True):
        node = keccak256(node + sibling if left else sibling + node)
    assert SegmentProof(lemma, tuple(proof["path"])).lemma[-1] == node


async def test_ids_are_echoed_as_they_were_written(one):
    for number in ("17592186044416001", "1.8e16", '"a"', "null"):
        body = f'{{"jsonrpc":"2.0","id":{number},"method":"zgs_getShardConfig"}}'
        async with one.devnet.session.post(one.storage.nodes[0].url, data=body) as reply:
            assert f'"id":{number},' in await reply.text()
    code, _, _ = await one.refused("zgs_nothing")
    assert code == -32601


async def test_a_submission_that_a_reorganisation_takes_back_is_forgotten(one):
    _, tree = one.file(1000)
    await one.submit(tree)
    assert await one.result("zgs_getFileInfo", tree.root_hash, True) is not None
    await one.devnet.control.run("reorg", {"depth": 1})
    await one.devnet.client.request("evm_mine")
    await one.storage.log.round()
    assert await one.result("zgs_getFileInfo", tree.root_hash, True) is None


def test_shards_are_dealt_in_turn_or_told_one_by_one():
    assert parse_shards("2", 4) == [(0, 2), (1, 2), (0, 2), (1, 2)]
    assert parse_shards("0/2,1/2,0/1", 3) == [(0, 2), (1, 2), (0, 1)]
    for text, count in (("3", 3), ("0", 1), ("0/2", 2), ("2/2", 1), ("x", 1)):
        with pytest.raises(ConfigError):
            parse_shards(text, count)
