"""How things look on a terminal. All text from outside passes `printable`; nothing is read as markup."""

from collections.abc import Sequence
from typing import Final

from zg_async.errors import (
    ChainError,
    ChainUnavailableError,
    ClosedError,
    ConfigError,
    FeeCapError,
    InsufficientBalanceError,
    InsufficientGasFundsError,
    JobError,
    JournalError,
    KeyNotReleasedError,
    LimitError,
    NotStoredError,
    ProviderError,
    ProviderRejectedError,
    ProviderUnavailableError,
    RpcError,
    StorageError,
    TransactionTimeoutError,
    VerificationError,
    WrongChainError,
    ZgError,
)

EXIT_CODES: Final[Sequence[tuple[tuple[type[ZgError], ...], int]]] = (
    ((TransactionTimeoutError,), 6),
    ((InsufficientGasFundsError, InsufficientBalanceError, LimitError, FeeCapError), 4),
    ((VerificationError,), 5),
    ((ChainUnavailableError, ProviderUnavailableError, RpcError, WrongChainError), 3),
    ((JournalError, ConfigError), 8),
    ((NotStoredError, ChainError, ProviderError, KeyNotReleasedError), 7),
    ((StorageError,), 3),
    ((JobError,), 1),
    ((ClosedError,), 70),
)
"""What an error ends the program with; the first class that fits counts."""
_BARS: Final = "▁▂▃▄▅▆▇█"


def exit_code(error: ZgError) -> int:
    """Return an error's exit code, as `EXIT_CODES` has it; 1 for one it doesn't know."""
    from zg_async.managers.inference_funds import is_short_of_funds

    if isinstance(error, ProviderRejectedError) and is_short_of_funds(error.body or error.message):
        return 4
    return next((code for classes, code in EXIT_CODES if isinstance(error, classes)), 1)


def short(address: str) -> str:
    """Shorten an address or hash: `0x7099…79C8`."""
    return f"{address[:6]}…{address[-4:]}" if len(address) > 12 else address


def size_text(size: int) -> str:
    """Write a number of bytes: `12.3 kB`."""
    if size < 1000:
        return f"{size} B"
    value = float(size)
    for unit in ("kB", "MB", "GB"):
        value /= 1000
        if value < 1000 or unit == "GB":
            return f"{value:.1f} {unit}"
    return f"{size} B"


def duration_text(seconds: float) -> str:
    """Write a duration: `0.4 s`, `5 min 12 s`, `5 h 59 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(int(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min"


def sparkline(values: Sequence[float], *, width: int = 24) -> str:
    """Draw values as one line of bars, at most `width` of them; not-a-number is left out."""
    values = [v for v in values if v == v and abs(v) != float("inf")]
    if not values:
        return ""
    if len(values) > width:
        step = len(values) / width
        values = [values[min(int(i * step), len(values) - 1)] for i in range(width)]
    low, high = min(values), max(values)
    span = (high - low) or 1.0
    return "".join(_BARS[round((v - low) / span * (len(_BARS) - 1))] for v in values)
