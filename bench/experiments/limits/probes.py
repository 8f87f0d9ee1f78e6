"""Programs that look at what an instance was given, and ask for twice as much of it.

Each prints what it got as it gets it, so that a killed one has shown how far it came.
"""

import json

from tare.bench.errors import WorkloadError
from tare.bench.model import SCRATCH, Command, Completed, Envelope

BUSY_S = 1
_CHUNK = 2**20
_TIMEOUT_S = 120.0
_TOLERATED_S = 30.0
"""Under emulation a program takes some seconds to reach its limit; one that stalls there is not waited for."""

_SEEN = """
import json, os
memory = next(line.split()[1] for line in open("/proc/meminfo") if line.startswith("MemTotal"))
cpus = os.sysconf("SC_NPROCESSORS_ONLN")
print(json.dumps({"cpus": cpus, "allowed": len(os.sched_getaffinity(0)), "memory_bytes": int(memory) * 1024,
    "kernel": os.uname().release, "host_name": os.uname().nodename}))
"""
_MEMORY = """
import sys
held = []
for number in range(1, {chunks} + 1):
    held.append(bytearray(b"x") * {chunk})
    print(number * {chunk}, flush=True)
"""
_PIDS = """
import os, signal
children = []
try:
    while len(children) < {most}:
        pid = os.fork()
        if pid == 0:
            signal.pause()
        children.append(pid)
except OSError:
    pass
print(len(children) + 1, flush=True)
for pid in children:
    os.kill(pid, signal.SIGKILL)
"""
_DISK = """
import os
path = "{scratch}/tare-limit"
written = 0
try:
    with open(path, "wb", buffering=0) as file:
        while written < {most}:
            written += file.write(b"x" * min({chunk}, {most} - written))
except OSError:
    pass
finally:
    os.unlink(path)
print(written)
"""
# Writes a line into a FIFO once it holds the memory, and holds it until it is killed.
_HOLD = """
import os, signal
with open("{pid}", "w") as file:
    file.write(str(os.getpid()))
held = bytearray(b"x") * {size}
with open("{fifo}", "w") as fifo:
    fifo.write("held")
signal.pause()
"""
_FIFO = f"{SCRATCH}/tare-held"
_PID = f"{SCRATCH}/tare-holder"


def seen_command() -> Command:
    """Prints what a program sees of CPUs, memory and kernel."""
    return _python(_SEEN)


def read_seen(completed: Completed) -> dict[str, int | str]:
    """What ``seen_command`` printed. Raises WorkloadError."""
    try:
        seen = json.loads(completed.stdout)
    except ValueError:
        raise WorkloadError("a program inside printed no JSON", evidence=repr(completed.stdout[:200])) from None
    assert isinstance(seen, dict)
    return seen


def cpu_command(envelope: Envelope) -> Command:
    """Twice as many busy processes as CPUs, for ``BUSY_S``."""
    return Command(("stress-ng", "--cpu", str(2 * len(envelope.cpus)), "--timeout", f"{BUSY_S}s"), timeout_s=_TIMEOUT_S)


def memory_command(envelope: Envelope) -> Command:
    """Touches up to twice the memory, and prints after each part how much it holds. Being killed is no failure."""
    chunk = max(_CHUNK, envelope.memory_bytes // 64)
    program = _MEMORY.format(chunks=-(-2 * envelope.memory_bytes // chunk), chunk=chunk)
    return _tolerant(program)


def pids_command(envelope: Envelope) -> Command:
    """Forks sleepers up to twice the limit, and prints how many processes there were."""
    return _tolerant(_PIDS.format(most=2 * envelope.pids_max))


def disk_command(envelope: Envelope) -> Command:
    """Writes up to twice the scratch folder's size, and prints how much it wrote."""
    return _tolerant(_DISK.format(scratch=SCRATCH, most=2 * envelope.scratch_bytes, chunk=_CHUNK))


def read_last(completed: Completed) -> int:
    """The last whole number that a probe printed; 0 if it was ended before the first."""
    lines = completed.stdout.decode(errors="replace").split()
    return int(lines[-1]) if lines and lines[-1].isdigit() else 0


def warm_command() -> Command:
    """Reads the interpreter's files, which are charged to the first who reads them, and holds nothing."""
    return _python("import os, signal")


def hold_command(size: int) -> Command:
    """Leaves a process behind that takes ``size`` bytes and keeps them until ``release_command``."""
    program = _HOLD.format(size=size, fifo=_FIFO, pid=_PID)
    run = f'{{ python3 -c "$1"; echo gone >{_FIFO}; }} >/dev/null 2>&1 </dev/null &'
    return Command(("sh", "-c", f"rm -f {_FIFO}; mkfifo {_FIFO} || exit; {run}", "sh", program))


def held_command() -> Command:
    """Ends when the process that was left behind holds its memory, with ``held``, or died of it, with ``gone``."""
    return Command(("cat", _FIFO), timeout_s=_TIMEOUT_S)


def release_command() -> Command:
    """Ends that process."""
    return Command(("sh", "-c", f"kill -KILL $(cat {_PID})"))


def _python(program: str) -> Command:
    return Command(("python3", "-c", program), timeout_s=_TIMEOUT_S)


def _tolerant(program: str) -> Command:
    """Whatever becomes of the program, the command ends well: its output is what counts."""
    return Command(("sh", "-c", 'python3 -c "$1"; exit 0', "sh", program), timeout_s=_TOLERATED_S)
