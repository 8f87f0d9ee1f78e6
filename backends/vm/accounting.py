"""Where what a guest costs its host goes: the CPU time of its vCPUs, and the parts of its memory."""

import contextlib
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

_PROC = Path("/proc")
_HEADER = re.compile(r"^[0-9a-f]+-[0-9a-f]+ (?P<permissions>\S{4}) \S+ \S+ \S+ *(?P<name>.*)$")
_VCPU = re.compile(r"CPU \d+/")
_TRANSLATED = "rwxp"


class Mapping(msgspec.Struct, frozen=True):
    """A mapping of a process: ``resident`` is its PSS, or its huge pages, which PSS leaves out; sizes in bytes."""

    permissions: str
    name: str
    size: int
    resident: int


class MemoryParts(msgspec.Struct, frozen=True):
    """Parts of the PSS of a guest's processes, in bytes; None where nobody can tell.

    ``guest_ram`` is what the guest has touched of its RAM. ``tcg_cache`` is code that TCG translated, None under KVM.
    """

    guest_ram: int | None
    tcg_cache: int | None


def vcpu_seconds(pid: int, proc: Path = _PROC) -> float | None:
    """CPU time of QEMU's threads that run vCPUs; None if it is gone or does not name them.

    ``schedstat`` counts nanoseconds, where ``stat`` counts hundredths. libvirt has QEMU name its threads.
    """
    total: int | None = None
    for task in _tasks(pid, proc):
        with contextlib.suppress(OSError):
            if _VCPU.match((task / "comm").read_text()):
                total = (total or 0) + int((task / "schedstat").read_text().split()[0])
    return None if total is None else total / 1e9


def memory_parts(
    pid: int, helpers: Iterable[int], memory_bytes: int, *, translates: bool, proc: Path = _PROC
) -> MemoryParts:
    """The parts of the memory of QEMU (``pid``) and of the helpers that map its guest's RAM."""
    own = _read_mappings(pid, proc)
    others = [mapping for helper in helpers if helper != pid for mapping in _read_mappings(helper, proc)]
    ram = find_guest_ram(own, memory_bytes)
    shared = sum(other.resident for other in others if ram is not None and ram.name and other.name == ram.name)
    return MemoryParts(
        # A huge page that both have touched is counted for each, as it has no proportional share.
        guest_ram=None if ram is None else min(ram.resident + shared, ram.size),
        tcg_cache=find_tcg_cache(own) if translates and own else None,
    )


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


def parse_smaps(text: str) -> Iterator[Mapping]:
    """The mappings in ``/proc/PID/smaps``."""
    header: re.Match[str] | None = None
    fields: dict[str, int] = {}
    for line in [*text.splitlines(), "0-0 ---- 0 0 0"]:
        if match := _HEADER.match(line):
            if header is not None:
                huge = fields.get("Private_Hugetlb", 0) + fields.get("Shared_Hugetlb", 0)
                resident = fields.get("Pss", 0) + huge
                yield Mapping(header["permissions"], header["name"], fields.get("Size", 0), resident)
            header, fields = match, {}
            continue
        name, _, rest = line.partition(":")
        words = rest.split()
        if len(words) == 2 and words[1] == "kB":
            fields[name] = int(words[0]) * 1024


def _read_mappings(pid: int, proc: Path) -> list[Mapping]:
    """The mappings of a process; none if it is gone."""
    try:
        return list(parse_smaps((proc / str(pid) / "smaps").read_text("utf-8", "surrogateescape")))
    except OSError:
        return []


def _tasks(pid: int, proc: Path) -> list[Path]:
    try:
        return list((proc / str(pid) / "task").iterdir())
    except OSError:
        return []
