"""What an instance of a ramp consists of, and why each ramp ended."""

from collections import Counter
from collections.abc import Iterator, Sequence

import msgspec

from tare.bench.analysis import Analysis, MeasuredBackend
from tare.bench.analysis.density import DensityCell, DensityResult, Ending, InstanceCost
from tare.bench.units import Unit
from tare.reports.charts import PartsBar, parts_bar

_PROCESS, _SHARED, _KERNEL = "process", "shared", "kernel"
_OF_THE_RAMP = ("count", "meters_every", "settle_interval", "settle_deadline")
"""Options that say how a ramp is made, and nothing of its instances."""
_GUEST, _TRANSLATED, _HYPERVISOR = "guest RAM", "translated code", "hypervisor"
_STRENGTHS = {_PROCESS: 1.0, _GUEST: 1.0, _TRANSLATED: 0.75, _SHARED: 0.55, _HYPERVISOR: 0.5, _KERNEL: 0.25}
_WORDS = {
    _PROCESS: "memory of its processes that is shared with nobody",
    _SHARED: "its share of pages that its processes have in common with others (PSS less private)",
    _GUEST: "what the guest has touched of the RAM that it was given",
    _TRANSLATED: "the guest’s code as TCG translated it for this processor, in a cache of bounded size",
    _HYPERVISOR: "what QEMU needs in addition (the rest of its PSS): its devices, its own heap, its program",
    _KERNEL: "what the host’s kernel keeps for it: MemAvailable less PSS; where the host was not quiet, slab, stacks "
    "and page tables by name",
}


SKEWED_COSTS = (
    "The 95 % interval of what one more instance takes holds where instances cost about the same; where a few cost far "
    "more than most it covers 52 to 91 %."
)
"""By simulation (decision 0171): nothing in a ramp tells a large instance from a jump of the host."""


class CostsView(msgspec.Struct, frozen=True):
    """Costs and endings of a run's ramps; ``legend`` has the parts that occur, their strength and their meaning.

    An ending comes with its backend, what the instances did, and how many ramps ended so.
    """

    bars: list[PartsBar]
    legend: list[tuple[str, float, str]]
    endings: list[tuple[MeasuredBackend, str, Ending, int]]
    caveat: str = SKEWED_COSTS


def costs_view(analysis: Analysis) -> CostsView | None:
    """The costs by a run's ramps, or None without any."""
    backends = {backend.name: backend for backend in analysis.backends}
    bars: list[PartsBar] = []
    endings: list[tuple[MeasuredBackend, str, Ending, int]] = []
    for number, result in enumerate(in_order(analysis)):
        cell = result.cell
        backend, what = backends[cell.backend], words_of(cell)
        endings += [(backend, what, ending, count) for ending, count in _merged(cell.endings)]
        if parts := list(_parts(result.cost)):
            bars.append(parts_bar(backend, parts, Unit.BYTE, _STRENGTHS, f"d{number}", what=what))
    if not endings and not bars:
        return None
    present = {name for bar in bars for name, *_ in bar.parts}
    legend = [(name, strength, _WORDS[name]) for name, strength in _STRENGTHS.items() if name in present]
    return CostsView(bars, legend, endings)


def in_order(analysis: Analysis) -> list[DensityResult]:
    """The density results by what their instances did, then by backend."""
    places = {backend.name: backend.place for backend in analysis.backends}
    known = [result for result in analysis.density if result.cell.backend in places]
    return sorted(known, key=lambda result: (words_of(result.cell), places[result.cell.backend]))


def words_of(cell: DensityCell) -> str:
    """What the instances did, in words."""
    told = {name: value for name, value in sorted(cell.params.items()) if name not in _OF_THE_RAMP}
    given = [f"{value} at once" if name == "batch" else f"{name} {value}" for name, value in told.items()]
    return ", ".join([cell.workload or "idle", *given])


def _merged(endings: Sequence[Ending]) -> Iterator[tuple[Ending, int]]:
    """Ramps that ended alike, with their number."""
    same = {"instance": "", "idle_watts": None, "populated_watts": None}
    yield from Counter(msgspec.structs.replace(one, **same) for one in endings).items()


def _parts(cost: InstanceCost) -> Iterator[tuple[str, float]]:
    """The parts of what one more instance takes, in bytes. One that noise made negative is left out."""
    if cost.pss is None:
        return
    pss = cost.pss.per_instance
    if cost.guest is None:
        own = pss if cost.private is None else min(cost.private.per_instance, pss)
        parts = [(_PROCESS, own), (_SHARED, pss - own)]
    else:
        ram = min(cost.guest.per_instance, pss)
        translated = 0.0 if cost.translated is None else min(cost.translated.per_instance, pss - ram)
        parts = [(_GUEST, ram), (_TRANSLATED, translated), (_HYPERVISOR, pss - ram - translated)]
    kernel = 0.0 if cost.kernel is None else cost.kernel.per_instance
    if (cost.host_noise_dominates or cost.kernel is None) and cost.attributed is not None:
        kernel = cost.attributed.per_instance - pss
    for name, size in (*parts, (_KERNEL, kernel)):
        if size > 0:
            yield name, size
