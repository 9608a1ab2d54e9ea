"""Datasets and training parameters, judged by what a provider would make of them.

A dataset is checked in one pass with little memory. The provider decides the format by the first row only and
flattens silently (fine-tuning.md 6.1), so the report also says what it will see. Sources: 0g-serving-broker
api/fine-tuning/internal (handler, ctrl/task.go, utils/dataset_dir.go).
"""

import enum
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from decimal import Decimal, InvalidOperation
from typing import Any, Final

from zg_async.errors import TrainingParamsError
from zg_async.text import printable
from zg_async.wire.hashing import Keccak256, hex0x
from zg_async.wire.records import RootHash
from zg_async.wire.strict_json import BadJsonError, decode_json

MAX_TEE_SIZE: Final = 100 * 1024 * 1024
"""Bytes of a dataset that a provider's TEE upload takes."""
MAX_LINE: Final = 1024 * 1024
"""Bytes of one row."""
_ISSUES_KEPT: Final = 100
_DUPLICATES_KEPT: Final = 262_144
_PREVIEW_ROWS: Final = 3
_BLANK: Final = b" \t\r"


class RowFormat(enum.StrEnum):
    """What the first row makes of a dataset."""

    INSTRUCTION = "instruction"
    MESSAGES = "messages"
    TEXT = "text"
    EMPTY = "empty"


@dataclass(frozen=True, slots=True, kw_only=True)
class RowIssue:
    """Something about one row, or about the whole file."""

    row: int
    """Line number from 1; 0: the file."""
    code: str
    """Stable, machine-readable."""
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SeenRow:
    """What the provider trains on, of one row; long texts are cut."""

    row: int
    instruction: str
    input: str
    output: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetReport:
    """What came of a dataset check."""

    size: int
    """Bytes."""
    rows: int
    blank_lines: int
    format: RowFormat
    keccak256: RootHash
    """What the provider calls the dataset hash."""
    errors: tuple[RowIssue, ...]
    """What a provider would refuse or train on wrongly; at most 100 of a kind are kept."""
    warnings: tuple[RowIssue, ...]
    """What would get lost, or is suspicious."""
    counts: Mapping[str, int]
    """How often each code occurred, also beyond the 100."""
    longest_row: int
    """Bytes."""
    preview: tuple[SeenRow, ...]
    """The first rows as the provider will see them."""
    duplicates_complete: bool
    """Whether duplicates were looked for among all rows, or only the first 262,144."""

    @property
    def is_ok(self) -> bool:
        """Whether there are no errors."""
        return not self.errors

    def to_json(self) -> dict[str, Any]:
        """Return the report as plain JSON values, with `is_ok`."""
        return {"is_ok": self.is_ok, **asdict(self), "format": self.format.value, "counts": dict(self.counts)}


