"""What one instance needs of each resource: by what was measured, and by what it was promised."""

import math

import msgspec
import numpy as np

from tare.bench.analysis.cost import Cost
from tare.bench.analysis.density import DensityResult, MemoryCost
from tare.bench.capacity.hosts import Resource
from tare.bench.catalogue import DensityMetric
from tare.bench.model import Envelope
from tare.bench.units import format_size


class Need(msgspec.Struct, frozen=True):
    """What one instance takes of a resource, in bytes or CPUs, with an interval where there is one.

    ``once`` is taken a single time by all of a type on a host. ``promised``: overcommitment applies. ``binds``: it
    fills hosts; others are shown only. ``measured_on`` instances the interval is from.
    """

    resource: Resource
    each: float
    low: float | None
    high: float | None
    promised: bool
    once: float = 0.0
    binds: bool = True
    measured_on: int = 0
    source: str = ""


class Promise(msgspec.Struct, frozen=True):
    """What an instance is given, where that is not what it was given when it was measured; sizes in bytes."""

    cpus: float | None = None
    memory: int | None = None
    disk: int | None = None


class InstanceNeeds:
    """Finds the needs of a density cell's instances, and keeps what of them could not be found."""

    def __init__(
        self,
        result: DensityResult,
        envelope: Envelope,
        promise: Promise,
        *,
        guest: bool,
        emulated: bool,
    ) -> None:
        self._result, self._cell, self._cost = result, result.cell, result.cost
        self._guest, self._emulated = guest, emulated
        given = envelope.cpu_quota if envelope.cpu_quota is not None else float(len(envelope.cpus))
        self._cpus = promise.cpus if promise.cpus is not None else given
        self._memory = promise.memory if promise.memory is not None else envelope.memory_bytes
        self._disk = promise.disk if promise.disk is not None else envelope.scratch_bytes
        self._missing: list[str] = []
        self._on = max(1, len(result.cell.ramps)) * result.cell.population

    def memory(self, *, promised: bool) -> list[Need]:
        """What it used, and what it may come to use."""
        found = self._measured_memory()
        if found is None:
            self._missing.append("its memory could not be told from what the host did meanwhile: memory bounds nothing")
            return []
        each, low, high, source = found.per_instance, found.low, found.high, found.source
        needs = [
            Need(
                Resource.MEMORY,
                each,
                low,
                high,
                promised=False,
                binds=not promised,
                measured_on=self._on,
                source=source,
            )
        ]
        over, over_low, over_high, source = self._beside(each, low, high)
        needs.append(
            Need(
                Resource.MEMORY,
                self._memory + over,
                None if over_low is None else self._memory + over_low,
                None if over_high is None else self._memory + over_high,
                promised=True,
                binds=promised,
                measured_on=self._on if self._is_split else 0,
                source=source,
            )
        )
        return needs

    @property
    def _inside(self) -> Cost | None:
        """What of its measured memory counts as what it was promised: of a guest its RAM, of others their charge."""
        return self._cost.guest if self._guest else self._cost.charge

    @property
    def _is_split(self) -> bool:
        return self._inside is not None

    def _beside(
        self, each: float, low: float | None, high: float | None
    ) -> tuple[float, float | None, float | None, str]:
        """What it takes beside what it was promised, with its interval, and how that is called.

        Where the two are not told apart, all that it cost is counted as beside it, and the interval begins at nothing.
        """
        name = "its RAM" if self._guest else "its limit"
        inside = self._inside
        if inside is None:
            return each, 0.0, high, f"{name} and all it cost"
        over = max(0.0, each - inside.per_instance)
        half = _hypot(_half(low, high), inside.half_width)
        what = f"{name} and the hypervisor" if self._guest else f"{name} and what is outside"
        return over, None if half is None else max(0.0, over - half), None if half is None else over + half, what

    def _measured_memory(self) -> MemoryCost | None:
        """What an instance of the whole ramp cost; of its last half, where those were dearer for sure."""
        whole, late = self._cost.best_memory, self._result.late_memory
        if whole is None or late is None:
            return whole
        self._missing.append(
            f"later instances cost more memory ({format_size(late.per_instance)} each in the last half of the ramp, "
            f"{format_size(whole.per_instance)} over all of it): what the kernel had kept from others may have served "
            "the first ones; planned with the later ones"
        )
        return late

    def cpu(self, *, promised: bool) -> list[Need]:
        """What it kept busy, and what it was given."""
        given = self._cpus
        needs = [Need(Resource.CPU, given, given, given, promised=True, binds=promised, source="its CPUs")]
        binds = not self._emulated
        if self._cell.workload:
            if demand := self._loaded_cpu():
                each, low, high, on = demand
                needs.append(
                    Need(Resource.CPU, each, low, high, promised=False, binds=binds, measured_on=on, source="at work")
                )
            else:
                self._missing.append(
                    "this run does not tell the CPUs of its loaded instances: their use bounds nothing"
                )
        elif (idle := self._cost.idle_cpu) is not None:
            each = max(0.0, idle.per_instance)
            low, high = idle.low, idle.high
            needs.append(
                Need(Resource.CPU, each, low, high, promised=False, binds=binds, measured_on=self._on, source="idle")
            )
        return needs

    def _loaded_cpu(self) -> tuple[float, float | None, float | None, int] | None:
        """CPUs of an instance at work at the smallest population, where others take least from it; of how many."""
        own = self._cell.points(DensityMetric.LOADED_CPU)
        if not own:
            return None
        least = min(number for number, _ in own)
        values = np.array([value / number for number, value in own if number == least])
        each = float(values.mean())
        if len(values) < 3:
            return each, None, None, len(values)
        from scipy.special import stdtrit

        half = float(stdtrit(len(values) - 1, 0.975)) * float(values.std(ddof=1)) / math.sqrt(len(values))
        return each, max(0.0, each - half), each + half, len(values) * least

    def disk(self, *, promised: bool) -> list[Need]:
        """What it wrote, and what it may fill; the image once."""
        once = max((value for _, value in self._cell.points(DensityMetric.DISK_SHARED)), default=0.0)
        owned = self._cost.disk
        each = 0.0 if owned is None else max(0.0, owned.per_instance)
        low, high = (each, each) if owned is None else (owned.low, owned.high)
        full = each + float(self._disk)
        on, own, filled = self._on, "its blocks", "its scratch full"
        return [
            Need(
                Resource.DISK,
                each,
                low,
                high,
                promised=False,
                once=once,
                binds=not promised,
                measured_on=on,
                source=own,
            ),
            Need(Resource.DISK, full, full, full, promised=True, once=once, binds=promised, source=filled),
        ]

    def notes(self, cache: str) -> list[str]:
        """What a reader of the plan must not overlook. ``cache`` is the size of an emulator's translation cache."""
        notes = list(self._missing)
        if self._emulated:
            size = f" of {cache}" if cache else ""
            notes.append(
                "emulated (TCG): its CPU figures and start latency are the emulator's, carry over to no other host and "
                "bound nothing. Of its memory, the guest's RAM and QEMU's own carry over; the translation cache"
                f"{size} does not, so that guests under KVM need less than is planned here"
            )
        if self._guest:
            split = (
                ""
                if self._is_split
                else (
                    "; what it had touched of it when measured is not told from QEMU's own memory and counted as that, "
                    "too, so that this is on the safe side"
                )
            )
            notes.append(
                "a guest never gives back what it once touched: its promise is its whole RAM of "
                f"{format_size(self._memory)}, and what QEMU takes beside it{split}"
            )
        if not self._cell.workload:
            notes.append(
                "measured idle: what its work takes is in its promise only; `tare density --workload` measures it"
            )
        return notes


def _half(low: float | None, high: float | None) -> float | None:
    return None if low is None or high is None else (high - low) / 2


def _hypot(*halves: float | None) -> float | None:
    known = [half for half in halves if half is not None]
    return math.hypot(*known) if len(known) == len(halves) else None
