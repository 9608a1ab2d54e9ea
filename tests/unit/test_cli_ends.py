"""How commands end: exit codes, one line that says what to do, and never a question without a terminal."""

import contextlib
import inspect
import json
import os
import signal
import subprocess
import sys

import pytest

import zg_async.errors
from zg_async.cli import main as cli
from zg_async.cli.main import COMMANDS, app, run
from zg_async.cli.opening import Where
from zg_async.cli.output import UsageError, confirm, table
from zg_async.cli.render import EXIT_CODES, exit_code
from zg_async.errors import ProviderRejectedError, ZgError

SECRETS = "ZG_PRIVATE_KEY", "PRIVATE_KEY", "NETWORK", "ZG_RPC_ENDPOINT", "RPC_ENDPOINT", "RPC_URL"
DOCUMENTED = {1, 3, 4, 5, 6, 7, 8, 70}


class Closed:
    """A standard input that nobody may ask."""

    def isatty(self) -> bool:
        return False

    def __getattr__(self, name: str) -> object:
        raise AssertionError(f"standard input was asked: {name}")


@pytest.fixture(autouse=True)
def bare(monkeypatch, tmp_path):
    for name in [*SECRETS, *(n for n in os.environ if n.startswith("ZG_"))]:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ZG_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stdin", Closed())


def required(words: str) -> list[str]:
    """The first names of the flags a command can't do without."""
    _, apps, _ = app.parse_commands(words.split())
    found = apps[-1].assemble_argument_collection()
    return [a.names[0] for a in found if a.required and a.names and a.names[0].startswith("--")]


@pytest.mark.goal("CLI-02", part="missing input names the flag and nothing asks")
@pytest.mark.parametrize(
    "words", [words for words, target in COMMANDS if not target.endswith(":app") and required(words)]
)
def test_without_terminal_and_input_a_command_names_what_is_missing(words, capsys):
    flags = required(words)
    assert run(words.split()) == 2
    told = capsys.readouterr()
    assert (told.out, told.err.count("\n")) == ("", 1)
    assert any(flag in told.err for flag in flags), told.err
    assert run([*words.split(), "--json"]) == 2
    told = capsys.readouterr()
    assert json.loads(told.out) | {"message": ""} == {
        "version": 1,
        "kind": "error",
        "code": "usage",
        "message": "",
        "hint": None,
        "exit_code": 2,
    }


@pytest.mark.goal("CLI-02", part="missing input names the flag and nothing asks")
@pytest.mark.parametrize(
    ("words", "code", "flag"),
    [
        ("login", 8, "--key-file"),
        ("wallet import", 8, "--key-file"),
        ("wallet new", 8, "--password-fd"),
        ("setup-network", 2, "--network"),
        ("logout", 8, "wallet"),
        ("get-account --network local", 8, "--wallet"),
    ],
)
def test_commands_that_ask_on_a_terminal_name_the_flag_without_one(words, code, flag, capsys):
    assert run(words.split()) == code
    told = capsys.readouterr()
    assert (told.out, told.err.count("\n"), flag in told.err) == ("", 1, True), told.err


@pytest.mark.goal("CLI-02", part="yes skips confirmations")
def test_what_would_be_asked_needs_yes_where_nobody_can_be_asked(monkeypatch):
    with pytest.raises(UsageError, match="--yes"):
        confirm(Where(), "Go on?")
    confirm(Where(yes=True), "Go on?")


@pytest.mark.parametrize(
    ("answer", "agreed"), [("y\n", True), ("yes\n", True), ("\n", False), ("no\n", False), ("", False)]
)
def test_on_a_terminal_the_answer_counts_and_silence_is_a_no(monkeypatch, capsys, answer, agreed):
    class Terminal:
        def isatty(self):
            return True

        def readline(self):
            return answer

    monkeypatch.setattr(sys, "stdin", Terminal())
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with contextlib.nullcontext() if agreed else pytest.raises(UsageError, match="not agreed"):
        confirm(Where(), "Go on?")
    assert "Go on? [y/N]" in capsys.readouterr().err


