"""Whether a real TDX module signed a quote, and how far its platform is up to date.

The certificates and lists to check with (the collateral) come from a PCCS in four GETs of ours: `dcap-qvl`, which does
the checking, crashed at exit after fetching by itself. All of it is signed, so the PCCS isn't trusted. Source: Intel
PCCS API v4; dcap-qvl 0.7.
"""

import dataclasses
import datetime as dt
import importlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, Final
from urllib.parse import unquote

from zg_async.errors import AttestationError, ConfigError, ZgError
from zg_async.text import printable
from zg_async.transport.http import KIB, MIB, Http, Reply
from zg_async.wire.attestation import Check, Outcome, quote_tail
from zg_async.wire.strict_json import BadJsonError, decode_json

INSTALL: Final = "pip install 'zg-async[tee]'"
_DAY: Final = 86_400
_LIMIT: Final = 4 * MIB


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TeePolicy:
    """What a provider's TEE has to be. The default takes platforms that are up to date, and no others."""

    statuses: tuple[str, ...] = ("UpToDate",)
    """Accepted TCB levels, by Intel's names, for example `SWHardeningNeeded`. `Revoked` is never accepted."""
    rejected_advisories: tuple[str, ...] = ()
    """Platforms under these advisories are refused, for example `INTEL-SA-00837`."""
    min_evaluation: int = 0
    """Least number of the TCB evaluation data."""
    grace_days: int = 0
    """How old the TCB date of a platform that is out of date may be, if `statuses` accepts those."""
    allowed_images: tuple[str, ...] = ()
    """Digests (`sha256:…`) or whole names of the images that may run; empty: images aren't judged."""
    valid_seconds: float = 600.0
    """How long a verification counts for `require_verified`; signer and approval are read from the chain each time."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ChainResult:
    """What came of checking a quote's signature."""

    checks: tuple[Check, Check]
    """`quote_signature` and `tcb_level`."""
    status: str = ""
    evaluation: int | None = None
    advisories: tuple[str, ...] = ()
    issued_at: dt.datetime | None = None
    """When the collateral was issued; a quote itself bears no time."""


def tee_available() -> bool:
    """Say whether the extra `tee` is installed."""
    return _library() is not None


def require_tee() -> None:
    """Raise unless quotes can be checked here.

    Raises:
        ConfigError: The extra `tee` isn't installed.
    """
    if not tee_available():
        raise ConfigError("verified providers are required, and quotes can't be checked here", hint=INSTALL)


async def fetch_collateral(http: Http, pccs_url: str, raw_quote: bytes) -> dict[str, str | None]:
    """Fetch what a quote is checked with.

    Args:
        http: The HTTP client.
        pccs_url: The caching service.
        raw_quote: Says which platform it is about.

    Returns:
        The collateral as plain JSON, to be kept beside the report.

    Raises:
        ProviderError: The service doesn't answer, or refuses.
        AttestationError: The quote can't be read, or the answers.
        ConfigError: The extra `tee` isn't installed.
    """
    require_tee()
    try:
        quote = _library().parse_quote(raw_quote)
        fmspc, authority = str(quote.fmspc()), str(quote.ca())
    except ValueError as error:
        raise AttestationError(f"the quote names no platform: {printable(str(error), limit=120)}") from None
    base = pccs_url.rstrip("/")

    async def get(path: str) -> Reply:
        return await http.request("GET", f"{base}/{path}", limit=_LIMIT)

    crl = await get(f"sgx/certification/v4/pckcrl?ca={authority}&encoding=der")
    tcb = await get(f"tdx/certification/v4/tcb?fmspc={fmspc}&update=standard")
    identity = await get("tdx/certification/v4/qe/identity?update=standard")
    root = await get("sgx/certification/v4/rootcacrl")
    info, info_signature = _signed(tcb.body, "tcbInfo")
    enclave, enclave_signature = _signed(identity.body, "enclaveIdentity")
    return {
        "pck_crl_issuer_chain": _chain(crl, "SGX-PCK-CRL-Issuer-Chain"),
        "root_ca_crl": _der_hex(root.body),
        "pck_crl": _der_hex(crl.body),
        "tcb_info_issuer_chain": _chain(tcb, "TCB-Info-Issuer-Chain", "SGX-TCB-Info-Issuer-Chain"),
        "tcb_info": info,
        "tcb_info_signature": info_signature,
        "qe_identity_issuer_chain": _chain(identity, "SGX-Enclave-Identity-Issuer-Chain"),
        "qe_identity": enclave,
        "qe_identity_signature": enclave_signature,
        "pck_certificate_chain": None,  # it is in the quote
    }


