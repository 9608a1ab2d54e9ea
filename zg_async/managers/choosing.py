"""Which provider to take: all are looked at at once, ranked by what is known, with the reasons in words."""

import dataclasses
from collections.abc import Awaitable, Callable, Sequence

import anyio

from zg_async.clock import Clock
from zg_async.errors import ZgError
from zg_async.wire.records import FineTuningService


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ProviderProbe:
    """Whether a provider answered just now."""

    pending: int | None
    """Tasks of all users ahead there; None: it didn't answer."""
    latency: float
    """Seconds until it did, or until that was given up."""
    error: str = ""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ProviderChoice:
    """One provider in a ranking."""

    service: FineTuningService
    probe: ProviderProbe
    fits: bool
    """Whether it takes the task now, within what was asked for."""
    reasons: tuple[str, ...]
    """Why it stands where it stands, or why it doesn't fit."""


async def probe_all(
    services: Sequence[FineTuningService],
    ask: Callable[[FineTuningService], Awaitable[int]],
    clock: Clock,
    *,
    timeout: float,
) -> list[ProviderProbe]:
    """Ask all providers at once how many tasks are ahead; none waits for another.

    Args:
        services: Whom.
        ask: Returns the number, or raises.
        clock: For latencies.
        timeout: Seconds each may take.

    Returns:
        One probe per service, in order.
    """
    probes: dict[int, ProviderProbe] = {}

    async def look(number: int, service: FineTuningService) -> None:
        began, pending, error = clock.monotonic(), None, f"no answer in {timeout:g} s"
        with anyio.move_on_after(timeout):
            try:
                pending, error = await ask(service), ""
            except ZgError as e:
                error = e.message
        probes[number] = ProviderProbe(pending=pending, latency=clock.monotonic() - began, error=error)

    async with anyio.create_task_group() as group:
        for number, service in enumerate(services):
            group.start_soon(look, number, service)
    return [probes[number] for number in range(len(services))]


def rank(
    services: Sequence[FineTuningService],
    probes: Sequence[ProviderProbe],
    refusals: Sequence[str],
    *,
    max_price: int | None,
    min_gpu: int,
    free_only: bool,
) -> tuple[ProviderChoice, ...]:
    """Rank providers: those that fit first, by queue, price and address. Pure: the same facts, the same order."""
    choices: list[ProviderChoice] = []
    for service, probe, refusal in zip(services, probes, refusals, strict=True):
        against = [refusal] if refusal else []
        if probe.pending is None:
            against.append(f"it doesn't answer: {probe.error}")
        if max_price is not None and service.price_per_token > max_price:
            against.append(f"{service.price_per_token} neuron per token is above {max_price}")
        if service.quota.gpu_count < min_gpu:
            against.append(f"it has {service.quota.gpu_count} GPUs, not {min_gpu}")
        if free_only and (service.occupied or probe.pending):
            against.append(f"it is busy: {probe.pending or 0} tasks ahead")
        good = (f"{probe.pending} tasks ahead", f"{service.price_per_token} neuron per token")
        choices.append(ProviderChoice(service=service, probe=probe, fits=not against, reasons=tuple(against) or good))
    return tuple(
        sorted(
            choices,
            key=lambda c: (
                not c.fits,
                c.probe.pending if c.probe.pending is not None else 10**9,
                c.service.occupied,
                c.service.price_per_token,
                c.service.provider,
            ),
        )
    )
