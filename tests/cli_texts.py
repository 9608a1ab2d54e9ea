"""Make the texts that `zg` answers from before it imports its commands: `python -m tests.cli_texts` writes them."""

import collections
import io
import json
import typing
from pathlib import Path

from rich.console import Console

from zg_async.cli.completing import TEXTS
from zg_async.cli.main import make_app

KINDS = {
    "provider": "provider",
    "add-provider": "provider",
    "inference-provider": "provider",
    "task": "task",
    "task-id": "task",
    "job-id": "job",
    "wallet": "wallet",
    "profile": "profile",
}
NETWORKS = ["mainnet", "testnet", "testnet-dev", "local"]


def help_text() -> str:
    """What `zg --help` prints, 80 columns wide, without colours."""
    console = Console(file=io.StringIO(), width=80, color_system=None, force_terminal=False, legacy_windows=False)
    app = make_app()
    for _ in _commands(app):
        pass  # their modules are imported, which gives the commands their descriptions
    app.help_print([], console=console)
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines()) + "\n"


def command_table() -> dict:
    """All commands with their flags and what each takes; `common` are the flags that most commands have."""
    commands = {name: _command(sub, name) for name, sub in _commands(make_app())}
    leaves = list(_leaves(commands))
    counts = collections.Counter((flag, json.dumps(kind)) for leaf in leaves for flag, kind in leaf["flags"].items())
    common = {flag: json.loads(kind) for (flag, kind), n in counts.items() if n > len(leaves) * 0.7}
    for leaf in leaves:
        if common.items() <= leaf["flags"].items():
            leaf["flags"] = {flag: kind for flag, kind in leaf["flags"].items() if flag not in common}
            leaf["common"] = True
    return {"common": common, "commands": commands}


def _commands(app):
    return [(name, app[name]) for name in sorted(app) if not name.startswith("-")]


def _command(app, group: str) -> dict:
    hidden = {} if app.show else {"hidden": True}
    if subs := _commands(app):
        return {"commands": {name: _command(sub, group) for name, sub in subs}, **hidden}
    flags, arguments = {}, {}
    for argument in app.assemble_argument_collection():
        names = [n for n in argument.names if n.startswith("-") and not n.startswith(("--no-", "--empty-"))]
        if names and argument.show and argument.field_info.kind.name != "VAR_POSITIONAL":
            kind = _kind(argument, group)
            flags |= dict.fromkeys(names, kind)
        if argument.index is not None:
            arguments[argument.index] = _kind(argument, group)
    places = {"arguments": [arguments[i] for i in sorted(arguments)]} if arguments else {}
    return {"flags": flags, **places, **hidden}


def _kind(argument, group: str):
    """Empty: a switch, takes no value."""
    if argument.is_flag():
        return ""
    if choices := argument.get_choices():
        return list(choices)
    name = argument.name.lstrip("-")
    if name == "network":
        return NETWORKS
    if name == "name" and group in ("profile", "wallet"):
        return group
    hints = {argument.hint, *typing.get_args(argument.hint)}
    return KINDS.get(name) or ("file" if Path in hints else "text")


def _leaves(commands):
    for command in commands.values():
        if "commands" in command:
            yield from _leaves(command["commands"])
        else:
            yield command


def made() -> dict[str, str]:
    """File name to content."""
    return {"help.txt": help_text(), "commands.json": json.dumps(command_table(), indent=1, sort_keys=True) + "\n"}


if __name__ == "__main__":
    for name, text in made().items():
        (TEXTS / name).write_text(text, encoding="utf-8")
