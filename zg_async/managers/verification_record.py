"""Judging providers' reports: what was fetched, what came of each check, and doing all of it again from a file."""

import base64
import binascii
import dataclasses
import datetime as dt
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal

from zg_async.errors import AttestationError, ConfigError
from zg_async.transport.tee import ChainResult, TeePolicy, not_checked, verify_chain
from zg_async.wire.attestation import CHAIN, MANDATORY, Check, QuoteReport, check_llm_quote, check_quote
from zg_async.wire.hashing import checksum_address
from zg_async.wire.records import Address
from zg_async.wire.strict_json import BadJsonError, decode_json

Kind = Literal["fine-tuning", "inference"]
RECORD_LIMIT: Final = 64 * 1024 * 1024
_PINNED: Final = ("mrtd", "rtmr0", "rtmr1", "rtmr2")
"""Register 3 holds the compose hash, and numbers of one machine."""
_VERSION: Final = 1
_LATEST: Final = 253_402_300_799
"""The end of the year 9999, as unix time."""
_LARGEST: Final = 2**31 - 1


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Pin:
    """What a provider's TEE was when it was last verified."""

    signer: str
    compose_hash: str
    measurements: Mapping[str, str]
    evaluation: int
    """Number of the TCB evaluation data."""
    issued_at: str
    """Time of the collateral, ISO 8601."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class FetchedReport:
    """A report as it came, with what it is checked with."""

    name: str
    """`combined`, `broker`, `llm`, or `fine-tuning`."""
    body: bytes = dataclasses.field(repr=False)
    header_signature: str | None
    expected_signer: str
    """By the chain."""
    collateral: Mapping[str, str | None] | None = dataclasses.field(default=None, repr=False)
    no_collateral: str = ""
    """Why there is none."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """All that a judgement rests on."""

    kind: Kind
    provider: Address
    network: str
    approved: bool
    """Whether the contract's owner has approved the signer."""
    reports: tuple[FetchedReport, ...]
    pins: Mapping[str, Pin] | None
    """By report; None: nothing was pinned."""
    policy: TeePolicy
    checked_at: float
    """Unix time."""
    unregistered: str = ""
    """What the registration fails to say about the TEE; empty: nothing is missing."""

    def to_json(self) -> dict[str, Any]:
        """Return it as plain JSON values."""
        value = dataclasses.asdict(self)
        for report in value["reports"]:
            report["body"] = base64.b64encode(report["body"]).decode()
        return {"version": _VERSION, **value}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ServiceVerification:
    """What was checked of a provider, and what came of it."""

    kind: Kind
    provider: Address
    signer: Address | None
    """The TEE signer its (first) report names."""
    checks: tuple[Check, ...]
    """Those of a separated provider's model TEE begin with `llm.`."""
    reports: Mapping[str, QuoteReport]
    tcb_status: str
    """Of the first report; empty if it wasn't checked."""
    tcb_evaluation: int | None
    advisories: tuple[str, ...]
    unbound: tuple[str, ...]
    """Parts of the reports that nothing binds to a quote: don't believe them."""
    checked_at: dt.datetime
    evidence: Evidence = dataclasses.field(repr=False)
    chains: Mapping[str, ChainResult] = dataclasses.field(default_factory=dict, repr=False)
    files: tuple[str, ...] = ()
    """What was written."""

    @property
    def verified(self) -> bool:
        """Whether every mandatory check passed and none failed. A check that wasn't run counts as not passed."""
        return not self.blocking

    @property
    def blocking(self) -> tuple[Check, ...]:
        """The checks that stand in the way of `verified`."""
        needed = {*_mandatory(self.reports)}
        present = {c.name for c in self.checks}
        absent = [Check(name=name, outcome="not_run", reason="missing") for name in sorted(needed - present)]
        found = [c for c in self.checks if c.outcome == "fail" or (c.name in needed and c.outcome != "pass")]
        return (*found, *absent)

    def check(self, name: str) -> Check:
        """Return a check by name.

        Raises:
            KeyError: There is none.
        """
        for check in self.checks:
            if check.name == name:
                return check
        raise KeyError(name)

    def summary(self) -> str:
        """Return the outcome in one line."""
        if self.verified:
            return f"verified: {self.provider} ({self.kind}), TEE signer {self.signer}, {self.tcb_status}"
        return "not verified: " + "; ".join(f"{c.name}: {c.outcome} ({c.reason})" for c in self.blocking)

    def to_json(self) -> dict[str, Any]:
        """Return it as plain JSON values, with the evidence: enough to be checked again."""
        return {
            "kind": self.kind,
            "provider": self.provider,
            "verified": self.verified,
            "signer": self.signer,
            "tcb_status": self.tcb_status,
            "tcb_evaluation": self.tcb_evaluation,
            "advisories": list(self.advisories),
            "checked_at": self.checked_at.isoformat(),
            "checks": [dataclasses.asdict(c) for c in self.checks],
            "unbound": list(self.unbound),
            "reports": {name: report.to_json() for name, report in self.reports.items()},
            "evidence": self.evidence.to_json(),
        }


