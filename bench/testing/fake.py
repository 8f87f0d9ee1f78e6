"""A backend without any isolation: it holds the contract tests themselves to account, on machines without root."""

import contextlib
import os
import resource
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tare.bench.interfaces import Backend, Instance
from tare.bench.ledger import MARKER_VARIABLE, ResourceKind
from tare.bench.model import (
    Availability,
    BackendDescription,
    Command,
    Completed,
    Confound,
    Envelope,
    Footprint,
    Image,
    InstanceSpec,
    IsolationKind,
    Phase,
    StartTimeline,
    Usage,
)
from tare.bench.process import Popen, TimeoutExpired
from tare.bench.removers import REMOVERS
from tare.bench.testing.subject import NOT_ISOLATED


class FakeInstance(Instance):
    """Host processes, and a folder for what they print."""

    def __init__(self, folder: Path, spec: InstanceSpec, timeline: StartTimeline) -> None:
        self.timeline = timeline
        self._folder = folder
        self._spec = spec
        self._before = resource.getrusage(resource.RUSAGE_CHILDREN)

    def execute(self, command: Command) -> Completed:
        """Run ``command`` with files for its streams, so that nobody waits for what it leaves running."""
        environment = {"PATH": os.defpath, **command.env, MARKER_VARIABLE: self._spec.identifier}
        program = shutil.which(command.argv[0], path=environment["PATH"])
        started = time.monotonic()
        if program is None:
            code = 126 if Path(command.argv[0]).exists() else 127
            return Completed(command.argv, code, None, b"", b"", started, time.monotonic())
        argv = ["taskset", "-c", ",".join(map(str, self._spec.envelope.cpus)), program, *command.argv[1:]]
        timed_out = False
        with contextlib.ExitStack() as stack:
            given, out, err = (stack.enter_context(tempfile.TemporaryFile(dir=self._folder)) for _ in range(3))
            given.write(command.stdin)
            given.seek(0)
            with Popen(argv, env=environment, cwd=command.cwd, stdin=given, stdout=out, stderr=err) as process:
                try:
                    code = process.wait(command.timeout_s)
                except TimeoutExpired:
                    timed_out = True
                    self.kill()
                    code = process.wait()
            ended = time.monotonic()
            out.seek(0)
            err.seek(0)
            printed = out.read(), err.read()
        returncode, killed_by = (None, -code) if code < 0 else (code, None)
        return Completed(command.argv, returncode, killed_by, *printed, started, ended, timed_out)

    def kill(self) -> None:
        """End everything that it ever started."""
        REMOVERS[ResourceKind.PROCESS](self._spec.identifier)

    def usage(self) -> Usage:
        """CPU time of all that this process started and waited for: there is nothing else to tell it by."""
        now = resource.getrusage(resource.RUSAGE_CHILDREN)
        user, system = now.ru_utime - self._before.ru_utime, now.ru_stime - self._before.ru_stime
        missing = dict.fromkeys(("memory_current_bytes", "io_read_bytes", "io_write_bytes"), "it is a fake")
        return Usage(user, system, now.ru_maxrss * 1024, None, None, None, missing=missing)

    def footprint(self) -> Footprint:
        """Nothing is metered."""
        return Footprint(None, None, None, 0, 0, 0)


class Fake(Backend):
    """Starts nothing but commands."""

    name = "fake"
    summary = "commands on the host"
    concurrent_starts = 4

    def probe(self) -> Availability:
        """Needs only a POSIX user land."""
        return Availability(available=True, reason="always")

    def prepare(self, image: Image, envelope: Envelope) -> BackendDescription:
        """Says what it is not."""
        del image, envelope
        confounds = (
            Confound(NOT_ISOLATED, "commands run on the host itself", self.name),
            Confound("no-limits", "nothing is limited", self.name),
        )
        return BackendDescription(label="fake", kind=IsolationKind.BARE_METAL, confounds=confounds)

    @contextlib.contextmanager
    def start(self, spec: InstanceSpec) -> Iterator[Instance]:
        """A folder, and a file beside it that only ``reclaim`` knows to remove."""
        timeline = StartTimeline()
        timeline.mark(Phase.REQUESTED, time.monotonic())
        folder = self.context.work_directory / spec.identifier
        token = self.context.work_directory / f"{spec.identifier}.token"
        ledger = self.context.ledger
        with (
            ledger.holding(ResourceKind.DIRECTORY, folder),
            ledger.holding("token", token, backend=self.name),
            ledger.holding(ResourceKind.PROCESS, spec.identifier),
        ):
            folder.mkdir()
            token.touch()
            for phase in (Phase.CREATED, Phase.FIRST_INSTRUCTION, Phase.READY):
                timeline.mark(phase, time.monotonic())
            instance = FakeInstance(folder, spec, timeline)
            try:
                yield instance
            finally:
                timeline.mark(Phase.STOP_REQUESTED, time.monotonic())
                instance.kill()
                timeline.mark(Phase.PROCESS_GONE, time.monotonic())
                folder.rmdir()
                token.unlink()
                timeline.mark(Phase.STOPPED, time.monotonic())

    @classmethod
    def reclaim(cls, target: str) -> bool:
        """Remove a token."""
        was_there = Path(target).exists()
        Path(target).unlink(missing_ok=True)
        return was_there
