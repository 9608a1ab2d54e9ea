"""What the flow contract is told about a file, what that costs, and where it places the file.

The contract keeps whatever is paid above the exact fee, and the next stranger may use it: never send more.
Source: 0g-storage-contracts contracts/dataFlow/{Flow,FixedPriceFlow}.sol, interfaces/Submission.sol.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from zg_async.wire import contract_abi
from zg_async.wire.contract_abi import FunctionAbi, Param
from zg_async.wire.contract_events import Submit
from zg_async.wire.contract_tables import FLOW
from zg_async.wire.contracts import Call, FlowContract, decode_log
from zg_async.wire.hashing import checksum_address
from zg_async.wire.merkle import SEGMENT_CHUNKS, MerkleTree, SubmissionNode, padded_chunk_count, submission_heights
from zg_async.wire.records import Address, Log


def _legacy(name: str) -> FunctionAbi:
    """Make the older layout of a function: the struct without the submitter around it."""
    current = contract_abi.contract_abi(FLOW).function(name)
    outer = current.inputs[0]
    inner = (outer.item or outer).components[0]
    data = Param(outer.name, inner.type + ("[]" if outer.item else ""), inner.components)
    return FunctionAbi(contract=FLOW, name=name, inputs=(data,), outputs=current.outputs, mutability=current.mutability)


LEGACY_SUBMIT: Final = _legacy("submit")
"""`submit` of flow contracts that know no submitter."""
LEGACY_BATCH_SUBMIT: Final = _legacy("batchSubmit")
_SUBMIT: Final = contract_abi.contract_abi(FLOW).function("submit")
_BATCH_SUBMIT: Final = contract_abi.contract_abi(FLOW).function("batchSubmit")


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """What the contract answers to a submission."""

    tx_seq: int
    identity: bytes
    start_entry: int
    """Sector where the file begins."""
    sectors: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A file as it is submitted."""

    size: int
    tags: bytes
    nodes: tuple[SubmissionNode, ...]
    submitter: Address | None
    """None in the older layout."""


def storage_fee(trees: Iterable[MerkleTree], price: int) -> int:
    """Return what storing files costs, in neuron, to the neuron.

    Args:
        trees: Of all files.
        price: `pricePerSector` of the market contract, neuron.
    """
    return price * sum(tree.sectors for tree in trees)


def submit_call(
    flow: str, trees: Sequence[MerkleTree], *, submitter: str, price: int, legacy: bool = False
) -> Call[tuple[Placement, ...]]:
    """Make the call that submits files, with the exact fee as its value.

    Args:
        flow: The flow contract.
        trees: Of one file (`submit`) or several (`batchSubmit`).
        submitter: Whom the event names as sender; any address but zero. Left out of the older layout.
        price: `pricePerSector`, neuron.
        legacy: Use the older layout. A contract that speaks only the other one reverts without data.

    Returns:
        A call that decodes to a placement per file, in order.

    Raises:
        ValueError: There are no files.
    """
    if not trees:
        raise ValueError("no files")
    contract, value = FlowContract(flow), storage_fee(trees, price)
    rows = [((tree.size, b"", tuple((n.root, n.height) for n in tree.nodes)), submitter) for tree in trees]
    if len(trees) == 1:
        one = contract.submit(rows[0], value=value)
        data = LEGACY_SUBMIT.selector + contract_abi.encode(LEGACY_SUBMIT.inputs, (rows[0][0],)) if legacy else one.data
        return _placing(one, data, lambda answer: (answer,))
    many = contract.batch_submit(rows, value=value)
    inner = [row[0] for row in rows]
    abi = LEGACY_BATCH_SUBMIT
    data = abi.selector + contract_abi.encode(abi.inputs, (inner,)) if legacy else many.data
    return _placing(many, data, lambda answer: zip(*answer, strict=True))


def _placing(call: Call[Any], data: bytes, rows: Any) -> Call[tuple[Placement, ...]]:
    def decode(answer: bytes) -> tuple[Placement, ...]:
        return tuple(
            Placement(tx_seq=index, identity=digest, start_entry=start, sectors=length)
            for index, digest, start, length in rows(call.decode(answer))
        )

    return dataclasses.replace(call, data=data, decode=decode)


def decode_submission(data: bytes) -> tuple[Entry, ...]:
    """Read the files back from calldata of either layout.

    Raises:
        ValueError: It is no submission, or not in canonical form.
    """
    for abi in (_SUBMIT, _BATCH_SUBMIT, LEGACY_SUBMIT, LEGACY_BATCH_SUBMIT):
        if data[:4] == abi.selector:
            break
    else:
        raise ValueError("calldata of another function")
    arguments = contract_abi.decode(abi.inputs, data[4:], limits=False)
    if contract_abi.encode(abi.inputs, arguments) != data[4:]:
        raise ValueError("calldata that isn't in canonical form")
    rows = arguments[0] if abi in (_BATCH_SUBMIT, LEGACY_BATCH_SUBMIT) else arguments
    if abi in (LEGACY_SUBMIT, LEGACY_BATCH_SUBMIT):
        return tuple(_entry(row, None) for row in rows)
    return tuple(_entry(row, checksum_address(submitter)) for row, submitter in rows)


def _entry(row: Sequence[Any], submitter: Address | None) -> Entry:
    size, tags, nodes = row
    return Entry(size=size, tags=tags, nodes=tuple(SubmissionNode(*node) for node in nodes), submitter=submitter)


def submitted(logs: Iterable[Log], flow: str) -> tuple[Submit, ...]:
    """Return the submissions among a receipt's logs, in order; only those this flow contract logged."""
    address = checksum_address(flow)
    events = (decode_log(log) for log in logs if log.address == address)
    return tuple(event for event in events if isinstance(event, Submit))


def place(tree_length: int, size: int) -> tuple[int, int]:
    """Compute where the flow contract places a file.

    A file never crosses a segment's border unless it starts on one.

    Args:
        tree_length: The flow's length in sectors before; 1 when it is new.
        size: The file's, in bytes.

    Returns:
        The sector the file starts at, and the flow's length afterwards.
    """
    heights, sectors = submission_heights(size), padded_chunk_count(size)
    length = tree_length
    start = _align(length, heights[0])
    if start % SEGMENT_CHUNKS and start // SEGMENT_CHUNKS != (start + sectors - 1) // SEGMENT_CHUNKS:
        length = start + SEGMENT_CHUNKS - start % SEGMENT_CHUNKS
    start = _align(length, heights[0])
    for height in heights:
        length = _align(length, height) + (1 << height)
    return start, length


def _align(position: int, height: int) -> int:
    return -(-position >> height) << height
