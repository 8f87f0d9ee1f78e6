"""A place of its own for tare on this machine, and a census of what is there: before, after, and what was left.

Everything that tare makes for the campaign is in folders of the campaign's own (state, work, temporary files, home) and
in cgroups below the campaign's own, so that another tare on the machine is neither seen nor disturbed. What belongs to
the host and must stay as it is (device nodes, interpreters, accounts, settings of the kernel) is compared as a whole.
"""

import contextlib
import hashlib
import os
import select
import signal
import socket
import stat
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Self

import msgspec

from tare.bench.cli import main as run_tare
from tare.bench.linux.cgroups import find_folders, members_of, remove_cgroup
from tare.bench.linux.mounts import read_mounts
from tare.bench.trees import remove_tree

_SAID_BYTES = 1 << 16
HANGING_S = 90.0
"""A command that has not ended by then hangs; the longest takes 20 s on a busy machine."""
_HOST_FILES = (
    *("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/tty", "/dev/ptmx", "/dev/console"),
    *("/dev/kvm", "/dev/net/tun", "/dev/shm", "/dev/pts", "/dev", "/tmp", "/var/tmp", "/", "/etc", "/usr/bin", "/root"),
    *(
        "/etc/passwd",
        "/etc/shadow",
        "/etc/group",
        "/etc/hosts",
        "/etc/subuid",
        "/etc/ld.so.cache",
        "/var/lib/dpkg/status",
    ),
    *("/usr/bin/python3", "/bin/sh", "/bin/true", "/usr/bin/env", sys.executable),
)
_CONTENTS = ("/etc/passwd", "/etc/shadow", "/etc/group", "/etc/hosts", "/bin/sh", "/usr/bin/python3", sys.executable)
_SETTINGS = (
    *("kernel/core_pattern", "kernel/hostname", "kernel/modprobe", "kernel/panic", "kernel/sysrq", "kernel/pid_max"),
    *("kernel/randomize_va_space", "kernel/domainname", "vm/overcommit_memory", "vm/swappiness", "fs/suid_dumpable"),
    *("net/ipv4/ip_forward", "kernel/unprivileged_userns_clone", "fs/binfmt_misc/status"),
)


class Host(msgspec.Struct, frozen=True):
    """What nothing that tare runs may change, by name."""

    facts: dict[str, str]

    def changes(self, earlier: "Host") -> list[str]:
        """What is not as it was."""
        names = sorted({*self.facts, *earlier.facts})
        return [
            f"{name}: {earlier.facts.get(name)} became {self.facts.get(name)}"
            for name in names
            if self.facts.get(name) != earlier.facts.get(name)
        ]


def read_host() -> Host:
    """The host's files and settings now."""
    facts = {}
    for name in dict.fromkeys(_HOST_FILES):
        with contextlib.suppress(OSError):
            found = Path(name).stat()
            shown = f"{stat.filemode(found.st_mode)} {found.st_uid}:{found.st_gid} device {found.st_rdev:x}"
            facts[name] = shown + (f" inode {found.st_ino}" if not stat.S_ISDIR(found.st_mode) else "")
            facts[f"{name} attributes"] = str(sorted(os.listxattr(name)))
    for name in dict.fromkeys(_CONTENTS):
        with contextlib.suppress(OSError):
            facts[f"{name} content"] = hashlib.sha256(Path(name).read_bytes()).hexdigest()
    for name in _SETTINGS:
        with contextlib.suppress(OSError):
            facts[name] = Path("/proc/sys", name).read_text().strip()
    return Host(facts)


Within = Callable[[Callable[[], None]], None]


def _plainly(run: Callable[[], None]) -> None:
    run()


