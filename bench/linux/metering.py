"""What processes cost the host, by its own accounting: meters that attach to what somebody else made and will remove.

``CgroupMeter`` takes any cgroup, of v1 or v2, tare's or an engine's. Several meters (of a container, its shim, the
daemon's share) are added up with ``total``. The files are described in Linux ``Documentation/admin-guide``:
``cgroup-v2.rst`` and ``cgroup-v1/``.
"""

import contextlib
import functools
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from tare.bench.linux.cgroups import find_folders, members_of
from tare.bench.linux.files import HERE, HostRoots, read_text
from tare.bench.linux.memory import process_footprint
from tare.bench.linux.pressure import parse_stall_s
from tare.bench.linux.processes import find_status, read_statuses, written_bytes
from tare.bench.model import Footprint, Usage

NO_CGROUP = "no cgroup that this user may write to"
_NO_V2_TREE = "no v2 tree is mounted, and v1 does not account for it"

Number = int | float
Reading = TypeVar("Reading", Usage, Footprint)
Parser = Callable[[str], Number | None]


class Meter(ABC):
    """Reads what some processes cost. It makes nothing and removes nothing.

    ``waits_for_all`` is for whoever knows that a process of theirs waits for each that ends: then their own accounts
    are complete, and count for cgroup v1 what they wrote through the page cache.
    """

    waits_for_all = False

    @abstractmethod
    def members(self) -> list[int]:
        """The host pids of the processes, those that they started too. Empty once they are gone."""

    @abstractmethod
    def usage(self) -> Usage:
        """What they, dead ones included, have used so far; ``missing`` says why a field is None."""

    @abstractmethod
    def read(self, field: str) -> Number | None:
        """One field of ``usage`` alone."""

    def footprint(self) -> Footprint:
        """The memory that they hold now. Disk is not theirs to say: 0."""
        members = self.members()
        pss, private, rss = process_footprint(members)
        charge = self.read("memory_current_bytes")
        return Footprint(pss, private, None if charge is None else int(charge), 0, 0, len(members), rss)


def keyed(key: str, per_unit: float = 1) -> Parser:
    """Reads one number of a flat keyed file (``cpu.stat``, ``memory.events``)."""
    line = re.compile(rf"^{key} (\d+)$", re.MULTILINE | re.ASCII)

    def parse(text: str) -> Number | None:
        if (found := line.search(text)) is None:
            return None
        return int(found[1]) if per_unit == 1 else int(found[1]) / per_unit

    return parse


def nested(key: str) -> Parser:
    """Reads one key of ``io.stat``, summed over the devices."""

    def parse(text: str) -> Number:
        fields = (field.partition("=") for line in text.splitlines() for field in line.split()[1:])
        return sum(int(value) for name, _, value in fields if name == key)

    return parse


def serviced(operation: str) -> Parser:
    """Reads ``Read`` or ``Write`` of ``blkio.throttle.io_serviced`` and its kind, summed over the devices."""

    def parse(text: str) -> Number:
        lines = (line.split() for line in text.splitlines())
        return sum(int(words[2]) for words in lines if len(words) == 3 and words[1] == operation)

    return parse


def number(text: str) -> Number | None:
    """The one number in a file."""
    return int(text) if text.strip().isdigit() else None


class _Source(NamedTuple):
    """A file of a cgroup. ``needs`` is a file next to it that may not be empty, or the kernel counts nothing."""

    file: str
    parse: Parser
    needs: str = ""


_HERTZ = os.sysconf("SC_CLK_TCK")
_TICKS = "cpuacct.stat"
_EXACT = _Source("cpu.stat", keyed("usage_usec"))


def _io(kind: str, file: str) -> tuple[_Source, _Source]:
    """Read and written, in ``io.stat`` by the beginning of its keys, or in a file of blkio."""
    key = "Read" if kind.startswith("r") else "Write"
    rule = f"blkio.throttle.{key.lower()}_bps_device"
    return _Source("io.stat", nested(kind)), _Source(f"blkio.throttle.{file}_recursive", serviced(key), rule)


def _cpu(part: str) -> tuple[_Source, ...]:
    """CPU time of v2 in microseconds; of v1 in nanoseconds, or in ticks, which make 0 of a short command."""
    usage = f"cpuacct.usage_{part.removesuffix('tem')}"
    return (
        _Source("cpu.stat", keyed(f"{part}_usec", 1e6)),
        _Source(usage, lambda text: _seconds(number(text))),
        _Source(_TICKS, keyed(part, _HERTZ)),
    )


def _seconds(nanoseconds: Number | None) -> float | None:
    return None if nanoseconds is None else nanoseconds / 1e9


