"""A live instance whose processes are the host's own: bare metal and containers."""

import contextlib
import os
import select
import time
from collections.abc import Callable, Collection
from pathlib import Path

import msgspec

from tare.backends.cgroups.lifecycle import Cgroup
from tare.backends.native.init import DONE
from tare.backends.native.launcher import Launched, wait_readable
from tare.backends.native.resident import RESIDENT_NAME
from tare.backends.native.wire import Channel, join_list
from tare.bench.errors import BackendError, OutputTooLargeError, WorkloadError
from tare.bench.interfaces import Instance, Terminal
from tare.bench.linux.memory import tree_bytes
from tare.bench.model import BASE_ENVIRONMENT, MAX_OUTPUT_BYTES, Command, Completed, Footprint, StartTimeline, Usage

_CHUNK_BYTES = 1 << 20
_KILLED_DEADLINE_S = 10.0
_IDLE_DEADLINE_S = 1.0
_IDLE_POLL_S = 0.002


class ProcessInstance(Instance):
    """Runs commands through the instance's init.

    Times of a command are init's: the clock before it spawns and when the wait for it returns, on the same
    kernel's CLOCK_MONOTONIC. stdin is a memory file, so that nothing has to feed it; stdout and stderr are
    pipes that the calling thread empties, because memory files would count against the instance's memory
    limit and files on disk against its I/O. A process that a command leaves behind keeps running, and what
    it prints after the command's end is lost.
    """

    def __init__(
        self,
        launched: Launched,
        cgroup: Cgroup,
        folder: Path,
        timeline: StartTimeline,
        shared_bytes: int,
        why_gone: Callable[[], str],
        *,
        shrink: Callable[[], None] | None,
        system: bool = False,
    ) -> None:
        """``why_gone`` is what its maker knows about its end: a continuation of the sentence, or nothing.

        ``shrink`` lets its init become a smaller program, if there is one and the instance is idle. ``system``: other
        processes than its init are there to stay.
        """
        self.timeline = timeline
        self.pid = launched.pid
        self.cgroup = cgroup
        self._channel = launched.channel
        self._folder = folder
        self._shared_bytes = shared_bytes
        self._why_gone = why_gone
        self._met: dict[str, int] = {}
        self._shrink = shrink
        self._system = system

    def execute(self, command: Command) -> Completed:
        """See ``Instance.execute``. Raises WorkloadError if the working directory is not there."""
        fields = _request(command)
        self._shrink = None  # one that is at work stays as it is
        keep = self.cgroup.members() if self._system else [self.pid]
        with contextlib.ExitStack() as stack:
            out, out_writer = _start_pipe(stack)
            err, err_writer = _start_pipe(stack)
            stdin = _open_stdin(command.stdin)
            try:
                self._channel.send(*fields, descriptors=(stdin, out_writer, err_writer))
            except OSError as error:
                raise self._dead() from error
            finally:
                for descriptor in (stdin, out_writer, err_writer):
                    os.close(descriptor)
            collector = _Collector(command.argv[0], self._channel, out, err)
            timed_out = self._wait(collector, command.timeout_s, keep)
            answer = collector.answer
        if answer is None:
            raise self._dead()
        code, number, started, ended = _read_answer(command, answer)
        return Completed(
            argv=command.argv,
            returncode=None if number else code,
            signal=number or None,
            stdout=collector.output(out),
            stderr=collector.output(err),
            started_s=started / 1e9,
            ended_s=ended / 1e9,
            timed_out=timed_out,
            **self._limits_met(),
        )

    def _limits_met(self) -> dict[str, int]:
        """What the instance's limits have done since this was last asked."""
        now = {name: int(self.cgroup.meter.read(name) or 0) for name in ("oom_kills", "pids_refused")}
        since = {name: count - self._met.get(name, 0) for name, count in now.items()}
        self._met = now
        return since

    def _wait(self, collector: "_Collector", timeout_s: float, keep: Collection[int]) -> bool:
        """Wait for the end of a command, and see to it that there is one. Whether all but ``keep`` had to be killed."""
        try:
            ended = collector.run(time.monotonic() + timeout_s)
            if not ended:
                self.cgroup.kill(keep=keep)
                collector.run_out(time.monotonic() + _KILLED_DEADLINE_S)
        except BaseException:
            # An answer that nobody waits for any more (ctrl-C) would be taken for the next command's.
            self._channel.close()
            raise
        return not ended

    def interact(self, command: Command, terminal: Terminal) -> Completed:
        """See ``Instance.interact``: on a pseudo-terminal of the instance's own devpts."""
        self._shrink = None  # as in execute
        try:
            try:
                self._channel.send(*_request(command), terminal.size())
                answer, descriptors = self._channel.receive()
                if descriptors:
                    self._relay(terminal, descriptors[0])
                    answer, _ = self._channel.receive()
            except (EOFError, OSError) as error:
                raise self._dead() from error
        except BaseException:
            self._channel.close()
            raise
        code, number, started, ended = _read_answer(command, answer)
        status = None if number else code
        return Completed(command.argv, status, number or None, b"", b"", started / 1e9, ended / 1e9)

    def _relay(self, terminal: Terminal, master: int) -> None:
        """Pass everything on until the command has ended, or until it should, because the user's terminal is gone."""
        try:
            terminal.relay(master, self._channel.fileno())
        finally:
            os.close(master)  # which hangs up on whatever still has the other side
        if not wait_readable(self._channel, time.monotonic() + _KILLED_DEADLINE_S):
            raise BackendError("the program goes on although its terminal is gone")

    def usage(self) -> Usage:
        """See ``Instance.usage``."""
        return self.cgroup.meter.usage()

    def footprint(self) -> Footprint:
        """See ``Instance.footprint``. A new instance is idle first: what it holds until then it does not keep."""
        self.await_idle()
        held = self.cgroup.meter.footprint()
        owned = tree_bytes(self._folder)
        return msgspec.structs.replace(held, disk_owned_bytes=owned, disk_shared_bytes=self._shared_bytes)

    def await_idle(self) -> None:
        """See ``Instance.await_idle``: its init becomes a smaller program."""
        # An event for it would cost every instance a descriptor, and the wait is of some milliseconds once.
        if self._shrink is not None:
            deadline = time.monotonic() + _IDLE_DEADLINE_S
            while read_name(self.pid) not in (RESIDENT_NAME, None) and time.monotonic() < deadline:
                self._shrink()  # again, as starts that begin meanwhile take it back
                time.sleep(_IDLE_POLL_S)
            self._shrink = None

    def gone_descriptor(self) -> int | None:
        """See ``Instance.gone_descriptor``: init's end of the channel closes with it."""
        return self._channel.fileno()

    def end(self) -> None:
        """See ``Instance.end``."""
        self.cgroup.begin_kill()

    def close(self) -> None:
        """Let go of the channel; init ends when it notices."""
        self._channel.close()

    def _dead(self) -> BackendError:
        kills = self.cgroup.meter.read("oom_kills")
        why = f"; its memory limit has killed {kills} processes" if kills else self._why_gone()
        return BackendError(
            f"the instance is gone: its init (pid {self.pid}) ended{why}",
            remedy="give the envelope more memory" if kills else None,
            evidence=f"members left: {self.cgroup.members()}; oom kills: {kills}",
        )


