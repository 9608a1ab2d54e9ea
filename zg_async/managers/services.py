"""What providers registered on chain, and the names under which the ledger knows the serving contracts."""

import dataclasses
from collections.abc import Awaitable, Callable
from typing import Final, Generic, Literal, TypeVar

import anyio

from zg_async.clock import Clock
from zg_async.errors import ConfigError, NoInferenceServiceError, ServiceNotFoundError, WrongChainError, ZgError
from zg_async.managers.pages import PAGE, read_pages
from zg_async.networks import Network
from zg_async.transport.chain import Chain
from zg_async.wire.contracts import FineTuningContract, InferenceContract, LedgerContract
from zg_async.wire.records import Address, FineTuningService, InferenceService, ServiceInfo

S = TypeVar("S")
ServiceType = Literal["fine-tuning", "inference"]

_TTL: Final = 60.0
_MOST_SERVICES: Final = 10_000


@dataclasses.dataclass(frozen=True, slots=True)
class LedgerLimits:
    """Limits read from the LedgerManager; amounts in neuron."""

    min_account_balance: int
    """The least a new ledger holds, and the least that may stay available after a refund, unless nothing stays."""
    min_transfer_amount: int
    """The least a new sub-account gets."""
    max_providers_per_batch: int
    max_providers: int
    """Sub-accounts of one wallet with one service type, at most."""


class _Kept(Generic[S]):
    """Registrations by provider, and when each was read."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._found: dict[Address, tuple[float, S]] = {}
        self._asking: dict[Address, anyio.Lock] = {}
        self._changes = 0

    def put(self, provider: Address, service: S) -> None:
        self._found[provider] = (self._clock.monotonic(), service)

    def forget(self, provider: Address | None = None) -> None:
        self._changes += 1  # what is being read now may be old
        if provider is None:
            self._found.clear()
        else:
            self._found.pop(provider, None)

    def _recent(self, provider: Address, max_age: float) -> S | None:
        at, service = self._found.get(provider, (0.0, None))
        return service if service is not None and self._clock.monotonic() - at < max_age else None

    async def get(self, provider: Address, read: Callable[[], Awaitable[S]], max_age: float) -> S:
        if (known := self._recent(provider, max_age)) is not None:
            return known
        if max_age <= 0:
            return await self._read(provider, read)
        async with self._asking.setdefault(provider, anyio.Lock()):
            known = self._recent(provider, max_age)  # another may have asked meanwhile
            return known if known is not None else await self._read(provider, read)

    async def _read(self, provider: Address, read: Callable[[], Awaitable[S]]) -> S:
        before = self._changes
        service = await read()
        if self._changes == before:
            self.put(provider, service)
        return service


class Together(Generic[S]):
    """Reads once for all who ask while an earlier read is under way; nobody's answer is older than the question."""

    def __init__(self, read: Callable[[], Awaitable[S]]) -> None:
        """Begin without an answer."""
        self._read = read
        self._begun = 0
        self._answer: tuple[int, S] | None = None
        self._lock = anyio.Lock()

    async def get(self) -> S:
        """Return what a read finds that begins after this call."""
        asked = self._begun
        async with self._lock:
            if self._answer is not None and self._answer[0] > asked:
                return self._answer[1]
            self._begun = number = self._begun + 1
            self._answer = number, await self._read()
            return self._answer[1]


