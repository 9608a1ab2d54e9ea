"""What is known of a file after it was stored or fetched."""

from dataclasses import dataclass

from zg_async.wire.records import RootHash, TxHash


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredFile:
    """A file in 0G Storage, confirmed by enough nodes."""

    root_hash: RootHash
    """Of the file; of the first fragment when there are several."""
    roots: tuple[RootHash, ...]
    """Of all fragments in order. Nothing else links them: keep the list."""
    size: int
    """Bytes stored, a header of encryption included. The root doesn't bind it: keep it, too."""
    tx_seqs: tuple[int, ...]
    """The fragments' numbers in the flow contract."""
    tx_hashes: tuple[TxHash, ...]
    """Of what was paid now; empty when everything was there."""
    fee: int
    """Neuron paid now to the flow contract, gas not included."""
    nodes: tuple[str, ...]
    """URLs of the nodes that confirmed it."""
    replicas: int
    """How often each segment is held by them at least."""

    def to_json(self) -> dict[str, object]:
        """Return it as JSON; amounts as decimal text."""
        return {
            "root": self.root_hash,
            "size": self.size,
            "roots": list(self.roots),
            "tx_seqs": list(self.tx_seqs),
            "tx_hashes": list(self.tx_hashes),
            "fee": str(self.fee),
            "nodes": list(self.nodes),
            "replicas": self.replicas,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchedFile:
    """A file from 0G Storage, proved to be the one asked for."""

    path: str
    root_hash: RootHash
    roots: tuple[RootHash, ...]
    size: int
    """Bytes of the file on disk."""
    resumed: int = 0
    """Bytes that were there from an earlier run."""
    nodes: tuple[str, ...] = ()
    """URLs of the nodes that sent parts of it."""

    def to_json(self) -> dict[str, object]:
        """Return it as JSON."""
        return {"root": self.root_hash, "size": self.size, "path": self.path, "roots": list(self.roots)}
