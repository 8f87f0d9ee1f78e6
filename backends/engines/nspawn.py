"""systemd-nspawn, in the foreground and without systemd on the host."""

from collections.abc import Sequence

from tare.backends.engines.box import Box, Network
from tare.backends.engines.command_engine import CommandEngine
from tare.backends.engines.start import INSIDE, LIVE
from tare.backends.native import syscalls
from tare.backends.native.seccomp import CAPABILITIES, DEFAULT_CAPABILITIES
from tare.backends.native.steps import Step, mount
from tare.bench.catalogue import ConfoundCode
from tare.bench.model import BASE_ENVIRONMENT, SCRATCH, Confound

_OWN_SECCOMP = (
    "its system-call filter is nspawn's own list, which cannot be replaced; it leaves the rest EPERM or ENOSYS"
)


class Nspawn(CommandEngine):
    """``systemd-nspawn``, in the container's cgroup; it ends with the container."""

    name = "nspawn"
    summary = "containers by systemd-nspawn"
    program = "systemd-nspawn"
    package = "systemd-container"
    returns = False
    places = False

    def mounts(self, box: Box) -> Sequence[Step]:
        """A /run of its own: nspawn leaves a folder there for each container."""
        del box
        return (mount("tmpfs", "/run", syscalls.MS_NOSUID | syscalls.MS_NODEV, "mode=755,size=1m"),)

    def start_command(self, box: Box) -> Sequence[str]:
        kept = dict(DEFAULT_CAPABILITIES)
        dropped = ",".join(f"CAP_{name}" for name in CAPABILITIES if name not in kept)
        return [
            "systemd-nspawn",
            *("--quiet", "--register=no", "--keep-unit", "--console=pipe", "--link-journal=no", "--resolv-conf=off"),
            *("--timezone=off", f"--directory={box.root}", f"--machine={box.identifier[:64]}"),
            *(() if self.options.network is Network.HOST else ("--private-network",)),
            *(f"--bind-ro={box.given}:{INSIDE}", f"--bind={box.scratch}:{SCRATCH}"),
            *("--no-new-privileges=yes", f"--drop-capability={dropped}", "--oom-score-adjust=1000"),
            *(f"--setenv={name}={value}" for name, value in BASE_ENVIRONMENT.items()),
            "--",
            *LIVE,
        ]

    def facts(self) -> dict[str, str]:
        net = "" if self.options.network is Network.HOST else ",net"
        return {
            "namespaces": f"mnt,pid,ipc,uts,cgroup{net}",
            "capabilities": ",".join(dict(DEFAULT_CAPABILITIES)),
            "no_new_privs": "yes",
            "seccomp": "nspawn's own",
        }

    def confounds(self) -> Sequence[Confound]:
        return (Confound(ConfoundCode.OTHER_SECCOMP, _OWN_SECCOMP, self.name),)
