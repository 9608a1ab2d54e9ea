"""What `tests.fuzz` feeds to each parser of outside bytes: good examples to bend, and the errors it may raise."""

import contextlib
import io
import json
import pathlib
import zipfile
from collections.abc import Callable, Sequence
from typing import NamedTuple

from tests import tee_kit
from tests.devnet.conftest import PARAMS
from tests.golden import private_key, stream, unhex, vectors
from zg_async.errors import AttestationError, EnvelopeError, ZgError
from zg_async.jobs.events import event_from_json, event_to_json
from zg_async.managers.verification_record import evidence_from_json, judge
from zg_async.transport.rpc import _by_id, _parse_reply, blob, quantity, retry_after
from zg_async.transport.unzip import Archive
from zg_async.wire import (
    adapter_files,
    answer_proof,
    billing,
    catalogue,
    contract_abi,
    envelope,
    inference_api,
    provider_api,
    rows,
    signing,
    storage_api,
    storage_directory,
    submission,
)
from zg_async.wire.attestation import check_llm_quote, check_quote, parse_td_quote
from zg_async.wire.contracts import FineTuningContract, InferenceContract, LedgerContract, decode_log
from zg_async.wire.merkle import CHUNK, SEGMENT, MerkleHasher, MerkleTree, SegmentProof, check_segment
from zg_async.wire.records import Address, Log, TxHash
from zg_async.wire.segments import Segment, parse_segment
from zg_async.wire.sse import ChatAssembler, ChatStreamParser, StreamError
from zg_async.wire.storage_crypto import open_header, seal_for, seal_with_key
from zg_async.wire.strict_json import BadJsonError, decode_json
from zg_async.wire.task_log import parse_log

FT, INFERENCE, STORAGE = vectors("fine-tuning"), vectors("inference"), vectors("storage")
PROVIDER = Address("0xE73B10aa20E0F6FD761664208f084666676010F1")
JOURNAL = pathlib.Path(__file__).parent / "journals" / "0.1.0.events.jsonl"


class Target(NamedTuple):
    """A parser, examples it takes, and what it may raise."""

    run: Callable[[bytes], object]
    seeds: Sequence[bytes]
    errors: tuple[type[Exception], ...]


def _each(*reads: Callable[[], object]) -> None:
    """Read the same bytes as one thing after the other."""
    for read in reads:
        with contextlib.suppress(ZgError):
            read()


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace")


# ---- attestation

REPORT = tee_kit.good_report()
QUOTE = bytes.fromhex(tee_kit.fields(REPORT.body)["quote"])
EVENTS = tee_kit.fields(REPORT.body)["event_log"].encode()


def _quote(data: bytes) -> None:
    parse_td_quote(data)


def _event_log(data: bytes) -> None:
    check_quote(
        tee_kit.encoded({**tee_kit.fields(REPORT.body), "event_log": _text(data)}),
        header_signature=None,
        expected_signer=tee_kit.SIGNER,
    )


def _report(data: bytes) -> None:
    for check in (check_quote, check_llm_quote):
        found = check(data, header_signature=None, expected_signer=tee_kit.SIGNER)
        found.to_json()
        found.summary()


def _record(data: bytes) -> None:
    judge(evidence_from_json(decode_json(data, limit=len(data))["evidence"]), root=tee_kit.ROOT)


# ---- envelopes

KEY = private_key(FT["ecies"][0]["recipient"])
SIGNER = FT["keys"]["tee_signer"]["address"]
SEALED = envelope.encrypt_model(
    b"k" * 32,
    b"\1" * 12,
    stream("fuzz", 300),
    lambda digest: signing.sign_digest(private_key("tee_signer"), digest),
    chunk=64,
)


def _envelope(data: bytes) -> None:
    envelope.decrypt_model(b"k" * 32, [data[:50], data[50:]], expected_signer=SIGNER, chunk=64)


# ---- chain

