"""The nouns of tare as immutable values: what is asked for, and what instances, backends and hosts report.

Everything here is data that can be written as JSON and read back. Nothing here touches the machine.
All times called ``*_s`` that are points in time are readings of the host's CLOCK_MONOTONIC.
"""

import os
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import BinaryIO

import msgspec

from tare.bench.engine import StartedBy
from tare.bench.errors import BackendError, UnavailableError
from tare.bench.service import ImageProcess, ServiceRequest
from tare.bench.units import Unit

SCRATCH = "/scratch"
"""Where an instance finds its scratch folder, on the suite's storage, whatever the backend."""
BASE_ENVIRONMENT: Mapping[str, str] = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "LANG": "C.UTF-8",
}
"""The environment of every command, whatever the backend; ``Command.env`` adds to it."""
MAX_OUTPUT_BYTES = 2**30
"""The most a command may print, standard output and error together."""
KEPT_BYTES = 16 * 2**20
"""The most of each stream that is in memory and that parsers get: the end of it. All of it is kept on the disk."""


class Struct(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=False):
    """Base of everything that is stored: immutable, strict about unknown keys."""


# --- what is measured -----------------------------------------------------------------------------


class Direction(StrEnum):
    """Which way is better."""

    LOWER = "lower"
    HIGHER = "higher"


class Metric(Struct, frozen=True):
    """One measurable quantity.

    ``name`` is unique within a workload or experiment (``read.latency.p99``); values are in ``unit``.
    ``description`` is a sentence that says what the number means. ``title`` is what people call it, the same on every
    page: ``Reads per second``. It may name parameters: ``{block_size} reads per second``.
    """

    name: str
    unit: Unit
    direction: Direction
    description: str
    title: str = ""


def lower(name: str, unit: Unit, description: str, title: str = "") -> Metric:
    """A metric of which less is better."""
    return Metric(name, unit, Direction.LOWER, description, title)


class Measurement(Struct, frozen=True):
    """One value of one metric, as a workload's parser read it. In the metric's base unit."""

    metric: str
    value: float


class Histogram(Struct, frozen=True):
    """A distribution as a tool counted it in one iteration: ``counts[i]`` values up to ``bounds[i]``.

    ``name`` is what was counted (``read.latency``), in ``unit``. ``bounds`` are the inclusive upper edges of the
    buckets, rising; buckets that counted nothing may be left out, and so the lower edges are the tool's.
    """

    name: str
    unit: Unit
    bounds: tuple[float, ...]
    counts: tuple[int, ...]


# --- what is asked for ----------------------------------------------------------------------------


class Envelope(Struct, frozen=True):
    """The resources every instance gets, on every backend.

    ``cpus`` are host CPU numbers; an instance is pinned to exactly these, with all it costs the host.
    ``memory_bytes`` is the memory limit of a container and the memory of a guest. ``scratch_bytes`` is
    the size of the scratch folder where the backend has to reserve it. ``pids_max`` bounds processes.

    ``swap_bytes`` may be swapped out in addition to the memory, where the host has swap. ``cpu_quota`` is in CPUs (0.5:
    half a CPU), ``cpu_weight`` the share when CPUs are short, from 1 to 10000 as in cgroups v2, where 100 is usual. The
    I/O rates limit the block device under the suite's storage. None: not limited.
    """

    cpus: tuple[int, ...]
    memory_bytes: int
    scratch_bytes: int
    pids_max: int
    swap_bytes: int = 0
    cpu_quota: float | None = None
    cpu_weight: int | None = None
    io_read_bytes_per_s: int | None = None
    io_write_bytes_per_s: int | None = None
    io_read_ops_per_s: int | None = None
    io_write_ops_per_s: int | None = None


class Command(Struct, frozen=True):
    """A program to run inside an instance. ``argv[0]`` is looked up in the image's PATH.

    ``timeout_s`` bounds it: afterwards its whole process tree is killed and ``Completed.timed_out`` set. Raises
    ValueError if it names no program.
    """

    argv: tuple[str, ...]
    env: Mapping[str, str] = {}
    cwd: str = "/"
    stdin: bytes = b""
    timeout_s: float = 60.0

    def __post_init__(self) -> None:
        if not self.argv or not self.argv[0]:
            raise ValueError("a command is empty: it names no program")


