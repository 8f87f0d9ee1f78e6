"""What ``density`` measures. ``iteration`` of each sample is the population: how many instances lived then.

Those of a start belong to the instance that made the population what it is. Totals are over all live instances.
"""

from tare.bench.catalogue import DensityMetric
from tare.bench.model import Direction, Metric, lower
from tare.bench.units import Unit

START = lower(
    DensityMetric.START, Unit.SECOND, "Requested until ready, of the instance that made the population so large."
)
CREATE = lower(
    DensityMetric.CREATE, Unit.SECOND, "Its part until what isolates exists: first process, or hypervisor's."
)
INIT = lower(DensityMetric.INIT, Unit.SECOND, "Its part from then until the first user-space instruction inside.")
READY = lower(DensityMetric.READY, Unit.SECOND, "Its part from then until it can execute a command.")

AT = lower(DensityMetric.AT, Unit.SECOND, "When memory was read, since the ramp began.")
MEMORY_AVAILABLE = Metric(
    DensityMetric.MEMORY_AVAILABLE,
    Unit.BYTE,
    Direction.HIGHER,
    "The host's MemAvailable, with density.reserve and density.harness, at each step; settled where density.settle is.",
)
RESERVE = Metric(
    "density.reserve",
    Unit.BYTE,
    Direction.HIGHER,
    "Part of it that MemAvailable leaves out: pages in CPUs' own lists, and room in slabs of objects that are gone.",
)
HARNESS = lower(
    "density.harness", Unit.BYTE, "Part of it too: tare's own memory, which grows with what it watches, at each step."
)
SLAB = lower(
    DensityMetric.SLAB, Unit.BYTE, "The host's kernel objects that it cannot give back (of SUnreclaim), at each step."
)
KERNEL_OTHER = lower(
    DensityMetric.KERNEL_OTHER, Unit.BYTE, "The host's kernel stacks, page tables and per-CPU memory, at each step."
)
CPU_STALL = lower(
    DensityMetric.CPU_STALL, Unit.SECOND, "Time in which something waited for a CPU (PSI) during the step."
)
MEMORY_STALL = lower(DensityMetric.MEMORY_STALL, Unit.SECOND, "Time in which something waited for memory, likewise.")
IO_STALL = lower(DensityMetric.IO_STALL, Unit.SECOND, "Time in which something waited for I/O, likewise.")
SETTLE = lower(
    DensityMetric.SETTLE, Unit.SECOND, "How long memory took to stop changing before it was read, where awaited."
)

SAMPLED = Metric(
    DensityMetric.SAMPLED,
    Unit.COUNT,
    Direction.HIGHER,
    "Instances whose own meters were read; totals are scaled from them.",
)
PSS = lower(DensityMetric.PSS, Unit.BYTE, "Proportional set size of all instances' host processes, from those sampled.")
RSS = lower(DensityMetric.RSS, Unit.BYTE, "Their resident size, pages that several share counted each time, likewise.")
PRIVATE = lower(DensityMetric.PRIVATE, Unit.BYTE, "Their memory that nobody shares, likewise.")
GUEST_RAM = lower(
    DensityMetric.GUEST_RAM, Unit.BYTE, "The part of density.pss that guests have as their RAM, likewise."
)
TCG_CACHE = lower(
    DensityMetric.TCG_CACHE,
    Unit.BYTE,
    "The part of density.pss that is code translated for emulated processors, likewise.",
)
CHARGE = lower(DensityMetric.CHARGE, Unit.BYTE, "Memory that the instances' cgroups are charged with, likewise.")
DISK_OWNED = lower(DensityMetric.DISK_OWNED, Unit.BYTE, "Disk blocks that single instances own, likewise.")
DISK_SHARED = lower(DensityMetric.DISK_SHARED, Unit.BYTE, "Disk blocks of the image, which all instances share: once.")
IDLE_CPU = lower(
    DensityMetric.IDLE_CPU,
    Unit.CPU,
    "CPUs that the instances keep busy without being asked anything, from those sampled.",
)
KSM = Metric(
    "density.ksm_sharing",
    Unit.BYTE,
    Direction.HIGHER,
    "Memory that same-page merging saves on the host, where it is on.",
)

THROUGHPUT = Metric(
    DensityMetric.THROUGHPUT,
    Unit.OPERATIONS_PER_SECOND,
    Direction.HIGHER,
    "What all instances did together, all loaded, from the first begin to the last end.",
)
BYTE_THROUGHPUT = Metric(
    DensityMetric.BYTE_THROUGHPUT, Unit.BYTES_PER_SECOND, Direction.HIGHER, "The same for a workload that moves bytes."
)
LATENCY = lower(
    "density.latency_p99", Unit.SECOND, "The workload's p99 latency, median over the instances, all loaded."
)
LATENCY_WORST = lower("density.latency_p99_worst", Unit.SECOND, "The same of the instance that had the worst.")
LOADED_CPU = lower(
    DensityMetric.LOADED_CPU,
    Unit.CPU,
    "CPUs that all instances kept busy from the first begin to the last end of the workload's command.",
)
DURATION = lower("density.duration", Unit.SECOND, "The workload's command, median over the instances, all loaded.")

POPULATION = Metric(
    DensityMetric.POPULATION, Unit.COUNT, Direction.HIGHER, "Instances alive at once when the ramp ended."
)
DEAD = lower("density.dead", Unit.COUNT, "Of these, those that no longer executed a command at the end.")
RAMP = lower("density.ramp", Unit.SECOND, "First request to last ready, without the time of loaded steps.")
STOP_ALL = lower("density.stop_all", Unit.SECOND, "Until the last instance was gone, one after another.")
MEMORY_KEPT = lower(
    "density.memory_kept", Unit.BYTE, "Memory that was not available again when it settled after the last instance."
)
MEMORY_RETURN = lower("density.memory_return", Unit.SECOND, "How long it took to settle after the last instance.")

START_PHASES = (CREATE, INIT, READY)
STALLS = {CPU_STALL: "cpu", MEMORY_STALL: "memory", IO_STALL: "io"}
HOST = {
    MEMORY_AVAILABLE: "unused",
    RESERVE: "reserve",
    HARNESS: "harness",
    SLAB: "slab",
    KERNEL_OTHER: "kernel_other",
    KSM: "ksm_saved",
}
"""Read for the whole host, with the field of a HostMemory that each is from."""
TOTALS = {
    PSS: "pss_bytes",
    RSS: "rss_bytes",
    PRIVATE: "private_bytes",
    GUEST_RAM: "guest_ram_bytes",
    TCG_CACHE: "tcg_cache_bytes",
    CHARGE: "cgroup_bytes",
    DISK_OWNED: "disk_owned_bytes",
}
"""Totals over all instances, with the field of a Footprint that each is from."""
ALL = tuple(one for one in list(globals().values()) if isinstance(one, Metric))
"""In the order in which they are declared here."""
