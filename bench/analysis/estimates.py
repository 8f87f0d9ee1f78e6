"""How what a run says is estimated: every ratio, interval, verdict, A/A comparison and precision, made once."""

import functools
import json
import zlib
from collections.abc import Mapping, Sequence

import msgspec
import numpy as np

from tare.bench.analysis.cells import (
    CellTable,
    CellTables,
    SubjectKey,
    at_size,
    common_size,
    have_same_sizes,
    make_tables,
    without_ratio,
)
from tare.bench.analysis.results import Analysis, CellResult, MeasuredBackend, Row, RunNoise, Subject
from tare.bench.model import Direction, IsolationKind, Metric
from tare.bench.readable import one_line
from tare.bench.records import Cell, EventKind, Manifest
from tare.bench.settings import DEFAULT_MARGIN, settings_of
from tare.bench.stats.comparisons import (
    HIDDEN,
    HIDDEN_BY_STOPPING,
    CellBlocks,
    Comparison,
    Floats,
    Verdict,
    compare,
    least_for_quantile,
    log_ratios,
    summarise,
)
from tare.bench.stats.dependence import Dependence, find_dependence
from tare.bench.stats.families import Member, control_false_discoveries
from tare.bench.stats.noise import noise_floor
from tare.bench.stats.precision import precision_of
from tare.bench.store import LoadedRun
from tare.bench.traits import ExperimentTraits
from tare.bench.units import Unit


class RunResults:
    """A run that was read, and its analysis, which is made when it is first asked for and then kept."""

    def __init__(self, run: LoadedRun, *, margin: float | None = None) -> None:
        self.run = run
        self._margin = margin

    @functools.cached_property
    def analysis(self) -> Analysis:
        """What the run says."""
        return analyse(self.run, margin=self._margin)


class Terms(msgspec.Struct, frozen=True):
    """What all estimates of a run are made with: its backends, the seed, the baseline's twin if there is one."""

    backends: Sequence[MeasuredBackend]
    seed: int
    twin: str | None = None
    hidden: float = HIDDEN

    @property
    def baseline(self) -> str:
        """The baseline's name; empty where none of the backends is."""
        return next((backend.name for backend in self.backends if backend.is_baseline), "")


def analyse(run: LoadedRun, *, margin: float | None = None) -> Analysis:
    """Estimate everything in a run. Works on runs that are empty, interrupted, or without a baseline.

    ``margin`` goes before those that the suite states.
    """
    backends = _backends(run)
    tables = make_tables(run)
    measured = {name for cells in tables.tables.values() for name in cells}
    baseline = next((one for one in backends if one.is_baseline and one.name in measured), None)
    terms = Terms(backends, run.manifest.seed, _twin(run.manifest), hidden_skewness(run.manifest))
    estimated = [_estimate_subject(run.manifest, terms, tables, key, margin) for key in tables.metrics]
    subjects = [subject for subject, _ in estimated]
    dependence = _adjust_verdicts(subjects, terms.hidden)
    return Analysis(
        run=run,
        backends=backends,
        baseline=baseline,
        subjects=subjects,
        failures=[event for event in run.events if event.kind is EventKind.INSTANCE_FAILED],
        margin=settings_of(run.manifest.suite, "", "", margin=margin).margin,
        dependence=dependence,
        warmup_samples=int(run.samples.numbers["warmup"].sum()),
        warmup_found=sum(table.n_warm_up for cells in tables.tables.values() for table in cells.values()),
        noise=_run_noise(subjects),
        notes=tuple(note for _, notes in estimated for note in notes),
    )