def verify_chain(
    raw_quote: bytes, collateral: Mapping[str, str | None], *, root: bytes | None, now: float, policy: TeePolicy
) -> ChainResult:
    """Check a quote's signature up to the root, and the platform's TCB level.

    Args:
        raw_quote: The quote.
        collateral: As `fetch_collateral` returns it.
        root: The root certificate, DER; None: Intel's.
        now: Unix time at which everything has to be valid.
        policy: What is accepted.

    Returns:
        Two checks; never raises for what is in quote and collateral.
    """
    library = _library()
    if library is None:
        return not_checked(f"needs the extra: {INSTALL}")
    seconds = int(now)
    tag = quote_tail(raw_quote)[132:134]  # behind a length, a signature and a key: what kind of data follows
    if tag != b"\x06\0":  # the library doesn't look
        return _refused("unknown certification data")
    try:
        parsed = library.QuoteCollateralV3.from_json(json.dumps(dict(collateral)))
        verifier = library.QuoteVerifier(root)
        wide = library.QuotePolicy.claims_only(seconds)
        claims = json.loads(verifier.verify_with_policy(raw_quote, parsed, seconds, wide).to_json())
    except (ValueError, TypeError, OverflowError) as error:
        return _refused(printable(str(error), limit=200))
    if not _is_of_platform(collateral.get("tcb_info"), claims["platform"]["pck"]["pce_id"]):
        return _refused("the TCB info is of another provisioning enclave")
    enclave = str(claims["qe"]["tcb_level"]["tcbStatus"])
    if enclave in policy.statuses:
        level = _level(library, verifier, raw_quote, parsed, seconds, policy)
    else:  # the library lets some words pass that it doesn't know of enclaves
        level = Check(name="tcb_level", outcome="fail", reason=f"the quoting enclave is {printable(enclave, limit=60)}")
    status, evaluation = str(claims["tcb"]["status"]), int(claims["tcb"]["eval_data_number"])
    whose = "Intel's root" if root is None else "the network's own root"
    return ChainResult(
        checks=(Check(name="quote_signature", outcome="pass", reason=f"by {whose}"), level or _passed(status)),
        status=status,
        evaluation=evaluation,
        advisories=tuple(str(a) for a in claims["tcb"]["advisory_ids"]),
        issued_at=_issued(collateral.get("tcb_info")),
    )


def not_checked(reason: str) -> ChainResult:
    """Return the result of not having looked."""
    names = ("quote_signature", "tcb_level")
    first, second = (Check(name=name, outcome="not_run", reason=reason) for name in names)
    return ChainResult(checks=(first, second))


def _level(library: Any, verifier: Any, raw: bytes, parsed: Any, now: int, policy: TeePolicy) -> Check | None:
    """Return the failed check, if the policy doesn't accept the level."""
    try:
        strict = library.QuotePolicy.strict(now)
        for status in policy.statuses:
            strict = strict.allow_status(status)
        strict = strict.reject_advisories(list(policy.rejected_advisories))
        strict = strict.min_tcb_eval_data_number(policy.min_evaluation)
        if policy.grace_days:
            seconds = policy.grace_days * _DAY
            strict = strict.platform_grace_period(seconds).qe_grace_period(seconds)
        verifier.verify_with_policy(raw, parsed, now, strict)
    except (ValueError, OverflowError) as error:
        return Check(name="tcb_level", outcome="fail", reason=printable(str(error), limit=200))
    return None


def _passed(status: str) -> Check:
    return Check(name="tcb_level", outcome="pass", reason=status)


def _refused(reason: str) -> ChainResult:
    level: Outcome = "fail" if "TCB status" in reason else "not_run"
    return ChainResult(
        checks=(
            Check(name="quote_signature", outcome="fail", reason=reason),
            Check(name="tcb_level", outcome=level, reason=reason),
        )
    )


def _library() -> Any:
    try:
        return importlib.import_module("dcap_qvl")
    except ImportError:
        return None


def _signed(body: bytes, name: str) -> tuple[str, str]:
    """Take a signed value out of its envelope, letter by letter: the signature is over these letters."""
    try:
        value = decode_json(body, limit=_LIMIT)
        signature, text = value["signature"], body.decode()
        start = text.index(f'"{name}"') + len(name) + 2
        start = next(i for i in range(text.index(":", start) + 1, len(text)) if not text[i].isspace())
        _, end = json.JSONDecoder().raw_decode(text, start)
        bytes.fromhex(signature)
    except (BadJsonError, ValueError, KeyError, TypeError, StopIteration):
        raise AttestationError(f"the collateral service sent no signed {name}") from None
    return text[start:end], signature


def _chain(reply: Reply, *names: str) -> str:
    text = next((reply.headers[name] for name in names if name in reply.headers), "")
    if not text or len(text) > 64 * KIB:
        raise AttestationError(f"the collateral service sent no {names[0]}")
    return unquote(text)


def _der_hex(body: bytes) -> str:
    """Return a list of revoked certificates as hex; services send it so, or raw."""
    try:
        return bytes.fromhex(body.decode("ascii").strip()).hex()
    except ValueError:
        return body.hex()


def _is_of_platform(tcb_info: str | None, pce_id: Sequence[int]) -> bool:
    """Say whether TCB info names a platform's PCE, which the library doesn't compare."""
    try:
        return bytes.fromhex(decode_json(tcb_info or "", limit=_LIMIT)["pceId"]) == bytes(pce_id)
    except (BadJsonError, ValueError, KeyError, TypeError):
        return False


def _issued(tcb_info: str | None) -> dt.datetime | None:
    try:
        value = decode_json(tcb_info or "", limit=_LIMIT)
        issued = dt.datetime.fromisoformat(value["issueDate"])
        return issued if issued.tzinfo is not None else None
    except (BadJsonError, ValueError, KeyError, TypeError):
        return None


def collateral_error(error: ZgError) -> ChainResult:
    """Return the result when there is no collateral."""
    return not_checked(f"no collateral: {printable(error.message, limit=160)}")
