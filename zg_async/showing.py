"""Records as notebooks show them, and as plain rows for data frames.

All text is escaped, what is hidden from `repr` stays hidden, and amounts are written in 0G. Rows keep exact values:
amounts are `int` neuron, times are `datetime`.
"""

import dataclasses
import enum
import html
import importlib
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import TYPE_CHECKING, Any, Final, TypeVar

from zg_async.errors import ConfigError, ZgError
from zg_async.text import printable
from zg_async.units import format_amount

if TYPE_CHECKING:
    import pandas

T = TypeVar("T", covariant=True)
AMOUNTS: Final = frozenset(
    {
        "amount",
        "available_balance",
        "balance",
        "cost",
        "fee",
        "gas",
        "gas_cost",
        "input_price",
        "locked",
        "output_price",
        "pending_refund",
        "price_per_token",
        "total_balance",
    }
)
"""Fields that hold neuron."""
_MOST_ROWS: Final = 200
_NONE: Final = "-"
_CELL: Final = 200
_HEX: Final = 66
_MOST_POINTS: Final = 400
_STYLE: Final = 'style="text-align:left;vertical-align:top"'
_CURVE: Final = (560, 160)


class Shown:
    """A record that notebooks show as a table of its fields."""

    __slots__ = ()

    def _repr_html_(self) -> str:
        return record_html(self)


class Records(tuple[T, ...]):
    """Some records of one kind: a tuple that notebooks show as a table."""

    __slots__ = ()

    def to_rows(self) -> list[dict[str, Any]]:
        """Return a plain dict for each; see `to_rows`."""
        return to_rows(self)

    def to_frame(self) -> "pandas.DataFrame":
        """Return a pandas DataFrame; see `to_frame`."""
        return to_frame(self)

    def _repr_html_(self) -> str:
        return records_html(self)


# --- rows -------------------------------------------------------------------------------------------------------------


def to_rows(records: Iterable[object]) -> list[dict[str, Any]]:
    """Return records as flat, plain dicts.

    Args:
        records: Services, accounts, tasks, metrics, events, rows of a batch: any records of the package.

    Returns:
        One dict per record; a record in a field gives keys with a dot, such as `quota.cpu_count`. Amounts are `int`
        neuron, times `datetime`, sequences lists. Secrets are left out.

    Raises:
        TypeError: Something isn't a record.
    """
    return [_flat(record) for record in records]


def to_frame(records: Iterable[object]) -> "pandas.DataFrame":
    """Return records as a pandas DataFrame, a column for each field; see `to_rows`.

    Raises:
        ConfigError: pandas isn't installed.
    """
    try:
        frames = importlib.import_module("pandas")
    except ModuleNotFoundError:
        raise ConfigError("pandas isn't installed", hint="Run: pip install pandas; to_rows() does without it") from None
    found: pandas.DataFrame = frames.DataFrame(to_rows(records))
    return found


def _flat(record: object, prefix: str = "") -> dict[str, Any]:
    row: dict[str, Any] = {}
    for name, value in _fields(record):
        if _is_record(value):
            row |= _flat(value, f"{prefix}{name}.")
        else:
            row[prefix + name] = _plain(value)
    return row


def _plain(value: object) -> Any:
    if _is_record(value):
        return _flat(value)
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, bytes):
        return "0x" + value.hex()
    if isinstance(value, ZgError):
        return value.message
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, Sequence | AbstractSet) and not isinstance(value, str):
        return [_plain(item) for item in value]
    return value


def _is_record(value: object) -> bool:
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def _fields(record: object) -> list[tuple[str, Any]]:
    if not _is_record(record):
        raise TypeError(f"{type(record).__name__} is no record")
    return [(f.name, getattr(record, f.name)) for f in dataclasses.fields(record) if f.repr]  # type: ignore[arg-type]


# --- HTML -------------------------------------------------------------------------------------------------------------


def escaped(value: object, *, limit: int = _CELL) -> str:
    """Return text that can stand in HTML, whoever wrote it."""
    return html.escape(printable(str(value), limit=limit))


def table_html(rows: Iterable[Sequence[str]], head: Sequence[str] = (), *, title: str = "") -> str:
    """Return a table.

    Args:
        rows: Cells that are HTML already.
        head: Headings, as text.
        title: A caption, as text.
    """
    caption = f"<caption {_STYLE}><b>{escaped(title)}</b></caption>" if title else ""
    first = "".join(f"<th {_STYLE}>{escaped(name)}</th>" for name in head)
    lines = ["<tr>" + "".join(f"<td {_STYLE}>{cell}</td>" for cell in row) + "</tr>" for row in rows]
    return f"<table>{caption}{f'<tr>{first}</tr>' if head else ''}{''.join(lines)}</table>"


def record_html(record: object) -> str:
    """Return a record as a table of its fields."""
    rows = [(f"<b>{escaped(name)}</b>", _cell(name, value)) for name, value in _fields(record)]
    return table_html(rows, title=type(record).__name__)


def records_html(records: Sequence[object]) -> str:
    """Return records of one kind as a table, a line for each."""
    if not records:
        return "<i>none</i>"
    shown = records[:_MOST_ROWS]
    names = list(dict.fromkeys(name for record in shown for name, _ in _fields(record)))
    lines = [[_cell(name, dict(_fields(record)).get(name)) for name in names] for record in shown]
    more = f"<i>and {len(records) - _MOST_ROWS} more</i>" if len(records) > _MOST_ROWS else ""
    return table_html(lines, names) + more


def _cell(name: str, value: object) -> str:
    if value is None:
        return _NONE
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, bytes):
        return escaped("0x" + value.hex(), limit=_HEX)
    if isinstance(value, int) and name in AMOUNTS:
        return escaped(format_amount(value))
    if isinstance(value, Sequence) and value and all(_is_record(item) for item in value):
        return records_html(value)
    if _is_record(value):
        return table_html([(escaped(n), _cell(n, v)) for n, v in _fields(value)])
    if isinstance(value, Sequence | AbstractSet) and not isinstance(value, str | bytes):
        return "<br>".join(escaped(_plain(item)) for item in list(value)[:_MOST_ROWS]) or _NONE
    return escaped(_plain(value))


def curve_svg(values: Sequence[float], *, title: str) -> str:
    """Draw values as a curve with its first, last, least and greatest; what is no number is left out.

    Args:
        values: In order.
        title: What they are, as text.
    """
    points = [float(v) for v in values if v == v and abs(v) != float("inf")]
    if not points:
        return ""
    if len(points) > _MOST_POINTS:
        points = [points[i * (len(points) - 1) // (_MOST_POINTS - 1)] for i in range(_MOST_POINTS)]
    width, height = _CURVE
    low, high = min(points), max(points)
    across, up = (width - 80) / max(len(points) - 1, 1), (height - 40) / ((high - low) or 1.0)
    line = " ".join(f"{60 + i * across:.1f},{height - 20 - (v - low) * up:.1f}" for i, v in enumerate(points))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'font-family="sans-serif" font-size="11" fill="currentColor">'
        f'<text x="60" y="12">{escaped(title)}: {points[0]:.4g} to {points[-1]:.4g}</text>'
        f'<text x="54" y="{height - 18 - (high - low) * up:.0f}" text-anchor="end">{high:.4g}</text>'
        f'<text x="54" y="{height - 18}" text-anchor="end">{low:.4g}</text>'
        f'<polyline points="{line}" fill="none" stroke="#2563eb" stroke-width="2"/></svg>'
    )
