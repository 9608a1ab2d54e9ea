"""Datasets: checked in one pass over the file, sent into a provider's TEE, and the hash compared on both sides."""

import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

import anyio
import anyio.to_thread

from zg_async.errors import DatasetError, HashMismatchError
from zg_async.logs import get_logger
from zg_async.managers.provider_client import ProviderClient
from zg_async.text import printable
from zg_async.transport.files import SourceFile, shown
from zg_async.transport.multipart import plain_filename
from zg_async.transport.transfer import Progress
from zg_async.wire import provider_api
from zg_async.wire.hashing import hex0x
from zg_async.wire.records import Address, UploadedDataset
from zg_async.wire.rows import MAX_TEE_SIZE, DatasetChecker, DatasetReport, RowIssue

EXTENSIONS: Final = (".jsonl", ".json")
"""Endings of file names that providers take."""
_SHOWN: Final = 3
_PIECES: Final = 2
"""Read in one visit to a thread."""
_log = get_logger("zg_async.dataset")


async def check_dataset(
    path: str | os.PathLike[str], *, max_size: int | None = MAX_TEE_SIZE, minimum_rows: int = 1, tee: bool = True
) -> DatasetReport:
    """Check a dataset file by the provider's rules, in constant memory. Sends nothing.

    Args:
        path: A JSONL file.
        max_size: Bytes it may have; None for any size.
        minimum_rows: Fewer rows are an error.
        tee: Whether it goes to a provider's TEE, where some rows get lost.

    Returns:
        The report, also of a bad dataset.

    Raises:
        ConfigError: It is missing, unreadable, no regular file, or changes while it is read.
    """
    check = _Check(Path(path), DatasetChecker(max_size=max_size, minimum_rows=minimum_rows, tee=tee))
    try:
        while (report := await anyio.to_thread.run_sync(check.step)) is None:
            pass
    finally:
        check.close()
    return report


class _Check:
    """A dataset under examination; a small one takes a single visit to a thread."""

    def __init__(self, path: Path, checker: DatasetChecker) -> None:
        self._path = path
        self._checker = checker
        self._source: SourceFile | None = None

    def step(self) -> DatasetReport | None:
        """Check the next pieces; return the report behind the last one. Blocks."""
        if self._source is None:
            self._source = SourceFile(self._path)
        for _ in range(_PIECES):
            piece = self._source.read()
            if not piece:
                return self._checker.finish()
            self._checker.feed(piece)
        return None

    def close(self) -> None:
        """Close the file."""
        if self._source is not None:
            self._source.close()


async def upload_dataset(
    client: ProviderClient,
    user: Address,
    path: str | os.PathLike[str],
    fields: Callable[[], Awaitable[Mapping[str, str]]],
    *,
    progress: Progress | None = None,
) -> UploadedDataset:
    """Check a dataset and send it into a provider's TEE.

    Args:
        client: The provider.
        user: The wallet, spelled as it was signed.
        path: A JSONL file of at most 100 MiB.
        fields: Makes `signature` and `timestamp` afresh for each attempt.
        progress: Kept up to date.

    Returns:
        Its hash, equal on both sides.

    Raises:
        DatasetError: The provider would refuse it, or empty every row of it. Nothing was sent.
        HashMismatchError: What was checked, what was sent and what the provider has aren't the same bytes.
        ProviderError: The provider refused it, or gave no answer.
    """
    path = Path(path)
    report = await check_dataset(path)
    require_usable(path, report)
    for code in sorted({w.code for w in report.warnings}):
        first = next(w for w in report.warnings if w.code == code)
        _log.warning(
            "%s: %d times from row %d on: %s", shown(path), report.counts[code], first.row, printable(first.message)
        )
    sent = await client.upload_dataset(
        user, path, plain_filename(path.name, extensions=EXTENSIONS), fields, progress=progress
    )
    if hex0x(sent.keccak256) != report.keccak256:
        raise HashMismatchError(
            f"{shown(path)} changed between its check and its upload", hint="Upload it again when it is finished"
        )
    uploaded = provider_api.parse_uploaded(sent.reply.body, client.provider, size=sent.size)
    if uploaded.dataset_hash != report.keccak256:
        raise HashMismatchError(
            f"{client.provider} has a dataset with hash {uploaded.dataset_hash}, {shown(path)} has {report.keccak256}",
            hint="The upload was changed on its way or at the provider; don't train on it",
        )
    return uploaded


def require_usable(path: str | os.PathLike[str], report: DatasetReport) -> None:
    """Do nothing for a dataset that a provider would train on.

    Raises:
        DatasetError: The provider would refuse it, or empty every row of it.
    """
    if not report.is_ok:
        raise _refused(Path(path), report.errors, report)
    if report.counts.get("text_lost") == report.rows:  # it would be paid for, and nothing trained
        raise _refused(Path(path), [w for w in report.warnings if w.code == "text_lost"], report)


def _refused(path: Path, issues: Sequence[RowIssue], report: DatasetReport) -> DatasetError:
    kinds = {i.code: i for i in reversed(issues)}  # the first of each
    firsts = sorted(kinds.values(), key=lambda i: i.row)
    told = "; ".join(_told(i, report.counts[i.code]) for i in firsts[:_SHOWN])
    more = sum(report.counts[i.code] for i in firsts[_SHOWN:])
    return DatasetError(
        f"{shown(path)} can't be used: {told}" + (f"; and {more:,} more" if more else ""),
        rows=[i.row for i in issues if i.row],
        reasons=[i.code for i in firsts],
        hint=next((_NEXT[i.code] for i in firsts if i.code in _NEXT), _REPAIR),
    )


def _told(issue: RowIssue, count: int) -> str:
    if not issue.row:
        return issue.message
    others = f" and {count - 1:,} more row{'s' if count > 2 else ''}" if count > 1 else ""
    return f"row {issue.row}{others}: {issue.message}"


_ROW: Final = '{"instruction": "Question", "input": "", "output": "Answer"}'
_NEXT: Final = {
    "too_large": "Leave rows out; a file this big has to go over 0G Storage",
    "too_few_rows": f"Write one row per line, e.g. {_ROW}",
    "not_json": f"Write one JSON object per line, e.g. {_ROW}",
    "not_jsonl": f"Write one JSON object per line, e.g. {_ROW}",
    "not_an_object": f"Write one JSON object per line, e.g. {_ROW}",
    "unknown_keys": f"Rename the keys (question to instruction, answer to output), so that a row reads {_ROW}",
    "prompt_completion": f"A row reads {_ROW}",
    "not_utf8": "Convert it, for example with iconv -f LATIN1 -t UTF-8",
}
_REPAIR: Final = "Mend these rows; check_dataset(path) lists every one"
