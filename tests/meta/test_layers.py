"""Imports go downwards only, and each foreign library has one door."""

import ast
import functools
import pathlib

import pytest

PACKAGE = pathlib.Path(__file__).parents[2] / "zg_async"

LAYERS = [
    [
        "errors",
        "units",
        "clock",
        "background",
        "text",
        "paths",
        "file_lock",
        "networks",
        "correlation",
        "logs",
        "tracing",
        "metrics",
        "showing",
    ],
    ["wire"],
    ["transport"],
    ["managers"],
    ["broker"],
    ["jobs"],
    ["serve"],
    ["cli"],
]
DOORS = {
    "web3": {"transport/rpc.py"},
    "tenacity": {"transport/retry.py"},
    "eth_account": {"transport/signer.py", "transport/keystore.py"},
    "aiohttp": {"transport/http.py", "transport/answers.py", "transport/egress.py", "transport/rpc.py", "serve/"},
    "sqlite3": {"transport/sqlite_outbox.py", "transport/outbox.py", "jobs/sqlite.py", "file_lock.py"},
    "asyncio": {"background.py", "cli/main.py"},
    "cyclopts": {"cli/"},
    "tokenizers": {"managers/tokens.py"},
    "opentelemetry": set(),
    "rich": {"cli/"},
}


def _modules() -> list[pathlib.Path]:
    return sorted(PACKAGE.rglob("*.py"))


@functools.cache
def _imports(path: pathlib.Path) -> list[tuple[str, bool]]:
    """Imported modules, and whether only for types."""
    tree = ast.parse(path.read_text())
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(a.name, id(node) in typing_only) for a in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.append((node.module, id(node) in typing_only))
            found += [(f"{node.module}.{a.name}", id(node) in typing_only) for a in node.names]
    return found


def _layer(module: str) -> int | None:
    parts = module.split(".")
    if parts[0] != "zg_async" or len(parts) < 2:
        return None
    return next((i for i, names in enumerate(LAYERS) if parts[1] in names), None)


def test_imports_go_down():
    breaches = []
    for path in _modules():
        relative = path.relative_to(PACKAGE)
        own = _layer("zg_async." + ".".join(relative.with_suffix("").parts))
        if own is None:
            continue
        for module, _ in _imports(path):
            other = _layer(module)
            if other is not None and other > own:
                breaches.append(f"{relative} imports {module}")
    assert breaches == []


def test_devnet_is_imported_by_the_command_line_only():
    users = [
        str(p.relative_to(PACKAGE))
        for p in _modules()
        if p.relative_to(PACKAGE).parts[0] not in ("devnet", "cli")
        and any(m.startswith("zg_async.devnet") for m, _ in _imports(p))
    ]
    assert users == []


def test_devnet_knows_nothing_of_the_client():
    allowed = {"wire", "devnet", *LAYERS[0]}
    users = [
        f"{p.relative_to(PACKAGE)}: {m}"
        for p in _modules()
        if p.relative_to(PACKAGE).parts[0] == "devnet"
        for m, _ in _imports(p)
        if m.startswith("zg_async.") and m.split(".")[1] not in allowed
    ]
    assert users == []


@pytest.mark.parametrize("library", sorted(DOORS))
def test_library_has_one_door(library):
    users = {
        p.relative_to(PACKAGE).as_posix()
        for p in _modules()
        if p.relative_to(PACKAGE).parts[0] != "devnet"
        for m, typing_only in _imports(p)
        if m.split(".")[0] == library and not typing_only
    }
    doors = DOORS[library]
    assert {u for u in users if u not in doors and not any(d.endswith("/") and u.startswith(d) for d in doors)} == set()


def test_no_module_of_a_layer_is_imported_in_a_circle():
    graph = {}
    for path in _modules():
        name = "zg_async." + ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        name = name.removesuffix(".__init__")
        graph[name] = {m for m, typing_only in _imports(path) if m.startswith("zg_async") and not typing_only}
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, f"circle: {' -> '.join((*trail, name))}"
        if name in done or name not in graph:
            return
        for other in graph[name]:
            if other != name and other in graph:
                visit(other, (*trail, name))
        done.add(name)

    for name in graph:
        if name != "zg_async":
            visit(name, ())
