"""What the index holds of a run: one entry for the run, and one row a metric of each cell with its block medians.

Block medians are those that the run's own report uses (``analysis.cells``). The estimates of a night are made from them
here, once: the level (log of the metric) and the ratio to the baseline measured in the same blocks.
"""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from tare.bench.analysis.cells import CellTable, CellTables, SubjectKey, at_size, common_size, make_tables
from tare.bench.catalogue import HARNESS_METRICS
from tare.bench.comparability import conditions
from tare.bench.errors import RunDirectoryError
from tare.bench.model import Direction, Metric
from tare.bench.records import Cell, EventKind, Manifest, RunStatus
from tare.bench.settings import settings_of
from tare.bench.stats.comparisons import CellBlocks, Floats
from tare.bench.store import EVENTS, MANIFEST, SAMPLES, LoadedRun, load_run

FOREIGN = "foreign"
"""The host of what other tools measured, unless the import names one."""


MEDIANS = "medians.json"
"""What is left of the samples of a run that was pruned."""


class RunEntry(msgspec.Struct, frozen=True):
    """A run in the index. ``number`` is that of its rows; ``stamp`` changes if its files do.

    ``conditions`` holds its conditions (``comparability``) for each backend, by digest; ``backends`` the kinds of its
    backends by name. ``confirms`` names the run whose suspicious cells it measured again; such a run is
    no night, nor is one that ``bridges`` another: it measured that one's image and options next to the present ones.
    """

    number: int
    run: str
    folder: str
    stamp: str
    suite: str
    host: str
    host_summary: str
    started_utc: str
    status: RunStatus
    baseline: str
    backends: Mapping[str, str]
    failed: Mapping[str, int]
    planned: int
    tare: str
    conditions: Mapping[str, str]
    labels: Mapping[str, str] = {}
    suite_file: str = ""
    revision: str = ""
    confirms: str = ""
    bridges: str = ""
    pruned: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    host_emulated: bool = False

    @property
    def order(self) -> tuple[str, str]:
        """Nights are ordered by their start and, where two began in the same second, by name."""
        return self.started_utc, self.run

    @property
    def is_night(self) -> bool:
        """Whether it stands for a night: a rerun or a bridge belongs to another run."""
        return not (self.confirms or self.bridges)

    @property
    def standing(self) -> str:
        """Its status in words; what it belongs to, if it is no night."""
        if self.confirms:
            return f"rerun of {self.confirms}"
        return f"bridge to {self.bridges}" if self.bridges else str(self.status)


class CellRow(msgspec.Struct, frozen=True):
    """One metric of one cell of one run.

    ``series`` names it over all runs; ``subject`` is the same without the backend. ``level`` is the log of its centre
    over blocks and ``level_sd`` the standard deviation of a block's log; ``ratio`` and ``ratio_sd`` are those of the
    log ratio to the baseline, over the ``ratio_blocks`` that hold both. None where a value of 0 or below allows none.
    ``own``: the workload or experiment measured it, not the harness around it. ``failed`` instances of its cell are not
    in it: what is left may be a selection, so such a night is shown and in no baseline.
    """

    number: int
    run: str
    series: str
    subject: str
    experiment: str
    workload: str
    params: str
    backend: str
    envelope: str
    metric: str
    unit: str
    direction: Direction
    leads: bool
    own: bool
    margin: float
    epoch: str
    blocks: list[int]
    medians: list[float]
    iterations: int
    level: float | None
    level_sd: float | None
    ratio: float | None = None
    ratio_sd: float | None = None
    ratio_blocks: int = 0
    failed: int = 0


class Indexed(msgspec.Struct, frozen=True):
    """A run as it enters the index; ``texts`` are the conditions that the entry holds the digests of."""

    entry: RunEntry
    rows: list[CellRow]
    texts: Mapping[str, Mapping[str, str]]


def stamp_of(folder: Path) -> str:
    """What changes when the files of a run do: their sizes and times. Raises OSError."""
    parts = []
    for name in (MANIFEST, SAMPLES, EVENTS):
        status = (folder / name).stat()
        parts.append(f"{status.st_size}.{status.st_mtime_ns}")
    return "-".join(parts)


