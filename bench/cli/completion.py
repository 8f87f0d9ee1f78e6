"""``tare completion``: shells that complete tare's commands and options."""

from enum import StrEnum
from typing import Annotated

import typer

COMPLETING = "_TARE_COMPLETE"
"""The variable by which a shell's completion asks ``tare`` what could follow."""


class Shell(StrEnum):
    """The shells that can complete ``tare``."""

    BASH = "bash"
    ZSH = "zsh"
    FISH = "fish"


def completion(shell: Annotated[Shell, typer.Argument(help="Your shell.")]) -> None:
    """Print the script that completes tare's commands and options.

    Bash: tare completion bash > /etc/bash_completion.d/tare; fish: tare completion fish >
    ~/.config/fish/completions/tare.fish; zsh: tare completion zsh > a folder of your $fpath/_tare.
    """
    from typer.completion import get_completion_script  # type: ignore[attr-defined]  # likewise

    typer.echo(get_completion_script(prog_name="tare", complete_var=COMPLETING, shell=shell.value))