class ServiceDirectory:
    """Services, serving contracts' names and limits of one network; shared by all wallets of a broker."""

    def __init__(self, network: Network, chain: Chain, clock: Clock) -> None:
        """Bind contract addresses; nothing is read yet."""
        self.network = network
        self.ledger = LedgerContract(Address(network.ledger))
        self.fine_tuning = FineTuningContract(Address(network.fine_tuning))
        self.inference = InferenceContract(Address(network.inference))
        self._chain = chain
        self._clock = clock
        self._names: dict[ServiceType, str] = {}
        self._limits: LedgerLimits | None = None
        self._terms: tuple[float, int, int] | None = None
        self._fine_tuning: _Kept[FineTuningService] = _Kept(clock)
        self._inference: _Kept[InferenceService] = _Kept(clock)
        self._lock = anyio.Lock()
        self._all = Together(self._read_fine_tuning_services)

    async def full_name(self, service_type: str) -> str:
        """Return the registered name of a service type, the only one the ledger takes.

        Args:
            service_type: `"fine-tuning"` or `"inference"`.

        Returns:
            For example `fine-tuning-v1.0`.

        Raises:
            ConfigError: Another service type.
            WrongChainError: The serving contract is not registered with the ledger.
        """
        if service_type not in ("fine-tuning", "inference"):
            raise ConfigError(f"unknown service type {service_type[:40]!r}", hint='It is "fine-tuning" or "inference"')
        async with self._lock:
            if not self._names:
                await self._read_names()
        return self._names["fine-tuning" if service_type == "fine-tuning" else "inference"]

    async def _read_names(self) -> None:
        infos: list[ServiceInfo | ZgError] = await self._chain.call_many(
            [self.ledger.get_service_info(a) for a in (self.fine_tuning.address, self.inference.address)]
        )
        names: dict[ServiceType, str] = {}
        kinds: tuple[ServiceType, ServiceType] = ("fine-tuning", "inference")
        addresses = (self.fine_tuning.address, self.inference.address)
        for kind, address, info in zip(kinds, addresses, infos, strict=True):
            if isinstance(info, ZgError):
                raise WrongChainError(
                    f"the ledger at {self.ledger.address} doesn't answer getServiceInfo",
                    hint="It is none of today's LedgerManager contracts: check the address and the network",
                ) from info
            if not info.full_name:
                raise WrongChainError(
                    f"the {kind} contract {address} is not registered with the ledger {self.ledger.address}",
                    hint="Check the contract addresses of this network",
                )
            names[kind] = info.full_name
        self._names = names

    async def limits(self) -> LedgerLimits:
        """Read the ledger's limits, once."""
        if self._limits is None:
            values = await self._chain.call_many(
                [
                    self.ledger.min_account_balance(),
                    self.ledger.min_transfer_amount(),
                    self.ledger.max_providers_per_batch(),
                    self.ledger.max_providers_per_user_per_service(),
                ]
            )
            for value in values:
                if isinstance(value, ZgError):
                    raise value
            self._limits = LedgerLimits(*values)
        return self._limits

    async def lock_time(self) -> int:
        """Read the fine-tuning contract's lock time in seconds; kept for a minute."""
        return (await self.delivery_terms())[0]

    async def delivery_terms(self) -> tuple[int, int]:
        """Read what deliveries are subject to; kept for a minute.

        Returns:
            The lock time in seconds, and the penalty of a missed acknowledgement in per cent of the fee.
        """
        async with self._lock:  # many watches begin at the same time
            if self._terms is None or self._clock.monotonic() - self._terms[0] > _TTL:
                calls = [self.fine_tuning.lock_time(), self.fine_tuning.penalty_percentage()]
                values = await self._chain.call_many(calls)
                for value in values:
                    if isinstance(value, ZgError):
                        raise value
                self._terms = (self._clock.monotonic(), values[0], values[1])
            return self._terms[1:]

    async def fine_tuning_service(
        self, provider: Address, *, fresh: bool = False, max_age: float = _TTL
    ) -> FineTuningService:
        """Read a provider's fine-tuning registration; kept for a minute, or until a watch sees that it changed.

        Many who ask at once cause one call.

        Args:
            provider: The provider's address.
            fresh: Read it from the chain now, as everything that pays or verifies must.
            max_age: Seconds for which a registration read before will do; longer for who calls `forget` on changes.

        Returns:
            The registration.

        Raises:
            ServiceNotFoundError: The provider is not registered.
        """
        return await self._fine_tuning.get(
            provider, lambda: self._chain.call(self.fine_tuning.get_service(provider)), 0.0 if fresh else max_age
        )

    def forget(self, provider: Address | None = None) -> None:
        """Forget what is known of a provider's registrations; None: of all. The chain says that they changed."""
        self._fine_tuning.forget(provider)
        self._inference.forget(provider)

    async def fine_tuning_services(self) -> tuple[FineTuningService, ...]:
        """Read all fine-tuning registrations."""
        return await self._all.get()

    async def _read_fine_tuning_services(self) -> tuple[FineTuningService, ...]:
        services = await self._chain.call(self.fine_tuning.get_all_services())
        self._fine_tuning.forget()
        for service in services:
            self._fine_tuning.put(service.provider, service)
        return services

    async def inference_service(self, provider: Address, *, max_age: float = 0.0) -> InferenceService:
        """Read a provider's inference registration.

        Args:
            provider: The provider's address.
            max_age: Seconds for which a registration read before will do, unless a watch saw that it changed.

        Raises:
            NoInferenceServiceError: The provider is not registered for inference.
        """
        try:
            return await self._inference.get(
                provider, lambda: self._chain.call(self.inference.get_service(provider)), max_age
            )
        except ServiceNotFoundError as e:
            raise NoInferenceServiceError(
                f"{provider} is not registered for inference",
                provider=provider,
                hint="Adapters are served only under the fine-tuning provider's own wallet: choose one that does both",
            ) from e

    async def inference_services(self) -> tuple[InferenceService, ...]:
        """Read all inference registrations, page by page."""
        services = await read_pages(
            lambda offset: self._chain.call(self.inference.get_all_services(offset, PAGE)), most=_MOST_SERVICES
        )
        return tuple({service.provider: service for service in services}.values())  # one may move while we read
