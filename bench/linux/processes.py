"""Processes by ``/proc/PID`` and pidfds: what they are, and their end."""

import contextlib
import errno
import mmap
import os
import signal
import time
from collections.abc import Callable, Collection, Iterable
from pathlib import Path

from tare.bench.linux.files import HERE, HostRoots, read_bytes
from tare.bench.linux.waiting import is_readable

KILL_DEADLINE_S = 10.0
_HELD = 256
"""How many ended processes are waited for at a time: each holds a descriptor, of which a process may have but 1,024."""


_PF_KTHREAD = 0x00200000


class Status:
    """Fields of ``/proc/PID/stat`` (proc_pid_stat(5)).

    ``started`` is in clock ticks after boot: with the pid it names a process for as long as the host runs. ``waited_*``
    is CPU time of children that it waited for, ``guest_s`` the part of ``user_s`` that a KVM guest's processors ran.
    ``is_kernel_thread``: no process of anybody's, as ``vhost-PID`` and ``kvm-nx-lpage-recovery-PID`` of a guest.
    ``cpu`` is the one that it ran on last, ``resident_bytes`` what of its memory is there.
    """

    def __init__(self, stat: bytes) -> None:
        """Raises ValueError for a process that has ended and for what is no such file."""
        # As bytes: a program may put anything into its name.
        before, _, after = stat.rpartition(b")")
        fields = after.split()
        if len(fields) < 41 or fields[0] in b"ZX":
            raise ValueError("no living process")
        hertz = os.sysconf("SC_CLK_TCK")
        self.is_kernel_thread = bool(int(fields[6]) & _PF_KTHREAD)
        self.name = before.partition(b"(")[2].decode(errors="replace")
        self.parent = int(fields[1])
        self.user_s, self.system_s, self.waited_user_s, self.waited_system_s = (
            int(field) / hertz for field in fields[11:15]
        )
        self.guest_s = int(fields[40]) / hertz
        self.cpu_s = self.user_s + self.system_s
        self.started = int(fields[19])
        self.resident_bytes = int(fields[21]) * mmap.PAGESIZE
        self.cpu = int(fields[36])


def find_status(pid: int, roots: HostRoots = HERE) -> Status | None:
    """The status of a process; None for one that is gone or a zombie."""
    try:
        return Status(read_bytes(roots.proc / str(pid) / "stat"))
    except (OSError, ValueError):
        return None


def read_statuses(roots: HostRoots = HERE) -> dict[int, Status]:
    """All processes that live, by pid; none where there is no ``/proc``."""
    if not roots.proc.is_dir():
        return {}
    pids = (int(name) for name in os.listdir(roots.proc) if name.isdigit())  # noqa: PTH208 - hundreds: no paths needed
    return {pid: status for pid in pids if (status := find_status(pid, roots)) is not None}


def written_bytes(pids: Iterable[int], roots: HostRoots = HERE) -> int | None:
    """Bytes of files on block devices that processes, and those they have waited for, wrote or made dirty.

    By ``/proc/PID/io`` (proc_pid_io(5)); None where the kernel keeps no such accounts.
    """
    total, known = 0, False
    for pid in pids:
        with contextlib.suppress(OSError, ValueError, KeyError):
            fields = dict(line.split(b": ") for line in read_bytes(roots.proc / str(pid) / "io").splitlines())
            # Cancelled is what was removed before it was written.
            total += int(fields[b"write_bytes"]) - int(fields[b"cancelled_write_bytes"])
            known = True
    return total if known else None


def threads_of(pid: int, roots: HostRoots = HERE) -> list[Path]:
    """The folders of a process's threads, named by their ids; none if it is gone."""
    try:
        return list((roots.proc / str(pid) / "task").iterdir())
    except OSError:
        return []


def signal_all(pids: Iterable[int]) -> list[int]:
    """SIGKILL each process but this one; pidfds of the first 256 of them, to wait for."""
    held: list[int] = []
    for pid in pids:
        if pid == os.getpid():
            continue
        with contextlib.suppress(ProcessLookupError):
            descriptor = os.pidfd_open(pid)  # it keeps a pid that is used again from being hit
            try:
                signal.pidfd_send_signal(descriptor, signal.SIGKILL)
            finally:
                if len(held) < _HELD:
                    held.append(descriptor)
                else:
                    os.close(descriptor)
    return held


def wait_ended(descriptors: Iterable[int], deadline: float) -> None:
    """Wait for the end of the processes behind these pidfds until ``deadline`` (CLOCK_MONOTONIC), and close them."""
    for descriptor in descriptors:
        is_readable(descriptor, deadline - time.monotonic())
        os.close(descriptor)


def kill_all(
    find: Callable[[], Collection[int]], *, hold: Callable[[], contextlib.AbstractContextManager[object]] | None = None
) -> bool:
    """SIGKILL the processes that ``find`` returns, and wait for them, until it returns none; whether there were any.

    With ``hold``, which keeps them from forking meanwhile, they are looked for again within it. Raises OSError (EBUSY)
    if some do not end within 10 s: they are stuck inside the kernel.
    """
    deadline = time.monotonic() + KILL_DEADLINE_S
    found = False
    while pids := find():
        if hold is None:
            descriptors = signal_all(pids)
        else:
            with hold():
                descriptors = signal_all(find())
        found = found or bool(descriptors)
        wait_ended(descriptors, deadline)
        if time.monotonic() > deadline:
            raise OSError(errno.EBUSY, f"processes {sorted(pids)} do not end within {KILL_DEADLINE_S:g} s of SIGKILL")
    return found
