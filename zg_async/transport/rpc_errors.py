"""What nodes mean by their errors: one place that reads their words.

There is no standard beyond `code` and `message`. Revert data is hex in `error.data` (geth, anvil, reth, our node),
nested in an object there (hardhat, some proxies), text, or gone; codes are 3, -32000, -32003, -32603 and more for the
same thing; hardhat answers a transaction it has mined with an error when it reverted.
"""

import enum
import re
from typing import Any, Final

from zg_async.errors import ChainError, ChainUnavailableError, InsufficientGasFundsError, RpcError
from zg_async.text import printable
from zg_async.wire.contracts import revert_error

_HEX: Final = re.compile(r"0x(?:[0-9a-fA-F]{2})*")
_DEEP: Final = 4
_REVERTED: Final = re.compile(r"\brevert", re.IGNORECASE)
_BUSY: Final = re.compile(
    r"rate.?limit|too many requests|limit exceeded|exceeded .*(quota|capacity|compute units)|request limit"
    r"|over capacity|try again|timed? ?out|temporarily|service unavailable|overloaded",
    re.IGNORECASE,
)
_BEHIND: Final = re.compile(
    r"header not found|unknown block|block .*(not found|not available|out of range)|missing trie node"
    r"|state .*(not available|is not available|pruned)|beyond current head|future block|block range extends",
    re.IGNORECASE,
)
_FUNDS: Final = re.compile(
    r"insufficient (funds|balance)|not enough (balance|funds)|doesn't have enough funds|gas \* price \+ value"
    r"|out of ?fund|cannot pay|InsufficientFunds|gas required exceeds allowance",
    re.IGNORECASE,
)
_BUSY_CODES: Final = frozenset({-32005, -32016, -32097, 429})


class SendFault(enum.Enum):
    """What a node's refusal of raw bytes says. None of these says that they will never be mined."""

    KNOWN = "it has these bytes already"
    NONCE_LOW = "something with this nonce is mined"
    UNDERPRICED = "something with this nonce is in the pool, and these fees don't beat it"
    FEES_LOW = "the fees are too low for now"
    FUNDS = "the wallet can't pay"
    REVERTED = "it was mined and reverted"
    BUSY = "the node or its pool is full or didn't answer"
    REFUSED = "anything else"


_SEND: Final = (
    (SendFault.UNDERPRICED, r"replacement|could not replace|underpriced to replace|same nonce"),
    (
        SendFault.KNOWN,
        (
            r"already known|known transaction|already imported|already exists|already in (the )?(mem)?pool"
            r"|same hash was already|tx already|ALREADY_EXISTS|AlreadyKnown|duplicate transaction|in cache"
        ),
    ),
    (
        SendFault.NONCE_LOW,
        (
            r"nonce( is)? too low|nonce too small|old nonce|OldNonce|invalid nonce.*(lower|expected|got)"
            r"|nonce.*already (used|mined)|invalid transaction nonce|invalid nonce|account sequence mismatch"
            r"|incorrect account sequence|nonce has already"
        ),
    ),
    (
        SendFault.FEES_LOW,
        (
            r"underpriced|fee too low|less than block base fee|max ?fee ?per ?gas.*(less|too low|lower)"
            r"|gas ?price.*(too low|below|lower)|below (the )?(minimum|base fee)|FeeTooLow|fee cap.*(less|low)"
            r"|insufficient fees?\b|baseFee"
        ),
    ),
    (SendFault.FUNDS, _FUNDS.pattern),
    (
        SendFault.BUSY,
        (
            r"(tx ?pool|mempool|pool) (is )?(full|overflow|limit)|too many (pending )?transactions|limit reached"
            rf"|queue.*full|discard|{_BUSY.pattern}"
        ),
    ),
    (SendFault.REVERTED, r"\brevert"),
)
_SEND_PATTERNS: Final = tuple((fault, re.compile(pattern, re.IGNORECASE)) for fault, pattern in _SEND)


def error_of(error: Any, *, what: str, contract: str | None = None) -> ChainError:
    """Make an exception of a JSON-RPC error object. Never raises one itself.

    Args:
        error: The value of `error`, whatever it is.
        what: What was asked, e.g. `LedgerManager.transferFund`, for the message.
        contract: The address that was called, if one was.

    Returns:
        ContractRevertedError (or its subclass) for a revert; ChainUnavailableError for a busy or lagging node;
        InsufficientGasFundsError; RpcError for the rest.
    """
    code, message = _code(error), _message(error)
    data = revert_data(error)
    if code == 3 or _REVERTED.search(message) or (data is not None and len(data) >= 4 and contract is not None):
        return revert_error(data or b"", call_name=what, contract=contract, message=message)
    if _FUNDS.search(message):
        return InsufficientGasFundsError(f"{what}: {printable(message)}", hint="Fund the wallet")
    if code in _BUSY_CODES or _BUSY.search(message) or _BEHIND.search(message):
        return ChainUnavailableError(f"the node can't answer {what} now: {printable(message)}")
    return RpcError(f"the node refused {what}: {printable(message)} (code {code})", rpc_code=code, data=_plain(error))


def revert_data(error: Any) -> bytes | None:
    """Find revert data in a JSON-RPC error object: hex in `data`, or nested in objects there.

    Returns:
        The bytes, or None when there are none.
    """
    value = error.get("data") if isinstance(error, dict) else None
    for _ in range(_DEEP):
        if isinstance(value, str):
            text = value.removeprefix("Reverted ").strip()  # parity's way
            return bytes.fromhex(text[2:]) if _HEX.fullmatch(text) else None
        if not isinstance(value, dict):
            return None
        inner = next((value[key] for key in ("data", "result", "output", "originalError") if key in value), None)
        if inner is None and len(value) == 1:  # ganache: keyed by transaction hash
            inner = next(iter(value.values()))
        value = inner
    return None


def send_fault(error: ChainError) -> SendFault:
    """Say what a refusal of `eth_sendRawTransaction` means.

    Args:
        error: What `Rpc` made of it.

    Returns:
        The nearest meaning; `REFUSED` when the words aren't known.
    """
    if isinstance(error, ChainUnavailableError):
        return SendFault.BUSY
    text = error.message
    return next((fault for fault, pattern in _SEND_PATTERNS if pattern.search(text)), SendFault.REFUSED)


def _code(error: Any) -> int | None:
    code = error.get("code") if isinstance(error, dict) else None
    return code if isinstance(code, int) and not isinstance(code, bool) else None


def _message(error: Any) -> str:
    if isinstance(error, str):
        return error
    parts = []
    if isinstance(error, dict):
        parts = [value for key in ("message", "details") if isinstance(value := error.get(key), str)]
        data = error.get("data")
        inner = data.get("message") if isinstance(data, dict) else data
        if isinstance(inner, str) and not _HEX.fullmatch(inner) and inner not in parts:
            parts.append(inner)
    return ": ".join(part for part in parts if part)[:500] or "no reason given"


def _plain(error: Any) -> object:
    data = error.get("data") if isinstance(error, dict) else None
    return data if isinstance(data, str | int | None) else None
