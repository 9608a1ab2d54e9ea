"""The library prints nothing, hides no error, starts no process, and importing it has no effect."""

import ast
import functools
import pathlib
import subprocess
import sys

import pytest

PACKAGE = pathlib.Path(__file__).parents[2] / "zg_async"
LIBRARY = [p for p in PACKAGE.rglob("*.py") if p.relative_to(PACKAGE).parts[0] not in ("cli", "devnet")]


@functools.cache
def _tree(path: pathlib.Path) -> ast.Module:
    return ast.parse(path.read_text())


def _calls(path: pathlib.Path) -> set[str]:
    return {ast.unparse(n.func) for n in ast.walk(_tree(path)) if isinstance(n, ast.Call)}


@pytest.mark.goal("OBS-01", part="standard logging, no prints")
@pytest.mark.goal("TSK-02", part="never reads stdin")
def test_library_never_prints_or_prompts():
    bad = {
        "print",
        "input",
        "getpass.getpass",
        "sys.stdout.write",
        "sys.stderr.write",
        "warnings.warn",
        "pprint.pprint",
    }
    assert [p.name for p in LIBRARY if _calls(p) & bad] == []


@pytest.mark.goal("OBS-01", part="standard logging, no prints")
def test_every_logger_is_a_standard_one_with_the_filter_in_front():
    makers = {p.relative_to(PACKAGE).as_posix() for p in PACKAGE.rglob("*.py") if "logging.getLogger" in _calls(p)}
    assert makers == {"logs.py"}
    users = [p for p in LIBRARY if "get_logger" in _calls(p)]
    assert len(users) > 20
    foreign = {"structlog", "loguru", "twisted"}
    imports = {a.name for p in LIBRARY for n in ast.walk(_tree(p)) if isinstance(n, ast.Import) for a in n.names}
    assert not imports & foreign


@pytest.mark.goal("HRD-25", part="no process, shell, eval, pickle, mktemp")
def test_library_starts_no_process_and_evaluates_nothing():
    bad = {
        "eval",
        "exec",
        "compile",
        "__import__",
        "os.system",
        "os.popen",
        "os.fork",
        "tempfile.mktemp",
        "mktemp",
    }
    modules = ("subprocess.", "pickle.", "marshal.", "shelve.", "os.exec", "os.spawn", "ctypes.")
    found = [(p.name, call) for p in LIBRARY for call in _calls(p) if call in bad or call.startswith(modules)]
    assert found == []


def test_keys_sign_behind_the_audit_log_only():
    found = {
        (path.relative_to(PACKAGE).as_posix(), call.rsplit(".", 1)[1])
        for path in LIBRARY
        for call in _calls(path)
        if call.endswith((".sign_personal", ".sign_transaction", ".sign_digest"))
    }
    assert found == {("managers/context.py", "sign_personal"), ("transport/lane.py", "sign_transaction")}


@pytest.mark.goal("STO-01", part="no subprocess in the code")
def test_library_imports_nothing_that_starts_processes():
    bad = {"subprocess", "multiprocessing", "pty", "cffi", "distutils", "setuptools"}
    found = []
    for path in LIBRARY:
        for node in ast.walk(_tree(path)):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            found += [f"{path.name}: {name}" for name in names if name.split(".")[0] in bad]
    assert found == []


def test_no_broad_except_hides_errors():
    """A handler of everything cleans up and raises again. The exceptions: the runner's edge around a job, and a foreign
    library that raises bare `Exception`."""
    broad = [
        f"{p.relative_to(PACKAGE)}:{n.lineno}"
        for p in LIBRARY
        for n in ast.walk(_tree(p))
        if isinstance(n, ast.ExceptHandler)
        and (n.type is None or ast.unparse(n.type) in ("Exception", "BaseException"))
        and not (isinstance(n.body[-1], ast.Raise) and n.body[-1].exc is None)
        and p.relative_to(PACKAGE).as_posix() not in ("jobs/driver.py", "managers/tokens.py")
    ]
    assert broad == []


@pytest.mark.slow
@pytest.mark.goal("HRD-25", part="importing changes nothing")
def test_importing_every_public_name_touches_no_file_thread_variable_or_handler():
    code = (
        "import os, signal, sys, threading, warnings\n"
        "import importlib, asyncio, ssl\n"
        "def state():\n"
        "    handlers = [signal.getsignal(s) for s in signal.valid_signals() if s not in (9, 19)]\n"
        "    hooks = sys.excepthook, threading.excepthook\n"
        "    return dict(os.environ), os.getcwd(), sys.getrecursionlimit(), handlers, hooks\n"
        "opened = []\n"
        "def watch(event, args):\n"
        "    if event == 'open' and isinstance(args[1], str) and set(args[1]) & set('wax+'):\n"
        "        opened.append(args[0])\n"
        "    if event in ('os.mkdir', 'os.remove', 'os.rename', 'socket.connect', 'subprocess.Popen', 'os.putenv'):\n"
        "        opened.append((event, args))\n"
        "sys.dont_write_bytecode = True\n"
        "before = state()\n"
        "sys.addaudithook(watch)\n"
        "import zg_async, zg_async.sync, zg_async.serve.proxy, zg_async.jobs.runner, zg_async.broker\n"
        "for name in zg_async.__all__:\n"
        "    getattr(zg_async, name)\n"
        "assert state() == before\n"
        "assert threading.active_count() == 1\n"
        "assert opened == [], opened\n"
        "print('quiet')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "quiet\n", done.stderr


@pytest.mark.slow
@pytest.mark.goal("HRD-25", part="importing changes nothing")
def test_import_is_quick_and_without_effect():
    code = (
        "import sys, threading, signal\n"
        "before = (sys.getrecursionlimit(), threading.active_count(), signal.getsignal(signal.SIGINT))\n"
        "import zg_async\n"
        "assert before == (sys.getrecursionlimit(), threading.active_count(), signal.getsignal(signal.SIGINT))\n"
        "heavy = {'web3', 'eth_account', 'aiohttp', 'rich', 'cyclopts', 'numpy', 'eth'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.goal("HRD-25", part="importing changes nothing")
def test_opening_a_broker_leaves_the_recursion_limit_alone():
    code = (
        "import sys\n"
        "before = sys.getrecursionlimit()\n"
        "import zg_async\n"
        "zg_async.create_broker(private_key='0x' + '11' * 32, network='local')\n"
        "assert sys.getrecursionlimit() == before\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
