"""Revert data -> the error class a caller can catch, with decoded arguments and what to do.

Several contracts have errors of the same name with other parameters, so the table goes by selector.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from zg_async import errors
from zg_async.errors import ContractRevertedError
from zg_async.text import printable
from zg_async.units import format_amount
from zg_async.wire import contract_abi
from zg_async.wire.contract_abi import AbiDataError, Param
from zg_async.wire.hashing import hex0x

_AMOUNTS: Final = frozenset({"provided", "required", "available", "remainingBalance", "balance"})
_PANICS: Final[Mapping[int, str]] = {
    0x01: "an internal assertion failed",
    0x11: "an amount went below zero or above 2**256",
    0x12: "division by zero",
    0x21: "a value outside an enum",
    0x32: "an index outside a list",
    0x41: "too much memory",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodedError:
    """A decoded revert."""

    name: str
    """`Error` for a text, `Panic` for a failed internal check."""
    arguments: tuple[Any, ...]
    signature: str
    parameters: tuple[Param, ...] = ()

    def __str__(self) -> str:
        """Write it for people: names, amounts in 0G, outside text made printable."""
        if self.name == "Error":
            return printable(str(self.arguments[0]))
        if self.name == "Panic":
            return f"Panic 0x{self.arguments[0]:02x}, {_PANICS.get(self.arguments[0], 'an internal check failed')}"
        shown = (_argument(p.name, v) for p, v in zip(self.parameters, self.arguments, strict=True))
        return f"{self.name}({', '.join(shown)})"


def _argument(name: str, value: Any) -> str:
    if isinstance(value, str):
        return f"{name} {printable(value)}"
    return f"{name} {format_amount(value) if name in _AMOUNTS else value}"


def decode_error(data: bytes) -> DecodedError | None:
    """Decode revert data.

    Args:
        data: Selector and arguments, as `eth_call` gives them.

    Returns:
        The error, or None when it is no known one or its arguments don't fit.
    """
    entry = contract_abi.ERRORS.get(data[:4])
    if entry is None:
        return None
    try:
        arguments = contract_abi.decode(entry.inputs, data[4:])
    except AbiDataError:
        return None
    return DecodedError(name=entry.name, arguments=arguments, signature=entry.signature, parameters=entry.inputs)


def revert_error(
    data: bytes,
    *,
    call_name: str,
    contract: str | None = None,
    tx_hash: str | None = None,
    message: str = "",
) -> ContractRevertedError:
    """Make the exception for a revert. Never raises one itself.

    Args:
        data: Revert data; may be empty.
        call_name: What was called, e.g. `LedgerManager.transferFund`.
        contract: The address it was called at.
        tx_hash: The mined transaction, if it was mined.
        message: The node's own words, used when the data says nothing.

    Returns:
        The class that fits, or `ContractRevertedError` with the raw data when the error is unknown.
    """
    decoded = decode_error(data)
    if decoded is None:
        return ContractRevertedError(
            f"{call_name} was refused: {_unknown(data, message)}", data=bytes(data), contract=contract, tx_hash=tx_hash
        )
    kind, hint = _REGISTRY.get(decoded.name, (ContractRevertedError, None))
    return kind(
        f"{call_name} was refused: {decoded}",
        error_name=decoded.name,
        arguments=decoded.arguments,
        data=bytes(data),
        contract=contract,
        tx_hash=tx_hash,
        hint=hint(decoded.arguments) if callable(hint) else hint,
    )


def _unknown(data: bytes, message: str) -> str:
    if not data:
        return printable(message) if message else "the contract gave no reason"
    shown = hex0x(data[:36]) + ("…" if len(data) > 36 else "")
    return f"unknown error {shown}" + (f" ({printable(message)})" if message else "")


_Hint = str | Callable[[tuple[Any, ...]], str | None] | None


def _too_little(arguments: tuple[Any, ...]) -> str:
    return f"At least {format_amount(arguments[1])} is needed, {format_amount(arguments[0])} is there."


def _verifier_hint(arguments: tuple[Any, ...]) -> str | None:
    text = str(arguments[0])
    return next((hint for part, hint in _VERIFIER.items() if part in text), None)


_VERIFIER: Final[Mapping[str, str]] = {
    "TEE signer": "User and contract owner both have to acknowledge the provider's TEE signer.",
    "nonce": "The request nonce has to be greater than the sub-account's nonce.",
    "insufficient balance": "The sub-account holds less than the fee: transfer funds to it.",
    "root hash": "The settlement names another model than the delivery.",
    "settlement validation": "The settlement isn't signed by the service's present TEE signer.",
}

_REGISTRY: Final[Mapping[str, tuple[type[ContractRevertedError], _Hint]]] = {
    # ledger
    "LedgerNotExists": (errors.LedgerNotFoundError, "Create a ledger first: add_ledger."),
    "LedgerExists": (errors.LedgerExistsError, "The wallet has a ledger already: use deposit_fund."),
    "MinimumDepositRequired": (errors.MinimumDepositError, _too_little),
    "InsufficientAvailableBalance": (errors.InsufficientBalanceError, _too_little),
    "InsufficientBalance": (
        errors.InsufficientBalanceError,
        "The ledger's available balance is smaller; money in sub-accounts comes back with retrieve_fund.",
    ),
    "MustWithdrawAllFundsFirst": (
        ContractRevertedError,
        "Retrieve the sub-accounts, wait for the lock time, and refund everything first.",
    ),
    "TooManyProviders": (errors.TooManyProvidersError, "Name fewer providers per call."),
    "TooManyProvidersForService": (
        errors.TooManyProvidersError,
        "The wallet has sub-accounts at as many providers as the contract takes: use one of those.",
    ),
    "ServiceNotFound": (errors.ServiceNotFoundError, "The ledger knows no serving contract of that name."),
    "NoRecommendedService": (errors.ServiceNotFoundError, "No version of that service type is recommended."),
    "CallFailed": (
        ContractRevertedError,
        "The serving contract refused and its reason is lost; a wallet can't be its own inference provider.",
    ),
    "ZeroAmountNotAllowed": (errors.MinimumDepositError, "Send more than zero."),
    "ZeroAddressNotAllowed": (ContractRevertedError, "Name a recipient other than the zero address."),
    "DirectDepositsDisabled": (ContractRevertedError, "Plain transfers are refused: use deposit_fund."),
    "LedgerLocked": (ContractRevertedError, "Another call on this ledger is under way: try again."),
    "TransferFailed": (ContractRevertedError, "The receiving wallet doesn't take the coin."),
    "ETHTransferFailed": (ContractRevertedError, "The receiving wallet doesn't take the coin."),
    # serving
    "AccountNotExists": (
        errors.AccountNotFoundError,
        "Make the sub-account first: transfer_fund from the ledger to this provider.",
    ),
    "ServiceNotExist": (errors.ServiceNotFoundError, "The provider isn't registered for this service."),
    "TooManyRefunds": (
        errors.TooManyRefundsError,
        "Five refunds are open: wait until the oldest unlocks, then retrieve again.",
    ),
    "InsufficientStake": (errors.MinimumDepositError, _too_little),
    "CannotAddStakeWhenUpdating": (ContractRevertedError, "Send no value when updating a service."),
    "CannotRevokeWithNonZeroBalance": (
        ContractRevertedError,
        "Retrieve the sub-account's balance before withdrawing the acknowledgement.",
    ),
    "DeliverableNotExists": (
        errors.DeliverableNotFoundError,
        "Nothing was delivered under this id, or it is older than the 20 the chain keeps.",
    ),
    "CannotAcknowledgeSettledDeliverable": (
        errors.DeliverableSettledError,
        "It was settled without acknowledgement, so its key will never be released.",
    ),
    "CannotAbandonSettledDeliverable": (errors.DeliverableSettledError, "It is settled: nothing can be given up."),
    "DeliverableAlreadySettled": (errors.DeliverableSettledError, "It is settled: nothing is left to pay."),
    "PreviousDeliverableNotAcknowledged": (
        errors.PreviousDeliverableNotAcknowledgedError,
        "Acknowledge the newest delivery of this wallet at this provider first.",
    ),
    "CannotEvictUnsettledDeliverable": (ContractRevertedError, "The oldest of 20 deliveries must be settled first."),
    "InvalidVerifierInput": (ContractRevertedError, _verifier_hint),
    "CallerNotLedger": (ContractRevertedError, "Only the LedgerManager may call this."),
    "ProviderCannotBeUser": (ContractRevertedError, "A wallet can't be its own provider."),
    "LimitTooLarge": (ContractRevertedError, "Ask for pages of at most 50."),
    # storage
    "NotEnoughFee": (
        errors.MinimumDepositError,
        lambda a: f"The fee is sectors times {a[0]} neuron; {format_amount(a[1])} was due.",
    ),
    "InvalidSubmission": (ContractRevertedError, "The flow contract doesn't take this tree of nodes."),
    "EnforcedPause": (ContractRevertedError, "The storage contract is paused."),
}
