"""What several workloads take: types of parameters that refuse a wrong value by its key, and bounds of the envelope."""

from typing import Annotated, Any, ClassVar

from msgspec import Meta

from tare.bench.errors import WorkloadError
from tare.bench.interfaces import Workload
from tare.bench.model import Envelope
from tare.bench.units import Size, format_size

WholeSeconds = Annotated[int, Meta(ge=1, le=3600, description="seconds; the tool takes whole ones only")]
Seconds = Annotated[float, Meta(ge=0.1, le=3600.0, description="seconds")]

Port = Annotated[int, Meta(ge=1024, le=65535)]

START_MARGIN_S = 60.0
"""How much longer than its run time a command may take before tare kills it: an emulated guest starts slowly."""

READY_WITHIN_S = 120.0
"""How long a server may take to answer: a database starts in seconds, and ten times slower in an emulated guest."""

SHARE_FOR_DATA = 5 / 6
"""How much of the scratch folder data may fill: a file system of 64 MiB keeps 15 % for itself (ext4)."""


class TimedWorkload(Workload):
    """A workload whose tool stops by its own clock, after ``runtime_s``.

    ``overhead_s`` is what the tool takes to start and to end on bare metal.
    """

    fixed_time = True
    overhead_s: ClassVar[float] = 0.0

    @classmethod
    def duration_s(cls, params: Any) -> float:
        return float(params.runtime_s + cls.overhead_s)


def timeout_of(run_s: float) -> float:
    """Seconds after which tare kills a command that stops by its own clock after ``run_s``."""
    return 2 * run_s + START_MARGIN_S


def require_size(key: str, size: Size, least: int, most: int) -> None:
    """Raise ValueError that names the size parameter ``key`` if it is out of bounds."""
    if not least <= size <= most:
        raise ValueError(f"{key}: {size} is not between {format_size(least)} and {format_size(most)}")


def require_scratch(
    envelope: Envelope, needed: float, what: str, remedy: str, *, share: float = SHARE_FOR_DATA
) -> None:
    """Raise WorkloadError if ``needed`` bytes are more than ``share`` of the scratch folder.

    ``what`` needs them; ``remedy`` is what to state instead of more scratch.
    """
    if needed > envelope.scratch_bytes * share:
        raise WorkloadError(
            f"{what}, {format_size(needed)}, does not fit the instance's scratch folder of "
            f"{format_size(envelope.scratch_bytes)}: at most {share * 100:.0f} % of it may be filled",
            remedy=f"state {remedy}, or more scratch in the envelope",
        )


def require_memory(envelope: Envelope, needed: float, what: str, remedy: str, *, share: float = 3 / 4) -> None:
    """Raise WorkloadError if ``needed`` bytes are more than ``share`` of the memory; else as ``require_scratch``."""
    if needed > envelope.memory_bytes * share:
        raise WorkloadError(
            f"{what} needs {format_size(needed)}, more than {share * 100:.0f} % of the instance's memory of "
            f"{format_size(envelope.memory_bytes)}",
            remedy=f"state {remedy}, or more memory in the envelope",
        )