def _backends(run: LoadedRun) -> list[MeasuredBackend]:
    manifest = run.manifest
    seen = dict.fromkeys((*manifest.backends, *manifest.unavailable, *run.samples.distinct("backend")))
    names = sorted(seen, key=lambda name: name != manifest.baseline)
    # Place 0 is the baseline's even where it is missing, so that a backend keeps its colour from run to run.
    first = 0 if names and names[0] == manifest.baseline else 1
    emulated = {name for name, one in manifest.backends.items() if one.kind is IsolationKind.EMULATED}
    is_the_question = (manifest.suite.get("report") or {}).get("emulated") == "compare" or manifest.baseline in emulated
    return [
        MeasuredBackend(
            name=name,
            label=_label(manifest, name),
            place=first + index,
            is_baseline=name == manifest.baseline,
            is_fenced=name in emulated and not is_the_question,
        )
        for index, name in enumerate(names)
    ]


OWN_CONTAINER = "container (tare)"


def _label(manifest: Manifest, name: str) -> str:
    """What people take a backend's label for what it is: no bare metal where the host is itself a virtual machine."""
    described = manifest.backends.get(name)
    if described is None:
        return one_line(name)
    label = described.label
    if described.kind is IsolationKind.BARE_METAL:
        label = label.replace("bare-metal", "bare metal" if host_virtualization(manifest) is None else "host (a VM)")
    label = label.replace("native (container)", OWN_CONTAINER)
    if label.startswith(f"{name}: "):  # one of several of its type, with a name of its own
        label = f"{label.removeprefix(f'{name}: ')}, {name}"
    return one_line(label)


def host_virtualization(manifest: Manifest) -> str | None:
    """What the host itself runs in, or None if it is not known to be a virtual machine."""
    value = next((fact.text.strip() for fact in manifest.host if fact.name == "virtualization"), "")
    return None if value.lower().startswith(("none", "unknown")) else value or None


def _estimate_subject(
    manifest: Manifest, terms: Terms, tables: CellTables, key: SubjectKey, margin: float | None
) -> tuple[Subject, list[str]]:
    """A subject with its rows, and what could not be estimated."""
    experiment, workload, params = key
    traits = manifest.traits_of(experiment)
    traits = msgspec.structs.replace(traits, title=one_line(traits.title), grows_with=one_line(traits.grows_with))
    rows: list[Row] = []
    notes: list[str] = []
    for name in tables.metrics[key]:
        cells = tables.tables[key, name]
        unit = next(iter(cells.values())).unit
        metric = _metric(manifest, workload or experiment, experiment, name, unit)
        settings = settings_of(manifest.suite, workload or experiment, name, margin=margin)
        wanted, leads = None, name == tables.leading[key]
        if leads:
            wanted = manifest.precision.get(Cell(experiment, workload, json.loads(params), "").subject)
        row = estimate_row(terms, traits, metric, cells, margin=settings.margin, wanted=wanted)
        rows.append(msgspec.structs.replace(row, is_leading=leads))
        for quantile in settings.quantiles:
            of_quantile, missing = _quantiles(cells, quantile)
            notes += [f"{one_line(workload or experiment)}: {_quantile_name(name, quantile)} {why}" for why in missing]
            if of_quantile:
                named = _named(metric, quantile)
                row = _row(terms, traits, named, cells, of_quantile, settings.margin, None)
                rows.append(msgspec.structs.replace(row, quantile=quantile))
    return Subject(experiment, workload, json.loads(params), rows, traits), notes


def estimate_row(
    terms: Terms,
    traits: ExperimentTraits,
    metric: Metric,
    tables: Mapping[str, CellTable],
    *,
    margin: float = DEFAULT_MARGIN,
    wanted: float | None = None,
) -> Row:
    """One metric over the backends, from their tables. ``wanted`` is the precision asked for, None where there is none.

    A metric that grows is estimated at the largest size that all of them reached.
    """
    size = common_size(traits, metric.name, tables)
    if size is not None:
        tables = {backend: at_size(table, size) for backend, table in tables.items()}
    blocks = {backend: table.points.blocks for backend, table in tables.items()}
    return _row(terms, traits, metric, tables, blocks, margin, wanted, size)