_SOURCES: Mapping[str, tuple[str, tuple[_Source, ...]]] = {
    "cpu_user_s": ("cpuacct", _cpu("user")),
    "cpu_system_s": ("cpuacct", _cpu("system")),
    "cpu_throttled_s": (
        "cpu",
        (_Source("cpu.stat", keyed("throttled_usec", 1e6)), _Source("cpu.stat", keyed("throttled_time", 1e9))),
    ),
    "cpu_periods": ("cpu", (_Source("cpu.stat", keyed("nr_periods")),)),
    "cpu_throttled_periods": ("cpu", (_Source("cpu.stat", keyed("nr_throttled")),)),
    "memory_peak_bytes": ("memory", (_Source("memory.peak", number), _Source("memory.max_usage_in_bytes", number))),
    "memory_current_bytes": ("memory", (_Source("memory.current", number), _Source("memory.usage_in_bytes", number))),
    "memory_file_bytes": (
        "memory",
        (_Source("memory.stat", keyed("file")), _Source("memory.stat", keyed("total_cache"))),
    ),
    "oom_kills": (
        "memory",
        (_Source("memory.events", keyed("oom_kill")), _Source("memory.oom_control", keyed("oom_kill"))),
    ),
    "pids_refused": ("pids", (_Source("pids.events", keyed("max")),)),
    "io_read_bytes": ("io", _io("rbytes", "io_service_bytes")),
    "io_write_bytes": ("io", _io("wbytes", "io_service_bytes")),
    "io_read_operations": ("io", _io("rios", "io_serviced")),
    "io_write_operations": ("io", _io("wios", "io_serviced")),
    "cpu_pressure_s": ("pressure", (_Source("cpu.pressure", parse_stall_s),)),
    "memory_pressure_s": ("pressure", (_Source("memory.pressure", parse_stall_s),)),
    "io_pressure_s": ("pressure", (_Source("io.pressure", parse_stall_s),)),
}
"""Field of ``Usage``: the controller that accounts for it, and its files in v2 and v1: the first there counts."""


class CgroupMeter(Meter):
    """Meters one cgroup: its folder in the v2 tree, its folders in v1's hierarchies, or both (hybrid).

    CPU time is exact to the microsecond in a v2 folder. v1's ``cpuacct`` counts it as exactly, but samples by ticks
    what of it is user and what system time. On v1 the kernel counts I/O only of devices for which the group has a
    throttling rule, since Linux 6.1 one for each direction. The folders have to exist when it is read.
    """

    def __init__(self, folders: Iterable[Path]) -> None:
        self.folders = tuple(folders)

    @classmethod
    def of_process(cls, pid: int, root: Path = Path("/")) -> "CgroupMeter":
        """The meter of the cgroup that a process is in, whoever made it.

        Its folders in hierarchies in which it has a group of its own: at the top, and where it shares tare's, everybody
        would be metered. Raises LookupError if there is none.
        """
        folders, tops = find_folders(pid, root)
        shared = {*find_folders("self", root)[0].values(), *tops.values()}
        names = sorted(name for name in folders if not name.startswith("name="))
        own = dict.fromkeys(folders[name] for name in names if folders[name] not in shared)
        if not own:
            raise LookupError(f"process {pid} is in no cgroup of its own")
        return cls(own)

    def members(self) -> list[int]:
        """The processes in it and in the groups below, without the kernel's threads that work for them.

        What those use is charged to it all the same.
        """
        return [pid for pid in members_of(self.folders[0]) if not _is_kernel_thread(pid)]

    def usage(self) -> Usage:
        """What was charged to it since it was made. Raises OSError if it is gone."""
        texts: dict[str, str | None] = {}
        values = {field: self._read(sources, texts) for field, (_, sources) in _SOURCES.items()}
        self._split_exactly(values, texts)
        values["io_write_bytes"] = self._written(values["io_write_bytes"])
        missing = {field: self._reason(field) for field, value in values.items() if value is None}
        known: Mapping[str, Any] = values
        return Usage(**known, missing=missing)

    def _split_exactly(self, values: dict[str, Number | None], texts: dict[str, str | None]) -> None:
        """Share out what v1 counts exactly by what it has sampled, as the kernel does (``cputime_adjust``)."""
        exact = self._read((_Source("cpuacct.usage", number),), texts)
        user, system = values["cpu_user_s"], values["cpu_system_s"]
        if exact is None or user is None or system is None or self._read((_EXACT,), texts) is not None:
            return
        share = user / (user + system) if system else 1.0
        values["cpu_user_s"], values["cpu_system_s"] = exact / 1e9 * share, exact / 1e9 * (1 - share)

    def _written(self, counted: Number | None) -> Number | None:
        """Bytes written. v1 counts what a process hands to the device itself.

        What the kernel writes back of the page cache, also between a write and its fsync, it counts for nobody. The
        processes' own accounts have it.
        """
        if counted is None or not self.waits_for_all or "io.stat" in self._files:
            return counted
        written = written_bytes(self.members())
        return counted if written is None else written

    def read(self, field: str) -> Number | None:
        """One field of ``usage`` alone. Raises OSError if it is gone."""
        value = self._read(_SOURCES[field][1], {})
        return self._written(value) if field == "io_write_bytes" else value

    def _read(self, sources: Iterable[_Source], texts: dict[str, str | None]) -> Number | None:
        for source in sources:
            for path in self._files.get(source.file, ()):
                text = _read_once(path, texts)
                if text is None:
                    continue
                if source.needs and not (_read_once(path.replace(source.file, source.needs), texts) or "").strip():
                    continue
                if (value := source.parse(text)) is not None:
                    return value
        return None

    @functools.cached_property
    def _files(self) -> dict[str, list[str]]:
        """Where a file is, by its name. As text: joining paths would take longer than reading them."""
        found: dict[str, list[str]] = {}
        for folder in self.folders:
            for name in os.listdir(folder):  # noqa: PTH208 - names are wanted
                found.setdefault(name, []).append(f"{folder}/{name}")
        return found

    def _reason(self, field: str) -> str:
        """Why a field is None."""
        controller, sources = _SOURCES[field]
        if controller == "pressure":
            return "the kernel keeps no PSI" if "cgroup.controllers" in self._files else _NO_V2_TREE
        # Every group of v2 has these, whether it has the controller or not.
        own = [name for name in self._files if name != "cpu.stat" and not name.endswith(".pressure")]
        prefixes = ("io.", "blkio.") if controller == "io" else (f"{controller}.",)
        if not any(name.startswith(prefixes) for name in own):
            return f"no {controller} cgroup controller"
        if controller == "io":
            return "blkio counts nothing here: the storage lies on no block device of its own"
        return f"this kernel does not account for it in {' or '.join(source.file for source in sources)}"


