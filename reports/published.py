"""Published figures beside a run's own: the difference that others found for the same work, and the one here.

``published.toml`` holds the figures with their sources. Only differences from bare metal are set beside each other, as
the hosts are different ones. A guest under emulation is never set beside a figure of hardware virtualization.
"""

import functools
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from tare.bench.analysis import Analysis, CellResult
from tare.bench.stats.comparisons import Comparison
from tare.bench.units import Size
from tare.reports.claim_entries import Kind, kinds_of
from tare.reports.wording import format_change, format_change_range, ratio_change

PUBLISHED = Path(__file__).with_name("published.toml")


class Study(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Who measured, where it stands, on what, and where the raw data is."""

    id: str
    title: str
    where: str
    host: str
    data: str


Value = str | int | float | bool


class Figure(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Values of one metric as printed, in the printed ``unit``; what has no figure is None.

    It is of work with exactly these ``params``, at least these in ``at_least``, and ``jobs`` at once. ``size`` is that
    of the file that was used.
    """

    study: str
    workload: str
    metric: str
    what: str
    unit: str
    bare_metal: float
    source: str
    differs: str
    params: dict[str, Value] = {}
    at_least: dict[str, int] = {}
    jobs: int | None = None
    size: str = ""
    container: float | None = None
    vm: float | None = None


class PublishedLine(msgspec.Struct, frozen=True):
    """One backend of a run beside a figure. ``note`` says why there is no ratio there, or what was done differently."""

    what: str
    backend: str
    here: str
    here_range: str
    there: str
    there_values: str
    source: str
    note: str


class Published(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A file of figures. ``defaults`` has, by workload, what a parameter is that a suite does not state."""

    study: tuple[Study, ...]
    figure: tuple[Figure, ...]
    defaults: dict[str, dict[str, Value]] = {}


@functools.cache
def load_published(path: Path = PUBLISHED) -> Published:
    """The studies and figures of a file. Raises ValueError where a figure names a study that is not there."""
    content = msgspec.convert(tomllib.loads(path.read_text("utf-8")), Published)
    known = {study.id for study in content.study}
    for figure in content.figure:
        if figure.study not in known:
            raise ValueError(f"{path}: {figure.what}: there is no study {figure.study!r}")
    return content


def published_views(analysis: Analysis) -> list[tuple[Study, list[PublishedLine]]]:
    """The studies with figures for what this run measured against a baseline, in the order of the file."""
    content = load_published()
    views = []
    for study in content.study:
        own = [figure for figure in content.figure if figure.study == study.id]
        if lines := [line for figure in own for line in _lines(figure, analysis)]:
            views.append((study, lines))
    return views


def _lines(figure: Figure, analysis: Analysis) -> Iterator[PublishedLine]:
    baseline = analysis.baseline
    if baseline is None or Kind.BARE_METAL not in kinds_of(analysis.manifest, baseline.name):
        return
    for subject, row, cell, found in analysis.comparisons:
        if row.metric.name != figure.metric or row.quantile is not None or subject.workload != figure.workload:
            continue
        given = load_published().defaults.get(figure.workload, {}) | dict(subject.params)
        if subject.traits.of_workload and _is_same(figure, given, len(analysis.manifest.envelope.cpus)):
            yield _line(figure, given, cell, found, analysis)


def _is_same(figure: Figure, given: Mapping[str, Any], jobs: int) -> bool:
    """Whether work with the parameters ``given`` is that of the figure, in all that its result depends on."""
    return (
        figure.jobs in {None, jobs}
        and all(_same_value(given.get(name), value) for name, value in figure.params.items())
        and all(given.get(name, 0) >= least for name, least in figure.at_least.items())
    )


def _same_value(given: Any, wanted: str | float) -> bool:
    """Sizes may be written in several ways."""
    if given == wanted:
        return True
    if not isinstance(given, str | int) or not isinstance(wanted, str):
        return False
    try:
        return Size(given) == Size(wanted)
    except ValueError:
        return False


def _line(
    figure: Figure, given: Mapping[str, Any], cell: CellResult, found: Comparison, analysis: Analysis
) -> PublishedLine:
    value, note = _there(figure, kinds_of(analysis.manifest, cell.backend.name))
    there = "" if value is None else ratio_change(value / figure.bare_metal)
    values = "" if value is None else f"{value:g} against {figure.bare_metal:g} {figure.unit}"
    return PublishedLine(
        what=figure.what,
        backend=cell.backend.label,
        here=format_change(found),
        here_range=format_change_range(found),
        there=there,
        there_values=values,
        source=figure.source,
        note=note or f"There: {_differences(figure, given)}.",
    )


def _differences(figure: Figure, given: Mapping[str, Any]) -> str:
    if not figure.size or _same_value(given.get("size"), figure.size):
        return figure.differs
    return f"a file of {figure.size}, here {given.get('size')}, which caches hold sooner; {figure.differs}"


def _there(figure: Figure, kinds: frozenset[Kind]) -> tuple[float | None, str]:
    """The figure for a backend of these kinds, or None with the reason."""
    figures: Mapping[Kind, float | None] = {Kind.CONTAINER: figure.container, Kind.HARDWARE_VM: figure.vm}
    for kind, value in figures.items():
        if kind in kinds:
            return value, "" if value is not None else "No figure of it there."
    if Kind.EMULATED_VM in kinds:
        return None, "Emulated here, under KVM there: not to be compared."
    return None, "Nothing of this kind was measured there."