@pytest.mark.goal("CLI-13", part="every error has a documented code")
def test_every_error_ends_with_a_documented_code():
    classes = [c for _, c in inspect.getmembers(zg_async.errors, inspect.isclass) if issubclass(c, ZgError)]
    assert len(classes) > 40
    for kind in classes:
        error = kind.__new__(kind, "text")
        ZgError.__init__(error, "text")
        error.body = ""  # type: ignore[attr-defined]
        assert exit_code(error) in DOCUMENTED, kind
    listed = [kind for kinds, _ in EXIT_CODES for kind in kinds]
    assert len(set(listed)) == len(listed)
    for number, kind in enumerate(listed):  # nothing is hidden behind a parent that comes first
        assert not any(issubclass(kind, earlier) for earlier in listed[:number]), kind
    refused = ProviderRejectedError("refused", status=400, body="insufficient balance: 0")
    assert (exit_code(refused), exit_code(ProviderRejectedError("refused", status=400))) == (4, 7)


@pytest.mark.goal("CLI-13", part="real ends")
@pytest.mark.goal("CLI-12", part="unknown commands and flags")
@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        ("--version", 0, None),
        ("depost", 2, 'Did you mean "deposit"'),
        ("ft lst-tasks", 2, 'Did you mean "list-tasks"'),
        ("devnet start", 2, "`zg devnet --help` lists what there is"),
        ("doctor", 2, "--provider is missing. `zg doctor --help`"),
        ("doctor --provider", 2, "--provider requires an argument"),
        ("deposit --amount three", 2, "not an amount"),
        ("deposit --amount 3 --gas-price x", 2, "--gas-price"),
        ("transfer-fund --provider 0x12 --amount 1", 2, "--provider"),
        ("transfer-fund --providr 0x12 --amount 1", 2, "Did you mean --provider instead of --providr?"),
        ("deposit --amount 3 --key 0x11", 2, "ZG_PRIVATE_KEY"),
        ("get-account --network local", 8, "ZG_PRIVATE_KEY"),
        ("list-providers --network nowhere", 8, "mainnet"),
        ("list-providers --network local --rpc http://127.0.0.1:1", 3, "127.0.0.1"),
        ("dataset check nothing.jsonl", 8, "nothing.jsonl"),
        ("inf view-log --component broker --filename x --lines many", 2, "--lines"),
    ],
)
def test_a_mistake_ends_with_its_code_and_one_line(words, code, text, capsys):
    assert run(words.split()) == code
    told = capsys.readouterr()
    assert "Traceback" not in told.out + told.err
    if text is not None:
        assert (told.err.count("\n"), text in told.err) == (1, True), told.err


@pytest.mark.goal("CLI-12", part="retired flags")
def test_a_retired_flag_is_named_with_what_replaced_it(capsys):
    for flag, instead in cli.RETIRED.items():
        assert run(["get-account", flag, "0x00"]) == 2
        assert capsys.readouterr().err.startswith(f"error: {flag} is gone: {instead}")
        assert run(["deposit", f"{flag}=0x00"]) == 2
        assert capsys.readouterr().err.startswith(f"error: {flag} is gone: {instead}")
    assert run(["run", "--key", "one"]) == 2  # which is a flag of its own there
    assert "--model is missing" in capsys.readouterr().err


def leaves(group, words=()):
    """Every command with its words, other spellings left out."""
    done = set()
    for name, sub in group.resolved_commands().items():
        if name.startswith("-") or id(sub) in done:
            continue
        done.add(id(sub))
        if sub.default_command is not None:
            yield (*words, name), sub
        yield from leaves(sub, (*words, name))


@pytest.mark.slow
@pytest.mark.goal("CLI-01", part="every command takes it")
def test_every_command_takes_json_and_says_what_it_does():
    found = dict(leaves(app))
    assert len(found) > 100
    lacking = [words for words, sub in found.items() if "--json" not in flags_of(sub)]
    assert lacking == []
    assert [words for words, sub in found.items() if not sub.help] == []


