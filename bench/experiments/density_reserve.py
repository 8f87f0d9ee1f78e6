"""Free memory that the kernel holds ready for itself, and so counts as neither free nor available.

New instances are served from it first. What it grew or shrank by would otherwise be taken for what they cost: tens of
megabytes after a hundred containers have come and gone, which is as much as the next hundred take.
"""

import contextlib
import functools
import resource
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec

PROC = Path("/proc")
SLABS = Path("/sys/kernel/slab")


class Reserve(msgspec.Struct, frozen=True):
    """In bytes: pages in the lists of single CPUs, and room in slabs of objects that are gone.

    Only of slabs that the kernel cannot give back at once (SUnreclaim); the others count as available anyway.
    """

    pages: int
    slab_room: int

    @property
    def total(self) -> int:
        """Both together."""
        return self.pages + self.slab_room


def read_reserve(proc: Path = PROC, slabs: Path = SLABS) -> Reserve:
    """As far as this kernel and this user may tell: ``zoneinfo``, and ``slabinfo``, which is root's (SLUB)."""
    pages = room = 0
    with contextlib.suppress(OSError):
        pages = sum(parse_page_lists((proc / "zoneinfo").read_text())) * resource.getpagesize()
    with contextlib.suppress(OSError):
        kept = parse_slab_room((proc / "slabinfo").read_text())
        room = sum(size for name, size in kept.items() if size and not _is_reclaimable(slabs / name))
    return Reserve(pages, room)


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
    try:
        return (cache / "reclaim_account").read_text().strip() == "1"
    except OSError:
        return False
