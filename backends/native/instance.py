"""A live instance whose processes are the host's own: bare metal and containers."""

import contextlib
import os
import select
import struct
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import msgspec

from tare.backends.cgroups.lifecycle import Cgroup
from tare.backends.native.channel import DEADLINE_S, Channel, join_list, malformed
from tare.backends.native.zygote import Launched
from tare.bench.errors import BackendError, WorkloadError
from tare.bench.interfaces import Instance, Terminal
from tare.bench.interrupts import interruptible
from tare.bench.linux.memory import tree_bytes
from tare.bench.model import BASE_ENVIRONMENT, Command, Completed, Footprint, StartTimeline, Usage
from tare.bench.spool import Spool

_CHUNK_BYTES = 1 << 20
_KILLED_DEADLINE_S = 10.0
_MOST_STATUS, _MOST_SIGNAL = 255, 64
_DONE = struct.Struct("=iiqq")
"""Exit status or -1, signal or 0, start and end in nanoseconds of CLOCK_MONOTONIC."""


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
        system: bool = False,
    ) -> None:
        """``why_gone`` is what its maker knows about its end: a continuation of the sentence, or nothing.

        ``system``: other processes than its init are there to stay.
        """
        self.timeline = timeline
        self.pid = launched.pid
        self.cgroup = cgroup
        self._channel = launched.channel
        self._folder = folder
        self._shared_bytes = shared_bytes
        self._why_gone = why_gone
        self._met: dict[str, int] = {}
        self._system = system

    def execute(self, command: Command) -> Completed:
        """Raises WorkloadError if the working directory is not there."""
        fields = _request(command)
        keep = self.cgroup.members() if self._system else [self.pid]
        with contextlib.ExitStack() as stack:
            out, out_writer = _start_pipe(stack)
            err, err_writer = _start_pipe(stack)
            given = (*_open_stdin(command.stdin), out_writer, err_writer)
            try:
                self._channel.send(*fields, descriptors=given)
            except OSError as error:
                raise self._dead() from error
            finally:
                for descriptor in given:
                    os.close(descriptor)
            collector = _Collector(Spool(command.argv[0], self._folder), self._channel, {out: "stdout", err: "stderr"})
            timed_out = self._wait(collector, command.timeout_s, keep)
            answer = collector.answer
        if answer is None:
            raise self._dead()
        code, number, started, ended = _read_answer(command, answer)
        return Completed(
            argv=command.argv,
            returncode=None if number else code,
            signal=number or None,
            started_s=started / 1e9,
            ended_s=ended / 1e9,
            timed_out=timed_out,
            **collector.spool.fields(),
            **self._limits_met(),
        )

    def _limits_met(self) -> dict[str, Any]:
        """What the instance's limits have done since this was last asked."""
        now = {name: int(self.cgroup.meter.read(name) or 0) for name in ("oom_kills", "pids_refused")}
        since: dict[str, Any] = {name: count - self._met.get(name, 0) for name, count in now.items()}
        self._met = now
        return since | ({"outer_limit": self.cgroup.outer_memory_limit()} if since["oom_kills"] else {})

    def _wait(self, collector: "_Collector", timeout_s: float, keep: Collection[int]) -> bool:
        """Wait for the end of a command, and see to it that there is one. Whether all but ``keep`` had to be killed."""
        try:
            with interruptible():
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
        """On a pseudo-terminal of the instance's own devpts."""
        try:
            try:
                self._channel.send(*_request(command), terminal.size())
                answer, descriptors = self._channel.receive(time.monotonic() + DEADLINE_S)
                if descriptors:
                    self._relay(terminal, descriptors[0])
                    answer, _ = self._channel.receive(time.monotonic() + DEADLINE_S)
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
        if not self._channel.wait(time.monotonic() + _KILLED_DEADLINE_S):
            raise BackendError("the program goes on although its terminal is gone")

    def usage(self) -> Usage:
        return self.cgroup.meter.usage()

    def footprint(self) -> Footprint:
        held = self.cgroup.meter.footprint()
        owned = tree_bytes(self._folder)
        return msgspec.structs.replace(held, disk_owned_bytes=owned, disk_shared_bytes=self._shared_bytes)

    def gone_descriptor(self) -> int | None:
        """Init's end of the channel closes with it."""
        return self._channel.fileno()

    def end(self) -> None:
        self.cgroup.begin_kill()

    def close(self) -> None:
        """Let go of the channel; init ends when it notices."""
        self._channel.close()

    def _dead(self) -> BackendError:
        kills = None
        with contextlib.suppress(OSError):  # an engine has removed the cgroup of what was killed from outside
            kills = self.cgroup.meter.read("oom_kills")
        limit = (self.cgroup.outer_memory_limit() or "memory limit of its own") if kills else ""
        why = f"; the {limit} has killed {kills} processes" if kills else self._why_gone()
        return BackendError(
            f"the instance is gone: its init (pid {self.pid}) ended{why}",
            remedy="give the envelope more memory" if kills else None,
            evidence=f"members left: {self.cgroup.members()}; oom kills: {kills}",
        )


