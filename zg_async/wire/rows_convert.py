"""Dataset rows in another shape, where nothing gets lost on the way.

Four shapes are known: `instruction` (instruction, input, output), `messages` (a chat), `prompt` (prompt and completion)
and `text`. A conversion is lossless if converting back gives the row again; a missing key counts as an empty text, as
it does for a provider. A text in the trainer's layout is taken apart into instruction, input and output, and those are
written in that layout (fine-tuning.md 6.1); any other text is an output without instruction.
"""

import enum
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

from zg_async.errors import ConfigError
from zg_async.text import printable
from zg_async.wire.rows import MAX_LINE
from zg_async.wire.strict_json import BadJsonError, decode_json

_KEPT: Final = 100
_BLANK: Final = b" \t\r"
_LAYOUT: Final = re.compile(
    r"### Instruction:\n(.*?)(?:\n\n### Input:\n(.*?))?\n\n### Response:\n(.*)",
    re.DOTALL,
)


class RowShape(enum.StrEnum):
    """Which keys a row has."""

    INSTRUCTION = "instruction"
    MESSAGES = "messages"
    PROMPT = "prompt"
    TEXT = "text"


_KEYS: Final[Mapping[RowShape, tuple[str, ...]]] = {
    RowShape.MESSAGES: ("messages",),
    RowShape.INSTRUCTION: ("instruction", "input", "output"),
    RowShape.PROMPT: ("prompt", "completion"),
    RowShape.TEXT: ("text",),
}


class BadRowError(ValueError):
    """A row of no known shape."""


@dataclass(frozen=True, slots=True)
class ConvertedRow:
    """A row in its new shape, and what that cost."""

    row: dict[str, Any]
    shape: RowShape
    """What it was."""
    loss: str
    """What converting back wouldn't bring back; empty: nothing."""


@dataclass(frozen=True, slots=True)
class _Example:
    instruction: str
    input: str
    output: str


def row_shape(row: Mapping[str, Any]) -> RowShape:
    """Return which shape a row has.

    Raises:
        BadRowError: None of them.
    """
    for shape in (RowShape.MESSAGES, RowShape.PROMPT):
        if any(key in row for key in _KEYS[shape]):
            return shape
    if "text" in row and "instruction" not in row:
        return RowShape.TEXT
    if any(key in row for key in _KEYS[RowShape.INSTRUCTION]):
        return RowShape.INSTRUCTION
    found = f"; it has {printable(', '.join(sorted(row)), limit=80)}" if row else ""
    raise BadRowError(f"none of instruction, messages, prompt and text is there{found}")


def convert_row(row: Mapping[str, Any], to: RowShape) -> ConvertedRow:
    """Convert one row. A row that has the shape already stays as it is.

    Args:
        row: The row.
        to: The shape wanted.

    Returns:
        The new row, and what is lost.

    Raises:
        BadRowError: It has no known shape, or its values aren't texts.
    """
    shape = row_shape(row)
    example = _read(row, shape)
    if shape is to:
        return ConvertedRow(dict(row), shape, "")
    converted = _write(example, to)
    back = _write(_read(converted, to), shape)
    return ConvertedRow(converted, shape, "" if back == _plain(row, shape) else _loss(row, shape, to))


def _plain(row: Mapping[str, Any], shape: RowShape) -> dict[str, Any]:
    if shape is RowShape.MESSAGES:
        return dict(row)
    return {**row, **{key: row.get(key) or "" for key in _KEYS[shape]}}


def _read(row: Mapping[str, Any], shape: RowShape) -> _Example:
    if shape is RowShape.MESSAGES:
        return _read_messages(row["messages"])
    texts = [row.get(key) for key in _KEYS[shape]]
    if any(text is not None and not isinstance(text, str) for text in texts):
        raise BadRowError(f"{', '.join(_KEYS[shape])}: only texts can be converted")
    first, *rest = [text or "" for text in texts]
    match shape:
        case RowShape.TEXT:
            return _read_text(first)
        case RowShape.PROMPT:
            return _Example(first, "", rest[0])
        case _:
            return _Example(first, *rest)


def _read_messages(messages: Any) -> _Example:
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise BadRowError("`messages` has to be a list of objects")
    if any(not isinstance(message.get("content"), str) for message in messages):
        raise BadRowError("a message's `content` has to be text")
    last = {message.get("role"): message["content"] for message in messages if isinstance(message.get("role"), str)}
    if "user" not in last and "assistant" not in last:
        raise BadRowError("no message of a user or an assistant")
    return _Example(last.get("user", ""), "", last.get("assistant", ""))


def _read_text(text: str) -> _Example:
    found = _LAYOUT.fullmatch(text)
    if found:
        example = _Example(found[1], found[2] or "", found[3])
        if _text(example) == text:
            return example
    return _Example("", "", text)


def _text(example: _Example) -> str:
    if not example.instruction and not example.input:
        return example.output
    middle = f"### Input:\n{example.input}\n\n" if example.input else ""
    return f"### Instruction:\n{example.instruction}\n\n{middle}### Response:\n{example.output}"