class DatasetChecker:
    """Checks a JSONL dataset fed in pieces of any size."""

    def __init__(self, *, max_size: int | None = MAX_TEE_SIZE, minimum_rows: int = 1, tee: bool = True) -> None:
        """Begin a check.

        Args:
            max_size: Bytes the file may have; None: any (0G Storage).
            minimum_rows: Fewer rows are an error.
            tee: Whether it goes to a provider's TEE, where `text` rows are lost.
        """
        self._max_size, self._minimum_rows, self._tee = max_size, minimum_rows, tee
        self._hash = Keccak256()
        self._size = self._line = self._rows = self._blank = self._longest = 0
        self._held = bytearray()
        self._too_long = False
        self._format = RowFormat.EMPTY
        self._issues: dict[str, list[RowIssue]] = {}
        self._errors: set[str] = set()
        self._counts: dict[str, int] = {}
        self._seen: dict[bytes, int] = {}
        self._preview: list[SeenRow] = []

    def feed(self, chunk: bytes | bytearray | memoryview) -> None:
        """Check more bytes."""
        chunk = bytes(chunk)
        self._hash.update(chunk)
        self._size += len(chunk)
        *lines, rest = chunk.split(b"\n")
        for line in lines:
            self._hold(line)
            self._end_line()
        self._hold(rest)

    def finish(self) -> DatasetReport:
        """Return the report."""
        if self._held or self._too_long:
            self._end_line()
        if self._max_size is not None and self._size > self._max_size:
            self._error(0, "too_large", f"the file has {self._size:,} bytes, a provider takes {self._max_size:,}")
        if self._rows < self._minimum_rows:
            self._error(0, "too_few_rows", _few(self._rows, self._minimum_rows))
        return DatasetReport(
            size=self._size,
            rows=self._rows,
            blank_lines=self._blank,
            format=self._format,
            keccak256=RootHash(hex0x(self._hash.digest())),
            errors=self._kept(self._errors),
            warnings=self._kept(self._issues.keys() - self._errors),
            counts=dict(self._counts),
            longest_row=self._longest,
            preview=tuple(self._preview),
            duplicates_complete=len(self._seen) < _DUPLICATES_KEPT,
        )

    # -- lines

    def _hold(self, part: bytes) -> None:
        if self._too_long:
            return
        if len(self._held) + len(part) > MAX_LINE:
            self._too_long = True
            self._held.clear()
        else:
            self._held += part

    def _end_line(self) -> None:
        self._line += 1
        if self._too_long:
            self._rows += 1
            self._error(self._line, "line_too_long", f"longer than {MAX_LINE} bytes")
        elif line := bytes(self._held).strip(_BLANK):
            self._rows += 1
            self._longest = max(self._longest, len(line))
            self._check_line(line)
        else:
            self._blank += 1
        self._too_long = False
        self._held.clear()

    def _check_line(self, line: bytes) -> None:
        self._check_secrets(line)
        try:
            row = decode_json(line, limit=MAX_LINE)
        except BadJsonError as error:
            self._error(self._line, *self._not_json(line, str(error)))
            return
        if not isinstance(row, dict):
            self._error(self._line, "not_an_object", "a row has to be a JSON object: write one per line")
            return
        self._check_duplicate(line)
        self._check_row(row)

    def _not_json(self, line: bytes, error: str) -> tuple[str, str]:
        if line.startswith(b"\xef\xbb\xbf"):
            return "byte_order_mark", "the file starts with a byte order mark: save it as UTF-8 without BOM"
        if error == "not UTF-8":
            return "not_utf8", "not UTF-8: save the file in that encoding"
        if line in (b"{", b"[") or (self._line == 1 and line.startswith(b"[")):
            return "not_jsonl", "looks like pretty-printed JSON or one array: write one object per line"
        return "not_json", error.replace("at line 1, column", "from character")

    # -- rows

    def _check_row(self, row: dict[str, Any]) -> None:
        format_ = row_format(row)
        if self._format is RowFormat.EMPTY:
            self._format = format_
        if format_ is not self._format:
            self._error(
                self._line,
                "mixed_format",
                f"a {format_} row in a file whose first row is {self._format}: the provider goes by the first",
            )
        elif format_ is RowFormat.MESSAGES:
            self._check_messages(row["messages"])
        elif format_ is RowFormat.TEXT:
            self._check_text(row["text"])
        else:
            self._check_instruction(row)
        if len(self._preview) < _PREVIEW_ROWS:
            seen = flatten_row(row, self._format, tee=self._tee)
            self._preview.append(SeenRow(row=self._line, **{k: printable(v) for k, v in seen.items()}))

    def _check_messages(self, messages: Any) -> None:
        if not isinstance(messages, list) or not messages or not all(isinstance(m, dict) for m in messages):
            self._error(self._line, "bad_messages", "`messages` has to be a list of objects")
            return
        roles = [m.get("role") for m in messages]
        if any(r not in ("system", "user", "assistant") for r in roles):
            self._error(self._line, "bad_role", "a role has to be system, user or assistant")
            return
        if any(not isinstance(m.get("content"), str) for m in messages):
            self._error(self._line, "content_not_text", "a message's `content` has to be text")
            return
        for role in ("user", "assistant"):
            if not any(m["content"].strip() for m in messages if m["role"] == role):
                self._error(self._line, "missing_role", f"no {role} message with text")
                return
        if "system" in roles:
            self._warn("system_dropped", "the provider drops system messages")
        if roles.count("user") > 1 or roles.count("assistant") > 1:
            self._warn("multi_turn", "the provider keeps only the last user and the last assistant message")
        elif [r for r in roles if r != "system"] != ["user", "assistant"]:
            self._warn("answer_first", "the assistant message stands before the user's")

    def _check_text(self, text: Any) -> None:
        if not isinstance(text, str):
            self._error(self._line, "text_not_text", "`text` has to be text")
        elif not text.strip():
            self._error(self._line, "empty_row", "`text` is empty")
        elif self._tee:
            self._warn(
                "text_lost",
                "a `text` row becomes empty on the way through the TEE: write instruction, input and output, or "
                "use 0G Storage",
            )

    def _check_instruction(self, row: dict[str, Any]) -> None:
        present = [key for key in _FIELDS if row.get(key) is not None]
        if not present:
            self._error(self._line, *_unknown_keys(row))
            return
        if any(not isinstance(row[key], str) for key in present):
            self._error(self._line, "not_text", "instruction, input and output have to be text")
            return
        texts = [str(row.get(key) or "").strip() for key in _FIELDS]
        if not any(texts):
            self._error(self._line, "empty_row", "instruction, input and output are empty")
        elif not texts[2]:
            self._warn("empty_output", "no output: there is nothing to learn from this row")
        elif not texts[0] and not texts[1]:
            self._warn("empty_instruction", "no instruction and no input")
        if extra := sorted(row.keys() - set(_FIELDS)):
            self._warn("keys_ignored", f"the provider drops {printable(', '.join(extra), limit=80)}")

    def _check_duplicate(self, line: bytes) -> None:
        digest = hashlib.blake2b(line, digest_size=8).digest()
        first = self._seen.get(digest)
        if first is not None:
            self._warn("duplicate", f"the same as row {first}")
        elif len(self._seen) < _DUPLICATES_KEPT:
            self._seen[digest] = self._line

    def _check_secrets(self, line: bytes) -> None:
        for byte, suspects in _SECRETS.items():
            if byte not in line:
                continue
            for needle, what, pattern in suspects:
                if needle in line and pattern.search(line):
                    self._warn("credential", f"looks like {what}: it would leave this machine")
                    return

    # -- issues

    def _error(self, row: int, code: str, message: str) -> None:
        self._errors.add(code)
        self._note(row, code, message)

    def _warn(self, code: str, message: str) -> None:
        self._note(self._line, code, message)

    def _note(self, row: int, code: str, message: str) -> None:
        self._counts[code] = self._counts.get(code, 0) + 1
        kept = self._issues.setdefault(code, [])
        if len(kept) < _ISSUES_KEPT:
            kept.append(RowIssue(row=row, code=code, message=message))

    def _kept(self, codes: Iterable[str]) -> tuple[RowIssue, ...]:
        return tuple(sorted((i for code in codes for i in self._issues[code]), key=lambda i: (i.row, i.code)))


