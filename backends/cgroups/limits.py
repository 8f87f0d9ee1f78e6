"""Which file of v2 and of v1 enforces which field of an envelope: one table, and what this host does not enforce."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from tare.backends.cgroups.layout import Layout, Version
from tare.bench.catalogue import ConfoundCode
from tare.bench.linux.cgroups import MemoryLimit
from tare.bench.linux.files import HostRoots
from tare.bench.linux.memory import have_swap
from tare.bench.model import Confound, Envelope
from tare.bench.units import format_size

_PERIOD_US = 100_000
"""The span over which a CPU quota holds, as the kernel has it for a new group and every container engine by default."""
_SHARES_PER_WEIGHT = 1024 / 100
"""The usual 100 of v2 is the usual 1024 of v1; the kernel converts the same way."""
NO_DEVICE = "the suite's storage lies on no block device"

Limits = Mapping[str, Any]
"""What a cgroup enforces, by the field of ``Envelope``; what is not in it is not limited.

``io_device`` (``254:0``) is the block device that is accounted and throttled; v1 counts nothing for one that nobody
asked about.
"""


class Rule(NamedTuple):
    """``v2`` and ``v1`` are a file and the text for a value and all limits; the v1 file's controller is in its name.

    ``without`` says what a v1 host lacks that has the controller and not the file.
    """

    v2: tuple[str, Callable[[Any, Limits], str]]
    v1: tuple[str, Callable[[Any, Limits], str]]
    without: str = ""


def _same(value: Any, _: Limits) -> str:
    return str(value)


def _cpus(value: Any, _: Limits) -> str:
    return ",".join(map(str, value))


def _rate(key: str, file: str) -> Rule:
    return Rule(
        ("io.max", lambda rate, limits: f"{limits['io_device']} {key}={rate}"),
        (f"blkio.throttle.{file}_device", lambda rate, limits: f"{limits['io_device']} {rate}"),
    )


RULES: Mapping[str, Rule] = {
    "cpus": Rule(("cpuset.cpus", _cpus), ("cpuset.cpus", _cpus)),
    "cpu_quota": Rule(
        ("cpu.max", lambda quota, _: f"{round(quota * _PERIOD_US)} {_PERIOD_US}"),
        ("cpu.cfs_quota_us", lambda quota, _: str(round(quota * _PERIOD_US))),
        without="this kernel was built without CPU bandwidth control",
    ),
    "cpu_weight": Rule(
        ("cpu.weight", _same),
        ("cpu.shares", lambda weight, _: str(round(weight * _SHARES_PER_WEIGHT))),
    ),
    "memory_bytes": Rule(("memory.max", _same), ("memory.limit_in_bytes", _same)),
    "swap_bytes": Rule(
        ("memory.swap.max", _same),
        # v1 limits memory and swap together, and takes it only after the limit on memory.
        ("memory.memsw.limit_in_bytes", lambda swap, limits: str(limits["memory_bytes"] + swap)),
        without="this kernel does not account for swap (boot it with swapaccount=1)",
    ),
    "pids_max": Rule(("pids.max", _same), ("pids.max", _same)),
    "io_read_bytes_per_s": _rate("rbps", "read_bps"),
    "io_write_bytes_per_s": _rate("wbps", "write_bps"),
    "io_read_ops_per_s": _rate("riops", "read_iops"),
    "io_write_ops_per_s": _rate("wiops", "write_iops"),
}
"""In the order of writing."""
_TOLD_BY_LAYOUT = frozenset({"cpus", "memory_bytes", "pids_max"})


def limits_of(envelope: Envelope, io_device: str | None) -> Limits:
    """All that an envelope limits, for processes of the host's own kernel."""
    asked = {name: value for name, value in msgspec.structs.asdict(envelope).items() if name in RULES}
    return {name: value for name, value in {**asked, "io_device": io_device}.items() if value is not None}


def outer_confounds(backend: str, memory_bytes: int, layout: Layout) -> Iterator[Confound]:
    """The limit on memory that holds instead of the envelope's ``memory_bytes``: a smaller one around the instance."""
    outer = layout.outer_memory_limit()
    if outer is not None and outer.size_bytes < memory_bytes:
        yield Confound(
            ConfoundCode.OUTER_MEMORY_LIMIT,
            f"the {describe_limit(outer)} holds, and not the envelope's {format_size(memory_bytes)}; an "
            "instance shares it with tare",
            backend,
        )


def describe_limit(limit: MemoryLimit) -> str:
    """``400 MiB memory limit of the cgroup PATH around tare``."""
    where = "a cgroup" if limit.folder is None else f"the cgroup {limit.folder}"
    return f"{format_size(limit.size_bytes)} memory limit of {where} around tare"


def limit_confounds(
    backend: str, limits: Limits, unenforced: Mapping[str, str], version: Version, root: Path = Path("/")
) -> Iterator[Confound]:
    """One confound for each limit that ``backend`` does not enforce, and for what a version enforces only in part.

    ``root`` holds the ``proc`` that is asked for swap.
    """
    has_swap = have_swap(HostRoots(root / "proc"))
    for name, reason in unenforced.items():
        if name not in _TOLD_BY_LAYOUT and (name != "swap_bytes" or has_swap):
            key = {"swap_bytes": "swap"}.get(name, name)
            yield Confound(f"no-limit-{key}", f"the limit {key} is not enforced: {reason}", backend)
    if limits.get("swap_bytes") and not has_swap:
        yield Confound("no-swap", "the envelope allows swap, and this host has none", backend)
    if version in {Version.V1, Version.HYBRID} and any(name.startswith("io_write") for name in limits):
        yield Confound(
            "io-limit-direct-only",
            "cgroups v1 throttle what a process writes to the device itself (direct, synced); what goes through the "
            "page cache is written back unthrottled",
            backend,
        )
