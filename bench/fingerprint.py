"""Which host this is: a name that stays the same over reboots, updates and loads, and differs from other hosts'."""

import hashlib
import platform

from tare.bench.linux.files import HERE, HostRoots, find_field, find_text
from tare.bench.model import Fingerprint

_DIGITS = 16


def host_fingerprint(roots: HostRoots = HERE) -> Fingerprint:
    """The fingerprint of this host, and what it was made from.

    The machine's own identifier (systemd's machine-id, otherwise the firmware's UUID, which only root may read) is kept
    as a digest. Clock speeds, loads and the kernel's version are not part of it.
    """
    machine = find_text(roots.etc / "machine-id") or find_text(roots.sys / "class/dmi/id/product_uuid")
    made_from = {
        "machine": _digest(machine.lower()) if machine else "",
        "cpu model": find_field(find_text(roots.proc / "cpuinfo"), "model name") or "",
        "memory": _memory(roots),
        "architecture": platform.machine(),
    }
    return Fingerprint(_digest("\n".join(f"{name}={value}" for name, value in made_from.items())), made_from)


def _memory(roots: HostRoots) -> str:
    """The size of the installed memory; MemTotal, which depends on the kernel, only to the nearest GiB."""
    folder = roots.sys / "devices/system/memory"
    size = find_text(folder / "block_size_bytes")
    if size and (blocks := len(list(folder.glob("memory[0-9]*")))):
        return f"{int(size, 16) * blocks} B"
    total = (find_field(find_text(roots.proc / "meminfo"), "MemTotal") or "").removesuffix(" kB")
    return f"{round(int(total) / 2**20)} GiB" if total else ""


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:_DIGITS]
