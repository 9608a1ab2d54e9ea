"""`zg completion`: the script that makes a shell complete `zg`."""

from typing import Annotated, Literal

from cyclopts import Parameter

from zg_async.cli.completing import SCRIPTS
from zg_async.cli.output import print_json


def completion(
    shell: Literal["bash", "zsh", "fish", "powershell"],
    *,
    json_output: Annotated[bool, Parameter(name="--json")] = False,
) -> None:
    """Print the completion script of a shell.

    bash: `source <(zg completion bash)` in ~/.bashrc. zsh: the same in ~/.zshrc, behind `compinit`. fish:
    `zg completion fish | source` in ~/.config/fish/config.fish. PowerShell:
    `zg completion powershell | Out-String | Invoke-Expression` in $PROFILE.

    Args:
        shell: bash, zsh, fish or powershell.
        json_output: Print one JSON object with the script in it.
    """
    if json_output:
        print_json("completion", {"shell": shell, "script": SCRIPTS[shell]})
        return
    print(SCRIPTS[shell], end="")
