"""The chain as a node runs it: an EVM, a pool, a clock, and ways back. Synchronous; belongs to one thread at a time.

Every method that changes the chain returns a `Change`, from which the node tells its subscribers.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from eth_typing import Address

from zg_async.clock import Clock, SystemClock
from zg_async.devnet.evm import Evm
from zg_async.devnet.evm_records import EvmBlock, MinedTx, SignedTx
from zg_async.devnet.node_pool import Pool

_MOST_SNAPSHOTS = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What happened to the chain: first the removed blocks go, oldest first, then the added ones come."""

    removed: Sequence[EvmBlock] = ()
    added: Sequence[EvmBlock] = ()
    found: bool = True
    """False when the snapshot to go back to doesn't exist."""


@dataclass(frozen=True, slots=True)
class _Snapshot:
    blocks: tuple[EvmBlock, ...]
    offset: float
    waiting: tuple[SignedTx, ...]


class NodeChain:
    """An EVM with a pool.

    Attributes:
        evm: The blocks and states.
        pool: What waits.
        offset: Seconds the chain's clock is ahead of the wall clock.
    """

    def __init__(self, evm: Evm, clock: Clock | None = None) -> None:
        """Wrap an EVM; `clock` gives wall time."""
        self.evm = evm
        self.pool = Pool()
        self.offset = 0.0
        self._clock = clock or SystemClock()
        self._mined: dict[bytes, tuple[EvmBlock, MinedTx]] = {}
        self._by_hash: dict[bytes, EvmBlock] = {block.hash: block for block in evm.blocks}
        self._next_timestamp: int | None = None
        self._next_base_fee: int | None = None
        self._snapshots: dict[int, _Snapshot] = {}
        self._snapshot_count = 0

    # --- reads ---

    @property
    def head(self) -> EvmBlock:
        """The newest block."""
        return self.evm.head

    def block_by_hash(self, block_hash: bytes) -> EvmBlock | None:
        """Return a block of the present chain; its balances set by hand included."""
        known = self._by_hash.get(block_hash)
        [*block] = self.evm.blocks[known.number : known.number + 1] if known is not None else []
        return block[0] if block and block[0].hash == block_hash else None

    def mined(self, tx_hash: bytes) -> tuple[EvmBlock, MinedTx] | None:
        """Return a mined transaction and its block."""
        return self._mined.get(tx_hash)

    def next_timestamp(self) -> int:
        """Return the time the next block would get now, in unix seconds."""
        if self._next_timestamp is not None:
            return self._next_timestamp
        return max(self.head.timestamp, int(self._clock.now() + self.offset))

    def next_base_fee(self) -> int:
        """Return the next block's base fee per gas, in neuron."""
        return self.evm.next_base_fee() if self._next_base_fee is None else self._next_base_fee

    def pending_nonce(self, address: bytes) -> int:
        """Return the nonce an account's next transaction should have."""
        return self.pool.next_nonce(address, self.evm.nonce(address))

    # --- transactions and blocks ---

    def accept(self, raw: bytes) -> SignedTx:
        """Check a raw transaction and put it into the pool.

        Raises:
            BadTransactionError: It can't be mined, now or later.
        """
        tx = self.evm.decode(raw)
        state = self.evm.state_at(self.head)
        sender = Address(tx.sender)
        self.pool.add(tx, account_nonce=state.get_nonce(sender), balance=state.get_balance(sender))
        return tx

    def ready(self) -> list[SignedTx]:
        """List what the next block would hold, were it large enough."""
        if not len(self.pool):
            return []
        state = self.evm.state_at(self.head)
        return self.pool.ready(
            base_fee=self.next_base_fee(), account_nonce=lambda sender: state.get_nonce(Address(sender))
        )

    def mine_for(self, tx: SignedTx) -> Change:
        """Append a block, if the next one could hold a certain transaction."""
        ready = self.ready() if self.pool.get(tx.hash) is not None else []
        return Change(added=[self._append(ready)] if any(one.hash == tx.hash for one in ready) else ())

    def mine(self, blocks: int = 1, *, empty: bool = False, step: int = 0) -> Change:
        """Append blocks; the first holds what waits.

        Args:
            blocks: How many.
            empty: Whether to leave the pool alone.
            step: Seconds between them on the chain's clock; 0 for what the clock says.
        """
        added = []
        for count in range(blocks):
            if count and step:
                self.set_next_timestamp(self.head.timestamp + step)
            added.append(self._append(() if empty else self.ready()))
        return Change(added=added)

    def _append(self, transactions: Sequence[SignedTx]) -> EvmBlock:
        block, refused = self.evm.build(transactions, timestamp=self.next_timestamp(), base_fee=self._next_base_fee)
        self._next_timestamp = self._next_base_fee = None
        self._index(block)
        for tx in refused:
            self.pool.remove(tx.hash)
        return block

    def _index(self, block: EvmBlock) -> None:
        self._by_hash[block.hash] = block
        for one in block.mined:
            self._mined[one.tx.hash] = (block, one)
            self.pool.remove(one.tx.hash)
            self.pool.forget_below(one.tx.sender, one.tx.nonce + 1)

    def drop(self, tx_hash: bytes) -> bool:
        """Lose a waiting transaction, as a node short of memory does; return whether it waited."""
        return self.pool.remove(tx_hash)

    def set_balance(self, address: bytes, amount: int) -> None:
        """Set an account's balance in neuron."""
        self.evm.set_balance(address, amount)

    # --- time ---

    def increase_time(self, seconds: float) -> int:
        """Move the chain's clock; return by how many seconds it is ahead of the wall clock now."""
        self.offset += seconds
        return int(self.offset)

    def set_next_timestamp(self, timestamp: int) -> None:
        """Give the next block a time; the chain's clock goes on from there.

        Raises:
            ValueError: It is before the head's.
        """
        if timestamp < self.head.timestamp:
            raise ValueError(f"timestamp {timestamp} is lower than the previous block's {self.head.timestamp}")
        self._next_timestamp = timestamp
        self.offset = timestamp - self._clock.now()

    def set_time(self, timestamp: int) -> int:
        """Set the chain's clock to a time in unix seconds; return by how many seconds it is ahead of the wall clock."""
        self.offset = timestamp - self._clock.now()
        return int(self.offset)

    def set_next_base_fee(self, base_fee: int) -> None:
        """Give the next block a base fee per gas, in neuron."""
        self._next_base_fee = base_fee

    # --- ways back ---

    def snapshot(self) -> int:
        """Remember the present; return its number."""
        self._snapshot_count += 1
        self._snapshots[self._snapshot_count] = _Snapshot(tuple(self.evm.blocks), self.offset, tuple(self.pool))
        if len(self._snapshots) > _MOST_SNAPSHOTS:
            self._snapshots.pop(next(iter(self._snapshots)))
        return self._snapshot_count

    def revert(self, number: int) -> Change:
        """Go back to a snapshot, which with all later ones is used up."""
        snapshot = self._snapshots.get(number)
        if snapshot is None:
            return Change(found=False)
        self._snapshots = {key: value for key, value in self._snapshots.items() if key < number}
        shared = _shared(self.evm.blocks, snapshot.blocks)
        removed = self._rewind(shared - 1)
        added = snapshot.blocks[shared:]
        for block in added:
            self.evm.blocks.append(block)
            self._index(block)
        self.evm.blocks[:] = snapshot.blocks  # with the balances set by hand at that time
        self.offset = snapshot.offset
        self._next_timestamp = self._next_base_fee = None
        self.pool.clear()
        for tx in snapshot.waiting:
            self.pool.restore(tx)
        return Change(removed=removed, added=added)

    def reorg(self, depth: int, *, keep: bool = False, refill: bool = True) -> Change:
        """Replace the newest blocks.

        Args:
            depth: How many go.
            keep: Whether their transactions return to the pool; else they are lost.
            refill: Whether as many empty blocks come instead; else the chain gets shorter.

        Raises:
            ValueError: The chain isn't that long.
        """
        if not 0 < depth <= self.head.number:
            raise ValueError(f"a reorg of depth {depth} needs as many blocks above the genesis")
        removed = self._rewind(self.head.number - depth)
        if keep:
            self._restore(one.tx for block in removed for one in block.mined)
        added = self.mine(depth, empty=True).added if refill else ()
        return Change(removed=removed, added=added)

    def _restore(self, transactions: Iterable[SignedTx]) -> None:
        for tx in transactions:
            self.pool.restore(tx)

    def _rewind(self, number: int) -> list[EvmBlock]:
        removed = self.evm.rewind(number)
        for block in removed:
            self._by_hash.pop(block.hash, None)
            for one in block.mined:
                self._mined.pop(one.tx.hash, None)
        return removed


def _shared(left: Sequence[EvmBlock], right: Sequence[EvmBlock]) -> int:
    count = 0
    for one, other in zip(left, right, strict=False):
        if one.hash != other.hash:
            break
        count += 1
    return count
