"""A container from util-linux alone: a mount namespace that lives, and a PID, IPC and UTS namespace a command."""

import contextlib
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from tare.bench.errors import BackendError
from tare.bench.interfaces import Backend, Instance
from tare.bench.ledger import MARKER_VARIABLE, ResourceKind
from tare.bench.model import (
    SCRATCH,
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
    named_facts,
)
from tare.bench.packages import remedy_for
from tare.bench.process import PIPE, Popen, TimeoutExpired, find_tool

# Ends, and takes its mounts with it, when its stdin is closed: also when tare is killed.
HOLDER = """
set -e
mount -t overlay overlay -o "lowerdir=$1,upperdir=$2/upper,workdir=$2/work" "$2/root"
mkdir -p "$2/root$3"
mount --bind "$2/scratch" "$2/root$3"
mount --rbind /dev "$2/root/dev"
echo ready
exec cat
"""
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
NO_METER = "the unshare backend makes no cgroup"


class UnshareInstance(Instance):
    """Commands enter the mount namespace of ``holder`` and make the other namespaces themselves.

    So a command is the first process of its PID namespace, and ignores signals that it does not handle.
    """

    def __init__(self, folder: Path, spec: InstanceSpec, holder: int, timeline: StartTimeline) -> None:
        self.timeline = timeline
        self._folder = folder
        self._spec = spec
        self._holder = holder

    def execute(self, command: Command) -> Completed:
        """Run ``command``; killing ``unshare`` kills the first process of its PID namespace, and so all of them."""
        timed_out = False
        started = time.monotonic()
        with Popen(
            self._argv(command),
            env={"PATH": os.environ.get("PATH", os.defpath), MARKER_VARIABLE: self._spec.identifier},
            stdin=PIPE,
            stdout=PIPE,
            stderr=PIPE,
        ) as process:
            try:
                out, err = process.communicate(command.stdin, timeout=command.timeout_s)
            except TimeoutExpired:
                timed_out = True
                process.kill()
                out, err = process.communicate()
            finally:
                process.kill()  # whatever else went wrong here: nothing is left running
        code = process.returncode
        killed = -code if code < 0 else None
        returncode = None if killed else code
        return Completed(command.argv, returncode, killed, out, err, started, time.monotonic(), timed_out)

    def _argv(self, command: Command) -> list[str]:
        root = self._folder / "root"
        environment = {"PATH": PATH, **command.env, MARKER_VARIABLE: self._spec.identifier}
        return [
            *("taskset", "-c", ",".join(map(str, self._spec.envelope.cpus))),
            *("nsenter", "--target", str(self._holder), "--mount", "--"),
            *("unshare", "--mount", "--pid", "--fork", "--kill-child=SIGKILL", "--ipc", "--uts"),
            *(f"--mount-proc={root}/proc", "chroot", str(root)),
            *("env", "-i", "-C", command.cwd, *(f"{name}={value}" for name, value in environment.items())),
            *command.argv,
        ]

    def usage(self) -> Usage:
        """Nothing is metered here, and the report says so."""
        fields = ("cpu_user_s", "cpu_system_s", "memory_peak_bytes", "memory_current_bytes")
        missing = dict.fromkeys((*fields, "io_read_bytes", "io_write_bytes"), NO_METER)
        return Usage(None, None, None, None, None, None, missing=missing)

    def footprint(self) -> Footprint:
        """The disk blocks of the private layers; memory is not metered."""
        files = [path for part in ("upper", "scratch") for path in (self._folder / part).rglob("*")]
        owned = sum(path.lstat().st_blocks * 512 for path in files)
        return Footprint(None, None, None, owned, self._spec.image.size_bytes, 1)


class Unshare(Backend):
    """What ``unshare`` and ``nsenter`` can do: namespaces, but neither limits nor accounting."""

    name = "unshare"
    summary = "namespaces made by util-linux's unshare, no cgroups"

    def probe(self) -> Availability:
        """Needs root and util-linux."""
        if os.geteuid() != 0:
            return Availability(available=False, reason="needs root to mount", remedy="run as root")
        missing = [tool for tool in ("unshare", "nsenter", "taskset", "mount") if find_tool(tool) is None]
        if missing:
            reason = f"{', '.join(missing)} is not installed"
            return Availability(available=False, reason=reason, remedy=remedy_for(["util-linux"]))
        return Availability(available=True, reason="root and util-linux are here")

    def prepare(self, image: Image, envelope: Envelope) -> BackendDescription:
        """Nothing to start once; says what is not enforced."""
        detail = "memory and the number of processes are not limited"
        return BackendDescription(
            label="unshare",
            kind=IsolationKind.CONTAINER,
            facts=named_facts({"namespaces": "mnt, pid, ipc, uts", "network": "the host's"}),
            confounds=(Confound("no-limits", detail, self.name),),
        )

    @contextlib.contextmanager
    def start(self, spec: InstanceSpec) -> Iterator[Instance]:
        """A folder, and a process that holds the mounts: each entered in the ledger before it is made."""
        timeline = StartTimeline()
        timeline.mark(Phase.REQUESTED, time.monotonic())
        folder = self.context.work_directory / spec.identifier
        ledger = self.context.ledger
        with ledger.holding(ResourceKind.DIRECTORY, folder), ledger.holding(ResourceKind.PROCESS, spec.identifier):
            for part in ("upper", "work", "root", "scratch"):
                (folder / part).mkdir(parents=True)
            argv = ["unshare", "--mount", "--propagation", "private", "sh", "-c", HOLDER, "tare-unshare"]
            argv += [str(spec.image.rootfs), str(folder), SCRATCH]
            environment = {"PATH": PATH, MARKER_VARIABLE: spec.identifier}
            with Popen(argv, env=environment, stdin=PIPE, stdout=PIPE, stderr=PIPE) as holder:
                timeline.mark(Phase.CREATED, time.monotonic())
                try:
                    if holder.stdout.readline() != b"ready\n":
                        said = holder.stderr.read().decode(errors="replace")
                        raise BackendError("the mounts of the instance could not be made", evidence=said)
                    timeline.mark(Phase.FIRST_INSTRUCTION, time.monotonic())
                    timeline.mark(Phase.READY, time.monotonic())
                    yield UnshareInstance(folder, spec, holder.pid, timeline)
                finally:
                    timeline.mark(Phase.STOP_REQUESTED, time.monotonic())
                    holder.communicate()
                    shutil.rmtree(folder)
                    timeline.mark(Phase.STOPPED, time.monotonic())
