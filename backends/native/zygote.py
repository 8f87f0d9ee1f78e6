"""The zygote, which every instance is forked from: starting it, asking it for instances, noticing that it died.

``zygote.c`` is its program, compiled on this host and kept in the cache. It answers one request at a time, so starts
that come together have one each (``Zygotes``).
"""

import contextlib
import fcntl
import hashlib
import os
import platform
import secrets
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import msgspec

from tare.backends.native import setup as setups
from tare.backends.native.channel import Channel
from tare.backends.native.descriptors import given_descriptor_limit
from tare.backends.native.setup import InstanceSetup, Setup
from tare.backends.native.steps import Kind, encode
from tare.bench import inside
from tare.bench.errors import BackendError, MissingToolError, TareError, UnavailableError
from tare.bench.interrupts import interruptible
from tare.bench.ledger import MARKER_VARIABLE, Ledger, ResourceKind
from tare.bench.model import Availability
from tare.bench.packages import remedy_for
from tare.bench.process import DEVNULL, Popen, TimeoutExpired, find_tool, run

_SOURCE = Path(__file__).with_name("zygote.c")
_PARTS = ("zygote.c", "messages.c", "steps.c", "commands.c", "engines.c")
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


def find_program(cache: Path, folder: Path) -> Program:
    """The program, by the first compiler that is here or was when it was kept in ``cache``. Raises TareError.

    ``folder`` is where it is compiled.
    """
    failure: TareError = MissingToolError("no C compiler is installed, for the program that starts instances")
    for library, compiler in _COMPILERS.items():
        kept = _kept(cache, compiler)
        with contextlib.suppress(FileNotFoundError):
            return Program(kept.read_bytes(), library)
        try:
            program = _compile(compiler, folder)
        except TareError as error:  # not installed, or not whole
            failure = error
            continue
        with contextlib.suppress(OSError):  # it is compiled again next time
            cache.mkdir(parents=True, exist_ok=True)
            _keep(program, kept)
        return Program(program, library)
    raise failure


def _kept(cache: Path, compiler: str) -> Path:
    parts = (*(_SOURCE.with_name(part) for part in _PARTS), *inside.SOURCES, inside.HEADER)
    source = b"".join(part.read_bytes() for part in parts)
    key = hashlib.sha256(source + f"{compiler} {_FLAGS}".encode()).hexdigest()[:16]
    return cache / f"native-zygote-{platform.machine()}-{key}"


def _compile(compiler: str, folder: Path) -> bytes:
    compiled = folder / "zygote"
    sources = [str(source) for source in (_SOURCE, *inside.SOURCES)]
    run(
        [compiler, *_FLAGS, f"-I{inside.FOLDER}", "-o", str(compiled), *sources],
        timeout_s=60,
        env={"TMPDIR": str(folder)},
    )
    try:
        return compiled.read_bytes()
    finally:
        compiled.unlink()


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


_START_DEADLINE_S = 20.0
_SYSTEM_DEADLINE_S = 180.0
"""For containers that boot the whole distribution, which takes 1 to 3 s of a CPU."""
_NOTICED_S = 0.1
_CLONE_FLAGS = struct.Struct("=Q")
_CREATED = struct.Struct("=i")
"""The pid of the first process."""
_READY = struct.Struct("=qq")
"""When that began, and its first instruction once it is set up, in nanoseconds of CLOCK_MONOTONIC."""


class ZygoteGoneError(BackendError):
    """A zygote ended, or was ended, while it was to make an instance; a new one can be tried."""


_INIT_ENDED = "the new instance ended before it was ready, without a word; was it killed for memory?"


class Launched(msgspec.Struct, frozen=True):
    """An instance that is ready. ``pid`` is its init's on the host, times are CLOCK_MONOTONIC seconds.

    ``address`` is what ``connect`` returned, ``connect_s`` how long it took (a duration).
    """

    channel: Channel
    pid: int
    created_s: float
    first_instruction_s: float
    address: str | None = None
    connect_s: float | None = None


