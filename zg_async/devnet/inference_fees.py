"""What users owe an inference provider, and how it collects. Source: inference.md section 9."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Final

import anyio

from zg_async.clock import Clock
from zg_async.devnet.inference_settings import FeeSettlement, InferenceChain, SettlementResult
from zg_async.logs import get_logger
from zg_async.wire.hashing import keccak256
from zg_async.wire.records import Address
from zg_async.wire.signing import sign_digest, tee_settlement_digest

_log = get_logger("zg_async.devnet.inference")
MAX_ITEMS: Final = 50
PAID: Final = 0
PAID_IN_PART: Final = 1
_NONCES_PER_SECOND: Final = 10**7


class FeeBook:
    """One record per billed request, until it is settled."""

    def __init__(self, provider: Address, tee_key: bytes, chain: InferenceChain, clock: Clock) -> None:
        """Make an empty book."""
        self._provider = provider
        self._tee_key = tee_key
        self._chain = chain
        self._clock = clock
        self._owed: defaultdict[Address, list[tuple[str, int]]] = defaultdict(list)
        self._nonce = 0
        self._lock = anyio.Lock()

    def charge(self, user: Address, request_id: str, fee: int) -> None:
        """Write a request's fee down, in neuron."""
        if fee > 0:
            self._owed[user].append((request_id, fee))

    def unsettled(self, user: Address) -> int:
        """Return what a user owes, in neuron."""
        return sum(fee for _, fee in self._owed.get(user, ()))

    async def settle(self) -> Sequence[SettlementResult]:
        """Collect from everybody, at most 50 at a time.

        Returns:
            What the contract said, in the order asked.

        Raises:
            ZgError: The chain couldn't be asked; nothing is lost, the rest stays owed.
        """
        results: list[SettlementResult] = []
        async with self._lock:
            users = [user for user, records in self._owed.items() if records]
            for start in range(0, len(users), MAX_ITEMS):
                results += await self._settle(users[start : start + MAX_ITEMS])
        return results

    async def _settle(self, users: Sequence[Address]) -> Sequence[SettlementResult]:
        taken = {user: len(self._owed[user]) for user in users}  # more may come while the chain is asked
        items = [await self._item(user, self._owed[user][: taken[user]]) for user in users]
        results = await self._chain.settle_fees(items)
        for result in results:
            records = self._owed[result.user]
            if result.status == PAID:
                del records[: taken[result.user]]
            elif result.status == PAID_IN_PART:
                records[: taken[result.user]] = [("unsettled", result.unsettled)] if result.unsettled else []
            else:
                _log.warning("settlement with %s failed: status %d", result.user, result.status)
        return results

    async def _item(self, user: Address, records: Sequence[tuple[str, int]]) -> FeeSettlement:
        account = await self._chain.account(user)
        above = max(self._nonce, account.account_nonce if account is not None else 0)
        self._nonce = max(int(self._clock.now() * _NONCES_PER_SECOND), above + 1)
        total = sum(fee for _, fee in records)
        requests_hash = keccak256("".join(f"{request_id}:{fee};" for request_id, fee in records).encode())
        digest = tee_settlement_digest(
            chain_id=self._chain.chain_id,
            contract=self._chain.inference_address,
            requests_hash=requests_hash,
            nonce=self._nonce,
            provider=self._provider,
            user=user,
            total_fee=total,
        )
        return FeeSettlement(
            user=user,
            provider=self._provider,
            total_fee=total,
            requests_hash=requests_hash,
            nonce=self._nonce,
            signature=sign_digest(self._tee_key, digest),
        )
