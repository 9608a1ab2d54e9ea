"""Reports: each check by itself, and nothing that isn't a report passes."""

import base64
import hashlib
import json
import time

import pytest

from tests.golden import ids, private_key, unhex, vectors
from zg_async.wire import attestation
from zg_async.wire.attestation import (
    MANDATORY,
    RUNTIME_EVENT,
    check_quote,
    event_digest,
    parse_td_quote,
    replay_rtmr,
    report_data_signer,
)
from zg_async.wire.hashing import keccak256
from zg_async.wire.signing import eip191_hash, sign_digest, signature_hex

FT = vectors("fine-tuning")
SIGNER = FT["keys"]["tee_signer"]["address"]
KEY = private_key("tee_signer")
COMPOSE = json.dumps({"docker_compose_file": "services:\n  broker:\n    image: a/b@sha256:" + "0" * 64 + "\n"})
SHA = hashlib.sha256(COMPOSE.encode()).hexdigest()
ASCII = SIGNER.encode().ljust(64, b"\0")
NEWER = b"\7" * 32 + unhex(SIGNER) + (1).to_bytes(4, "big") + bytes(8)


def runtime(name: str, payload: str = "") -> dict:
    event = {"imr": 3, "event_type": RUNTIME_EVENT, "event": name, "event_payload": payload}
    return {**event, "digest": event_digest(event).hex()}


def events(*more: dict) -> list[dict]:
    boot = [
        {"imr": n, "event_type": 1, "digest": bytes([n] * 48).hex(), "event": "", "event_payload": ""} for n in range(3)
    ]
    return [*boot, runtime("app-id", "ab"), runtime("compose-hash", SHA), runtime("system-ready"), *more]


def td_quote(
    log: list[dict], report_data: bytes = ASCII, *, version: int = 4, debug: int = 0, compose: str = COMPOSE
) -> bytes:
    config = (b"\1" + hashlib.sha256(compose.encode()).digest()).ljust(48, b"\0")
    registers = b"".join(replay_rtmr(log, n) for n in range(4))
    body = bytes(120) + bytes([debug]) + bytes(7 + 8) + b"M" * 48 + config + bytes(96) + registers + report_data
    header = version.to_bytes(2, "little") + bytes(2) + (0x81).to_bytes(4, "little") + bytes(40)
    return header + (b"" if version == 4 else bytes(6)) + body + bytes(100)


def report(**changes) -> bytes:
    log = changes.pop("log", None) or events()
    data = changes.pop("report_data", ASCII)
    value = {
        "quote": changes.pop("quote", None) or td_quote(changes.pop("quoted_log", log), data).hex(),
        "event_log": json.dumps(log),
        "report_data": base64.b64encode(data).decode(),
        "vm_config": "{}",
        "tcb_info": json.dumps({"app_compose": COMPOSE}),
        **changes,
    }
    return json.dumps({k: v for k, v in value.items() if v is not None}).encode()


def header_of(body: bytes, key: bytes = KEY) -> str:
    return signature_hex(sign_digest(key, eip191_hash(keccak256(body))))


def failed(body: bytes, *, header: str | None = None, signer: str = SIGNER) -> set[str]:
    found = check_quote(body, header_signature=header, expected_signer=signer)
    return {c.name for c in found.checks if c.outcome == "fail"}


@pytest.mark.parametrize("data", [ASCII, NEWER], ids=["ascii", "newer"])
def test_a_good_report_passes_and_says_what_was_not_checked(data):
    body = report(report_data=data)
    found = check_quote(body, header_signature=header_of(body), expected_signer=SIGNER.lower())
    assert found.passed
    assert not found.verified
    assert (found.signer, found.compose_hash) == (SIGNER, SHA)
    assert found.encryption_key == (b"\7" * 32 if data is NEWER else b"")
    assert found.images == ("a/b@sha256:" + "0" * 64,)
    assert found.measurements["mrtd"] == (b"M" * 48).hex()
    assert found.check("quote_signature").outcome == "not_run"
    assert found.check("tcb_level").outcome == "not_run"
    assert "quote_signature" in found.summary()
    assert json.loads(json.dumps(found.to_json()))["passed"] is True


@pytest.mark.parametrize("row", FT["quote"], ids=ids(FT["quote"]))
def test_layouts_of_the_vectors(row):
    body = row["body_utf8"].encode()
    found = check_quote(body, header_signature=row["zg_quote_signature"], expected_signer=row["tee_signer"])
    assert found.check("signer").outcome == "pass"
    assert found.check("header_signature").outcome == "pass"
    assert found.compose_hash == row["compose_sha256"]
    assert found.encryption_key.hex() == row.get("enc_pub", "0x")[2:]
    assert not found.passed  # the quote in them is filler


