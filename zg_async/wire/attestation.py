"""What a provider's attestation report proves by itself, without Intel's certificates.

Each check says pass, fail or not run, with a reason. All of it together shows that the parts agree and name the
expected signer; that a real TDX module signed the quote is another check, `quote_signature`, which `transport.tee`
runs. Layouts: public TDX quote format v4 and v5; report data and events: dstack, 0g-serving-broker api/common/tee.
"""

import base64
import binascii
import contextlib
import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final, Literal

from zg_async.errors import SignatureMismatchError
from zg_async.text import printable
from zg_async.wire.hashing import checksum_address, keccak256
from zg_async.wire.records import Address
from zg_async.wire.signing import eip191_hash, recover_address
from zg_async.wire.strict_json import BadJsonError, decode_json

QUOTE_LIMIT: Final = 4 * 1024 * 1024
RUNTIME_EVENT: Final = 0x08000001
_MAX_EVENTS: Final = 10_000
_ASCII_ADDRESS: Final = re.compile(rb"(0x[0-9a-fA-F]{40})\x00*")
_IMAGE: Final = re.compile(r"^[ \t]*image:[ \t]*[\"']?([^\s\"'#]{1,300})", re.MULTILINE)
_IMAGE_UPDATE: Final = re.compile(r"(\S+@sha256:[0-9a-f]{64}) (0x[0-9a-fA-F]{40}) ([0-9a-fA-F]{64})")

Outcome = Literal["pass", "fail", "not_run"]

MANDATORY: Final = (
    "report",
    "quote_format",
    "debug_off",
    "signer",
    "report_data",
    "compose_hash",
    "mr_config_id",
    "rtmr3_replay",
    "runtime_events",
)
"""Checks that have to pass, not only not to fail."""

CHAIN: Final = ("quote_signature", "tcb_level")
"""Checks that need the manufacturer's certificates; mandatory for `verified`."""

_BOUND: Final = ("quote", "intel_quote", "event_log", "report_data", "tcb_info", "info")
_BOUND_LLM: Final = ("signing_address", "request_nonce")


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One check."""

    name: str
    outcome: Outcome
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class QuoteReport:
    """What was checked of a report, and what it says."""

    checks: tuple[Check, ...]
    signer: Address | None = None
    """The TEE signer the report data names."""
    encryption_key: bytes = b""
    """X25519, only in the newer report data."""
    compose_hash: str = ""
    """SHA-256 of app_compose; empty if there is none."""
    measurements: Mapping[str, str] | None = None
    """mrtd and rtmr0 to rtmr3 of the raw quote, in hex."""
    images: tuple[str, ...] = ()
    """Images app_compose names, and the one put in place later; one without `@sha256:` is pinned by nothing."""
    unbound: tuple[str, ...] = ()
    """Parts of the report that no check binds to the quote: they may say anything."""
    quote: bytes = field(default=b"", repr=False)
    """The raw quote."""

    @property
    def passed(self) -> bool:
        """Whether no check failed and all mandatory ones passed. Doesn't include the quote's own signature."""
        outcomes = {c.name: c.outcome for c in self.checks}
        return "fail" not in outcomes.values() and all(outcomes.get(name) == "pass" for name in MANDATORY)

    @property
    def verified(self) -> bool:
        """Whether every check passed, the quote's own signature included."""
        outcomes = {c.name: c.outcome for c in self.checks}
        return self.passed and all(outcomes.get(name) == "pass" for name in CHAIN)

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
        """Return the failed checks in one line, or what wasn't run."""
        failed = [c for c in self.checks if c.outcome == "fail"]
        shown = failed or [c for c in self.checks if c.outcome == "not_run"]
        text = "; ".join(f"{c.name}: {c.reason}" for c in shown)
        return text if failed else f"all checks that were run passed; not run: {text}"

    def with_checks(self, *checks: Check) -> "QuoteReport":
        """Return the report with these checks in place of those of the same names."""
        new = {c.name: c for c in checks}
        kept = tuple(new.pop(c.name, c) for c in self.checks)
        return replace(self, checks=(*kept, *new.values()))

    def to_json(self) -> dict[str, Any]:
        """Return the report as plain JSON values, without the raw quote."""
        value = {**asdict(self), "encryption_key": self.encryption_key.hex(), "passed": self.passed}
        del value["quote"]
        return value


