"""Whose turn it is: a provider takes a wallet's next task only when the last one is finished."""

import dataclasses
from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet

import anyio

from zg_async.wire.records import Address, FineTuningService, JobId

_Pair = tuple[Address, Address]


@dataclasses.dataclass(slots=True, eq=False)
class _Wish:
    """A job that waits for its turn."""

    job_id: JobId
    wallet: Address
    providers: AbstractSet[Address]
    granted: Address | None = None
    event: anyio.Event = dataclasses.field(default_factory=anyio.Event)


class Scheduler:
    """Hands out turns, one per (wallet, provider).

    A turn that becomes free goes to the job that has waited longest among those that would take it, so none starves.
    A job that has a task already needs nobody's leave: it is let in at once, and nobody else is while it is there.
    """

    def __init__(self) -> None:
        """Begin with all providers free."""
        self._inside: dict[_Pair, list[JobId]] = {}
        self._pairs: dict[JobId, _Pair] = {}
        self._waiting: list[_Wish] = []
        self._outcomes: dict[Address, tuple[int, int]] = {}

    # ---- turns

    def jobs_at(self, wallet: Address, provider: Address) -> tuple[JobId, ...]:
        """Return who has the turn, and then who waits for no other."""
        waiting = (w.job_id for w in self._waiting if (w.wallet, w.providers) == (wallet, {provider}))
        return (*self._inside.get((wallet, provider), ()), *waiting)

    def ahead(self, job_id: JobId, wallet: Address, providers: Sequence[Address]) -> tuple[Address, JobId] | None:
        """Return behind whom, and where, a job would wait; None: it would get its turn at once."""
        if self._pairs.get(job_id) in {(wallet, provider) for provider in providers}:
            return None
        if any((wallet, provider) not in self._inside for provider in providers):
            return None
        return providers[0], self.jobs_at(wallet, providers[0])[-1]

    async def claim(
        self, job_id: JobId, wallet: Address, providers: Sequence[Address], *, has_task: bool = False
    ) -> Address:
        """Take the turn at one of some providers; wait for it first.

        Args:
            job_id: Who wants it. It holds one turn at a time.
            wallet: Its wallet.
            providers: Where it would go, best first.
            has_task: It has a task at the first of them.

        Returns:
            Where it has the turn now, until `release`.
        """
        held = self._pairs.get(job_id)
        if held is not None and held[0] == wallet and held[1] in providers:
            return held[1]
        free = next((p for p in providers if has_task or (wallet, p) not in self._inside), None)
        if free is not None:
            self.admit(job_id, wallet, free)
            return free
        self.release(job_id)
        wish = _Wish(job_id, wallet, frozenset(providers))
        self._waiting.append(wish)
        arrived = False
        try:
            await wish.event.wait()
            arrived = True
        finally:
            if wish.granted is None:
                self._waiting.remove(wish)
            elif not arrived:  # cancelled when it was its turn
                self.release(job_id)
        return self._pairs[job_id][1]

    def admit(self, job_id: JobId, wallet: Address, provider: Address) -> None:
        """Give a job its turn at once: one that has a task there already, or may have."""
        if self._pairs.get(job_id) != (wallet, provider):
            self.release(job_id)
            self._enter(job_id, (wallet, provider))

    def release(self, job_id: JobId) -> None:
        """Give the turn back; nothing happens if there is none."""
        pair = self._pairs.pop(job_id, None)
        if pair is None:
            return
        inside = self._inside[pair]
        inside.remove(job_id)
        if inside:
            return
        del self._inside[pair]
        wallet, provider = pair
        for wish in self._waiting:
            if wish.wallet == wallet and provider in wish.providers:
                self._waiting.remove(wish)
                wish.granted = provider
                self._enter(wish.job_id, pair)
                wish.event.set()
                return

    def _enter(self, job_id: JobId, pair: _Pair) -> None:
        self._inside.setdefault(pair, []).append(job_id)
        self._pairs[job_id] = pair

    # ---- choice

    def order(self, services: Iterable[FineTuningService], wallet: Address) -> list[FineTuningService]:
        """Sort providers by how soon and how cheaply they would take a job of this wallet."""
        return sorted(
            services,
            key=lambda s: (
                (wallet, s.provider) in self._inside,
                self._is_bad(s.provider),
                s.occupied,
                s.price_per_token,
                s.provider,
            ),
        )

    def reason(self, service: FineTuningService, services: Sequence[FineTuningService], others: int) -> str:
        """Say in words why a provider was taken, where so many other jobs of the wallet are."""
        good, bad = self._outcomes.get(service.provider, (0, 0))
        cheaper = sum(1 for s in services if s.price_per_token < service.price_per_token)
        return (
            f"{others} jobs of this wallet there, "
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
