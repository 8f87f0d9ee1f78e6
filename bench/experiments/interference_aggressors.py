"""Programs that take something from their neighbours: stress-ng in an instance of its own, bounded in time.

An aggressor is left running by the command that starts it, so it is a process of its instance and of nothing else:
whatever ends the instance (the end of the cell, an interrupt, the death of tare) ends it.
"""

from collections.abc import Mapping

from bench.errors import WorkloadError
from bench.interfaces import Instance
from bench.model import SCRATCH, Command, Completed, Envelope

_LOG = f"{SCRATCH}/aggressor.log"
_START = f'"$@" >{_LOG} 2>&1 </dev/null & echo $!'
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
        argv = aggressor_argv(kind, envelope, bound_s)
        started = instance.execute(Command(("sh", "-c", _START, "sh", *argv), cwd=SCRATCH))
        pid = started.stdout.strip()
        if started.returncode != 0 or not pid.isdigit():
            raise WorkloadError(f"the aggressor {kind} could not be started", evidence=_said(started))
        self._pid = pid.decode()

    def cpu_s(self) -> float | None:
        """CPU seconds that its instance has cost the host; None where the host does not tell."""
        usage = self._instance.usage()
        if usage.cpu_user_s is None or usage.cpu_system_s is None:
            return None
        return usage.cpu_user_s + usage.cpu_system_s

    def check(self) -> None:
        """Raises WorkloadError if it no longer runs: what was measured meanwhile was beside nothing."""
        alive = self._instance.execute(Command(("sh", "-c", f"kill -0 {self._pid}")))
        if alive.returncode == 0:
            return
        log = self._instance.execute(Command(("tail", "-n", "12", _LOG)))
        raise WorkloadError(
            f"the aggressor {self._kind} ended while the victim was measured",
            remedy="give the envelope more memory, pids or scratch, or let the victim's command take less time",
            evidence=_said(log),
        )


def _said(completed: Completed) -> str:
    return (completed.stdout + completed.stderr).decode(errors="replace").strip()