def _row(
    terms: Terms,
    traits: ExperimentTraits,
    metric: Metric,
    tables: Mapping[str, CellTable],
    blocks: Mapping[str, CellBlocks],
    margin: float,
    wanted: float | None,
    size: int | None = None,
) -> Row:
    """One metric, from each backend's blocks. ``size`` is the only one in them of a metric that grows."""
    base = blocks.get(terms.baseline)
    cells = []
    for backend in terms.backends:
        if backend.name not in blocks:
            continue
        table, own = tables[backend.name], blocks[backend.name]
        comparison = precision = None
        if base is not None and not backend.is_baseline:
            comparison = compare(own, base, direction=metric.direction, margin=margin, hidden=terms.hidden)
            if size is None and not have_same_sizes(traits, table.points, tables[terms.baseline].points):
                comparison = without_ratio(comparison)
        estimate = summarise(own)
        if wanted is not None and comparison is not None:
            precision = precision_of(comparison, comparison.n_blocks, wanted)
        elif wanted is not None and (base is None or len(blocks) == 1):  # a baseline goes on for its partners
            precision = precision_of(estimate, len(own.blocks), wanted)
        cells.append(
            CellResult(
                backend=backend,
                blocks=own,
                estimate=estimate,
                n_blocks=len(own.blocks),
                n_instances=int(own.instances.sum()),
                n_iterations=int(own.iterations.sum()),
                points=table.points,
                comparison=comparison,
                warm_up=table.warm_up,
                n_warm_up=table.n_warm_up,
                precision=precision,
                size=size,
            )
        )
    floor = None
    if base is not None:
        # A split of its own for each metric, as metrics that rise and fall together would all be false alarms at once.
        seed = abs(terms.seed) ^ zlib.crc32(metric.name.encode())
        twin = blocks.get(terms.twin or "")
        floor = noise_floor(base, twin, direction=metric.direction, margin=margin, seed=seed)
    return Row(metric, cells, noise_floor=floor)


def _twin(manifest: Manifest) -> str | None:
    """Another backend of the suite that is the same as the baseline in all but its name."""
    sections = manifest.suite.get("backend") or ()
    named = {one.get("name") or one.get("type"): (one.get("type"), one.get("options")) for one in sections}
    base = named.get(manifest.baseline)
    return next((name for name, same in named.items() if same == base and name != manifest.baseline), None)


def _run_noise(subjects: Sequence[Subject]) -> RunNoise | None:
    floors = [(one.title, row, row.noise_floor) for one in subjects for row in one.rows if row.noise_floor is not None]
    if not floors:
        return None
    leading = [
        (floor.detectable, (title, row.metric.name))
        for title, row, floor in floors
        if row.is_leading and floor.detectable is not None
    ]
    worst = max(leading, default=None, key=lambda entry: entry[0])
    tested = [(title, row, floor) for title, row, floor in floors if floor.comparison.low is not None]
    adjusted = control_false_discoveries(
        [Member(floor.comparison, row.metric.name, title, row.is_leading) for title, row, floor in tested]
    )
    alarms = [
        (title, row.metric.name)
        for (title, row, _), found in zip(tested, adjusted, strict=True)
        if found.verdict_adjusted in (Verdict.FASTER, Verdict.SLOWER)
    ]
    return RunNoise(
        source=floors[0][2].source,
        tested=len(tested),
        false_alarms=alarms,
        leading=len(leading),
        detectable=float(np.median([detectable for detectable, _ in leading])) if leading else None,
        detectable_worst=worst[0] if worst else None,
        worst=worst[1] if worst else None,
    )


def _quantiles(tables: Mapping[str, CellTable], quantile: float) -> tuple[dict[str, CellBlocks], list[str]]:
    """A quantile block by block for each backend that has enough iterations in a block, and why others have none."""
    found, missing = {}, []
    for backend, table in tables.items():
        samples = table.samples
        blocks = CellBlocks.from_quantiles(samples.values, samples.instances, samples.blocks, quantile)
        if len(blocks.blocks):
            found[backend] = blocks
        else:
            most = int(np.unique(samples.blocks, return_counts=True)[1].max())
            least = least_for_quantile(quantile)
            missing.append(f"needs {least} iterations in a block; {one_line(backend)} has {most}")
    return found, missing


