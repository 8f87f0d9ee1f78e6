"""Pressure stall information: how long tasks waited for a resource (Linux ``Documentation/accounting/psi.rst``)."""

from pathlib import Path

from tare.bench.linux.files import HERE, HostRoots, read_text

RESOURCES = ("cpu", "memory", "io")


def parse_stall_s(text: str) -> float | None:
    """The total of the line ``some`` of a pressure file, in seconds."""
    for line in text.splitlines():
        if line.startswith("some "):
            return int(line.rpartition("total=")[2]) / 1e6
    return None


def read_stall_s(file: Path) -> float | None:
    """Seconds in which some task waited; None where the kernel keeps none (not compiled in, or switched off)."""
    try:
        return parse_stall_s(read_text(file))
    except OSError:
        return None


def read_stalls(roots: HostRoots = HERE) -> dict[str, float]:
    """Seconds since boot in which some task of the host waited, by resource, where the kernel keeps them."""
    told = {name: read_stall_s(roots.proc / "pressure" / name) for name in RESOURCES}
    return {name: stall for name, stall in told.items() if stall is not None}
