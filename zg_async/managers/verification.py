"""Verifying providers: fetch their reports and what to check them with, judge, pin, and write down.

Fails closed: "verified" needs every mandatory check passed, the quote's signature up to the root included. Protocol:
0g-serving-broker api/common/tee, 0g-serving-user-broker verifyService.
"""

import contextlib
import dataclasses
import json
import os
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote as percent

import anyio
import anyio.to_thread

from zg_async.clock import Clock
from zg_async.errors import (
    AttestationError,
    ConfigError,
    EndpointRefusedError,
    ProviderError,
    ProviderUnavailableError,
    ZgError,
)
from zg_async.managers.provider_client import LIMITED_POLICY
from zg_async.managers.services import ServiceDirectory
from zg_async.managers.verification_record import (
    Evidence,
    FetchedReport,
    Kind,
    Pin,
    ServiceVerification,
    judge,
    pin_from_json,
    pins_of,
)
from zg_async.paths import make_private_dir
from zg_async.text import printable
from zg_async.transport.chain import Chain
from zg_async.transport.http import Http
from zg_async.transport.tee import INSTALL, TeePolicy, fetch_collateral, require_tee, tee_available
from zg_async.wire.attestation import QUOTE_LIMIT, check_llm_quote, check_quote
from zg_async.wire.hashing import parse_address
from zg_async.wire.inference_api import parse_additional_info, proxy_url
from zg_async.wire.provider_api import quote_path
from zg_async.wire.records import Address, FineTuningService, InferenceService
from zg_async.wire.strict_json import BadJsonError, decode_json

OnLog = Callable[[str], object]
_PIN_LIMIT: Final = 64 * 1024
_FILES: Final = {
    "combined": "attestation_report.json",
    "broker": "broker_attestation_report.json",
    "llm": "llm_attestation_report.json",
    "fine-tuning": "fine_tuning_attestation_report.json",
}


@dataclasses.dataclass(frozen=True, slots=True)
class _Seen:
    """A verification that counts for a while."""

    at: float
    url: str
    signer: Address


class Verifier:
    """Verifies the providers of one network; shared by all wallets of a broker."""

    def __init__(
        self,
        services: ServiceDirectory,
        chain: Chain,
        http: Http,
        clock: Clock,
        *,
        policy: TeePolicy | None = None,
        state_dir: Path | None = None,
    ) -> None:
        """Bind to a network.

        Args:
            services: The registrations.
            chain: The chain, which gives pins their place.
            http: Fetches reports and collateral.
            clock: The source of time.
            policy: What a TEE has to be.
            state_dir: Where pins are kept; None: in memory.

        Raises:
            ConfigError: The network's `tee_root` is no hex.
        """
        self.policy = policy or TeePolicy()
        self._services = services
        self._chain = chain
        self._http = http
        self._clock = clock
        self._pins = _PinBook(state_dir)
        self._seen: dict[tuple[Kind, Address], _Seen] = {}
        self._lock = anyio.Lock()
        try:
            self._root = bytes.fromhex(services.network.tee_root) if services.network.tee_root else None
        except ValueError:
            raise ConfigError("the network's tee_root is no hex") from None

    async def verify(
        self,
        kind: Kind,
        provider: str,
        output_dir: str | os.PathLike[str] | None = None,
        on_log: OnLog | None = None,
        *,
        accept_changes: bool = False,
    ) -> ServiceVerification:
        """Fetch a provider's reports and judge them; see `broker.fine_tuning.verify_service`."""
        log = on_log or (lambda _: None)
        address = parse_address(provider, what="provider")
        service = await self._service(kind, address)
        log(f"verifying {address} ({kind}): TEE signer by the chain {service.tee_signer_address}")
        reports = await self._fetch(kind, service, log)
        pins = await self._pins.read(self._place(kind, address))
        evidence = Evidence(
            kind=kind,
            provider=address,
            network=self._services.network.name,
            approved=service.tee_signer_acknowledged,
            reports=reports,
            pins=None if accept_changes else pins,
            policy=self.policy,
            checked_at=self._clock.now(),
            unregistered=_unregistered(service),
        )
        result = judge(evidence, root=self._root)
        if result.verified:
            await self._pins.write(self._place(kind, address), pins_of(result))
        if output_dir is not None:
            result = dataclasses.replace(result, files=await anyio.to_thread.run_sync(_write, result, Path(output_dir)))
        for check in result.checks:
            log(f"{check.name}: {check.outcome}" + (f" ({check.reason})" if check.reason else ""))
        log(result.summary())
        return result

    async def require(self, kind: Kind, provider: str) -> None:
        """Make sure that a provider is verified, now or a short while ago.

        Raises:
            ConfigError: The extra `tee` isn't installed.
            AttestationError: The provider isn't verified.
        """
        require_tee()
        address = parse_address(provider, what="provider")
        async with self._lock:
            service = await self._service(kind, address)
            seen = self._seen.get((kind, address))
            if (
                seen is not None
                and service.tee_signer_acknowledged
                and (seen.url, seen.signer) == (service.url, service.tee_signer_address)
                and self._clock.monotonic() - seen.at < self.policy.valid_seconds
            ):
                return
            self._seen.pop((kind, address), None)
            result = await self.verify(kind, address)
            if not result.verified:
                raise AttestationError(
                    f"{address} is {result.summary()}",
                    hint="Nothing was sent. verify_service shows all checks; what has changed on purpose is taken "
                    "over with accept_changes=True",
                )
            self._seen[kind, address] = _Seen(self._clock.monotonic(), service.url, service.tee_signer_address)

    # ---- fetching

    async def _service(self, kind: Kind, provider: Address) -> FineTuningService | InferenceService:
        if kind == "fine-tuning":
            return await self._services.fine_tuning_service(provider, fresh=True)
        return await self._services.inference_service(provider)

    async def _fetch(
        self, kind: Kind, service: FineTuningService | InferenceService, log: OnLog
    ) -> tuple[FetchedReport, ...]:
        base = service.url.rstrip("/")
        signer = service.tee_signer_address
        if kind == "fine-tuning" or not isinstance(service, InferenceService):
            return (await self._report("fine-tuning", base + quote_path(), service.provider, signer, log),)
        info = parse_additional_info(service.additional_info)
        broker = base + quote_path()
        if info.provider_type == "centralized":
            return (await self._report("broker", broker, service.provider, signer, log),)
        if not info.target_separated:
            return (await self._report("combined", broker, service.provider, signer, log),)
        llm = f"{proxy_url(service.url)}/attestation/report?model={percent(service.model, safe='')}"
        return (
            await self._report("broker", broker, service.provider, signer, log),
            await self._report("llm", llm, service.provider, info.target_tee_address, log),
        )

    async def _report(self, name: str, url: str, provider: Address, signer: str, log: OnLog) -> FetchedReport:
        body, header = b"", None
        try:
            reply = await self._http.request(
                "GET", url, limit=QUOTE_LIMIT, provider=provider, limited=True, policy=LIMITED_POLICY
            )
            body, header = reply.body, reply.headers.get("ZG-Quote-Signature")
        except (EndpointRefusedError, ProviderUnavailableError):
            raise
        except ProviderError as error:  # an answer that is no report fails the checks
            log(f"no {name} report: {printable(error.message, limit=160)}")
        fetched = FetchedReport(name=name, body=body, header_signature=header, expected_signer=signer)
        if not tee_available():
            return dataclasses.replace(fetched, no_collateral=f"needs the extra: {INSTALL}")
        offline = check_llm_quote if name == "llm" else check_quote
        quote = offline(body, header_signature=None, expected_signer=signer).quote
        if not quote:
            return fetched
        try:
            collateral = await fetch_collateral(self._http, self._services.network.pccs_url, quote)
        except ZgError as error:
            return dataclasses.replace(fetched, no_collateral=f"no collateral: {printable(error.message, limit=160)}")
        return dataclasses.replace(fetched, collateral=collateral)

    def _place(self, kind: Kind, provider: Address) -> str:
        return f"{self._chain.genesis_hash}/{kind}-{provider}.json"


