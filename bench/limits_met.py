"""The limits that an instance ran into, and how they show in the reason of a failure."""

import signal

from tare.bench.errors import WorkloadError
from tare.bench.model import Command, Completed, Diagnosis, Envelope, Usage
from tare.bench.units import format_size

LIMIT_FIELDS = (
    *("cpu_throttled_s", "cpu_periods", "cpu_throttled_periods", "oom_kills", "pids_refused"),
    *("cpu_pressure_s", "memory_pressure_s", "io_pressure_s"),
)
"""The fields of Usage for limits met and for waiting for what is limited."""
_TAIL = 4000


def add_usage(totals: dict[str, float], usage: Usage | None) -> None:
    """Add what an instance used by its end to ``totals``; what its host does not report is left out."""
    for field in LIMIT_FIELDS:
        if (value := getattr(usage, field, None)) is not None:
            totals[field] = round(totals.get(field, 0) + value, 6)


def have_failed(completed: Completed) -> bool:
    """Whether a command did not end with 0."""
    return completed.timed_out or completed.returncode != 0


def raise_if_failed(
    command: Command, completed: Completed, envelope: Envelope, diagnosis: Diagnosis | None = None
) -> None:
    """Raises WorkloadError for a command that did not end with 0: why, the limits it met, and its last words."""
    if not have_failed(completed):
        return
    shown = [f"$ {' '.join(command.argv)}"]
    for name, content in (("standard output", completed.stdout), ("standard error", completed.stderr)):
        if content.strip():
            shown.append(f"{name} ends with:\n{content[-_TAIL:].decode(errors='replace').strip()}")
    reason = why_failed(command, completed, envelope)
    remedy = _memory_remedy(completed) if completed.oom_kills else None
    if diagnosis is not None:
        reason, remedy = f"{reason}: {diagnosis.reason}", diagnosis.remedy
    raise WorkloadError(reason, remedy=remedy, evidence="\n".join(shown))


def why_failed(command: Command, completed: Completed, envelope: Envelope) -> str:
    """How a command ended that did not end with 0, and the limits that it met, in one line."""
    return _reason(command, completed, envelope) + _limits(completed, envelope)


def _reason(command: Command, completed: Completed, envelope: Envelope) -> str:
    program = command.argv[0]
    if completed.timed_out:
        return f"{program} did not finish within {command.timeout_s:g} s and was killed"
    if _killed_for_memory(completed):
        return f"{program} was killed by the {_memory(completed, envelope)}"
    if completed.signal is not None:
        return f"{program} was killed by signal {completed.signal}"
    if completed.returncode == 127:
        return f"{program}, or the interpreter that it names, is not in the image"
    if completed.returncode == 126:
        return f"{program} is in the image and cannot be executed"
    return f"{program} failed with exit status {completed.returncode}"


def _limits(completed: Completed, envelope: Envelope) -> str:
    """The limits that a failed command met and that its end does not show: they may be why it failed."""
    told = ""
    if completed.oom_kills and not _killed_for_memory(completed):
        processes = "one of its processes" if completed.oom_kills == 1 else f"{completed.oom_kills} of its processes"
        told += f"; {processes} had been killed by the {_memory(completed, envelope)}"
    if completed.pids_refused:
        times = "once" if completed.pids_refused == 1 else f"{completed.pids_refused} times"
        told += f"; the limit of {envelope.pids_max} processes was reached {times}"
    return told


def _killed_for_memory(completed: Completed) -> bool:
    return bool(completed.oom_kills) and completed.signal == signal.SIGKILL and not completed.timed_out


def _memory(completed: Completed, envelope: Envelope) -> str:
    size = _as_stated(envelope.memory_bytes)
    if completed.outer_limit:
        return f"{completed.outer_limit}, not by the envelope's {size}"
    swap = f" (and {_as_stated(envelope.swap_bytes)} of swap)" if envelope.swap_bytes else ""
    return f"{size}{swap} memory limit"


def _memory_remedy(completed: Completed) -> str:
    if completed.outer_limit:
        return "raise that limit, or give the envelope less memory than it leaves"
    return "give the envelope more memory"


def _as_stated(size: int) -> str:
    """As a suite states it, ``64 MiB`` rather than the ``64.0 MiB`` of a measured size."""
    whole, rest = divmod(size, 2**20)
    return format_size(size) if rest else f"{whole} MiB"
