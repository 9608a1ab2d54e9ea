"""The documents this package answers to, row by row, with the tests that show it: `python -m tests.seed_rows`.

`seed_rows.json` has for each row what it is about, the tests, and, where the document is out of date, what is so today.
The command writes `docs/seed_rows.md` from it; `tests/meta/test_seed_rows.py` holds both to the suite.
"""

import json
from pathlib import Path

ROOT = Path(__file__).parents[1]
ROWS = ROOT / "tests" / "seed_rows.json"
PAGE = ROOT / "docs" / "seed_rows.md"
GROUPS = {
    "C": ("The command line's document", 27),
    "P": ("The Python SDK's document", 40),
    "I": ("The interface documents, both wordings", 18),
    "S": ("Facts of servers and contracts", 17),
}
"""A row's letter to its heading and how many rows there are."""
HEAD = """\
# What the documents ask for, and the tests that show it

Each row of the documents that this package was made from, with the tests that hold it to them. Where a document is out
of date, the row says what is so today, and its tests show that. Made by `python -m tests.seed_rows`; don't edit it.
"""


def rows() -> dict[str, dict]:
    """Row to `says`, `tests` and perhaps `now`."""
    return json.loads(ROWS.read_text())


def every_row() -> list[str]:
    return [f"{letter}-{number:02}" for letter, (_, count) in GROUPS.items() for number in range(1, count + 1)]


def page() -> str:
    """What `docs/seed_rows.md` has to be."""
    known = rows()
    parts = [HEAD]
    for letter, (heading, _) in GROUPS.items():
        parts += [f"## {heading}", "| Row | What | Tests |\n|---|---|---|"]
        lines = [_line(row, known[row]) for row in known if row.startswith(f"{letter}-")]
        parts[-1] += "\n" + "\n".join(lines)
    return "\n\n".join(part.rstrip("\n") for part in parts) + "\n"


def _line(row: str, value: dict) -> str:
    says = value["says"] + (f". Today: {value['now']}" if "now" in value else "")
    return f"| {row} | {says} | {'<br>'.join(map(_link, value['tests']))} |"


def _link(test: str) -> str:
    file, name = test.split("::")
    return f"[`{name.removeprefix('test_')}`](../{file})"


if __name__ == "__main__":
    PAGE.write_text(page())
