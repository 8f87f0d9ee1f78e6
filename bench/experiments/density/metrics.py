"""What ``density`` measures. ``iteration`` of each sample is the population: how many instances were alive then.

Those of a start belong to the instance that made the population this large. Totals are over all live instances.
"""

from tare.bench.catalogue import DensityMetric as Name
from tare.bench.model import Direction, Metric, lower
from tare.bench.units import Unit

START = lower(
    Name.START, Unit.SECOND, "From the request for one more instance until it is ready.", title="Time to start one more"
)
CREATE = lower(
    Name.CREATE,
    Unit.SECOND,
    "The part of density.start until the first process or QEMU exists.",
    title="Start: until its first process exists",
)
INIT = lower(
    Name.INIT,
    Unit.SECOND,
    "The part from then until the first user-space instruction inside.",
    title="Start: until the first instruction inside",
)
READY = lower(
    Name.READY,
    Unit.SECOND,
    "The part from then until it can execute a command.",
    title="Start: until it takes commands",
)

AT = lower(Name.AT, Unit.SECOND, "When memory was read, since the ramp began.", title="Time since the ramp began")
MEMORY_AVAILABLE = Metric(
    Name.MEMORY_AVAILABLE,
    Unit.BYTE,
    Direction.HIGHER,
    "The host's MemAvailable plus density.reserve and density.harness at each step, settled where density.settle is.",
    "Memory available on the host",
)
RESERVE = Metric(
    "density.reserve",
    Unit.BYTE,
    Direction.HIGHER,
    "Free memory that MemAvailable leaves out: per-CPU page lists, and room in slabs of objects that are gone.",
    "Free memory that MemAvailable leaves out",
)
HARNESS = lower(
    "density.harness",
    Unit.BYTE,
    "tare's own memory, which grows with the instances it watches.",
    title="tare's own memory",
)
SLAB = lower(
    Name.SLAB,
    Unit.BYTE,
    "The host's kernel objects that it cannot give back (of SUnreclaim), at each step.",
    title="Kernel objects of the host",
)
KERNEL_OTHER = lower(
    Name.KERNEL_OTHER,
    Unit.BYTE,
    "The host's kernel stacks, page tables and per-CPU memory.",
    title="Kernel stacks and page tables of the host",
)
CPU_STALL = lower(
    Name.CPU_STALL,
    Unit.SECOND,
    "Time in which some task waited for a CPU (PSI) during the step.",
    title="Time waited for CPUs",
)
MEMORY_STALL = lower(
    Name.MEMORY_STALL,
    Unit.SECOND,
    "Time in which some task waited for memory during the step.",
    title="Time waited for memory",
)
IO_STALL = lower(
    Name.IO_STALL, Unit.SECOND, "Time in which some task waited for I/O during the step.", title="Time waited for disks"
)
SETTLE = lower(
    Name.SETTLE,
    Unit.SECOND,
    "How long memory took to stop changing before it was read.",
    title="Time until memory settled",
)

