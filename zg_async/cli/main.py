"""`zg`: the command line of zg_async. What commands there are, and how each of their ends becomes an exit code."""

import asyncio
import contextlib
import logging
import os
import sys
import traceback
from collections.abc import Coroutine
from typing import Any, Final

import cyclopts

from zg_async import __version__
from zg_async.cli.output import UsageError, print_json
from zg_async.cli.profiles import KEY_LIKE
from zg_async.cli.render import exit_code
from zg_async.errors import ZgError
from zg_async.text import printable

GROUPS: Final = {
    ("fine-tuning", "ft"): "Fine-tuning: providers, models, datasets, tasks, deliveries.",
    ("inference", "inf"): "Inference: providers, models, keys, chat, a local server.",
    ("task",): "Watch tasks, and wait for them.",
    ("controller", "ctrl"): "The containers of an own provider.",
}
COMMANDS: Final[tuple[tuple[str, str], ...]] = (
    # account
    ("get-account", "ledger:get_account"),
    ("add-account", "ledger:add_account"),
    ("deposit", "ledger:deposit"),
    ("refund", "ledger:refund"),
    ("retrieve-fund", "ledger:retrieve_fund"),
    ("transfer-fund", "ledger:transfer_fund"),
    ("get-sub-account", "ledger:get_sub_account"),
    ("cost", "cost:cost"),
    # one job, many jobs
    ("run", "jobs:run"),
    ("plan", "jobs:plan"),
    ("batch", "jobs:batch"),
    ("jobs", "jobs_admin:app"),
    ("doctor", "jobs_admin:doctor"),
    # fine-tuning
    ("fine-tuning list-providers", "fine_tuning:list_providers"),
    ("fine-tuning list-models", "fine_tuning:list_models"),
    ("fine-tuning model-usage", "fine_tuning:model_usage"),
    ("fine-tuning verify", "fine_tuning:verify"),
    ("fine-tuning upload", "fine_tuning:upload"),
    ("fine-tuning download", "storage:download"),
    ("fine-tuning calculate-token", "fine_tuning:calculate_token"),
    ("fine-tuning download-counter", "fine_tuning:download_counter"),
    ("fine-tuning create-task", "tasks:create_task"),
    ("fine-tuning cancel-task", "tasks:cancel_task"),
    ("fine-tuning list-tasks", "tasks:list_tasks"),
    ("fine-tuning get-task", "tasks:get_task"),
    ("fine-tuning get-log", "task_view:get_log"),
    ("fine-tuning acknowledge-model", "deliveries:acknowledge_model"),
    ("fine-tuning acknowledge-deliverable", "deliveries:acknowledge_deliverable"),
    ("fine-tuning decrypt-model", "deliveries:decrypt_model"),
    ("fine-tuning get-adapter-name", "deliveries:get_adapter_name"),
    ("fine-tuning deploy-adapter", "deliveries:deploy_adapter"),
    ("fine-tuning list-adapters", "deliveries:list_adapters"),
    ("fine-tuning chat", "deliveries:chat"),
    ("fine-tuning remove-service", "fine_tuning:remove_service"),
    ("task watch", "task_view:watch"),
    ("task wait", "task_view:wait"),
    # datasets, parameters, adapters, storage
    ("dataset", "dataset:app"),
    ("params", "params_file:app"),
    ("adapter", "adapter:app"),
    ("storage", "storage:app"),
    ("upload", "storage:upload"),
    ("download", "storage:download"),
    # inference
    ("inference list-providers", "inference:list_providers"),
    ("inference list-providers-detail", "inference:list_providers_detail"),
    ("inference get-models", "inference:get_models"),
    ("inference acknowledge-provider", "inference:acknowledge_provider"),
    ("inference verify", "inference:verify"),
    ("inference download-report", "inference:download_report"),
    ("inference get-secret", "inference:get_secret"),
    ("inference list-keys", "inference:list_keys"),
    ("inference revoke-token", "inference:revoke_token"),
    ("inference revoke-all-tokens", "inference:revoke_all_tokens"),
    ("inference chat", "inference:chat"),
    ("inference serve", "serve:serve"),
    ("inference router-serve", "serve:router_serve"),
    ("inference add-service", "provider:add_service"),
    ("inference update-service", "provider:update_service"),
    ("inference remove-service", "provider:remove_service"),
    ("inference list-logs", "provider:list_logs"),
    ("inference download-log", "provider:download_log"),
    ("inference view-log", "provider:view_log"),
    # wallets and settings
    ("whoami", "profile:whoami"),
    ("profile", "profile:app"),
    ("login", "login:login"),
    ("logout", "login:logout"),
    ("status", "login:status"),
    ("setup-network", "login:setup_network"),
    ("show-network", "login:show_network"),
    ("wallet", "wallet:app"),
    ("completion", "completion:completion"),
    # providers' containers
    ("controller status", "controller:status"),
    ("controller restart", "controller:restart"),
    ("controller start", "controller:start"),
    ("controller stop", "controller:stop"),
    ("controller get-config", "controller:get_config"),
    ("controller update-config", "controller:update_config"),
    ("controller list-admins", "controller:list_admins"),
    ("controller add-admin", "controller:add_admin"),
    ("controller remove-admin", "controller:remove_admin"),
    ("controller list-ips", "controller:list_ips"),
    ("controller add-ip", "controller:add_ip"),
    ("controller remove-ip", "controller:remove_ip"),
    ("controller image-info", "controller:image_info"),
    ("controller update-images", "controller:update_images"),
    ("controller reset-controller-endpoint", "controller:reset_controller_endpoint"),
    # here
    ("demo", "demo:demo"),
    ("devnet", "devnet:app"),
    ("ui", "ui:app"),
)
"""Each command's words and where it is; modules are imported when their command is used."""
HIDDEN: Final[tuple[tuple[str, str], ...]] = (
    ("fine-tuning ack-provider", "owner:approve_fine_tuning"),
    ("fine-tuning revoke", "owner:revoke_fine_tuning"),
    ("inference ack-provider", "owner:approve_inference"),
    ("inference revoke", "owner:revoke_inference"),
    ("web-ui", "ui:web_ui"),
    ("web-info", "ui:start_web"),
)
"""Commands that work and aren't listed: the contracts' owner's, and other words for the status page."""
SPELLINGS: Final[tuple[tuple[str, str], ...]] = (
    ("return-funds", "retrieve-fund"),
    *(
        (name, f"fine-tuning {name}")
        for name in (
            "list-providers",
            "list-models",
            "model-usage",
            "calculate-token",
            "create-task",
            "cancel-task",
            "list-tasks",
            "get-task",
            "get-log",
            "acknowledge-model",
            "acknowledge-deliverable",
            "decrypt-model",
            "verify",
            "get-adapter-name",
            "deploy-adapter",
            "list-adapters",
        )
    ),
    ("get-task-log", "fine-tuning get-log"),
    ("fine-tuning get-task-log", "fine-tuning get-log"),
    ("task create", "fine-tuning create-task"),
    ("task list", "fine-tuning list-tasks"),
    ("task get", "fine-tuning get-task"),
    ("task log", "fine-tuning get-log"),
    ("task cancel", "fine-tuning cancel-task"),
    ("chat", "inference chat"),
    ("serve", "inference serve"),
    ("router-serve", "inference router-serve"),
)
"""Other spellings, of earlier releases and documents, and the command each is."""
RETIRED: Final = {
    "--key": "set ZG_PRIVATE_KEY or give --private-key-file: a key on the command line can be read by every program",
    "--private-key": "set ZG_PRIVATE_KEY or give --private-key-file: a key on the command line can be read by all",
}
"""Flags that are gone, and what to do instead."""

