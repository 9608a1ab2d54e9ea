"""A dataset file written anew in another shape."""

import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import anyio
import anyio.to_thread

from zg_async.errors import DatasetError
from zg_async.text import printable
from zg_async.transport.files import PartFile, SourceFile, file_error, publish, shown
from zg_async.transport.storage_part import refuse_existing
from zg_async.wire.rows_convert import ConversionReport, RowConverter, RowNote, RowShape

_SHOWN: Final = 3


async def convert_dataset(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    to: RowShape,
    rename: Mapping[str, str] | None = None,
    lossy: bool = False,
) -> ConversionReport:
    """Convert a JSONL file, in constant memory. The new one appears when it is whole; nothing is overwritten.

    Args:
        source: The file.
        target: The new file.
        to: The shape wanted; a file's rows may have different ones.
        rename: Keys and what they are called from now on, before anything else.
        lossy: Convert rows that lose something, too.

    Returns:
        How many rows of which shapes there were, and which lost something.

    Raises:
        DatasetError: There is no row, some can't be converted, or lose something; `.rows` names them. Nothing was
            written.
        ConfigError: A file can't be read or written, something is at `target`, or no row has a key to be renamed.
    """
    source, target = Path(source), Path(target)
    await anyio.to_thread.run_sync(refuse_existing, target)
    reader = await anyio.to_thread.run_sync(SourceFile, source)
    try:
        part = await anyio.to_thread.run_sync(_temporary, target)
        try:
            report = await _copy(reader, part, RowConverter(to, rename=rename))
            _require_whole(source, report, lossy=lossy)
            await anyio.to_thread.run_sync(_finish, part, target)
        finally:
            part.close()
            part.path.unlink(missing_ok=True)
    finally:
        reader.close()
    return report


async def _copy(source: SourceFile, part: PartFile, converter: RowConverter) -> ConversionReport:
    def convert_piece() -> bool:
        piece = source.read()
        part.write([converter.feed(piece)])
        return bool(piece)

    while await anyio.to_thread.run_sync(convert_piece):
        pass
    rest, report = converter.finish()
    await anyio.to_thread.run_sync(part.write, [rest])
    return report


def _temporary(target: Path) -> PartFile:
    try:
        fd, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent)
    except OSError as error:
        raise file_error("write", target, error) from error
    os.close(fd)
    return PartFile(Path(name), ())


def _finish(part: PartFile, target: Path) -> None:
    part.sync()
    refuse_existing(target)
    publish(part.path, target)


def _require_whole(source: Path, report: ConversionReport, *, lossy: bool) -> None:
    if not report.rows:
        raise DatasetError(f"there is no row in {shown(source)}")
    if report.bad_rows:
        raise _refused(source, "can't be converted", report.bad_rows, report.bad, "Mend these rows")
    if report.lossy_rows and not lossy:
        hint = "Mend these rows, or agree to the loss with lossy=True (zg: --lossy)"
        raise _refused(source, "would lose something", report.lossy_rows, report.lossy, hint)


def _refused(source: Path, what: str, count: int, notes: Sequence[RowNote], hint: str) -> DatasetError:
    told = "; ".join(f"row {note.row}: {printable(note.message)}" for note in notes[:_SHOWN])
    more = f"; and {count - _SHOWN:,} more" if count > _SHOWN else ""
    return DatasetError(
        f"{count:,} rows of {shown(source)} {what}: {told}{more}", rows=[note.row for note in notes], hint=hint
    )
