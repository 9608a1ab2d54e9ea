"""The goal table against the suite: `python -m tests.goals [ROW ...] [--no-run]`.

Prints each row of `tests/goals.json` with the tests that are marked with it and whether they pass. A row is
`pass` when it has a test for the whole of it, or one for each of the parts that `tests/goal_parts.json` says make up
the whole, and all of them passed; `part` when only parts are shown, `FAIL` when one failed, `-` when it has none. Runs
the suite to know; `--no-run` uses the report of the last run.
"""

import collections
import json
import pathlib
import subprocess
import sys

HERE = pathlib.Path(__file__).parent
TABLE = HERE / "goals.json"
PARTS = HERE / "goal_parts.json"
REPORT = HERE.parent / ".goals-report.json"


def note_marks(items) -> None:  # type: ignore[no-untyped-def]
    """Put each test's goal marks where its reports carry them, also out of a worker process."""
    for item in items:
        item.user_properties += [("goal", (m.args[0], m.kwargs.get("part"))) for m in item.iter_markers("goal")]


class Collector:
    """A pytest plugin: writes for each marked test its rows and its outcome."""

    def __init__(self) -> None:
        self.rows: dict[str, list[tuple[str, str | None]]] = {}
        self.outcomes: dict[str, str] = {}

    def pytest_runtest_logreport(self, report) -> None:  # type: ignore[no-untyped-def]
        marks = [value for name, value in report.user_properties if name == "goal"]
        if marks:
            self.rows[report.nodeid] = marks
        if report.failed:
            self.outcomes[report.nodeid] = "failed"
        elif report.when == "call" or report.skipped:
            self.outcomes.setdefault(report.nodeid, report.outcome)

    def pytest_sessionfinish(self) -> None:
        tests = {
            node: {"rows": rows, "outcome": self.outcomes.get(node, "not run")} for node, rows in self.rows.items()
        }
        REPORT.write_text(json.dumps(tests, indent=0))


def known_rows() -> dict[str, dict[str, object]]:
    return {row["id"]: row for row in json.loads(TABLE.read_text())}


def whole_parts() -> dict[str, list[str]]:
    """Row to the parts that together are its whole "done means"."""
    return json.loads(PARTS.read_text())


def verdict(tests: list[tuple[str, str | None, str]], parts: list[str]) -> str:
    if any(outcome == "failed" for _, _, outcome in tests):
        return "FAIL"
    shown = {part for _, part, outcome in tests if outcome == "passed"}
    if None in shown or (parts and shown.issuperset(parts)):
        return "pass"
    return "part" if any(outcome == "passed" for _, _, outcome in tests) else ("skip" if tests else "-")


def main(arguments: list[str]) -> int:
    wanted = [a for a in arguments if not a.startswith("-")]
    if "--no-run" not in arguments:
        run = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-n", "3", "--dist", "loadfile", "--goals"],
            cwd=HERE.parent,
            check=False,
        )
        if run.returncode not in (0, 1):
            return run.returncode
    by_row: dict[str, list[tuple[str, str | None, str]]] = collections.defaultdict(list)
    for node, test in json.loads(REPORT.read_text()).items():
        for row, part in test["rows"]:
            by_row[row].append((node, part, test["outcome"]))
    parts = whole_parts()
    counts: collections.Counter[str] = collections.Counter()
    for row_id, row in known_rows().items():
        if wanted and row_id not in wanted:
            continue
        result = verdict(by_row[row_id], parts.get(row_id, []))
        counts[result] += 1
        print(f"{result:4}  {row_id}  {row['feature']}")
        for node, part, outcome in sorted(by_row[row_id]):
            print(f"        {outcome:7} {node}{f'  (part: {part})' if part else ''}")
    print(", ".join(f"{n} {name}" for name, n in sorted(counts.items())))
    return 1 if counts["FAIL"] else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
