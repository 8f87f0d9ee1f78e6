"""The first process of an instance: sets it up, runs commands for the harness, forwards signals, reaps orphans.

Standard library only; forked from the zygote, never executed, so nothing may be imported here once the root
has changed: it would come from the image.
"""

import _signal  # type: ignore[import-not-found]  # signal itself imports enum; typeshed has no stub for its core
import errno
import os
import struct
import sys
import time

from tare.backends.native.operations import Operation
from tare.backends.native.system import begin_system
from tare.backends.native.terminal import give_terminal
from tare.backends.native.wire import Channel, split_list

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Self

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
READY = struct.Struct("=q")
"""First instruction, in nanoseconds of CLOCK_MONOTONIC."""
DONE = struct.Struct("=iiqq")
"""Exit status or -1, signal or 0, start and end in nanoseconds of CLOCK_MONOTONIC."""
OOM_SCORE_ADJ = b"1000"
"""The highest there is; what an instance runs inherits it."""
IDLE_S = 0.02
"""An instance that is asked for nothing for so long after it became ready is idle."""
NOT_FOUND = 127
NOT_EXECUTABLE = 126
_FORWARDED = (
    *(_signal.SIGHUP, _signal.SIGINT, _signal.SIGQUIT, _signal.SIGTERM),
    *(_signal.SIGUSR1, _signal.SIGUSR2, _signal.SIGCONT),
)
"""What the first process is sent is meant for what runs under it: it goes to the command's process group."""
_IGNORED_BY_PYTHON = (_signal.SIGPIPE, _signal.SIGXFSZ, _signal.SIGCHLD)


def run_init(
    channel: Channel, operations: list[Operation], resident: tuple[int, int] | None, *, system: bool = False
) -> None:
    """Set up once told to, say so, serve. Returns when the harness is gone, or after having told it of a failure.

    The harness makes the cgroups while the kernel makes this process; ``go`` means that they are there. ``resident`` is
    a smaller program that serves an instance which is idle once it is ready, and what is readable when it may become
    that; where there is none, this one goes on serving. ``system``: systemd becomes the first process, and what goes
    on serving is another.
    """
    try:
        _go_first()
        channel.receive()
        failure = carry_out(operations)
        if failure:
            channel.send(*failure)
            return
        first = time.monotonic_ns()
        if system:
            try:
                begin_system()
            except OSError as error:
                channel.send(
                    b"failed", b"become the distribution's init", *_tell(error, os.fsdecode(error.filename or ""))
                )
                return
        channel.send(b"ready", READY.pack(first))
        sys.path.clear()
        if resident is not None and not channel.wait(IDLE_S) and not channel.comes_before(resident[1]):
            _become(resident[0], channel)
        _serve(channel)
    except (EOFError, BrokenPipeError):
        return
    except BaseException as error:  # noqa: BLE001 - an init that ends silently cannot be understood from outside
        channel.send(b"failed", b"init", f"{type(error).__name__}: {error}".encode(), b"0", b"")


def _become(resident: int, channel: Channel) -> None:
    """Execute the smaller program, which goes on with the channel. Returns only where that cannot be."""
    os.set_inheritable(channel.fileno(), True)  # noqa: FBT003 - positional only
    try:
        os.execve(resident, [b"tare-init", str(channel.fileno()).encode()], os.environ)  # noqa: S606 - that is the point
    except OSError:
        os.set_inheritable(channel.fileno(), False)  # noqa: FBT003 - likewise


def _go_first() -> None:
    """When the host runs out of memory, its OOM killer is to take an instance, never tare or anybody else's process."""
    try:
        descriptor = os.open("/proc/self/oom_score_adj", os.O_WRONLY | os.O_CLOEXEC)
    except OSError:
        return
    try:
        os.write(descriptor, OOM_SCORE_ADJ)
    except OSError:
        return
    finally:
        os.close(descriptor)


def carry_out(operations: list[Operation]) -> tuple[bytes, ...]:
    """Execute them in their order; empty, or the message that tells which failed, why, with which errno and path."""
    for number, operation in enumerate(operations, 1):
        try:
            operation.execute()
        except OSError as error:
            step = f"{number}/{len(operations)} {operation.describe()}".encode("utf-8", "surrogateescape")
            return b"failed", step, *_tell(error, os.fsdecode(error.filename or ""))
    return ()


def _tell(error: OSError, path: str) -> tuple[bytes, bytes, bytes]:
    return (error.strerror or str(error)).encode(), str(error.errno).encode(), path.encode("utf-8", "surrogateescape")


