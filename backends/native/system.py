"""systemd as the first process of a container, beside what runs the harness's commands.

Standard library only; imported by the zygote, called once the root has changed.
"""

import _signal  # type: ignore[import-not-found]  # signal itself imports enum; typeshed has no stub for its core
import os

from tare.backends.distribution import MASKED_UNITS, TARGET

_SYSTEM = "/sbin/init"
_FOLDER = "/run/tare"
_REACHED = f"{_FOLDER}/reached"
_UNITS = "/run/systemd/system"
_MASKS = "/run/systemd/system.control"
_UNIT = "tare-ready.service"
_UNIT_TEXT = f"""\
[Unit]
Description=Tell tare that {TARGET} is reached
DefaultDependencies=no
After={TARGET}
[Service]
Type=oneshot
ExecStart=/bin/sh -c 'echo >{_REACHED}'
"""
_ENVIRONMENT = {"container": "tare", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}


def begin_system() -> None:
    """Fork: the first process becomes systemd; the other returns once systemd has reached its target.

    Raises OSError in the first process if there is no systemd to become.
    """
    os.mkdir(_FOLDER, 0o755)  # noqa: PTH102 - pathlib is too much to load here
    os.makedirs(f"{_UNITS}/{TARGET}.wants")  # noqa: PTH103 - likewise
    os.makedirs(_MASKS)  # noqa: PTH103 - likewise
    _write(f"{_UNITS}/{_UNIT}", _UNIT_TEXT)
    os.symlink(f"../{_UNIT}", f"{_UNITS}/{TARGET}.wants/{_UNIT}")  # noqa: PTH211 - likewise
    for unit in MASKED_UNITS:
        os.symlink("/dev/null", f"{_MASKS}/{unit}")  # noqa: PTH211 - likewise
    os.mkfifo(_REACHED, 0o600)
    # Open for writing too, so that opening does not wait.
    reached = os.open(_REACHED, os.O_RDWR | os.O_CLOEXEC)
    if os.fork():
        _signal.signal(_signal.SIGCHLD, _signal.SIG_DFL)
        os.execve(_SYSTEM, [_SYSTEM, f"--unit={TARGET}"], _ENVIRONMENT)  # noqa: S606 - that is the point
    try:
        os.setsid()
        os.read(reached, 1)
    finally:
        os.close(reached)


def _write(path: str, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)
