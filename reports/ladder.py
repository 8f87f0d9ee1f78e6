"""What a start consists of on the page: its ends by each definition, and the layers of each engine that add up."""

from collections.abc import Iterator

import msgspec

from tare.bench.analysis import Analysis, MeasuredBackend, Subject
from tare.bench.analysis.ladder import ENDS, Waterfall, ends_of, memory_of, starts_of
from tare.bench.catalogue import EngineMetric
from tare.bench.units import Unit, format_value
from tare.reports.wording import format_estimate, format_value_range

_WORDS = {
    EngineMetric.BY_RETURN: "the engine's command returned",
    EngineMetric.BY_INSTRUCTION: "the first instruction inside ran",
    EngineMetric.BY_EXEC: "the first exec was answered",
    EngineMetric.BY_SERVICE: "the service answered",
    EngineMetric.BY_EVENT: "the engine reported it as running",
}


class EndView(msgspec.Struct, frozen=True):
    """One backend's ends of a start, each as its value, its interval, and the exact figure."""

    backend: MeasuredBackend
    cells: list[tuple[str, str, float | None]]


class LayerView(msgspec.Struct, frozen=True):
    """A layer in words. ``start`` and ``width`` place its bar, in per cent of the widest waterfall."""

    name: str
    value: str
    interval: str
    exact: float
    note: str
    start: float
    width: float


class WaterfallView(msgspec.Struct, frozen=True):
    """One backend's layers, and their sum in words."""

    backend: MeasuredBackend
    layers: list[LayerView]
    total: str
    exact: float
    blocks: int


class LadderView(msgspec.Struct, frozen=True):
    """The definitions that were measured (in words) and who has them; waterfalls of start and of memory."""

    ends: list[str]
    by_backend: list[EndView]
    starts: list[WaterfallView]
    memory: list[WaterfallView]


LAYERS_HEAD = ("engine", "layer", "adds", "95 % interval")


def layer_tables(analysis: Analysis) -> Iterator[tuple[str, list[tuple[str, str, str, str]]]]:
    """The layers of starts and of memory as titles with rows of words below ``LAYERS_HEAD``."""
    for subject in analysis.subjects:
        view = ladder_view(analysis, subject)
        if view is None:
            continue
        yield from (
            (title, [row for one in found for row in _rows(one)])
            for title, found in (
                ("Layers of an engine's start", view.starts),
                ("Layers of an idle container's memory", view.memory),
            )
            if found
        )


def _rows(view: WaterfallView) -> Iterator[tuple[str, str, str, str]]:
    for layer in view.layers:
        said = "; ".join(part for part in (layer.interval, layer.note) if part)
        yield view.backend.label, layer.name, layer.value, said
    yield view.backend.label, "together", view.total, ""


def ladder_view(analysis: Analysis, subject: Subject) -> LadderView | None:
    """None where nothing of it was measured, or by one definition alone."""
    found = ends_of(analysis, subject)
    names = [name for name in ENDS if any(name in ends.found for ends in found)]
    starts, memory = starts_of(analysis, subject), memory_of(analysis, subject)
    if len(names) < 2 and not starts and not memory:
        return None
    by_backend = []
    for ends in found:
        cells: list[tuple[str, str, float | None]] = []
        for name in names:
            one = ends.found.get(name)
            if one is None:
                cells.append(("–", "", None))
            else:
                value = format_estimate(one.centre, one.low, one.high, Unit.SECOND)
                cells.append((value, format_value_range(one.low, one.high, Unit.SECOND), one.centre))
        by_backend.append(EndView(ends.backend, cells))
    return LadderView([_WORDS[name] for name in names], by_backend, _views(starts), _views(memory))


def _views(waterfalls: list[Waterfall]) -> list[WaterfallView]:
    """On one scale, so that engines compare."""
    widest = max((layer.after for one in waterfalls for layer in one.layers), default=0.0)
    return [_view(one, widest) for one in waterfalls]


def _view(waterfall: Waterfall, widest: float) -> WaterfallView:
    layers = []
    before = 0.0
    for number, layer in enumerate(waterfall.layers):
        low, high = sorted((max(before, 0.0), max(layer.after, 0.0)))
        scale = 100 / widest if widest > 0 else 0.0
        found = layer.found
        note = ""
        if number and found.low is None:
            note = "no interval: one block"
        elif number and not layer.is_told:
            note = "could not tell it from nothing"
        sign = "+" if number and found.centre > 0 else ""
        value = sign + format_value(found.centre, waterfall.unit)
        interval = ""
        if found.low is not None and found.high is not None:
            interval = f"{format_value(found.low, waterfall.unit)} to {format_value(found.high, waterfall.unit)}"
        layers.append(LayerView(layer.name, value, interval, found.centre, note, low * scale, (high - low) * scale))
        before = layer.after
    total = format_value(waterfall.total, waterfall.unit)
    return WaterfallView(waterfall.backend, layers, total, waterfall.total, waterfall.blocks)
