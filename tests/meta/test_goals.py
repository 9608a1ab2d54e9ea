"""Every goal mark names a row of the table."""

import ast
import pathlib

from tests.goals import known_rows, whole_parts

TESTS = pathlib.Path(__file__).parents[1]


def _marks() -> list[tuple[str, str]]:
    found = []
    for path in TESTS.rglob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "goal":
                found.append((path.name, ast.literal_eval(node.args[0])))
    return found


def test_marks_name_known_rows():
    rows = known_rows()
    assert [m for m in _marks() if m[1] not in rows] == []


def test_table_is_whole():
    assert len(known_rows()) > 190


def test_the_parts_of_a_whole_are_marks_that_exist():
    shown = set()
    for path in TESTS.rglob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "goal":
                part = next((k.value for k in node.keywords if k.arg == "part"), None)
                if part is not None:
                    shown.add((ast.literal_eval(node.args[0]), ast.literal_eval(part)))
    wanted = {(row, part) for row, parts in whole_parts().items() for part in parts}
    assert wanted - shown == set()
