"""How we work with 0G Storage."""

import dataclasses
from collections.abc import Callable
from typing import Final, Literal

from zg_async.transport.transfer import Progress
from zg_async.wire.merkle import FRAGMENT
from zg_async.wire.shards import TASK_SIZE

FIRST_POLL: Final = 0.05
LONGEST_POLL: Final = 2.0
POLL_GROWTH: Final = 1.5
Stage = Literal["hashing", "looking", "paying", "entry", "sending", "finality", "fetching", "checking", "done"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class StorageSettings:
    """Limits and patience. Times in seconds."""

    replicas: int = 1
    """How many nodes must hold each segment before an upload counts as done."""
    fragment_size: int = FRAGMENT
    """Bytes of an entry at most, rounded up to a power of two; larger files have several roots."""
    task_size: int = TASK_SIZE
    """Segments per upload request."""
    requests_per_node: int = 2
    requests: int = 8
    """In flight over all nodes. Each takes about 9 MiB with ten segments."""
    downloads: int = 16
    """Segments in flight. Each takes about 1.3 MiB."""
    max_price_per_sector: int = 10**12
    """Neuron for 256 bytes above which nothing is paid; networks asked about 3 * 10**10 when this was written."""
    entry_seconds: float = 120.0
    """How long a node may take to learn of a mined submission."""
    finality_seconds: float = 300.0
    """How long a node may take to confirm that it has everything."""
    busy_seconds: float = 120.0
    """How long a node may be too busy to write."""
    locate_seconds: float = 30.0
    """How long a download waits for a file that is known but not finalized."""
    wait_finality: bool = True
    """Whether an upload waits for finality. Without, success says only that enough nodes took the data."""


@dataclasses.dataclass(slots=True)
class StorageProgress(Progress):
    """How far an upload or download is. Read it whenever you like; only stages are told, to those who ask."""

    stage: Stage = "hashing"
    nodes_done: int = 0
    nodes_total: int = 0
    on_stage: Callable[[Stage], None] | None = None
    """Called in the event loop with each stage that begins. Nodes work side by side: their stages may alternate."""
    _told: Stage | None = None

    def enter(self, stage: Stage) -> None:
        """Begin a stage."""
        self.stage = stage
        if stage != self._told:
            self._told = stage
            if self.on_stage is not None:
                self.on_stage(stage)
