"""Counters and histograms of one broker: cheap to keep, read as a snapshot, exported by whoever wants to.

| name | kind | what |
|---|---|---|
| `polls` | counter | questions to providers on behalf of watches |
| `retries` | counter | requests made again |
| `http.requests`, `rpc.requests` | counter | requests begun |
| `http.bytes_received`, `http.bytes_uploaded` | counter | bodies that came, and files that went |
| `rpc.bytes_sent`, `rpc.bytes_received` | counter | bodies |
| `transactions`, `transactions.reverted` | counter | seen in a block |
| `fees.gas`, `fees.tasks` | counter | neuron: gas of those transactions, settled fees of jobs that succeeded |
| `http.seconds`, `rpc.seconds` | histogram | until an answer's head, or the whole answer of JSON-RPC |
| `poll.lag` | histogram | seconds by which a poll began later than planned: a busy loop, or limits |
| `chain.lag` | histogram | seconds by which the newest block that watches have read is behind the clock |
"""

import bisect
import dataclasses
from collections.abc import Mapping
from typing import Final

BOUNDS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""Upper ends of the histograms' buckets, seconds; one more bucket holds what is above."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Histogram:
    """How values are spread."""

    count: int
    total: float
    largest: float
    buckets: tuple[int, ...]
    """How many were at most `BOUNDS[n]` and above the bound before; the last: above all."""

    @property
    def mean(self) -> float:
        """The average; 0 without values."""
        return self.total / self.count if self.count else 0.0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class MetricsSnapshot:
    """All values at one moment; what never happened isn't among them."""

    counters: Mapping[str, int]
    histograms: Mapping[str, Histogram]


class Metrics:
    """What a broker counts."""

    def __init__(self) -> None:
        """Begin at nothing."""
        self._counters: dict[str, int] = {}
        self._values: dict[str, tuple[list[int], list[float]]] = {}

    def count(self, name: str, by: int = 1) -> None:
        """Add to a counter."""
        self._counters[name] = self._counters.get(name, 0) + by

    def observe(self, name: str, value: float) -> None:
        """Put a value into a histogram."""
        buckets, sums = self._values.setdefault(name, ([0] * (len(BOUNDS) + 1), [0.0, 0.0]))
        buckets[bisect.bisect_left(BOUNDS, value)] += 1
        sums[0] += value
        sums[1] = max(sums[1], value)

    def snapshot(self) -> MetricsSnapshot:
        """Return all values of now."""
        histograms = {
            name: Histogram(count=sum(buckets), total=sums[0], largest=sums[1], buckets=tuple(buckets))
            for name, (buckets, sums) in sorted(self._values.items())
        }
        return MetricsSnapshot(counters=dict(sorted(self._counters.items())), histograms=histograms)