SAMPLED = Metric(
    Name.SAMPLED,
    Unit.COUNT,
    Direction.HIGHER,
    "Instances whose meters were read; totals scale them up.",
    title="Instances whose meters were read",
)
PSS = lower(
    Name.PSS,
    Unit.BYTE,
    "Proportional set size of all instances' host processes, scaled from those sampled.",
    title="Memory of all instances",
)
RSS = lower(
    Name.RSS,
    Unit.BYTE,
    "Their resident size, which counts a shared page once for each process.",
    title="Resident memory of all instances",
)
PRIVATE = lower(
    Name.PRIVATE, Unit.BYTE, "The part of their memory that nobody shares.", title="Memory that no two instances share"
)
GUEST_RAM = lower(
    Name.GUEST_RAM,
    Unit.BYTE,
    "The part of density.pss that guests have as their RAM.",
    title="Memory touched by guests",
)
TCG_CACHE = lower(
    Name.TCG_CACHE,
    Unit.BYTE,
    "The part of density.pss that is code translated for emulated CPUs.",
    title="Memory for translated code",
)
CHARGE = lower(
    Name.CHARGE,
    Unit.BYTE,
    "Memory charged to the instances' cgroups, scaled from those sampled.",
    title="Memory charged to all instances",
)
DISK_OWNED = lower(
    Name.DISK_OWNED,
    Unit.BYTE,
    "Disk blocks that single instances own, scaled from those sampled.",
    title="Disk space of the instances",
)
DISK_SHARED = lower(
    Name.DISK_SHARED,
    Unit.BYTE,
    "Disk blocks of the image, which all instances share, counted once.",
    title="Disk space of the shared image",
)
IDLE_CPU = lower(
    Name.IDLE_CPU,
    Unit.CPU,
    "CPUs that idle instances keep busy, scaled from those sampled.",
    title="CPUs that idle instances keep busy",
)
MEMORY_ENGINE = lower(
    Name.MEMORY_ENGINE,
    Unit.BYTE,
    "The part of density.pss that is the engine's helpers (shim, conmon, monitor), scaled from those sampled.",
    title="Memory of the engine's helpers",
)
MEMORY_DAEMON = lower(
    Name.MEMORY_DAEMON,
    Unit.BYTE,
    "Proportional set size of the engine's daemon, once for all instances; no part of density.pss.",
    title="Memory of the engine's daemon",
)
KSM = Metric(
    "density.ksm_sharing",
    Unit.BYTE,
    Direction.HIGHER,
    "Memory that same-page merging saves on the host.",
    title="Memory saved by same-page merging",
)

THROUGHPUT = Metric(
    Name.THROUGHPUT,
    Unit.OPERATIONS_PER_SECOND,
    Direction.HIGHER,
    "Throughput of all instances under load together, from the first begin to the last end.",
    "Throughput of all instances",
)
BYTE_THROUGHPUT = Metric(
    Name.BYTE_THROUGHPUT,
    Unit.BYTES_PER_SECOND,
    Direction.HIGHER,
    "The same for a workload that moves bytes.",
    "Throughput of all instances",
)
LATENCY = lower(
    "density.latency_p99",
    Unit.SECOND,
    "The workload's p99 latency under load, median over the instances.",
    title="99th percentile latency, typical instance",
)
LATENCY_WORST = lower(
    "density.latency_p99_worst",
    Unit.SECOND,
    "The p99 latency of the instance that had the worst.",
    title="99th percentile latency, worst instance",
)
LOADED_CPU = lower(
    Name.LOADED_CPU,
    Unit.CPU,
    "CPUs busy with all instances under load, first begin to last end.",
    title="CPUs busy under load",
)
DURATION = lower(
    "density.duration",
    Unit.SECOND,
    "The workload's command under load, median over the instances.",
    title="Run time of the command under load",
)

POPULATION = Metric(
    Name.POPULATION,
    Unit.COUNT,
    Direction.HIGHER,
    "Instances alive at once when the ramp ended.",
    title="Instances alive at once",
)
DEAD = lower(
    "density.dead",
    Unit.COUNT,
    "Those of them that no longer executed a command at the end.",
    title="Instances that stopped answering",
)
RAMP = lower(
    "density.ramp",
    Unit.SECOND,
    "From the first request to the last ready, without the time under load.",
    title="Time to start all",
)
STOP_ALL = lower(
    "density.stop_all", Unit.SECOND, "Until the last instance was gone, one after another.", title="Time to stop all"
)
MEMORY_KEPT = lower(
    "density.memory_kept",
    Unit.BYTE,
    "Memory not available again once it settled after the last stop.",
    title="Memory not returned",
)
MEMORY_RETURN = lower(
    "density.memory_return",
    Unit.SECOND,
    "How long memory took to settle after the last stop.",
    title="Time until memory was returned",
)

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
