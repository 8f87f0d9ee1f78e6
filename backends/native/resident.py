"""The small program that an idle instance's init becomes, compiled here and kept where nobody can change it."""

import contextlib
import fcntl
import hashlib
import os
import platform
import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgspec

from tare.bench.errors import MissingToolError, TareError
from tare.bench.process import Popen, run

_SOURCE = Path(__file__).with_name("init.c")
_COMPILERS = {"musl": "musl-gcc", "glibc": "gcc"}
"""By the C library they link with, the best first: with musl it holds 12 KiB, with glibc 44 KiB, in larger tables."""
_FLAGS = ("-Os", "-static", "-s")
RESIDENT_NAME = "tare-init"
"""What it calls itself."""
_USAGE = 2
_MFD_EXEC = 0x10
"""Linux 6.3; older kernels do not know it, and need none."""
_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


class Resident(msgspec.Struct, frozen=True):
    """The program: what it is executed by, and the C library in it."""

    descriptor: int
    library: str


@contextlib.contextmanager
def start_resident(cache: Path) -> Iterator[Resident | None]:
    """The program, or None where it cannot be had: then init stays what it is, and larger.

    A sealed memory file, because a container's root could write to a file of the host's through /proc/1/exe. What was
    compiled is kept in the folder ``cache``.
    """
    resident = None
    with contextlib.suppress(OSError, TareError):  # no compiler, no static C library, or no executable memory files
        library, program = _find_or_compile(cache)
        resident = Resident(_seal(program), library)
    try:
        yield resident if resident is not None and _is_executable(resident.descriptor) else None
    finally:
        if resident is not None:
            os.close(resident.descriptor)


def _is_executable(descriptor: int) -> bool:
    """Whether this host lets memory files be executed: without its argument the program ends at once with status 2."""
    try:
        with Popen([f"/proc/self/fd/{descriptor}"], pass_fds=(descriptor,)) as process:
            return process.wait() == _USAGE
    except OSError:
        return False


def _find_or_compile(cache: Path) -> tuple[str, bytes]:
    """The C library and the program, by the first compiler that is here or was when it was kept. Raises TareError."""
    source = _SOURCE.read_bytes()
    for library, compiler in _COMPILERS.items():
        key = hashlib.sha256(source + f"{compiler} {_FLAGS}".encode()).hexdigest()[:16]
        kept = cache / f"native-init-{platform.machine()}-{key}"
        with contextlib.suppress(FileNotFoundError):
            return library, kept.read_bytes()
        with contextlib.suppress(TareError):  # not installed, or not whole
            program = _compile(compiler)
            with contextlib.suppress(OSError):  # it is compiled again next time
                cache.mkdir(parents=True, exist_ok=True)
                _keep(program, kept)
            return library, program
    raise MissingToolError("no C compiler with a static library is installed")


def _compile(compiler: str) -> bytes:
    with tempfile.TemporaryDirectory(prefix="tare-init-") as folder:
        compiled = Path(folder) / "init"
        run([compiler, *_FLAGS, "-o", str(compiled), str(_SOURCE)], timeout_s=60)
        return compiled.read_bytes()


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
