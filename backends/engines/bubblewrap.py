"""bubblewrap, the least that isolates: namespaces by one small program in the foreground, and no cgroups."""

from collections.abc import Sequence
from pathlib import Path

from tare.backends.engines.box import Box, Network, Seccomp
from tare.backends.engines.command_engine import CommandEngine
from tare.backends.engines.profile import Protection, find_protection
from tare.backends.engines.start import INSIDE, LIVE
from tare.backends.native.seccomp import DEFAULT_CAPABILITIES, compile_filters
from tare.backends.native.setup import Setup, dev_steps
from tare.backends.native.steps import Step, make_folders
from tare.bench.model import BASE_ENVIRONMENT, SCRATCH, Confound, Envelope, Image

_HOST_SYS = "its /sys is the host's, read-only: bubblewrap mounts none of its own"
_FIRST_FILE = 3


def _dev(box: Box) -> Path:
    return box.folder / "dev"


def protect(found: Protection) -> tuple[str, ...]:
    """The arguments that protect what was found.

    Root inside can write to bubblewrap's /proc/sys, where /proc/sys/kernel/core_pattern is a command of the host's.
    """
    return (
        *(word for path in found.read_only for word in ("--ro-bind", path, path)),
        *(word for path in found.folders for word in ("--tmpfs", path, "--remount-ro", path)),
        *(word for path in found.files for word in ("--ro-bind", "/dev/null", path)),
    )


class Bubblewrap(CommandEngine):
    """``bwrap``, in the container's cgroup; it ends with the container."""

    name = "bubblewrap"
    summary = "sandboxes by bubblewrap, the least that isolates"
    program = "bwrap"
    package = "bubblewrap"
    returns = False
    places = False
    _filters: Sequence[bytes] = ()
    _protection: Sequence[str] = ()

    def prepare_engine(self, image: Image, envelope: Envelope) -> None:
        del image, envelope
        self._protection = protect(find_protection())
        if self.options.seccomp is Seccomp.DEFAULT:
            filters = compile_filters(tuple(dict(DEFAULT_CAPABILITIES).values()))
            self._filters = (filters.inherited, filters.own)

    def start_files(self) -> Sequence[bytes]:
        return self._filters

    def mounts(self, box: Box) -> Sequence[Step]:
        """A /dev of tare's: the nodes in bubblewrap's own are the host's, whose modes root inside could change."""
        return [
            make_folders(str(_dev(box))),
            *dev_steps(Setup(style="native", root=str(box.root), empty=""), str(_dev(box))),
        ]

    def start_command(self, box: Box) -> Sequence[str]:
        private = ("pid", "ipc", "uts", "cgroup", *(() if self.options.network is Network.HOST else ("net",)))
        return [
            "bwrap",
            *(f"--unshare-{name}" for name in private),
            *("--hostname", box.identifier[:64], "--as-pid-1", "--new-session", "--chdir", "/", "--clearenv"),
            *(word for name, value in BASE_ENVIRONMENT.items() for word in ("--setenv", name, value)),
            *("--bind", str(box.root), "/"),
            *("--dev-bind", str(_dev(box)), "/dev", "--mqueue", "/dev/mqueue", "--proc", "/proc"),
            *("--ro-bind", "/sys", "/sys"),
            *self._protection,
            *("--ro-bind", str(box.given), INSIDE, "--bind", str(box.scratch), SCRATCH),
            *("--cap-drop", "ALL"),
            *(word for name, _ in DEFAULT_CAPABILITIES for word in ("--cap-add", f"CAP_{name}")),
            *(
                word
                for number, _ in enumerate(self._filters, _FIRST_FILE)
                for word in ("--add-seccomp-fd", str(number))
            ),
            "--",
            *LIVE,
        ]

    def facts(self) -> dict[str, str]:
        net = "" if self.options.network is Network.HOST else ",net"
        return {
            "dev": "tare's",
            "namespaces": f"mnt,pid,ipc,uts,cgroup{net}",
            "capabilities": ",".join(dict(DEFAULT_CAPABILITIES)),
            "no_new_privs": "yes",
            "seccomp": "default (that of tare's own containers)" if self._filters else "none",
        }

    def confounds(self) -> Sequence[Confound]:
        return (Confound("host-sys", _HOST_SYS, self.name),)