def test_registers_are_replayed_as_in_the_field():
    row = vectors("inference")["rtmr3_replay"]
    assert replay_rtmr(row["events"], 3).hex() == row["rtmr3"]
    assert all(event_digest(e).hex() == e["digest"] for e in row["events"])


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b"[]",
        b"null",
        b"<html>",
        b"\xff",
        b'{"nvidia_payload":{"nonce":"00"}}',
        b'{"quote":"","report_data":""}',
        b'{"quote":"00","report_data":"AA==","event_log":"[]","tcb_info":"{}"}',
        b"[" * 100_000,
        report(quote="zz"),
        report(tcb_info=None),
        report(event_log=None),
        report(report_data=b"\0" * 64),
    ],
)
def test_junk_empty_and_gpu_only_reports_fail(body):
    found = check_quote(body, header_signature=None, expected_signer=SIGNER)
    assert not found.passed
    assert found.summary()


def test_another_signer_fails():
    other = FT["keys"]["bob"]["address"]
    assert failed(report(), signer=other) == {"signer"}
    assert {"signer", "header_signature"} <= failed(report(), signer=other, header=header_of(report()))


def test_report_data_that_differs_from_the_quote_fails():
    data = FT["keys"]["bob"]["address"].encode().ljust(64, b"\0")
    assert failed(report(quote=td_quote(events(), data).hex())) == {"report_data"}


@pytest.mark.parametrize(
    "header", ["0x12", "junk", "0x" + "00" * 65, header_of(b"other"), header_of(report(), b"\1" * 32)]
)
def test_a_wrong_header_signature_fails(header):
    assert failed(report(), header=header) == {"header_signature"}


def test_a_missing_header_signature_is_not_run():
    found = check_quote(report(), header_signature=None, expected_signer=SIGNER)
    assert found.check("header_signature").outcome == "not_run"
    assert found.passed


def test_debug_mode_fails():
    assert failed(report(quote=td_quote(events(), debug=1).hex())) == {"debug_off"}


def test_another_app_compose_fails_against_event_and_quote():
    assert failed(report(tcb_info=json.dumps({"app_compose": "{}"}))) == {"compose_hash", "mr_config_id"}
    assert failed(report(quote=td_quote(events(), compose="x").hex())) == {"mr_config_id"}


def test_a_compose_hash_written_by_a_container_does_not_count():
    log = [*events()[:4], runtime("compose-hash", "00" * 32), runtime("system-ready"), runtime("compose-hash", SHA)]
    assert failed(report(log=log)) == {"compose_hash"}
    late = [*events()[:4], runtime("system-ready"), runtime("compose-hash", SHA)]
    assert failed(report(log=late)) == {"compose_hash"}


def test_a_compose_hash_of_another_register_does_not_count():
    elsewhere = {**runtime("compose-hash", SHA), "imr": 1}
    log = [elsewhere, *[e for e in events() if e["event"] != "compose-hash"]]
    assert failed(report(log=log)) == {"compose_hash"}


def test_an_event_whose_payload_was_changed_fails():
    log = events()
    bent = [dict(e) for e in log]
    bent[3]["event_payload"] = "ff"
    assert failed(report(log=bent)) == {"runtime_events"}
    bent[4]["event_payload"] = "00" * 32
    assert failed(report(log=bent)) == {"runtime_events", "compose_hash"}


@pytest.mark.parametrize("index", [0, 1, 2])
def test_boot_events_that_do_not_replay_fail(index):
    log = events()
    bent = [dict(e) for e in log]
    bent[index]["digest"] = "ee" * 48
    assert failed(report(log=bent, quoted_log=log)) == {"rtmr0_2_replay"}


def test_dropped_added_and_swapped_runtime_events_fail():
    log = events()
    for bent in (log[:-1], [*log, runtime("x")], [*log[:3], log[4], log[3], *log[5:]]):
        assert failed(report(log=bent, quoted_log=log)) == {"rtmr3_replay"}


def test_a_log_without_boot_events_is_not_run_for_them():
    log = events()[3:]
    found = check_quote(report(log=log), header_signature=None, expected_signer=SIGNER)
    assert found.check("rtmr0_2_replay").outcome == "not_run"
    assert found.passed


