"""`zg completion`: the script that makes a shell complete `zg`."""

from typing import Literal

from zg_async.cli.completing import SCRIPTS


def completion(shell: Literal["bash", "zsh", "fish", "powershell"]) -> None:
    """Print the completion script of a shell.

    bash: `source <(zg completion bash)` in ~/.bashrc. zsh: the same in ~/.zshrc, behind `compinit`. fish:
    `zg completion fish | source` in ~/.config/fish/config.fish. PowerShell:
    `zg completion powershell | Out-String | Invoke-Expression` in $PROFILE.

    Args:
        shell: bash, zsh, fish or powershell.
    """
    print(SCRIPTS[shell], end="")