def judge(evidence: Evidence, *, root: bytes | None) -> ServiceVerification:
    """Run all checks. The same evidence gives the same result, at any time.

    Args:
        evidence: What was fetched, and when.
        root: The root of trust, DER; None: Intel's.
    """
    reports: dict[str, QuoteReport] = {}
    chains: dict[str, ChainResult] = {}
    checks: list[Check] = []
    for fetched in evidence.reports:
        offline = check_llm_quote if fetched.name == "llm" else check_quote
        report = offline(
            fetched.body, header_signature=fetched.header_signature, expected_signer=fetched.expected_signer
        )
        chain = _chain(fetched, report, evidence, root)
        reports[fetched.name] = report = report.with_checks(*chain.checks)
        chains[fetched.name] = chain
        prefix = _prefix(fetched.name)
        checks += [dataclasses.replace(c, name=prefix + c.name) for c in report.checks]
        checks.append(_images(prefix, report, evidence.policy))
        checks.append(_pinned(prefix, fetched.name, report, chain, evidence.pins))
    checks.append(_approved(evidence))
    if evidence.unregistered:
        checks.append(Check(name="registration", outcome="fail", reason=evidence.unregistered))
    names = list(reports)
    first = chains[names[0]] if names else not_checked("no report")
    return ServiceVerification(
        kind=evidence.kind,
        provider=evidence.provider,
        signer=reports[names[0]].signer if names else None,
        checks=tuple(checks),
        reports=reports,
        tcb_status=first.status,
        tcb_evaluation=first.evaluation,
        advisories=first.advisories,
        unbound=tuple(_prefix(name) + part for name, report in reports.items() for part in report.unbound),
        checked_at=dt.datetime.fromtimestamp(evidence.checked_at, dt.UTC),
        evidence=evidence,
        chains=chains,
    )


def pins_of(result: ServiceVerification) -> dict[str, Pin]:
    """Return what to pin after a verification; the highest numbers of before and now."""
    pins: dict[str, Pin] = {}
    for name, report in result.reports.items():
        chain, old = result.chains[name], (result.evidence.pins or {}).get(name)
        issued = chain.issued_at.isoformat() if chain.issued_at else ""
        pins[name] = Pin(
            signer=report.signer or "",
            compose_hash=report.compose_hash,
            measurements=_registers(report),
            evaluation=max(chain.evaluation or 0, old.evaluation if old else 0),
            issued_at=max(issued, old.issued_at if old else ""),
        )
    return pins