_FIELDS: Final = ("instruction", "input", "output")

_SECRETS: Final[Mapping[bytes, tuple[tuple[bytes, str, re.Pattern[bytes]], ...]]] = {
    byte: tuple((needle, what, re.compile(pattern)) for what, needles, pattern in suspects for needle in needles)
    for byte, suspects in {
        b"-": (
            ("an inference API key", (b"app-sk-",), rb"app-sk-[A-Za-z0-9+/=]{40,}"),
            ("a private key", (b"PRIVATE KEY",), rb"-----BEGIN [A-Z ]{0,20}PRIVATE KEY-----"),
            ("an API key", (b"sk-",), rb"\bsk-[A-Za-z0-9_-]{20,}"),
            ("a Slack token", (b"xox",), rb"\bxox[abposr]-[A-Za-z0-9-]{10,}"),
        ),
        b"x": (("a private key (64 hex digits)", (b"0x",), rb"\b0x[0-9a-fA-F]{64}\b"),),
        b"_": (
            ("a Hugging Face token", (b"hf_",), rb"\bhf_[A-Za-z0-9]{30,}"),
            ("a GitHub token", (b"ghp_", b"gho_", b"ghu_", b"ghs_", b"ghr_"), rb"\bgh[pousr]_[A-Za-z0-9]{36}"),
            ("a GitHub token", (b"github_pat_",), rb"\bgithub_pat_[A-Za-z0-9_]{40,}"),
        ),
        b"I": (("an AWS key id", (b"AKIA", b"ASIA"), rb"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"),),
        b"J": (("a signed token", (b"eyJ",), rb"\beyJ[A-Za-z0-9_-]{10,200}\.eyJ[A-Za-z0-9_-]{10}"),),
    }.items()
}
"""A byte, and for what is worth looking when a row has it: a text, because that is fast; what it would be; its form."""


