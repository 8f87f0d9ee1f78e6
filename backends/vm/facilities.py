"""What this host offers to the options of guests: huge pages, io_uring, a daemon. Asked before anything is started."""

import contextlib
import socket
from pathlib import Path

from tare.bench.model import Availability

_PROC = Path("/proc")


def probe_huge_pages(needed_bytes: int = 0, proc: Path = _PROC) -> Availability:
    """Whether as many huge pages are free as ``needed_bytes`` take, and any at all."""
    fields = _read_meminfo(proc)
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


def probe_io_uring(proc: Path = _PROC) -> Availability:
    """Whether this kernel lets root use io_uring. That QEMU was built with it shows when it starts."""
    switch = proc / "sys/kernel/io_uring_disabled"
    try:
        value = switch.read_text().strip()
    except OSError:
        value = "0"  # before Linux 6.6 there is no switch
    if value == "2":
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


def _read_meminfo(proc: Path) -> dict[str, int]:
    """The fields of /proc/meminfo: sizes in bytes, counts as they are."""
    fields = {}
    for line in (proc / "meminfo").read_text().splitlines():
        name, _, rest = line.partition(":")
        words = rest.split()
        fields[name] = int(words[0]) * (1024 if words[1:] == ["kB"] else 1)
    return fields
