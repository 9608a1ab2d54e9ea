"""Make the reference of public names and commands: `python docs/build_reference.py` writes docs/reference.md.

It also writes docs/json.md's tables of what streams print.

What it says is in the code: names from `zg_async.__all__`, signatures as they are written there, first paragraphs of
docstrings, and of commands the first line of their help. Sources are parsed, so that each Python makes the same page.
"""

import ast
import copy
import dataclasses
import functools
import inspect
import re
import sys
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import TypeVar

import zg_async
from zg_async.cli.main import make_app
from zg_async.jobs.events import Event, UnknownEvent
from zg_async.managers.fine_tuning import FineTuningManager
from zg_async.managers.inference import InferenceManager
from zg_async.managers.ledger import LedgerManager
from zg_async.managers.lora import LoraManager
from zg_async.managers.storage import StorageManager
from zg_async.managers.task_changes import TaskChange, TaskMetric

PAGE = Path(__file__).with_name("reference.md")
JSON_PAGE = Path(__file__).with_name("json.md")
STREAMS = {
    "job events": ({*typing.get_args(Event)} - {UnknownEvent}, {"seq", "job_id", "at"}),
    "task changes": (
        {*typing.get_args(TaskChange)} - {TaskMetric},  # which no command prints as it is
        {"id", "at", "source", "provider", "task_id", "cursor"},
    ),
}
"""The kinds of docs/json.md's streams, and the fields that all of them have."""
MANAGERS = {
    "broker.ledger": LedgerManager,
    "broker.fine_tuning": FineTuningManager,
    "broker.inference": InferenceManager,
    "broker.inference.lora": LoraManager,
    "broker.storage": StorageManager,
}
HEAD = """\
# Reference

Every public name of `zg_async`, by the module it is in, the methods of a broker's managers, and the commands. All names
are imported from `zg_async` itself. Units, errors and what is returned stand in the docstrings: `help(name)`. Made by
`python docs/build_reference.py`; don't edit it.
"""
T = TypeVar("T", bound=ast.AST)
Function = ast.FunctionDef | ast.AsyncFunctionDef


def page() -> str:
    """Return what docs/reference.md has to be."""
    parts = [HEAD, "## The broker's managers", *_managers(), *_modules(), "## Commands", "\n".join(_commands())]
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


# ---- what streams print


def json_page() -> str:
    """Return what docs/json.md has to be."""
    text = JSON_PAGE.read_text(encoding="utf-8")
    for name, (classes, common) in STREAMS.items():
        rows = "\n".join(sorted(_row(cls, common) for cls in classes))
        table = f"<!-- made of the {name} -->\n| kind | meaning | fields |\n|---|---|---|\n{rows}\n<!-- end -->"
        text = re.sub(f"<!-- made of the {name} -->.*?<!-- end -->", lambda _, t=table: t, text, flags=re.DOTALL)
    return text


def _row(cls: type, common: set[str]) -> str:
    fields = {field.name: field.default for field in dataclasses.fields(cls)}
    own = [f"`{name}`" for name in fields if name not in {*common, "kind"}]
    return f"| `{fields['kind']}` | {_first_paragraph(cls).rstrip('.')} | {', '.join(own) or 'none'} |"


# ---- managers and modules


def _managers() -> Iterator[str]:
    for place, manager in MANAGERS.items():
        yield f"### `{place}`"
        yield _first_paragraph(manager)
        yield "\n".join(_methods(manager))


def _modules() -> Iterator[str]:
    homes: dict[str, list[str]] = {}
    for name in zg_async.__all__:
        home = zg_async._HOME.get(name)
        if home is not None and getattr(zg_async, name) not in MANAGERS.values():
            homes.setdefault(home, []).append(name)
    for home in sorted(homes):
        yield f"## `{home}`"
        for name in homes[home]:
            yield from _entry(sys.modules[home], name)


def _entry(home: ModuleType, name: str) -> Iterator[str]:
    value = getattr(home, name)
    yield f"### `{name}`"
    if inspect.isclass(value):
        yield from _class(value)
    elif inspect.isfunction(value):
        node = _definition(value)
        yield _text(_signature(node, drop_first=False))
        yield _first_paragraph(value)
    else:
        yield from _constant(home, name)


def _class(kind: type) -> Iterator[str]:
    if issubclass(kind, BaseException):
        bases = ", ".join(f"`{base.__name__}`" for base in kind.__bases__)
        code = f", code `{kind.code}`" if issubclass(kind, zg_async.ZgError) else ""
        yield f"A {bases}{code}."
        yield _first_paragraph(kind)
        return
    yield _first_paragraph(kind)
    if fields := list(_fields(kind)):
        yield _text("\n".join(fields))
    made = next((n for n in _functions(kind) if n.name == "__init__"), None)
    if made is not None and not fields:
        yield _text(_signature(made, name=kind.__name__))
    if methods := list(_methods(kind)):
        yield "\n".join(methods)


