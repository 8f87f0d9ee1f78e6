"""From a fleet's folder to what its report says: one run after another is read, and no samples are kept."""

import os
from pathlib import Path

from tare.bench.analysis import analyse
from tare.bench.analysis.fleet import FleetCollector, FleetHost
from tare.bench.capacity.by_host import CapacityCollector, FleetReport
from tare.bench.errors import TareError
from tare.bench.fleet.collection import Collection, HostRow, HostState
from tare.bench.store import load_run

REPORT = "report.html"


def make_report(collection: Collection, *, margin: float | None = None) -> FleetReport:
    """What the runs of a fleet say. A run that cannot be read leaves its host in the report, with the reason."""
    collector, capacities = FleetCollector(), CapacityCollector()
    runs = {one.host.name: one.path for one in collection.runs}
    links: dict[str, str] = {}
    for row in collection.manifest.hosts:
        if row.name not in runs:
            collector.add_missing(FleetHost(row.name, row.type, left_out=_why_missing(row)))
            continue
        path = runs[row.name]
        folder = os.path.relpath(path, collection.path)
        try:
            analysis = analyse(load_run(path), margin=margin)
        except TareError as error:
            why = f"its run cannot be read: {error.message}"
            collector.add_missing(FleetHost(row.name, row.type, left_out=why, folder=folder))
            continue
        host = collector.add(FleetHost(row.name, row.type, folder=folder), analysis)
        if not host.left_out:
            capacities.add(row.name, row.type, analysis.manifest, str(path), analysis.density)
        if (path / REPORT).is_file():
            links[row.name] = f"{folder}/{REPORT}"
    manifest = collection.manifest
    return FleetReport(
        name=manifest.fleet,
        suite=manifest.suite,
        folder=str(collection.path),
        started_utc=manifest.started_utc,
        analysis=collector.finish(),
        capacities=capacities.capacities(),
        types=capacities.types(),
        differences={one.name: one.hosts for one in manifest.differences},
        links=links,
        warnings=collection.warnings,
    )


_WORDS = {
    HostState.WAITING: "it has not answered yet",
    HostState.READY: "its run has not begun",
    HostState.RUNNING: "its run is going on",
    HostState.FINISHED: "its run is complete and was not fetched",
    HostState.COLLECTED: "its run is not in the fleet's folder any more",
    HostState.LOST: "it does not answer any more",
    HostState.SILENT: "it never answered",
    HostState.REFUSED: "it may not take part",
    HostState.FAILED: "its run ended before it was complete",
}


def _why_missing(row: HostRow) -> str:
    """Why a host has no run here: always something."""
    return f"{_WORDS[row.state]}: {row.reason}" if row.reason else _WORDS[row.state]


def report_path(collection: Collection, suffix: str) -> Path:
    """Where the report lies unless another place is named: in the fleet's folder, so that its links hold."""
    return collection.path / f"fleet{suffix}"
