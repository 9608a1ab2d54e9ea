"""Inference services: who serves what at which price, and this wallet's account there."""

import contextlib
import dataclasses
import datetime as dt
import os
from typing import Final, Literal

import anyio

from zg_async.errors import ConfigError, ProviderReplyError, SignerNotAcknowledgedError, ZgError
from zg_async.managers.context import Context
from zg_async.managers.verification import OnLog
from zg_async.managers.verification_record import ServiceVerification
from zg_async.showing import Records
from zg_async.tracing import observed
from zg_async.wire import catalogue, inference_api
from zg_async.wire.catalogue import InferenceServiceDetail, ModelInfo
from zg_async.wire.hashing import parse_address
from zg_async.wire.records import (
    Address,
    InferenceAccount,
    InferenceAccountDetail,
    InferenceService,
    Receipt,
    ServiceMetadata,
    TxHash,
)

Verify = Literal["bytes", "signer", "off"]
"""How an answer has to be proven: signer and both hashes; the signer, for builds that hash other bytes; not at all."""

_SERVICE_SECONDS: Final = 60.0
_STATUS_SECONDS: Final = 10.0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class AutoFunding:
    """Leave to move money from the ledger to a provider's sub-account by itself. Without it, nothing ever moves.

    What it moves counts in `SpendLimits`, too.
    """

    cap: int | None = None
    """The most that may be moved in all, to all providers, while the broker lives; neuron. None: see `per_hour`."""
    per_hour: int | None = None
    """The most that may be moved within any hour, to all providers, from all wallets, by all programs of this user that
    share an outbox; neuron. It holds through crashes and restarts. None: only `cap` counts."""
    buffer: int | None = None
    """What should be there beyond unsettled fees; None: twice what the ledger's smallest transfer is."""
    interval: float = 30.0
    """Seconds between two looks at a provider's account."""

    def __post_init__(self) -> None:
        """Refuse a leave without any bound."""
        if self.cap is None and self.per_hour is None:
            raise ConfigError("automatic funding needs a bound", hint="Give it cap= or per_hour=, or both")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class AutoFunded:
    """Money moved by itself."""

    provider: Address
    amount: int
    """Neuron, from the ledger to the inference sub-account."""
    tx_hash: TxHash
    at: dt.datetime


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class InferencePolicy:
    """How a broker talks to inference providers."""

    verify: Verify = "bytes"
    """What is asked of answers of services that promise signed ones."""
    in_flight: int = 5
    """Requests of one wallet at one provider at a time; more wait their turn. Providers allow 5."""
    silence: float = 300.0
    """Longest pause in an answer, its beginning included; seconds."""
    busy_seconds: float = 60.0
    """How long a provider that is busy is asked again."""
    funding: AutoFunding | None = None


