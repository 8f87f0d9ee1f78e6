"""A cgroup of the unified hierarchy (v2)."""

import contextlib

from backends.cgroups.delegation import prepare_parent
from backends.cgroups.interface import Cgroup, Limits, parse_keyed, read_text, write_text
from backends.cgroups.layout import Layout
from bench.model import Usage


class V2Cgroup(Cgroup):
    """One folder below our own cgroup or the nearest above that can hand controllers on, which it is made to do."""

    def __init__(self, layout: Layout, name: str) -> None:
        if layout.unified is None or layout.unified_root is None:
            raise ValueError("no v2 hierarchy in this layout")
        folder = prepare_parent(layout.unified, layout.unified_root) / name
        self.folders = (folder,)
        self.clone_into = folder
        self.join_files = (folder / "cgroup.procs",)
        self.join_files_after_clone = ()

    def set_limits(self, limits: Limits) -> None:
        """Write the limits of a group just made. Raises OSError with the file that was refused."""
        folder = self.folders[0]
        values = {
            "cpuset.cpus": ",".join(map(str, limits.cpus)) or None,
            "memory.max": limits.memory_bytes,
            # Without this a limit on memory is a limit on what is not swapped out yet.
            "memory.swap.max": None if limits.memory_bytes is None else 0,
            "pids.max": limits.pids_max,
        }
        for file, value in values.items():
            if value is not None:
                with contextlib.suppress(FileNotFoundError):  # a missing controller is a recorded confound
                    write_text(folder / file, str(value))

    def usage(self) -> Usage:
        """See ``Cgroup.usage``."""
        missing: dict[str, str] = {}
        cpu = parse_keyed(read_text(self.folders[0] / "cpu.stat"))
        peak = self._number("memory.peak")
        if peak is None:
            missing["memory_peak_bytes"] = "no memory.peak here (no memory controller, or a kernel before 5.19)"
        read, written = self._io(missing)
        throttled = cpu.get("throttled_usec")
        if throttled is None:
            missing["cpu_throttled_s"] = "no cpu cgroup controller"
        return Usage(
            cpu_user_s=cpu["user_usec"] / 1e6,
            cpu_system_s=cpu["system_usec"] / 1e6,
            memory_peak_bytes=peak,
            memory_current_bytes=self.charge_bytes(),
            io_read_bytes=read,
            io_write_bytes=written,
            cpu_throttled_s=None if throttled is None else throttled / 1e6,
            oom_kills=self.oom_kills(),
            missing=missing,
        )

    def charge_bytes(self) -> int | None:
        """See ``Cgroup.charge_bytes``."""
        return self._number("memory.current")

    def oom_kills(self) -> int | None:
        """See ``Cgroup.oom_kills``."""
        try:
            return parse_keyed(read_text(self.folders[0] / "memory.events")).get("oom_kill")
        except FileNotFoundError:
            return None

    def _set_frozen(self, *, frozen: bool) -> bool:
        with contextlib.suppress(OSError):
            write_text(self.folders[0] / "cgroup.freeze", str(int(frozen)))
            return True
        return False

    def _io(self, missing: dict[str, str]) -> tuple[int | None, int | None]:
        try:
            return parse_io_stat(read_text(self.folders[0] / "io.stat"))
        except FileNotFoundError:
            missing["io_read_bytes"] = missing["io_write_bytes"] = "no io cgroup controller"
            return None, None

    def _number(self, file: str) -> int | None:
        try:
            return int(read_text(self.folders[0] / file))
        except FileNotFoundError:
            return None


def parse_io_stat(text: str) -> tuple[int, int]:
    """Bytes (read, written) summed over the devices of ``io.stat``."""
    read = written = 0
    for line in text.splitlines():
        values = dict(field.split("=", 1) for field in line.split()[1:] if "=" in field)
        read += int(values.get("rbytes", 0))
        written += int(values.get("wbytes", 0))
    return read, written
