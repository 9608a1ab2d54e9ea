"""Every change to something bound fails; what isn't bound is listed as such. HRD-08."""

import json
import random
import ssl

import pytest

from tests.tee_kit import (
    KEY,
    MAKER,
    ROOT,
    SIGNER,
    b64,
    collateral,
    encoded,
    evidence,
    fields,
    good_report,
    judged,
)
from zg_async.devnet import quote as made
from zg_async.managers.verification_record import judge
from zg_async.transport.tee import TeePolicy, verify_chain
from zg_async.wire.attestation import RUNTIME_EVENT, event_digest

REPORT = good_report()
GOOD = fields(REPORT.body)
QUOTE = bytes.fromhex(GOOD["quote"])
SEED = 20261120
DATA = collateral()


def verified(value: dict, **options) -> bool:
    """Without the header's signature, so that each check stands by itself."""
    return judged(encoded(value), header=None, **options).verified


def changed(text: str) -> str:
    """Another text of the same kind."""
    last = "1" if text[-1:] != "1" else "2"
    return text[:-1] + last if text else "00"


def leaves(value, path=()):
    """Each leaf of a report, JSON in strings included."""
    if isinstance(value, str) and value[:1] in "{[" and value[1:]:
        value = json.loads(value)
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from leaves(inner, (*path, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from leaves(inner, (*path, index))
    else:
        yield path


def with_change(value, path):
    """The report with one leaf changed."""
    nested = isinstance(value, str) and path
    inner = json.loads(value) if nested else value
    if path:
        inner[path[0]] = with_change(inner[path[0]], path[1:])
        return json.dumps(inner) if nested else inner
    if isinstance(inner, str):
        return changed(inner)
    return inner + 1 if isinstance(inner, int) and not isinstance(inner, bool) else "other"


def listed(path, unbound) -> bool:
    """Whether a leaf is among what the result calls unbound."""
    if path[0] == "event_log":
        event = json.loads(GOOD["event_log"])[path[1]]
        return event["imr"] != 3 and f"event_log: {path[2]} of boot events" in unbound
    if path == ("quote",):  # its last letter is in the root certificate
        return "quote: its own copy of the root certificate" in unbound
    return path[0] in unbound or ".".join(str(p) for p in path[:2]) in unbound


@pytest.mark.slow
@pytest.mark.goal("VER-03")
@pytest.mark.goal("HRD-08", part="damaged reports")
def test_every_field_either_fails_or_is_listed_as_unbound():
    unbound = judged(header=None).unbound
    wrong = []
    # app_compose is JSON in JSON: its text is one leaf here
    paths = [p for p in leaves(GOOD) if p[:2] != ("tcb_info", "app_compose")] + [("tcb_info", "app_compose")]
    assert len(paths) > 80
    for path in paths:
        value = fields(REPORT.body)
        if path == ("tcb_info", "app_compose"):
            info = json.loads(value["tcb_info"])
            info["app_compose"] = changed(info["app_compose"])
            value["tcb_info"] = json.dumps(info)
        else:
            value = with_change(value, path)
        if verified(value) is not listed(path, unbound):
            wrong.append(path)
    assert wrong == []


def test_with_the_providers_signature_over_the_body_nothing_is_unbound():
    for path in leaves(GOOD):
        if path[:2] == ("tcb_info", "app_compose"):
            continue
        body = encoded(with_change(fields(REPORT.body), path))
        assert not judged(body, header=REPORT.signature).verified, path
    assert judged().unbound == ()


@pytest.mark.parametrize("key", sorted(GOOD))
def test_a_missing_field_fails_or_is_unbound(key):
    value = {k: v for k, v in GOOD.items() if k != key}
    assert verified(value) is (key == "vm_config")


def survives(raw: bytes) -> bool:
    chain = verify_chain(raw, DATA, root=ROOT, now=evidence().checked_at, policy=TeePolicy())
    return all(c.outcome == "pass" for c in chain.checks) and verified({**GOOD, "quote": raw.hex()})


def of_version_5() -> bytes:
    """The good quote, as machines write it that name their report's type and size."""
    head = b"\5\0" + QUOTE[2:48] + (2).to_bytes(2, "little") + (584).to_bytes(4, "little")
    return MAKER.sign_quote(head + QUOTE[48:632])


@pytest.mark.slow
@pytest.mark.parametrize("quote", [QUOTE, of_version_5()], ids=["version 4", "version 5"])
def test_every_byte_of_the_quote_is_bound(quote):
    rng, survived = random.Random(SEED), []
    assert survives(quote)
    for place in range(quote.index(b"-----BEGIN")):
        raw = bytearray(quote)
        raw[place] ^= 1 << rng.randrange(8)
        if survives(bytes(raw)):
            survived.append(place)
    assert survived == []


@pytest.mark.slow
@pytest.mark.parametrize("number", [0, 1], ids=["platform", "platform CA"])
def test_every_byte_of_the_quotes_certificates_is_bound(number):
    start = QUOTE.index(b"-----BEGIN")
    pems = [p + b"-----END CERTIFICATE-----\n" for p in QUOTE[start:].split(b"-----END CERTIFICATE-----\n")[:-1]]
    der = ssl.PEM_cert_to_DER_cert(pems[number].decode())
    rng, survived = random.Random(SEED), []
    for place in range(0, len(der), 2):
        raw = bytearray(der)
        raw[place] ^= 1 << rng.randrange(8)
        pem = ssl.DER_cert_to_PEM_cert(bytes(raw)).encode()
        assert len(pem) == len(pems[number])
        if survives(QUOTE[:start] + b"".join([*pems[:number], pem, *pems[number + 1 :]])):
            survived.append(place)
    assert survived == []


def test_what_follows_the_quote_is_nothing_or_zeros_that_are_listed():
    assert not verified({**GOOD, "quote": GOOD["quote"] + "01"})
    assert not verified({**GOOD, "quote": GOOD["quote"] + "\n"})
    padded = judged(encoded({**GOOD, "quote": GOOD["quote"] + "00" * 70}), header=None)
    assert padded.verified
    assert "quote: the zeros behind its end" in padded.unbound


@pytest.mark.parametrize("size", [0, 1, 47, 48, 631, 632, 636, 1000, -1])
def test_a_cut_quote_fails(size):
    assert not verified({**GOOD, "quote": QUOTE[:size].hex()})


def rebuilt(events, *, compose=None, body=lambda raw: raw, data=None) -> dict:
    """A report whose parts agree, signed by the real manufacturer, but of another TD."""
    compose = compose or json.loads(GOOD["tcb_info"])["app_compose"]
    report_data = made.legacy_report_data(KEY) if data is None else data
    raw = made.td_quote(compose, [made.replay(events, imr) for imr in range(4)], report_data, MAKER)
    raw = MAKER.sign_quote(bytes(body(bytearray(raw[:632]))))
    info = {"app_compose": compose}
    return {
        "quote": raw.hex(),
        "event_log": json.dumps(events),
        "report_data": b64(report_data),
        "vm_config": "{}",
        "tcb_info": json.dumps(info),
    }


def events() -> list[dict]:
    return json.loads(GOOD["event_log"])


def runtime(name: str, payload: str = "") -> dict:
    event = {"imr": 3, "event_type": RUNTIME_EVENT, "event": name, "event_payload": payload}
    return {**event, "digest": event_digest(event).hex()}


def debug(raw: bytearray) -> bytearray:
    raw[48 + 120] |= 1
    return raw


def other_module(raw: bytearray) -> bytearray:
    raw[48] = 1
    return raw


def update(signer: str = SIGNER, image: str = "a/b@sha256:" + "5" * 64) -> dict:
    return runtime("zg-image-update", f"{image} {signer} {'ab' * 32}".encode().hex())


OTHER = "0x" + "22" * 20
GENUINE_BUT_WRONG = {
    "debug": lambda: rebuilt(events(), body=debug),
    "old module": lambda: rebuilt(events(), body=other_module),
    "no compose-hash": lambda: rebuilt([e for e in events() if e["event"] != "compose-hash"]),
    "compose-hash after system-ready": lambda: rebuilt(
        [e for e in events() if e["event"] != "compose-hash"] + [e for e in events() if e["event"] == "compose-hash"]
    ),
    "compose-hash as a boot event": lambda: rebuilt(
        [{**e, "imr": 0} if e["event"] == "compose-hash" else e for e in events()]
    ),
    "compose-hash of another type": lambda: rebuilt(
        [{**e, "event_type": 1} if e["event"] == "compose-hash" else e for e in events()]
    ),
    "other compose": lambda: rebuilt(events(), compose=made.app_compose("evil")),
    "update by another signer": lambda: rebuilt([*events(), update(OTHER)]),
    "update hidden by its type": lambda: rebuilt([*events(), {**update(OTHER), "event_type": 1}]),
    "unreadable update": lambda: rebuilt([*events(), runtime("zg-image-update", "00")]),
    "last update counts": lambda: rebuilt([*events(), update(), update(OTHER)]),
    "other signer": lambda: rebuilt(events(), data=OTHER.encode().ljust(64, b"\0")),
    "no signer": lambda: rebuilt(events(), data=bytes(64)),
    "no events": lambda: rebuilt([]),
    "an event of no register": lambda: rebuilt([*events(), {**runtime("x"), "imr": 4}]),
}


@pytest.mark.goal("HRD-08", part="another compose hash and other wrong programs")
@pytest.mark.parametrize("name", sorted(GENUINE_BUT_WRONG))
def test_a_genuine_quote_of_a_wrong_td_fails(name):
    assert not verified(GENUINE_BUT_WRONG[name]())


def test_a_td_that_names_nobody_is_nobodys():
    nobody = "0x" + "00" * 20
    assert not verified(rebuilt(events(), data=nobody.encode().ljust(64, b"\0")), expected_signer=nobody)


def test_rebuilt_reports_would_pass_otherwise():
    assert verified(rebuilt(events()))
    assert verified(rebuilt([*events(), update()]))
    assert verified(rebuilt([*events(), update(OTHER), update()]))
    assert verified(rebuilt([*events(), runtime("zg-config-update", "00")]))
    assert verified(rebuilt([*events(), runtime("compose-hash", "ff" * 32)]))  # a container's word changes nothing


def test_a_quote_of_another_makers_machine_fails():
    from zg_async.devnet.tdx import TdxMaker

    other = made.build_quote(KEY, maker=TdxMaker(b"elsewhere"))
    result = judged(other.body, header=other.signature)
    assert result.check("quote_signature").outcome == "fail"
    assert not result.verified


@pytest.mark.slow
@pytest.mark.parametrize("part", ["tcb_info", "qe_identity", "pck_crl", "root_ca_crl", "tcb_info_signature"])
def test_collateral_is_bound_too(part):
    rng, data = random.Random(SEED), collateral()
    survived = []
    for _ in range(60):
        text = data[part]
        place = rng.randrange(len(text))
        letter = rng.choice([c for c in "0123456789abcdef" if c != text[place].lower()])
        bad = {**data, part: text[:place] + letter + text[place + 1 :]}
        if judged(collateral=bad).verified:
            survived.append((place, letter))
    assert survived == []


@pytest.mark.slow
def test_junk_never_passes_and_never_raises():
    rng = random.Random(SEED)
    for _ in range(300):
        body = bytearray(REPORT.body)
        for _ in range(rng.randrange(1, 6)):
            kind, place = rng.randrange(3), rng.randrange(len(body))
            if kind == 0:
                body[place] = rng.randrange(256)
            elif kind == 1:
                del body[place : place + rng.randrange(1, 200)]
            else:
                body[place:place] = rng.randbytes(rng.randrange(1, 50))
        result = judge(evidence(bytes(body)), root=ROOT)  # the header's signature is over the good one
        assert not result.verified
