import base64
import hashlib
import json

import pytest

from tests.devnet.provider_kit import TEE_KEY
from zg_async.devnet.chain_client import address_of
from zg_async.devnet.quote import build_quote, replay
from zg_async.wire.attestation import check_quote


@pytest.fixture(params=[True, False], ids=["legacy", "v2"])
def report(request):
    return json.loads(build_quote(TEE_KEY, legacy=request.param).body)


def test_the_quote_has_the_public_layout(report):
    quote = bytes.fromhex(report["quote"])
    assert (quote[0:2], quote[4:8]) == (b"\x04\x00", b"\x81\x00\x00\x00")
    assert len(quote) == 48 + 584 + 4 + int.from_bytes(quote[632:636], "little")


def test_report_data_stands_at_offset_568(report):
    assert bytes.fromhex(report["quote"])[568:632] == base64.b64decode(report["report_data"])


def test_the_event_log_replays_to_every_register(report):
    quote, events = bytes.fromhex(report["quote"]), json.loads(report["event_log"])
    for imr in range(4):
        assert replay(events, imr) == quote[376 + 48 * imr : 424 + 48 * imr]


def test_runtime_events_have_the_digest_of_their_payload(report):
    for event in json.loads(report["event_log"]):
        if event["imr"] == 3:
            head = event["event_type"].to_bytes(4, "little") + b":" + event["event"].encode() + b":"
            assert hashlib.sha384(head + bytes.fromhex(event["event_payload"])).hexdigest() == event["digest"]


def test_the_compose_hash_is_in_the_log_and_in_mrconfigid(report):
    compose = json.loads(report["tcb_info"])["app_compose"]
    digest = hashlib.sha256(compose.encode()).digest()
    names = [event["event"] for event in json.loads(report["event_log"])]
    payload = next(e["event_payload"] for e in json.loads(report["event_log"]) if e["event"] == "compose-hash")
    assert payload == digest.hex()
    assert names.index("compose-hash") < names.index("system-ready")
    assert bytes.fromhex(report["quote"])[232:280] == b"\x01" + digest + bytes(15)
    assert "@sha256:" in json.loads(compose)["docker_compose_file"]


def test_legacy_report_data_is_the_signers_address_as_text():
    data = base64.b64decode(json.loads(build_quote(TEE_KEY).body)["report_data"])
    assert data == address_of(TEE_KEY).encode() + bytes(22)


def test_services_differ_in_their_compose_hash():
    assert build_quote(TEE_KEY).body != build_quote(TEE_KEY, name="inference").body


@pytest.mark.parametrize("legacy", [True, False])
def test_every_offline_check_of_the_sdk_passes(legacy):
    quote = build_quote(TEE_KEY, legacy=legacy)
    report = check_quote(quote.body, header_signature=quote.signature, expected_signer=address_of(TEE_KEY))
    assert {check.name: check.outcome for check in report.checks if check.outcome == "fail"} == {}
    assert any(check.outcome == "pass" for check in report.checks)
    assert report.signer == address_of(TEE_KEY)