@dataclass(frozen=True, slots=True, kw_only=True)
class TdQuote:
    """The parts of a raw TDX quote that are used here."""

    version: int
    debug: bool
    mrtd: bytes
    mr_config_id: bytes
    rtmrs: tuple[bytes, bytes, bytes, bytes]
    report_data: bytes


class _FailedError(Exception):
    """A check fails; the text is the reason."""


class _NotRunError(Exception):
    """A check doesn't apply; the text is the reason."""


def check_quote(body: bytes, *, header_signature: str | None, expected_signer: str) -> QuoteReport:
    """Check a report offline.

    Args:
        body: The exact bytes of `GET /v1/quote`.
        header_signature: The `ZG-Quote-Signature` header; None or empty when it wasn't there.
        expected_signer: The service's TEE signer by the chain.

    Returns:
        All checks with outcomes; junk, empty and GPU-only reports fail. Never raises.
    """
    return _Checker(body, header_signature, expected_signer).run()


def check_llm_quote(body: bytes, *, header_signature: str | None = None, expected_signer: str) -> QuoteReport:
    """Check the report of the TEE a separated provider runs its model in, offline.

    Args:
        body: The exact bytes of `GET /v1/proxy/attestation/report`.
        header_signature: As in `check_quote`; these reports come without.
        expected_signer: The service's `TargetTeeAddress`.

    Returns:
        All checks with outcomes. Never raises.
    """
    return _LlmChecker(body, header_signature, expected_signer).run()


def parse_td_quote(raw: bytes) -> TdQuote:
    """Read a raw TDX quote.

    Raises:
        ValueError: Not version 4 or 5, not TDX, or too short.
    """
    version = int.from_bytes(raw[:2], "little")
    if version not in (4, 5):
        raise ValueError(f"version {version} is not 4 or 5")
    if int.from_bytes(raw[4:8], "little") != 0x81:
        raise ValueError("not a TDX quote")
    body = raw[48 if version == 4 else 54 :]  # v5 has a type and a size in front of the body
    if len(body) < 584:
        raise ValueError("cut off")
    return TdQuote(
        version=version,
        debug=bool(body[120] & 1),
        mrtd=body[136:184],
        mr_config_id=body[184:232],
        rtmrs=(body[328:376], body[376:424], body[424:472], body[472:520]),
        report_data=body[520:584],
    )


def quote_tail(raw: bytes) -> bytes:
    """Return what follows the signed part of a quote, beginning with its length; empty if it is cut off."""
    body = 48 + 584 if raw[:2] == b"\4\0" else 54 + int.from_bytes(raw[50:54], "little")
    return raw[body:]


def replay_rtmr(events: Sequence[Mapping[str, Any]], imr: int) -> bytes:
    """Compute a register from its events' digests.

    Raises:
        ValueError: A digest is no hex.
    """
    value = bytes(48)
    for event in events:
        if event["imr"] == imr:
            value = hashlib.sha384(value + bytes.fromhex(event["digest"])).digest()
    return value


def event_digest(event: Mapping[str, Any]) -> bytes:
    """Compute a runtime event's digest from its type, name and payload.

    Raises:
        ValueError: The payload is no hex.
    """
    kind = int(event["event_type"]).to_bytes(4, "little")
    payload = bytes.fromhex(event["event_payload"])
    return hashlib.sha384(kind + b":" + event["event"].encode() + b":" + payload).digest()


def report_data_signer(report_data: bytes) -> tuple[Address, bytes] | None:
    """Read the signer out of report data: ASCII first, then the newer layout.

    Returns:
        Address and encryption key (empty in ASCII), or None when it is neither.
    """
    if match := _ASCII_ADDRESS.fullmatch(report_data):
        return checksum_address(match[1].decode()), b""
    if len(report_data) == 64 and report_data[52:] == (1).to_bytes(4, "big") + bytes(8):
        return checksum_address(report_data[32:52]), report_data[:32]
    return None