def _is_kernel_thread(pid: int) -> bool:
    status = find_status(pid)
    return status is not None and status.is_kernel_thread


def _read_once(file: str, texts: dict[str, str | None]) -> str | None:
    if file not in texts:
        texts[file] = None
        with contextlib.suppress(OSError):
            texts[file] = read_text(file)
    return texts[file]


class ProcessTreeMeter(Meter):
    """Meters a process and all below it, where there is no cgroup: CPU time alone, in ticks of 10 ms.

    It counts what live processes and those that they have waited for used. Orphans of a pid namespace stay below its
    init.
    """

    def __init__(self, pid: int | None = None, roots: HostRoots = HERE) -> None:
        self._roots = roots
        self.adopt(pid)

    def adopt(self, pid: int | None) -> None:
        """The process at the root of the tree; None for none yet."""
        status = None if pid is None else find_status(pid, self._roots)
        self._root, self._started = pid, None if status is None else status.started

    def members(self) -> list[int]:
        """The process and all below it."""
        if self._root is None:
            return []
        children: dict[int, list[int]] = {}
        for pid, status in read_statuses(self._roots).items():
            children.setdefault(status.parent, []).append(pid)
        first = find_status(self._root, self._roots)
        if first is None or first.started != self._started:  # its number may be another process's by now
            return []
        found, pending = [], [self._root]
        while pending:
            pid = pending.pop()
            found.append(pid)
            pending += children.get(pid, [])
        return found

    def usage(self) -> Usage:
        """CPU time, and nothing else."""
        user = system = 0.0
        for pid in self.members():
            if (status := find_status(pid, self._roots)) is not None:
                user += status.user_s + status.waited_user_s
                system += status.system_s + status.waited_system_s
        missing = {name: NO_CGROUP for name in _SOURCES if name not in {"cpu_user_s", "cpu_system_s"}}
        return Usage(user, system, None, None, None, None, missing=missing)

    def read(self, field: str) -> Number | None:
        """One field of ``usage`` alone."""
        value: Number | None = getattr(self.usage(), field)
        return value


def total(parts: Mapping[str, Reading]) -> Reading:
    """The sum of readings that were taken apart, by name of the part; a field that one of them lacks is None.

    ``missing`` says which part lacks it. Peaks are added too: they need not coincide, so the sum is an upper bound.
    Raises ValueError without any part.
    """
    if not parts:
        raise ValueError("nothing to add up")
    kind = type(next(iter(parts.values())))
    sums: dict[str, Any] = {}
    for field in kind.__struct_fields__:
        values = [getattr(part, field) for part in parts.values()]
        if field == "missing":
            reasons = [
                (name, f"{part}: {why}") for part, told in zip(parts, values, strict=True) for name, why in told.items()
            ]
            sums[field] = {name: "; ".join(why for other, why in reasons if other == name) for name, _ in reasons}
        else:
            sums[field] = None if None in values else sum(values)
    return kind(**sums)
