"""Public is what `__all__` lists."""

import ast
import pathlib

import zg_async

PACKAGE = pathlib.Path(zg_async.__file__).parent


def test_all_is_sorted_and_importable():
    assert zg_async.__all__ == sorted(zg_async.__all__)
    assert [n for n in zg_async.__all__ if not hasattr(zg_async, n)] == []


def test_dir_lists_all():
    assert set(zg_async.__all__) <= set(dir(zg_async))


def test_every_public_name_has_a_docstring():
    bare = [n for n in zg_async.__all__ if not getattr(zg_async, n).__doc__ and not n.startswith("__")]
    assert bare == []


def test_every_error_is_public():
    tree = ast.parse((PACKAGE / "errors.py").read_text())
    errors = {n.name for n in tree.body if isinstance(n, ast.ClassDef)}
    assert errors - set(zg_async.__all__) == set()


def test_error_codes_are_unique_and_stable_names():
    classes = [getattr(zg_async, n) for n in zg_async.__all__ if n.endswith("Error")]
    codes = [c.code for c in classes if issubclass(c, zg_async.ZgError)]
    assert len(codes) == len(set(codes))
    assert all(c.replace("_", "").isalpha() and c.islower() for c in codes)


def test_type_checkers_see_the_same_names():
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    block = next(n for n in tree.body if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING")
    typed = {
        (n.module, a.name) for n in block.body if isinstance(n, ast.ImportFrom) for a in n.names if a.asname == a.name
    }
    assert typed == {(home, name) for home, names in zg_async._HOMES.items() for name in names}