INTERRUPTED: Final = 130
BUG: Final = 70
CLOSED_PIPE: Final = 141


def make_app() -> cyclopts.App:
    """Return the application; no command's module is imported for it."""
    app = cyclopts.App(
        name="zg",
        help="Fine-tune and chat on the 0G Compute Network.",
        version=f"zg-async {__version__}",
        default_parameter=cyclopts.Parameter(negative=""),
    )
    groups = {names[0]: cyclopts.App(name=names, help=text) for names, text in GROUPS.items()}
    for group in groups.values():
        app.command(group)
    known = dict(COMMANDS)
    for words, target, show in (
        *((w, t, True) for w, t in COMMANDS),
        *((w, t, False) for w, t in HIDDEN),
        *((old, known[new], old.startswith("task ")) for old, new in SPELLINGS),
    ):
        *group_words, name = words.split()
        parent = groups[group_words[0]] if group_words else app
        parent.command(f"zg_async.cli.{target}", name=name, show=show)
    return app


app: Final = make_app()


def main() -> None:
    """Run the command line and end the process with its exit code."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, ValueError):
            stream.reconfigure(errors="replace")  # type: ignore[union-attr]  # a terminal that knows no ticks
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    code = run(sys.argv[1:])
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        code = _closed_pipe()
    sys.exit(code)


def run(arguments: list[str]) -> int:
    """Run one command.

    Args:
        arguments: The words behind `zg`.

    Returns:
        0 ok, 1 failed job, 2 usage, 3 network, 4 insufficient funds, 5 verification, 6 timeout, 7 refused by contract
        or provider, 8 configuration, 70 a bug, 130 interrupted, 141 nobody reads the output any more.
    """
    ending = _Ending(as_json="--json" in arguments, debug="--debug" in arguments)
    try:
        command, bound, _ = app.parse_args(arguments, exit_on_error=False, print_error=False, help_on_error=False)
    except cyclopts.CycloptsError as error:
        return ending.usage(_usage(error, arguments))
    if getattr(command, "__func__", None) is cyclopts.App.help_print:
        _describe(arguments)
    try:
        result = command(*bound.args, **bound.kwargs)
        if isinstance(result, Coroutine):
            result = asyncio.run(_interruptible(result))
        return int(result or 0)
    except BaseExceptionGroup as group:
        return ending.of(_first(group))
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001  the program's edge: no traceback unless asked for
        return ending.of(error)


def _describe(arguments: list[str]) -> None:
    """Import the commands of the group that help is asked for: that gives them their descriptions."""
    _, (_, *chain), _ = app.parse_commands(arguments)
    for group in chain:
        for name in group:
            group[name]


class _Ending:
    """How a failed command ends: one line that says what to do, and a code."""

    def __init__(self, *, as_json: bool, debug: bool) -> None:
        self._as_json, self._debug = as_json, debug

    def usage(self, text: str) -> int:
        return self._end(2, "usage", KEY_LIKE.sub("(64 hex digits)", text), None)  # it may be a key

    def of(self, error: BaseException) -> int:
        if isinstance(error, KeyboardInterrupt):
            print("interrupted", file=sys.stderr)
            return INTERRUPTED
        if isinstance(error, BrokenPipeError):
            return _closed_pipe()
        if self._debug:
            traceback.print_exception(error, file=sys.stderr)
        match error:
            case ZgError():
                notes = getattr(error, "__notes__", ())
                return self._end(exit_code(error), error.code, "; ".join([error.message, *notes]), error.hint)
            case UsageError():
                return self.usage(str(error))
            case TimeoutError():
                return self._end(6, "timeout", str(error) or "timed out", None)
            case OSError():
                what = f"{error.filename}: {error.strerror}" if error.filename else str(error)
                return self._end(8, "file", what, None)
            case _:
                text = f"{type(error).__name__}: {error}"
                return self._end(BUG, "bug", text, "This is a fault of zg: report it with the output of --debug")

    def _end(self, code: int, name: str, message: str, hint: str | None) -> int:
        line = f"error: {printable(message, limit=1500)} [{name}]"
        with contextlib.suppress(BrokenPipeError):  # nobody reads it; the code still tells
            print(f"{line}; next: {printable(hint, limit=1000)}" if hint else line, file=sys.stderr, flush=True)
        if self._as_json:
            print_json("error", {"code": name, "message": message, "hint": hint, "exit_code": code})
        return code


def _usage(error: cyclopts.CycloptsError, arguments: list[str]) -> str:
    group = " ".join(("zg", *(error.command_chain or ())))
    if isinstance(error, cyclopts.UnknownCommandError):
        said = str(error).partition(" Available commands")[0].strip()
        return f"{said} `{group} --help` lists {'all commands' if group == 'zg' else 'what there is'}"
    given = {word.partition("=")[0] for word in arguments} & RETIRED.keys()
    for flag in sorted(given - _flags(arguments) if given else ()):
        return f"{flag} is gone: {RETIRED[flag]}"
    if isinstance(error, cyclopts.UnusedCliTokensError):
        return f"Unexpected: {' '.join(error.unused_tokens or ())}. `--help` behind the command shows what it takes"
    is_missing = isinstance(error, cyclopts.MissingArgumentError) and error.keyword is None
    if is_missing and error.argument is not None and "Did you mean" not in str(error):
        return f"{error.argument.name} is missing. `{group} --help` shows all that it takes"
    lines = [line for text in str(error).splitlines() if (line := text.strip(" │╭╮╰╯─"))]
    text = " ".join(lines)
    return (text if text.endswith("?") else text.rstrip(".") + ".") + " `--help` behind the command shows its flags"


def _flags(arguments: list[str]) -> set[str]:
    """Every flag that the command takes; none if there is no such command."""
    _, apps, _ = app.parse_commands(arguments)
    return {name for argument in apps[-1].assemble_argument_collection() for name in argument.names}


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    first = group.exceptions[0]
    return _first(first) if isinstance(first, BaseExceptionGroup) else first


def _closed_pipe() -> int:
    """Let nothing more be written, so that Python doesn't complain at its end."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    with contextlib.suppress(OSError):  # it may have been standard error that nobody reads
        print("error: nobody reads the output any more; what was sent before stays sent", file=sys.stderr, flush=True)
    return CLOSED_PIPE


async def _interruptible(work: Coroutine[Any, Any, Any]) -> Any:
    return await work


if __name__ == "__main__":
    main()
