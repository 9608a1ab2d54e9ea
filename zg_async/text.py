"""Text from outside, made harmless before anybody sees it; and secrets, kept out of what shows itself."""

import json
import sys
import unicodedata
from typing import Any, Final, TypeVar

T = TypeVar("T")

_HIDDEN: Final = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})


def printable(text: str, *, limit: int = 200) -> str:
    """Show outside text so that it can't move a cursor, hide, or fill a screen.

    Args:
        text: A string from a chain, a provider, a storage node or a file.
        limit: Characters kept; more are replaced by an ellipsis.

    Returns:
        The text on one line, with control, format and bidirectional characters as visible escapes.
    """
    cut = text[:limit]
    if cut.isprintable():  # nothing of `_HIDDEN` is
        return cut + ("…" if len(text) > limit else "")
    shown = "".join(c if unicodedata.category(c) not in _HIDDEN else _escape(c) for c in cut)
    return shown + ("…" if len(text) > limit else "")


def printable_lines(text: str, *, limit: int = sys.maxsize) -> str:
    """Show outside text as `printable` does, but keep its lines; `limit` counts for each."""
    return "\n".join(printable(line, limit=limit) for line in text.split("\n"))


def json_text(value: Any, *, indent: int | None = None) -> str:
    """Write JSON for a screen or a pipe: the same values, but what moves a cursor or hides is written as an escape."""
    text = json.dumps(value, ensure_ascii=False, indent=indent)
    moving = {ord(c): json.dumps(c)[1:-1] for c in set(text) if not c.isprintable() and c != "\n"}
    return text.translate(moving)


def _escape(char: str) -> str:
    code = ord(char)
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


class HiddenText(str):
    """A secret text: `repr` doesn't tell it, so tracebacks that show locals, rich displays and debuggers don't."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "<hidden>"


class HiddenBytes(bytes):
    """Secret bytes; see `HiddenText`."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "<hidden>"


def hidden(secret: T) -> T:
    """Return the same text or bytes with a `repr` that doesn't tell them; other values as they are.

    What works with a secret rebinds its argument first: `key = hidden(key)`.
    """
    if isinstance(secret, str):
        return HiddenText(secret)  # type: ignore[return-value]
    if isinstance(secret, bytes | bytearray):
        return HiddenBytes(secret)  # type: ignore[return-value]
    return secret
