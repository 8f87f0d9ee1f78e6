"""The memory of the whole host, what the kernel holds ready for itself included."""

import contextlib
import functools
import resource
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec

from tare.bench.errors import BackendError
from tare.bench.linux.files import HERE, HostRoots, find_text, read_text
from tare.bench.linux.memory import read_meminfo


def read_reserve(roots: HostRoots = HERE) -> tuple[int, int]:
    """In bytes: pages in the lists of single CPUs, and room in slabs of objects that are gone.

    Only of slabs that the kernel cannot give back at once (SUnreclaim); the others count as available anyway. By
    ``zoneinfo`` and ``slabinfo``; 0 for what this user may not read (``slabinfo`` is root's).
    """
    pages = room = 0
    with contextlib.suppress(OSError):
        pages = sum(parse_page_lists(read_text(roots.proc / "zoneinfo"))) * resource.getpagesize()
    with contextlib.suppress(OSError):
        kept = parse_slab_room(read_text(roots.proc / "slabinfo"))
        room = sum(
            size for name, size in kept.items() if size and not _is_reclaimable(roots.sys / "kernel/slab" / name)
        )
    return pages, room


def parse_page_lists(zoneinfo: str) -> Iterator[int]:
    """The pages in each CPU's list of each zone."""
    for line in zoneinfo.splitlines():
        name, _, value = line.strip().partition(":")
        if name == "count":
            yield int(value)


def parse_slab_room(slabinfo: str) -> Mapping[str, int]:
    """Bytes of pages that a cache has for objects which it does not hold, by cache (slabinfo 2.1).

    A line is: name, active objects, objects, size, objects a slab, pages a slab, and after two colons active slabs,
    slabs. SLUB counts the slabs that its CPUs are working on as full.
    """
    found = {}
    for line in slabinfo.splitlines()[2:]:
        name, _, rest = line.partition(" ")
        sizes, _, slabs = rest.partition(" : slabdata ")
        active, _, _, objects, pages = map(int, sizes.split()[:5])
        if objects:
            slab = pages * resource.getpagesize()
            found[name] = max(0, int(slabs.split()[1]) * slab - active * slab // objects)
    return found


@functools.cache
def _is_reclaimable(cache: Path) -> bool:
    """Whether a cache is SReclaimable; it stays that as long as the cache is there."""
    return find_text(cache / "reclaim_account") == "1"


class HostMemory(msgspec.Struct, frozen=True):
    """The host's memory at a moment, in bytes; ``at_s`` is CLOCK_MONOTONIC.

    ``available`` is MemAvailable. ``reserve`` is what the kernel holds ready for itself and ``harness`` what tare has,
    both not in it. ``slab`` is what objects that the kernel cannot give back take of SUnreclaim. ``kernel_other`` are
    kernel stacks, page tables and per-CPU memory. ``ksm_saved`` is None where same-page merging is off or not there.
    """

    at_s: float
    total: int
    available: int
    slab: int
    kernel_other: int
    ksm_saved: int | None
    reserve: int = 0
    harness: int = 0

    @property
    def unused(self) -> int:
        """What neither instances nor other programs have."""
        return self.available + self.reserve + self.harness


_KERNEL_OTHER = ("KernelStack", "PageTables", "SecPageTables", "Percpu")


def read_memory(roots: HostRoots = HERE) -> HostMemory:
    """``/proc/meminfo``, the kernel's reserve, and what same-page merging saves.

    Raises BackendError where there is no MemAvailable.
    """
    pages, slab_room = read_reserve(roots)
    fields = read_meminfo(roots)
    if "MemAvailable" not in fields:
        raise BackendError("this kernel reports no MemAvailable, which density needs")
    return HostMemory(
        at_s=time.monotonic(),
        total=fields["MemTotal"],
        available=fields["MemAvailable"],
        slab=fields.get("SUnreclaim", 0) - slab_room,
        kernel_other=sum(fields.get(name, 0) for name in _KERNEL_OTHER),
        ksm_saved=_read_ksm(roots.sys / "kernel/mm/ksm"),
        reserve=pages + slab_room,
        harness=_read_harness(roots),
    )


def _read_harness(roots: HostRoots) -> int:
    """The pages of tare's own process (``statm``): resident, and not mapped from files or shared."""
    try:
        resident, shared = map(int, read_text(roots.proc / "self/statm").split()[1:3])
    except (OSError, ValueError):
        return 0
    return (resident - shared) * resource.getpagesize()


def _read_ksm(folder: Path) -> int | None:
    sharing = find_text(folder / "pages_sharing")
    if find_text(folder / "run") != "1" or sharing is None or not sharing.isdigit():
        return None
    return int(sharing) * resource.getpagesize()