class _Checker:
    def __init__(self, body: bytes, header_signature: str | None, expected_signer: str) -> None:
        self._body = body
        self._header_signature = header_signature
        self._expected = expected_signer
        self._report: Mapping[str, Any] = {}
        self._quote: TdQuote | None = None
        self._report_data = b""
        self._signer: Address | None = None
        self._encryption_key = b""
        self._raw = b""
        self._update = ""
        self._events: list[dict[str, Any]] = []
        self._compose: str | None = None

    def run(self) -> QuoteReport:
        steps: tuple[tuple[str, Callable[[], str]], ...] = (
            ("report", self._read_report),
            ("quote_format", self._read_quote),
            ("debug_off", self._debug_off),
            ("signer", self._check_signer),
            ("report_data", self._check_report_data),
            ("header_signature", self._check_header_signature),
            ("event_log", self._read_events),
            ("runtime_events", self._check_runtime_events),
            ("compose_hash", self._check_compose_hash),
            ("mr_config_id", self._check_mr_config_id),
            ("rtmr3_replay", lambda: self._check_replay((3,))),
            ("rtmr0_2_replay", lambda: self._check_replay((0, 1, 2))),
            ("image_update", self._check_image_update),
            ("gpu_nonce", self._check_gpu_nonce),
            ("quote_signature", self._quote_signature),
            ("tcb_level", self._quote_signature),
        )
        checks = tuple(_outcome(name, step) for name, step in steps)
        return QuoteReport(
            checks=checks,
            signer=self._signer,
            encryption_key=self._encryption_key,
            compose_hash=self._compose_hash() if self._compose is not None else "",
            measurements=self._measurements(),
            images=self._images(),
            unbound=self._unbound() if self._report and checks[5].outcome != "pass" else (),
            quote=self._raw,
        )

    # -- reading

    def _read_report(self) -> str:
        try:
            value = decode_json(self._body, limit=QUOTE_LIMIT)
        except BadJsonError as error:
            raise _FailedError(f"not a JSON report: {error}") from None
        if not isinstance(value, dict) or not value:
            raise _FailedError("not a report")
        self._report = value
        self._compose = self._app_compose()
        return ""

    def _read_quote(self) -> str:
        text = self._text("quote")
        if self._report.get("intel_quote", text) != text:
            raise _FailedError("the report holds two different quotes")
        try:
            if not text.isalnum():
                raise ValueError("not hex")
            self._raw = bytes.fromhex(text.removeprefix("0x"))
            self._quote = parse_td_quote(self._raw)
        except ValueError as error:
            raise _FailedError(f"no TDX quote: {error}") from None
        if self._padding().strip(b"\0"):
            raise _FailedError("something follows the quote")
        return f"TDX v{self._quote.version}"

    def _read_events(self) -> str:
        value = self._report.get("event_log")
        if isinstance(value, str):
            try:
                value = decode_json(value, limit=QUOTE_LIMIT)
            except BadJsonError as error:
                raise _FailedError(f"not JSON: {error}") from None
        if not isinstance(value, list) or not value or len(value) > _MAX_EVENTS:
            raise _FailedError("missing, empty or too long")
        if not all(_is_event(event) for event in value):
            raise _FailedError("an entry isn't an event")
        self._events = value
        return f"{len(value)} events"

    def _app_compose(self) -> str | None:
        info = self._tcb_info()
        if isinstance(info, str):
            try:
                info = decode_json(info, limit=QUOTE_LIMIT)
            except BadJsonError:
                return None
        compose = info.get("app_compose") if isinstance(info, dict) else None
        return compose if isinstance(compose, str) else None

    def _tcb_info(self) -> Any:
        info = self._report.get("info")
        return self._report.get("tcb_info") or (info.get("tcb_info") if isinstance(info, dict) else None)

    def _images(self) -> tuple[str, ...]:
        named = [*_IMAGE.findall(self._compose_file())[:50], *([self._update] if self._update else [])]
        return tuple(printable(image, limit=300) for image in dict.fromkeys(named))

    def _unbound(self) -> tuple[str, ...]:
        """Name what could be changed without any check failing."""
        names = [key for key in self._report if key not in self._bound_fields()]
        for place, value in (("info", self._report.get("info")), ("tcb_info", self._tcb_info())):
            with contextlib.suppress(BadJsonError):
                fields = decode_json(value, limit=QUOTE_LIMIT) if isinstance(value, str) else value
                bound = "tcb_info" if place == "info" else "app_compose"
                names += [f"{place}.{key}" for key in fields or () if key != bound]
        if self._raw:
            names.append("quote: its own copy of the root certificate")  # the one that counts is the verifier's
        if self._padding():
            names.append("quote: the zeros behind its end")  # real ones have them
        if any(e["imr"] != 3 for e in self._events):
            names += [f"event_log: {key} of boot events" for key in ("event", "event_payload", "event_type")]
        return tuple(printable(name, limit=80) for name in names[:200])

    def _bound_fields(self) -> tuple[str, ...]:
        return _BOUND

    def _compose_file(self) -> str:
        try:
            value = decode_json(self._compose or "", limit=QUOTE_LIMIT)
        except BadJsonError:
            return ""
        text = value.get("docker_compose_file") if isinstance(value, dict) else None
        return text if isinstance(text, str) else ""

    # -- checks

    def _debug_off(self) -> str:
        if self._need_quote().debug:
            raise _FailedError("the TD runs in debug mode: its memory can be read")
        return ""

    def _check_signer(self) -> str:
        try:
            data = base64.b64decode(self._text("report_data"), validate=True)
        except (binascii.Error, ValueError):
            raise _FailedError("report_data isn't base64") from None
        self._report_data = data
        found = report_data_signer(data)
        if found is None:
            raise _FailedError("report_data names no signer")
        self._signer, self._encryption_key = found
        return self._expect(self._signer, "report_data")

    def _check_report_data(self) -> str:
        if not self._report_data:
            raise _FailedError("no report_data")
        if self._need_quote().report_data != self._report_data.ljust(64, b"\0"):
            raise _FailedError("report_data differs from that in the quote")
        return ""

    def _check_header_signature(self) -> str:
        if not self._header_signature:
            raise _NotRunError("the provider sent none, so vm_config and GPU evidence are bound by nothing")
        text = self._header_signature
        try:
            signature = bytes.fromhex(text[2:] if text.startswith("0x") else text)
            signer = recover_address(eip191_hash(keccak256(self._body)), signature)
        except (ValueError, SignatureMismatchError):
            raise _FailedError("malformed") from None
        if signer.lower() != self._expected.lower():
            raise _FailedError(f"by {signer}")
        return ""

    def _check_runtime_events(self) -> str:
        events = self._runtime_events()
        if any(e["imr"] == 3 and e["event_type"] != RUNTIME_EVENT for e in self._events):
            raise _FailedError("register 3 has events of another type, whose names nothing binds")
        for event in events:
            try:
                right = event_digest(event) == bytes.fromhex(event["digest"])
            except ValueError:
                right = False
            if not right:
                raise _FailedError(f"the digest of {printable(event['event'], limit=60)!r} isn't that of its payload")
        return f"{len(events)} events"

    def _check_compose_hash(self) -> str:
        if self._compose is None:
            raise _FailedError("the report has no app_compose")
        event = next((e for e in self._before_ready() if e["event"] == "compose-hash"), None)
        if event is None:
            raise _FailedError("no compose-hash event before system-ready in register 3")
        if event["event_payload"] != self._compose_hash():
            raise _FailedError("app_compose has another hash than the event")
        return self._compose_hash()

    def _check_mr_config_id(self) -> str:
        if self._compose is None:
            raise _FailedError("the report has no app_compose")
        expected = (b"\x01" + bytes.fromhex(self._compose_hash())).ljust(48, b"\0")
        if self._need_quote().mr_config_id != expected:
            raise _FailedError("the quote names another app_compose")
        return ""

    def _check_replay(self, registers: tuple[int, ...]) -> str:
        quote = self._need_quote()
        if not any(e["imr"] in registers for e in self._events):
            if registers == (3,):
                raise _FailedError("no events of register 3")
            raise _NotRunError("the log has no events of these registers")
        for imr in registers:
            try:
                value = replay_rtmr(self._events, imr)
            except ValueError:
                raise _FailedError("a digest is no hex") from None
            if value != quote.rtmrs[imr]:
                raise _FailedError(f"the events don't give register {imr} of the quote")
        return ""

    def _check_image_update(self) -> str:
        updates = [e for e in self._runtime_events() if e["event"] == "zg-image-update"]
        if not updates:
            raise _NotRunError("no update: the image is what app_compose pins")
        try:
            text = bytes.fromhex(updates[-1]["event_payload"]).decode()
        except ValueError:
            raise _FailedError("unreadable") from None
        match = _IMAGE_UPDATE.fullmatch(text)
        if match is None:
            raise _FailedError("unreadable")
        if self._signer is None or match[2].lower() != self._signer.lower():
            raise _FailedError("made for another signer")
        if self._encryption_key and match[3].lower() != self._encryption_key.hex():
            raise _FailedError("made for another encryption key")
        self._update = match[1]
        return match[1]

    def _check_gpu_nonce(self) -> str:
        payload = self._report.get("nvidia_payload")
        if isinstance(payload, str):
            try:
                payload = decode_json(payload, limit=QUOTE_LIMIT)
            except BadJsonError:
                raise _FailedError("the GPU evidence can't be read") from None
        if not payload:
            raise _NotRunError("no GPU evidence")
        nonce = payload.get("nonce") if isinstance(payload, dict) else None
        if not isinstance(nonce, str) or nonce.lower().removeprefix("0x") != self._gpu_nonce():
            raise _FailedError("the GPU evidence has another nonce")
        return "the nonce only: the evidence itself isn't verified"

    def _gpu_nonce(self) -> str:
        return keccak256(self._report_data if self._encryption_key else self._report_data.rstrip(b"\0")).hex()

    def _quote_signature(self) -> str:
        raise _NotRunError("needs the manufacturer's certificates")

    # -- helpers

    def _expect(self, signer: Address, where: str) -> Address:
        if signer.lower() != self._expected.lower():
            raise _FailedError(f"{where} names {signer}, the chain {printable(self._expected, limit=60)}")
        if not int(signer, 16):
            raise _FailedError("the zero address is nobody's")
        return signer

    def _text(self, key: str) -> str:
        value = self._report.get(key)
        if not isinstance(value, str) or not value:
            raise _FailedError(f"the report has no {key}")
        return value

    def _padding(self) -> bytes:
        tail = quote_tail(self._raw)
        return tail[4 + int.from_bytes(tail[:4], "little") :]

    def _need_quote(self) -> TdQuote:
        if self._quote is None:
            raise _FailedError("no quote")
        return self._quote

    def _runtime_events(self) -> list[dict[str, Any]]:
        events = [e for e in self._events if e["imr"] == 3 and e["event_type"] == RUNTIME_EVENT]
        if not events:
            raise _FailedError("no runtime events")
        return events

    def _before_ready(self) -> list[dict[str, Any]]:
        """What a container wrote itself stands behind system-ready."""
        events = self._runtime_events()
        names = [e["event"] for e in events]
        ready = events[: names.index("system-ready")] if "system-ready" in names else events
        return [e for e in ready if _digest_is_right(e)]

    def _compose_hash(self) -> str:
        return hashlib.sha256((self._compose or "").encode()).hexdigest()

    def _measurements(self) -> Mapping[str, str] | None:
        if self._quote is None:
            return None
        registers = {f"rtmr{index}": value.hex() for index, value in enumerate(self._quote.rtmrs)}
        return {"mrtd": self._quote.mrtd.hex(), **registers}


