"""Shell completion: one completer for all shells, and the few lines each shell needs to ask it.

It answers from `texts/commands.json`, which is made from the command table, and from a cache of the provider addresses,
task and job ids that earlier commands showed. Nothing here imports more than it needs: a shell waits for the answer.
"""

import json
import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

TEXTS: Final = Path(__file__).parent / "texts"
ASK: Final = "__complete"
"""The hidden command that the scripts call: `zg __complete -- WORDS...`, the last of them unfinished."""
_KEPT: Final = 200
_FORMS: Final[Mapping[str, re.Pattern[str]]] = {
    "provider": re.compile(r"0x[0-9a-fA-F]{40}"),
    "task": re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}"),
    "job": re.compile(r"[A-Za-z0-9_-]{1,64}"),
}
"""What is kept has to look like this, so that nothing from outside becomes a shell's word."""
_FIELDS: Final[Mapping[str, str]] = {"provider": "provider", "task_id": "task", "job_id": "job"}
_OF_KIND: Final[Mapping[str, Mapping[str, str]]] = {"task": {"id": "task"}, "tasks": {"id": "task"}}
"""Fields of some results that are named shortly."""

SCRIPTS: Final[Mapping[str, str]] = {
    "bash": """\
_zg_complete() {
  local IFS=$'\\n' words=("${COMP_WORDS[@]:1:COMP_CWORD}")
  COMPREPLY=($(zg __complete -- "${words[@]}" 2>/dev/null))
  if [ "${COMPREPLY[0]}" = ":files" ]; then
    compopt -o filenames 2>/dev/null
    COMPREPLY=($(compgen -f -- "${COMP_WORDS[COMP_CWORD]}"))
  fi
}
complete -F _zg_complete zg
""",
    "zsh": """\
#compdef zg
_zg() {
  local -a found
  found=("${(@f)$(zg __complete -- "${(@)words[2,CURRENT]}" 2>/dev/null)}")
  if [[ "$found[1]" == ":files" ]]; then
    _files
  else
    compadd -- $found
  fi
}
if [ "$funcstack[1]" = "_zg" ]; then _zg "$@"; else compdef _zg zg; fi
""",
    "fish": """\
function __zg_complete
    set -l words (commandline -opc)[2..-1] (commandline -ct)
    set -l found (zg __complete -- $words 2>/dev/null)
    if test "$found[1]" = ":files"
        __fish_complete_path (commandline -ct)
    else
        printf '%s\\n' $found
    end
end
complete -c zg -f -a '(__zg_complete)'
""",
    "powershell": """\
Register-ArgumentCompleter -Native -CommandName zg -ScriptBlock {
    param($wordToComplete, $commandAst, $cursorPosition)
    $words = @($commandAst.CommandElements | Select-Object -Skip 1 | ForEach-Object { $_.ToString() })
    if ($wordToComplete -eq '') { $words += '""' }
    $found = @(zg __complete -- @words 2>$null)
    if ($found.Count -gt 0 -and $found[0] -eq ':files') { return }
    $found | ForEach-Object { [System.Management.Automation.CompletionResult]::new($_, $_, 'ParameterValue', $_) }
}
""",
}
FILES: Final = ":files"
"""Instead of candidates: the shell shall complete file names."""


def candidates(words: Sequence[str], *, cache: Path | None = None) -> list[str]:
    """Return what the last, unfinished word may become.

    Args:
        words: Those behind `zg`.
        cache: The cache file; None: this user's.

    Returns:
        The candidates; `[FILES]` for a file name.
    """
    table = json.loads((TEXTS / "commands.json").read_text(encoding="utf-8"))
    # `""` is PowerShell's empty word: before 7.3 it drops an empty one on the way to a program
    *before, last = ["" if word in ("=", '""') else word for word in words or [""]]
    before = [word for word in before if word]  # bash takes `--flag=value` for three words
    command, rest = _command(table["commands"], before)
    if command is None:
        return []
    flags = {**(table["common"] if command.get("common") else {}), **command.get("flags", {})}
    if cache is None and "--state-dir" in rest[:-1]:
        cache = cache_path(Path(rest[rest.index("--state-dir") + 1]))
    flag, equals, value = last.partition("=")
    if equals and flag in flags:
        return [f"{flag}={found}" for found in _values(flags[flag], value, cache) if found != FILES]
    if rest and rest[-1] in flags and flags[rest[-1]] != "":
        return _values(flags[rest[-1]], last, cache)
    if last.startswith("-"):
        given = {word.partition("=")[0] for word in rest}
        return sorted(f for f in [*flags, "--help"] if f.startswith(last) and f not in given)
    if names := command.get("commands"):
        return sorted(name for name, sub in names.items() if name.startswith(last) and not sub.get("hidden"))
    places, number = command.get("arguments", []), len(_positional(rest, flags))
    return _values(places[number], last, cache) if number < len(places) else []


