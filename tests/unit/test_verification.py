"""Verification fails closed: nothing but the valid report is verified."""

import contextlib
import dataclasses
import datetime as dt
import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests import tee_kit
from tests.golden import ids, vectors
from tests.tee_kit import COLLATERAL, KEY, NOW, ROOT, SIGNER, collateral, evidence, good_report, judged, llm_report
from zg_async import ConfigError, TeePolicy, recheck_report
from zg_async.devnet import quote as made
from zg_async.devnet.chain_client import address_of
from zg_async.devnet.tdx import TdxMaker
from zg_async.errors import AttestationError
from zg_async.managers.verification import Verifier
from zg_async.managers.verification_record import evidence_from_json, judge, pins_of
from zg_async.networks import NETWORKS
from zg_async.transport import tee
from zg_async.wire.attestation import CHAIN, MANDATORY, check_llm_quote, check_quote, event_digest
from zg_async.wire.hashing import checksum_address
from zg_async.wire.records import InferenceService

OTHER = "0x" + "22" * 20
STATUSES = (
    "SWHardeningNeeded",
    "ConfigurationNeeded",
    "ConfigurationAndSWHardeningNeeded",
    "OutOfDate",
    "OutOfDateConfigurationNeeded",
    "Revoked",
)


def failed(result) -> set[str]:
    return {c.name for c in result.checks if c.outcome == "fail"}


@pytest.mark.goal("VER-02")
@pytest.mark.parametrize("legacy", [True, False], ids=["ascii", "newer"])
def test_a_valid_report_is_verified_up_to_the_root(legacy):
    report = good_report(legacy=legacy)
    result = judged(report.body, header=report.signature)
    assert result.verified, result.summary()
    assert result.check("quote_signature").outcome == "pass"
    assert (result.tcb_status, result.tcb_evaluation, result.signer) == ("UpToDate", 17, SIGNER)
    assert result.unbound == ()


@pytest.mark.goal("VER-01")
@pytest.mark.goal("HRD-08", part="junk, empty, GPU-only, another signer")
@pytest.mark.parametrize(
    ("body", "signer"),
    [
        (None, OTHER),
        (b"", SIGNER),
        (b"{}", SIGNER),
        (b"junk", SIGNER),
        (b'{"nvidia_payload":{"nonce":"00"}}', SIGNER),
        (b'{"quote":"","report_data":"","event_log":"[]"}', SIGNER),
    ],
    ids=["wrong signer", "no report", "empty report", "junk", "GPU only", "empty fields"],
)
def test_what_isnt_a_report_of_this_signer_fails(body, signer):
    result = judged(body, expected_signer=signer)
    assert not result.verified
    assert failed(result)
    assert all(c.reason for c in result.blocking)


def test_each_mandatory_check_alone_blocks():
    good = judged()
    assert good.verified
    for name in (*MANDATORY, *CHAIN, "approved"):
        for outcome in ("fail", "not_run"):
            checks = tuple(dataclasses.replace(c, outcome=outcome) if c.name == name else c for c in good.checks)
            assert not dataclasses.replace(good, checks=checks).verified
        assert not dataclasses.replace(good, checks=tuple(c for c in good.checks if c.name != name)).verified


def test_a_signer_the_owner_hasnt_approved_blocks():
    result = judged(approved=False)
    assert [c.name for c in result.blocking] == ["approved"]


def test_without_collateral_the_signature_is_not_verified():
    result = judged(collateral=None)
    assert result.check("quote_signature").outcome == "not_run"
    assert not result.verified
    assert "quote_signature" in result.summary()


def test_without_the_extra_the_result_names_the_install_line(monkeypatch):
    monkeypatch.setattr(tee, "_library", lambda: None)
    result = judged()
    assert not result.verified
    assert "pip install 'zg-async[tee]'" in result.check("quote_signature").reason
    with pytest.raises(ConfigError) as info:
        tee.require_tee()
    assert info.value.hint == "pip install 'zg-async[tee]'"


