"""At how many more providers a wallet can open a sub-account: the contract keeps a bounded number per service type."""

import dataclasses
from collections.abc import Set as AbstractSet
from typing import Self

from zg_async.errors import LimitError
from zg_async.wire.records import Address


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class AccountRoom:
    """A wallet's sub-accounts of one service type, against how many it may have."""

    wallet: Address
    service_type: str
    providers: AbstractSet[Address]
    """Where it has one."""
    most: int
    """How many the contract takes (`MAX_PROVIDERS_PER_USER_PER_SERVICE`)."""

    def has(self, provider: Address) -> bool:
        """Say whether there is a sub-account at a provider, or may be one."""
        return provider in self.providers or len(self.providers) < self.most

    def with_one_at(self, provider: Address) -> Self:
        """Return it as it is with a sub-account at a provider."""
        return dataclasses.replace(self, providers=self.providers | {provider})

    def require(self, provider: Address) -> None:
        """Do nothing if there is a sub-account at a provider, or may be one.

        Raises:
            LimitError: The wallet has as many as the contract takes.
        """
        if not self.has(provider):
            raise LimitError(
                f"{self.wallet} has {self.service_type} sub-accounts at {len(self.providers)} providers, as many as "
                f"the contract takes, and none at {provider}",
                hint="Use one of those, or another wallet (JobSpec.wallets); sub-accounts go only with their ledger: "
                "retrieve all funds, then refund all of it",
            )
