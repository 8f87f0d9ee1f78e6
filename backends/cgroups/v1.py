"""A cgroup over the v1 hierarchies, with a child in the v2 tree beside them where there is one.

That child has no controllers, yet counts CPU time exactly (``cpu.stat``; ``cpuacct.stat`` counts in ticks of
10 ms), tells when its last process is gone, and kills and freezes at one write.
"""

import contextlib
import os

from backends.cgroups.interface import Cgroup, Limits, parse_keyed, read_text, write_text
from backends.cgroups.layout import Layout
from bench.model import Usage

_NEVER_REACHED = 2**64 - 2
"""The largest rate that blkio takes: bytes of a device are counted only in a group that has a rule for it."""


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

    def set_limits(self, limits: Limits) -> None:
        """Write the limits of a group just made. Raises OSError with the file that was refused."""
        if (cpuset := self._of.get("cpuset")) is not None:
            # A v1 cpuset starts empty and takes no process until both are set.
            parent = self._parents["cpuset"]
            write_text(cpuset / "cpuset.mems", read_text(parent / "cpuset.mems"))
            cpus = ",".join(map(str, limits.cpus)) if limits.cpus else read_text(parent / "cpuset.cpus")
            write_text(cpuset / "cpuset.cpus", cpus)
        if (memory := self._of.get("memory")) is not None and limits.memory_bytes is not None:
            write_text(memory / "memory.limit_in_bytes", str(limits.memory_bytes))
            with contextlib.suppress(FileNotFoundError):  # absent where swap accounting is off
                write_text(memory / "memory.memsw.limit_in_bytes", str(limits.memory_bytes))
        if (pids := self._of.get("pids")) is not None and limits.pids_max is not None:
            write_text(pids / "pids.max", str(limits.pids_max))
        if (blkio := self._of.get("blkio")) is not None and limits.io_device is not None:
            write_text(blkio / "blkio.throttle.read_bps_device", f"{limits.io_device} {_NEVER_REACHED}")

    def usage(self) -> Usage:
        """See ``Cgroup.usage``. CPU time in ticks of 10 ms where there is no v2 tree."""
        missing: dict[str, str] = {}
        user, system = self._cpu(missing)
        read, written = self._io(missing)
        peak = self._number("memory", "memory.max_usage_in_bytes")
        for field, controller in (("memory_peak_bytes", "memory"), ("cpu_throttled_s", "cpu")):
            if controller not in self._of:
                missing[field] = f"no {controller} cgroup controller"
        return Usage(
            cpu_user_s=user,
            cpu_system_s=system,
            memory_peak_bytes=peak,
            memory_current_bytes=self.charge_bytes(),
            io_read_bytes=read,
            io_write_bytes=written,
            cpu_throttled_s=self._throttled(),
            oom_kills=self.oom_kills(),
            missing=missing,
        )

    def charge_bytes(self) -> int | None:
        """See ``Cgroup.charge_bytes``."""
        return self._number("memory", "memory.usage_in_bytes")

    def oom_kills(self) -> int | None:
        """See ``Cgroup.oom_kills``."""
        folder = self._of.get("memory")
        return None if folder is None else parse_keyed(read_text(folder / "memory.oom_control")).get("oom_kill")

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

    def _io(self, missing: dict[str, str]) -> tuple[int | None, int | None]:
        folder = self._of.get("blkio")
        reason = "no blkio cgroup controller"
        if folder is not None:
            try:
                text = read_text(folder / "blkio.throttle.io_service_bytes_recursive")
                if read_text(folder / "blkio.throttle.read_bps_device").strip():
                    return parse_service_bytes(text)
                reason = "the work directory lies on no block device of its own"
            except OSError:
                reason = "this kernel's blkio controller does not count bytes"
        missing["io_read_bytes"] = missing["io_write_bytes"] = reason
        return None, None

    def _throttled(self) -> float | None:
        folder = self._of.get("cpu")
        if folder is None:
            return None
        return parse_keyed(read_text(folder / "cpu.stat")).get("throttled_time", 0) / 1e9

    def _number(self, controller: str, file: str) -> int | None:
        folder = self._of.get(controller)
        return None if folder is None else int(read_text(folder / file))


def parse_service_bytes(text: str) -> tuple[int, int]:
    """Bytes (read, written) summed over the devices of ``blkio.throttle.io_service_bytes``."""
    read = written = 0
    for line in text.splitlines():
        fields = line.split()
        if len(fields) == 3 and fields[1] == "Read":
            read += int(fields[2])
        elif len(fields) == 3 and fields[1] == "Write":
            written += int(fields[2])
    return read, written
