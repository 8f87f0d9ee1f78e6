"""The small program that an idle instance's init becomes, compiled here and kept where nobody can change it."""

import contextlib
import fcntl
import hashlib
import os
import platform
import tempfile
from collections.abc import Iterator
from pathlib import Path

from bench.errors import TareError
from bench.process import Popen, run

_SOURCE = Path(__file__).with_name("init.c")
RESIDENT_NAME = "tare-init"
"""What it calls itself."""
_USAGE = 2
_MFD_EXEC = 0x10
"""Linux 6.3; older kernels do not know it, and need none."""
_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


@contextlib.contextmanager
def start_resident(cache: Path) -> Iterator[int | None]:
    """A descriptor to execute it by, or None where it cannot be had: then init stays what it is, and larger.

    A sealed memory file, because a container's root could write to a file of the host's through /proc/1/exe. What was
    compiled is kept in the folder ``cache``.
    """
    descriptor = None
    with contextlib.suppress(OSError, TareError):  # no compiler, no static C library, or no executable memory files
        descriptor = _seal(_find_or_compile(cache))
    try:
        if descriptor is not None and not _is_executable(descriptor):
            os.close(descriptor)
            descriptor = None
        yield descriptor
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _is_executable(descriptor: int) -> bool:
    """Whether this host lets memory files be executed: without its argument the program ends at once with status 2."""
    try:
        with Popen([f"/proc/self/fd/{descriptor}"], pass_fds=(descriptor,)) as process:
            return process.wait() == _USAGE
    except OSError:
        return False


def _find_or_compile(cache: Path) -> bytes:
    source = _SOURCE.read_bytes()
    kept = cache / f"native-init-{platform.machine()}-{hashlib.sha256(source).hexdigest()[:16]}"
    with contextlib.suppress(FileNotFoundError):
        return kept.read_bytes()
    with tempfile.TemporaryDirectory(prefix="tare-init-") as folder:
        compiled = Path(folder) / "init"
        run(["gcc", "-Os", "-static", "-s", "-o", str(compiled), str(_SOURCE)], timeout_s=60)
        program = compiled.read_bytes()
    with contextlib.suppress(OSError):  # it is compiled again next time
        cache.mkdir(parents=True, exist_ok=True)
        _keep(program, kept)
    return program


def _keep(program: bytes, place: Path) -> None:
    """Write it so that it is there whole or not at all, also if this process is killed meanwhile."""
    unnamed = os.open(place.parent, os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, 0o600)
    try:
        with open(unnamed, "wb", closefd=False) as file:
            file.write(program)
        # The folder's descriptor, unused, makes Python call linkat, which alone follows this link to the file.
        os.link(f"/proc/self/fd/{unnamed}", place, src_dir_fd=unnamed, follow_symlinks=True)
    finally:
        os.close(unnamed)


def _seal(program: bytes) -> int:
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    try:
        descriptor = os.memfd_create("tare-init", flags | _MFD_EXEC)
    except OSError:
        descriptor = os.memfd_create("tare-init", flags)
    try:
        with open(descriptor, "wb", closefd=False) as file:
            file.write(program)
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor
