"""Whose turn it is: a provider takes a wallet's next task only when the last one is finished."""

from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import asynccontextmanager

import anyio

from zg_async.wire.records import Address, FineTuningService, JobId

_Pair = tuple[Address, Address]


class Scheduler:
    """Hands out turns, one per (wallet, provider), in the order in which they are asked for."""

    def __init__(self) -> None:
        """Begin with all providers free."""
        self._turns: dict[_Pair, anyio.Lock] = {}
        self._jobs: dict[_Pair, list[JobId]] = {}
        self._outcomes: dict[Address, tuple[int, int]] = {}

    def jobs_at(self, wallet: Address, provider: Address) -> tuple[JobId, ...]:
        """Return who has or waits for the turn, first the one who has it."""
        return tuple(self._jobs.get((wallet, provider), ()))

    @asynccontextmanager
    async def turn(self, wallet: Address, provider: Address, job_id: JobId) -> AsyncGenerator[None, None]:
        """Hold the turn; wait for it first."""
        pair = (wallet, provider)
        jobs = self._jobs.setdefault(pair, [])
        jobs.append(job_id)
        try:
            async with self._turns.setdefault(pair, anyio.Lock()):
                yield
        finally:
            jobs.remove(job_id)
            if not jobs:
                del self._jobs[pair], self._turns[pair]

    def order(self, services: Iterable[FineTuningService], wallet: Address) -> list[FineTuningService]:
        """Sort providers by how soon and how cheaply they would take a job of this wallet."""
        return sorted(
            services,
            key=lambda s: (
                len(self.jobs_at(wallet, s.provider)),
                self._is_bad(s.provider),
                s.occupied,
                s.price_per_token,
                s.provider,
            ),
        )

    def reason(self, service: FineTuningService, services: Sequence[FineTuningService], wallet: Address) -> str:
        """Say in words why a provider was taken."""
        good, bad = self._outcomes.get(service.provider, (0, 0))
        cheaper = sum(1 for s in services if s.price_per_token < service.price_per_token)
        return (
            f"{len(self.jobs_at(wallet, service.provider))} jobs of this wallet there, "
            f"{'occupied' if service.occupied else 'free'}, {service.price_per_token} neuron per token "
            f"({cheaper} of {len(services)} cheaper), {good} jobs succeeded and {bad} failed there before"
        )

    def record(self, provider: Address, *, succeeded: bool) -> None:
        """Remember how a job ended at a provider; the journal tells it again after a restart."""
        good, bad = self._outcomes.get(provider, (0, 0))
        self._outcomes[provider] = (good + succeeded, bad + (not succeeded))

    def _is_bad(self, provider: Address) -> bool:
        """Whether more jobs failed there than succeeded: such a provider comes last."""
        good, bad = self._outcomes.get(provider, (0, 0))
        return bad > good
