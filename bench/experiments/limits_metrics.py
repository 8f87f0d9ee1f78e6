"""What ``limits`` measures."""

from tare.bench.catalogue import LimitsMetric
from tare.bench.experiments.base import lower
from tare.bench.model import Direction, Metric
from tare.bench.units import Unit

START_MEMORY = lower(LimitsMetric.START_MEMORY, Unit.BYTE, "The least memory with which an instance started each time.")
WORKLOAD_MEMORY = lower(
    "limits.workload_memory", Unit.BYTE, "The least memory with which the workload passed each time."
)

CPUS_SEEN = Metric(
    LimitsMetric.CPUS_SEEN, Unit.RATIO, Direction.LOWER, "CPUs that a program inside sees, to those given."
)
MEMORY_SEEN = Metric(
    LimitsMetric.MEMORY_SEEN, Unit.RATIO, Direction.LOWER, "Memory that a program inside sees, to that given."
)

CPU_REACHED = lower(
    LimitsMetric.CPU_REACHED, Unit.RATIO, "CPU time used of that given, by twice as many busy processes."
)
MEMORY_REACHED = lower(
    LimitsMetric.MEMORY_REACHED, Unit.RATIO, "Memory that a process got of that given, asking for twice it."
)
PIDS_REACHED = lower(
    LimitsMetric.PIDS_REACHED, Unit.RATIO, "Processes alive at once of those given, asking for twice them."
)
DISK_REACHED = lower(
    LimitsMetric.DISK_REACHED, Unit.RATIO, "Bytes written to the scratch folder of its size, trying twice it."
)

MEMORY_GROWN = lower(
    "limits.memory_grown", Unit.BYTE, "What the host's charge grew by while a process held a quarter of it."
)
MEMORY_RETURNED = Metric(
    "limits.memory_returned", Unit.RATIO, Direction.HIGHER, "Share of that which the host had back when it had settled."
)
MEMORY_RETURN_TIME = lower(
    "limits.memory_return_time", Unit.SECOND, "From the process's end until the host had that share back."
)

ALL = (
    *(START_MEMORY, WORKLOAD_MEMORY, CPUS_SEEN, MEMORY_SEEN),
    *(CPU_REACHED, MEMORY_REACHED, PIDS_REACHED, DISK_REACHED),
    *(MEMORY_GROWN, MEMORY_RETURNED, MEMORY_RETURN_TIME),
)
