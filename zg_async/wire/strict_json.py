"""JSON from outside, read without surprises.

`json.loads` takes NaN, keeps the last of two equal keys, and may end the process on deep nesting once another
library has raised the recursion limit. Here depth and size are checked before it runs, and it raises one error.
"""

import itertools
import json
import re
from typing import Any, Final, NoReturn

MAX_INTEGER: Final = 2**256
_MAX_DIGITS: Final = 78
_STRING: Final = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)
_ONE_KIND: Final = bytes.maketrans(b"{}", b"[]")
_NO_BRACKETS: Final = bytes(set(range(256)) - set(b"[]{}"))
_OPENS: Final = ord("[")
_LONE: Final = re.compile("[\ud800-\udfff]")


class BadJsonError(ValueError):
    """The text isn't the JSON we take."""


def decode_json(data: bytes | bytearray | str, *, limit: int, depth: int = 64) -> Any:
    """Decode JSON text within bounds.

    Args:
        data: UTF-8 bytes, or text.
        limit: Largest size in bytes.
        depth: Deepest nesting of arrays and objects.

    Returns:
        What `json.loads` would give.

    Raises:
        BadJsonError: Too large, too deep, not UTF-8 (a byte order mark counts), not JSON, a key twice, NaN or
            infinity, half a surrogate pair, or an integer above 2**256.
    """
    try:
        raw = data.encode() if isinstance(data, str) else bytes(data)
    except UnicodeEncodeError:
        raise BadJsonError("half a surrogate pair") from None
    if len(raw) > limit:
        raise BadJsonError(f"larger than {limit} bytes")
    if raw.startswith(b"\xef\xbb\xbf"):
        raise BadJsonError("starts with a byte order mark")
    _check_depth(raw, depth)
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        raise BadJsonError("not UTF-8") from None
    try:
        value = _DECODER.decode(text)
    except json.JSONDecodeError as error:
        raise BadJsonError(f"not JSON at line {error.lineno}, column {error.colno}") from None
    if "\\" in text and "\\u" in text:  # the first alone is found ten times faster
        _check_surrogates(value)
    return value


def _check_depth(raw: bytes, depth: int) -> None:
    if b"[" not in raw and raw.find(b"{", raw.find(b"{") + 1) < 0:
        return  # one flat object: found several times faster than counted
    if raw.count(b"[") + raw.count(b"{") <= depth:
        return
    brackets = left = _STRING.sub(b"", raw).translate(_ONE_KIND, _NO_BRACKETS)
    for _ in range(depth):
        left = left.replace(b"[]", b"")  # takes off the innermost level, faster than counting
    steps = (1 if bracket == _OPENS else -1 for bracket in brackets)
    if left and max(itertools.accumulate(steps)) > depth:
        raise BadJsonError(f"nested deeper than {depth}")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise BadJsonError("a key stands twice in one object")
    return found


def _constant(name: str) -> NoReturn:
    raise BadJsonError(f"{name} is no JSON number")


def _integer(text: str) -> int:
    if len(text) > _MAX_DIGITS + 1 or abs(value := int(text)) > MAX_INTEGER:
        raise BadJsonError("an integer above 2**256")
    return value


def _float(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise BadJsonError("a number too large for a float")
    return value


def _check_surrogates(value: Any) -> None:
    pending = [value]
    while pending:
        item = pending.pop()
        if isinstance(item, str):
            if _LONE.search(item):
                raise BadJsonError("half a surrogate pair")
        elif isinstance(item, list):
            pending.extend(item)
        elif isinstance(item, dict):
            pending.extend(item)
            pending.extend(item.values())


_DECODER: Final = json.JSONDecoder(
    object_pairs_hook=_unique, parse_constant=_constant, parse_int=_integer, parse_float=_float
)
