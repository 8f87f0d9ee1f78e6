"""Programs that take something from their neighbours: stress-ng in an instance of its own, bounded in time."""

from collections.abc import Mapping

from tare.bench.errors import WorkloadError
from tare.bench.experiments.background import Background
from tare.bench.interfaces import Instance
from tare.bench.model import SCRATCH, Command, Envelope

_FILE_BYTES = "64m"
_MOST_BYTES = 2**28
"""More than a last-level cache holds, where the envelope allows."""

# ``{cpus}`` is the number of CPUs of the aggressor's envelope, ``{part}`` what each gets of a quarter of its memory.
_ARGUMENTS: Mapping[str, str] = {
    "cpu": "--cpu {cpus} --cpu-method matrixprod",
    "memory": "--memrate {cpus} --memrate-bytes {part}",
    "page-cache": "--readahead {cpus} --readahead-bytes " + _FILE_BYTES,
    "disk": "--hdd 1 --hdd-opts fsync --hdd-bytes " + _FILE_BYTES,
    "fork": "--fork {cpus} --fork-max 8",
    "network": "--sock {cpus}",
}
KINDS = tuple(sorted(_ARGUMENTS))
"""``network`` loads the network stack over lo, not a device."""


def aggressor_argv(kind: str, envelope: Envelope, bound_s: float) -> tuple[str, ...]:
    """The program of an aggressor, which ends by itself after ``bound_s``."""
    cpus = len(envelope.cpus)
    part = min(_MOST_BYTES, envelope.memory_bytes // 4 // cpus)
    arguments = _ARGUMENTS[kind].format(cpus=cpus, part=part).split()
    return ("stress-ng", *arguments, "--timeout", f"{bound_s:.0f}s", "--temp-path", SCRATCH)


class Aggressor:
    """A program that runs in ``instance`` until that is stopped. One thread at a time, as the instance."""

    def __init__(self, instance: Instance, kind: str, envelope: Envelope, bound_s: float) -> None:
        """Start it. Raises WorkloadError if it could not be."""
        self._instance = instance
        self._kind = kind
        command = Command(aggressor_argv(kind, envelope, bound_s), cwd=SCRATCH)
        self._program = Background(instance, f"the aggressor {kind}", "aggressor", command)

    def cpu_s(self) -> float | None:
        """CPU seconds that its instance has cost the host; None where the host does not tell."""
        return self._instance.usage().cpu_s

    def check(self) -> None:
        """Raises WorkloadError if it no longer runs: what was measured meanwhile was beside nothing."""
        if self._program.is_alive():
            return
        raise WorkloadError(
            f"the aggressor {self._kind} ended while the victim was measured",
            remedy="give the envelope more memory, pids or scratch, or let the victim's command take less time",
            evidence=self._program.said(),
        )