def read_entry(folder: Path, number: int) -> Indexed:
    """A finished run with its rows. Raises RunDirectoryError if it cannot be read, is running, or is half copied."""
    if (folder / MEDIANS).exists() and not (folder / SAMPLES).exists():
        return _kept_medians(folder, number)
    try:
        stamp = stamp_of(folder)
    except FileNotFoundError as error:
        raise RunDirectoryError(
            f"{folder} is not a whole run: {Path(error.filename).name} is missing",
            remedy="copy it again, then `tare history update`",
        ) from None
    except OSError as error:
        raise RunDirectoryError(f"{folder}: {error.strerror}") from None
    run = load_run(folder)
    _require_whole(run)
    return _indexed(run, number, stamp)


def _kept_medians(folder: Path, number: int) -> Indexed:
    """The rows of a run whose samples were pruned."""
    try:
        kept = msgspec.json.decode((folder / MEDIANS).read_bytes(), type=Indexed)
    except (OSError, msgspec.DecodeError) as error:
        raise RunDirectoryError(f"{folder / MEDIANS}: {error}", remedy="restore the folder from a copy") from None
    entry = msgspec.structs.replace(kept.entry, number=number, folder=folder.name, pruned=("raw", "samples"))
    rows = [msgspec.structs.replace(row, number=number) for row in kept.rows]
    return Indexed(entry, rows, kept.texts)


def _require_whole(run: LoadedRun) -> None:
    """What is still written, and what was copied in part, would enter the history as something it is not."""
    if run.manifest.status is RunStatus.RUNNING:
        raise RunDirectoryError(
            f"{run.path} is still being written, or tare was killed while it ran",
            remedy=f"wait, or `tare run --resume {run.path}`",
        )
    if not any(event.kind is EventKind.RUN_ENDED for event in run.events):
        raise RunDirectoryError(
            f"{run.path} is only partly here: its events do not reach the end of the run", remedy="copy it again"
        )
    done = {event.instance for event in run.events if event.kind is EventKind.INSTANCE_DONE}
    missing = done - set(run.samples.distinct("instance"))
    if missing:
        raise RunDirectoryError(
            f"{run.path} is only partly here: {len(missing)} of {len(done)} instances have no samples",
            remedy="copy it again",
        )


def _indexed(run: LoadedRun, number: int, stamp: str) -> Indexed:
    manifest = run.manifest
    texts = {name: epoch_conditions(manifest, name) for name in manifest.backends}
    digests = {name: digest_of(text) for name, text in texts.items()}
    failed: dict[str, int] = {}
    for event in run.events:
        if event.kind is EventKind.INSTANCE_FAILED:
            failed[event.cell] = failed.get(event.cell, 0) + 1
    entry = RunEntry(
        number=number,
        run=manifest.run,
        folder=run.path.name,
        stamp=stamp,
        suite=str((manifest.suite.get("suite") or {}).get("name", "")),
        host=manifest.fingerprint.digest or digest_of({"host": manifest.host_summary}),
        host_summary=manifest.host_summary,
        started_utc=manifest.started_utc,
        status=manifest.status,
        baseline=manifest.baseline,
        backends={name: str(one.kind) for name, one in manifest.backends.items()},
        failed=failed,
        planned=manifest.planned_instances,
        tare=manifest.tare_version,
        conditions=digests,
        labels=manifest.origin.labels,
        suite_file=manifest.origin.suite_file,
        revision=manifest.origin.revision,
        confirms=manifest.origin.confirms,
        bridges=manifest.origin.bridges,
        problems=tuple(run.warnings),
        host_emulated=manifest.is_host_emulated,
    )
    tables = make_tables(run)
    rows = list(_rows(entry, manifest, tables))
    return Indexed(entry, rows, {digests[name]: text for name, text in texts.items()})