@pytest.mark.parametrize("root", [None, TdxMaker(b"another").root_der, b"junk"], ids=["Intel", "another", "junk"])
def test_another_root_refuses(root):
    result = judge(evidence(), root=root)
    assert result.check("quote_signature").outcome == "fail"
    assert not result.verified


@pytest.mark.goal("HRD-08", part="only platforms up to date by default")
@pytest.mark.parametrize("status", STATUSES)
def test_only_up_to_date_platforms_pass_unless_others_are_accepted(status):
    stale = collateral(status=status)
    result = judged(collateral=stale)
    assert not result.verified
    assert result.check("tcb_level").outcome == "fail"
    accepting = judged(collateral=stale, policy=TeePolicy(statuses=("UpToDate", status), grace_days=2000))
    assert accepting.verified is (status != "Revoked")


@pytest.mark.parametrize(
    ("data", "policy"),
    [
        (collateral(31 * 86_400), TeePolicy()),
        (collateral(-40 * 86_400), TeePolicy()),
        (collateral(revoked=True), TeePolicy()),
        (collateral(), TeePolicy(min_evaluation=18)),
        (collateral(status="OutOfDate"), TeePolicy(statuses=("OutOfDate",), rejected_advisories=("INTEL-SA-00000",))),
        ({**COLLATERAL, "tcb_info": collateral(status="OutOfDate")["tcb_info"]}, TeePolicy(statuses=STATUSES)),
        ({**COLLATERAL, "pck_crl": ""}, TeePolicy()),
        ({}, TeePolicy()),
        ({**COLLATERAL, "root_ca_crl": 7}, TeePolicy()),
    ],
    ids=["old", "future", "revoked", "evaluation", "advisory", "other TCB info", "no CRL", "empty", "not text"],
)
def test_collateral_that_isnt_right_blocks(data, policy):
    assert not judged(collateral=data, policy=policy).verified


@pytest.mark.goal("VER-06")
def test_images_are_held_to_the_users_list():
    image = judged().reports["fine-tuning"].images[0]
    digest = image.partition("@")[2]
    assert judged(policy=TeePolicy(allowed_images=(digest,))).check("images").outcome == "pass"
    assert judged(policy=TeePolicy(allowed_images=(image,))).verified
    other = judged(policy=TeePolicy(allowed_images=("sha256:" + "0" * 64,)))
    assert other.check("images").outcome == "fail"
    assert image in other.check("images").reason
    assert not other.verified
    assert judged().check("images").outcome == "not_run"


def test_an_image_put_in_place_later_is_held_to_the_list_too():
    image = "a/b@sha256:" + "5" * 64
    report = good_report(image_update=image)
    first = judged(report.body, header=report.signature)
    assert first.verified
    assert image in first.reports["fine-tuning"].images
    listed = (first.reports["fine-tuning"].images[0],)
    assert not judged(report.body, header=report.signature, policy=TeePolicy(allowed_images=listed)).verified


def test_pins_hold_what_was_verified_before():
    good = judged()
    pins = pins_of(good)
    again = judged(pins=pins)
    assert again.check("pins").outcome == "pass"
    assert again.verified
    pin = pins["fine-tuning"]
    for change in (
        {"signer": OTHER},
        {"compose_hash": "0" * 64},
        {"measurements": {**pin.measurements, "mrtd": "00"}},
        {"measurements": {**pin.measurements, "rtmr1": "00"}},
        {"evaluation": 18},
        {"issued_at": "2027-03-01T00:00:00+00:00"},
    ):
        result = judged(pins={"fine-tuning": dataclasses.replace(pin, **change)})
        assert [c.name for c in result.blocking] == ["pins"], change
        assert result.check("pins").reason


