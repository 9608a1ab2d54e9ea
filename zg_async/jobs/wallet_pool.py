"""Which of several wallets takes a job: the one with the fewest unfinished ones."""

from collections import Counter
from collections.abc import AsyncGenerator, Callable, Collection, Iterable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, cast

from zg_async.jobs.spec import JobSpec
from zg_async.wire.records import Address

if TYPE_CHECKING:
    from zg_async.broker import Broker


class WalletPool:
    """Shares jobs between wallets evenly."""

    def __init__(self, broker: "Broker", busy: Callable[[], Iterable[Address | None]]) -> None:
        """Bind it; `busy` names the wallet of each unfinished job."""
        self._broker = broker
        self._busy = busy
        self._taking: Counter[Address] = Counter()
        """Jobs that have a wallet and aren't on record yet."""

    @asynccontextmanager
    async def taking(self, spec: JobSpec, traces: Collection[Address]) -> AsyncGenerator[Address, None]:
        """Choose the wallet of a job that is being submitted; it counts from now on.

        Args:
            spec: Normalised.
            traces: Wallets that seem to have had this job before: one of them has it again.

        A wallet that can't open a sub-account at the provider that the job names is left for another one.
        """
        wallet = await self._reserve(spec, traces)
        try:
            yield wallet
        finally:
            self._taking[wallet] -= 1

    async def _reserve(self, spec: JobSpec, traces: Collection[Address]) -> Address:
        left = [*traces] or [cast("Address", wallet) for wallet in spec.wallets or (spec.wallet,)]
        while True:
            load = self._taking + Counter(wallet for wallet in self._busy() if wallet is not None)
            wallet = min(left, key=lambda w: (load[w], left.index(w)))
            self._taking[wallet] += 1
            if len(left) == 1 or spec.provider is None:
                return wallet
            try:
                room = await self._broker.using(wallet).ledger.get_account_room("fine-tuning")
            except BaseException:
                self._taking[wallet] -= 1
                raise
            if room.has(Address(spec.provider)):
                return wallet
            self._taking[wallet] -= 1
            left.remove(wallet)