class Completed(Struct, frozen=True):
    """How a command ended.

    ``returncode`` is the exit status, or None if ``signal`` (its number) ended it. ``started_s`` and
    ``ended_s`` are host-monotonic and bracket the program's own run as closely as the backend can see
    it; ``guest_duration_s`` is the instance's own idea of the duration where it has a clock of its own.

    ``oom_kills`` processes of the instance were killed by its memory limit while the command ran, and its limit on
    processes refused one ``pids_refused`` times, as far as the backend can tell. ``outer_limit`` names the limit that
    killed where it was not the instance's own (``400 MiB memory limit of the cgroup ...``).

    ``whole`` has the stream (``stdout``, ``stderr``) that is longer than ``KEPT_BYTES``, as a file at its beginning;
    the field of that name then holds its last ``KEPT_BYTES``.
    """

    argv: tuple[str, ...]
    returncode: int | None
    signal: int | None
    stdout: bytes
    stderr: bytes
    started_s: float
    ended_s: float
    timed_out: bool = False
    guest_duration_s: float | None = None
    oom_kills: int = 0
    pids_refused: int = 0
    outer_limit: str = ""
    whole: Mapping[str, BinaryIO] = {}

    @property
    def duration_s(self) -> float:
        """Seconds on the host's monotonic clock."""
        return self.ended_s - self.started_s


class Diagnosis(Struct, frozen=True):
    """Why a command failed, as its workload knows: ``reason`` in one line, ``remedy`` what to do about it."""

    reason: str
    remedy: str


SERVER = "@server@"
"""In the arguments or the environment of a command: the IPv4 address on which the workload's services listen."""


class Service(Struct, frozen=True):
    """A program that the measured command talks to; it runs until its instance ends.

    ``command`` stays in the foreground, listens on ``SERVER``, and gets no standard input. ``ready`` ends with exit
    status 0 if the service answers. It is run again and again until then, for ``ready_within_s`` at most or until the
    service has ended; 0: it is run once, and waits by itself within its own timeout.
    """

    name: str
    command: Command
    ready: Command
    ready_within_s: float = 0.0


class Commands(Struct, frozen=True):
    """What a workload wants run: set-up once, the measured command each iteration, teardown once.

    The ``services`` are started after the set-up, in their order, each when the one before is ready; then ``load`` runs
    once (a database is filled). Where services run in an instance of their own, the set-up is run there, and
    everything else, their ``ready`` too, where the measured command runs. ``image_service`` is the image's own program.
    """

    measured: Command
    setup: tuple[Command, ...] = ()
    teardown: tuple[Command, ...] = ()
    services: tuple[Service, ...] = ()
    load: tuple[Command, ...] = ()
    image_service: ServiceRequest | None = None


# --- what an instance reports -----------------------------------------------------------------------


class Phase(StrEnum):
    """Marks in the life of an instance, in this order, on the host's monotonic clock.

    ``requested``: the harness asked for it. ``created``: the thing that isolates exists (the new
    namespaces' first process; the QEMU process). ``vcpu_running``: a guest's processor began to run. ``loader``: the
    firmware had found the boot loader, which said so. ``kernel_entered``: the guest's kernel began, by its own clock.
    ``first_instruction``: the first user-space code inside ran. ``agent_answered``: what executes the guest's commands
    answered. ``ready``: the harness knows that it can execute a command. ``stop_requested``: the harness asked it to
    end. ``guest_down``: its own kernel had shut down, where there is one that was asked to. ``process_gone``: its last
    process on the host was gone. ``stopped``: all that it had on the host was released.
    """

    REQUESTED = "requested"
    CREATED = "created"
    VCPU_RUNNING = "vcpu_running"
    LOADER = "loader"
    KERNEL_ENTERED = "kernel_entered"
    FIRST_INSTRUCTION = "first_instruction"
    AGENT_ANSWERED = "agent_answered"
    READY = "ready"
    STOP_REQUESTED = "stop_requested"
    GUEST_DOWN = "guest_down"
    PROCESS_GONE = "process_gone"
    STOPPED = "stopped"