def _command(commands: Mapping[str, Any], words: Sequence[str]) -> tuple[dict[str, Any] | None, list[str]]:
    """Follow the words as far as they name commands; return where they end, and the words behind."""
    here: dict[str, Any] = {"commands": commands}
    for number, word in enumerate(words):
        if not here.get("commands"):
            return here, list(words[number:])
        if word.startswith("-"):
            return here, list(words[number:])
        if word not in here["commands"]:
            return None, []
        here = here["commands"][word]
    return here, []


def _positional(words: Sequence[str], flags: Mapping[str, Any]) -> list[str]:
    found, skip = [], False
    for word in words:
        if skip or word.startswith("-"):
            skip = not skip and flags.get(word, "") != ""
            continue
        found.append(word)
    return found


def _values(kind: str | Sequence[str], start: str, cache: Path | None) -> list[str]:
    if kind == "file":
        return [FILES]
    if not isinstance(kind, str):
        found: Iterable[str] = kind
    elif kind == "wallet":
        found = sorted(p.stem for p in (_config_dir() / "wallets").glob("*.json"))
    elif kind == "profile":
        found = _profiles()
    else:
        found = reversed(_read(cache or cache_path()).get(kind, []))
    return [value for value in found if value.lower().startswith(start.lower())]


# --- what earlier commands showed -------------------------------------------------------------------------------------


def cache_path(folder: Path | None = None) -> Path:
    """Return where the cache lies: in the state folder that was given, else in the user's."""
    from zg_async.paths import state_dir

    return (folder or state_dir()) / "completion.json"


def remember(kind: str, value: Any, *, cache: Path | None = None) -> None:
    """Keep the providers, tasks and jobs of a command's result for completion; the newest last.

    Args:
        kind: The result's kind.
        value: The result as plain JSON values.
        cache: The cache file; None: this user's.
    """
    found: dict[str, list[str]] = {}
    _collect(value, {**_FIELDS, **_OF_KIND.get(kind, {})}, found)
    if not found:
        return
    path = cache or cache_path()
    known = _read(path)
    merged = dict(known)
    for name, values in found.items():
        old = [v for v in known.get(name, []) if v not in values]
        merged[name] = [*old, *dict.fromkeys(values)][-_KEPT:]
    if merged != known:
        _write(path, merged)


def _collect(value: Any, fields: Mapping[str, str], found: dict[str, list[str]]) -> None:
    if isinstance(value, Mapping):
        for name, item in value.items():
            kind = fields.get(name)
            if kind is not None and isinstance(item, str) and _FORMS[kind].fullmatch(item):
                found.setdefault(kind, []).append(item)
            else:
                _collect(item, fields, found)
    elif isinstance(value, list):
        for item in value:
            _collect(item, fields, found)


def _read(path: Path) -> dict[str, list[str]]:
    try:
        value = json.loads(path.read_bytes()[: 256 * 1024])
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(value, dict):
        return {}
    lists = {name: value.get(name) for name in _FORMS}
    return {
        name: [v for v in values if isinstance(v, str) and _FORMS[name].fullmatch(v)]
        for name, values in lists.items()
        if isinstance(values, list)
    }


def _write(path: Path, value: Mapping[str, Sequence[str]]) -> None:
    """Write the cache if that is possible; a command never fails for it."""
    from zg_async.errors import ConfigError
    from zg_async.paths import write_private

    try:
        write_private(path, json.dumps(value).encode(), what="completion cache", replace=True)
    except ConfigError:
        return


def _config_dir() -> Path:
    from zg_async.cli.profiles import config_path

    return config_path(os.environ).parent


def _profiles() -> list[str]:
    from zg_async.cli.profiles import config_path, read_config
    from zg_async.errors import ConfigError

    try:
        return sorted(read_config(config_path(os.environ)).profiles)
    except ConfigError:
        return []


def answer(words: Sequence[str]) -> None:
    """Print the candidates, one on a line."""
    for found in candidates(words):
        sys.stdout.write(found + "\n")
