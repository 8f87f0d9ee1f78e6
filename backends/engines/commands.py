"""Commands of an engine: each runs in its instance's cgroups, on its CPUs, where the root of the instance is mounted.

tare's own small program (``native/zygote.c``) carries out those steps in the new process, which then becomes the
command: nothing of the host's is changed, and what was mounted goes with the last process that sees it.
"""

import contextlib
import os
import signal
import struct
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from socket import socketpair
from typing import BinaryIO

from tare.backends.engines.start import last_line
from tare.backends.native.channel import Channel
from tare.backends.native.steps import Step, encode, join_cgroup
from tare.backends.native.zygote import step_failed
from tare.bench.errors import BackendError
from tare.bench.linux.waiting import is_readable
from tare.bench.process import PLAIN_ENVIRONMENT, Popen, require_tool

_EVIDENCE_BYTES = 4000
_BORN_DEADLINE_S = 10.0


class EngineCommand:
    """A running command. Made by ``start_command``.

    ``pid`` is the engine's own process, a child of this one. What it prints is in ``log``, or ``said`` knows it.
    """

    def __init__(self, name: str, pid: int, channel: Channel, log: Path, said: Callable[[], str] | None = None) -> None:
        self.pid = pid
        self._name = name
        self._channel = channel
        self._log = log
        self._said = said
        self._pidfd = os.pidfd_open(pid)
        self._code: int | None = None

    def fileno(self) -> int:
        """A descriptor that is readable once it has ended."""
        return self._pidfd

    def require_executed(self, deadline: float) -> None:
        """Wait until the engine's program runs. Raises BackendError if a step before it failed."""
        with contextlib.suppress(EOFError):
            fields, _ = self._channel.receive(deadline)
            raise step_failed(fields, f"what {self._name} needs")

    def have_ended(self, deadline: float) -> bool:
        """Wait for its end until ``deadline`` (monotonic)."""
        return is_readable(self._pidfd, deadline - time.monotonic())

    def finish(self, deadline: float) -> None:
        """Wait for its end. Raises BackendError, with what it printed, if it failed or did not end in time."""
        self.require_executed(deadline)
        if not self.have_ended(deadline):
            raise BackendError(f"{self._name} did not end in time", evidence=self.printed())
        if code := self._wait():
            how = f"was killed by signal {-code}" if code < 0 else f"failed with exit status {code}"
            raise BackendError(f"{self._name} {how}: {last_line(self.printed())}", evidence=self.printed())

    def printed(self) -> str:
        """The end of what it has printed so far."""
        if self._said is not None:
            return self._said()[-_EVIDENCE_BYTES:]
        try:
            with self._log.open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - _EVIDENCE_BYTES))
                return file.read(_EVIDENCE_BYTES).decode(errors="replace")
        except OSError:
            return ""

    def close(self) -> None:
        """Kill it if it still runs, and let go of it."""
        self._channel.close()
        if self._code is None:
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
            self._wait()
        os.close(self._pidfd)

    def _wait(self) -> int:
        """Its exit status once it has ended; negative for the signal that ended it."""
        if self._code is None:
            ended = os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED)
            assert ended is not None  # without WNOHANG
            self._code = ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status
        return self._code


def _memory_file(content: bytes) -> BinaryIO:
    file = os.fdopen(os.memfd_create("tare-engine", os.MFD_CLOEXEC), "w+b", buffering=0)
    file.write(content)
    file.seek(0)
    return file


@contextlib.contextmanager
def start_command(
    launcher: Path,
    argv: Sequence[str],
    joins: Sequence[Path],
    steps: Sequence[Step],
    log: Path,
    environment: Mapping[str, str],
    files: Sequence[bytes] = (),
    streams: Sequence[int] = (),
    said: Callable[[], str] | None = None,
) -> Iterator[EngineCommand]:
    """Start a command of an engine after ``steps``; it is killed, if it still runs, when the block ends.

    ``joins`` are the files by which a process enters the cgroups: ``cgroup.procs`` of a v2 one, in which the command
    is born, and ``tasks`` of v1's.
    ``files`` are contents that it finds open as descriptors 3, 4, ...; ``streams`` its standard streams, of which those
    that are left out are empty, and ``log``. Never the host's /dev/null: an engine may give its streams to the
    container's user (runsc does), or pass them on to the container. ``said`` knows what it has printed where
    ``log`` does not. Raises BackendError, MissingToolError.
    """
    program = str(require_tool(argv[0]))
    ours, theirs = socketpair()
    with theirs, log.open("ab") as output, contextlib.ExitStack() as stack:
        given = [stack.enter_context(_memory_file(content)).fileno() for content in files]
        empty = stack.enter_context(_memory_file(b""))
        launching = Popen(
            [str(launcher), "become", str(theirs.fileno()), ",".join(map(str, given)), program, *argv[1:]],
            env={**PLAIN_ENVIRONMENT, "PATH": os.environ.get("PATH", os.defpath), **environment},
            cwd="/",
            stdin=streams[0] if streams else empty,
            stdout=streams[1] if len(streams) > 1 else output,
            stderr=streams[2] if len(streams) > 2 else output,
            pass_fds=(theirs.fileno(), *given),
            start_new_session=True,
        )
    verb = next((word for word in argv[1:] if word[:1] not in "-/" and "=" not in word), "")
    name = f"{argv[0]} {verb}".strip()
    channel = Channel(ours)
    try:
        pid = _await_born(name, channel, joins, steps)
    except BaseException:
        channel.close()
        raise
    finally:
        launching.wait()  # which ends as soon as the command is born, or its channel is closed
    command = EngineCommand(name, pid, channel, log, said)
    try:
        yield command
    finally:
        command.close()


def _await_born(name: str, channel: Channel, joins: Sequence[Path], steps: Sequence[Step]) -> int:
    """Have the launcher start the command's process; its number. Raises BackendError."""
    born_in = next((file.parent for file in joins if file.name == "cgroup.procs"), None)
    moved_to = [join_cgroup(str(file)) for file in joins if file.name != "cgroup.procs"]
    with contextlib.ExitStack() as stack:
        try:
            folders = [] if born_in is None else [os.open(born_in, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)]
            for folder in folders:
                stack.callback(os.close, folder)
            channel.send(encode([*moved_to, *steps]), descriptors=folders)
            fields, _ = channel.receive(time.monotonic() + _BORN_DEADLINE_S)
        except EOFError:
            raise BackendError(f"{name} could not be started: it was killed at once, or its launcher was") from None
        except OSError as error:
            raise BackendError(f"{name} could not be started: {error.strerror or error}") from error
    if fields[0] == b"failed":
        raise step_failed(fields, f"what {name} needs")
    return int(struct.unpack("=i", fields[1])[0])