class StartTimeline:
    """The marks of one instance, filled in as it lives.

    ``splits`` are durations told by the guest itself, in seconds. ``started`` holds the ends of the start that an
    engine distinguishes, on the same clock as the marks.
    """

    def __init__(self) -> None:
        self.marks: dict[Phase, float] = {}
        self.started: dict[StartedBy, float] = {}
        self.splits: dict[str, float] = {}

    def mark(self, phase: Phase, at_s: float) -> None:
        """Record that ``phase`` was reached at ``at_s`` (host monotonic seconds)."""
        self.marks[phase] = at_s

    def between(self, first: Phase, second: Phase) -> float | None:
        """Seconds from one mark to another.

        None if either was not reached, or if the clock did not move on from the first to the second: where they were
        read that late, what lies between them is not resolved.
        """
        if first in self.marks and second in self.marks and self.marks[second] > self.marks[first]:
            return self.marks[second] - self.marks[first]
        return None


class Usage(Struct, frozen=True):
    """What an instance has cost the host since it started, by the host's own accounting.

    A field is None where this host cannot account for it; ``missing`` says why, by field name.

    A CPU quota is dealt out in periods, of which ``cpu_throttled_periods`` had it used up. ``memory_file_bytes`` is
    the page cache in ``memory_current_bytes``. The ``*_pressure_s`` are seconds in which some process of it waited for
    the resource (PSI). ``pids_refused`` counts processes that its limit on them refused.
    ``cpu_vcpu_s`` is the part of its CPU time in which a guest's vCPUs ran; None where there is no guest.
    """

    cpu_user_s: float | None
    cpu_system_s: float | None
    memory_peak_bytes: int | None
    memory_current_bytes: int | None
    io_read_bytes: int | None
    io_write_bytes: int | None
    cpu_throttled_s: float | None = None
    oom_kills: int | None = None
    cpu_periods: int | None = None
    cpu_throttled_periods: int | None = None
    memory_file_bytes: int | None = None
    io_read_operations: int | None = None
    io_write_operations: int | None = None
    cpu_pressure_s: float | None = None
    memory_pressure_s: float | None = None
    io_pressure_s: float | None = None
    pids_refused: int | None = None
    cpu_vcpu_s: float | None = None
    missing: Mapping[str, str] = {}

    @property
    def cpu_s(self) -> float | None:
        """CPU seconds, user and system together; None if either is not accounted for."""
        if self.cpu_user_s is None or self.cpu_system_s is None:
            return None
        return self.cpu_user_s + self.cpu_system_s


class Footprint(Struct, frozen=True):
    """The memory and disk that an instance holds now.

    ``pss_bytes`` and ``private_bytes`` are sums over its processes on the host (``smaps_rollup``);
    ``cgroup_bytes`` is its cgroup's charge; ``disk_owned_bytes`` are blocks only it has,
    ``disk_shared_bytes`` those it shares with others of the same image. ``rss_bytes`` counts a page that several
    processes share once for each. ``guest_ram_bytes`` is the part of ``pss_bytes`` that a guest has as its RAM; None
    where there is no guest, or nobody can tell. ``tcg_cache_bytes`` is the part that is translated code, where the
    guest's processor is emulated.
    """

    pss_bytes: int | None
    private_bytes: int | None
    cgroup_bytes: int | None
    disk_owned_bytes: int
    disk_shared_bytes: int
    processes: int
    rss_bytes: int | None = None
    guest_ram_bytes: int | None = None
    tcg_cache_bytes: int | None = None


class Confound(Struct, frozen=True):
    """Something other than isolation that may explain a difference. Recorded and shown, never hidden.

    ``code`` is stable and machine-readable (``accel-tcg``); ``backend`` is empty if it concerns the host.
    """

    code: str
    detail: str
    backend: str = ""


class Availability(Struct, frozen=True):
    """Whether a backend can work here, and if not why, and how to get it."""

    available: bool
    reason: str
    remedy: str | None = None

    @classmethod
    def no(cls, reason: str, remedy: str | None = None) -> "Availability":
        """It cannot."""
        return cls(available=False, reason=reason, remedy=remedy)

    def require(self, name: str) -> None:
        """Raises UnavailableError with the ``name`` of what was looked at, unless it can work."""
        if not self.available:
            raise UnavailableError(f"{name}: {self.reason}", remedy=self.remedy)


