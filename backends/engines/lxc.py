"""LXC, by its tools: a monitor for each container, no daemon."""

from collections.abc import Iterator, Sequence

from tare.backends.cgroups.layout import Version
from tare.backends.cgroups.lifecycle import NEVER_REACHED
from tare.backends.cgroups.limits import RULES
from tare.backends.engines.box import Box, Network, Seccomp
from tare.backends.engines.command_engine import CommandEngine
from tare.backends.engines.profile import Protection, find_protection
from tare.backends.engines.start import INSIDE, LIVE
from tare.backends.native.seccomp import DEFAULT_CAPABILITIES, Condition, allowed_calls, conditions
from tare.bench.model import BASE_ENVIRONMENT, SCRATCH, Envelope, Image

_CAPABILITIES = tuple(dict(DEFAULT_CAPABILITIES).values())


def seccomp_profile() -> str:
    """The system-call filter of tare's own containers in LXC's format, version 2 (lxc.container.conf(5))."""
    rules = [*allowed_calls(_CAPABILITIES), *map(_conditional, conditions(_CAPABILITIES))]
    if "clone3" not in rules:
        rules.append("clone3 errno 38")
    return "\n".join(("2", "allowlist errno 1", "[all]", *rules, ""))


def _conditional(condition: Condition) -> str:
    how = "SCMP_CMP_NE"
    if condition.equal:
        how = f"SCMP_CMP_MASKED_EQ,{condition.mask:#x}"
    return f"{condition.call} allow [{condition.argument},{condition.value:#x},{how}]"


class Lxc(CommandEngine):
    """``lxc-start``, whose monitor stays as long as the container."""

    name = "lxc"
    summary = "containers by LXC's tools"
    program = "lxc-start"
    package = "lxc"
    premade = False
    engine_limits = tuple(RULES)

    _protection = Protection((), (), ())

    def prepare_engine(self, image: Image, envelope: Envelope) -> None:
        del image, envelope
        self._protection = find_protection()
        (self.folder / "lxc").mkdir()
        (self.folder / "empty").mkdir()
        (self.folder / "seccomp").write_text(seccomp_profile())

    def start_command(self, box: Box) -> Sequence[str]:
        config = box.folder / "lxc.conf"
        config.write_text("".join(f"{key} = {value}\n" for key, value in self.configuration(box)))
        return self._call("lxc-start", box, "--daemon", "--rcfile", str(config))

    def exec_command(self, box: Box, argv: Sequence[str]) -> Sequence[str]:
        return self._call("lxc-attach", box, "--clear-env", "--", *argv)

    def remove_command(self, box: Box) -> Sequence[str]:
        return self._call("lxc-stop", box, "--kill")

    def _call(self, program: str, box: Box, *arguments: str) -> list[str]:
        log = ("--logfile", str(box.log), "--logpriority", "ERROR")
        return [program, "--lxcpath", str(self.folder / "lxc"), "--name", box.identifier, *log, *arguments]

    def configuration(self, box: Box) -> Iterator[tuple[str, str]]:
        """The keys of lxc.container.conf(5)."""
        yield "lxc.rootfs.path", f"dir:{box.root}"
        yield "lxc.uts.name", box.identifier[:64]
        yield "lxc.init.cmd", " ".join(LIVE)
        for name, value in BASE_ENVIRONMENT.items():
            yield "lxc.environment", f"{name}={value}"
        yield "lxc.net.0.type", "none" if self.options.network is Network.HOST else "empty"
        yield "lxc.net.0.flags", "up"
        yield "lxc.mount.auto", "proc:mixed sys:ro"
        yield "lxc.mount.entry", f"{box.given} {INSIDE[1:]} none bind,ro,nosuid,nodev 0 0"
        yield "lxc.mount.entry", f"{box.scratch} {SCRATCH[1:]} none bind,nosuid,nodev 0 0"
        for path in self._protection.read_only:
            yield "lxc.mount.entry", f"{path} {path[1:]} none bind,ro,nosuid,nodev,noexec 0 0"
        for path in self._protection.folders:
            yield "lxc.mount.entry", f"{self.folder}/empty {path[1:]} none bind,ro,nosuid,nodev,noexec 0 0"
        for path in self._protection.files:
            yield "lxc.mount.entry", f"/dev/null {path[1:]} none bind,ro 0 0"
        yield "lxc.autodev", "1"
        yield "lxc.tty.max", "0"
        yield "lxc.pty.max", "1024"
        yield "lxc.cgroup.relative", "1"
        yield "lxc.cgroup.dir.container", self.container_group(box.identifier)
        yield "lxc.cgroup.dir.monitor", "monitor"
        yield from self._limits(box)
        yield "lxc.cap.keep", " ".join(name.lower() for name, _ in DEFAULT_CAPABILITIES)
        yield "lxc.no_new_privs", "1"
        yield "lxc.proc.oom_score_adj", "1000"
        if self.options.seccomp is Seccomp.DEFAULT:
            yield "lxc.seccomp.profile", str(self.folder / "seccomp")

    def _limits(self, box: Box) -> Iterator[tuple[str, str]]:
        """By the kernel's own files, as LXC takes them; on v1 blkio counts by rules, one for each direction."""
        v2 = self.layout.version is Version.V2
        limits = {"swap_bytes": 0, **box.limits}
        for name, rule in RULES.items():
            if name in limits and (not name.startswith("io_") or "io_device" in limits):
                file, text = rule.v2 if v2 else rule.v1
                yield f"lxc.cgroup{'2' if v2 else ''}.{file}", text(limits[name], limits)
        for way in ("read", "write"):
            if not v2 and "io_device" in limits and f"io_{way}_bytes_per_s" not in limits:
                yield f"lxc.cgroup.blkio.throttle.{way}_bps_device", f"{limits['io_device']} {NEVER_REACHED}"

    def facts(self) -> dict[str, str]:
        net = "" if self.options.network is Network.HOST else ",net"
        return {
            "namespaces": f"mnt,pid,ipc,uts,cgroup{net}",
            "capabilities": ",".join(dict(DEFAULT_CAPABILITIES)),
            "no_new_privs": "yes",
            "seccomp": "default (that of tare's own containers)" if self.options.seccomp is Seccomp.DEFAULT else "none",
        }