SERVICES = FineTuningContract(PROVIDER).get_all_services()
CALLS = (
    SERVICES,
    FineTuningContract(PROVIDER).get_account(PROVIDER, PROVIDER),
    FineTuningContract(PROVIDER).get_deliverables(PROVIDER, PROVIDER),
    InferenceContract(PROVIDER).get_account(PROVIDER, PROVIDER),
    InferenceContract(PROVIDER).get_service(PROVIDER),
    LedgerContract(PROVIDER).get_ledger(PROVIDER),
)


def _abi_seeds() -> list[bytes]:
    service = (PROVIDER, "https://a.example", (8, 64, 1, 500, "H100"), 3, False, ["m1", "m2"], PROVIDER, True)
    delivery = ("6b607314-88b0-4fef-91e7-43227a54de57", b"\1" * 32, b"\2" * 113, True, 1_767_225_600, True)
    refund = (0, 5, 1_767_225_600, False)
    outputs = {
        0: ([service, service],),
        1: ((PROVIDER, PROVIDER, 1, 2, 3, [refund], "info", [delivery], 1, 4, 5, True),),
        2: ([delivery],),
        3: ((PROVIDER, PROVIDER, 1, 2, 3, [refund], "", True, 1, 4, 7),),
        4: ((PROVIDER, "chatbot", "https://a", 1, 2, 1_767_225_600, "m", "TeeML", "{}", PROVIDER, True),),
        5: ((PROVIDER, 5, 9, ""),),
    }
    seeds = []
    for number, call in enumerate(CALLS):
        contract, function = call.name.split(".")
        found = contract_abi.contract_abi(contract).function(function)
        values = outputs[number] if len(outputs[number]) == len(found.outputs) else outputs[number][0]
        seeds.append(contract_abi.encode(found.outputs, values))
    return seeds


def _abi(data: bytes) -> None:
    _each(*(lambda call=call: call.decode(data) for call in CALLS))  # type: ignore[misc]


def _log_of(data: bytes) -> Log:
    topics, rest = data[1 : 1 + 32 * (data[:1] or b"\0")[0] % 161], data[161:]
    return Log(
        address=PROVIDER,
        topics=tuple(topics[i : i + 32] for i in range(0, len(topics), 32)),
        data=rest,
        block_number=1,
        block_hash="0x" + "00" * 32,
        tx_hash=TxHash("0x" + "11" * 32),
        log_index=0,
    )


def _log(data: bytes) -> None:
    _each(lambda: decode_log(_log_of(data)))


def _log_seeds() -> list[bytes]:
    words = bytes(12) + bytes.fromhex(PROVIDER[2:])
    body = (32).to_bytes(32, "big") * 2 + (36).to_bytes(32, "big") + b"a" * 36 + bytes(28) + (7).to_bytes(32, "big") * 4
    return [bytes([3]) + topic + words * 2 + bytes(64) + body for topic in contract_abi.EVENTS]


def _rpc(data: bytes) -> None:
    value = _parse_reply("node", 200, {"Retry-After": _text(data[:80])}, data, 4 * 1024 * 1024)
    for answer in _by_id(value if isinstance(value, list) else [value], [1, 2]):
        _each(lambda a=answer: quantity(a.get("result")), lambda a=answer: blob(a.get("result")))  # type: ignore[misc]


def _retry_after(data: bytes) -> None:
    text = _text(data)
    retry_after({"retry-after": text})
    provider_api.retry_after({"Retry-After": text})
    provider_api.rejected(429, text, provider=PROVIDER, endpoint="GET /", headers={"Retry-After": text})


# ---- providers


def _sse(data: bytes) -> None:
    parser, assembled = ChatStreamParser(), ChatAssembler()
    size = 1 + (data[0] if data else 0)
    for start in range(0, len(data), size):
        for chunk in parser.feed(data[start : start + size]):
            assembled.add(chunk)
    for chunk in parser.finish():
        assembled.add(chunk)
    assembled.answer(response_key=None)