def _of(compose=None, key=KEY, registers=lambda events: [made.replay(events, imr) for imr in range(4)], **patch):
    """A genuine report of some TD."""
    report = tee_kit.fields(good_report().body)
    events = json.loads(report["event_log"])
    text = compose or json.loads(report["tcb_info"])["app_compose"]
    if compose:
        events = made.event_log("other", compose)
    data = made.legacy_report_data(key)
    raw = bytearray(made.td_quote(text, registers(events), data, tee_kit.MAKER)[:632])
    for place, byte in patch.items():
        raw[int(place[2:])] = byte
    quote = tee_kit.MAKER.sign_quote(bytes(raw)).hex()
    info = json.dumps({"app_compose": text})
    changed = {"quote": quote, "event_log": json.dumps(events), "report_data": tee_kit.b64(data), "tcb_info": info}
    return {"body": tee_kit.encoded({**report, **changed}), "header": None, "expected_signer": address_of(key)}


ANOTHER_KEY = b"\x05" * 32
SAME, NEWER, OLDER = {}, {"collateral": collateral(evaluation=18)}, {"collateral": collateral(evaluation=16)}
FRESH, STALE = {"collateral": collateral(-600)}, {"collateral": collateral(86_400)}
SIGNER_2, COMPOSE_2, TD_2 = _of(key=ANOTHER_KEY), _of(compose=made.app_compose("other")), _of(at184=7)
BAD, UNAPPROVED = {"body": b"{}"}, {**SIGNER_2, "approved": False}
HISTORIES = [
    ([SAME, SAME], ""),
    ([SAME, NEWER], ""),
    ([SAME, FRESH], ""),
    ([NEWER, SAME], "older TCB evaluation data: 17 after 18"),
    ([SAME, NEWER, NEWER, SAME], "older TCB evaluation data: 17 after 18"),
    ([SAME, OLDER], "older TCB evaluation data: 16 after 17"),
    ([FRESH, SAME], "older collateral"),
    ([SAME, FRESH, FRESH, SAME], "older collateral"),
    ([SAME, STALE], "older collateral"),
    ([SAME, SIGNER_2], f"signer {address_of(ANOTHER_KEY)} instead of {SIGNER}"),
    ([SIGNER_2, SAME], f"signer {SIGNER} instead of {address_of(ANOTHER_KEY)}"),
    ([SAME, COMPOSE_2], "compose hash"),
    ([SAME, TD_2], "another mrtd"),
    ([SAME, SIGNER_2, SAME], ""),  # what stopped was not taken over
    ([SAME, "accept", SIGNER_2, SIGNER_2], ""),
    ([SAME, "accept", SIGNER_2, SAME], f"signer {SIGNER} instead of {address_of(ANOTHER_KEY)}"),
    ([SAME, BAD, SAME], ""),
    ([UNAPPROVED, SAME], ""),
]


@pytest.mark.goal("HRD-09")
@pytest.mark.parametrize(("history", "stop"), HISTORIES, ids=range(len(HISTORIES)))
def test_what_was_verified_once_stops_what_is_older_or_other_until_the_user_takes_it_over(history, stop):
    pins, accept, result = None, False, None
    for step in history:
        if step == "accept":
            accept = True
            continue
        result = judged(**{"pins": None if accept else pins, **step})
        pins, accept = pins_of(result) if result.verified else pins, False
    assert result.verified is (not stop)
    if stop:
        assert [c.name for c in result.blocking] == ["pins"]
        assert stop in result.summary()


def test_pins_never_go_back():
    high = dataclasses.replace(pins_of(judged())["fine-tuning"], evaluation=99)
    assert pins_of(judged(pins={"fine-tuning": high}))["fine-tuning"].evaluation == 99


def test_a_separated_provider_needs_both_reports():
    broker, body = evidence(name="broker").reports[0], llm_report()
    llm = dataclasses.replace(broker, name="llm", body=body, header_signature=None)
    both = judge(evidence(reports=(broker, llm)), root=ROOT)
    assert both.verified, both.summary()
    assert both.check("llm.quote_signature").outcome == "pass"
    assert "llm.vm_config" in both.unbound
    other = judge(evidence(reports=(broker, dataclasses.replace(llm, expected_signer=OTHER))), root=ROOT)
    assert failed(other) == {"llm.signer"}
    nothing = judge(evidence(reports=(broker, dataclasses.replace(llm, body=b""))), root=ROOT)
    assert "llm.report" in failed(nothing)
    assert not judge(evidence(reports=()), root=ROOT).verified
    assert not judge(evidence(reports=(llm,)), root=ROOT).verified


@pytest.mark.goal("VER-07")
def test_a_saved_record_gives_the_same_result_offline(tmp_path):
    for result in (judged(), judged(expected_signer=OTHER), judged(collateral=None), judged(pins=pins_of(judged()))):
        path = tmp_path / "record.json"
        path.write_text(json.dumps(result.to_json()))
        again = recheck_report(path, root=ROOT)
        assert again.checks == result.checks
        assert again.verified is result.verified
        assert evidence_from_json(result.evidence.to_json()) == result.evidence


@pytest.mark.parametrize(("days", "good"), [(-1, False), (0, True), (20, True), (40, False), (10**5, False)])
def test_a_saved_record_holds_as_long_as_its_collateral(tmp_path, days, good):
    path = tmp_path / "record.json"
    path.write_text(json.dumps(judged().to_json()))
    assert recheck_report(path, root=ROOT, at=NOW + days * 86_400).verified is good


def _places(value, path=()):
    if path:
        yield path
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from _places(inner, (*path, key))


@pytest.mark.slow
def test_a_record_with_anything_in_any_place_is_judged_or_refused_with_one_error(tmp_path):
    text, path = json.dumps(judged(pins=pins_of(judged())).to_json()), tmp_path / "record.json"
    for place in _places(json.loads(text)["evidence"]):
        for junk in (None, [], 1e308, "2026-01-01T00:00:00"):
            value = json.loads(text)
            target = value["evidence"]
            for step in place[:-1]:
                target = target[step]
            target[place[-1]] = junk
            path.write_text(json.dumps(value))
            with contextlib.suppress(AttestationError):
                recheck_report(path, root=ROOT)


def test_a_records_own_words_arent_believed(tmp_path):
    value = judged(expected_signer=OTHER).to_json()
    value["verified"] = True
    path = tmp_path / "record.json"
    path.write_text(json.dumps(value))
    assert not recheck_report(path, root=ROOT).verified


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"evidence":{"version":2}}', '{"evidence":null}'])
def test_what_is_no_record_is_refused(tmp_path, text):
    path = tmp_path / "record.json"
    path.write_text(text)
    with pytest.raises(AttestationError, match="no record"):
        recheck_report(path)
    with pytest.raises(ConfigError, match="can't read"):
        recheck_report(tmp_path / "missing.json")


ATTESTATIONS = vectors("inference")["attestation_ts"]


def measured(body: str) -> bytes:
    """A vector's report with the digests its events would have: the peers never look at them."""
    try:
        value = json.loads(body)
    except ValueError:
        return body.encode()
    log = value.get("event_log")
    events = json.loads(log) if isinstance(log, str) else log
    for event in events or ():
        if event["imr"] == 3:
            event["digest"] = event_digest(event).hex()
    if events:
        value["event_log"] = json.dumps(events) if isinstance(log, str) else events
    return json.dumps(value).encode()


class Registered:
    """A provider as a vector has it: its registration and its routes."""

    def __init__(self, row: dict) -> None:
        self.row, self.asked = row, []
        self.network = NETWORKS["local"]
        self.genesis_hash = "0x" + "00" * 32

    async def inference_service(self, provider: str) -> InferenceService:
        return InferenceService(
            provider=provider,
            service_type="chatbot",
            url="http://p/",
            input_price=1,
            output_price=1,
            updated_at=dt.datetime(2026, 1, 1, tzinfo=dt.UTC),
            model="m",
            verifiability="TeeML",
            additional_info=self.row["additional_info"] or "",
            tee_signer_address=checksum_address(self.row["contract_tee_signer"]),
            tee_signer_acknowledged=True,
        )

    async def request(self, method: str, url: str, **_: object) -> SimpleNamespace:
        self.asked.append(url)
        body = self.row["llm_report_response" if "attestation/report" in url else "quote_response"]
        return SimpleNamespace(body=measured(body), headers={})