class Place:
    """Folders and cgroups of the campaign's own, and tare in them. Use as a context manager; it leaves nothing."""

    def __init__(self, folder: Path, cache: Path) -> None:
        """``folder`` is not there yet. ``cache`` has the images; it may be the machine's own."""
        self.folder = folder
        self.output = folder / "said"
        self._env = {
            "TARE_CACHE_DIR": str(cache),
            "TARE_STATE_DIR": str(folder / "state"),
            "TARE_WORK_DIR": str(folder / "work"),
            "TARE_CONFIG_DIR": str(folder / "config"),
            "TMPDIR": str(folder / "tmp"),
            "HOME": str(folder / "home"),
        }
        self._cgroups: list[Path] = []
        self._homes: list[Path] = []

    def __enter__(self) -> Self:
        for name in ("state", "work", "tmp", "home", "config"):
            (self.folder / name).mkdir(parents=True)
        folders, _ = find_folders()
        self._homes = [*dict.fromkeys(folders.values())]
        for home in self._homes:
            with contextlib.suppress(OSError):
                own = home / f"campaign-{os.getpid()}"
                own.mkdir()
                self._cgroups.append(own)
                for name in ("cpuset.cpus", "cpuset.mems"):
                    if (own / name).exists() and (home / name).exists():
                        (own / name).write_text((home / name).read_text())
                (own / "cgroup.procs").write_text("0")
        return self

    def __exit__(self, *_: object) -> None:
        for home in self._homes:
            with contextlib.suppress(OSError):
                (home / "cgroup.procs").write_text("0")
        for own in self._cgroups:
            remove_cgroup(own)
        remove_tree(self.folder)

    def start(self, *arguments: str, env: dict[str, str] | None = None, within: Within = _plainly) -> int:
        """Start ``tare`` in a process of its own, in a session of its own; its pid. What it says is in ``output``.

        It is forked from this process, which has loaded tare already and must have no threads: a start of Python
        takes more time than most of the commands. It runs ``within``, which is given what runs it.
        """
        held = signal.pthread_sigmask(signal.SIG_BLOCK, _SENT)
        try:
            pid = os.fork()
            if pid == 0:
                os.chdir(self.folder)
                _become_tare(["tare", *arguments], self._env | (env or {}), self.output, within)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, held)
        return pid

    def run(self, *arguments: str, env: dict[str, str] | None = None, within: Within = _plainly) -> int:
        """The exit status of ``tare`` with these arguments, negative for a signal; HANGING_S is its deadline."""
        return wait(self.start(*arguments, env=env, within=within))

    def said(self) -> str:
        """What the last command said, the end of it."""
        with self.output.open("rb") as file:
            file.seek(max(0, self.output.stat().st_size - _SAID_BYTES))
            return file.read().decode(errors="replace")

    def left(self) -> list[str]:
        """What of the campaign's own is there and should not be, when no command of it runs."""
        found = [f"cgroup {path}" for own in self._cgroups for path in own.rglob("*") if path.is_dir()]
        found += [f"process {pid}: {_line(pid)}" for pid in self.members() if pid != os.getpid()]
        found += [f"mount {mount.point}" for mount in read_mounts() if mount.point.is_relative_to(self.folder)]
        found += [f"file {path}" for name in ("work", "tmp", "state/ledger") for path in self._listed(name)]
        found += [f"link {name}" for _, name in socket.if_nameindex() if name.startswith(("tare", "tap0-", "veth0-"))]
        found += [f"loop {path}" for path in _loops() if path.is_relative_to(self.folder)]
        return found

    def members(self) -> list[int]:
        """The processes in the campaign's cgroups, this one among them."""
        return sorted({pid for own in self._cgroups for pid in members_of(own)})

    def _listed(self, name: str) -> list[Path]:
        folder = self.folder / name
        return [path for path in folder.iterdir() if not path.name.startswith("pytest")] if folder.is_dir() else []


def wait(pid: int, deadline_s: float = HANGING_S) -> int:
    """The exit status of a child, negative for a signal; HUNG if it did not end and had to be killed."""
    descriptor = os.pidfd_open(pid)
    try:
        if not select.select([descriptor], [], [], deadline_s)[0]:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return HUNG
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    finally:
        os.close(descriptor)


HUNG = -1000
_SENT = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""What the campaign sends. They wait while a child is not tare yet: this process's own handlers would take them."""


def signal_after(pid: int, delay_s: float, number: signal.Signals) -> bool:
    """Send a signal to a child after a time; whether it still ran."""
    descriptor = os.pidfd_open(pid)
    try:
        if select.select([descriptor], [], [], delay_s)[0]:
            return False
        os.kill(pid, number)
        return True
    finally:
        os.close(descriptor)


def _become_tare(argv: Sequence[str], env: dict[str, str], output: Path, within: Within) -> None:
    """Be ``tare`` with these arguments until it ends, and end with its status."""
    status = 70
    try:
        os.setsid()
        for target, flags in ((0, os.O_RDONLY), (1, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)):
            descriptor = os.open("/dev/null" if target == 0 else output, flags, 0o600)
            os.dup2(descriptor, target)
            os.close(descriptor)
        os.dup2(1, 2)
        for number in _SENT:
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SENT)
        os.environ.update(env)
        sys.argv = [*argv]
        within(run_tare)
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:  # noqa: BLE001 - a forked child must not go on as its parent
        import traceback

        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def _line(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return "?"


def _loops() -> Iterator[Path]:
    for file in Path("/sys/block").glob("loop*/loop/backing_file"):
        with contextlib.suppress(OSError):
            yield Path(file.read_text().strip())