class _LlmChecker(_Checker):
    """The report data is 20 bytes of address, 12 zeros and 32 bytes of nonce; the fields lie elsewhere."""

    def _check_signer(self) -> str:
        text = self._text("signing_address")
        if not re.fullmatch("0x[0-9a-fA-F]{40}", text):
            raise _FailedError("signing_address is no address")
        self._signer = checksum_address(text)
        return self._expect(self._signer, "the report")

    def _check_report_data(self) -> str:
        if self._signer is None:
            raise _FailedError("no signing_address")
        try:
            nonce = bytes.fromhex(self._text("request_nonce"))
        except ValueError:
            raise _FailedError("request_nonce is no hex") from None
        self._report_data = bytes.fromhex(self._signer[2:]).ljust(32, b"\0") + nonce
        if len(nonce) != 32 or self._need_quote().report_data != self._report_data:
            raise _FailedError("address and nonce differ from those in the quote")
        return ""

    def _gpu_nonce(self) -> str:
        return self._report_data[32:].hex()

    def _bound_fields(self) -> tuple[str, ...]:
        return _BOUND + _BOUND_LLM


def _outcome(name: str, step: Callable[[], str]) -> Check:
    try:
        return Check(name=name, outcome="pass", reason=step())
    except _FailedError as error:
        return Check(name=name, outcome="fail", reason=str(error))
    except _NotRunError as error:
        return Check(name=name, outcome="not_run", reason=str(error))


def _is_event(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and all(_is_int(value.get(key)) for key in ("imr", "event_type"))
        and value["imr"] < 4
        and all(isinstance(value.get(key), str) for key in ("digest", "event", "event_payload"))
    )


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**32


def _digest_is_right(event: Mapping[str, Any]) -> bool:
    try:
        return event_digest(event) == bytes.fromhex(event["digest"])
    except ValueError:
        return False
