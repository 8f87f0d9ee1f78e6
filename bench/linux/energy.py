"""What the processors and their memory use of electrical energy, as the kernel's powercap files say (RAPL).

Disks, fans and the losses of the power supply are not in it. Only root may read the counters since Linux 5.10, and
virtual machines have none.
"""

import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

from tare.bench.linux.files import HERE, HostRoots, find_text

_MICRO = 1e-6


class _Zone(msgspec.Struct, frozen=True):
    """A counter in microjoules that begins again from 0 after ``range_uj``."""

    counter: Path
    range_uj: int

    def read(self) -> int | None:
        text = find_text(self.counter)
        return int(text) if text is not None and text.isdecimal() else None


class EnergyMeter:
    """The mean power between two readings."""

    def __init__(self, roots: HostRoots = HERE) -> None:
        self._zones = tuple(_zones(roots.sys / "class/powercap"))
        self._at_s, self._last = time.monotonic(), self._read()

    @property
    def is_there(self) -> bool:
        """Whether this host has counters that this process may read."""
        return self._last is not None

    def watts_since_last(self) -> float | None:
        """Watts since the last call, or since the meter was made; None without counters."""
        before, before_s = self._last, self._at_s
        self._at_s, self._last = time.monotonic(), self._read()
        if before is None or self._last is None or self._at_s <= before_s:
            return None
        used = sum(
            now - then if now >= then else now - then + zone.range_uj
            for zone, then, now in zip(self._zones, before, self._last, strict=True)
        )
        return _MICRO * used / (self._at_s - before_s)

    def _read(self) -> tuple[int, ...] | None:
        read = [zone.read() for zone in self._zones]
        known = [one for one in read if one is not None]
        return tuple(known) if known and len(known) == len(read) else None


def _zones(folder: Path) -> Iterator[_Zone]:
    """Each package, and memory where it is counted apart; not what is part of a package, nor the whole platform."""
    for zone in sorted(folder.glob("intel-rapl:*")):
        name = find_text(zone / "name") or ""
        if name.startswith("package") or name == "dram":
            most = find_text(zone / "max_energy_range_uj") or ""
            yield _Zone(zone / "energy_uj", int(most) + 1 if most.isdecimal() else 0)
