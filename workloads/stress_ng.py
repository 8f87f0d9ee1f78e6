"""stress-ng 0.15: one stressor, one instance per CPU, from its YAML report.

The log has two decimals and goes to stderr; the YAML has six and goes to the open descriptor 1 by its name under
``/proc``, so no file is left and nothing else is on stdout.
"""

import difflib
import math
import re
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, NamedTuple

import msgspec

from tare.bench.errors import ParseError
from tare.bench.model import SCRATCH, Command, Commands, Completed, Envelope, Measurement
from tare.bench.traits import Category, Parameter
from tare.workloads.metrics import rate_of, time_of
from tare.workloads.output import LINES, excerpt, one_match, positive, read_output, refuse
from tare.workloads.parameters import TimedWorkload, WholeSeconds, timeout_of

_TOOL = "stress-ng"
_DOCUMENT = re.compile(r"\A---\nsystem-info:\n(?: {6}\S[^\n]*\n)+\n(?P<metrics>metrics:\n.*)?\.\.\.\n*\Z", re.DOTALL)
_VERSION = re.compile(r"^ {6}stress-ng-version: 0\.\d+\.\d+$", LINES)
_METRICS = re.compile(
    r"metrics:\n {4}- stressor: (?P<stressor>[a-z0-9-]+)\n"
    r"(?P<fields>(?: {6}[a-z0-9_/%-]+: -?(?:\d+(?:\.\d+)?|nan|inf)\n)+)\n",
    re.ASCII | re.IGNORECASE,
)
_FIELD = re.compile(r"^ {6}([^:\n]+): (\S+)$", LINES)

# ``stress-ng --stressors`` of 0.15.06, less UNSAFE_STRESSORS. A name goes into an option (``--cpu``), so only known
# ones may: ``--timeout`` is not a stressor.
STRESSORS = frozenset(
    """
    access af-alg affinity aio aiol apparmor alarm atomic bad-altstack bigheap binderfs branch brk bsearch cache
    cacheline cap chattr chdir chmod chown chroot clock clone close context copy-file cpu crypt cyclic daemon dccp
    dekker dentry dev dev-shm dir dirdeep dirmany dnotify dup dynlib efivar enosys env epoll eventfd exec exit-group
    fallocate fanotify far-branch fault fcntl fiemap fifo file-ioctl filename flock flushcache fork forkheavy fp
    fp-error fpunch fsize fstat full funccall funcret futex get getdent getrandom goto gpu handle hash hdd heapsort
    hrtimers hsearch icache icmp-flood idle-page inode-flags inotify io iomix ioport ioprio io-uring ipsec-mb itimer
    jpeg judy kcmp key kill klog kvm l1cache landlock lease link list llc-affinity loadavg locka lockbus lockf
    lockofd longjmp loop lsearch madvise malloc matrix matrix-3d mcontend membarrier memcpy memfd memrate memthrash
    mergesort mincore misaligned mknod mlock mmap mmapaddr mmapfixed mmapfork mmaphuge mmapmany mprotect mq mremap
    msg msync msyncmany munmap mutex nanosleep netdev netlink-proc netlink-task nice nop null numa opcode open
    pagemove pageswap pci personality peterson physpage pidfd ping-sock pipe pipeherd pkey plugin poll prctl
    prefetch priv-instr procfs pthread ptrace pty qsort quota race-sched radixsort randlist ramfs rawpkt rawsock
    rawudp rdrand readahead regs remap rename resched resources revio ring-pipe rlimit rmap rotate rseq rtc
    schedpolicy sctp seal seccomp secretmem seek sem sem-sysv sendfile session set shellsort shm shm-sysv sigabrt
    sigchld sigfd sigfpe sigio signal signest sigpending sigpipe sigq sigrt sigsegv sigsuspend sigtrap skiplist
    sleep sock sockabuse sockdiag sockfd sockpair sockmany spawn sparsematrix splice stack stackmmap str stream
    switch symlink sync-file syncload sysbadaddr syscall sysinfo sysfs tee timer timerfd tlb-shootdown tmpfs touch
    tree tsc tsearch tun udp udp-flood umount unshare uprobe urandom userfaultfd usersyscall utime vdso vecfp
    vecmath vecshuf vecwide verity vfork vforkmany vm vm-addr vm-rw vm-segv vm-splice wait waitcpu wcs x86cpuid
    x86syscall xattr yield zero zlib zombie
    """.split()  # noqa: SIM905 - 300 quoted names are no easier to read
)

