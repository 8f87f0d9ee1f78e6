"""A cgroup of the unified hierarchy (v2)."""

import contextlib

from tare.backends.cgroups.delegation import prepare_parent
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

_RATE_KEYS = {
    "io_read_bytes_per_s": "rbps",
    "io_write_bytes_per_s": "wbps",
    "io_read_ops_per_s": "riops",
    "io_write_ops_per_s": "wiops",
}
_NO_MEMORY = "no memory cgroup controller"
_MISSING = {
    "memory_peak_bytes": "no memory.peak here (no memory controller, or a kernel before 5.19)",
    "memory_current_bytes": _NO_MEMORY,
    "memory_file_bytes": _NO_MEMORY,
    "oom_kills": _NO_MEMORY,
    "pids_refused": "no pids cgroup controller",
}


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

    def set_limits(self, limits: Limits) -> dict[str, str]:
        """See ``Cgroup.set_limits``."""
        unenforced: dict[str, str] = {}
        quota = None if limits.cpu_quota is None else f"{round(limits.cpu_quota * CPU_PERIOD_US)} {CPU_PERIOD_US}"
        # Without it a limit on memory is a limit on what is not swapped out yet.
        swap = 0 if limits.swap_bytes is None and limits.memory_bytes is not None else limits.swap_bytes
        for name, file, value in (
            ("cpus", "cpuset.cpus", ",".join(map(str, limits.cpus)) or None),
            ("cpu_quota", "cpu.max", quota),
            ("cpu_weight", "cpu.weight", limits.cpu_weight),
            ("memory_bytes", "memory.max", limits.memory_bytes),
            ("swap_bytes", "memory.swap.max", swap),
            ("pids_max", "pids.max", limits.pids_max),
        ):
            if value is not None:
                self._set(file, str(value), unenforced, name)
        if rates := limits.io_rates():
            if limits.io_device is None:
                unenforced.update(dict.fromkeys(rates, "the suite's storage lies on no block device"))
            else:
                rules = " ".join(f"{_RATE_KEYS[name]}={rate}" for name, rate in rates.items())
                self._set("io.max", f"{limits.io_device} {rules}", unenforced, *rates)
        return unenforced

    def _set(self, file: str, value: str, unenforced: dict[str, str], *limits: str) -> None:
        try:
            write_text(self.folders[0] / file, value)
        except FileNotFoundError:
            unenforced.update(dict.fromkeys(limits, f"the cgroup has no {file}"))

    def usage(self) -> Usage:
        """See ``Cgroup.usage``."""
        missing: dict[str, str] = {}
        cpu = parse_keyed(read_text(self.folders[0] / "cpu.stat"))
        if "throttled_usec" not in cpu:
            lost = ("cpu_throttled_s", "cpu_periods", "cpu_throttled_periods")
            missing.update(dict.fromkeys(lost, "no cpu cgroup controller"))
        throttled = cpu.get("throttled_usec")
        io = self._io(missing)
        stalls = [self._stall(resource, missing) for resource in ("cpu", "memory", "io")]
        file_bytes, oom_kills = self._keyed("memory.stat", "file"), self.oom_kills()
        known = {
            "memory_peak_bytes": self._number("memory.peak"),
            "memory_current_bytes": self.charge_bytes(),
            "memory_file_bytes": file_bytes,
            "oom_kills": oom_kills,
            "pids_refused": self.pids_refused(),
        }
        missing.update({name: _MISSING[name] for name, value in known.items() if value is None})
        return Usage(
            cpu_user_s=cpu["user_usec"] / 1e6,
            cpu_system_s=cpu["system_usec"] / 1e6,
            io_read_bytes=io.get("rbytes"),
            io_write_bytes=io.get("wbytes"),
            cpu_throttled_s=None if throttled is None else throttled / 1e6,
            cpu_periods=cpu.get("nr_periods"),
            cpu_throttled_periods=cpu.get("nr_throttled"),
            io_read_operations=io.get("rios"),
            io_write_operations=io.get("wios"),
            cpu_pressure_s=stalls[0],
            memory_pressure_s=stalls[1],
            io_pressure_s=stalls[2],
            missing=missing,
            **known,
        )

    def charge_bytes(self) -> int | None:
        """See ``Cgroup.charge_bytes``."""
        return self._number("memory.current")

    def oom_kills(self) -> int | None:
        """See ``Cgroup.oom_kills``."""
        return self._keyed("memory.events", "oom_kill")

    def pids_refused(self) -> int | None:
        """See ``Cgroup.pids_refused``."""
        return self._keyed("pids.events", "max")

    def _set_frozen(self, *, frozen: bool) -> bool:
        with contextlib.suppress(OSError):
            write_text(self.folders[0] / "cgroup.freeze", str(int(frozen)))
            return True
        return False

    def _io(self, missing: dict[str, str]) -> dict[str, int]:
        try:
            return parse_io_stat(read_text(self.folders[0] / "io.stat"))
        except FileNotFoundError:
            lost = ("io_read_bytes", "io_write_bytes", "io_read_operations", "io_write_operations")
            missing.update(dict.fromkeys(lost, "no io cgroup controller"))
            return {}

    def _stall(self, resource: str, missing: dict[str, str]) -> float | None:
        stall = read_stall_s(self.folders[0] / f"{resource}.pressure")
        if stall is None:
            missing[f"{resource}_pressure_s"] = "the kernel keeps no PSI"
        return stall

    def _keyed(self, file: str, key: str) -> int | None:
        try:
            return parse_keyed(read_text(self.folders[0] / file)).get(key)
        except FileNotFoundError:
            return None

    def _number(self, file: str) -> int | None:
        try:
            return int(read_text(self.folders[0] / file))
        except FileNotFoundError:
            return None


def parse_io_stat(text: str) -> dict[str, int]:
    """Bytes (``rbytes``, ``wbytes``) and operations (``rios``, ``wios``) of ``io.stat``, summed over the devices."""
    total = dict.fromkeys(("rbytes", "wbytes", "rios", "wios"), 0)
    for line in text.splitlines():
        values = dict(field.split("=", 1) for field in line.split()[1:] if "=" in field)
        for name in total:
            total[name] += int(values.get(name, 0))
    return total
