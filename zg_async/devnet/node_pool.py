"""Transactions that wait for a block. Synchronous; belongs to the thread that owns the chain."""

from collections.abc import Callable, Iterator

from zg_async.devnet.evm_records import BadTransactionError, SignedTx

PRICE_BUMP_PERCENT = 10
_MOST_PER_SENDER = 1_000


class Pool:
    """Waiting transactions, one per sender and nonce, in order of arrival."""

    def __init__(self) -> None:
        self._by_hash: dict[bytes, SignedTx] = {}
        self._by_sender: dict[bytes, dict[int, SignedTx]] = {}

    def __len__(self) -> int:
        return len(self._by_hash)

    def __iter__(self) -> Iterator[SignedTx]:
        return iter(tuple(self._by_hash.values()))

    def get(self, tx_hash: bytes) -> SignedTx | None:
        """Return a waiting transaction."""
        return self._by_hash.get(tx_hash)

    def add(self, tx: SignedTx, *, account_nonce: int, balance: int) -> None:
        """Take a transaction in.

        Args:
            tx: The transaction.
            account_nonce: The sender's next nonce on the chain; a higher one in `tx` waits for those between.
            balance: The sender's balance in neuron.

        Raises:
            BadTransactionError: Known, too old, not affordable, or too cheap to replace another.
        """
        if tx.hash in self._by_hash:
            raise BadTransactionError("already known")
        if tx.nonce < account_nonce:
            raise BadTransactionError(f"nonce too low: next nonce {account_nonce}, tx nonce {tx.nonce}")
        if balance < tx.cost:
            raise BadTransactionError(
                f"insufficient funds for gas * price + value: balance {balance}, tx cost {tx.cost}, "
                f"overshot {tx.cost - balance}"
            )
        lane = self._by_sender.setdefault(tx.sender, {})
        old = lane.get(tx.nonce)
        if old is not None:
            if not (_is_bump(old.max_fee, tx.max_fee) and _is_bump(old.max_tip, tx.max_tip)):
                raise BadTransactionError("replacement transaction underpriced")
            self._by_hash.pop(old.hash)
        elif len(lane) >= _MOST_PER_SENDER:
            raise BadTransactionError("account limit exceeded")
        lane[tx.nonce] = tx
        self._by_hash[tx.hash] = tx

    def restore(self, tx: SignedTx) -> None:
        """Take back a transaction whose block was removed, unless its nonce was given to another meanwhile."""
        lane = self._by_sender.setdefault(tx.sender, {})
        if tx.nonce not in lane:
            lane[tx.nonce] = tx
            self._by_hash[tx.hash] = tx

    def remove(self, tx_hash: bytes) -> bool:
        """Forget a transaction; return whether it was there."""
        tx = self._by_hash.pop(tx_hash, None)
        if tx is None:
            return False
        lane = self._by_sender[tx.sender]
        lane.pop(tx.nonce)
        if not lane:
            self._by_sender.pop(tx.sender)
        return True

    def clear(self) -> None:
        """Forget all."""
        self._by_hash.clear()
        self._by_sender.clear()

    def ready(self, *, base_fee: int, account_nonce: Callable[[bytes], int]) -> list[SignedTx]:
        """List what the next block can hold: no nonce gap, and fees that cover the base fee.

        Args:
            base_fee: That block's, in neuron per gas.
            account_nonce: Gives a sender's next nonce on the chain.
        """
        position = {tx_hash: place for place, tx_hash in enumerate(self._by_hash)}
        lanes = []
        for sender, lane in self._by_sender.items():
            nonce = account_nonce(sender)
            latest = -1
            while (tx := lane.get(nonce)) is not None and tx.max_fee >= base_fee:
                latest = max(latest, position[tx.hash])  # not before the one it follows
                lanes.append((latest, nonce, tx))
                nonce += 1
        return [tx for _, _, tx in sorted(lanes, key=lambda entry: entry[:2])]

    def next_nonce(self, sender: bytes, account_nonce: int) -> int:
        """Return the nonce after the sender's gapless waiting transactions."""
        lane = self._by_sender.get(sender, {})
        while account_nonce in lane:
            account_nonce += 1
        return account_nonce

    def forget_below(self, sender: bytes, account_nonce: int) -> None:
        """Drop a sender's transactions that can never be mined any more."""
        for nonce in [nonce for nonce in self._by_sender.get(sender, {}) if nonce < account_nonce]:
            self.remove(self._by_sender[sender][nonce].hash)


def _is_bump(old: int, new: int) -> bool:
    return new > old and new * 100 >= old * (100 + PRICE_BUMP_PERCENT)