UNSAFE_STRESSORS = frozenset(
    """
    bad-ioctl bind-mount cpu-online memhotplug mlockmany oom-pipe rawdev reboot smi softlockup swap sysinval watchdog
    """.split()  # noqa: SIM905 - as above
)
"""Stressors that act on the kernel or the devices themselves, which bare metal and containers share with the host."""


_UNPRIVILEGED = (
    'rm -f report.yaml && setpriv --reuid=65534 --regid=65534 --clear-groups "$@" --yaml report.yaml >&2 '
    "&& cat report.yaml"
)
_FOLDER = f"{SCRATCH}/tare-stress-ng"


class Operation(NamedTuple):
    """A stressor with its options, and the field of its own that is the time of one operation, in nanoseconds."""

    options: tuple[str, ...]
    time_field: str | None = None
    unprivileged: bool = False


class StressNg(TimedWorkload):
    """What a bogo operation is differs from stressor to stressor and from version to version: compare backends only.

    Stressors that write files do so in the scratch folder.
    """

    name = "stress-ng"
    summary = "one stressor of stress-ng by name: bogo operations per second"
    title = "One stressor (stress-ng)"
    parameters = (Parameter("stressor", "Stressor"), Parameter("runtime_s", "Run time (s)"))
    packages = ("stress-ng",)
    licence = "GPL-2.0-or-later"
    category = Category.CPU
    metrics = (
        rate_of(
            "bogo.operations_per_second",
            "Bogo operations per second of all instances of the stressor.",
            "Operations of {stressor} per second",
        ),
        rate_of(
            "bogo.operations_per_cpu_second",
            "Bogo operations per second of CPU time, as the kernel that runs stress-ng accounts for it.",
            "Operations of {stressor} per CPU second",
        ),
    )

    class Params(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
        """``stressor`` is a name from ``stress-ng --stressors``."""

        stressor: str = "cpu"
        runtime_s: WholeSeconds = 1

        def __post_init__(self) -> None:
            if self.stressor not in STRESSORS:
                if self.stressor in UNSAFE_STRESSORS:
                    raise ValueError(f"stressor: {self.stressor!r} can bring down the host; tare does not run it")
                close = difflib.get_close_matches(self.stressor, STRESSORS, n=3)
                hint = f"; did you mean {' or '.join(close)}?" if close else ", for example cpu, matrix, switch or vm"
                raise ValueError(f"stressor: {self.stressor!r} is not a stressor of stress-ng that tare runs{hint}")

    def commands(self, params: Params, envelope: Envelope) -> Commands:
        return Commands(_command((f"--{params.stressor}", str(len(envelope.cpus))), params.runtime_s))

    def parse(self, completed: Completed) -> list[Measurement]:
        """The two rates as printed; they have to agree with the printed operations and times."""
        text, fields = _read_report(completed)
        return [
            Measurement("bogo.operations_per_second", _rate(fields, "real-time", ("wall-clock-time",), text)),
            Measurement(
                "bogo.operations_per_cpu_second", _rate(fields, "usr-sys-time", ("user-time", "system-time"), text)
            ),
        ]


class _Stressors(TimedWorkload):
    """One of several stressors, ``params.operation``, in as many instances as there are CPUs."""

    packages = ("stress-ng",)
    licence = "GPL-2.0-or-later"
    prefix: ClassVar[str]
    """Of the metrics."""
    operations: ClassVar[Mapping[str, Operation]]

    def commands(self, params: Any, envelope: Envelope) -> Commands:
        """The stressor, with a folder of its own where it runs as nobody."""
        operation = self.operations[params.operation]
        stressor = (f"--{params.operation}", str(len(envelope.cpus)), *operation.options)
        if not operation.unprivileged:
            return Commands(_command(stressor, params.runtime_s))
        # Only root may open the descriptor by its name: the report goes to a file of nobody's.
        argv = ("stress-ng", *stressor, "--timeout", f"{params.runtime_s}s", "--metrics", "--temp-path", _FOLDER)
        script = ("sh", "-c", _UNPRIVILEGED, "sh", *argv)
        run = Command(script, cwd=_FOLDER, timeout_s=timeout_of(params.runtime_s))
        make = Command(("install", "-d", "-o", "65534", "-g", "65534", _FOLDER))
        return Commands(run, setup=(make,), teardown=(Command(("rm", "-rf", _FOLDER)),))

    def parse(self, completed: Completed) -> list[Measurement]:
        """The rate of operations, checked against their number; the time of one where the stressor reports it."""
        text, fields = _read_report(completed)
        operation = self.operations.get(fields["stressor"])
        if operation is None:
            refuse(_TOOL, f"it ran {fields['stressor']}", text)
        rate = _rate(fields, "real-time", ("wall-clock-time",), text)
        found = [Measurement(f"{self.prefix}.operations_per_second", rate)]
        if operation.time_field is not None:
            if operation.time_field not in fields:
                refuse(_TOOL, f"the field {operation.time_field} is missing", text)
            time_s = positive(_TOOL, operation.time_field, fields[operation.time_field], text, exponent=-9)
            found.append(Measurement(f"{self.prefix}.time_per_operation", time_s))
        return found


class StressNgProcess(_Stressors):
    """What processes and threads cost the kernel to make, to start a program in, and to switch between.

    Each instance does one after the other, and waits for it. stress-ng runs programs (``exec``) only without root's
    rights, and so it is run as nobody for that.
    """

    name = "stress-ng-process"
    summary = "processes: fork, vfork, exec, threads, futexes or context switches, one instance per CPU"
    title = "Processes (stress-ng)"
    parameters = (
        Parameter(
            "operation",
            "Operation",
            {
                "exec": "programs run",
                "fork": "processes made by fork",
                "vfork": "processes made by vfork",
                "futex": "futex wake-ups",
                "pthread": "threads made",
                "switch": "context switches",
            },
        ),
        Parameter("runtime_s", "Run time (s)"),
    )
    category = Category.KERNEL
    metrics = (
        rate_of(
            "process.operations_per_second",
            "Processes or threads created and ended, programs run, futexes woken or messages passed per second.",
            "{operation} per second",
        ),
        time_of(
            "process.time_per_operation",
            "Time until a new thread runs (pthread), or of a switch between two processes (switch).",
            "Time of {operation}",
        ),
    )
    prefix = "process"
    operations: ClassVar[Mapping[str, Operation]] = {
        "exec": Operation(("--exec-max", "1"), unprivileged=True),
        "fork": Operation(("--fork-max", "1")),
        "futex": Operation(()),
        "pthread": Operation(("--pthread-max", "64"), "nanosecs-to-start-a-pthread"),
        "switch": Operation((), "nanosecs-per-context-switch-pipe-method"),
        "vfork": Operation(("--vfork-max", "1")),
    }

    class Params(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
        """``futex`` wakes a process that waits for one, ``switch`` writes to a process that waits at a pipe."""

        operation: Literal["exec", "fork", "futex", "pthread", "switch", "vfork"] = "fork"
        runtime_s: WholeSeconds = 1


class StressNgMemory(_Stressors):
    """What the kernel does for memory: page faults, and mappings made, changed and removed.

    In a guest there are two tables of pages to walk, and the host's faults hide behind the guest's.
    """

    name = "stress-ng-memory"
    summary = "memory management: page faults or mappings, one instance per CPU"
    title = "Memory mappings (stress-ng)"
    parameters = (
        Parameter(
            "operation", "Operation", {"fault": "page faults", "mmap": "memory mappings", "mremap": "moved mappings"}
        ),
        Parameter("runtime_s", "Run time (s)"),
    )
    category = Category.MEMORY
    metrics = (
        rate_of(
            "paging.operations_per_second",
            "Rounds of the operation (see stress-ng's manual) per second, over all instances.",
            "{operation} per second",
        ),
        time_of(
            "paging.time_per_operation",
            "Mean time of a page fault (fault) or of an mremap() call (mremap), as stress-ng measures it.",
            "Time of {operation}",
        ),
    )
    prefix = "paging"
    operations: ClassVar[Mapping[str, Operation]] = {
        "fault": Operation((), "nanosecs-per-page-fault"),
        "mmap": Operation(("--mmap-bytes", "1m")),
        "mremap": Operation(("--mremap-bytes", "1m"), "nanosecs-per-mremap-call"),
    }

    class Params(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
        """``fault`` touches pages of files and of memory, ``mmap`` and ``mremap`` take 1 MiB apart and move it."""

        operation: Literal["fault", "mmap", "mremap"] = "fault"
        runtime_s: WholeSeconds = 1


def _command(stressor: tuple[str, ...], runtime_s: int) -> Command:
    argv = ("stress-ng", *stressor, "--timeout", f"{runtime_s}s", "--metrics", "--temp-path", SCRATCH)
    timeout_s = timeout_of(runtime_s)
    return Command((*argv, "--yaml", "/proc/self/fd/1"), cwd=SCRATCH, timeout_s=timeout_s)


def _read_report(completed: Completed) -> tuple[str, Mapping[str, str]]:
    """The text, and the fields of its one stressor. Raises ParseError."""
    text = read_output(_TOOL, completed)
    document = one_match(_TOOL, "the YAML document", _DOCUMENT, text)
    one_match(_TOOL, "the version", _VERSION, text)
    if document["metrics"] is None:
        said = excerpt(completed.stderr.decode(errors="backslashreplace"))
        raise ParseError(
            "stress-ng ran no stressor here, so there is nothing to measure",
            remedy="its own reason is in the evidence; choose a stressor that this kernel supports",
            evidence=f"{said}\n{excerpt(text)}",
        )
    return text, _read_fields(document["metrics"], text)


def _read_fields(metrics: str, text: str) -> Mapping[str, str]:
    match = _METRICS.fullmatch(metrics)
    if match is None:
        refuse(_TOOL, "its metrics are not those of one stressor", text)
    pairs = [("stressor", match["stressor"]), *_FIELD.findall(match["fields"])]
    fields = dict(pairs)
    if len(fields) != len(pairs):
        refuse(_TOOL, "a field occurs twice", text)
    return fields


def _rate(fields: Mapping[str, str], name: str, times: tuple[str, ...], text: str) -> float:
    """The rate printed as ``bogo-ops-per-second-NAME``, checked against the operations over the sum of ``times``."""
    key = f"bogo-ops-per-second-{name}"
    missing = next((field for field in (key, "bogo-ops", *times) if field not in fields), None)
    if missing is not None:
        refuse(_TOOL, f"the field {missing} is missing", text)
    rate = positive(_TOOL, key, fields[key], text)
    operations = positive(_TOOL, "bogo-ops", fields["bogo-ops"], text)
    seconds = sum(float(fields[field]) for field in times)
    # Six decimals are printed of the rate and of each time.
    allowed = 1e-6 * len(times) + seconds * 1e-6 / rate
    if not math.isfinite(seconds) or not abs(operations / rate - seconds) <= allowed:
        refuse(_TOOL, f"{key} is {fields[key]}, which is not bogo-ops over {' + '.join(times)}", text)
    return rate