def _serve(channel: Channel) -> None:
    _signal.signal(_signal.SIGCHLD, _reap)
    for number in _FORWARDED:
        _signal.signal(number, _signal.SIG_IGN)  # nothing runs yet
    while True:
        (cwd, argv, env, *size), descriptors = channel.receive()
        terminal = ""
        if size:
            try:
                terminal, other = give_terminal(channel, size[0])
            except OSError as error:
                channel.send(b"no-terminal", *_tell(error, os.fsdecode(error.filename or "")))
                continue
            descriptors = [other]
        # Waiting for the command must be what collects its status, not the handler.
        _signal.signal(_signal.SIGCHLD, _signal.SIG_DFL)
        answer = _run(os.fsdecode(cwd), split_list(argv), split_list(env), descriptors, terminal)
        _signal.signal(_signal.SIGCHLD, _reap)
        _reap(0, None)
        channel.send(*answer)


def _reap(_number: int, _frame: object) -> None:
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return


def _run(cwd: str, argv: list[str], env: list[str], descriptors: list[int], terminal: str) -> tuple[bytes, ...]:
    environment = dict(pair.split("=", 1) for pair in env)
    try:
        try:
            os.chdir(cwd)
        except OSError as error:
            return (b"no-cwd", *_tell(error, cwd))
        try:
            return b"done", DONE.pack(*_spawn_and_wait(argv, environment, descriptors, terminal))
        finally:
            os.chdir("/")
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def _spawn_and_wait(
    argv: list[str], env: dict[str, str], descriptors: list[int], terminal: str
) -> tuple[int, int, int, int]:
    program = _find(argv[0], env.get("PATH", DEFAULT_PATH))
    # glibc's posix_spawn shares the memory until exec (CLONE_VFORK), so this process's size costs the command nothing.
    actions: list[tuple[int, int, int] | tuple[int, int, str, int, int]]
    if terminal:
        # It becomes the controlling terminal because the leader of a new session opens it.
        actions = [(os.POSIX_SPAWN_OPEN, 0, terminal, os.O_RDWR, 0)]
        actions += [(os.POSIX_SPAWN_DUP2, 0, number) for number in (1, 2)]
    else:
        actions = [(os.POSIX_SPAWN_DUP2, given, number) for number, given in enumerate(descriptors)]
    defaults = (*_IGNORED_BY_PYTHON, *_FORWARDED)
    with _Forwarding() as forwarding:
        started = time.monotonic_ns()
        try:
            pid = os.posix_spawn(
                program, argv, env, file_actions=actions, setsid=True, setsigmask=(), setsigdef=defaults
            )
        except OSError as error:
            code = NOT_FOUND if error.errno in {errno.ENOENT, errno.ENOTDIR} else NOT_EXECUTABLE
            os.write(descriptors[-1], f"tare: {argv[0]}: {error.strerror}\n".encode())
            return code, 0, started, time.monotonic_ns()
        forwarding.to(pid)
        ended_pid = 0
        while ended_pid != pid:
            ended_pid, status = os.waitpid(-1, 0)
        ended = time.monotonic_ns()
    if os.WIFSIGNALED(status):
        return -1, os.WTERMSIG(status), started, ended
    return os.WEXITSTATUS(status), 0, started, ended


class _Forwarding:
    """Sends on, while a command runs, what this process is sent; what comes before the command is known waits."""

    def __init__(self) -> None:
        self._group = 0
        self._early: list[int] = []

    def __enter__(self) -> "Self":
        for number in _FORWARDED:
            _signal.signal(number, self._forward)
        return self

    def __exit__(self, *_: object) -> None:
        for number in _FORWARDED:
            _signal.signal(number, _signal.SIG_IGN)

    def to(self, group: int) -> None:
        """The command's process group is known."""
        self._group = group
        for number in self._early:
            self._forward(number, None)

    def _forward(self, number: int, _frame: object) -> None:
        if not self._group:
            self._early.append(number)
            return
        try:
            os.killpg(self._group, number)
        except ProcessLookupError:
            return


def _find(name: str, path: str) -> str:
    """The program as a shell would find it: the first executable one, else the first of that name."""
    if "/" in name:
        return name
    present = ""
    for folder in path.split(":"):
        candidate = f"{folder or '.'}/{name}"
        if os.path.isfile(candidate):  # noqa: PTH113 - pathlib is too much to load here
            if os.access(candidate, os.X_OK):
                return candidate
            present = present or candidate
    return present or name + "/"  # a name that is never executed relative to the working directory
