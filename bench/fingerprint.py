"""Which host this is: a name that stays the same over reboots, updates and loads, and differs from other hosts'."""

import hashlib
import platform
from pathlib import Path

from tare.bench.host import HostRoots
from tare.bench.model import Fingerprint

_HERE = HostRoots()
_DIGITS = 16


def host_fingerprint(roots: HostRoots = _HERE) -> Fingerprint:
    """The fingerprint of this host, and what it was made from.

    The machine's own identifier (systemd's machine-id, otherwise the firmware's UUID, which only root may read) is kept
    as a digest. Clock speeds, loads and the kernel's version are not part of it.
    """
    machine = _read(roots.etc / "machine-id") or _read(roots.sys / "class/dmi/id/product_uuid")
    made_from = {
        "machine": _digest(machine.lower()) if machine else "",
        "cpu model": _field(_read(roots.proc / "cpuinfo"), "model name"),
        "memory": _memory(roots),
        "architecture": platform.machine(),
    }
    return Fingerprint(_digest("\n".join(f"{name}={value}" for name, value in made_from.items())), made_from)


def _memory(roots: HostRoots) -> str:
    """The size of the installed memory; MemTotal, which depends on the kernel, only to the nearest GiB."""
    folder = roots.sys / "devices/system/memory"
    size = _read(folder / "block_size_bytes")
    if size and (blocks := len(list(folder.glob("memory[0-9]*")))):
        return f"{int(size, 16) * blocks} B"
    total = _field(_read(roots.proc / "meminfo"), "MemTotal").removesuffix(" kB")
    return f"{round(int(total) / 2**20)} GiB" if total else ""


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:_DIGITS]


def _field(text: str, name: str) -> str:
    found = (line.partition(":") for line in text.splitlines())
    return next((value.strip() for key, _, value in found if key.strip() == name), "")


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8", errors="replace").strip()
    except OSError:
        return ""
