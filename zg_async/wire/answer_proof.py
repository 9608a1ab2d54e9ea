"""Who signed an answer, and over which bytes: three checks of one result.

A signature covers only a text that holds two hashes, so a right signer alone proves nothing of the answer at hand: it
could have been moved there from another. Only signer, request hash and response hash together make an answer verified.
Source: 0g-serving-broker doc/attestation-trust-chain.md and api/inference (proxy, signing); TS SDK response.ts.
"""

import enum
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from zg_async.errors import ProviderReplyError
from zg_async.wire.attestation import Check
from zg_async.wire.inference_api import is_signed_by, parse_additional_info, response_signer
from zg_async.wire.records import Address, InferenceService
from zg_async.wire.strict_json import BadJsonError, decode_json

SIGNATURE_LIMIT: Final = 256 * 1024
VERIFIABLE: Final = frozenset({"OpML", "TeeML", "ZKML"})
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_NO_ADDRESS: Final = "0x" + "00" * 20


class AnswerStatus(enum.StrEnum):
    """What is known of an answer's origin."""

    VERIFIED = "verified"
    """The provider's signer signed exactly this request and this answer."""
    NOT_BOUND = "not_bound"
    """The right signer, but not over these bytes, as older builds do; or there were no bytes to compare."""
    FAILED = "failed"
    NOT_VERIFIABLE = "not_verifiable"
    """The service doesn't promise signed answers."""
    SKIPPED = "skipped"
    """Not looked for: nothing names the answer, or the caller didn't want it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerProof:
    """The outcome of an answer's checks."""

    status: AnswerStatus
    checks: tuple[Check, ...] = ()
    """`service`, `signer`, `request_hash`, `response_hash`, as far as they apply."""
    signer: Address | None = None
    """Who has to sign this service's answers."""
    response_key: str | None = None
    """Under which the provider keeps the signature."""
    routed_to: str = ""
    """A centralized provider's word for whom it asked, signed along: type, identity and certificate hash."""

    @property
    def is_verified(self) -> bool:
        """Whether all three checks passed."""
        return self.status is AnswerStatus.VERIFIED

    @property
    def reason(self) -> str:
        """What failed, or wasn't run; empty when all passed."""
        return "; ".join(f"{c.name}: {c.reason}" for c in self.checks if c.outcome != "pass" and c.reason)

    def as_peers_say(self) -> bool | None:
        """Map to what the peers' `processResponse` returns: they look at the signer only; None: skipped."""
        if self.status is AnswerStatus.SKIPPED:
            return None
        return any(c.name == "signer" and c.outcome == "pass" for c in self.checks)


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedText:
    """What the signature route says."""

    text: str
    signature: str


def parse_signature(body: bytes, *, provider: Address) -> SignedText:
    """Read the signature route's answer.

    Raises:
        ProviderReplyError: There is no text or signature in it.
    """
    try:
        value: Any = decode_json(body, limit=SIGNATURE_LIMIT)
    except BadJsonError as error:
        raise ProviderReplyError(f"the answer's signature can't be read: {error}", provider=provider) from None
    text, signature = (value.get("text"), value.get("signature")) if isinstance(value, dict) else (None, None)
    if not isinstance(text, str) or not isinstance(signature, str):
        raise ProviderReplyError("the provider's signature has no text or signature", provider=provider)
    return SignedText(text=text, signature=signature)


def signing_promise(service: InferenceService, response_key: str | None) -> AnswerProof | None:
    """Judge what needs no signature, in the peers' order; None: the signature decides."""
    if not response_key:
        return AnswerProof(
            status=AnswerStatus.SKIPPED,
            checks=(Check(name="service", outcome="not_run", reason="nothing names the answer"),),
        )
    if service.verifiability not in VERIFIABLE:
        return _judged(AnswerStatus.NOT_VERIFIABLE, "the service doesn't promise signed answers", response_key)
    if not service.tee_signer_acknowledged:
        return _judged(AnswerStatus.FAILED, "the contract's owner hasn't approved the signer", response_key)
    info = parse_additional_info(service.additional_info)
    if not info.is_json:
        return _judged(AnswerStatus.FAILED, "the registration doesn't say who signs", response_key)
    if info.provider_type == "standard":
        return _judged(AnswerStatus.NOT_VERIFIABLE, "a plain forwarder signs nothing", response_key)
    if response_signer(service) in (None, _NO_ADDRESS):
        return _judged(AnswerStatus.FAILED, "the registration names no signer", response_key)
    return None


def _judged(status: AnswerStatus, reason: str, response_key: str) -> AnswerProof:
    outcome: Check = Check(name="service", outcome="fail", reason=reason)
    return AnswerProof(status=status, checks=(outcome,), response_key=response_key)


def check_answer(
    service: InferenceService,
    signed: SignedText,
    *,
    response_key: str,
    request_hash: str | None = None,
    response_hashes: Sequence[str] | None = None,
) -> AnswerProof:
    """Check a signature against a service and the bytes at hand.

    Args:
        service: The registration in force when the answer came.
        signed: What the provider signed.
        response_key: Under which it was kept.
        request_hash: SHA-256 of the request's body as sent, in hex; None: not known.
        response_hashes: SHA-256 of the answer's body as received, or of each image, in order; None: not known.

    Returns:
        The three checks and what follows. A malformed signature is a failed one.
    """
    signer = response_signer(service)
    by_signer = signer is not None and is_signed_by(signed.text, signed.signature, signer)
    parts = signed.text.split(":")
    plain = len(parts) in (2, 5)
    request, response = (parts[0], tuple(parts[1].split(","))) if plain else ("", ())
    checks = (
        Check(name="signer", outcome="pass")
        if by_signer
        else Check(name="signer", outcome="fail", reason=f"not signed by {signer}"),
        _hash_check("request_hash", (request_hash,) if request_hash else None, (request,)),
        _hash_check("response_hash", response_hashes, response),
    )
    if not by_signer:
        status = AnswerStatus.FAILED
    elif all(c.outcome == "pass" for c in checks):
        status = AnswerStatus.VERIFIED
    else:
        status = AnswerStatus.NOT_BOUND
    return AnswerProof(
        status=status,
        checks=checks,
        signer=signer,
        response_key=response_key,
        routed_to=":".join(parts[2:]) if len(parts) == 5 else "",
    )


def _hash_check(name: str, ours: Sequence[str] | None, signed: Sequence[str]) -> Check:
    if ours is None:
        return Check(name=name, outcome="not_run", reason="no bytes to compare with")
    if not all(_SHA256.fullmatch(text) for text in signed):
        return Check(name=name, outcome="fail", reason="the signed text holds no such hash")
    if tuple(ours) == tuple(signed):
        return Check(name=name, outcome="pass")
    return Check(name=name, outcome="fail", reason="signed over other bytes")