def _task(data: bytes) -> None:
    readers = (
        provider_api.parse_task,
        provider_api.parse_tasks,
        provider_api.parse_created,
        provider_api.parse_models,
        provider_api.parse_pending,
    )
    _each(*(lambda read=read: read(data, PROVIDER) for read in readers))  # type: ignore[misc]


def _catalogue(data: bytes) -> None:
    catalogue.with_health(
        catalogue.parse_status_models(data).get(PROVIDER, ()), catalogue.parse_health(data).get(PROVIDER, ())
    )
    for kind in ("chatbot", "text-to-image", "speech-to-text", "video-generation"):
        billing.count_content(kind, _text(data))
    _each(lambda: catalogue.parse_models(data, provider=PROVIDER))


def _adapters(data: bytes) -> None:
    inference_api.classify_refusal(_text(data))
    _each(
        lambda: inference_api.parse_adapters(data, provider=PROVIDER),
        lambda: inference_api.parse_adapter(data, provider=PROVIDER),
        lambda: inference_api.parse_deploy(data, provider=PROVIDER),
        lambda: inference_api.parse_chat(data, response_key=None, provider=PROVIDER),
    )


def _signature(data: bytes) -> None:
    found = answer_proof.parse_signature(data, provider=PROVIDER)
    inference_api.is_signed_by(found.text, found.signature, PROVIDER)


def _token(data: bytes) -> None:
    text = _text(data)
    with contextlib.suppress(ValueError, ZgError):
        signing.decode_session_token(text)
    serving = INFERENCE["session_tokens"][0]["provider"]
    inference_api.check_session_token("Bearer " + text, serving_provider=serving, now_ms=0, account=None)


TOKEN = INFERENCE["session_tokens"][0]["expect"]["api_key"].encode()
TASK = json.dumps(
    {
        "id": "6b607314-88b0-4fef-91e7-43227a54de57", "createdAt": "1767225600", "updatedAt": "1767225601",
        "userAddress": PROVIDER, "preTrainedModelHash": "0x" + "11" * 32, "datasetHash": "0x" + "22" * 32,
        "trainingParams": '{"num_train_epochs": 1}', "fee": "12", "nonce": "1", "progress": "Training",
    }
).encode()  # fmt: skip
CHUNKS = (
    {"id": "x", "model": "m", "choices": [{"index": 0, "delta": {"role": "assistant", "content": "Hi"}}]},
    {"choices": [{"index": 0, "delta": {"tool_calls": [{"index": 0, "id": "c", "function": {"arguments": "{"}}]}}]},
    {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2}},
)
STREAM = b"".join(b"data: " + json.dumps(c).encode() + b"\n\n" for c in CHUNKS) + b"data: [DONE]\n\n"
LOG = (
    b"2026-01-01T00:00:00Z INFO {'loss': 1.25, 'grad_norm': 0.5, 'learning_rate': 2e-05, 'epoch': 0.1}\n"
    b"{'train_runtime': 12.5, 'train_loss': 1.1, 'epoch': 1.0}\nERROR: out of memory\n"
)
CATALOGUE = json.dumps(
    {
        "object": "list",
        "services": [{"provider": PROVIDER, "status": "healthy", "checks": {"uptime": 99.5}, "performance": {}}],
        "data": [{"id": "m", "provider": PROVIDER, "pricing": {"prompt": "1", "completion": "2"}, "created": 1}],
    }
).encode()
ADAPTERS = json.dumps({"adapters": [{"adapterName": "ft-m-1", "taskId": "t", "baseModel": "m", "state": "ready"}]})
CHAT = json.dumps({"id": "x", "choices": [{"message": {"content": "Hi"}, "finish_reason": "stop"}], "usage": {}})

# ---- storage

REPLY = b'{"jsonrpc":"2.0","id":1,"result":'

DATA = stream("file", SEGMENT + 3 * CHUNK)


def _tree() -> MerkleTree:
    hasher = MerkleHasher()
    hasher.update(DATA)
    return hasher.tree()


TREE = _tree()


def _segment_seed() -> bytes:
    return json.dumps(Segment.of(TREE, 1, DATA[SEGMENT:]).to_json()).encode()


