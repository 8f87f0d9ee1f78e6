"""A cgroup over the v1 hierarchies, with a child in the v2 tree beside them where there is one.

That child has no controllers, yet counts CPU time exactly (``cpu.stat``; ``cpuacct.stat`` counts in ticks of
10 ms), tells how long its processes waited (PSI) and when the last is gone, and kills and freezes at one write.
"""

import contextlib
import os
from pathlib import Path

from tare.backends.cgroups.interface import (
    CPU_PERIOD_US,
    Cgroup,
    Limits,
    parse_keyed,
    read_stall_s,
    read_text,
    write_text,
)
from tare.backends.cgroups.layout import Layout
from tare.bench.model import Usage

_NEVER_REACHED = 2**64 - 2
"""The largest rate that blkio takes: bytes of a device are counted only in a group that has a rule for it."""
_THROTTLES = {
    "io_read_bytes_per_s": "blkio.throttle.read_bps_device",
    "io_write_bytes_per_s": "blkio.throttle.write_bps_device",
    "io_read_ops_per_s": "blkio.throttle.read_iops_device",
    "io_write_ops_per_s": "blkio.throttle.write_iops_device",
}
_SHARES_PER_WEIGHT = 1024 / 100
"""The usual 100 of v2 is the usual 1024 of v1; the kernel converts the same way."""
_NO_V2_TREE = "no v2 tree is mounted, and v1 does not tell"


def choose_controllers(layout: Layout) -> tuple[str, ...]:
    """The v1 controllers that an instance gets; each costs a mkdir, a join and a rmdir.

    ``cpuacct`` and ``freezer`` only where no v2 tree does their work better.
    """
    wanted = ["pids", "memory", "cpuset", "cpu", "blkio"]
    if layout.unified is None:
        wanted += ["cpuacct", "freezer"]
    return tuple(name for name in wanted if name in layout.controllers)


