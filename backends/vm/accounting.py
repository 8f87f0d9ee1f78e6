"""Where what a guest costs its host goes: the CPU time of its vCPUs, and the parts of its memory."""

import contextlib
import re
from collections.abc import Iterable

from tare.bench.linux.files import HERE, HostRoots, read_text
from tare.bench.linux.memory import Mapping, read_mappings
from tare.bench.linux.processes import threads_of

_VCPU = re.compile(r"CPU \d+/")
_TRANSLATED = "rwxp"


def vcpu_seconds(pid: int, roots: HostRoots = HERE) -> float | None:
    """CPU time of QEMU's threads that run vCPUs; None if it is gone or does not name them.

    ``schedstat`` counts nanoseconds, where ``stat`` counts hundredths. libvirt has QEMU name its threads.
    """
    total: int | None = None
    for task in threads_of(pid, roots):
        with contextlib.suppress(OSError):
            if _VCPU.match(read_text(task / "comm")):
                total = (total or 0) + int(read_text(task / "schedstat").split()[0])
    return None if total is None else total / 1e9


def memory_parts(
    pid: int, helpers: Iterable[int], memory_bytes: int, *, translates: bool, roots: HostRoots = HERE
) -> dict[str, int | None]:
    """Parts of the PSS of QEMU (``pid``) and of the helpers that map its guest's RAM, by field of ``Footprint``.

    None where nobody can tell; translated code is TCG's, None under KVM.
    """
    own = read_mappings(pid, roots)
    others = [mapping for helper in helpers if helper != pid for mapping in read_mappings(helper, roots)]
    ram = find_guest_ram(own, memory_bytes)
    shared = sum(other.resident for other in others if ram is not None and ram.name and other.name == ram.name)
    return {
        # A huge page that both have touched is counted for each, as it has no proportional share.
        "guest_ram_bytes": None if ram is None else min(ram.resident + shared, ram.size),
        "tcg_cache_bytes": find_tcg_cache(own) if translates and own else None,
    }


def find_guest_ram(mappings: Iterable[Mapping], memory_bytes: int) -> Mapping | None:
    """The smallest mapping of at least ``memory_bytes``.

    QEMU maps the RAM of a guest as one piece, and nothing else of its size: TCG's cache and the arenas of its threads
    have 64 MiB at most, less than the least memory of a guest.
    """
    large = [mapping for mapping in mappings if mapping.size >= memory_bytes]
    return min(large, key=lambda mapping: mapping.size, default=None)


def find_tcg_cache(mappings: Iterable[Mapping]) -> int:
    """What translated code holds: the memory without a name that may be both written and executed."""
    return sum(one.resident for one in mappings if one.permissions == _TRANSLATED and not one.name)
