"""A segment's answer is read the same by the short way and by the long one."""

import json

import pytest

from zg_async.transport.storage_nodes import _read_large, upload_body
from zg_async.wire import storage_api
from zg_async.wire.merkle import SEGMENT, MerkleHasher
from zg_async.wire.segments import Segment
from zg_async.wire.storage_api import NodeError, NodeReplyError


@pytest.fixture
def segment():
    data = bytes(range(256)) * 1024 + b"end"
    hasher = MerkleHasher()
    hasher.update(data)
    return Segment.of(hasher.tree(), 0, data[:SEGMENT])


def reply(result):
    return json.dumps({"jsonrpc": "2.0", "id": 1, "result": result}, separators=(",", ":")).encode()


def test_a_segment_is_read_the_same_both_ways(segment):
    call = storage_api.download_segment_with_proof(0, 0)
    body = reply(segment.to_json())
    assert _read_large(call, body) == call.read(body) == segment


@pytest.mark.parametrize(
    "change", [{"data": "AAA"}, {"data": "?" * 400}, {"data": ""}, {"index": 1}, {"proof": {"lemma": [], "path": [1]}}]
)
def test_what_the_long_way_refuses_the_short_way_refuses(segment, change):
    call = storage_api.download_segment_with_proof(0, 0)
    with pytest.raises(NodeReplyError):
        _read_large(call, reply({**segment.to_json(), **change}))


def test_an_error_with_data_stays_an_error(segment):
    del segment
    body = b'{"jsonrpc":"2.0","id":1,"error":{"code":-32602,"message":"Invalid params","data":"AAAA"}}'
    with pytest.raises(NodeError, match="AAAA"):
        _read_large(storage_api.download_segment_with_proof(0, 0), body)


def test_data_twice_is_refused(segment):
    body = reply(segment.to_json()).replace(b'"index"', b'"data":"AAAA","index"', 1)
    with pytest.raises(NodeReplyError):
        _read_large(storage_api.download_segment_with_proof(0, 0), body)


def test_an_upload_is_encoded_as_the_plain_way_does(segment):
    call = storage_api.upload_segments_by_tx((segment, segment), 7)
    assert json.loads(upload_body((segment, segment), 7)) == call.request()
