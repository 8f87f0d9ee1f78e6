"""Where QEMU's threads run: set by tare itself, and looked at before anything says so.

libvirt sets affinities too, but those of threads that are no vCPU's before QEMU joins its cgroup, and before Linux 6.2
joining a cpuset undoes that.
"""

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

import msgspec

from tare.bench.errors import BackendError
from tare.bench.linux.files import read_text
from tare.bench.linux.processes import threads_of

VCPU = re.compile(r"CPU (\d+)/")
"""What libvirt has QEMU call the threads of vCPUs."""


class Placement(msgspec.Struct, frozen=True):
    """``cpus`` are those of the vCPUs, one for each if ``pinned``, else all for all; ``others`` those of the rest."""

    cpus: tuple[int, ...]
    others: frozenset[int]
    pinned: bool

    def of(self, name: str) -> frozenset[int]:
        """The CPUs of a thread."""
        vcpu = VCPU.match(name)
        if vcpu is None:
            return self.others
        return frozenset((self.cpus[int(vcpu[1])],) if self.pinned else self.cpus)


def place_threads(pid: int, placement: Placement) -> None:
    """Put every thread of QEMU where it belongs, and look whether it is there. Raises BackendError."""
    for thread, name in _threads(pid):
        wanted = placement.of(name)
        with contextlib.suppress(ProcessLookupError):
            if os.sched_getaffinity(thread) != wanted:
                _set(thread, name, wanted)
    for thread, name in _threads(pid):
        with contextlib.suppress(ProcessLookupError):
            found = os.sched_getaffinity(thread)
            if found != placement.of(name):
                raise _elsewhere(name, found, placement.of(name), "it was moved there by something else")


def _set(thread: int, name: str, wanted: frozenset[int]) -> None:
    try:
        os.sched_setaffinity(thread, wanted)
    except OSError as error:
        if isinstance(error, ProcessLookupError):
            raise
        raise _elsewhere(name, os.sched_getaffinity(thread), wanted, str(error.strerror)) from error


def _elsewhere(name: str, found: set[int], wanted: frozenset[int], why: str) -> BackendError:
    return BackendError(
        f"the option pinning does not hold: QEMU's thread {name} may run on CPUs {sorted(found)}, not {sorted(wanted)} "
        f"({why})",
        remedy="see what else moves threads on this host (a tuning daemon, a cpuset above tare's), or choose another",
    )


def _threads(pid: int) -> Iterator[tuple[int, str]]:
    for folder in threads_of(pid):
        with contextlib.suppress(OSError):
            yield int(folder.name), read_text(Path(folder) / "comm").strip()
