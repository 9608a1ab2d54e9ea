"""Attestation reports of the devnet: everything a client can check without a certificate chain holds together.

The quote is a TDX quote of version 4: header, TD report body, signature part. The body's MRCONFIGID names the
app_compose, its RTMRs are the replay of the event log, its report data names the TEE signer. It is signed under the
devnet's own root, so a check against Intel's rightly fails. Offsets and rules: inference.md 7.4, fine-tuning.md 5.
"""

import base64
import dataclasses
import functools
import hashlib
import json
from typing import Any, Final

from zg_async.devnet.chain_client import address_of
from zg_async.devnet.tdx import QE_VENDOR, TEE_TCB_SVN, TdxMaker, devnet_maker
from zg_async.wire.hashing import keccak256
from zg_async.wire.signing import eip191_hash, sign_digest, signature_hex

QUOTE_VERSION: Final = 4
TEE_TYPE_TDX: Final = 0x81
RUNTIME_EVENT: Final = 0x08000001
HEADER_SIZE: Final = 48
BODY_SIZE: Final = 584
_IMAGE: Final = "0gfoundation/devnet-broker@sha256:"


@dataclasses.dataclass(frozen=True, slots=True)
class Quote:
    """A quote reply: the exact body, and the header's value."""

    body: bytes
    signature: str
    """`ZG-Quote-Signature`: by the TEE signer over keccak of the body."""


@functools.lru_cache(maxsize=64)
def build_quote(
    tee_key: bytes,
    *,
    name: str = "fine-tuning",
    legacy: bool = True,
    image_update: str | None = None,
    maker: TdxMaker | None = None,
) -> Quote:
    """Make a provider's report.

    Args:
        tee_key: The TEE signer's private key.
        name: Goes into the app_compose, so that services differ in their compose hash.
        legacy: Report data as the signer's address in ASCII, else the layout with an encryption key.
        image_update: `<repo>@sha256:<digest>` of an image put in place since the boot.
        maker: Signs the quote; None: the devnet's own.

    Returns:
        The reply; the same arguments give the same one.
    """
    report_data = legacy_report_data(tee_key) if legacy else v2_report_data(tee_key)
    compose = app_compose(name)
    events = event_log(name, compose)
    if image_update is not None:
        update = f"{image_update} {address_of(tee_key)} {v2_report_data(tee_key)[:32].hex()}"
        events.append(_runtime_event("zg-image-update", update.encode().hex()))
    registers = [replay(events, imr) for imr in range(4)]
    quote = td_quote(compose, registers, report_data, maker)
    body = json.dumps(
        {
            "quote": quote.hex(),
            "event_log": json.dumps(events),
            "report_data": base64.b64encode(report_data).decode(),
            "vm_config": json.dumps({"cpu_count": 4, "memory_size": 2**33, "os_image_hash": _sha256(b"devnet os")}),
            "tcb_info": json.dumps(_tcb_info(compose, events, registers)),
        }
    ).encode()
    return Quote(body, signature_hex(sign_digest(tee_key, eip191_hash(keccak256(body)))))


def legacy_report_data(tee_key: bytes) -> bytes:
    """Return the signer's address as ASCII, padded to 64 bytes."""
    return address_of(tee_key).encode().ljust(64, b"\0")


def v2_report_data(tee_key: bytes) -> bytes:
    """Return encryption key, signer, version 1 and zeros: 64 bytes. The key is a number nobody knows the secret of."""
    encryption_key = hashlib.sha256(b"devnet x25519" + tee_key).digest()
    return encryption_key + bytes.fromhex(address_of(tee_key)[2:]) + (1).to_bytes(4, "big") + bytes(8)


def app_compose(name: str) -> str:
    """Return the compose document whose hash the quote carries; its image is pinned by digest."""
    digest = _sha256(f"devnet image {name}".encode())
    compose = f"services:\n  broker:\n    image: {_IMAGE}{digest}\n"
    return json.dumps(
        {"manifest_version": 2, "name": f"devnet-{name}", "runner": "docker-compose", "docker_compose_file": compose}
    )


def event_log(name: str, compose: str) -> list[dict[str, Any]]:
    """Return boot events of registers 0 to 2 and the runtime events of register 3, in the order seen in the field."""
    boot = [
        {
            "imr": imr,
            "event_type": 2147483659,
            "digest": hashlib.sha384(f"devnet boot {imr}.{step}".encode()).hexdigest(),
            "event": "",
            "event_payload": "",
        }
        for imr in range(3)
        for step in range(2)
    ]
    app_id = _sha256(f"devnet app {name}".encode())[:40]
    runtime = [
        ("system-preparing", ""),
        ("app-id", app_id),
        ("compose-hash", _sha256(compose.encode())),
        ("instance-id", _sha256(f"devnet instance {name}".encode())[:40]),
        ("boot-mr-done", ""),
        ("os-image-hash", _sha256(b"devnet os")),
        ("key-provider", json.dumps({"name": "devnet", "id": ""}).encode().hex()),
        ("system-ready", ""),
    ]
    return boot + [_runtime_event(event, payload) for event, payload in runtime]


def _runtime_event(event: str, payload: str) -> dict[str, Any]:
    measured = RUNTIME_EVENT.to_bytes(4, "little") + b":" + event.encode() + b":" + bytes.fromhex(payload)
    return {
        "imr": 3,
        "event_type": RUNTIME_EVENT,
        "digest": hashlib.sha384(measured).hexdigest(),
        "event": event,
        "event_payload": payload,
    }


def replay(events: list[dict[str, Any]], imr: int) -> bytes:
    """Return a register's value after its events."""
    value = bytes(48)
    for event in events:
        if event["imr"] == imr:
            value = hashlib.sha384(value + bytes.fromhex(event["digest"])).digest()
    return value


def td_quote(compose: str, registers: list[bytes], report_data: bytes, maker: TdxMaker | None = None) -> bytes:
    """Make a quote: 48 bytes of header, 584 of TD report, a length and the signature part."""
    header = (
        QUOTE_VERSION.to_bytes(2, "little")
        + (2).to_bytes(2, "little")  # ECDSA P-256
        + TEE_TYPE_TDX.to_bytes(4, "little")
        + bytes(4)
        + QE_VENDOR
        + b"devnet".ljust(20, b"\0")
    )
    config_id = (b"\x01" + hashlib.sha256(compose.encode()).digest()).ljust(48, b"\0")
    body = (
        TEE_TCB_SVN
        + hashlib.sha384(b"devnet mrseam").digest()
        + bytes(48)  # MRSIGNERSEAM
        + bytes(8)
        + bytes.fromhex("0000001000000000")  # TD attributes: SEPT_VE_DISABLE, no debug
        + bytes.fromhex("e702060000000000")  # XFAM
        + _mrtd()
        + config_id
        + bytes(48)  # MROWNER
        + bytes(48)  # MROWNERCONFIG
        + b"".join(registers)
        + report_data
    )
    return (maker or devnet_maker()).sign_quote(header + body)


def _mrtd() -> bytes:
    return hashlib.sha384(b"devnet mrtd").digest()


def _tcb_info(compose: str, events: list[dict[str, Any]], registers: list[bytes]) -> dict[str, Any]:
    return {
        "mrtd": _mrtd().hex(),
        **{f"rtmr{index}": value.hex() for index, value in enumerate(registers)},
        "mr_aggregated": _sha256(_mrtd() + b"".join(registers)),
        "os_image_hash": _sha256(b"devnet os"),
        "compose_hash": _sha256(compose.encode()),
        "device_id": _sha256(b"devnet device"),
        "app_compose": compose,
        "event_log": events,
    }


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