@pytest.mark.goal("DOC-07", part="attestation")
@pytest.mark.parametrize("row", ATTESTATIONS, ids=ids(ATTESTATIONS))
async def test_what_the_peer_finds_is_found_and_nothing_it_calls_a_success_is_verified(row, tmp_path, clock):
    provider, expect = Registered(row), row["expect"]
    verifier = Verifier(provider, provider, provider, clock)
    result = await verifier.verify("inference", tee_kit.PROVIDER, tmp_path)
    assert not result.verified  # their quotes are filler
    if "error" in expect:
        blocking = {c.name: c.reason for c in result.blocking}
        if "additionalInfo" in expect["error"]:
            assert ("missing" if "missing" in expect["error"] else "JSON") in blocking["registration"]
        else:
            assert "JSON" in blocking["report"]
        return
    assert "registration" not in {c.name for c in result.checks}
    asked = [url.removesuffix("?legacy=true") for url in provider.asked]
    assert [url for url in asked if url.startswith("http://p/v1/")] == expect["urls"]
    assert list(result.reports) == expect["reports"]
    assert sorted(Path(f).name for f in result.files if "verification_" not in f) == sorted(expect["files"])
    assert (result.check("signer").outcome == "pass") is expect["signer_all_match"]
    passed = [report.check("compose_hash").outcome == "pass" for report in result.reports.values()]
    assert all(passed) is expect["compose_passed"]
    for name, found in expect["compose_details"].items():
        assert result.reports[name].compose_hash == found["calculatedHash"]
        same = found.get("eventLogHash") == found["calculatedHash"]
        assert (result.reports[name].check("compose_hash").outcome == "pass") is same


REPORTS = Path(os.environ.get("ZG_REPORTS", "/nonexistent"))
needs_reports = pytest.mark.skipif(not REPORTS.is_dir(), reason="ZG_REPORTS names no folder of real reports")


@needs_reports
def test_a_real_broker_report_passes_all_but_the_chain():
    body = (REPORTS / "broker_attestation_report.json").read_bytes()
    found = check_quote(body, header_signature=None, expected_signer="0xDC1A4da6BdCD90c20d7FF53a6CdC11fBf0E2303C")
    assert found.passed
    assert not found.verified
    assert "vm_config" in found.unbound


@needs_reports
def test_a_real_model_report_passes_all_but_the_chain():
    body = (REPORTS / "llm_attestation_report.json").read_bytes()
    found = check_llm_quote(body, expected_signer="0x8a4D4984CF370210dFEeFC773FAf9bb0edE97cC0")
    assert found.passed
    assert found.check("gpu_nonce").outcome == "pass"
    assert not found.verified


@needs_reports
def test_a_real_report_of_another_stack_fails():
    body = (REPORTS / "attestation_report.json").read_bytes()
    assert not check_quote(body, header_signature=None, expected_signer=SIGNER).passed


def test_a_model_report_names_its_signer_in_the_quote():
    body = llm_report()
    assert check_llm_quote(body, expected_signer=SIGNER).passed
    value = tee_kit.fields(body)
    for change in (
        {"signing_address": OTHER},
        {"request_nonce": "00" * 32},
        {"request_nonce": "zz"},
        {"signing_address": "me"},
        {"intel_quote": "00"},
        {"nvidia_payload": '{"nonce":"11"}'},
    ):
        assert not check_llm_quote(tee_kit.encoded({**value, **change}), expected_signer=SIGNER).passed, change
    assert not check_llm_quote(llm_report(b"\5" * 32), expected_signer=SIGNER).passed
    assert address_of(KEY) == SIGNER
    assert NOW