def _constant(home: ModuleType, name: str) -> Iterator[str]:
    body = _tree(home).body
    for number, node in enumerate(body):
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if isinstance(node, ast.Assign | ast.AnnAssign) and any(getattr(t, "id", None) == name for t in targets):
            written = ast.unparse(node.value) if node.value is not None else ""
            if len(written) > 1000 and isinstance(node, ast.AnnAssign):
                yield _text(f"{name}: {ast.unparse(node.annotation)}")
            else:
                yield _text(f"{name} = {written}")
            after = body[number + 1] if number + 1 < len(body) else None
            if (
                isinstance(after, ast.Expr)
                and isinstance(after.value, ast.Constant)
                and isinstance(after.value.value, str)
            ):
                yield _paragraph(after.value.value)


# ---- what stands in the source


@functools.cache
def _tree(module: ModuleType) -> ast.Module:
    return ast.parse(Path(inspect.getfile(module)).read_text(encoding="utf-8"))


def _definition(value: Callable[..., object]) -> Function:
    tree = _tree(sys.modules[value.__module__])
    return next(n for n in tree.body if isinstance(n, Function) and n.name == value.__name__)


def _bodies(kind: type) -> Iterator[list[ast.stmt]]:
    """Yield the bodies of a class and its bases of this package, the nearest first."""
    for one in kind.__mro__:
        if one.__module__.startswith("zg_async."):
            nodes = ast.walk(_tree(sys.modules[one.__module__]))
            yield next(n for n in nodes if isinstance(n, ast.ClassDef) and n.name == one.__name__).body


def _functions(kind: type) -> Iterator[Function]:
    seen: set[str] = set()
    for body in _bodies(kind):
        for node in body:
            if isinstance(node, Function) and node.name not in seen:
                seen.add(node.name)
                yield node


def _fields(kind: type) -> Iterator[str]:
    """Yield the fields of a record, the members of an enumeration: what is assigned in the class, bases first."""
    found: dict[str, str] = {}
    for body in reversed(list(_bodies(kind))):
        for node in body:
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                found[node.target.id] = ast.unparse(_plain(node))
            elif isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
                found[node.targets[0].id] = ast.unparse(node)
    return (text for name, text in found.items() if not name.startswith("_"))


def _methods(kind: type) -> Iterator[str]:
    """Yield a line for each public method, in the order of their names."""
    for node in sorted(_functions(kind), key=lambda n: n.name):
        if node.name.startswith("_"):
            continue
        decorators = {ast.unparse(d) for d in node.decorator_list}
        if "property" in decorators:
            result = f": {ast.unparse(_plain(node).returns)}" if node.returns is not None else ""
            yield f"- `{node.name}{result}`. {_paragraph(ast.get_docstring(node) or '')}"
        elif not any(d.endswith(".setter") or d == "overload" for d in decorators):
            text = _signature(node, drop_first="staticmethod" not in decorators)
            yield f"- `{text}`. {_paragraph(ast.get_docstring(node) or '')}"


def _signature(node: Function, *, name: str = "", drop_first: bool = True) -> str:
    node = _plain(node)
    if drop_first:
        (node.args.posonlyargs or node.args.args).pop(0)
    if name:
        return f"{name}({ast.unparse(node.args)})"
    result = f" -> {ast.unparse(node.returns)}" if node.returns is not None else ""
    awaited = "await " if isinstance(node, ast.AsyncFunctionDef) else ""
    return f"{awaited}{node.name}({ast.unparse(node.args)}){result}"


class _Unquoted(ast.NodeTransformer):
    """Takes the quotes off annotations that name what is defined later."""

    def visit_Constant(self, node: ast.Constant) -> ast.expr:
        return ast.parse(node.value, mode="eval").body if isinstance(node.value, str) else node

    def visit_Subscript(self, node: ast.Subscript) -> ast.expr:
        if ast.unparse(node.value).endswith("Literal"):
            return node
        return self.generic_visit(node)


def _plain(node: T) -> T:
    node = copy.deepcopy(node)
    for part in ast.walk(node):
        for place in ("annotation", "returns"):
            if (annotation := getattr(part, place, None)) is not None:
                setattr(part, place, _Unquoted().visit(annotation))
    return node


# ---- words


def _paragraph(text: str) -> str:
    first = inspect.cleandoc(text).split("\n\n")[0].splitlines()
    return " ".join(line.strip() for line in first).replace("<", "&lt;")


def _first_paragraph(value: object) -> str:
    return _paragraph(value.__doc__ or "")


def _text(code: str) -> str:
    return f"```text\n{code}\n```"


# ---- commands


def _commands() -> Iterator[str]:
    yield "`zg COMMAND --help` has each command's flags.\n"
    yield from _of_app(make_app(), "zg")


def _of_app(app: object, path: str) -> Iterator[str]:
    for name in sorted(n for n in app if not n.startswith("-")):
        sub = app[name]
        if sub.show:
            lines = list(_of_app(sub, f"{path} {name}"))
            yield from lines or [f"- `{path} {name}`: {_paragraph(sub.help)}"]


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    JSON_PAGE.write_text(json_page(), encoding="utf-8")
