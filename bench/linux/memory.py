"""Memory of the host and of its processes: ``meminfo``, ``smaps`` and ``smaps_rollup``, in bytes."""

import contextlib
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

from tare.bench.linux.files import HERE, HostRoots, read_text

_FIELD = re.compile(r"^([^\s:]+):\s+(\d+)( kB)?$", re.MULTILINE | re.ASCII)
_MAPPING = re.compile(r"^[0-9a-f]+-[0-9a-f]+ (?P<permissions>\S{4}) \S+ \S+ \S+ *(?P<name>.*)$", re.MULTILINE)


class Mapping(msgspec.Struct, frozen=True):
    """A mapping of a process: ``resident`` is its PSS, or its huge pages, which PSS leaves out."""

    permissions: str
    name: str
    size: int
    resident: int


def parse_fields(text: str) -> dict[str, int]:
    """The lines ``Name: number``: sizes in bytes, counts (``HugePages_Free``) as they are."""
    return {name: int(number) * (1024 if unit else 1) for name, number, unit in _FIELD.findall(text)}


def read_meminfo(roots: HostRoots = HERE) -> dict[str, int]:
    """The fields of ``/proc/meminfo``. Raises OSError."""
    return parse_fields(read_text(roots.proc / "meminfo"))


def have_swap(roots: HostRoots = HERE) -> bool:
    """Whether any swap is on; the first line of ``/proc/swaps`` is a heading."""
    try:
        return len(read_text(roots.proc / "swaps").splitlines()) > 1
    except OSError:
        return False


def process_footprint(pids: Iterable[int], roots: HostRoots = HERE) -> tuple[int | None, int | None, int | None]:
    """(PSS, private, RSS) summed over processes by ``smaps_rollup``; None if no process let itself be read.

    A process that ends meanwhile counts nothing. A kernel without ``smaps_rollup`` (before 4.14) gives None.
    """
    pss = private = rss = readable = 0
    for pid in pids:
        with contextlib.suppress(OSError, KeyError):
            fields = parse_fields(read_text(roots.proc / str(pid) / "smaps_rollup"))
            huge = fields.get("Private_Hugetlb", 0)  # which PSS leaves out
            pss += fields["Pss"] + huge
            private += fields["Private_Clean"] + fields["Private_Dirty"] + huge
            rss += fields["Rss"]
            readable += 1
    return (pss, private, rss) if readable else (None, None, None)


def read_mappings(pid: int, roots: HostRoots = HERE) -> list[Mapping]:
    """The mappings of a process; none if it is gone."""
    try:
        return list(parse_smaps(read_text(roots.proc / str(pid) / "smaps")))
    except OSError:
        return []


def parse_smaps(text: str) -> Iterator[Mapping]:
    """The mappings in ``/proc/PID/smaps``."""
    headers = list(_MAPPING.finditer(text))
    ends = [header.start() for header in headers[1:]] + [len(text)]
    for header, end in zip(headers, ends, strict=True):
        fields = parse_fields(text[header.end() : end])
        huge = fields.get("Private_Hugetlb", 0) + fields.get("Shared_Hugetlb", 0)
        yield Mapping(header["permissions"], header["name"], fields.get("Size", 0), fields.get("Pss", 0) + huge)


def tree_bytes(folder: Path) -> int:
    """Blocks allocated below a folder; what vanishes meanwhile counts nothing."""
    total = 0
    for parent, _, files in os.walk(folder, onerror=None):
        for name in (*files, "."):
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(parent, name)).st_blocks * 512  # noqa: PTH118 - a walk over many
    return total