def _nodes() -> list[bytes]:
    node = {"url": "http://1.2.3.4:5678", "config": {"numShard": 2, "shardId": 1}, "location": "x", "latency": 3}
    status = {"connectedPeers": 3, "logSyncHeight": 12, "logSyncBlock": "0x", "nextTxSeq": 7}
    status["networkIdentity"] = {"chainId": 16602, "flowAddress": PROVIDER}
    values = [{"trusted": [node], "discovered": [node]}, [node], status, True, {"numShard": 2, "shardId": 1}]
    return [REPLY + json.dumps(value).encode() + b"}" for value in values]


def _node(data: bytes) -> None:
    calls = (
        storage_api.get_status(),
        storage_api.get_file_info(b"\1" * 32),
        storage_api.get_shard_config(),
        storage_api.download_segment_with_proof(b"\1" * 32, 0),
        storage_api.sharded_nodes(),
        storage_api.file_locations(b"\1" * 32),
        storage_api.check_file_finalized(3),
    )
    _each(*(lambda call=call: call.read(data) for call in calls), lambda: storage_api.parse_rest(data))  # type: ignore[misc]


def _segment(data: bytes) -> None:
    found = parse_segment(decode_json(data, limit=len(data)))
    check_segment(found.data, found.proof, root=found.root, size=found.size, index=found.index)


def _proof_seed() -> bytes:
    proof = TREE.proof(1)
    return bytes([len(proof.lemma), *proof.path]) + b"".join(proof.lemma) + DATA[SEGMENT:]


def _proof(data: bytes) -> None:
    count = data[0] % 40 if data else 0
    path, rest = data[1 : max(count - 1, 1)], data[max(count - 1, 1) :]
    lemma = tuple(rest[32 * n : 32 * n + 32] for n in range(count))
    proof = SegmentProof(lemma, tuple(bool(step) for step in path))
    check_segment(rest[32 * count :], proof, root=TREE.root, size=len(DATA), index=1)


# ---- files


def _zip_bytes(*files: tuple[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as out:
        for name, data in files:
            out.writestr(zipfile.ZipInfo(name, (2026, 1, 1, 0, 0, 0)), data, compress_type=zipfile.ZIP_DEFLATED)
    return buffer.getvalue()


def _zip(data: bytes) -> None:
    with io.BytesIO(data) as file:
        opened = Archive(_InMemory(file), max_total=64 * 2**20)  # type: ignore[arg-type]
        try:
            for entry in opened.entries:
                for _ in opened.pieces(entry):
                    pass
        finally:
            opened.close()


class _InMemory:
    """A path to bytes in memory."""

    def __init__(self, file: io.BytesIO) -> None:
        self.file = file

    def open(self, _mode: str) -> io.BytesIO:
        return self.file


def _safetensors(data: bytes) -> None:
    adapter_files.read_header(data, len(data))


def _dataset(data: bytes) -> None:
    checker = rows.DatasetChecker()
    checker.feed(data)
    checker.finish()


HEADER = json.dumps(
    {
        "m.0.q_proj.lora_A.weight": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]},
        "m.0.q_proj.lora_B.weight": {"dtype": "F32", "shape": [2, 2], "data_offsets": [16, 32]},
    }
).encode()
SAFETENSORS = len(HEADER).to_bytes(8, "little") + HEADER + bytes(32)
CONFIG = json.dumps({"peft_type": "LORA", "r": 2, "base_model_name_or_path": "m"}).encode()


def _adapter_config(data: bytes) -> None:
    adapter_files.read_adapter(data, SAFETENSORS, len(SAFETENSORS))


def _journal(data: bytes) -> None:
    event_to_json(event_from_json(decode_json(data, limit=2**20)))


def _plain_json(data: bytes) -> None:
    decode_json(data, limit=2**20)


def _info(data: bytes) -> None:
    inference_api.parse_additional_info(_text(data))


INFO = [row["raw"].encode() for row in INFERENCE["additional_info"]]