def recheck_report(
    path: str | os.PathLike[str], *, root: bytes | None = None, at: float | None = None
) -> ServiceVerification:
    """Check a provider again from the file a verification wrote, offline.

    Args:
        path: A `verification_<provider>_<time>.json`.
        root: The root of trust, DER; None: Intel's. For another network it is in the `tee_root` of its record.
        at: As of which time, Unix seconds; None: when it was written. Collateral holds for about a month.

    Returns:
        The same result as then; the file's own words about it aren't believed.

    Raises:
        ConfigError: The file can't be read.
        AttestationError: It is no such file.
    """
    try:
        with Path(path).open("rb") as file:
            data = file.read(RECORD_LIMIT + 1)
    except OSError as error:
        raise ConfigError(f"can't read {os.fspath(path)}: {error.strerror}") from error
    try:
        evidence = evidence_from_json(decode_json(data, limit=RECORD_LIMIT)["evidence"])
    except (BadJsonError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise AttestationError(f"{os.fspath(path)} is no record of a verification: {error}") from None
    return judge(evidence if at is None else dataclasses.replace(evidence, checked_at=at), root=root)


def evidence_from_json(value: Mapping[str, Any]) -> Evidence:
    """Read `Evidence.to_json`'s output.

    Raises:
        ValueError: It is something else.
        KeyError: A part is missing.
        TypeError: A part is of another kind.
    """
    if value["version"] != _VERSION or value["kind"] not in ("fine-tuning", "inference"):
        raise ValueError("another version")
    pins = value["pins"]
    return Evidence(
        kind=value["kind"],
        provider=checksum_address(_text(value["provider"])),
        network=str(value["network"]),
        approved=value["approved"] is True,
        reports=tuple(_fetched(one) for one in value["reports"]),
        pins=None if pins is None else {str(name): pin_from_json(pin) for name, pin in pins.items()},
        policy=_policy(value["policy"]),
        checked_at=_number(value["checked_at"], _LATEST),
        unregistered=_text(value.get("unregistered", "")),
    )


def pin_from_json(value: Mapping[str, Any]) -> Pin:
    """Read a pin.

    Raises:
        ValueError: It is none.
        KeyError: A part is missing.
        TypeError: A part is of another kind.
    """
    issued_at = _text(value["issued_at"])
    if issued_at and dt.datetime.fromisoformat(issued_at).tzinfo is None:
        raise ValueError("a time without its zone")
    return Pin(
        signer=_text(value["signer"]),
        compose_hash=_text(value["compose_hash"]),
        measurements={str(k): _text(v) for k, v in value["measurements"].items()},
        evaluation=_whole(value["evaluation"]),
        issued_at=issued_at,
    )


def _fetched(value: Mapping[str, Any]) -> FetchedReport:
    header, collateral = value["header_signature"], value["collateral"]
    try:
        body = base64.b64decode(_text(value["body"]), validate=True)
    except binascii.Error as error:
        raise ValueError("the report isn't base64") from error
    return FetchedReport(
        name=_text(value["name"]),
        body=body,
        header_signature=None if header is None else _text(header),
        expected_signer=_text(value["expected_signer"]),
        collateral=None if collateral is None else {str(k): v for k, v in collateral.items()},
        no_collateral=_text(value["no_collateral"]),
    )


def _policy(value: Mapping[str, Any]) -> TeePolicy:
    lists = ("statuses", "rejected_advisories", "allowed_images")
    numbers = ("min_evaluation", "grace_days")
    return TeePolicy(
        **{
            **value,
            **{name: tuple(_text(v) for v in value[name]) for name in lists},
            **{name: _whole(value[name]) for name in numbers},
            "valid_seconds": _number(value["valid_seconds"], _LARGEST),
        }
    )


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("text expected")
    return value


def _number(value: Any, limit: int) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= limit:
        raise TypeError("a number expected")
    return value


def _whole(value: Any) -> int:
    if type(value) is not int or not 0 <= value <= _LARGEST:
        raise TypeError("a whole number expected")
    return value


def _prefix(name: str) -> str:
    return "llm." if name == "llm" else ""


def _mandatory(names: Mapping[str, Any]) -> Sequence[str]:
    prefixes = {"", *map(_prefix, names)}  # a model's report is nothing without its broker's
    return ["approved", *(prefix + check for prefix in sorted(prefixes) for check in (*MANDATORY, *CHAIN))]


def _chain(fetched: FetchedReport, report: QuoteReport, evidence: Evidence, root: bytes | None) -> ChainResult:
    if not report.quote:
        return not_checked("no quote")
    if fetched.collateral is None:
        return not_checked(fetched.no_collateral or "no collateral")
    return verify_chain(report.quote, fetched.collateral, root=root, now=evidence.checked_at, policy=evidence.policy)


def _approved(evidence: Evidence) -> Check:
    if evidence.approved:
        return Check(name="approved", outcome="pass", reason="the contract's owner approved the signer")
    return Check(name="approved", outcome="fail", reason="the contract's owner has not approved the signer")


def _images(prefix: str, report: QuoteReport, policy: TeePolicy) -> Check:
    name, loose = f"{prefix}images", [image for image in report.images if "@sha256:" not in image]
    if not policy.allowed_images:
        told = f"; without a digest, so pinned by nothing: {', '.join(loose[:5])}" if loose else ""
        return Check(name=name, outcome="not_run", reason=f"no list of allowed images{told}")
    allowed = {entry.lower() for entry in policy.allowed_images}
    wrong = [i for i in report.images if not {i.lower(), i.rpartition("@")[2].lower()} & allowed]
    if wrong or not report.images:
        return Check(name=name, outcome="fail", reason=f"not on the list: {', '.join(wrong[:5]) or 'no image named'}")
    return Check(name=name, outcome="pass", reason=f"{len(report.images)} images")


def _pinned(prefix: str, name: str, report: QuoteReport, chain: ChainResult, pins: Mapping[str, Pin] | None) -> Check:
    pin = (pins or {}).get(name)
    if pin is None:
        return Check(name=f"{prefix}pins", outcome="not_run", reason="nothing is pinned yet")
    differences = []
    if (report.signer or "").lower() != pin.signer.lower():
        differences.append(f"signer {report.signer} instead of {pin.signer}")
    if report.compose_hash != pin.compose_hash:
        differences.append(f"compose hash {report.compose_hash[:16]}… instead of {pin.compose_hash[:16]}…")
    found = _registers(report)
    differences += [f"another {key}" for key in _PINNED if found.get(key) != pin.measurements.get(key)]
    if chain.evaluation is not None and chain.evaluation < pin.evaluation:
        differences.append(f"older TCB evaluation data: {chain.evaluation} after {pin.evaluation}")
    if chain.issued_at is not None and pin.issued_at and chain.issued_at < dt.datetime.fromisoformat(pin.issued_at):
        differences.append(f"older collateral: of {chain.issued_at.isoformat()} after {pin.issued_at}")
    if differences:
        return Check(name=f"{prefix}pins", outcome="fail", reason="; ".join(differences))
    return Check(name=f"{prefix}pins", outcome="pass", reason="as it was verified before")


def _registers(report: QuoteReport) -> dict[str, str]:
    return {key: (report.measurements or {}).get(key, "") for key in _PINNED}
