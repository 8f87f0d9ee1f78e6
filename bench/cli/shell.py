"""``tare shell``: a terminal in a fresh instance."""

import os

from tare.bench.cli.exec import InstanceRequest, start_instance
from tare.bench.cli.guard import complain
from tare.bench.cli.terminal import require_terminal, start_raw_terminal
from tare.bench.errors import ExitCode, UnsupportedError
from tare.bench.model import Command, Image

_SHELLS = ("/bin/bash", "/bin/sh")


def shell_command(request: InstanceRequest, argv: tuple[str, ...]) -> int:
    """Lend this terminal to a shell in an instance; returns the exit code to end with."""
    suite, name = request.suite(), request.backend
    if not suite.backends[0].type.interactive:
        raise UnsupportedError(
            f"{name} does not offer a terminal",
            remedy=f"use `tare exec {name} -- COMMAND`, or `tare shell` with bare-metal or native",
        )
    require_terminal()
    with start_instance(suite, request.image) as (instance, root):
        program = argv or (_find_shell(root),)
        with start_raw_terminal() as terminal:
            ended = instance.interact(Command(program, env={"TERM": os.environ.get("TERM", "dumb")}), terminal)
    if ended.signal is not None:
        complain(f"{program[0]} was killed by signal {ended.signal}")
        return 128 + ended.signal
    return ended.returncode if ended.returncode is not None else ExitCode.ENVIRONMENT


def _find_shell(image: Image) -> str:
    """The first shell that the image has. One that has none is told so by the instance."""
    return next((shell for shell in _SHELLS if (image.rootfs / shell[1:]).exists()), _SHELLS[-1])
