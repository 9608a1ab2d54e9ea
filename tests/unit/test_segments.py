import base64
import json

import pytest

from tests.storage_files import content
from zg_async.errors import StorageError
from zg_async.wire import storage_api
from zg_async.wire.hashing import checksum_address, hex0x
from zg_async.wire.merkle import CHUNK, SEGMENT, MerkleHasher, MerkleTree, check_segment
from zg_async.wire.segments import FileInfo, Segment, StorageNode, is_node_url, parse_data, parse_segment
from zg_async.wire.shards import ShardConfig
from zg_async.wire.storage_api import NodeError, NodeRefusal, NodeReplyError, parse_rest

SIZE = 5242893
ROOT = b"r" * 32


def tree(data: bytes) -> MerkleTree:
    hasher = MerkleHasher()
    hasher.update(data)
    return hasher.tree()


def answer(result) -> bytes:
    return json.dumps({"jsonrpc": "2.0", "id": 1, "result": result}).encode()


def refusal(error) -> bytes:
    return json.dumps({"jsonrpc": "2.0", "id": 1, "error": error}).encode()


def info_json(made: MerkleTree, **changes) -> dict:
    nodes = [[n.height + 1, hex0x(n.root)] for n in made.nodes]
    tx = {"streamIds": [], "data": [], "dataMerkleRoot": made.root_hash, "merkleNodes": nodes}
    tx |= {"startEntryIndex": 16384, "size": made.size, "seq": 1}
    row = {"tx": tx, "finalized": False, "isCached": False, "uploadedSegNum": 0, "pruned": False}
    tx.update({k: v for k, v in changes.items() if k in tx})
    row.update({k: v for k, v in changes.items() if k not in tx})
    return row


