"""How many tokens a dataset has, by the provider's rule, as far as that can be known here.

Every value of a row's three columns counts, as the model's own tokenizer encodes it with its default special tokens
(0g-serving-token-counter). The tokenizer is a file the user gives; nothing is ever downloaded. Without one the answer
is a range: at least one token for a text that isn't empty, at most one per byte.
"""

import dataclasses
import importlib
import os
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import anyio.to_thread

from zg_async.errors import ConfigError, DatasetError
from zg_async.wire.rows import MAX_LINE, RowFormat, row_format
from zg_async.wire.strict_json import BadJsonError, decode_json

_COLUMNS: Final = ("instruction", "input", "output")
SPECIAL_TOKENS: Final = 4
"""Room per value for special tokens of an unknown tokenizer; those of the predefined models add none."""
_BYTES_PER_TOKEN: Final = 4


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TokenCount:
    """Tokens of a dataset, for one epoch."""

    low: int
    """At least this many; never 0 for a dataset with text."""
    high: int
    """At most this many."""
    likely: int
    """The count itself when a tokenizer was given, else a guess between the two: a token for four bytes."""
    rows: int
    method: str
    """`tokenizer`, or `bytes` when there was none."""

    @property
    def is_exact(self) -> bool:
        """Whether it was counted and not bounded."""
        return self.low == self.high


async def count_tokens(
    dataset_path: str | os.PathLike[str], *, tokenizer: str | os.PathLike[str] | None = None, tee: bool = True
) -> TokenCount:
    """Count a dataset's tokens as the provider that trains on it does.

    Args:
        dataset_path: A JSONL file.
        tokenizer: The model's `tokenizer.json`; needs the extra `tokens`. None: a range.
        tee: Whether the dataset goes to the provider's TEE, where `text` rows become empty.

    Returns:
        The count, or the range it lies in.

    Raises:
        ConfigError: A file can't be read, or the extra isn't installed.
        DatasetError: A line is no JSON object.
    """
    return await anyio.to_thread.run_sync(_count, Path(dataset_path), tokenizer, tee)


def _count(path: Path, tokenizer: str | os.PathLike[str] | None, tee: bool) -> TokenCount:
    encode = None if tokenizer is None else load_tokenizer(tokenizer)
    low = high = likely = rows = 0
    for values in _rows(path, tee):
        rows += 1
        for text in (text for value in values for text in _texts(value)):
            least, most, guess = (encode(text),) * 3 if encode is not None else _bounds(text)
            low, high, likely = low + least, high + most, likely + guess
    method = "bytes" if encode is None else "tokenizer"
    return TokenCount(low=low, high=high, likely=likely, rows=rows, method=method)


def load_tokenizer(path: str | os.PathLike[str]) -> Callable[[str], int]:
    """Load a `tokenizer.json` and return what counts a text's tokens. Blocks.

    Raises:
        ConfigError: It isn't one, or the extra `tokens` isn't installed.
    """
    try:
        library: Any = importlib.import_module("tokenizers")
    except ImportError:
        raise ConfigError(
            "counting with a tokenizer needs the package `tokenizers`", hint="pip install 'zg-async[tokens]'"
        ) from None
    if not Path(path).is_file():
        raise ConfigError(f"there is no tokenizer file {path}", hint="Give the model's tokenizer.json")
    try:
        tokenizer = library.Tokenizer.from_file(os.fspath(path))
    except Exception as error:  # noqa: BLE001  the library raises nothing narrower
        raise ConfigError(f"{path} is no tokenizer.json: {error}", hint="Give the model's own tokenizer.json") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return lambda text: len(tokenizer.encode(text))


def _bounds(text: str) -> tuple[int, int, int]:
    """A byte is at most one token; normalising can make more bytes of a text, or none at all of blanks."""
    normal = (len(unicodedata.normalize(form, text).encode(errors="replace")) for form in ("NFC", "NFKC", "NFD"))
    size = max(len(text.encode(errors="replace")), *normal)
    return int(bool(text.strip())), size + SPECIAL_TOKENS, -(-size // _BYTES_PER_TOKEN)


def _rows(path: Path, tee: bool) -> Iterator[list[Any]]:
    form: RowFormat | None = None
    try:
        with path.open("rb") as file:
            for number, line in enumerate(iter(lambda: file.readline(MAX_LINE + 2), b""), 1):
                if not line.strip():
                    continue
                row = _row(path, number, line)
                form = form or row_format(row)
                yield _values(row, form, tee)
    except OSError as error:
        raise ConfigError(f"can't read the dataset {path}: {error.strerror}") from error


def _row(path: Path, number: int, line: bytes) -> Mapping[str, Any]:
    try:
        row = decode_json(line, limit=MAX_LINE)
    except BadJsonError:
        row = None
    if not isinstance(row, Mapping):
        raise DatasetError(
            f"{path}: line {number} is no JSON object",
            hint="check_dataset(), or `zg dataset check`, lists all that is wrong",
        )
    return row


def _values(row: Mapping[str, Any], form: RowFormat, tee: bool) -> list[Any]:
    """Return what a provider's converter makes of a row, values as they are."""
    if form is RowFormat.MESSAGES:
        messages = row.get("messages")
        said: dict[Any, Any] = {"user": "", "assistant": ""}
        for message in messages if isinstance(messages, list) else []:
            if isinstance(message, Mapping) and message.get("role") in ("user", "assistant"):
                said[message["role"]] = message.get("content", "")
        return [said["user"], "", said["assistant"]]
    if form is RowFormat.TEXT:
        return ["", "", ""] if tee else [row.get("text", "")]
    return [row.get(column, "") for column in _COLUMNS]


def _texts(value: Any) -> Iterator[str]:
    """Yield the texts that count: numbers and booleans as Python writes them, the values of lists and objects."""
    if isinstance(value, Mapping):
        for item in value.values():
            yield from _texts(item)
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)
    elif isinstance(value, str | int | float):
        yield str(value)
