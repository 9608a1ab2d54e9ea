"""`zg dataset`: look at a dataset before anything is sent, and bring it into another shape."""

import dataclasses
from pathlib import Path
from typing import Annotated

import cyclopts
from cyclopts import Parameter

from zg_async.cli.output import UsageError, print_json, table
from zg_async.text import printable
from zg_async.wire.rows_convert import RowShape

app = cyclopts.App(name="dataset", help="Look at a dataset, or convert it, before anything is sent.")
Json = Annotated[bool, Parameter(name="--json")]


@app.command
async def check(path: Path, *, json_output: Json = False) -> int:
    """Check a JSONL file by the provider's rules. Exits with 1 when the provider would refuse or spoil it.

    Args:
        path: The file.
        json_output: Print the whole report as one JSON object.
    """
    from zg_async.managers.dataset import check_dataset

    report = await check_dataset(path)
    if json_output:
        print_json("dataset_report", report.to_json())
        return 0 if report.is_ok else 1
    print(f"{path}: {report.rows:,} rows, {report.size:,} bytes, format {report.format.value}")
    for mark, issues in (("error", report.errors), ("warning", report.warnings)):
        for issue in issues:
            where = f"row {issue.row}: " if issue.row else ""
            print(f"  {mark}: {where}{printable(issue.message, limit=300)}")
    print("good" if report.is_ok else "the provider would refuse or spoil this")
    return 0 if report.is_ok else 1


@app.command
async def convert(
    source: Path,
    target: Path,
    *,
    to: RowShape,
    rename: Annotated[tuple[str, ...], Parameter(name="--map")] = (),
    lossy: bool = False,
    json_output: Json = False,
) -> int:
    """Write a JSONL file anew in another shape. Nothing is overwritten, and no row loses anything unless agreed to.

    Args:
        source: The file.
        target: The new file.
        to: What its rows are to be.
        rename: A key and its new name, as question=instruction; may be given several times.
        lossy: Agree to rows that lose something, e.g. a chat's earlier turns.
        json_output: Print the report as one JSON object.
    """
    from zg_async.managers.dataset_convert import convert_dataset

    names = dict(_pair(text) for text in rename)
    report = await convert_dataset(source, target, to=to, rename=names, lossy=lossy)
    if json_output:
        print_json("dataset_conversion", report.to_json())
        return 0
    were = ", ".join(f"{count:,} {shape.value}" for shape, count in report.shapes.items())
    print(f"{target}: {report.rows:,} {report.to.value} rows (they were: {were})")
    for note in report.lossy:
        print(f"  warning: row {note.row}: {printable(note.message, limit=300)}")
    return 0


@app.command
async def count(path: Path, *, tokenizer: Path | None = None, storage: bool = False, json_output: Json = False) -> int:
    """Count a dataset's tokens by the provider's rule, for one epoch.

    Args:
        path: The file.
        tokenizer: The model's tokenizer.json; without it the answer is a range.
        storage: It goes to 0G Storage and not into a provider's TEE.
        json_output: Print one JSON object.
    """
    from zg_async.cli.fine_tuning import count_fields, count_text
    from zg_async.managers.tokens import count_tokens

    counted = await count_tokens(path, tokenizer=tokenizer, tee=not storage)
    if json_output:
        print_json("token_count", {"model": None, **count_fields(counted)})
    else:
        print(count_text(counted))
    return 0


@app.command
async def preview(path: Path, *, json_output: Json = False) -> int:
    """Show the first rows as the provider will see them. Exits with 1 when it would refuse or spoil the dataset.

    Args:
        path: The file.
        json_output: Print one JSON object.
    """
    from zg_async.managers.dataset import check_dataset

    report = await check_dataset(path)
    if json_output:
        rows = [dataclasses.asdict(row) for row in report.preview]
        print_json("dataset_preview", {"format": report.format.value, "rows": report.rows, "items": rows})
        return 0 if report.is_ok else 1
    for row in report.preview:
        seen = (("instruction", row.instruction), ("input", row.input), ("output", row.output))
        print(table([(name, text) for name, text in seen], title=f"row {row.row}"))
    print(f"{report.rows:,} rows, format {report.format.value}")
    return 0 if report.is_ok else 1


def _pair(text: str) -> tuple[str, str]:
    old, _, new = text.partition("=")
    if not old or not new:
        raise UsageError(f"--map {printable(text, limit=80)!r} names no two keys; for example --map answer=output")
    return old, new
