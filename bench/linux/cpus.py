"""CPUs: the kernel's lists (``0-3,8``) and masks of them, and how busy they were."""

import os
from collections.abc import Iterable

import msgspec

from tare.bench.linux.files import HERE, HostRoots, find_text


def parse_cpus(text: str) -> frozenset[int]:
    """The CPUs in a list such as ``0-3,8``; strides (``0-7:2/4``) are not written by the kernel. Raises ValueError."""
    found: set[int] = set()
    for part in filter(None, text.strip().split(",")):
        first, dash, last = part.partition("-")
        low, high = int(first), int(last) if dash else int(first)
        if low < 0 or high < low or high > 65535:
            raise ValueError(f"{part!r} is no range of CPUs")
        found.update(range(low, high + 1))
    return frozenset(found)


def format_cpus(cpus: Iterable[int]) -> str:
    """The same as the kernel writes it."""
    parts: list[str] = []
    ordered = sorted(set(cpus))
    place = 0
    while place < len(ordered):
        end = place
        while end + 1 < len(ordered) and ordered[end + 1] == ordered[end] + 1:
            end += 1
        parts.append(str(ordered[place]) if end == place else f"{ordered[place]}-{ordered[end]}")
        place = end + 1
    return ",".join(parts)


def parse_mask(text: str) -> frozenset[int]:
    """The CPUs in a mask such as ``ffffffff,00000003``. Raises ValueError."""
    bits = int(text.strip().replace(",", ""), 16)
    return frozenset(cpu for cpu in range(bits.bit_length()) if bits >> cpu & 1)


def format_mask(cpus: Iterable[int]) -> str:
    """The same in groups of eight digits, as the kernel reads it."""
    digits = f"{sum(1 << cpu for cpu in set(cpus)):x}"
    padded = digits.zfill(-(-len(digits) // 8) * 8)
    return ",".join(padded[place : place + 8] for place in range(0, len(padded), 8))


class CpuTimes(msgspec.Struct, frozen=True):
    """CPU seconds since boot, summed over some CPUs. ``busy_s`` includes interrupts and guests, and no steal."""

    busy_s: float
    steal_s: float
    interrupt_s: float


def read_cpu_times(cpus: Iterable[int], roots: HostRoots = HERE) -> CpuTimes | None:
    """CPU seconds since boot on the given CPUs; None if the host counts none of them."""
    ticks = os.sysconf("SC_CLK_TCK")
    wanted = {f"cpu{cpu}" for cpu in cpus}
    found = False
    busy = steal = interrupt = 0
    for line in (find_text(roots.proc / "stat") or "").splitlines():
        if not line.startswith("cpu"):
            break
        name, *fields = line.split()
        if name not in wanted or len(fields) < 8:
            continue
        found = True
        # proc(5): user nice system idle iowait irq softirq steal; guest time is in user already.
        user, nice, system, _, _, irq, softirq, stolen = map(int, fields[:8])
        busy += user + nice + system + irq + softirq
        interrupt += irq + softirq
        steal += stolen
    return CpuTimes(busy / ticks, steal / ticks, interrupt / ticks) if found else None