def _request(command: Command) -> tuple[bytes, bytes, bytes]:
    """What init is told about a command. Raises WorkloadError for what cannot be passed to any program."""
    environment = {**BASE_ENVIRONMENT, **command.env}
    if any("\0" in text for text in (*command.argv, *environment, *environment.values())):
        raise WorkloadError(f"{command.argv[0]!r}: an argument or environment variable holds a NUL character")
    variables = [f"{name}={value}" for name, value in environment.items()]
    return os.fsencode(command.cwd), join_list(command.argv), join_list(variables)


def _read_answer(command: Command, answer: list[bytes]) -> tuple[int, int, int, int]:
    """The fields of ``DONE``. Raises WorkloadError or BackendError if the command was not run."""
    match answer:
        case [b"done", done] if len(done) == _DONE.size:
            code, number, started, ended = _DONE.unpack(done)
            if -1 <= code <= _MOST_STATUS and 0 <= number <= _MOST_SIGNAL:
                return code, number, started, ended
        case [b"no-cwd", _, reason, _, _]:
            raise WorkloadError(f"{command.argv[0]}: working directory {command.cwd}: {_text(reason)}")
        case [b"no-terminal", _, reason, _, path]:
            raise BackendError(
                f"the instance has no terminal to give: {_text(reason)}: {_text(path)}",
                remedy="see /proc/sys/kernel/pty, and that the host has /dev/ptmx",
            )
    raise malformed("it answers no command")


def _text(field: bytes) -> str:
    return field.decode("utf-8", "replace")


class _Collector:
    """Waits for init's answer and empties the command's pipes meanwhile, in one thread."""

    def __init__(self, spool: Spool, channel: Channel, pipes: Mapping[int, str]) -> None:
        self.answer: list[bytes] | None = None
        self.spool = spool
        self._channel = channel
        self._pipes = pipes
        self._poll = select.poll()
        for descriptor in (channel.fileno(), *pipes):
            self._poll.register(descriptor, select.POLLIN)

    def run(self, deadline: float) -> bool:
        """Go on until init answered or is gone; False if ``deadline`` (monotonic) came first."""
        while (left := deadline - time.monotonic()) > 0:
            for descriptor, _ in self._poll.poll(left * 1000):
                if descriptor == self._channel.fileno():
                    with contextlib.suppress(EOFError, OSError):
                        self.answer = self._channel.receive()[0]
                    # What the command wrote is in the pipes by now; its leftover children may hold them open for ever.
                    for pipe in self._pipes:
                        while self._read(pipe):
                            pass
                    return True
                if not self._read(descriptor):
                    self._poll.unregister(descriptor)
        return False

    def run_out(self, deadline: float) -> None:
        """``run`` for a command that was killed. Raises BackendError if init does not tell of its end."""
        if not self.run(deadline):
            raise BackendError("the instance does not answer after its command was killed for its timeout")

    def _read(self, pipe: int) -> bool:
        try:
            part = os.read(pipe, _CHUNK_BYTES)
        except BlockingIOError:
            return False
        self.spool.add(self._pipes[pipe], part)
        return bool(part)


def _start_pipe(stack: contextlib.ExitStack) -> tuple[int, int]:
    """A pipe whose reading end is closed with ``stack`` and does not block."""
    reader, writer = os.pipe2(os.O_CLOEXEC)
    os.set_blocking(reader, False)
    close: Callable[[int], None] = os.close
    stack.callback(close, reader)
    return reader, writer


def _open_stdin(content: bytes) -> tuple[int, ...]:
    """A memory file with the content. Nothing for none: then the command reads the instance's own /dev/null."""
    if not content:
        return ()
    descriptor = os.memfd_create("stdin", os.MFD_CLOEXEC)
    view = memoryview(content)
    while view:
        view = view[os.write(descriptor, view) :]
    os.lseek(descriptor, 0, os.SEEK_SET)
    return (descriptor,)