def _quantile_name(name: str, quantile: float) -> str:
    return f"{name} p{quantile * 100:g}"


def _named(metric: Metric, quantile: float) -> Metric:
    described = f"{metric.description.rstrip('. ')}; the {quantile:g} quantile over iterations."
    return msgspec.structs.replace(metric, name=_quantile_name(metric.name, quantile), description=described)


def _metric(manifest: Manifest, owner: str, experiment: str, name: str, unit: Unit) -> Metric:
    for key in (f"{owner}/{name}", f"{experiment}/{name}"):
        if key in manifest.metrics:
            return manifest.metrics[key]
    return Metric(name, unit, Direction.LOWER, "Not described in this run's manifest; lower is taken as better")


class _Place(msgspec.Struct, frozen=True):
    """Where a comparison stands: its subject's key, its row, and the cell's place in it."""

    subject: str
    row: Row
    place: int
    base: CellResult

    @property
    def cell(self) -> CellResult:
        return self.row.cells[self.place]

    def put(self, found: Comparison) -> None:
        self.row.cells[self.place] = msgspec.structs.replace(self.cell, comparison=found)


def hidden_skewness(manifest: Manifest) -> float:
    """By how many standard errors the skewness of a run's ratios may be greater than is seen."""
    return HIDDEN_BY_STOPPING if manifest.precision else HIDDEN


def _adjust_verdicts(subjects: Sequence[Subject], hidden: float) -> dict[str, Dependence]:
    """Widen for blocks that depend on one another and control false discoveries, in each pair of backends.

    In place: nobody has seen the subjects yet. Returns what was found of each backend's blocks.
    """
    families: dict[str, list[_Place]] = {}
    for subject in subjects:
        key = Cell(subject.experiment, subject.workload, subject.params, "").key
        for row in subject.rows:
            for place, cell in enumerate(row.cells):
                if cell.comparison is not None and row.base is not None:
                    families.setdefault(cell.backend.name, []).append(_Place(key, row, place, row.base))
    dependence = {backend: _widen(places, hidden) for backend, places in families.items()}
    for backend, places in families.items():
        members = [
            Member(found, one.row.metric.name, one.subject, one.row.is_leading, _evidence(one.row))
            for one in places
            if (found := one.cell.comparison) is not None
        ]
        adjusted = control_false_discoveries(members, f"{backend} over {places[0].base.backend.name}")
        for one, found in zip(places, adjusted, strict=True):
            one.put(found)
    return dependence


def _widen(places: Sequence[_Place], hidden: float) -> Dependence:
    """What the leading metrics of a pair of backends say together of its blocks, for all of its comparisons."""
    leading = [log_ratios(one.cell.blocks, one.base.blocks) for one in places if one.row.is_leading]
    together = find_dependence(leading)
    for one in places:
        found = one.cell.comparison
        if found is None or found.low is None:
            continue
        if together.lag1 > found.dependence.lag1:
            metric, margin = one.row.metric, found.margin
            sides = one.cell.blocks, one.base.blocks
            one.put(compare(*sides, direction=metric.direction, margin=margin, together=together, hidden=hidden))
        elif together.is_tested and not found.dependence.is_tested:
            tested = msgspec.structs.replace(found.dependence, is_tested=True)
            one.put(msgspec.structs.replace(found, dependence=tested))
    return together


def _evidence(row: Row) -> tuple[Floats, ...]:
    """The log ratios of each backend to the baseline, without those that have none."""
    base = row.base
    if base is None:
        return ()
    return tuple(log_ratios(cell.blocks, base.blocks) for cell in row.cells if cell.backend is not base.backend)
