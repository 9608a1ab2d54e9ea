"""How a verification looks while it runs, and at its end."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from zg_async.cli.opening import Where
from zg_async.cli.output import emit, note, table
from zg_async.text import printable

if TYPE_CHECKING:
    from zg_async.managers.verification_record import ServiceVerification


def on_log(where: Where) -> Callable[[str], None]:
    """Return what tells people each step."""
    return lambda line: note(where, printable(line, limit=500))


def verification_end(where: Where, result: "ServiceVerification") -> int:
    """Show what was verified, and return the exit code."""
    fields = result.to_json()
    fields["service"] = fields.pop("kind")
    rows = [(check.name, check.outcome, check.reason) for check in result.checks]
    emit(
        where,
        "verification",
        {**fields, "summary": result.summary(), "files": result.files},
        lambda: [table(rows, ("Check", "Outcome", "Reason")), printable(result.summary(), limit=1000)],
    )
    return 0 if result.verified else 5
