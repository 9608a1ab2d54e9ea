"""What shells complete, and from what."""

import json
import os
import shutil
import stat
import subprocess
import sys

import pytest

from tests.unit.test_cli_config import home as home
from zg_async.cli import completing
from zg_async.cli.completing import FILES, SCRIPTS, candidates, remember
from zg_async.cli.main import run
from zg_async.cli.opening import Where
from zg_async.cli.output import emit

PROVIDERS = ["0x" + f"{n:040x}" for n in (0xA1, 0xA2, 0xB3)]
TASKS = [f"{n}0000000-0000-4000-8000-000000000000" for n in (1, 2)]


@pytest.fixture(autouse=True)
def state(home, monkeypatch):
    monkeypatch.setenv("ZG_STATE_DIR", str(home / "state"))
    return home / "state"


@pytest.fixture
def shown(capsys):
    """Commands have shown these before."""
    where = Where(as_json=True)
    emit(where, "fine_tuning_providers", {"items": [{"provider": p, "url": "x"} for p in PROVIDERS]}, str)
    emit(where, "tasks", {"items": [{"id": t, "provider": PROVIDERS[1]} for t in TASKS]}, str)
    emit(where, "job", {"job_id": "job-1", "task_id": TASKS[0]}, str)
    capsys.readouterr()


@pytest.mark.goal("CLI-07", part="commands and flags")
@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["who"], ["whoami"]),
        (["inference", "get-m"], ["get-models"]),
        (["inf", "get-m"], ["get-models"]),
        (["ft", "create-task", "--dataset"], ["--dataset", "--dataset-path"]),
        (["ft", "create-task", "--policy", ""], ["queue", "fail", "wait_for_free"]),
        (["ft", "create-task", "--network", "test"], ["testnet", "testnet-dev"]),
        (["ft", "create-task", "--network=test"], ["--network=testnet", "--network=testnet-dev"]),
        (["ft", "create-task", "--network", "=", "test"], ["testnet", "testnet-dev"]),
        (["ft", "create-task", "--policy", "="], ["queue", "fail", "wait_for_free"]),
        (["ft", "create-task", "--policy", '""'], ["queue", "fail", "wait_for_free"]),  # PowerShell's empty word
        (["ft", "create-task", "--config-path", ""], [FILES]),
        (["ft", "create-task", "--json", "--js"], []),
        (["ft", "no-such", ""], []),
        (["web-ui", "st"], ["start-web"]),
        (["completion", "p"], ["powershell"]),
        (["completion", "bash", ""], []),
    ],
)
def test_commands_flags_and_choices_are_completed(words, found):
    assert candidates(words) == found


def test_hidden_commands_work_and_are_not_offered():
    assert candidates(["fine-tuning", "ack"]) == ["acknowledge-deliverable", "acknowledge-model"]
    assert "--provider" in candidates(["fine-tuning", "ack-provider", "--prov"])


@pytest.mark.goal("CLI-07", part="provider addresses and task ids from the cache")
def test_addresses_and_ids_that_commands_showed_are_completed(shown, state):
    assert candidates(["doctor", ""]) == [PROVIDERS[1], PROVIDERS[2], PROVIDERS[0]]  # the latest first
    assert candidates(["ft", "get-task", "--provider", "0x" + "0" * 38 + "A"]) == [PROVIDERS[1], PROVIDERS[0]]
    assert candidates(["ft", "get-task", "--provider", PROVIDERS[0], "--task", ""]) == [TASKS[0], TASKS[1]]
    assert candidates(["ft", "get-task", f"--task={TASKS[1][:4]}"]) == [f"--task={TASKS[1]}"]
    assert candidates(["jobs", "show", ""]) == ["job-1"]
    if os.name != "nt":
        assert stat.S_IMODE((state / "completion.json").stat().st_mode) == 0o600


def test_a_state_folder_that_is_given_has_a_cache_of_its_own(tmp_path, state, capsys):
    emit(Where(state_dir=tmp_path / "other"), "x", {"provider": PROVIDERS[0]}, str)
    assert not state.exists()
    assert candidates(["doctor", ""]) == []
    assert candidates(["doctor", "--state-dir", str(tmp_path / "other"), ""]) == [PROVIDERS[0]]


def test_profiles_and_wallets_are_completed(home):
    assert run(["profile", "set", "work", "network=local"]) == 0
    (home / "config" / "wallets").mkdir()
    (home / "config" / "wallets" / "alice.json").touch()
    assert candidates(["profile", "use", ""]) == ["work"]
    assert candidates(["whoami", "--profile", "w"]) == ["work"]
    assert candidates(["wallet", "passwd", ""]) == candidates(["whoami", "--wallet", ""]) == ["alice"]


