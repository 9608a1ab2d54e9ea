"""What can be changed on a storage node or the indexer of the devnet while it runs."""

import dataclasses
from typing import cast


@dataclasses.dataclass(slots=True, kw_only=True)
class StorageSettings:
    """A node's configuration and faults. A fault's whole number counts how often it strikes: -1 for good, 0 never."""

    max_writings: int = 64
    """Segments written at once before `too many data writing`."""
    finalize_seconds: float = 0.02
    """From the last own segment to `finalized`."""
    late_sync: float = 0.0
    """Seconds by which the node learns of submissions later."""
    latency: float = 0.0
    """Seconds added to every answer."""
    method: str = ""
    """When set, faults strike only methods whose name contains it."""
    drop: int = 0
    """Close the connection without doing anything."""
    lose_answer: int = 0
    """Do what was asked, then close the connection without an answer."""
    error_5xx: int = 0
    """Answer 503 without doing anything."""
    too_many: int = 0
    """Refuse a segment with `too many data writing`."""
    duplicate: int = 0
    """Write a segment and call it a duplicate."""
    reverted: int = 0
    """Refuse a segment with `Transaction reverted`."""
    refuse: int = 0
    """Refuse a segment with an internal error."""
    wrong_data: int = 0
    """Serve a segment with one byte changed."""
    tampered_proof: int = 0
    """Serve a proof with one hash changed."""
    missing: int = 0
    """Answer null to a download."""
    short_data: int = 0
    """Serve a segment without its last chunk."""
    wrong_size: int = 0
    """Tell a file's size 256 bytes too large in file infos."""
    never_final: int = 0
    """Tell no file to be finalized."""
    flow_address: str = ""
    """When set, told in the status instead of the flow contract."""
    chain_id: int = 0
    """When set, told in the status instead of the chain's."""

    def strikes(self, name: str, method: str = "") -> bool:
        """Tell whether a fault is on, and count it."""
        if self.method and self.method not in method:
            return False
        left = cast("int", getattr(self, name))
        if left > 0:
            setattr(self, name, left - 1)
        return left != 0


@dataclasses.dataclass(slots=True, kw_only=True)
class IndexerSettings:
    """The indexer's faults."""

    null_locations: int = 0
    """Answer null to `indexer_getFileLocations`."""
    lost_locations: int = 0
    """Answer an error to it."""
    no_selection: bool = False
    """Don't know `indexer_getSelectedNodes`, as old ones."""
    null_discovered: bool = True
    """Tell no discovered nodes as null, not as an empty list."""
    drop: int = 0
    latency: float = 0.0
    dead_nodes: int = 0
    """How many nodes that nobody runs are listed, each with a real one's shard."""
    foreign_nodes: tuple[str, ...] = ()
    """URLs to list besides, each for the whole shard space."""
    file_limit: int = 100 * 2**20
    """Bytes a file may have to be served over REST."""

    def strikes(self, name: str) -> bool:
        """Tell whether a fault is on, and count it."""
        left = cast("int", getattr(self, name))
        if left > 0:
            setattr(self, name, left - 1)
        return left != 0
