"""A folder of the host's in a guest: virtiofsd, started in the guest's cgroup, so that it is a cost of the guest."""

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from tare.backends.vm.emulator import JOIN_VARIABLE
from tare.bench.errors import BackendError
from tare.bench.ledger import MARKER_VARIABLE
from tare.bench.model import Availability
from tare.bench.process import DEVNULL, PLAIN_ENVIRONMENT, Popen, TimeoutExpired, find_tool

_PLACES = (Path("/usr/libexec/virtiofsd"), Path("/usr/lib/qemu/virtiofsd"), Path("/usr/lib/virtiofsd"))
"""Where distributions put it; none of them has it in PATH."""
_END_DEADLINE_S = 10.0
OPTIONS = "cache=auto,allow_direct_io"
"""The guest caches what it read, for a second; what it reads and writes past its cache goes past the host's too."""

_JOIN = f'IFS="\n"; for file in ${JOIN_VARIABLE}; do echo 0 >"$file" || exit; done; exec "$@"'


def find_virtiofsd() -> Path | None:
    """The program, or None if it is not installed."""
    return find_tool("virtiofsd") or next((place for place in _PLACES if os.access(place, os.X_OK)), None)


def probe_virtiofsd() -> Availability:
    """Whether folders can be shared here."""
    program = find_virtiofsd()
    if program is None:
        return Availability.no(
            "virtiofsd is not installed",
            "install it (Debian package virtiofsd; before Debian 13 it is in qemu-system-common)",
        )
    return Availability(available=True, reason=str(program))


@contextlib.contextmanager
def start_virtiofsd(listening: Path, shared: Path, said: Path, marker: str, join: tuple[Path, ...]) -> Iterator[None]:
    """Virtiofsd for ``shared``, which answers at the socket ``listening``; on exit it is gone. Raises BackendError.

    ``said`` gets what it prints, ``join`` are files of the cgroup in which it is born, ``marker`` is in the ledger. The
    socket listens before the program runs, so that nobody has to wait for it.
    """
    program = find_virtiofsd()
    if program is None:
        found = probe_virtiofsd()
        raise BackendError(found.reason, remedy=found.remedy)
    environment = {
        **os.environ,
        **PLAIN_ENVIRONMENT,
        MARKER_VARIABLE: marker,
        JOIN_VARIABLE: "\n".join(map(str, join)),
    }
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener, said.open("wb") as output:
        listener.bind(str(listening))
        listener.listen(1)
        descriptor = listener.fileno()
        # By default it asks for a million open files, for which not every root has the capability.
        arguments = [f"--fd={descriptor}", "-o", f"source={shared}", "-o", OPTIONS, "--rlimit-nofile=0"]
        process = Popen(
            ["/bin/sh", "-c", _JOIN, "sh", str(program), *arguments],
            env=environment,
            stdin=DEVNULL,
            stdout=output,
            stderr=output,
            pass_fds=(descriptor,),
            start_new_session=True,
        )
    try:
        yield
    finally:
        process.kill()
        try:
            process.wait(_END_DEADLINE_S)
        except TimeoutExpired:
            raise BackendError(f"virtiofsd (pid {process.pid}) did not end within {_END_DEADLINE_S:g} s") from None
