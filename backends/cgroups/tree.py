"""Instead of a cgroup, where this user may make none: the processes below an instance's first one."""

import os
import signal
import time
from collections.abc import Collection
from pathlib import Path

from tare.backends.cgroups.interface import KILL_DEADLINE_S, Cgroup, Limits, signal_all, wait_ended
from tare.bench.errors import BackendError
from tare.bench.model import Usage

NOT_OURS = "no cgroup that this user may write to"
_UTIME, _CSTIME, _START = 11, 14, 19
"""Positions after the name in ``/proc/PID/stat``: utime, stime, cutime, cstime; and the time of its start."""


class ProcessTree(Cgroup):
    """The instance's init and all below it. Enforces nothing; orphans of a pid namespace stay below its init.

    CPU time is what its live processes and those that they have waited for used, in ticks of 10 ms.
    """

    def __init__(self, proc: Path = Path("/proc")) -> None:
        self.folders = ()
        self.join_files = ()
        self.clone_into = None
        self.join_files_after_clone = ()
        self._proc = proc
        self._root: int | None = None
        self._started = ""

    def adopt(self, pid: int) -> None:
        """See ``Cgroup.adopt``."""
        self._root = pid
        self._started = (self._stat(pid) or [""] * (_START + 1))[_START]

    def set_limits(self, limits: Limits) -> dict[str, str]:
        """See ``Cgroup.set_limits``: none is enforced. CPUs are those that the processes are pinned to."""
        asked = {name: getattr(limits, name) for name in limits.__struct_fields__ if name != "io_device"}
        return {name: NOT_OURS for name, value in asked.items() if value not in (None, ())}

    def members(self) -> list[int]:
        """See ``Cgroup.members``."""
        if self._root is None:
            return []
        children: dict[int, list[int]] = {}
        for entry in os.listdir(self._proc):  # noqa: PTH208 - some hundred names: no paths are needed
            if entry.isdigit() and (fields := self._stat(int(entry))) is not None:
                children.setdefault(int(fields[1]), []).append(int(entry))
        init = self._stat(self._root)
        if init is None or init[_START] != self._started:  # its number may be another process's by now
            return []
        found, pending = [], [self._root]
        while pending:
            pid = pending.pop()
            found.append(pid)
            pending += children.get(pid, [])
        return found

    def kill(self, *, keep: Collection[int] = ()) -> None:
        """See ``Cgroup.kill``. Stopped first, so that what forks without end does not outrun the signals."""
        deadline = time.monotonic() + KILL_DEADLINE_S
        while victims := [pid for pid in self.members() if pid not in keep]:
            for pid in victims:
                try:
                    os.kill(pid, signal.SIGSTOP)
                except ProcessLookupError:
                    continue
            wait_ended(signal_all([pid for pid in self.members() if pid not in keep]), deadline)
            if time.monotonic() > deadline:
                raise BackendError(
                    f"processes {victims} did not end within {KILL_DEADLINE_S:g} s of SIGKILL",
                    remedy="they are stuck inside the kernel; /proc/PID/stack tells where",
                )

    def usage(self) -> Usage:
        """See ``Cgroup.usage``: CPU time, and nothing else."""
        user = system = 0
        for pid in self.members():
            if (fields := self._stat(pid)) is not None:
                times = [int(field) for field in fields[_UTIME : _CSTIME + 1]]
                user += times[0] + times[2]
                system += times[1] + times[3]
        hertz = os.sysconf("SC_CLK_TCK")
        missing = {
            name: NOT_OURS for name in Usage.__struct_fields__ if name not in {"cpu_user_s", "cpu_system_s", "missing"}
        }
        return Usage(user / hertz, system / hertz, None, None, None, None, missing=missing)

    def charge_bytes(self) -> int | None:
        """See ``Cgroup.charge_bytes``."""
        return None

    def oom_kills(self) -> int | None:
        """See ``Cgroup.oom_kills``."""
        return None

    def pids_refused(self) -> int | None:
        """See ``Cgroup.pids_refused``."""
        return None

    def _set_frozen(self, *, frozen: bool) -> bool:  # noqa: ARG002 - nothing here can freeze
        return False

    def _stat(self, pid: int) -> list[str] | None:
        """The fields of ``/proc/PID/stat`` after the name; None for one that is gone or a zombie."""
        try:
            text = (self._proc / str(pid) / "stat").read_bytes()
        except OSError:
            return None
        fields = text.rpartition(b")")[2].decode().split()
        return None if fields[0] in "ZX" else fields
