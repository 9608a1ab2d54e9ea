import dataclasses

import pytest

from tests.golden import unhex, vectors
from tests.storage_files import content
from zg_async.wire.contract_abi import encode
from zg_async.wire.contracts import FLOW, FUNCTIONS, TOPIC
from zg_async.wire.hashing import checksum_address, hex0x
from zg_async.wire.merkle import MerkleHasher, MerkleTree
from zg_async.wire.records import Log, TxHash
from zg_async.wire.submission import (
    LEGACY_BATCH_SUBMIT,
    LEGACY_SUBMIT,
    Placement,
    decode_submission,
    place,
    storage_fee,
    submit_call,
    submitted,
)

FLOW_ADDRESS = checksum_address("22" * 20)
WALLET = checksum_address("f39Fd6e51aad88F6F4ce6aB8827279cffFb92266")
CALLS = vectors("storage")["submitCalldata"]


def tree(size: int, pattern: str = "mix") -> MerkleTree:
    hasher = MerkleHasher()
    hasher.update(content(pattern, size))
    return hasher.tree()


@pytest.mark.parametrize("row", CALLS, ids=lambda r: str(r["size"]))
def test_calldata_and_fee_are_those_of_real_transactions(row):
    price = int(row["fee_at_price"]["pricePerSector"])
    made = tree(row["size"], row["pattern"])
    call = submit_call(FLOW_ADDRESS, [made], submitter=row["submitter"], price=price)
    assert hex0x(call.data) == row["calldata"]
    assert call.value == int(row["fee_at_price"]["value"]) == storage_fee([made], price)
    assert (call.to, call.name) == (FLOW_ADDRESS, "FixedPriceFlow.submit")


def test_both_layouts_have_the_reference_selectors():
    abi, trees = vectors("storage")["abi"], [tree(1), tree(1000)]

    def selector(trees, legacy):
        return hex0x(submit_call(FLOW_ADDRESS, trees, submitter=WALLET, price=1, legacy=legacy).data[:4])

    assert selector(trees[:1], False) == abi["submitSelector"]
    assert selector(trees, False) == abi["batchSubmitSelector"]
    assert selector(trees[:1], True) == abi["legacySubmitSelector"] == hex0x(LEGACY_SUBMIT.selector)
    assert selector(trees, True) == abi["legacyBatchSubmitSelector"] == hex0x(LEGACY_BATCH_SUBMIT.selector)
    assert hex0x(TOPIC["Submit"]) == abi["submitEventTopic"]


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("sizes", [[1000], [1, 1000, 5242893]])
def test_calldata_of_either_layout_reads_back(sizes, legacy):
    trees = [tree(size) for size in sizes]
    call = submit_call(FLOW_ADDRESS, trees, submitter=WALLET, price=7, legacy=legacy)
    entries = decode_submission(call.data)
    assert [(e.size, e.tags, e.nodes) for e in entries] == [(t.size, b"", t.nodes) for t in trees]
    assert {e.submitter for e in entries} == {None if legacy else WALLET}
    assert call.value == 7 * sum(t.sectors for t in trees)


@pytest.mark.parametrize("legacy", [False, True])
def test_the_answer_is_a_placement_per_file(legacy):
    abi = {f.name: f for f in FUNCTIONS[FLOW].values()}
    one = submit_call(FLOW_ADDRESS, [tree(1)], submitter=WALLET, price=1, legacy=legacy)
    expected = Placement(tx_seq=7, identity=b"i" * 32, start_entry=1024, sectors=4)
    assert one.decode(encode(abi["submit"].outputs, (7, b"i" * 32, 1024, 4))) == (expected,)
    many = submit_call(FLOW_ADDRESS, [tree(1)] * 2, submitter=WALLET, price=1, legacy=legacy)
    answer = encode(abi["batchSubmit"].outputs, ([7, 8], [b"i" * 32] * 2, [1024, 1028], [4, 4]))
    assert many.decode(answer) == (expected, dataclasses.replace(expected, tx_seq=8, start_entry=1028))


def test_nothing_to_submit_is_an_error():
    with pytest.raises(ValueError, match="no files"):
        submit_call(FLOW_ADDRESS, [], submitter=WALLET, price=1)


@pytest.mark.parametrize("data", [b"", b"\0" * 4, LEGACY_SUBMIT.selector, bytes.fromhex("bc8c11f8") + bytes(64)])
def test_what_is_no_submission_is_a_value_error(data):
    with pytest.raises(ValueError, match=r"."):
        decode_submission(data)


def test_calldata_with_something_behind_it_is_refused():
    call = submit_call(FLOW_ADDRESS, [tree(1)], submitter=WALLET, price=1)
    with pytest.raises(ValueError, match="canonical"):
        decode_submission(call.data + bytes(32))


def test_only_this_flows_submissions_count():
    made = tree(1000)
    event = ((made.size, b"", [(n.root, n.height) for n in made.nodes]),)
    inputs = next(f for f in FUNCTIONS[FLOW].values() if f.name == "submit").inputs[0].components[:1]
    uints = b"".join(n.to_bytes(32, "big") for n in (3, 1024, 4, 128))
    log = Log(
        address=FLOW_ADDRESS,
        topics=(TOPIC["Submit"], bytes(12) + unhex(WALLET), made.identity),
        data=uints + encode(inputs, event)[32:],
        block_number=1,
        block_hash="0x",
        tx_hash=TxHash("0x"),
        log_index=0,
    )
    other = dataclasses.replace(log, address=checksum_address("33" * 20))
    found = submitted([other, log, dataclasses.replace(log, topics=(b"x" * 32,))], FLOW_ADDRESS.lower())
    assert [(e.submission_index, e.start_position, e.length, e.identity) for e in found] == [
        (3, 1024, 4, made.identity)
    ]


def test_files_are_placed_as_the_real_contract_places_them():
    flow = vectors("storage")["flow"]
    length = 1
    for row in flow["sequence"]:
        made = tree(row["size"])
        start, length = place(length, row["size"])
        assert (start, length) == (row["startPos"], row["treeLength"])
        assert made.sectors == row["sectors"] == row["length"]
        assert hex0x(made.identity) == row["identity"]
        assert storage_fee([made], int(flow["pricePerSector"])) == int(row["fee"])