def epoch_conditions(manifest: Manifest, backend: str) -> dict[str, str]:
    """What has to be the same for nights of a backend's series to be one epoch: its own conditions and the baseline's.

    The commit of a checkout of tare is none of them: it changes from day to day, and the version says how tare
    measures.
    """
    fields = conditions(manifest, {manifest.baseline, backend} & manifest.backends.keys())
    return {name: text for name, text in fields.items() if name not in _NO_CONDITION}


_NO_CONDITION = ("tare.commit",)


def digest_of(value: Any) -> str:
    """Twelve characters that stand for a value: two that differ have, in practice, different ones."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()[:12]


def _rows(entry: RunEntry, manifest: Manifest, tables: CellTables) -> Iterator[CellRow]:
    limits = msgspec.to_builtins(manifest.envelope)
    # A series is not broken by a pinning to other CPUs; its epoch is.
    envelope = digest_of({**limits, "cpus": len(manifest.envelope.cpus)})
    for key, metrics in tables.metrics.items():
        for name in metrics:
            yield from _rows_of(entry, manifest, key, name, tables, envelope)


def _rows_of(
    entry: RunEntry, manifest: Manifest, key: SubjectKey, name: str, tables: CellTables, envelope: str
) -> Iterator[CellRow]:
    experiment, workload, params = key
    owner, cells = workload or experiment, tables.tables[key, name]
    size = common_size(manifest.traits_of(experiment), name, cells)
    if size is not None:
        cells = {backend: at_size(table, size) for backend, table in cells.items()}
    metric = _metric(manifest, owner, experiment, name, next(iter(cells.values())))
    subject = (entry.suite, experiment, workload, params, envelope, name)
    base = cells.get(entry.baseline)
    for backend, table in cells.items():
        blocks = table.points.blocks
        level, level_sd = night_estimate(np.log(blocks.values)) if _is_positive(blocks) else (None, None)
        ratio, ratio_sd, shared = None, None, 0
        if base is not None and backend != entry.baseline:
            ratio, ratio_sd, shared = _ratio(blocks, base.points.blocks)
        yield CellRow(
            number=entry.number,
            run=entry.run,
            series=digest_of([*subject, backend]),
            subject=digest_of(subject),
            experiment=experiment,
            workload=workload,
            params=params,
            backend=backend,
            envelope=envelope,
            metric=name,
            unit=str(table.unit),
            direction=metric.direction,
            leads=name == tables.leading[key],
            own=not name.startswith(HARNESS_METRICS),
            margin=settings_of(manifest.suite, owner, name).margin,
            epoch=entry.conditions.get(backend, ""),
            blocks=blocks.blocks.tolist(),
            medians=blocks.values.tolist(),
            iterations=int(blocks.iterations.sum()),
            level=level,
            level_sd=level_sd,
            ratio=ratio,
            ratio_sd=ratio_sd,
            ratio_blocks=shared,
            failed=entry.failed.get(Cell(experiment, workload, json.loads(params), backend).key, 0),
        )


def night_estimate(logs: Floats) -> tuple[float, float | None]:
    """The centre of a night's blocks, as a run's own comparison has it, and the standard deviation of one block."""
    centre = float(logs.mean())
    return centre, float(logs.std(ddof=1)) if len(logs) > 1 else None


def _ratio(ours: CellBlocks, base: CellBlocks) -> tuple[float | None, float | None, int]:
    shared = np.intersect1d(ours.blocks, base.blocks)
    ours, base = ours.at(shared), base.at(shared)
    if not len(shared) or not (_is_positive(ours) and _is_positive(base)):
        return None, None, len(shared)
    return *night_estimate(np.log(ours.values) - np.log(base.values)), len(shared)


def _is_positive(blocks: CellBlocks) -> bool:
    return len(blocks.values) > 0 and blocks.values.min() > 0 and math.isfinite(blocks.values.max())


def _metric(manifest: Manifest, owner: str, experiment: str, name: str, table: CellTable) -> Metric:
    found = manifest.metrics.get(f"{owner}/{name}") or manifest.metrics.get(f"{experiment}/{name}")
    return found or Metric(name, table.unit, Direction.LOWER, "")
