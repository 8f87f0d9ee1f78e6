"""Names that more than one part of tare uses, and the traits of the built-in experiments: nobody types them again.

A metric that only its experiment knows by name is declared there alone. A metric's meaning (unit, direction,
description) is in its experiment's ``metrics``, and in the manifest.
"""

from collections.abc import Mapping
from enum import StrEnum

from tare.bench.traits import ExperimentTraits, Parameter


class Builtin(StrEnum):
    """The built-in experiments."""

    BOOT = "boot"
    CHURN = "churn"
    DENSITY = "density"
    INTERFERENCE = "interference"
    LIMITS = "limits"
    STEADY = "steady"


# --- metrics ----------------------------------------------------------------------------------------


class BootMetric(StrEnum):
    """Metrics of ``boot``."""

    TOTAL = "boot.total"
    CREATE = "boot.create"
    INIT = "boot.init"
    READY = "boot.ready"
    VCPU = "boot.vcpu"
    FIRMWARE = "boot.firmware"
    KERNEL = "boot.kernel"
    PSS = "boot.pss"
    CPU = "boot.cpu"


class EngineMetric(StrEnum):
    """Metrics of what an engine does and costs, in ``boot`` and ``steady``."""

    BY_RETURN = "boot.by_return"
    BY_INSTRUCTION = "boot.by_instruction"
    BY_EVENT = "boot.by_event"
    BY_EXEC = "boot.by_exec"
    BY_SERVICE = "boot.by_service"
    EXEC = "boot.exec"
    CPU = "host.cpu_engine"
    MEMORY = "host.memory_engine"
    DAEMON_CPU = "host.cpu_daemon"
    DAEMON_MEMORY = "host.memory_daemon"


class GuestSplit(StrEnum):
    """Parts of a guest's start by its own clock (``StartTimeline.splits``); metrics of ``boot`` of the same names."""

    KERNEL = "guest.kernel"
    INIT = "guest.init"
    INITRAMFS = "guest.initramfs"
    SYSTEM = "guest.system"


class SteadyMetric(StrEnum):
    """Metrics that ``steady`` adds to those of each workload."""

    DURATION = "command.duration"
    GUEST_DURATION = "command.guest_duration"
    CPU = "host.cpu"
    CPU_OVERHEAD = "host.cpu_overhead"
    IO_READ = "host.io_read"
    IO_WRITE = "host.io_write"
    MEMORY_PEAK = "host.memory_peak"


INSTANCE_PREFIX = "instance."
HARNESS_METRICS = ("command.", "host.", INSTANCE_PREFIX)
"""Beginnings of the names of metrics that the harness adds to each workload's own."""


class DensityMetric(StrEnum):
    """Metrics of ``density``; ``iteration`` of their samples is the number of instances alive."""

    START = "density.start"
    CREATE = "density.create"
    INIT = "density.init"
    READY = "density.ready"
    AT = "density.at"
    MEMORY_AVAILABLE = "density.memory_available"
    SLAB = "density.slab"
    KERNEL_OTHER = "density.kernel_other"
    CPU_STALL = "density.cpu_stall"
    MEMORY_STALL = "density.memory_stall"
    IO_STALL = "density.io_stall"
    SETTLE = "density.settle"
    SAMPLED = "density.sampled"
    PSS = "density.pss"
    RSS = "density.rss"
    PRIVATE = "density.private"
    CHARGE = "density.charge"
    GUEST_RAM = "density.guest_ram"
    TCG_CACHE = "density.tcg_cache"
    DISK_OWNED = "density.disk_owned"
    DISK_SHARED = "density.disk_shared"
    IDLE_CPU = "density.idle_cpu"
    MEMORY_ENGINE = "density.memory_engine"
    MEMORY_DAEMON = "density.memory_daemon"
    THROUGHPUT = "density.throughput"
    BYTE_THROUGHPUT = "density.byte_throughput"
    LOADED_CPU = "density.loaded_cpu"
    POPULATION = "density.population"


class ChurnMetric(StrEnum):
    """Metrics of ``churn``; ``iteration`` of their samples is the number of replacements so far."""

    SUSTAINED = "churn.sustained"
    START = "churn.start"
    STOP = "churn.stop"
    START_P99 = "churn.start_p99"
    STOP_P99 = "churn.stop_p99"
    MEMORY_KEPT = "churn.memory_kept"


class LimitsMetric(StrEnum):
    """Metrics of ``limits``."""

    START_MEMORY = "limits.start_memory"
    CPUS_SEEN = "limits.cpus_seen"
    MEMORY_SEEN = "limits.memory_seen"
    CPU_REACHED = "limits.cpu_reached"
    MEMORY_REACHED = "limits.memory_reached"
    PIDS_REACHED = "limits.pids_reached"
    DISK_REACHED = "limits.disk_reached"


VALUE_PREFIX = "interference.value."
"""Beginning of the names of a victim's own metrics, next to as many aggressors as ``iteration`` says."""
SHAM_PREFIX = "interference.sham."
"""Beginning of the names of metrics that say the same of neighbours that do nothing."""
RATIO_PREFIX = "interference.ratio."
"""Beginning of the names of metrics that say how many times worse than alone a victim got."""


# --- notes and confounds ----------------------------------------------------------------------------


