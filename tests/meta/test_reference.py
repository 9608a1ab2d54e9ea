"""The reference is what the code says now."""

import importlib.util
import inspect
from pathlib import Path

import pytest

import zg_async
from zg_async.managers.fine_tuning import FineTuningManager

SCRIPT = Path(__file__).parents[2] / "docs" / "build_reference.py"


@pytest.fixture(scope="module")
def reference():
    spec = importlib.util.spec_from_file_location("build_reference", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.goal("CLI-12", part="help and documents from one source")
@pytest.mark.goal("CLI-01", part="what streams print is documented")
def test_the_reference_is_what_the_code_says(reference):
    made = reference.page()
    if reference.PAGE.read_text(encoding="utf-8") != made:
        pytest.fail("docs/reference.md is out of date: run `python docs/build_reference.py` and commit what it writes")
    assert made == reference.page()
    if reference.JSON_PAGE.read_text(encoding="utf-8") != reference.json_page():
        pytest.fail("docs/json.md is out of date: run `python docs/build_reference.py` and commit what it writes")


def test_it_has_every_public_name_and_every_method_of_a_manager(reference):
    lines = set(reference.PAGE.read_text(encoding="utf-8").splitlines())
    managers = {manager.__name__ for manager in reference.MANAGERS.values()}
    names = set(zg_async.__all__) - managers - {"__version__"}
    assert [name for name in sorted(names) if f"### `{name}`" not in lines] == []
    methods = [n for n, m in inspect.getmembers(FineTuningManager, inspect.isfunction) if not n.startswith("_")]
    assert len(methods) > 30
    assert [n for n in methods if not any(f"`{n}(" in line or f" {n}(" in line for line in lines)] == []


def test_a_class_of_another_package_has_no_source_here(reference):
    assert list(reference._methods(Path)) == []


def test_annotations_lose_their_quotes_and_literals_keep_theirs(reference):
    tree = reference.ast.parse("async def f(self, a: 'A | None', b: Literal['x', 'y'] = 'x') -> 'list[B]': ...")
    assert reference._signature(tree.body[0]) == "await f(a: A | None, b: Literal['x', 'y']='x') -> list[B]"
