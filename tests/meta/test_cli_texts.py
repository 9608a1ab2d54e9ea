"""The texts that `zg` answers from before it imports its commands are those of the application."""

import os
import subprocess
import sys

import pytest

from benchmarks import startup
from tests.cli_texts import made
from zg_async.cli.completing import TEXTS


@pytest.mark.slow
@pytest.mark.goal("CLI-11", part="a text made beforehand, held to the app")
def test_help_and_command_table_are_what_the_application_would_say():
    stale = [name for name, text in made().items() if (TEXTS / name).read_text(encoding="utf-8") != text]
    assert stale == [], "run: python -m tests.cli_texts"
    assert sorted(path.name for path in TEXTS.iterdir()) == sorted(made())


@pytest.mark.slow
@pytest.mark.goal("CLI-11", part="nothing large is imported for it")
@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "Usage: zg COMMAND"),
        (["--help"], "whoami"),
        (["-h"], "whoami"),
        (["--version"], "zg-async "),
        (["__complete", "--", "whoa"], "whoami\n"),
    ],
)
def test_what_needs_no_command_is_answered_without_the_commands(words, said):
    code = (
        "import sys; sys.argv = ['zg', *sys.argv[1:]]\n"
        "from zg_async.cli.entry import entry\n"
        "entry()\n"
        "heavy = {'cyclopts', 'rich', 'aiohttp', 'anyio', 'asyncio', 'web3', 'eth_account'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert said in done.stdout


@pytest.mark.slow
@pytest.mark.skipif("ZG_OFFICIAL_CLI" not in os.environ, reason="ZG_OFFICIAL_CLI names no official command line")
@pytest.mark.goal("CLI-11", part="a quarter of the official time in the same run")
def test_help_takes_at_most_a_quarter_of_the_official_time_in_the_same_run():
    best = startup.measure(3, "zg --help", "official --help")
    assert best["zg --help"] <= best["official --help"] / 4, best


@pytest.mark.slow
@pytest.mark.goal("CLI-11", part="import")
def test_the_package_is_imported_in_a_tenth_of_a_second():
    best = startup.measure(5, "python alone", "import zg_async")  # 4 ms where this was written
    assert best["import zg_async"] - best["python alone"] < 0.1, best


@pytest.mark.slow
@pytest.mark.goal("HRD-02", part="no core dumps")
@pytest.mark.skipif(sys.platform == "win32", reason="there are no core dumps")
def test_the_program_leaves_no_core_dump():
    code = (
        "import resource, sys; sys.argv = ['zg', 'profile', 'list']\n"
        "from zg_async.cli import main\n"
        "main.main = lambda: None\n"
        "from zg_async.cli.entry import entry\n"
        "entry()\n"
        "assert resource.getrlimit(resource.RLIMIT_CORE) == (0, 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
