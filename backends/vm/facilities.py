"""What this host offers to the options of guests: huge pages, io_uring, a daemon, CPU models. Asked before a start."""

import contextlib
import difflib
import socket
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from pathlib import Path

from tare.backends.vm.domain_xml import Accelerator
from tare.bench.errors import UnavailableError
from tare.bench.linux.files import HERE, HostRoots, find_text
from tare.bench.linux.memory import read_meminfo
from tare.bench.model import Availability


def probe_huge_pages(needed_bytes: int = 0, roots: HostRoots = HERE) -> Availability:
    """Whether as many huge pages are free as ``needed_bytes`` take, and any at all."""
    fields = read_meminfo(roots)
    page = fields.get("Hugepagesize", 0)
    if not page:
        return Availability(
            available=False, reason="this kernel has no huge pages", remedy='leave out memory_backing = "hugepages"'
        )
    free = fields.get("HugePages_Free", 0) - fields.get("HugePages_Rsvd", 0)
    needed = max(1, -(-needed_bytes // page))
    said = f"{free} huge pages of {page // 2**20} MiB are free"
    if free < needed:
        return Availability(
            available=False,
            reason=f"{said}, and a guest needs {needed}" if needed_bytes else said,
            remedy="reserve them (sysctl vm.nr_hugepages=N, for all guests that live at the same time), best at boot",
        )
    return Availability(available=True, reason=said)


def probe_io_uring(roots: HostRoots = HERE) -> Availability:
    """Whether this kernel lets root use io_uring. That QEMU was built with it shows when it starts."""
    switch = roots.proc / "sys/kernel/io_uring_disabled"
    if find_text(switch) == "2":  # before Linux 6.6 there is no switch
        return Availability(
            available=False, reason=f"{switch} is 2", remedy='set it to 1 or 0, or leave out io = "io_uring"'
        )
    return Availability(available=True, reason="the kernel allows it")


def probe_daemon(folder: Path = Path("/run/libvirt")) -> Availability:
    """Whether a libvirt daemon for QEMU answers here."""
    sockets = [folder / name for name in ("virtqemud-sock", "libvirt-sock")]
    for path in sockets:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client, contextlib.suppress(OSError):
            client.connect(str(path))
            return Availability(available=True, reason=f"a daemon answers at {path}")
    return Availability(
        available=False,
        reason="no libvirt daemon answers, which only this connection needs",
        remedy="install libvirt-daemon-system and start it (systemctl start libvirtd)",
    )


def parse_cpu_models(capabilities: str) -> Mapping[str, bool]:
    """The modes and models in what ``virDomainGetDomainCapabilities`` returns, and whether each can be had."""
    cpu = ET.fromstring(capabilities).find("cpu")  # noqa: S314 - it is libvirt's own
    if cpu is None:
        return {}
    found = {mode.get("name", ""): mode.get("supported") == "yes" for mode in cpu.findall("mode")}
    del found["custom"]
    models = {model.text or "": model.get("usable") == "yes" for model in cpu.findall("mode[@name='custom']/model")}
    return {**models, **found}


def require_cpu_model(model: str, accelerator: Accelerator, capabilities: str) -> None:
    """Raises UnavailableError, with the key and the names that come close, if guests cannot have ``model``."""
    known = parse_cpu_models(capabilities)
    if known.get(model):
        return
    usable = sorted(name for name, can in known.items() if can)
    close = difflib.get_close_matches(model, usable, n=5, cutoff=0.5) or usable
    why = "lacks features that this host cannot give" if model in known else "is not known to libvirt"
    if model in {"host-passthrough", "maximum", "host-model"}:
        why = "is not possible"
    raise UnavailableError(
        f"options.cpu_model: {model} {why} under {accelerator}", remedy=f"choose one of: auto, {', '.join(close)}"
    )
