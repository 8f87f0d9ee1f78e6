"""The zygote's program, compiled on this host and kept in the cache."""

import contextlib
import fcntl
import hashlib
import os
import platform
import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgspec

from tare.backends.native.steps import Kind
from tare.bench.errors import MissingToolError, TareError, UnavailableError
from tare.bench.model import Availability
from tare.bench.packages import remedy_for
from tare.bench.process import find_tool, run

_SOURCE = Path(__file__).with_name("zygote.c")
_PARTS = ("zygote.c", "messages.c", "steps.c", "commands.c")
_COMPILERS = {"musl": "musl-gcc", "glibc": "gcc"}
"""By the C library they link with, the best first: with musl an instance holds 12 KiB, with glibc 44 KiB, in larger
tables."""
_FLAGS = ("-Os", "-static", "-s", *(f"-DCALL_{kind.name}={kind.value}" for kind in Kind))
_MFD_EXEC, _SEAL_EXEC = 0x10, 0x20
"""Linux 6.3. Older kernels let every memory file be executed, and do not let its mode be sealed."""
_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


class Program(msgspec.Struct, frozen=True):
    """The program, and the C library in it."""

    content: bytes
    library: str

    @contextlib.contextmanager
    def start_file(self) -> Iterator[int]:
        """A new memory file with the program, by whose descriptor it is executed. Raises UnavailableError.

        A container's root reaches the file that its first process executes. This one is nobody else's, and sealed.
        """
        flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
        try:
            try:
                descriptor = os.memfd_create("tare-zygote", flags | _MFD_EXEC)
            except OSError:
                descriptor = os.memfd_create("tare-zygote", flags)
        except OSError as error:
            raise UnavailableError(
                f"this host makes no executable memory files: {error.strerror}", remedy="sysctl vm.memfd_noexec=0"
            ) from error
        try:
            with open(descriptor, "wb", closefd=False) as file:
                file.write(self.content)
            with contextlib.suppress(OSError):
                fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEAL_EXEC)
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
            yield descriptor
        finally:
            os.close(descriptor)


def probe_program(cache: Path) -> Availability | None:
    """Why there is no program, or None if it was kept in ``cache`` or a compiler is here."""
    if any(_kept(cache, compiler).exists() or find_tool(compiler) for compiler in _COMPILERS.values()):
        return None
    return Availability.no(
        "no C compiler is installed, for the program that starts instances", remedy_for(["gcc", "libc6-dev"])
    )


def find_program(cache: Path) -> Program:
    """The program, by the first compiler that is here or was when it was kept in ``cache``. Raises TareError."""
    failure: TareError = MissingToolError("no C compiler is installed, for the program that starts instances")
    for library, compiler in _COMPILERS.items():
        kept = _kept(cache, compiler)
        with contextlib.suppress(FileNotFoundError):
            return Program(kept.read_bytes(), library)
        try:
            program = _compile(compiler)
        except TareError as error:  # not installed, or not whole
            failure = error
            continue
        with contextlib.suppress(OSError):  # it is compiled again next time
            cache.mkdir(parents=True, exist_ok=True)
            _keep(program, kept)
        return Program(program, library)
    raise failure


def _kept(cache: Path, compiler: str) -> Path:
    source = b"".join(_SOURCE.with_name(part).read_bytes() for part in _PARTS)
    key = hashlib.sha256(source + f"{compiler} {_FLAGS}".encode()).hexdigest()[:16]
    return cache / f"native-zygote-{platform.machine()}-{key}"


def _compile(compiler: str) -> bytes:
    with tempfile.TemporaryDirectory(prefix="tare-zygote-") as folder:
        compiled = Path(folder) / "zygote"
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