@observed("inference")
class InferenceServices:
    """What is registered, and what is said of it. Moves no money but where it says so."""

    def __init__(self, context: Context, policy: InferencePolicy | None = None) -> None:
        """Bind to a wallet."""
        self._ctx = context
        self._contract = context.services.inference
        self.policy = policy or InferencePolicy()

    async def list_service(self, include_unacknowledged: bool = False) -> Records[InferenceService]:
        """List the registered inference services, all pages. Needs no key.

        Args:
            include_unacknowledged: Also those whose TEE signer the contract owner hasn't approved.
        """
        services = await self._ctx.services.inference_services()
        return Records(s for s in services if include_unacknowledged or s.tee_signer_acknowledged)

    async def list_service_with_detail(
        self, include_unacknowledged: bool = False
    ) -> tuple[InferenceServiceDetail, ...]:
        """List services with prices, models and health. A status service that doesn't answer only leaves gaps.

        Args:
            include_unacknowledged: Also those whose TEE signer the contract owner hasn't approved.
        """
        answers: dict[str, bytes] = {}
        services: tuple[InferenceService, ...] | ZgError = ()
        async with anyio.create_task_group() as group:
            for name in ("health", "models"):
                group.start_soon(self._ask_status, name, answers)
            services = await self._listed(group, include_unacknowledged)
        if isinstance(services, ZgError):
            raise services
        health = catalogue.parse_health(answers.get("health", b""))
        models = catalogue.parse_status_models(answers.get("models", b""))
        return tuple(self._detail(s, health, models) for s in services)

    async def _listed(
        self, group: anyio.abc.TaskGroup, include_unacknowledged: bool
    ) -> tuple[InferenceService, ...] | ZgError:
        try:
            return await self.list_service(include_unacknowledged)
        except ZgError as error:  # out of the group as itself, not as a group of one
            group.cancel_scope.cancel()
            return error

    async def _ask_status(self, name: str, answers: dict[str, bytes]) -> None:
        base = self._ctx.services.network.status_url
        if base is None:
            return
        with contextlib.suppress(ZgError), anyio.move_on_after(_STATUS_SECONDS):
            reply = await self._ctx.http.request(
                "GET", f"{base.rstrip('/')}/{name}", limit=catalogue.CATALOGUE_LIMIT, idempotent=False
            )
            answers[name] = reply.body

    def _detail(
        self,
        service: InferenceService,
        health: dict[Address, tuple[catalogue.ServiceHealth, ...]],
        models: dict[Address, tuple[ModelInfo, ...]],
    ) -> InferenceServiceDetail:
        info = inference_api.parse_additional_info(service.additional_info)
        measured = health.get(service.provider, ())
        return InferenceServiceDetail(
            service=service,
            info=info,
            prices=catalogue.service_prices(service, info),
            health=measured[0] if measured else None,
            models=catalogue.with_health(models.get(service.provider, ()), measured),
        )

    async def get_provider_models(self, provider: str) -> tuple[ModelInfo, ...]:
        """Read a provider's own list of models. Its adapters aren't among them.

        Raises:
            ProviderUnavailableError: It doesn't answer (retryable).
            ProviderReplyError: It answers something else.
        """
        service = await self.get_service(provider)
        reply = await self._ctx.http.request(
            "GET",
            service.url.rstrip("/") + "/v1/models",
            limit=catalogue.CATALOGUE_LIMIT,
            provider=service.provider,
        )
        return catalogue.parse_models(reply.body, provider=service.provider)

    async def get_service(self, provider: str) -> InferenceService:
        """Read a provider's inference registration from the chain.

        Raises:
            NoInferenceServiceError: It has none.
        """
        return await self._ctx.services.inference_service(parse_address(provider, what="provider"))

    async def recent_service(self, provider: str) -> InferenceService:
        """Return a provider's registration as it was at most a minute ago, or since a watch saw it change.

        Raises:
            NoInferenceServiceError: It has none.
        """
        address = parse_address(provider, what="provider")
        return await self._ctx.services.inference_service(address, max_age=_SERVICE_SECONDS)

    async def get_service_metadata(self, provider: str, model: str | None = None) -> ServiceMetadata:
        """Return where to send requests, and with which model.

        Args:
            provider: The provider's address.
            model: A model, or an adapter's name; None: the service's own.
        """
        service = await self.get_service(provider)
        return ServiceMetadata(endpoint=inference_api.proxy_url(service.url), model=model or service.model)

    async def get_account(self, provider: str) -> InferenceAccount:
        """Read this wallet's inference sub-account at a provider.

        Raises:
            AccountNotFoundError: There is none; `ledger.transfer_fund(provider, "inference", ...)` opens it.
        """
        address = parse_address(provider, what="provider")
        return await self._ctx.chain.call(self._contract.get_account(self._ctx.wallet, address))

    async def get_account_with_detail(self, provider: str) -> InferenceAccountDetail:
        """Read this wallet's inference sub-account at a provider with the timing of its refunds.

        Args:
            provider: The provider's address.

        Returns:
            The sub-account; each refund says when it unlocks, counted from block time.

        Raises:
            AccountNotFoundError: There is none.
        """
        account = await self.get_account(provider)
        lock_time = await self._ctx.chain.call(self._contract.lock_time())
        lock, block = dt.timedelta(seconds=lock_time), await self._ctx.chain.block()
        refunds = tuple(dataclasses.replace(r, unlocks_at=r.created_at + lock) for r in account.refunds)
        return InferenceAccountDetail(account=account, refunds=refunds, lock_time=lock_time, as_of=block.timestamp)

    async def verify_service(
        self,
        provider_address: str,
        output_dir: str | os.PathLike[str] | None = ".",
        on_log: OnLog | None = None,
        *,
        accept_changes: bool = False,
    ) -> ServiceVerification:
        """Verify the TEE a provider serves inference from, and that of its model if it is another.

        Args:
            provider_address: The provider's address.
            output_dir: Gets the reports as they came (`attestation_report.json`, or `broker_…` and `llm_…`) and
                `verification_<provider>_<time>.json`, which `recheck_report` checks again offline. None: no files.
            on_log: Called with a line for each step and check.
            accept_changes: Take over what differs from the last time it was verified.

        Returns:
            The checks. `verified` needs all mandatory ones; without the extra `tee` it is never true. A failed check
            isn't raised.

        Raises:
            NoInferenceServiceError: The provider is not registered.
            ProviderUnavailableError: It doesn't answer.
        """
        verifier = self._ctx.require_verifier()
        return await verifier.verify("inference", provider_address, output_dir, on_log, accept_changes=accept_changes)

    async def acknowledge_provider_signer(self, provider: str, *, key: str | None = None) -> Receipt | None:
        """Acknowledge a provider's TEE signer for inference.

        Returns:
            The transaction; None when it was acknowledged already, as every transfer does by itself.

        Raises:
            AccountNotFoundError: No sub-account yet: `ledger.transfer_fund(provider, "inference", ...)` first.
        """
        await self._ctx.require_verified_provider(provider, "inference")
        account = await self.get_account(provider)
        if account.acknowledged:
            return None
        return await self._ctx.write(self._contract.acknowledge_tee_signer(account.provider, True), key=key)

    async def require_acknowledged(self, provider: str) -> InferenceAccount:
        """Return the sub-account, if requests would be accepted from it.

        Raises:
            SignerNotAcknowledgedError: This wallet hasn't acknowledged the provider's signer.
        """
        account = await self.get_account(provider)
        if not account.acknowledged:
            raise SignerNotAcknowledgedError(
                f"this wallet has not acknowledged the TEE signer of {account.provider} for inference",
                status=400,
                provider=account.provider,
                hint="Call inference.acknowledge_provider_signer",
            )
        return account


def require_object(value: object, what: str, provider: Address) -> dict[str, object]:
    """Return a decoded answer if it is an object.

    Raises:
        ProviderReplyError: It isn't.
    """
    if not isinstance(value, dict):
        raise ProviderReplyError(f"the provider's {what} is no object", provider=provider)
    return value