def flags_of(sub) -> set[str]:
    return {name for argument in sub.assemble_argument_collection() for name in argument.names}


def test_the_help_of_a_group_describes_its_commands(capsys):
    assert run(["ft", "--help"]) == 0
    assert "Cancel a task; possible until its training starts." in " ".join(
        capsys.readouterr().out.replace("│", " ").split()
    )


def test_a_table_folds_on_a_narrow_terminal_and_nowhere_else(monkeypatch, capsys):
    rows = [("0x" + "ab" * 32, "✓"), ("\x1b[2Jevil", "")]
    wide = table(rows, ("Root Hash", "Access Confirmed"))
    assert rows[0][0] in wide
    assert "\x1b" not in wide
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "60")
    narrow = table(rows, ("Root Hash", "Access Confirmed"))
    assert max(map(len, narrow.splitlines())) == 60
    assert "".join(line[2:].split(" ")[0] for line in narrow.splitlines() if line[2:3] in "0ab").startswith("0xab")


@pytest.mark.goal("CLI-13", part="bugs and time-outs")
def test_a_bug_is_one_line_and_shows_its_place_only_when_asked(monkeypatch, capsys):
    def broken(_):
        raise ZeroDivisionError("by nothing")

    monkeypatch.setattr("zg_async.wire.inference_api.adapter_name", lambda *_: broken(None))
    words = ["ft", "get-adapter-name", "--model", "m", "--task-id", "t"]
    assert run(words) == 70
    told = capsys.readouterr()
    assert (told.err.count("\n"), "ZeroDivisionError: by nothing" in told.err) == (1, True)
    assert run([*words, "--debug"]) == 70
    assert "Traceback" in capsys.readouterr().err
    for error, code in ((TimeoutError(), 6), (FileNotFoundError(2, "gone", "x"), 8), (KeyboardInterrupt(), 130)):

        def fails(*_, error=error):
            raise error

        monkeypatch.setattr("zg_async.wire.inference_api.adapter_name", fails)
        assert run(words) == code
        assert capsys.readouterr().err.count("\n") == 1


def started(code: str, **options) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    )


@pytest.mark.slow
@pytest.mark.goal("CLI-13", part="interrupted")
def test_a_second_ctrl_c_ends_a_command_that_takes_its_time_to_close():
    code = """
import sys, anyio
from zg_async.cli import main, inference
async def slow(**_):
    try:
        print("ready", flush=True)
        await anyio.sleep_forever()
    finally:
        with anyio.CancelScope(shield=True):
            print("closing", flush=True)
            await anyio.sleep(600)
main.app.command(slow, name="slow")
sys.argv = ["zg", "slow"]
main.main()
"""
    with started(code) as process:
        for line in ("ready", "closing"):
            assert process.stdout.readline() == f"{line}\n"
            process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=60)
    assert (process.returncode, told) == (130, "interrupted\n")


@pytest.mark.slow
def test_a_closed_pipe_ends_with_one_line():
    code = "import sys; from zg_async.cli.main import main; sys.argv = ['zg', 'params', 'new', 'Qwen3-32B']; main()"
    read, write = os.pipe()
    os.close(read)
    with subprocess.Popen([sys.executable, "-c", code], stdout=write, stderr=subprocess.PIPE, text=True) as process:
        _, told = process.communicate(timeout=60)
    assert (process.returncode, told.count("\n"), "Traceback" in told) == (141, 1, False), told
    draw = "main.app.command(lambda: job_view.JobView()._line('x' * 10_000), name='draw')"
    for code, ends in (
        ("from zg_async.cli import main; sys.argv = ['zg', 'deposit']; main.main()", 2),
        (f"from zg_async.cli import main, job_view; {draw}; sys.argv = ['zg', 'draw']; main.main()", 141),
    ):
        command = [sys.executable, "-c", f"import sys; {code}"]
        assert subprocess.run(command, stdout=write, stderr=write, timeout=60, check=False).returncode == ends
    os.close(write)
