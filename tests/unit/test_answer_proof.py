"""Answers' signatures: the vectors of the peers, and the binding to bytes that they lack."""

import datetime as dt
import json

import pytest

from tests.golden import ids, vectors
from zg_async.errors import ProviderReplyError
from zg_async.wire.answer_proof import (
    AnswerStatus,
    SignedText,
    check_answer,
    parse_signature,
    signing_promise,
)
from zg_async.wire.inference_api import signature_path
from zg_async.wire.records import Address, InferenceService
from zg_async.wire.signing import personal_text_hash, sign_digest, signature_hex

V = vectors("inference")
EX = V["signature_examples"]
KEY = bytes.fromhex(EX["tee_private_key"][2:])
PROVIDER = Address("0x15d34AAf54267DB7D7c367839AAf71A00a2C6A65")


def service(**changes) -> InferenceService:
    values = {
        "provider": PROVIDER,
        "service_type": "chatbot",
        "url": "http://p",
        "input_price": 3,
        "output_price": 7,
        "updated_at": dt.datetime.now(dt.UTC),
        "model": "Qwen2.5-0.5B-Instruct",
        "verifiability": "TeeML",
        "additional_info": '{"TargetSeparated":false}',
        "tee_signer_address": Address(EX["tee_address"]),
        "tee_signer_acknowledged": True,
    }
    return InferenceService(**(values | changes))


def judge(row):
    """What `process_response` does, without the network."""
    one = service(
        url=row["service_url"],
        model=row["model"],
        verifiability=row["verifiability"],
        additional_info=row["additional_info"],
        tee_signer_address=Address(row["tee_signer"]),
        tee_signer_acknowledged=row["tee_ack"],
    )
    promise = signing_promise(one, row["chat_id"])
    if promise is not None:
        return promise
    if not row["signature_http_ok"]:
        raise ProviderReplyError("no signature")
    return check_answer(one, SignedText(text=row["text"], signature=row["signature"]), response_key=row["chat_id"])


@pytest.mark.parametrize("row", V["process_response"], ids=ids(V["process_response"]))
def test_the_signer_is_judged_as_by_the_peers(row):
    if str(row["expect_ts"]).startswith("error"):
        with pytest.raises(ProviderReplyError):
            judge(row)
        return
    proof = judge(row)
    assert proof.as_peers_say() is row["expect_ts"]
    expected = {
        True: {AnswerStatus.NOT_BOUND},
        False: {AnswerStatus.FAILED, AnswerStatus.NOT_VERIFIABLE},
        None: {AnswerStatus.SKIPPED},
    }
    assert proof.status in expected[row["expect_ts"]]
    assert not proof.is_verified


@pytest.mark.parametrize("row", [r for r in V["process_response"] if r["ts_signature_url"]], ids=lambda r: r["id"])
def test_the_signature_is_asked_for_where_the_peers_ask(row):
    ours = row["service_url"] + signature_path(row["chat_id"], row["model"])
    assert ours.replace("%2F", "/") == row["ts_signature_url"]


def prove(route_body=EX["signature_route_body"], request=EX["request_sha256"], response=(EX["response_sha256"],)):
    signed = parse_signature(json.dumps(route_body).encode(), provider=PROVIDER)
    return check_answer(service(), signed, response_key="k", request_hash=request, response_hashes=response)


def test_all_three_checks_make_an_answer_verified():
    proof = prove()
    assert proof.is_verified
    assert [(c.name, c.outcome) for c in proof.checks] == [
        ("signer", "pass"),
        ("request_hash", "pass"),
        ("response_hash", "pass"),
    ]
    assert proof.reason == ""


def test_a_right_signer_over_other_bytes_is_not_bound():
    other = "00" * 32
    assert prove(request=other).status is AnswerStatus.NOT_BOUND
    assert prove(response=(other,)).status is AnswerStatus.NOT_BOUND
    assert prove(response=(EX["response_sha256"], other)).status is AnswerStatus.NOT_BOUND
    assert prove(request=None).reason == "request_hash: no bytes to compare with"


def test_another_signer_fails_whatever_the_hashes_say():
    text = EX["signature_route_body"]["text"]
    forged = signature_hex(sign_digest(b"\x07" * 32, personal_text_hash(text)))
    assert prove({"text": text, "signature": forged}).status is AnswerStatus.FAILED
    for bad in ("", "0x", "0x12", "zz", "0x" + "00" * 65):
        assert prove({"text": text, "signature": bad}).status is AnswerStatus.FAILED


def test_a_routing_proof_binds_and_names_whom_it_was_routed_to():
    proof = prove(EX["routing_proof_route_body"])
    assert proof.is_verified
    assert proof.routed_to.startswith("centralized:openai:")


def test_images_are_bound_one_by_one_in_order():
    import base64
    import hashlib

    image = EX["image"]
    request = hashlib.sha256(image["request_body"].encode()).hexdigest()
    parts = tuple(hashlib.sha256(base64.b64decode(i)).hexdigest() for i in image["images_base64"])
    body = {"text": image["text"], "signature": signature_hex(sign_digest(KEY, personal_text_hash(image["text"])))}
    assert prove(body, request, parts).is_verified
    assert prove(body, request, parts[::-1]).status is AnswerStatus.NOT_BOUND
    assert prove(body, request, parts[:1]).status is AnswerStatus.NOT_BOUND


@pytest.mark.parametrize(
    "text", ["", ":", "a", "a:b:c", "scheme:" + "0" * 64 + ":" + "1" * 64, "A" * 64 + ":" + "b" * 64]
)
def test_a_text_of_another_form_binds_nothing(text):
    body = {"text": text, "signature": signature_hex(sign_digest(KEY, personal_text_hash(text)))}
    assert prove(body, "0" * 64, ("1" * 64,)).status is AnswerStatus.NOT_BOUND


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"text":1,"signature":""}', b"\xff"])
def test_a_signature_that_cannot_be_read_is_a_reply_error(body):
    with pytest.raises(ProviderReplyError):
        parse_signature(body, provider=PROVIDER)


def test_no_signer_at_all_is_a_failure():
    assert signing_promise(service(tee_signer_address=Address("0x" + "00" * 20)), "k").status is AnswerStatus.FAILED
    info = '{"TargetSeparated":true,"TargetTeeAddress":"junk"}'
    assert signing_promise(service(additional_info=info), "k").status is AnswerStatus.FAILED


def test_a_plain_forwarder_signs_nothing():
    info = '{"ProviderType":"standard"}'
    assert signing_promise(service(additional_info=info), "k").status is AnswerStatus.NOT_VERIFIABLE
