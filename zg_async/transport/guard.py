"""The guard in front of the key: it knows every kind of transaction this package sends, and refuses all others.

Its list is written down here and not taken from the caller, so that a bug or a hostile answer elsewhere can at worst
ask for something the user could have asked for, to a pinned contract, within the caps.
"""

import dataclasses
from collections.abc import Mapping
from typing import Final

from zg_async.errors import RefusedToSignError
from zg_async.networks import Network
from zg_async.transport.fees import FeePolicy
from zg_async.transport.transaction import WORD, Transaction
from zg_async.units import format_amount
from zg_async.wire.contracts import FUNCTIONS
from zg_async.wire.hashing import checksum_address
from zg_async.wire.records import Address
from zg_async.wire.submission import LEGACY_BATCH_SUBMIT, LEGACY_SUBMIT

SENT: Final[Mapping[str, Mapping[str, bool]]] = {
    "LedgerManager": {
        "addLedger": True,
        "depositFund": True,
        "depositFundFor": True,
        "refund": False,
        "transferFund": False,
        "retrieveFund": False,
        "deleteLedger": False,
    },
    "FineTuningServing": {
        "acknowledgeTEESigner": False,
        "acknowledgeDeliverable": False,
        "acknowledgeTEESignerByOwner": False,
        "revokeTEESignerAcknowledgement": False,
        "removeService": False,
    },
    "InferenceServing": {
        "acknowledgeTEESigner": False,
        "revokeToken": False,
        "revokeTokens": False,
        "revokeAllTokens": False,
        "acknowledgeTEESignerByOwner": False,
        "revokeTEESignerAcknowledgement": False,
        "addOrUpdateService": True,
        "removeService": False,
    },
    "FixedPriceFlow": {"submit": True, "batchSubmit": True},
}
"""Contract to function to whether money may go with it."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Guard:
    """A list of what may be signed. Immutable; there is no way to add to it."""

    chain_id: int
    calls: Mapping[tuple[Address, bytes], bool]
    """(contract, selector) to whether it may carry value."""
    fees: FeePolicy

    def check(self, transaction: Transaction, *, sender: Address) -> None:
        """Refuse whatever isn't on the list.

        Args:
            transaction: What is about to be signed.
            sender: The key's address; a transfer of nothing to it is allowed (it frees a nonce).

        Raises:
            RefusedToSignError: Another chain, contract, function, or more money than allowed.
        """
        if transaction.chain_id != self.chain_id:
            raise _refused(f"it is for chain {transaction.chain_id}, this key signs for {self.chain_id}")
        to, selector = checksum_address(transaction.to), transaction.data[:4]
        is_filler = to == sender and not transaction.data and transaction.value == 0
        payable = self.calls.get((to, selector))
        if payable is None and not is_filler:
            raise _refused(f"this package never calls 0x{selector.hex()} of {to}")
        if transaction.value < 0 or transaction.value >= WORD or (transaction.value and not payable):
            raise _refused("this function never takes money")
        self._check_fees(transaction)

    def _check_fees(self, transaction: Transaction) -> None:
        fees = self.fees
        if not 21_000 <= transaction.gas <= fees.max_gas:
            raise _refused(f"{transaction.gas} gas is outside of 21000 to {fees.max_gas}")
        if not 0 <= transaction.max_priority_fee_per_gas <= transaction.max_fee_per_gas <= fees.max_fee_per_gas:
            raise _refused("its fees are inconsistent or above the cap")
        if fees.max_cost_per_tx is not None and transaction.max_cost > fees.max_cost_per_tx:
            raise _refused(
                f"it may cost {format_amount(transaction.max_cost)}, the cap is {format_amount(fees.max_cost_per_tx)}"
            )


def network_guard(network: Network, fees: FeePolicy, *, chain_id: int | None = None) -> Guard:
    """Make the guard for a network: its pinned contracts and `SENT`.

    Args:
        network: Whose addresses are allowed.
        fees: The caps.
        chain_id: Instead of the network's own.

    Returns:
        The guard.
    """
    addresses = {
        "LedgerManager": network.ledger,
        "FineTuningServing": network.fine_tuning,
        "InferenceServing": network.inference,
        "FixedPriceFlow": network.flow,
    }
    calls = {
        (checksum_address(address), selector): SENT[contract][function.name]
        for contract, address in addresses.items()
        if address is not None
        for selector, function in FUNCTIONS[contract].items()
        if function.name in SENT[contract]
    }
    if network.flow is not None:  # the layout of older flow contracts isn't in the tables
        flow = checksum_address(network.flow)
        calls |= {(flow, function.selector): True for function in (LEGACY_SUBMIT, LEGACY_BATCH_SUBMIT)}
    return Guard(chain_id=network.chain_id if chain_id is None else chain_id, calls=calls, fees=fees)


def _refused(why: str) -> RefusedToSignError:
    return RefusedToSignError(f"refused to sign a transaction: {why}", hint="Nothing was signed or sent")
