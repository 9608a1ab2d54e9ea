"""`zg dataset`: look at a dataset before anything is sent."""

import json
from pathlib import Path
from typing import Annotated

import cyclopts
from cyclopts import Parameter

from zg_async.text import printable

app = cyclopts.App(name="dataset", help="Look at a dataset before anything is sent.")


@app.command
async def check(path: Path, *, json_output: Annotated[bool, Parameter(name="--json", negative=())] = False) -> int:
    """Check a JSONL file by the provider's rules. Exits with 1 when the provider would refuse or spoil it.

    Args:
        path: The file.
        json_output: Print the whole report as one JSON object.
    """
    from zg_async.managers.dataset import check_dataset

    report = await check_dataset(path)
    if json_output:
        print(json.dumps(report.to_json(), ensure_ascii=False))
        return 0 if report.is_ok else 1
    print(f"{path}: {report.rows:,} rows, {report.size:,} bytes, format {report.format.value}")
    for mark, issues in (("error", report.errors), ("warning", report.warnings)):
        for issue in issues:
            where = f"row {issue.row}: " if issue.row else ""
            print(f"  {mark}: {where}{printable(issue.message, limit=300)}")
    print("good" if report.is_ok else "the provider would refuse or spoil this")
    return 0 if report.is_ok else 1
