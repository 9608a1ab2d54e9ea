"""Record `zg demo` as a picture: `python docs/record_demo.py` writes docs/demo.svg from what a run prints."""

import re
import subprocess
import sys
import tempfile
from io import StringIO
from pathlib import Path

from rich.console import Console
from rich.text import Text

PICTURE = Path(__file__).with_name("demo.svg")
WIDTH = 108


def main() -> None:
    """Run the demo in a folder of its own and draw its lines."""
    command = [sys.executable, "-m", "zg_async.cli.main", "demo", "--out", "out"]
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(command, cwd=folder, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, check=True)
    console = Console(record=True, width=WIDTH, file=StringIO(), force_terminal=True, highlight=False)
    console.print(Text.assemble(("$ ", "dim"), "zg demo"))
    for line in done.stderr.decode().replace(folder, ".").splitlines():
        text = Text(line)
        text.highlight_regex("✓", "green")
        text.highlight_regex(r"\d+(\.\d+)? s$", "dim")
        console.print(text)
    picture = re.sub(r"@font-face \{.*?\}\s*", "", console.export_svg(title="zg demo"), flags=re.DOTALL)  # asks no host
    picture = re.sub(r"<!--.*?-->\s*", "", picture, flags=re.DOTALL)
    PICTURE.write_text(picture.replace("Fira Code", "ui-monospace"), encoding="utf-8")


if __name__ == "__main__":
    main()