def _write(example: _Example, shape: RowShape) -> dict[str, Any]:
    asked = "\n\n".join(part for part in (example.instruction, example.input) if part)
    match shape:
        case RowShape.INSTRUCTION:
            return asdict(example)
        case RowShape.TEXT:
            return {"text": _text(example)}
        case RowShape.PROMPT:
            return {"prompt": asked, "completion": example.output}
        case RowShape.MESSAGES:
            return {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": example.output}]}


def _loss(row: Mapping[str, Any], shape: RowShape, to: RowShape) -> str:
    if extra := sorted(row.keys() - set(_KEYS[shape])):
        return f"{printable(', '.join(extra), limit=80)} would be dropped"
    if shape is RowShape.MESSAGES:
        roles = [message.get("role") for message in row["messages"]]
        if roles != ["user", "assistant"]:
            return "of these messages only the last one of the user and of the assistant would stay"
        return "what the messages have besides role and content would be dropped"
    if shape in (RowShape.INSTRUCTION, RowShape.TEXT) and to in (RowShape.PROMPT, RowShape.MESSAGES):
        return "where the instruction ends and the input begins would be lost"
    return "it couldn't be told apart from a text in the trainer's layout"


@dataclass(frozen=True, slots=True, kw_only=True)
class RowNote:
    """What is wrong with a row, or what it loses."""

    row: int
    """Line number from 1."""
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ConversionReport:
    """What came of converting a dataset."""

    to: RowShape
    rows: int
    shapes: Mapping[RowShape, int]
    """How many rows of each shape there were."""
    lossy_rows: int
    lossy: tuple[RowNote, ...]
    """The first 100 rows that lose something."""
    bad_rows: int
    bad: tuple[RowNote, ...]
    """The first 100 rows that can't be converted at all."""

    def to_json(self) -> dict[str, Any]:
        """Return the report as plain JSON values."""
        return {**asdict(self), "to": self.to.value, "shapes": {shape.value: n for shape, n in self.shapes.items()}}


class RowConverter:
    """Converts a JSONL dataset fed in pieces of any size, in constant memory."""

    def __init__(self, to: RowShape, *, rename: Mapping[str, str] | None = None) -> None:
        """Begin a conversion.

        Args:
            to: The shape wanted.
            rename: Keys and what they are called from now on, before anything else, e.g. `{"answer": "output"}`.
        """
        self._to = to
        self._rename = dict(rename or {})
        self._unused = set(self._rename)
        self._held = bytearray()
        self._too_long = False
        self._line = self._rows = self._lossy_rows = self._bad_rows = 0
        self._shapes: dict[RowShape, int] = {}
        self._lossy: list[RowNote] = []
        self._bad: list[RowNote] = []

    def feed(self, chunk: bytes) -> bytes:
        """Convert more bytes; return the rows that got complete."""
        *lines, rest = chunk.split(b"\n")
        done = bytearray()
        for line in lines:
            self._hold(line)
            done += self._end_line()
        self._hold(rest)
        return bytes(done)

    def finish(self) -> tuple[bytes, ConversionReport]:
        """Return the last row and the report.

        Raises:
            ConfigError: A key that was to be renamed is in no row.
        """
        rest = self._end_line() if self._held or self._too_long else b""
        if self._rows and self._unused:
            raise ConfigError(f"no row has the key {printable(', '.join(sorted(self._unused)), limit=80)}")
        report = ConversionReport(
            to=self._to,
            rows=self._rows,
            shapes=dict(self._shapes),
            lossy_rows=self._lossy_rows,
            lossy=tuple(self._lossy),
            bad_rows=self._bad_rows,
            bad=tuple(self._bad),
        )
        return rest, report

    def _hold(self, part: bytes) -> None:
        self._too_long = self._too_long or len(self._held) + len(part) > MAX_LINE
        if self._too_long:
            self._held.clear()
        else:
            self._held += part

    def _end_line(self) -> bytes:
        self._line += 1
        line, too_long = bytes(self._held).strip(_BLANK), self._too_long
        self._held.clear()
        self._too_long = False
        if not line and not too_long:
            return b""
        self._rows += 1
        try:
            if too_long:
                raise BadRowError(f"longer than {MAX_LINE} bytes")
            return self._convert(decode_json(line, limit=MAX_LINE))
        except (BadJsonError, BadRowError) as error:
            self._bad_rows += 1
            if len(self._bad) < _KEPT:
                self._bad.append(RowNote(row=self._line, message=str(error)))
            return b""

    def _convert(self, row: Any) -> bytes:
        if not isinstance(row, dict):
            raise BadRowError("a row has to be a JSON object: write one per line")
        converted = convert_row(self._renamed(row), self._to)
        self._shapes[converted.shape] = self._shapes.get(converted.shape, 0) + 1
        if converted.loss:
            self._lossy_rows += 1
            if len(self._lossy) < _KEPT:
                self._lossy.append(RowNote(row=self._line, message=converted.loss))
        return json.dumps(converted.row, ensure_ascii=False).encode() + b"\n"

    def _renamed(self, row: dict[str, Any]) -> dict[str, Any]:
        self._unused -= row.keys()
        renamed = {self._rename.get(key, key): value for key, value in row.items()}
        if len(renamed) != len(row):
            raise BadRowError("two keys would have one name after renaming")
        return renamed
