"""`zg adapter`: look at a fine-tuned adapter."""

from pathlib import Path
from typing import Annotated

import cyclopts
from cyclopts import Parameter

from zg_async.cli.output import print_json
from zg_async.cli.render import size_text
from zg_async.text import printable

app = cyclopts.App(name="adapter", help="Look at a fine-tuned adapter.")


@app.command
async def show(path: Path, *, json_output: Annotated[bool, Parameter(name="--json")] = False) -> int:
    """Show what an unpacked adapter is, and the lines that load it elsewhere. Loads nothing of it.

    Args:
        path: Its folder, or a job's output folder.
        json_output: Print one JSON object.
    """
    from zg_async.managers.adapter_files import describe_adapter

    adapter = await describe_adapter(path)
    info = adapter.info
    if json_output:
        fields = {
            "path": str(adapter.path),
            "base_model": info.base_model_name,
            "rank": info.rank,
            "alpha": info.alpha,
            "targets": info.targets,
            "parameters": info.parameters,
            "size": info.size,
            "loading_lines": adapter.loading_lines,
        }
        print_json("adapter_files", fields)
        return 0
    rows = {
        "base model": printable(info.base_model_name),
        "rank": f"{info.rank}" + (f", alpha {info.alpha:g}" if info.alpha is not None else ""),
        "targets": printable(", ".join(info.targets), limit=500),
        "size": f"{size_text(info.size)}, {info.parameters:,} parameters in {len(info.tensors)} tensors",
    }
    for name, value in rows.items():
        print(f"{name:<11}{value}")
    print("\nload it elsewhere:")
    for line in adapter.loading_lines:
        print(f"  {printable(line, limit=2000)}")
    return 0
