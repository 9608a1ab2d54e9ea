"""Whose turn it is: a provider takes a wallet's next task only when the last one is finished."""

from collections.abc import AsyncGenerator, Iterable
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
            key=lambda s: (len(self.jobs_at(wallet, s.provider)), s.occupied, s.price_per_token, s.provider),
        )