@pytest.mark.parametrize(
    "bad",
    ["x", "{}", "[]", "[1]", '[{"imr":3}]', '[{"imr":true,"event_type":1,"digest":"","event":"","event_payload":""}]'],
)
def test_a_log_that_cannot_be_read_fails(bad):
    assert {"event_log", "rtmr3_replay", "runtime_events", "compose_hash"} <= failed(report(event_log=bad))


def test_digests_that_are_no_hex_fail():
    log = events()
    log[3] = {**log[3], "digest": "zz"}
    body = report(log=log, quoted_log=events())
    assert {"runtime_events", "rtmr3_replay"} <= failed(body)


def update(signer: str = SIGNER, key: str = "07" * 32, image: str = "r/i@sha256:" + "1" * 64) -> dict:
    return runtime("zg-image-update", f"{image} {signer} {key}".encode().hex())


def test_image_updates_name_signer_and_key_and_the_last_counts():
    good = check_quote(
        report(log=events(update(), update()), report_data=NEWER), header_signature=None, expected_signer=SIGNER
    )
    assert good.check("image_update").outcome == "pass"
    assert good.check("image_update").reason == "r/i@sha256:" + "1" * 64
    other = FT["keys"]["bob"]["address"]
    assert failed(report(log=events(update(), update(other)), report_data=NEWER)) == {"image_update"}
    assert failed(report(log=events(update(key="08" * 32)), report_data=NEWER)) == {"image_update"}
    assert failed(report(log=events(update(image="r/i:latest")))) == {"image_update"}
    assert failed(report(log=events(runtime("zg-image-update", "ff")))) == {"image_update"}


@pytest.mark.parametrize(("data", "bound"), [(ASCII, SIGNER.encode()), (NEWER, NEWER)])
def test_gpu_evidence_has_the_nonce_of_the_report_data(data, bound):
    nonce = keccak256(bound).hex()
    good = report(report_data=data, nvidia_payload={"nonce": nonce})
    found = check_quote(good, header_signature=None, expected_signer=SIGNER)
    assert found.check("gpu_nonce").outcome == "pass"
    assert "isn't verified" in found.check("gpu_nonce").reason
    for bad in ({"nonce": "00"}, {"x": 1}, "junk", [1]):
        assert failed(report(report_data=data, nvidia_payload=bad)) == {"gpu_nonce"}


def test_version_5_quotes_have_their_body_six_bytes_later():
    parsed = parse_td_quote(td_quote(events(), version=5))
    assert (parsed.version, parsed.report_data, parsed.mrtd) == (5, ASCII, b"M" * 48)


@pytest.mark.parametrize("raw", [b"", bytes(700), td_quote(events(), version=3), td_quote(events())[:600]])
def test_what_is_no_quote_is_a_value_error(raw):
    with pytest.raises(ValueError, match=r"version|TDX|cut"):
        parse_td_quote(raw)


def test_report_data_layouts():
    assert report_data_signer(ASCII) == (SIGNER, b"")
    assert report_data_signer(SIGNER.encode()) == (SIGNER, b"")
    assert report_data_signer(NEWER) == (SIGNER, b"\7" * 32)
    for bad in (b"", ASCII[:-1] + b"x", NEWER[:55] + b"\2" + NEWER[56:], NEWER[:63] + b"\1", bytes(64)):
        assert report_data_signer(bad) is None


def test_mandatory_checks_exist_and_unknown_ones_do_not():
    found = check_quote(report(), header_signature=None, expected_signer=SIGNER)
    assert set(MANDATORY) <= {c.name for c in found.checks}
    with pytest.raises(KeyError):
        found.check("nonsense")


def test_outside_text_in_a_report_is_made_harmless():
    compose = json.dumps({"docker_compose_file": "image: x\x07\x1b[2J\n"})
    log = [*events()[:4], runtime("compose-hash", hashlib.sha256(compose.encode()).hexdigest())]
    body = report(log=log, tcb_info=json.dumps({"app_compose": compose}))
    found = check_quote(body, header_signature=None, expected_signer="\x1b[31m")
    assert "\x1b" not in json.dumps(found.to_json(), ensure_ascii=False)
    assert attestation.QUOTE_LIMIT == 4 * 1024 * 1024


@pytest.mark.parametrize("text", ["\n" * 400_000, " " * 400_000, "image:" * 60_000, "image:\n" * 60_000])
def test_a_hostile_compose_file_costs_little_time(text):
    compose = json.dumps({"docker_compose_file": text})
    started = time.process_time()
    found = check_quote(
        report(tcb_info=json.dumps({"app_compose": compose})), header_signature=None, expected_signer=SIGNER
    )
    assert time.process_time() - started < 1.0
    assert len(found.images) <= 50
