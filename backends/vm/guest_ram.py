"""How much of a guest's RAM the host has given it: the part of QEMU's memory that is the guest's own."""

from pathlib import Path


def guest_ram_bytes(pid: int, memory_bytes: int, proc: Path = Path("/proc")) -> int | None:
    """PSS of the mapping that is the guest's RAM; None if QEMU is gone or has no such mapping."""
    try:
        text = (proc / str(pid) / "smaps").read_text("utf-8", "surrogateescape")
    except OSError:
        return None
    return parse_guest_ram(text, memory_bytes)


def parse_guest_ram(smaps: str, memory_bytes: int) -> int | None:
    """The PSS in bytes of the smallest mapping of at least ``memory_bytes``.

    QEMU maps the RAM of a guest as one piece, and nothing else of its size: TCG's cache and the arenas of its threads
    have 64 MiB at most, less than the least memory of a guest.
    """
    found: tuple[int, int] | None = None
    size = 0
    for line in smaps.splitlines():
        name, _, rest = line.partition(":")
        if name == "Size":
            size = int(rest.split()[0]) * 1024
        elif name == "Pss" and size >= memory_bytes:
            mapping = (size, int(rest.split()[0]) * 1024)
            found = mapping if found is None else min(found, mapping)
    return None if found is None else found[1]