def test_nothing_from_outside_becomes_a_word_of_the_shell(state):
    hostile = ["$(touch x)", "0x" + "g" * 40, PROVIDERS[0] + "\n;ls", "a b", "\x1b[2J", "-x"]
    remember("tasks", {"items": [{"id": text, "provider": text, "task_id": text} for text in hostile]})
    assert candidates(["doctor", ""]) == []
    state.mkdir(exist_ok=True)
    for text in (json.dumps({"provider": hostile}), "[" * 100_000, "{", "[1]", '{"provider": "x"}'):
        (state / "completion.json").write_text(text)
        assert candidates(["doctor", ""]) == []


def test_the_cache_stays_small_and_a_command_never_fails_for_it(state, monkeypatch):
    many = [{"provider": "0x" + f"{n:040x}"} for n in range(500)]
    remember("x", {"items": many})
    assert len(candidates(["doctor", ""])) == completing._KEPT
    assert candidates(["doctor", ""])[0] == many[-1]["provider"]
    monkeypatch.setenv("ZG_STATE_DIR", "/dev/null/nowhere")
    remember("x", {"items": many})
    assert candidates(["doctor", ""]) == []


@pytest.mark.goal("CLI-07", part="scripts")
@pytest.mark.parametrize("shell", sorted(SCRIPTS))
def test_each_shell_gets_its_script(shell, capsys):
    assert run(["completion", shell]) == 0
    assert capsys.readouterr().out == SCRIPTS[shell]
    assert "zg __complete -- " in SCRIPTS[shell]


# --- real shells ------------------------------------------------------------------------------------------------------


@pytest.fixture
def path(home):
    """A PATH on which `zg` is this package's."""
    zg = home / "bin" / "zg"
    zg.parent.mkdir()
    zg.write_text(f'#!/bin/sh\nexec {sys.executable} -c "from zg_async.cli.entry import entry; entry()" "$@"\n')
    zg.chmod(0o755)
    return {**os.environ, "PATH": f"{zg.parent}{os.pathsep}{os.environ['PATH']}"}


def shell_of(name: str) -> str:
    return shutil.which(name) or pytest.skip(f"{name} isn't installed")


LINES = {"zg whoa": ["whoami"], "zg ft create-task --policy ": ["fail", "queue", "wait_for_free"]}


@pytest.mark.slow
@pytest.mark.goal("CLI-07", part="bash")
def test_bash_completes(path, shown):
    code = SCRIPTS["bash"] + (
        'ask() { read -r -a COMP_WORDS <<<"$1"; [[ "$1" == *" " ]] && COMP_WORDS+=("");'
        ' COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); _zg_complete; printf "%s\\n" "${COMPREPLY[@]}"; }\n'
        'ask "$1"'
    )

    def asked(line: str, folder="/") -> list[str]:
        command = [shell_of("bash"), "--norc", "-c", code, "bash", line]
        return subprocess.run(command, env=path, cwd=folder, capture_output=True, text=True, check=True).stdout.split()

    for line, found in LINES.items():
        assert sorted(asked(line)) == found
    assert asked("zg doctor ") == [PROVIDERS[1], PROVIDERS[2], PROVIDERS[0]]
    (state_file := completing.cache_path().parent / "data.jsonl").touch()
    assert asked("zg dataset check da", state_file.parent) == ["data.jsonl"]


@pytest.mark.slow
@pytest.mark.goal("CLI-07", part="zsh")
def test_zsh_completes(path, shown):
    code = (
        "compdef() { : }; _files() { print -- FILES }; compadd() { shift; print -l -- $@ }\n"
        + SCRIPTS["zsh"]
        + 'words=(${(s: :)1}); [[ "$1" == *" " ]] && words+=(""); CURRENT=$#words; _zg'
    )
    for line, found in LINES.items():
        command = [shell_of("zsh"), "-f", "-c", code, "zsh", line]
        done = subprocess.run(command, env=path, capture_output=True, text=True, check=True)
        assert sorted(done.stdout.split()) == found


@pytest.mark.slow
@pytest.mark.goal("CLI-07", part="fish")
def test_fish_completes(path, shown):
    for line, found in LINES.items():
        command = [shell_of("fish"), "--no-config", "-c", SCRIPTS["fish"] + f"complete -C '{line}'"]
        done = subprocess.run(command, env=path, capture_output=True, text=True, check=True)
        assert sorted(done.stdout.split()) == found


@pytest.mark.slow
@pytest.mark.goal("CLI-07", part="powershell")
def test_powershell_completes(path, shown):
    for line, found in LINES.items():
        ask = (
            f"(TabExpansion2 -inputScript '{line}' -cursorColumn {len(line)}).CompletionMatches"
            " | ForEach-Object { $_.CompletionText }"
        )
        command = [shell_of("pwsh"), "-NoProfile", "-Command", SCRIPTS["powershell"] + ask]
        done = subprocess.run(command, env=path, capture_output=True, text=True, check=True)
        assert sorted(done.stdout.split()) == found