# --- requests --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "method", "params"),
    [
        (storage_api.get_status(), "zgs_getStatus", []),
        (storage_api.get_shard_config(), "zgs_getShardConfig", []),
        (storage_api.get_file_info(ROOT), "zgs_getFileInfo", [hex0x(ROOT), True]),
        (storage_api.get_file_info_by_tx(7), "zgs_getFileInfoByTxSeq", [7]),
        (storage_api.check_file_finalized(7), "zgs_checkFileFinalized", [7]),
        (storage_api.check_file_finalized(ROOT), "zgs_checkFileFinalized", [hex0x(ROOT)]),
        (storage_api.download_segment(ROOT, 0, 4), "zgs_downloadSegment", [hex0x(ROOT), 0, 4]),
        (storage_api.download_segment(7, 0, 4), "zgs_downloadSegmentByTxSeq", [7, 0, 4]),
        (storage_api.download_segment_with_proof(ROOT, 3), "zgs_downloadSegmentWithProof", [hex0x(ROOT), 3]),
        (storage_api.download_segment_with_proof(7, 3), "zgs_downloadSegmentWithProofByTxSeq", [7, 3]),
        (storage_api.upload_segments([]), "zgs_uploadSegments", [[]]),
        (storage_api.upload_segments_by_tx([], 7), "zgs_uploadSegmentsByTxSeq", [[], 7]),
        (storage_api.sharded_nodes(), "indexer_getShardedNodes", []),
        (storage_api.selected_nodes(2), "indexer_getSelectedNodes", [2, "min", True, []]),
        (storage_api.file_locations(ROOT), "indexer_getFileLocations", [hex0x(ROOT)]),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_a_request_is_what_nodes_take(call, method, params):
    assert call.request(9) == {"jsonrpc": "2.0", "id": 9, "method": method, "params": params}


def test_a_segment_is_sent_and_read_back_with_its_proof():
    data = content("mix", SIZE)
    made = tree(data)
    last = Segment.of(made, 20, data[20 * SEGMENT :])
    assert len(last.data) == CHUNK
    row = json.loads(json.dumps(last.to_json()))
    assert list(row) == ["root", "data", "index", "proof", "fileSize"]
    back = parse_segment(row)
    assert back == last
    check_segment(back.data, back.proof, root=made.root, size=made.size, index=20)


def test_whole_segments_are_sent_as_they_are():
    data = content("mix", SIZE)
    assert Segment.of(tree(data), 3, data[3 * SEGMENT : 4 * SEGMENT]).data == data[3 * SEGMENT : 4 * SEGMENT]


# --- answers ---------------------------------------------------------------------------------------------------------


def test_a_status_tells_chain_and_flow():
    flow = "0x" + "ab" * 20
    row = {"connectedPeers": 3, "logSyncHeight": 12, "logSyncBlock": "0x", "nextTxSeq": 7}
    row["networkIdentity"] = {"chainId": 16602, "flowAddress": flow, "p2pProtocolVersion": {"major": 0}}
    status = storage_api.get_status().read(answer(row))
    assert (status.chain_id, status.flow) == (16602, checksum_address(flow))
    assert (status.log_sync_height, status.next_tx_seq, status.connected_peers) == (12, 7, 3)
    del row["networkIdentity"]
    assert storage_api.get_status().read(answer(row)).chain_id is None


@pytest.mark.parametrize("identity", [{}, {"chainId": 1}, {"chainId": 1, "flowAddress": "0x12"}, {"chainId": -1}, 5])
def test_a_status_with_a_broken_identity_is_refused(identity):
    with pytest.raises(NodeReplyError):
        storage_api.get_status().read(answer({"logSyncHeight": 1, "networkIdentity": identity}))


def test_an_entry_is_read_with_its_nodes():
    made = tree(content("mix", SIZE))
    info = storage_api.get_file_info(made.root).read(answer(info_json(made, uploadedSegNum=4, finalized=True)))
    assert info == FileInfo(
        root=made.root,
        size=SIZE,
        tx_seq=1,
        start_entry=16384,
        finalized=True,
        cached=False,
        uploaded_segments=4,
        pruned=False,
        nodes=made.nodes,
    )
    assert info.is_for(made)


def test_an_entry_in_the_dialects_of_old_nodes_and_the_indexer_is_read():
    made = tree(content("mix", 1000))
    row = info_json(made, data="")
    for key in ("streamIds", "merkleNodes"):
        del row["tx"][key]
    for key in ("pruned", "isCached", "uploadedSegNum"):
        del row[key]
    info = storage_api.get_file_info_by_tx(1).read(answer(row))
    assert info.is_for(made)
    assert (info.nodes, info.pruned) == ((), False)


def test_an_entry_of_the_same_root_and_another_size_is_another_file():
    made = tree(content("mix", 1000))
    info = storage_api.get_file_info(made.root).read(answer(info_json(made, size=1024)))
    assert info.root == made.root
    assert not info.is_for(made)


def test_null_means_unknown():
    assert storage_api.get_file_info(ROOT).read(answer(None)) is None
    assert storage_api.get_file_info_by_tx(1).read(answer(None)) is None
    assert storage_api.check_file_finalized(1).read(answer(None)) is None
    assert storage_api.download_segment(1, 0, 1).read(answer(None)) is None
    assert storage_api.download_segment_with_proof(1, 0).read(answer(None)) is None
    assert storage_api.file_locations(ROOT).read(answer(None)) == ()


@pytest.mark.parametrize(
    "changes",
    [
        {"size": 0},
        {"size": -1},
        {"size": "1000"},
        {"size": True},
        {"size": 2**63},
        {"seq": 2},
        {"seq": None},
        {"startEntryIndex": 1.5},
        {"dataMerkleRoot": "0x" + "11" * 32},
        {"dataMerkleRoot": "0x11"},
        {"merkleNodes": [[1, "0x" + "11" * 32]]},
        {"merkleNodes": [[0, "0x" + "11" * 32]]},
        {"merkleNodes": [["1", "0x" + "11" * 32]]},
        {"merkleNodes": [[]]},
        {"merkleNodes": {}},
        {"finalized": None},
        {"finalized": 1},
        {"pruned": "no"},
        {"uploadedSegNum": -1},
    ],
    ids=str,
)
def test_a_broken_entry_is_refused(changes):
    made = tree(content("mix", 1000))
    if changes == {"merkleNodes": {}}:
        changes = {"merkleNodes": {"1": 2}}
    with pytest.raises(NodeReplyError):
        storage_api.get_file_info_by_tx(1).read(answer(info_json(made, **changes)))


def test_the_entry_of_another_root_is_refused():
    made = tree(content("mix", 1000))
    with pytest.raises(NodeReplyError, match="another root"):
        storage_api.get_file_info(ROOT).read(answer(info_json(made)))


def test_chunks_come_as_base64_of_the_length_asked_for():
    data = content("mix", 4 * CHUNK)
    call = storage_api.download_segment(ROOT, 0, 4)
    assert call.read(answer(base64.b64encode(data).decode())) == data
    with pytest.raises(NodeReplyError, match="another length"):
        storage_api.download_segment(ROOT, 0, 3).read(answer(base64.b64encode(data).decode()))


@pytest.mark.parametrize(
    "value",
    [
        "",
        "????",
        "AAAA",
        base64.b64encode(bytes(257)).decode(),
        base64.b64encode(bytes(256)).decode().rstrip("="),
        "A" * 400_000,
        5,
        None,
        "AAAA\n",
    ],
    ids=lambda v: str(v)[:8],
)
def test_data_that_is_not_whole_chunks_of_base64_is_refused(value):
    with pytest.raises(ValueError, match=r"base64|chunks|no data"):
        parse_data(value)


def test_another_segment_than_asked_for_is_refused():
    data = content("mix", 1000)
    row = Segment.of(tree(data), 0, data).to_json()
    assert storage_api.download_segment_with_proof(5, 0).read(answer(row)).index == 0
    for key, index in ((ROOT, 0), (tree(data).root, 1), (5, 1)):
        with pytest.raises(NodeReplyError, match="another segment"):
            storage_api.download_segment_with_proof(key, index).read(answer(row))


@pytest.mark.parametrize(
    "proof",
    [
        None,
        {},
        {"lemma": [], "path": None},
        {"lemma": ["0x1"], "path": []},
        {"lemma": [], "path": [1]},
        {"lemma": ["0x" + "11" * 32] * 67, "path": []},
    ],
    ids=lambda v: str(v)[:30],
)
def test_a_broken_proof_is_refused(proof):
    data = content("mix", 1000)
    row = Segment.of(tree(data), 0, data).to_json() | {"proof": proof}
    with pytest.raises(ValueError, match=r"no |path"):
        parse_segment(row)


def test_an_upload_is_answered_with_null():
    assert storage_api.upload_segments([]).read(answer(None)) is None
    with pytest.raises(NodeReplyError):
        storage_api.upload_segments([]).read(answer("ok"))


# --- indexer ---------------------------------------------------------------------------------------------------------


def node_json(url, shard=0, count=1, **more):
    return {"url": url, "config": {"shardId": shard, "numShard": count}, **more}


def test_an_indexers_nodes_are_read_and_null_is_none():
    rows = [node_json("http://1.2.3.4:5678", 1, 2, latency=12, since=1_700_000_000)]
    nodes = storage_api.sharded_nodes().read(answer({"trusted": rows, "discovered": None}))
    expected = StorageNode(url=rows[0]["url"], config=ShardConfig(1, 2), latency=12, since=1_700_000_000)
    assert nodes.trusted == (expected,)
    assert nodes.discovered == ()
    assert storage_api.file_locations(ROOT).read(answer(rows)) == (expected,)


def test_one_bad_node_does_not_hide_the_others():
    good = node_json("http://1.2.3.4:5678")
    bad = [node_json("ftp://x"), node_json("http://a b"), node_json("http://1.1.1.1", 3, 3), {"url": 5}, {}, good]
    found = storage_api.file_locations(ROOT).read(answer([*bad, good]))
    assert [node.url for node in found] == [good["url"]]


@pytest.mark.parametrize("value", [5, {}, [5], ["x"], [None]])
def test_what_is_no_list_of_nodes_is_refused(value):
    with pytest.raises(NodeReplyError):
        storage_api.file_locations(ROOT).read(answer(value))


@pytest.mark.parametrize(
    ("url", "usable"),
    [
        ("http://127.0.0.1:5678", True),
        ("https://node.example/rpc", True),
        ("http://[::1]:5678/", True),
        ("http://user:pw@host", False),
        ("http://", False),
        ("http://host:99999", False),
        ("file:///etc/passwd", False),
        ("http://h\u043est", False),
        ("http://host/\n", False),
        ("http://" + "a" * 3000, False),
        ("http://[::1", False),
    ],
)
def test_only_plain_http_urls_are_used(url, usable):
    assert is_node_url(url) is usable


def test_rest_answers_are_unwrapped():
    assert parse_rest(b'{"code":0,"message":"Success","data":{"a":1}}') == {"a": 1}
    for code, expected in ((101, NodeRefusal.NOT_FOUND), (102, NodeRefusal.PRUNED), (1, NodeRefusal.OTHER)):
        with pytest.raises(NodeError) as caught:
            parse_rest(json.dumps({"code": code, "message": "x", "data": None}).encode())
        assert (caught.value.rpc_code, caught.value.refusal) == (code, expected)
    for body in (b"", b"[]", b'{"code":"0"}', b"<html>"):
        with pytest.raises(NodeReplyError):
            parse_rest(body)


# --- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (
            {"code": -32602, "message": "Invalid params: root", "data": "already uploaded and finalized"},
            NodeRefusal.FINALIZED,
        ),
        (
            {"code": -32000, "message": "segment has already been uploaded or is being uploaded"},
            NodeRefusal.SENT,
        ),
        ({"code": -32000, "message": "Too many data writing: 16"}, NodeRefusal.BUSY),
        ({"code": -32000, "message": "Transaction reverted, please upload again"}, NodeRefusal.REVERTED),
        ({"code": -32602, "message": "Invalid params: root", "data": "already pruned"}, NodeRefusal.PRUNED),
        ({"code": -32000, "message": "file not found"}, NodeRefusal.NOT_FOUND),
        ({"code": -32601, "message": "Method not found"}, NodeRefusal.UNKNOWN_METHOD),
        ({"code": -32602, "message": "Invalid params: proof", "data": "invalid proof"}, NodeRefusal.OTHER),
        ({}, NodeRefusal.OTHER),
        ("gone", NodeRefusal.OTHER),
        ([1], NodeRefusal.OTHER),
        ({"code": True, "message": 5, "data": {}}, NodeRefusal.OTHER),
    ],
    ids=str,
)
def test_a_refusal_is_known_by_its_text(error, expected):
    with pytest.raises(NodeError) as caught:
        storage_api.upload_segments([]).read(refusal(error))
    assert caught.value.refusal is expected
    assert isinstance(caught.value, StorageError)


def test_a_refusals_text_is_made_harmless():
    with pytest.raises(NodeError) as caught:
        storage_api.get_status().read(refusal({"code": -1, "message": "\x1b[2J" + "x" * 9999}))
    assert "\x1b" not in str(caught.value)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    "body",
    [b"", b"null", b"[]", b"{}", b'{"result":', b"<html>", b'{"result":1,"result":2}', b" " * 300_000 + b"{}"],
    ids=lambda b: str(b[:12]),
)
def test_what_is_no_answer_is_refused(body):
    with pytest.raises(NodeReplyError):
        storage_api.get_shard_config().read(body)