class V1Cgroup(Cgroup):
    """One folder for each controller of ``choose_controllers``; co-mounted controllers share one."""

    def __init__(self, layout: Layout, name: str) -> None:
        self._of = {controller: layout.controllers[controller] / name for controller in choose_controllers(layout)}
        self._parents = layout.controllers
        v1_folders = tuple(dict.fromkeys(self._of.values()))
        self.clone_into = None if layout.unified is None else layout.unified / name
        self.folders = v1_folders if self.clone_into is None else (self.clone_into, *v1_folders)
        self.join_files_after_clone = tuple(folder / "tasks" for folder in v1_folders)
        unified_join = () if self.clone_into is None else (self.clone_into / "cgroup.procs",)
        self.join_files = (*unified_join, *self.join_files_after_clone)

    def set_limits(self, limits: Limits) -> dict[str, str]:
        """See ``Cgroup.set_limits``."""
        unenforced: dict[str, str] = {}
        self._limit_cpus(limits, unenforced)
        self._limit_cpu_time(limits, unenforced)
        self._limit_memory(limits, unenforced)
        if limits.pids_max is not None and (pids := self._folder("pids", unenforced, "pids_max")) is not None:
            write_text(pids / "pids.max", str(limits.pids_max))
        self._limit_io(limits, unenforced)
        return unenforced

    def _limit_cpus(self, limits: Limits, unenforced: dict[str, str]) -> None:
        cpuset = self._folder("cpuset", unenforced, *(("cpus",) if limits.cpus else ()))
        if cpuset is None:
            return
        # A v1 cpuset starts empty and takes no process until both are set.
        parent = self._parents["cpuset"]
        write_text(cpuset / "cpuset.mems", read_text(parent / "cpuset.mems"))
        cpus = ",".join(map(str, limits.cpus)) if limits.cpus else read_text(parent / "cpuset.cpus")
        write_text(cpuset / "cpuset.cpus", cpus)

    def _limit_cpu_time(self, limits: Limits, unenforced: dict[str, str]) -> None:
        asked = [name for name in ("cpu_quota", "cpu_weight") if getattr(limits, name) is not None]
        cpu = self._folder("cpu", unenforced, *asked) if asked else None
        if cpu is None:
            return
        if limits.cpu_weight is not None:
            write_text(cpu / "cpu.shares", str(round(limits.cpu_weight * _SHARES_PER_WEIGHT)))
        if limits.cpu_quota is None:
            return
        if (cpu / "cpu.cfs_quota_us").exists():
            write_text(cpu / "cpu.cfs_period_us", str(CPU_PERIOD_US))
            write_text(cpu / "cpu.cfs_quota_us", str(round(limits.cpu_quota * CPU_PERIOD_US)))
        else:
            unenforced["cpu_quota"] = "this kernel was built without CPU bandwidth control"

    def _limit_memory(self, limits: Limits, unenforced: dict[str, str]) -> None:
        asked = [name for name in ("memory_bytes", "swap_bytes") if getattr(limits, name) is not None]
        memory = self._folder("memory", unenforced, *asked) if asked else None
        if memory is None:
            return
        if limits.memory_bytes is None:
            unenforced["swap_bytes"] = "v1 limits swap only together with memory"
            return
        write_text(memory / "memory.limit_in_bytes", str(limits.memory_bytes))
        try:
            both = limits.memory_bytes + (limits.swap_bytes or 0)
            write_text(memory / "memory.memsw.limit_in_bytes", str(both))
        except FileNotFoundError:
            unenforced["swap_bytes"] = "this kernel does not account for swap (boot it with swapaccount=1)"

    def _limit_io(self, limits: Limits, unenforced: dict[str, str]) -> None:
        rates = limits.io_rates()
        blkio = self._folder("blkio", unenforced, *rates)
        if blkio is None:
            return
        if limits.io_device is None:
            unenforced.update(dict.fromkeys(rates, "the suite's storage lies on no block device"))
            return
        for name, file in _THROTTLES.items():
            if name in rates:
                write_text(blkio / file, f"{limits.io_device} {rates[name]}")
        if "io_read_bytes_per_s" not in rates:
            write_text(blkio / _THROTTLES["io_read_bytes_per_s"], f"{limits.io_device} {_NEVER_REACHED}")

    def _folder(self, controller: str, unenforced: dict[str, str], *limits: str) -> Path | None:
        """Our folder of a controller; without one, ``limits`` are not enforced."""
        folder = self._of.get(controller)
        if folder is None:
            unenforced.update(dict.fromkeys(limits, f"no {controller} cgroup controller"))
        return folder

    def usage(self) -> Usage:
        """See ``Cgroup.usage``. CPU time in ticks of 10 ms where there is no v2 tree."""
        missing: dict[str, str] = {}
        cpu = self._cpu(missing)
        operations = self._io("blkio.throttle.io_serviced_recursive", missing, "operations")
        moved = self._io("blkio.throttle.io_service_bytes_recursive", missing, "bytes")
        throttling = self._throttling(missing)
        stalls = self._pressure(missing)
        known = {
            "memory_peak_bytes": self._number("memory", "memory.max_usage_in_bytes"),
            "memory_current_bytes": self.charge_bytes(),
            "memory_file_bytes": self._keyed("memory", "memory.stat", "total_cache"),
            "oom_kills": self.oom_kills(),
            "pids_refused": self.pids_refused(),
        }
        for name in (name for name, value in known.items() if value is None):
            controller = "pids" if name == "pids_refused" else "memory"
            untold = controller in self._of
            missing[name] = "this kernel does not tell" if untold else f"no {controller} cgroup controller"
        return Usage(
            cpu_user_s=cpu[0],
            cpu_system_s=cpu[1],
            io_read_bytes=moved[0],
            io_write_bytes=moved[1],
            cpu_throttled_s=None if throttling is None else throttling.get("throttled_time", 0) / 1e9,
            cpu_periods=None if throttling is None else throttling.get("nr_periods", 0),
            cpu_throttled_periods=None if throttling is None else throttling.get("nr_throttled", 0),
            io_read_operations=operations[0],
            io_write_operations=operations[1],
            cpu_pressure_s=stalls[0],
            memory_pressure_s=stalls[1],
            io_pressure_s=stalls[2],
            missing=missing,
            **known,
        )

    def charge_bytes(self) -> int | None:
        """See ``Cgroup.charge_bytes``."""
        return self._number("memory", "memory.usage_in_bytes")

    def oom_kills(self) -> int | None:
        """See ``Cgroup.oom_kills``."""
        return self._keyed("memory", "memory.oom_control", "oom_kill")

    def pids_refused(self) -> int | None:
        """See ``Cgroup.pids_refused``."""
        return self._keyed("pids", "pids.events", "max")

    def _set_frozen(self, *, frozen: bool) -> bool:
        with contextlib.suppress(OSError):
            if self.clone_into is not None:
                write_text(self.clone_into / "cgroup.freeze", str(int(frozen)))
                return True
            if (freezer := self._of.get("freezer")) is not None:
                write_text(freezer / "freezer.state", "FROZEN" if frozen else "THAWED")
                return True
        return False

    def _cpu(self, missing: dict[str, str]) -> tuple[float | None, float | None]:
        if self.clone_into is not None:
            stat = parse_keyed(read_text(self.clone_into / "cpu.stat"))
            return stat["user_usec"] / 1e6, stat["system_usec"] / 1e6
        if (folder := self._of.get("cpuacct")) is not None:
            stat = parse_keyed(read_text(folder / "cpuacct.stat"))
            ticks = os.sysconf("SC_CLK_TCK")
            return stat["user"] / ticks, stat["system"] / ticks
        missing["cpu_user_s"] = missing["cpu_system_s"] = "no cpuacct controller and no v2 tree"
        return None, None

    def _pressure(self, missing: dict[str, str]) -> list[float | None]:
        stalls = []
        for resource in ("cpu", "memory", "io"):
            stall = None if self.clone_into is None else read_stall_s(self.clone_into / f"{resource}.pressure")
            if stall is None:
                reason = _NO_V2_TREE if self.clone_into is None else "the kernel keeps no PSI"
                missing[f"{resource}_pressure_s"] = reason
            stalls.append(stall)
        return stalls

    def _io(self, file: str, missing: dict[str, str], what: str) -> tuple[int | None, int | None]:
        folder = self._of.get("blkio")
        reason = "no blkio cgroup controller"
        if folder is not None:
            try:
                text = read_text(folder / file)
                if read_text(folder / _THROTTLES["io_read_bytes_per_s"]).strip():
                    return parse_serviced(text)
                reason = "the work directory lies on no block device of its own"
            except OSError:
                reason = f"this kernel's blkio controller does not count {what}"
        missing[f"io_read_{what}"] = missing[f"io_write_{what}"] = reason
        return None, None

    def _throttling(self, missing: dict[str, str]) -> dict[str, int] | None:
        folder = self._of.get("cpu")
        if folder is None:
            lost = ("cpu_throttled_s", "cpu_periods", "cpu_throttled_periods")
            missing.update(dict.fromkeys(lost, "no cpu cgroup controller"))
            return None
        return parse_keyed(read_text(folder / "cpu.stat"))

    def _keyed(self, controller: str, file: str, key: str) -> int | None:
        folder = self._of.get(controller)
        if folder is None:
            return None
        try:
            return parse_keyed(read_text(folder / file)).get(key)
        except FileNotFoundError:
            return None

    def _number(self, controller: str, file: str) -> int | None:
        folder = self._of.get(controller)
        return None if folder is None else int(read_text(folder / file))


def parse_serviced(text: str) -> tuple[int, int]:
    """(Read, written) of ``blkio.throttle.io_service_bytes`` or ``io_serviced``, summed over the devices."""
    read = written = 0
    for line in text.splitlines():
        fields = line.split()
        if len(fields) == 3 and fields[1] == "Read":
            read += int(fields[2])
        elif len(fields) == 3 and fields[1] == "Write":
            written += int(fields[2])
    return read, written