def read_name(pid: int) -> str | None:
    """What the process calls itself, or None if it is gone."""
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return None


def _request(command: Command) -> tuple[bytes, bytes, bytes]:
    """What init is told about a command. Raises WorkloadError for what cannot be passed to any program."""
    environment = {**BASE_ENVIRONMENT, **command.env}
    if any("\0" in text for text in (*command.argv, *environment, *environment.values())):
        raise WorkloadError(f"{command.argv[0]!r}: an argument or environment variable holds a NUL character")
    variables = [f"{name}={value}" for name, value in environment.items()]
    return os.fsencode(command.cwd), join_list(command.argv), join_list(variables)


def _read_answer(command: Command, answer: list[bytes]) -> tuple[int, int, int, int]:
    """The fields of ``DONE``. Raises WorkloadError or BackendError if the command was not run."""
    if answer[0] == b"no-cwd":
        raise WorkloadError(f"{command.argv[0]}: working directory {command.cwd}: {answer[1].decode()}")
    if answer[0] == b"no-terminal":
        raise BackendError(
            f"the instance has no terminal to give: {answer[1].decode()}: {os.fsdecode(answer[3])}",
            remedy="see /proc/sys/kernel/pty, and that the host has /dev/ptmx",
        )
    if answer[0] != b"done":
        raise BackendError(f"the instance's init failed: {answer[2].decode()}")
    code, number, started, ended = DONE.unpack(answer[1])
    return code, number, started, ended


class _Collector:
    """Waits for init's answer and empties the command's pipes meanwhile, in one thread."""

    def __init__(self, program: str, channel: Channel, *pipes: int) -> None:
        self.answer: list[bytes] | None = None
        self._program = program
        self._bytes = 0
        self._channel = channel
        self._parts: dict[int, list[bytes]] = {pipe: [] for pipe in pipes}
        self._poll = select.poll()
        for descriptor in (channel.fileno(), *pipes):
            self._poll.register(descriptor, select.POLLIN)

    def run(self, deadline: float) -> bool:
        """Go on until init answered or is gone; False if ``deadline`` (monotonic) came first."""
        while (left := deadline - time.monotonic()) > 0:
            for descriptor, _ in self._poll.poll(left * 1000):
                if descriptor == self._channel.fileno():
                    with contextlib.suppress(EOFError):
                        self.answer = self._channel.receive()[0]
                    self._drain()
                    return True
                if not self._read(descriptor):
                    self._poll.unregister(descriptor)
        return False

    def run_out(self, deadline: float) -> None:
        """``run`` for a command that was killed. Raises BackendError if init does not tell of its end."""
        if not self.run(deadline):
            raise BackendError("the instance does not answer after its command was killed for its timeout")

    def output(self, pipe: int) -> bytes:
        """All that came through a pipe."""
        return b"".join(self._parts[pipe])

    def _drain(self) -> None:
        # What the command wrote is in the pipes by now; its leftover children may hold them open for ever.
        for pipe in self._parts:
            while self._read(pipe):
                pass

    def _read(self, pipe: int) -> bool:
        try:
            part = os.read(pipe, _CHUNK_BYTES)
        except BlockingIOError:
            return False
        self._parts[pipe].append(part)
        self._bytes += len(part)
        if self._bytes > MAX_OUTPUT_BYTES:
            raise OutputTooLargeError(self._program, MAX_OUTPUT_BYTES)
        return bool(part)


def _start_pipe(stack: contextlib.ExitStack) -> tuple[int, int]:
    """A pipe whose reading end is closed with ``stack`` and does not block."""
    reader, writer = os.pipe2(os.O_CLOEXEC)
    os.set_blocking(reader, False)
    close: Callable[[int], None] = os.close
    stack.callback(close, reader)
    return reader, writer


def _open_stdin(content: bytes) -> int:
    if not content:
        return os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
    descriptor = os.memfd_create("stdin", os.MFD_CLOEXEC)
    view = memoryview(content)
    while view:
        view = view[os.write(descriptor, view) :]
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor
