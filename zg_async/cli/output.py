"""What commands print: one versioned JSON object per result with `--json`, tables and lines for people without.

Results go to standard output, everything else to standard error. With `--json` each object has `version` (of this
format; a field is never renamed or removed within one) and `kind`; amounts are decimal strings of neuron.
"""

import contextlib
import dataclasses
import datetime as dt
import enum
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import anyio

from zg_async.cli.completing import cache_path, remember
from zg_async.errors import ZgError
from zg_async.text import json_text, printable, printable_lines
from zg_async.units import NEURON_PER_0G

if TYPE_CHECKING:
    from zg_async.cli.opening import Where

JSON_VERSION: Final = 1
UNIT: Final = "A0GI"
_AMOUNTS: Final = frozenset(
    {
        "account_nonce",
        "amount",
        "available_balance",
        "balance",
        "deposit",
        "effective_gas_price",
        "fee",
        "gas_cost",
        "input_price",
        "locked",
        "output_price",
        "pending_refund",
        "price_per_token",
        "spendable",
        "storage_fee",
        "total_balance",
        "request_nonce",
        "required",
        "needed",
        "unsettled",
    }
)
"""Fields that hold neuron, or another number that may be above 2**53."""
_CELL: Final = 4000


class UsageError(Exception):
    """The command line is wrong in a way only the command knows: exit code 2."""


def emit(where: "Where", kind: str, value: Any, text: Callable[[], str | Iterable[str]]) -> None:
    """Print a command's result.

    Args:
        where: Whether JSON is wanted.
        kind: What it is, as the JSON format's documentation names it.
        value: A record or mapping; a sequence becomes `items`.
        text: Makes what people see; called only for them.
    """
    remember(kind, to_plain(value), cache=None if where.state_dir is None else cache_path(where.state_dir))
    if where.as_json:
        print_json(kind, value)
        return
    shown = text()
    for line in [shown] if isinstance(shown, str) else shown:
        print(printable_lines(line))


def print_json(kind: str, value: Any) -> None:
    """Print one object on a line of its own."""
    plain = to_plain(value)
    fields = plain if isinstance(plain, dict) else {"items": plain}
    if taken := fields.keys() & {"version", "kind"}:
        raise ValueError(f"fields of {kind} hide the envelope's: {sorted(taken)}")
    print(json_text({"version": JSON_VERSION, "kind": kind, **fields}), flush=True)


def note(where: "Where", text: str) -> None:
    """Tell people something on standard error; nothing with `--json`."""
    if not where.as_json:
        print(printable_lines(text), file=sys.stderr, flush=True)


@contextlib.contextmanager
def leaving(what: str, again: str) -> Iterator[None]:
    """When Ctrl-C ends what is inside, say that the thing itself goes on, and how to come back to it."""
    try:
        yield
    except anyio.get_cancelled_exc_class():
        print(f"{what}; come back to it with: {again}", file=sys.stderr)
        raise


def to_plain(value: Any, name: str = "") -> Any:
    """Return a record as plain JSON values: amounts as decimal strings, times as ISO 8601, bytes as hex."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        shown = [f.name for f in dataclasses.fields(value) if f.repr]
        return {field: to_plain(getattr(value, field), field) for field in shown}
    if isinstance(value, Mapping):
        return {str(key): to_plain(item, str(key)) for key, item in value.items()}
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, ZgError):
        return error_fields(value)
    if isinstance(value, bytes):
        return "0x" + value.hex()
    if isinstance(value, dt.datetime):
        return value.isoformat()
    if isinstance(value, dt.timedelta):
        return value.total_seconds()
    if isinstance(value, Path | Fraction):
        return str(value)
    if isinstance(value, Decimal):
        return f"{value:f}"
    if isinstance(value, Sequence | set | frozenset) and not isinstance(value, str):
        return [to_plain(item, name) for item in value]
    if isinstance(value, int) and not isinstance(value, bool) and name in _AMOUNTS:
        return str(value)
    return value


def error_fields(error: ZgError) -> dict[str, Any]:
    """Return an error as plain JSON values."""
    return {"code": error.code, "message": error.message, "hint": error.hint, "retryable": error.retryable}


def coins(neuron: int) -> str:
    """Write an amount with all its 18 decimals, as the tables have it: `0.000000000179668154`."""
    sign, whole = ("-", -neuron) if neuron < 0 else ("", neuron)
    return f"{sign}{whole // NEURON_PER_0G}.{whole % NEURON_PER_0G:018d}"


def moment(time: dt.datetime) -> str:
    """Write a time as the tables have it: `2025-03-11T01:20:07.644Z`."""
    return time.astimezone(dt.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def remaining(time: dt.timedelta) -> str:
    """Write how long something still takes: `23h 58min 34s`."""
    minutes, seconds = divmod(max(int(time.total_seconds()), 0), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h {minutes}min {seconds}s"


def tick(value: bool) -> str:
    """Write yes or no as the tables have it."""
    return "✓" if value else "✗"


def table(rows: Iterable[Sequence[object]], head: Sequence[str] = (), *, title: str = "") -> str:
    """Draw a table with a line between all rows; on a terminal that is too narrow long cells go on below themselves.

    Args:
        rows: The cells; texts from outside become harmless here.
        head: The headings; none: there is no heading row.
        title: A line above it.
    """
    cells = [list(head)] if head else []
    cells += [[printable(str(cell), limit=_CELL) for cell in row] for row in rows]
    columns = max(map(len, cells), default=0)
    widths = _fitting([max(len(row[i]) if i < len(row) else 0 for row in cells) for i in range(columns)])
    lines = [title] if title else []
    lines.append("┌" + "┬".join("─" * (w + 2) for w in widths) + "┐")
    middle = "├" + "┼".join("─" * (w + 2) for w in widths) + "┤"
    for number, row in enumerate(cells):
        if number:
            lines.append(middle)
        folded = [_fold(row[i] if i < len(row) else "", width) for i, width in enumerate(widths)]
        for level in range(max(map(len, folded))):
            parts = [(f[level] if level < len(f) else "").ljust(w) for f, w in zip(folded, widths, strict=True)]
            lines.append("│ " + " │ ".join(parts) + " │")
    lines.append("└" + "┴".join("─" * (w + 2) for w in widths) + "┘")
    return "\n".join(lines)


def _fold(text: str, width: int) -> list[str]:
    return [text[i : i + width] for i in range(0, len(text), width)] or [""]


def _fitting(widths: list[int]) -> list[int]:
    """Take from the widest columns what doesn't fit on the terminal; a pipe or file gets everything on one line."""
    if not sys.stdout.isatty():
        return widths
    room = max(shutil.get_terminal_size().columns - 3 * len(widths) - 1, 12 * len(widths))
    while sum(widths) > room:
        widest = widths.index(max(widths))
        widths[widest] -= 1
    return widths


def confirm(where: "Where", question: str) -> None:
    """Ask before something that can't be taken back, unless `--yes` agreed to it.

    Raises:
        UsageError: Nobody can be asked, or the answer is no.
    """
    if where.yes:
        return
    if where.as_json or not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise UsageError(f"{question} Give --yes to agree: there is no terminal to ask on")
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise UsageError("not agreed to; nothing was done")
