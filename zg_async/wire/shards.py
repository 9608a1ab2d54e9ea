"""Which storage nodes hold which segments, and which of them to use.

A node with (shard k of n) holds the segments whose place in the whole flow, counted in segments, is k modulo n.
Source: 0g-storage-client common/shard, transfer/upload_parallel.go.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from zg_async.wire.merkle import SEGMENT_CHUNKS, segment_count

TASK_SIZE: Final = 10
"""Segments per upload request, as the Go client sends by default."""
MAX_SHARDS: Final = 2**32


@dataclass(frozen=True, slots=True)
class ShardConfig:
    """What part of the flow a node holds."""

    shard_id: int
    num_shard: int
    """A power of two; 1: everything."""

    def __post_init__(self) -> None:
        count = self.num_shard
        if not 0 < count <= MAX_SHARDS or count & (count - 1) or not 0 <= self.shard_id < count:
            raise ValueError(f"no shard configuration: {self.shard_id} of {count}")

    def holds(self, start_entry: int, index: int) -> bool:
        """Tell whether the node holds segment `index` of the file placed at sector `start_entry`."""
        return (start_entry // SEGMENT_CHUNKS + index) % self.num_shard == self.shard_id


def own_segments(size: int, start_entry: int, config: ShardConfig) -> range:
    """Return which segments of a file a node holds.

    Args:
        size: The file's, in bytes.
        start_entry: Sector at which the flow contract placed it.
        config: The node's.

    Returns:
        Indexes in the file, possibly none.
    """
    first = (config.shard_id - start_entry // SEGMENT_CHUNKS) % config.num_shard
    return range(first, segment_count(size), config.num_shard)


def upload_tasks(
    size: int, start_entry: int, config: ShardConfig, task_size: int = TASK_SIZE
) -> tuple[tuple[int, ...], ...]:
    """Group a node's segments into requests of at most `task_size`, in order."""
    own = own_segments(size, start_entry, config)
    return tuple(tuple(own[at : at + task_size]) for at in range(0, len(own), task_size))


def covers(configs: Sequence[ShardConfig], replica: int = 1) -> bool:
    """Tell whether every segment is held by at least `replica` of these nodes."""
    return select_nodes(configs, replica=replica) is not None


def select_nodes(
    configs: Sequence[ShardConfig], *, replica: int = 1, method: str = "min", rng: random.Random | None = None
) -> tuple[int, ...] | None:
    """Choose nodes so that every segment is held by at least `replica` of them, none without need.

    Args:
        configs: Of the nodes at hand.
        replica: At least 1.
        method: `"min"`: nodes that hold most first; `"max"`: those that hold least; `"random"`; or a number: only
            nodes with that many shards.
        rng: For `"random"`; None takes the system's randomness.

    Returns:
        Indexes into `configs` in the order of choice; None when the nodes don't suffice.

    Raises:
        ValueError: `replica` below 1, or an unknown method.
    """
    if replica < 1:
        raise ValueError(f"{replica} replicas")
    tree = _Tree(replica)
    chosen = []
    for index in _order(configs, method, rng):
        if tree.insert(configs[index]):
            chosen.append(index)
        if tree.is_full:
            return tuple(chosen)
    return None


def _order(configs: Sequence[ShardConfig], method: str, rng: random.Random | None) -> list[int]:
    order = list(range(len(configs)))
    if method in ("min", "max"):
        sign = 1 if method == "min" else -1
        return sorted(order, key=lambda i: (sign * configs[i].num_shard, configs[i].shard_id))
    if method == "random":
        (rng or random.SystemRandom()).shuffle(order)
        return order
    if method.isascii() and method.isdigit():
        return [i for i in order if configs[i].num_shard == int(method)]
    raise ValueError(f"unknown selection method {method[:20]!r}")


class _Tree:
    """How often each part of the flow, (depth d, low d bits of the place), is held by nodes of this depth or deeper."""

    def __init__(self, replica: int) -> None:
        self._replica = replica
        self._own: dict[tuple[int, int], int] = {}
        self._held: dict[tuple[int, int], int] = {}

    @property
    def is_full(self) -> bool:
        return self._held.get((0, 0), 0) >= self._replica

    def insert(self, config: ShardConfig) -> bool:
        """Add a node, unless what it holds is held often enough."""
        depth = config.num_shard.bit_length() - 1
        way = [(d, config.shard_id & ((1 << d) - 1)) for d in range(depth + 1)]
        above = 0
        for part in way:
            if above + self._held.get(part, 0) >= self._replica:
                return False
            above += self._own.get(part, 0)
        self._own[way[-1]] = self._own.get(way[-1], 0) + 1
        for d, low in reversed(way):
            halves = (self._held.get((d + 1, low), 0), self._held.get((d + 1, low | 1 << d), 0))
            self._held[d, low] = self._own.get((d, low), 0) + min(halves)
        return True