TARGETS: dict[str, Target] = {
    "json": Target(_plain_json, [CATALOGUE, TASK, b'{"a":[1,2.5,"\\ud83d\\ude00",null,true]}'], (BadJsonError,)),
    "quote": Target(_quote, [QUOTE, b"\5" + QUOTE[1:48] + bytes(6) + QUOTE[48:]], (ValueError,)),
    "event log": Target(_event_log, [EVENTS], ()),
    "report": Target(_report, [REPORT.body, tee_kit.llm_report()], ()),
    "saved record": Target(
        _record, [json.dumps(tee_kit.judged().to_json()).encode()], (ValueError, KeyError, TypeError, AttestationError)
    ),
    "envelope": Target(_envelope, [SEALED], (ZgError,)),
    "wrapped key": Target(
        lambda d: envelope.ecies_decrypt(KEY, d), [unhex(FT["ecies"][0]["encrypted"])], (EnvelopeError,)
    ),
    "session token": Target(_token, [TOKEN], (inference_api.InvalidTokenError,)),
    "stream": Target(_sse, [STREAM, STREAM.replace(b"\n", b"\r\n"), b": hi\nevent: x\n" + STREAM], (StreamError,)),
    "task log": Target(lambda d: parse_log(d), [LOG], ()),
    "task": Target(_task, [TASK, b"[" + TASK + b"]", b"3", b'[{"name":"m","hash":"0x11"}]'], ()),
    "chat and adapters": Target(_adapters, [ADAPTERS.encode(), CHAT.encode()], ()),
    "answer signature": Target(
        _signature, [json.dumps(INFERENCE["signature_examples"]["signature_route_body"]).encode()], (ZgError,)
    ),
    "catalogue": Target(_catalogue, [CATALOGUE, b'{"n":2}', b'{"type":"duration","seconds":2.5}'], ()),
    "additional info": Target(_info, INFO, ()),
    "contract results": Target(_abi, _abi_seeds(), ()),
    "contract logs": Target(_log, _log_seeds(), ()),
    "submission": Target(
        submission.decode_submission, [unhex(r["calldata"]) for r in STORAGE["submitCalldata"][:3]], (ValueError,)
    ),
    "rpc reply": Target(_rpc, [REPLY + b'"0x10"}', b"[" + REPLY + b'"0x"}]', REPLY + b"[]}"], (ZgError,)),
    "retry-after": Target(_retry_after, [b"120", b"Fri, 20 Nov 2026 18:00:00 GMT", b'{"error":"busy"}'], ()),
    "storage node": Target(_node, [*_nodes(), REPLY + b"null}", b'{"code":0,"data":{}}'], ()),
    "segment": Target(_segment, [_segment_seed()], (ValueError,)),
    "merkle proof": Target(_proof, [_proof_seed()], (ValueError,)),
    "storage header": Target(
        lambda d: open_header(d, key=b"k" * 32, private_key=KEY),
        [seal_with_key(b"k" * 32).header, seal_for(envelope.public_key(KEY)).header],
        (ZgError, ValueError),
    ),
    "storage directory": Target(
        storage_directory.decode_directory, [unhex(STORAGE["directory"]["v1_example"]["blobHex"])], (ZgError,)
    ),
    "zip": Target(
        _zip, [_zip_bytes(("output_model/adapter_config.json", CONFIG), ("a.safetensors", SAFETENSORS))], (ZgError,)
    ),
    "safetensors": Target(_safetensors, [SAFETENSORS], (adapter_files.AdapterFileError,)),
    "adapter config": Target(_adapter_config, [CONFIG], (adapter_files.AdapterFileError,)),
    "dataset": Target(_dataset, [b'{"instruction":"a","input":"","output":"b"}\n{"text":"x"}\n'], ()),
    "training parameters": Target(rows.check_training_params, [json.dumps(PARAMS).encode()], (ZgError,)),
    "journal line": Target(_journal, JOURNAL.read_bytes().splitlines(), (ValueError,)),
}
