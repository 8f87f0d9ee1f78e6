"""``tare shell``: a terminal in a fresh instance."""

import os

from tare.bench.cli.exec import start_instance
from tare.bench.cli.guard import complain
from tare.bench.cli.terminal import require_terminal, start_raw_terminal
from tare.bench.errors import ExitCode, UnsupportedError
from tare.bench.model import Command, Image
from tare.bench.registry import find_backends

_SHELLS = ("/bin/bash", "/bin/sh")


def shell_command(name: str, argv: tuple[str, ...], *, memory: str, cpus: int, image: str) -> int:
    """Lend this terminal to a shell in an instance of the backend ``name``; returns the exit code to end with."""
    backend_type = find_backends().get(name)
    if not backend_type.interactive:
        raise UnsupportedError(
            f"{name} does not offer a terminal",
            remedy=f"use `tare exec {name} -- COMMAND`, or `tare shell` with bare-metal or native",
        )
    require_terminal()
    with start_instance(backend_type, memory=memory, cpus=cpus, image=image) as (instance, root):
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
