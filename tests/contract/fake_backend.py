"""A backend without any isolation: it holds the contract suite itself to account, on machines without root."""

import contextlib
import os
import resource
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

from tare.bench.interfaces import Backend, Instance
from tare.bench.ledger import ResourceKind
from tare.bench.model import (
    Availability,
    BackendDescription,
    Command,
    Completed,
    Envelope,
    Footprint,
    Image,
    InstanceSpec,
    IsolationKind,
    Phase,
    StartTimeline,
    Usage,
)
from tare.bench.process import PIPE, Popen, TimeoutExpired


class FakeInstance(Instance):
    """Host processes in a folder."""

    def __init__(self, folder: Path, envelope: Envelope, timeline: StartTimeline) -> None:
        self.timeline = timeline
        self._folder = folder
        self._envelope = envelope
        self._before = resource.getrusage(resource.RUSAGE_CHILDREN)

    def execute(self, command: Command) -> Completed:
        environment = {"PATH": os.defpath, **command.env}
        program = shutil.which(command.argv[0], path=environment["PATH"])
        if program is None:
            started = time.monotonic()
            exists = Path(command.argv[0]).exists()
            return Completed(command.argv, 126 if exists else 127, None, b"", b"", started, time.monotonic())
        pinned = ["taskset", "-c", ",".join(map(str, self._envelope.cpus)), program, *command.argv[1:]]
        timed_out = False
        started = time.monotonic()
        with Popen(
            pinned, env=environment, cwd=command.cwd, stdin=PIPE, stdout=PIPE, stderr=PIPE, start_new_session=True
        ) as process:
            try:
                out, err = process.communicate(command.stdin, timeout=command.timeout_s)
            except TimeoutExpired:
                timed_out = True
                os.killpg(process.pid, signal.SIGKILL)
                out, err = process.communicate()
        ended = time.monotonic()
        code = process.returncode
        return Completed(
            command.argv, None if code < 0 else code, -code if code < 0 else None, out, err, started, ended, timed_out
        )

    def usage(self) -> Usage:
        now = resource.getrusage(resource.RUSAGE_CHILDREN)
        user, system = now.ru_utime - self._before.ru_utime, now.ru_stime - self._before.ru_stime
        return Usage(user, system, now.ru_maxrss * 1024, None, None, None, missing={"io_read_bytes": "a fake"})

    def footprint(self) -> Footprint:
        return Footprint(None, None, None, 0, 0, 0)


class Fake(Backend):
    """Starts nothing but commands."""

    name = "fake"
    summary = "commands on the host"

    def probe(self) -> Availability:
        return Availability(available=True, reason="always")

    def prepare(self, image: Image, envelope: Envelope) -> BackendDescription:
        return BackendDescription("fake", IsolationKind.SANDBOX)

    @contextlib.contextmanager
    def start(self, spec: InstanceSpec) -> Iterator[Instance]:
        timeline = StartTimeline()
        timeline.mark(Phase.REQUESTED, time.monotonic())
        folder = self.context.work_directory / spec.identifier
        with self.context.ledger.holding(ResourceKind.DIRECTORY, folder):
            folder.mkdir()
            for phase in (Phase.CREATED, Phase.FIRST_INSTRUCTION, Phase.READY):
                timeline.mark(phase, time.monotonic())
            try:
                yield FakeInstance(folder, spec.envelope, timeline)
            finally:
                timeline.mark(Phase.STOP_REQUESTED, time.monotonic())
                timeline.mark(Phase.PROCESS_GONE, time.monotonic())
                folder.rmdir()
                timeline.mark(Phase.STOPPED, time.monotonic())