class NoteCode(StrEnum):
    """What a note of a run is about (``code`` among the details of its event)."""

    CLOCK = "clock"
    LONG_OUTPUT = "long-output"
    PRIMED = "primed"
    PRECISION = "precision"
    BLOCKS_DEPENDENT = "blocks-dependent"
    BLOCKS_UNTESTED = "blocks-untested"
    TENTATIVE = "tentative-differences"
    COSTS_SKEWED = "costs-skewed"
    CHURN_END = "churn-end"
    DENSITY_STOP = "density-stop"
    DENSITY_DEAD = "density-dead"
    DENSITY_UNSETTLED = "density-unsettled"
    DENSITY_NOT_RETURNED = "density-not-returned"
    LIMITS_SEEN = "limits-seen"
    LIMITS_SEARCH = "limits-search"
    LIMITS_STALLED = "limits-stalled"
    LIMITS_NOT_HELD = "limits-not-held"


class StopReason(StrEnum):
    """Why a ramp of ``density`` ended (``reason`` of a note ``density-stop``)."""

    COUNT = "count"
    MEMORY_FLOOR = "memory-floor"
    START_LIMIT = "start-limit"
    OBJECTIVE = "objective"
    FAILURE = "failure"
    DIED = "died"


class ConfoundCode(StrEnum):
    """Codes of confounds that more than one part of tare knows."""

    EMULATED = "accel-tcg"
    HOST_EMULATED = "host-emulated"
    HOST_VIRTUAL = "host-virtual"
    NESTED = "nested-virtualization"
    OTHER_KERNEL = "other-kernel"
    OWN_NETWORK = "own-network"
    OUTER_MEMORY_LIMIT = "outer-memory-limit"
    OTHER_SECCOMP = "other-seccomp"
    IMAGE_READ_ONLY = "image-folders-read-only"
    GUEST_MEMORY = "guest-memory"
    OTHER_ROOT = "other-root"
    STORAGE_PATH = "storage-path"
    SCRATCH_CACHED = "scratch-cached"
    IO_UNACCOUNTED = "io-unaccounted"
    IO_WRITES_PARTLY = "io-writes-partly"


CONFOUND_WEIGHTS: Mapping[str, int] = {
    ConfoundCode.EMULATED: 3,
    ConfoundCode.HOST_EMULATED: 3,
    ConfoundCode.NESTED: 2,
    ConfoundCode.HOST_VIRTUAL: 2,
    ConfoundCode.OTHER_KERNEL: 2,
    ConfoundCode.OUTER_MEMORY_LIMIT: 2,
}
"""How much a confound matters, from 1 (all others) to 3: from 2 on it belongs on the first screen of a report."""

DECIDES_NOTHING = "decides no claim about virtualization"
"""What is said of whatever was measured on a host whose own processor is emulated."""


# --- experiments ------------------------------------------------------------------------------------

TRAITS: Mapping[str, ExperimentTraits] = {
    Builtin.BOOT: ExperimentTraits(
        title="Start and stop", known_by=BootMetric.TOTAL, leading=(BootMetric.TOTAL, BootMetric.PSS), warms_up=False
    ),
    Builtin.CHURN: ExperimentTraits(
        title="Churn",
        leading=(ChurnMetric.SUSTAINED, ChurnMetric.START_P99, ChurnMetric.MEMORY_KEPT),
        details=(ChurnMetric.START, ChurnMetric.STOP),
        warms_up=False,
        grows_with="replacements",
        of_each_step=(ChurnMetric.START, ChurnMetric.STOP),
        parameters=(
            Parameter("population", "Instances alive"),
            Parameter("rate", "First rate"),
            Parameter("faster", "Factor of each step"),
            Parameter("most", "Largest rate"),
            Parameter("objective", "p99 of a start at most"),
        ),
    ),
    Builtin.DENSITY: ExperimentTraits(
        title="Density",
        leading=(DensityMetric.POPULATION, DensityMetric.START, DensityMetric.PSS),
        details=(DensityMetric.AT, DensityMetric.SAMPLED, DensityMetric.SETTLE),
        warms_up=False,
        grows_with="instances alive",
        of_each_step=(
            *(DensityMetric.START, DensityMetric.CREATE, DensityMetric.INIT, DensityMetric.READY, DensityMetric.SETTLE),
            *(DensityMetric.CPU_STALL, DensityMetric.MEMORY_STALL, DensityMetric.IO_STALL),
        ),
        parameters=(
            Parameter("count", "Instances asked for"),
            Parameter("batch", "Started at once"),
            Parameter("rate", "Starts per second"),
            Parameter("memory_floor", "Memory to leave"),
            Parameter("meters_every", "Instances between readings"),
            Parameter("settle_interval", "Between readings until memory has settled"),
            Parameter("settle_deadline", "For memory to settle at most"),
        ),
    ),
    Builtin.INTERFERENCE: ExperimentTraits(
        title="Noisy neighbours",
        known_by=RATIO_PREFIX,
        warms_up=False,
        grows_with="neighbours",
        parameters=(
            Parameter(
                "aggressor",
                "Neighbours that",
                {
                    "cpu": "use the CPU",
                    "memory": "use memory",
                    "page-cache": "fill the page cache",
                    "disk": "use the disk",
                    "fork": "create processes",
                    "network": "use the network",
                },
            ),
            Parameter("aggressors", "Neighbours"),
            Parameter("cpus", "Their CPUs"),
        ),
    ),
    Builtin.LIMITS: ExperimentTraits(
        title="Limits",
        leading=(LimitsMetric.START_MEMORY, LimitsMetric.MEMORY_REACHED, LimitsMetric.CPU_REACHED),
        warms_up=False,
        parameters=(Parameter("resolution", "Search ends within"), Parameter("repeats", "Tries of a size")),
    ),
    Builtin.STEADY: ExperimentTraits(
        title="Workloads", of_workload=True, details=(INSTANCE_PREFIX, SteadyMetric.GUEST_DURATION)
    ),
}
"""Of the built-in experiments; runs from before manifests had them are given these."""