def _few(rows: int, least: int) -> str:
    return f"{rows} rows, at least {least} are needed" if rows else "there is no row in it"


def _unknown_keys(row: dict[str, Any]) -> tuple[str, str]:
    if "prompt" in row or "completion" in row:
        return (
            "prompt_completion",
            "prompt and completion aren't a format of the provider: rename them to instruction and output",
        )
    return "unknown_keys", "none of instruction, input, output, messages or text is there"


def row_format(row: Mapping[str, Any]) -> RowFormat:
    """Return which format a row has, by the provider's rule."""
    if "messages" in row:
        return RowFormat.MESSAGES
    return RowFormat.TEXT if "text" in row and "instruction" not in row else RowFormat.INSTRUCTION


def flatten_row(row: Mapping[str, Any], format_: RowFormat, *, tee: bool = True) -> dict[str, str]:
    """Return the instruction, input and output a provider makes of a row.

    Args:
        row: The row.
        format_: The file's format, which its first row decided.
        tee: Whether it goes through the TEE upload; there `text` rows become empty. Otherwise the text is the output.
    """
    if format_ is RowFormat.MESSAGES:
        messages = row.get("messages")
        rows = [m for m in messages if isinstance(m, Mapping)] if isinstance(messages, list) else []
        return {"instruction": _last(rows, "user"), "input": "", "output": _last(rows, "assistant")}
    if format_ is RowFormat.TEXT:
        return {"instruction": "", "input": "", "output": "" if tee else _string(row.get("text"))}
    return {key: _string(row.get(key)) for key in _FIELDS}


def _last(messages: list[Mapping[str, Any]], role: str) -> str:
    return next((_string(m.get("content")) for m in reversed(messages) if m.get("role") == role), "")


def _string(value: Any) -> str:
    return value if isinstance(value, str) else ""


# --- training parameters ---------------------------------------------------------------------------------------------

_FORBIDDEN: Final[tuple[str, ...]] = (
    "fp16",
    "bf16",
    "gradient_accumulation_steps",
    "warmup_ratio",
    "warmup_steps",
    "logging_steps",
    "save_steps",
    "save_total_limit",
    "max_seq_length",
    "lora_r",
    "lora_alpha",
    "lora_dropout",
    "use_4bit",
    "use_8bit",
    "optim",
    "lr_scheduler_type",
)
_TEMPLATE: Final = (
    "Take exactly neftune_noise_alpha, num_train_epochs, per_device_train_batch_size, learning_rate, max_steps."
)
_LIMIT: Final = 64 * 1024

Number = int | float | Decimal


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingParams:
    """The five parameters a provider takes, within its bounds.

    The LoRA settings (r 8, alpha 32, dropout 0.1), 512 tokens per row and four batches per step are the provider's.
    """

    neftune_noise_alpha: Number = 5
    """0 to 10; checked by the provider, not used by its present trainer."""
    num_train_epochs: int = 1
    """1 to 10; the fee grows with it."""
    per_device_train_batch_size: int = 2
    """1 to 4."""
    learning_rate: Number = Decimal("0.0002")
    """0.00001 to 0.001."""
    max_steps: int = -1
    """Optimizer steps; -1: all epochs. Doesn't lower the fee."""

    def __post_init__(self) -> None:
        for name in (f.name for f in fields(self)):
            object.__setattr__(self, name, _checked(name, getattr(self, name)))

    def to_json(self) -> str:
        """Return the parameter file's text. No number has an exponent, which providers refuse."""
        members = ", ".join(f'"{f.name}": {decimal_text(getattr(self, f.name))}' for f in fields(self))
        return "{" + members + "}"


def check_training_params(params: str | bytes | Mapping[str, Any]) -> TrainingParams:
    """Check training parameters by the newest provider's rules (ctrl/task.go validateTrainingParams), in its order.

    Args:
        params: The file's text, or the parameters.

    Raises:
        TrainingParamsError: Not a JSON object, a forbidden, unknown or missing name, or a value out of bounds.
            `parameter` names it.
    """
    values = _numbers(params) if isinstance(params, str | bytes) else dict(params)
    known = [f.name for f in fields(TrainingParams)]
    for name in (n for n in _FORBIDDEN if n in values):
        raise TrainingParamsError(f"forbidden parameter {name!r}", parameter=name, hint=_TEMPLATE)
    for name in (n for n in values if n not in known):
        shown = printable(str(name), limit=60)
        raise TrainingParamsError(f"unexpected parameter {shown!r}", parameter=shown, hint=_TEMPLATE)
    for name in (n for n in known if n not in values):
        raise TrainingParamsError(f"missing required parameter {name!r}", parameter=name, hint=_TEMPLATE)
    return TrainingParams(**values)