def _unregistered(service: FineTuningService | InferenceService) -> str:
    """Say what keeps a registration from telling which TEEs there are."""
    if not isinstance(service, InferenceService) or parse_additional_info(service.additional_info).is_json:
        return ""
    return "its additionalInfo is missing" if not service.additional_info else "its additionalInfo isn't JSON"


class _PinBook:
    """One small file per provider; without a folder, memory."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder / "tee-pins" if folder is not None else None
        self._memory: dict[str, Mapping[str, Pin]] = {}

    async def read(self, place: str) -> Mapping[str, Pin] | None:
        if self._folder is None:
            return self._memory.get(place)
        return await anyio.to_thread.run_sync(self._read, self._folder / place)

    async def write(self, place: str, pins: Mapping[str, Pin]) -> None:
        if self._folder is None:
            self._memory[place] = pins
        else:
            await anyio.to_thread.run_sync(_put, self._folder / place, _pins_json(pins))

    @staticmethod
    def _read(path: Path) -> Mapping[str, Pin] | None:
        try:
            value = decode_json(path.read_bytes(), limit=_PIN_LIMIT)
            return {str(name): pin_from_json(pin) for name, pin in value.items()}
        except FileNotFoundError:
            return None
        except (OSError, BadJsonError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError(
                f"can't read what was pinned of this provider: {path}",
                hint="Remove the file to trust what comes next",
            ) from error


def _pins_json(pins: Mapping[str, Pin]) -> bytes:
    return json.dumps({name: dataclasses.asdict(pin) for name, pin in pins.items()}).encode()


def _put(path: Path, data: bytes) -> None:
    """Write a file whole or not at all."""
    part = path.with_name(f".{path.name}.{secrets.token_hex(8)}.part")  # several jobs may meet one provider
    try:
        make_private_dir(path.parent)
        part.write_bytes(data)
        part.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise ConfigError(f"can't write {path}: {error.strerror}", hint="Give a folder that can be written") from error


def _write(result: ServiceVerification, folder: Path) -> tuple[str, ...]:
    """Write the reports as they came under the peers' names, and one file with everything."""
    written: list[str] = []
    files: dict[str, Any] = {_FILES[r.name]: r.body for r in result.evidence.reports if r.body}
    record = f"verification_{result.provider}_{int(result.evidence.checked_at)}.json"
    files[record] = json.dumps(result.to_json(), indent=2).encode()
    for name, data in files.items():
        _put(folder / name, data)
        written.append(str(folder / name))
    return tuple(written)
