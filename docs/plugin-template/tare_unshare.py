"""A container from util-linux alone: namespaces that live as long as their first process, entered by each command."""

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
from tare.backends.cgroups.layout import find_layout
from tare.backends.cgroups.lifecycle import Cgroup, start_cgroup
from tare.backends.cgroups.limits import limits_of
from tare.bench.errors import BackendError
from tare.bench.interfaces import Backend, Instance
from tare.bench.ledger import MARKER_VARIABLE, ResourceKind
from tare.bench.linux.mounts import find_block_device
from tare.bench.model import (
    SCRATCH,
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
    named_facts,
)
from tare.bench.packages import remedy_for
from tare.bench.process import PIPE, Popen, TimeoutExpired, find_tool

# A process joins each cgroup itself, before it becomes what it is for.
JOIN = """
while [ "$1" != -- ]; do echo 0 > "$1"; shift; done
shift
exec "$@"
"""
# The first process prints its pid on the host, and ends, with all that is in its namespaces, when its stdin is closed:
# also when tare is killed. It becomes the parent of orphans; ignoring SIGCHLD, it need not wait for them.
INIT = """
set -e
read -r pid rest < /proc/self/stat
mount -t overlay overlay -o "lowerdir=$1,upperdir=$2/upper,workdir=$2/work" "$2/root"
mkdir -p "$2/root$3"
mount --bind "$2/scratch" "$2/root$3"
mount --rbind /dev "$2/root/dev"
mount -t proc proc "$2/root/proc"
echo "$pid"
exec env --ignore-signal=CHLD cat
"""
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class UnshareInstance(Instance):
    """The namespaces of the process ``init`` (its pid on the host), and the cgroup of all that runs in them."""

    def __init__(self, folder: Path, spec: InstanceSpec, cgroup: Cgroup, init: int, timeline: StartTimeline) -> None:
        self.timeline = timeline
        self._folder = folder
        self._spec = spec
        self._cgroup = cgroup
        self._init = init

    def execute(self, command: Command) -> Completed:
        """Run ``command`` with files for its streams: what it leaves running may keep them open."""
        timed_out = False
        with contextlib.ExitStack() as stack:
            given, out, err = (stack.enter_context(tempfile.TemporaryFile(dir=self._folder)) for _ in range(3))
            given.write(command.stdin)
            given.seek(0)
            started = time.monotonic()
            with Popen(
                self._argv(command),
                env={"PATH": PATH, MARKER_VARIABLE: self._spec.identifier},
                stdin=given,
                stdout=out,
                stderr=err,
            ) as process:
                try:
                    code = process.wait(command.timeout_s)
                except TimeoutExpired:
                    timed_out = True
                    self._cgroup.kill(keep=[self._init])
                    code = process.wait()
            ended = time.monotonic()
            out.seek(0)
            err.seek(0)
            printed = out.read(), err.read()
        # nsenter ends as the command did: by the same signal, or with the same code.
        returncode, killed_by = (None, -code) if code < 0 else (code, None)
        return Completed(command.argv, returncode, killed_by, *printed, started, ended, timed_out)

    def _argv(self, command: Command) -> list[str]:
        environment = {"PATH": PATH, **command.env, MARKER_VARIABLE: self._spec.identifier}
        return [
            *joined(self._cgroup),
            *("taskset", "-c", ",".join(map(str, self._spec.envelope.cpus))),
            *("nsenter", "--target", str(self._init), "--mount", "--pid", "--ipc", "--uts", "--"),
            *("chroot", str(self._folder / "root"), "env", "-i", "-C", command.cwd),
            *(f"{name}={value}" for name, value in environment.items()),
            *command.argv,
        ]

    def usage(self) -> Usage:
        """By the meter that the built-in backends use."""
        return self._cgroup.meter.usage()

    def footprint(self) -> Footprint:
        """Memory by the same meter; on the disk, the private layers are its own and the image's tree is shared."""
        files = [path for part in ("upper", "scratch") for path in (self._folder / part).rglob("*")]
        owned = sum(path.lstat().st_blocks * 512 for path in files)
        shared = self._spec.image.rootfs_bytes
        return msgspec.structs.replace(self._cgroup.meter.footprint(), disk_owned_bytes=owned, disk_shared_bytes=shared)


class Unshare(Backend):
    """What ``unshare`` and ``nsenter`` can do, within a cgroup of tare's."""

    name = "unshare"
    summary = "namespaces made by util-linux's unshare"

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
        """Nothing to start once; the confounds are the limits that this host's cgroups cannot enforce."""
        return BackendDescription(
            label="unshare",
            kind=IsolationKind.CONTAINER,
            facts=named_facts({"namespaces": "mnt, pid, ipc, uts", "network": "the host's"}),
            confounds=find_layout().confounds(self.name),
        )

    @contextlib.contextmanager
    def start(self, spec: InstanceSpec) -> Iterator[Instance]:
        """A folder, a cgroup, and a process that holds the namespaces: each entered in the ledger before it is made."""
        timeline = StartTimeline()
        timeline.mark(Phase.REQUESTED, time.monotonic())
        folder = self.context.work_directory / spec.identifier
        ledger = self.context.ledger
        limits = limits_of(spec.envelope, find_block_device(self.context.work_directory))
        with contextlib.ExitStack() as stack:
            stack.enter_context(ledger.holding(ResourceKind.DIRECTORY, folder))
            stack.enter_context(ledger.holding(ResourceKind.PROCESS, spec.identifier))
            for part in ("upper", "work", "root", "scratch"):
                (folder / part).mkdir(parents=True)
            stack.callback(shutil.rmtree, folder)
            cgroup = stack.enter_context(start_cgroup(ledger, spec.identifier, limits))
            argv = ["unshare", "--mount", "--propagation", "private", "--pid", "--ipc", "--uts", "--fork"]
            argv += ["--kill-child=SIGKILL", *joined(cgroup), "sh", "-c", INIT, "tare-unshare"]
            argv += [str(spec.image.rootfs), str(folder), SCRATCH]
            environment = {"PATH": PATH, MARKER_VARIABLE: spec.identifier}
            holder = stack.enter_context(Popen(argv, env=environment, stdin=PIPE, stdout=PIPE, stderr=PIPE))
            timeline.mark(Phase.CREATED, time.monotonic())
            try:
                assert holder.stdout is not None and holder.stderr is not None
                init = holder.stdout.readline().strip()
                if not init:
                    said = holder.stderr.read().decode(errors="replace")
                    raise BackendError("the mounts of the instance could not be made", evidence=said)
                timeline.mark(Phase.FIRST_INSTRUCTION, time.monotonic())
                timeline.mark(Phase.READY, time.monotonic())
                yield UnshareInstance(folder, spec, cgroup, int(init), timeline)
            finally:
                timeline.mark(Phase.STOP_REQUESTED, time.monotonic())
                holder.communicate()
                timeline.mark(Phase.PROCESS_GONE, time.monotonic())
        timeline.mark(Phase.STOPPED, time.monotonic())


def joined(cgroup: Cgroup) -> list[str]:
    """The beginning of a command that is to run in ``cgroup``."""
    return ["sh", "-c", JOIN, "join", *map(str, cgroup.join_files), "--"]