class Zygote:
    """A running zygote. Made by ``start_zygote``; not thread-safe."""

    def __init__(self, process: "Popen[bytes]", channel: Channel, log: Path, setup: Setup) -> None:
        self._process = process
        self._channel = channel
        self._log = log
        self._setup = setup
        self._deadline_s = _SYSTEM_DEADLINE_S if setup.system else _START_DEADLINE_S

    @property
    def pid(self) -> int:
        """Its process on the host."""
        return self._process.pid

    def is_alive(self) -> bool:
        """Whether it can still be asked."""
        return self._process.poll() is None

    def request(self, own: InstanceSetup, cgroup_folder: Path | None) -> Channel:
        """Ask for one instance, and return at once with our end of its channel; ``launch`` comes next.

        The instance waits to be told that its cgroups and folders are there. Raises BackendError.
        """
        ours, theirs = socket.socketpair()
        folder = None
        try:
            descriptors: tuple[int, ...] = (theirs.fileno(),)
            if cgroup_folder is not None:
                folder = os.open(cgroup_folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                descriptors = (*descriptors, folder)
            try:
                first = encode(setups.first_steps(self._setup, own))
                self._channel.send(first, os.fsencode(own.kill_file), descriptors=descriptors)
            except OSError as error:
                raise self._died() from error
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
            if folder is not None:
                os.close(folder)
        return Channel(ours)

    def launch(
        self,
        channel: Channel,
        connect: Callable[[int], str] | None = None,
        identify: Callable[[int], None] | None = None,
    ) -> Launched:
        """Let the instance set itself up, and wait until it is ready.

        ``connect`` is called meanwhile with the pid of its first process, and returns the address that it has on a
        network. ``identify`` is called before, with the same pid, and gives the process's user namespace its maps.
        Raises BackendError that tells the failing step, errno and path; the instance's processes are gone then
        or end by themselves.
        """
        deadline = time.monotonic() + self._deadline_s
        try:
            created = None
            if identify is not None:
                created = self._await_created(deadline)
                identify(created)
            with contextlib.suppress(OSError):  # an instance that is gone has said why, or the zygote has
                channel.send(b"go")
            return self._await(channel, deadline, created or self._await_created(deadline), connect)
        except BaseException:
            channel.close()
            raise

    def abandon(self, channel: Channel) -> None:
        """Give up an instance that was asked for; it ends by itself once its channel is closed."""
        channel.close()
        self._receive(self._channel, time.monotonic() + self._deadline_s)

    def _await_created(self, deadline: float) -> int:
        """The pid of the process asked for."""
        created = self._receive(self._channel, deadline)
        if created is None:
            raise self._died()
        if created[0] == b"failed":
            _, _, reason, number, _ = created
            raise BackendError(
                f"the kernel refused the namespaces of a new instance: clone3: {reason.decode()}",
                remedy="see /proc/sys/user/max_*_namespaces and the memory and pids left on this host",
                evidence=f"clone3 failed with errno {number.decode()}",
            )
        pid: int = _CREATED.unpack(created[1])[0]
        return pid

    def _await(self, channel: Channel, deadline: float, pid: int, connect: Callable[[int], str] | None) -> Launched:
        address, began = None, time.monotonic()
        if connect is not None:
            try:
                address = connect(pid)
            except BackendError:
                # It may be gone because a step failed, and what it says about that explains more.
                first = self._receive(channel, deadline)
                if first is not None and first[0] == b"failed":
                    raise step_failed(first) from None
                raise
        connect_s = None if address is None else time.monotonic() - began
        first = self._receive(channel, deadline)
        if first is None:
            with contextlib.suppress(TimeoutExpired):  # instances end with their zygote, which may be noticed first
                self._process.wait(_NOTICED_S)
                raise self._died()
            raise BackendError(_INIT_ENDED)
        if first[0] == b"failed":
            raise step_failed(first)
        created_s, first_instruction_s = (mark / 1e9 for mark in _READY.unpack(first[1]))
        return Launched(channel, pid, created_s, first_instruction_s, address, connect_s)

    def _receive(self, channel: Channel, deadline: float) -> list[bytes] | None:
        """One message, or None if its sender is gone."""
        try:
            with interruptible():
                return channel.receive(deadline)[0]
        except EOFError:
            return None
        except TimeoutError:
            self._process.kill()  # its answers would be taken for those to the next request
            raise ZygoteGoneError(f"no answer to the start of an instance within {self._deadline_s:g} s") from None
        except KeyboardInterrupt:
            self._process.kill()
            raise

    def begin(self, cpus: tuple[int, ...]) -> None:
        """Have it do what all instances share. Raises BackendError."""
        once = setups.zygote_steps(self._setup, cpus, given_descriptor_limit())
        last = setups.last_steps(self._setup)
        with contextlib.suppress(OSError):  # one that is gone is noticed next
            self._channel.send(_CLONE_FLAGS.pack(setups.clone_flags(self._setup)), encode(once), encode(last))
        answer = self._receive(self._channel, time.monotonic() + _START_DEADLINE_S)
        if answer is not None and answer[0] == b"failed":
            raise step_failed(answer, "what all instances share")
        if answer != [b"serving"]:
            raise self._died()

    def why_gone(self) -> str:
        """Why an instance of its making is gone, if that is because the zygote is: they end with it."""
        code = self._process.poll()
        if code is None:
            return ""
        return f", because the zygote that made it {_ending(code)}; the next start gets a new one"

    def _died(self) -> ZygoteGoneError:
        with contextlib.suppress(TimeoutExpired):
            self._process.wait(1.0)
        code = self._process.returncode
        how = "no longer answers" if code is None else _ending(code)
        tail = self._log.read_text("utf-8", "replace")[-2000:] if self._log.exists() else ""
        return ZygoteGoneError(
            f"the zygote that makes instances {how}; the next start gets a new one",
            remedy="see whether something on this host kills processes (out of memory, another administrator)",
            evidence=tail,
        )

    def close(self) -> None:
        """End it and wait. Instances it made end with it."""
        self._channel.close()
        try:
            self._process.wait(5.0)
        except TimeoutExpired:
            self._process.kill()
            self._process.wait()


@contextlib.contextmanager
def start_zygote(
    ledger: Ledger,
    folder: Path,
    setup: Setup,
    program: Program,
    cpus: tuple[int, ...],
    prefix: tuple[str, ...] = (),
) -> Iterator[Zygote]:
    """A zygote on the CPUs ``cpus`` (empty: wherever), with its log in ``folder``. Raises BackendError.

    ``prefix`` is a command that becomes the zygote.
    """
    target = f"zygote-{os.getpid()}-{secrets.token_hex(4)}"
    log = folder / f"{target}.log"
    ours, theirs = socket.socketpair()
    with ledger.holding(ResourceKind.PROCESS, target), log.open("wb") as errors:
        with theirs, program.start_file() as file:
            process = Popen(
                [*prefix, f"/proc/self/fd/{file}", str(theirs.fileno())],
                env={MARKER_VARIABLE: target},
                cwd="/",
                stdin=DEVNULL,
                stdout=DEVNULL,
                stderr=errors,
                pass_fds=(theirs.fileno(), file),
                start_new_session=True,
            )
        zygote = Zygote(process, Channel(ours), log, setup)
        try:
            zygote.begin(cpus)
            yield zygote
        finally:
            zygote.close()


def _ending(code: int) -> str:
    return f"ended ({f'signal {-code}' if code < 0 else f'status {code}'})"


def step_failed(fields: list[bytes], what: str = "the instance") -> BackendError:
    """What to raise for the message ``failed`` of a zygote, an instance, or a program that becomes an engine."""
    _, step, reason, number, path = (field.decode("utf-8", "surrogateescape") for field in fields)
    where = f": {path}" if path and path not in step else ""
    return BackendError(
        f"setting up {what} failed at step {step}: {reason}{where}",
        remedy="`tare doctor` shows what this kernel lacks; the backend's options say what it is asked for",
        evidence=f"step {step}; errno {number} ({reason}); path {path or '-'}",
    )


class Zygotes:
    """Lends a zygote to each start, so that no two are asked of one at a time. Safe to use from several threads."""

    def __init__(self, start: Callable[[], AbstractContextManager[Zygote]]) -> None:
        """``start`` starts one more; each lives until it has died and is noticed, or until ``close``."""
        self._start = start
        self._lock = threading.Lock()
        self._idle: list[tuple[Zygote, contextlib.ExitStack]] = []

    @contextlib.contextmanager
    def borrow(self) -> Iterator[Zygote]:
        """The zygote that was used last of those that are idle, or a new one. Raises BackendError."""
        zygote, ending = self._take()
        try:
            yield zygote
        finally:
            with self._lock:
                self._idle.append((zygote, ending))

    def have(self, number: int) -> None:
        """Make sure that this many can be borrowed without starting a new one. Raises BackendError."""
        with contextlib.ExitStack() as lent:
            for _ in range(number):
                lent.enter_context(self.borrow())

    def pids(self) -> list[int]:
        """Of those that are idle, the one to be used next last."""
        with self._lock:
            return [zygote.pid for zygote, _ in self._idle]

    def close(self) -> None:
        """End them all; none may be lent. Their instances end with them."""
        with self._lock:
            idle, self._idle = self._idle, []
        with contextlib.ExitStack() as stack:
            for _, ending in idle:
                stack.callback(ending.close)

    def _take(self) -> tuple[Zygote, contextlib.ExitStack]:
        while True:
            with self._lock:
                if not self._idle:
                    break
                zygote, ending = self._idle.pop()
            if zygote.is_alive():
                return zygote, ending
            ending.close()
        with contextlib.ExitStack() as stack:
            zygote = stack.enter_context(self._start())
            return zygote, stack.pop_all()