class IsolationKind(StrEnum):
    """What separates an instance from the host.

    ``emulated`` is a guest whose processor is emulated in software. ``user-mode-kernel`` is a kernel that runs as a
    process of the host (user-mode Linux, gVisor). ``sandbox`` is any other.
    """

    BARE_METAL = "bare-metal"
    CONTAINER = "container"
    VIRTUAL_MACHINE = "virtual-machine"
    EMULATED = "emulated"
    USER_MODE_KERNEL = "user-mode-kernel"
    SANDBOX = "sandbox"

    @property
    def is_guest(self) -> bool:
        """Whether an instance has virtual hardware, and so RAM of its own."""
        return self in (IsolationKind.VIRTUAL_MACHINE, IsolationKind.EMULATED)


class Fact(Struct, frozen=True):
    """One fact about a host or a backend.

    ``text`` is for people and for comparing, ``source`` where it was read. ``number`` is the exact value in the base
    unit ``unit``, for facts that are quantities; nobody parses ``text``.
    """

    name: str
    text: str
    source: str = ""
    number: float | None = None
    unit: Unit | None = None


def named_facts(texts: Mapping[str, str]) -> dict[str, Fact]:
    """Facts without a number, by name."""
    return {name: Fact(name, text) for name, text in texts.items()}


class BackendDescription(Struct, frozen=True):
    """What a backend turned out to be on this host once prepared.

    ``label`` is what tables and charts call it, and holds everything that must never be left out
    (``vm (tcg)``). ``accelerator`` executes a guest's instructions (``kvm``, ``tcg``); empty where there is no guest.
    ``facts`` are for people and for comparing runs (versions, device models): nothing is inferred from them, nor from
    the label. Raises BackendError for a kind that does not exist.
    """

    label: str
    kind: IsolationKind
    accelerator: str = ""
    facts: Mapping[str, Fact] = {}
    confounds: tuple[Confound, ...] = ()

    @property
    def texts(self) -> dict[str, str]:
        """The facts' texts, by name."""
        return {name: fact.text for name, fact in self.facts.items()}

    def __post_init__(self) -> None:
        try:
            msgspec.structs.force_setattr(self, "kind", IsolationKind(self.kind))
        except ValueError:
            raise BackendError(
                f"the backend {self.label!r} says that it is of the kind {self.kind!r}, which does not exist",
                remedy=f"BackendDescription(kind=...) is one of {', '.join(IsolationKind)}",
            ) from None


class Image(Struct, frozen=True):
    """A built image on this host: ``digest`` names its content, the paths are where it lies.

    ``rootfs`` is the tree that bare metal and containers use; ``disk`` is an erofs of the same tree;
    ``kernel`` and ``initramfs`` boot a guest on it. An imported image may have no kernel.
    ``packages`` maps package to version, ``tools`` the programs that built it. ``name`` is what it was
    called when it was looked up. ``guest_problem`` says why no guest can run on it, and is empty if one can.
    ``process`` is the program that an imported image is made for, where its archive says so.
    """

    digest: str
    recipe: str
    directory: Path
    rootfs: Path
    disk: Path | None
    kernel: Path | None
    initramfs: Path | None
    kernel_version: str
    packages: Mapping[str, str]
    size_bytes: int
    name: str = ""
    built_utc: str = ""
    tools: Mapping[str, str] = {}
    guest_problem: str = ""
    process: ImageProcess | None = None

    @property
    def guest_files(self) -> dict[str, Path]:
        """The files that only a guest uses, by what they are."""
        files = {"disk": self.disk, "kernel": self.kernel, "initramfs": self.initramfs}
        return {name: path for name, path in files.items() if path is not None}

    @property
    def rootfs_bytes(self) -> int:
        """The tree without those files. Raises OSError if one of them is gone."""
        return self.size_bytes - sum(path.stat().st_size for path in self.guest_files.values())

    def lacks(self, path: str) -> bool:
        """Whether the tree is here and has no ``path``, relative to it, not even as a link that leads nowhere."""
        return self.rootfs.is_dir() and not os.path.lexists(self.rootfs / path)


class InstanceSpec(Struct, frozen=True):
    """One instance to start. ``identifier`` is unique on this host and safe in a file name."""

    identifier: str
    image: Image
    envelope: Envelope