class _Exponent(Decimal):
    """A number that was written with an exponent."""


def _number(text: str) -> Decimal:
    return _Exponent(text) if "e" in text.lower() else Decimal(text)


def _numbers(text: str | bytes) -> dict[str, Any]:
    try:
        decode_json(text, limit=_LIMIT)  # size, depth, duplicate names
        values = json.loads(text, parse_float=_number, parse_int=_number)
    except BadJsonError as error:
        raise TrainingParamsError(f"the training parameters aren't valid JSON: {error}", hint=_TEMPLATE) from None
    if not isinstance(values, dict):
        raise TrainingParamsError("the training parameters have to be a JSON object", hint=_TEMPLATE)
    return values


def _checked(name: str, value: Any) -> Number:
    if isinstance(value, bool) or not isinstance(value, Number):
        raise TrainingParamsError(f"{name} has to be a number", parameter=name, hint=_bounds_hint(name))
    number = value if isinstance(value, Decimal) else Decimal(str(value))
    if name == "learning_rate" and isinstance(value, _Exponent) and abs(number.adjusted()) <= _ORDINARY:
        raise TrainingParamsError(
            f"{name} is written with an exponent", parameter=name, hint=f"Write {decimal_text(number)}."
        )
    low, high, whole = _BOUNDS[name]
    if not number.is_finite() or (whole and number != int(number)):
        raise TrainingParamsError(
            f"{name} has to be a {'whole ' if whole else ''}number", parameter=name, hint=_bounds_hint(name)
        )
    if not (low <= number <= high) or (name == "max_steps" and number == 0):
        raise TrainingParamsError(
            f"{name} has to be {_bounds_text(name, low, high)}, not {printable(str(value), limit=40)}",
            parameter=name,
            hint=_bounds_hint(name),
        )
    return int(number) if whole else Decimal(decimal_text(number))


_BOUNDS: Final[Mapping[str, tuple[Decimal, Decimal, bool]]] = {
    "neftune_noise_alpha": (Decimal(0), Decimal(10), False),
    "num_train_epochs": (Decimal(1), Decimal(10), True),
    "per_device_train_batch_size": (Decimal(1), Decimal(4), True),
    "learning_rate": (Decimal("0.00001"), Decimal("0.001"), False),
    "max_steps": (Decimal(-1), Decimal(2**53), True),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ParameterLimit:
    """The bounds of one training parameter, both included."""

    name: str
    minimum: Decimal
    maximum: Decimal | None
    """None: as large as you like."""
    is_whole: bool
    excluded: tuple[Decimal, ...] = ()
    """Values between the bounds that aren't taken."""


PARAMETER_LIMITS: Final = tuple(
    ParameterLimit(
        name=name,
        minimum=low,
        maximum=None if name == "max_steps" else high,
        is_whole=whole,
        excluded=(Decimal(0),) if name == "max_steps" else (),
    )
    for name, (low, high, whole) in _BOUNDS.items()
)


def _bounds_text(name: str, low: Decimal, high: Decimal) -> str:
    return "-1 or at least 1" if name == "max_steps" else f"between {low} and {high}"


def _bounds_hint(name: str) -> str:
    low, high, whole = _BOUNDS[name]
    return f"Write a {'whole ' if whole else ''}number {_bounds_text(name, low, high)}, without quotes"


_ORDINARY: Final = 100
"""Places before or behind the point of a number that is written out."""


def decimal_text(number: Number | str) -> str:
    """Write a number in plain decimal, without exponent: 0.00001, never 1e-05.

    Raises:
        ValueError: Not a finite number.
    """
    try:
        value = Decimal(str(number))
    except InvalidOperation:
        raise ValueError(f"not a number: {printable(str(number), limit=40)}") from None
    if not value.is_finite() or abs(value.adjusted()) > _ORDINARY:
        raise ValueError(f"not a number of ordinary size: {printable(str(number), limit=40)}")
    text = f"{value:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
