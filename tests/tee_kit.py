"""Reports and collateral of a manufacturer of our own."""

import base64
import dataclasses
import hashlib
import json
from urllib.parse import unquote

from zg_async.devnet.chain_client import address_of
from zg_async.devnet.quote import Quote, build_quote
from zg_async.devnet.tdx import TdxMaker
from zg_async.managers.verification_record import Evidence, FetchedReport, ServiceVerification, judge
from zg_async.transport.tee import TeePolicy
from zg_async.wire.records import Address

KEY = hashlib.sha256(b"tee").digest()
SIGNER = address_of(KEY)
NOW = 1_800_000_000.0
MAKER = TdxMaker(b"test")
ROOT = MAKER.root_der
PROVIDER = Address("0x" + "11" * 20)


def collateral(quote_age: float = 0.0, *, status: str = "UpToDate", evaluation: int = 17, revoked: bool = False):
    """What a collateral service says, put together as the client does."""
    now = NOW - quote_age
    parts = {}
    for name, text in (
        ("tcbInfo", MAKER.tcb_info(now, status=status, evaluation=evaluation)),
        ("enclaveIdentity", MAKER.qe_identity(now, evaluation=evaluation)),
    ):
        start = text.index(f'"{name}":') + len(name) + 3
        _, end = json.JSONDecoder().raw_decode(text, start)
        parts[name] = (text[start:end], json.loads(text)["signature"])
    return {
        "pck_crl_issuer_chain": unquote(MAKER.pck_chain()),
        "root_ca_crl": MAKER.root_crl(now).hex(),
        "pck_crl": MAKER.pck_crl(now, revoked=revoked).hex(),
        "tcb_info_issuer_chain": unquote(MAKER.tcb_chain()),
        "tcb_info": parts["tcbInfo"][0],
        "tcb_info_signature": parts["tcbInfo"][1],
        "qe_identity_issuer_chain": unquote(MAKER.tcb_chain()),
        "qe_identity": parts["enclaveIdentity"][0],
        "qe_identity_signature": parts["enclaveIdentity"][1],
        "pck_certificate_chain": None,
    }


COLLATERAL = collateral()


def good_report(**options) -> Quote:
    return build_quote(KEY, maker=MAKER, **options)


def evidence(body: bytes | None = None, *, header: str | None = "", name: str = "fine-tuning", **changes) -> Evidence:
    """A provider's evidence; `header=""`: the right one for the good report."""
    report = good_report()
    fetched = FetchedReport(
        name=name,
        body=report.body if body is None else body,
        header_signature=report.signature if header == "" else header,
        expected_signer=changes.pop("expected_signer", SIGNER),
        collateral=changes.pop("collateral", COLLATERAL),
    )
    made = Evidence(
        kind="fine-tuning",
        provider=PROVIDER,
        network="local",
        approved=True,
        reports=(fetched,),
        pins=None,
        policy=TeePolicy(),
        checked_at=NOW,
    )
    return dataclasses.replace(made, **changes)


def judged(body: bytes | None = None, **options) -> ServiceVerification:
    return judge(evidence(body, **options), root=ROOT)


def llm_report(key: bytes = KEY, nonce: bytes = b"\7" * 32) -> bytes:
    """The report of a separated provider's model TEE."""
    from zg_async.devnet import quote as made

    compose = made.app_compose("llm")
    events = made.event_log("llm", compose)
    data = bytes.fromhex(address_of(key)[2:]).ljust(32, b"\0") + nonce
    raw = made.td_quote(compose, [made.replay(events, imr) for imr in range(4)], data, MAKER).hex()
    return json.dumps(
        {
            "signing_address": address_of(key),
            "signing_algo": "ecdsa",
            "request_nonce": nonce.hex(),
            "intel_quote": raw,
            "nvidia_payload": json.dumps({"nonce": nonce.hex(), "evidence_list": []}),
            "info": {"app_name": "llm", "tcb_info": {"app_compose": compose, "mrtd": "00"}},
            "quote": raw,
            "event_log": json.dumps(events),
            "vm_config": "{}",
            "all_attestations": [],
        }
    ).encode()


def fields(body: bytes) -> dict:
    return json.loads(body)


def encoded(value: dict) -> bytes:
    return json.dumps(value).encode()


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()
