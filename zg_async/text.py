"""Text from outside, made harmless before anybody sees it."""

import unicodedata
from typing import Final

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
    shown = "".join(c if unicodedata.category(c) not in _HIDDEN else _escape(c) for c in cut)
    return shown + ("…" if len(text) > limit else "")


def _escape(char: str) -> str:
    code = ord(char)
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
