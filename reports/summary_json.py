"""The results of a run as one JSON object, for programs: what ``tare run --json`` prints."""

import json
from pathlib import Path
from typing import Any

import msgspec

from tare.bench.analysis import Analysis, CellResult, Row, RunResults, Subject
from tare.bench.analysis.comparison import RunComparison
from tare.bench.analysis.estimates import host_virtualization
from tare.bench.analysis.requirements import Judged, judge_requirements
from tare.bench.capacity.by_host import FleetReport
from tare.bench.catalogue import NoteCode
from tare.bench.reporter import Reporter
from tare.reports import headline
from tare.reports.caveats import caveats, suite_title
from tare.reports.claims import judge
from tare.reports.compare import grade_of_comparison, notes_of, tally
from tare.reports.doubts import doubts
from tare.reports.flags import flags_of
from tare.reports.fleet import fleet_document
from tare.reports.names import Names, names_of
from tare.reports.picture import key_of
from tare.reports.requirements import requirement_name

SUMMARY_VERSION = 2
"""Rises when something in the form changes its meaning or goes; ``docs/json-report.schema.json`` describes this one."""


class JsonReporter(Reporter):
    """Ratios, intervals, verdicts, findings and caveats as one JSON object."""

    name = "json"
    summary = "ratios, intervals, verdicts and caveats as one JSON object"
    suffix = ".json"
    compares = True
    fleets = True

    def write(self, results: RunResults, output: Path) -> None:
        _dump(output, summary_of(results.analysis))

    def write_comparison(self, comparison: RunComparison, output: Path) -> None:
        said = {
            "first": comparison.first,
            "second": comparison.second,
            "is_paired": comparison.is_paired,
            "runs": list(comparison.n_runs),
            "baseline": comparison.baseline,
            "lines": msgspec.to_builtins(comparison.lines),
            "confounds": msgspec.to_builtins(comparison.confounds),
            "notes": notes_of(comparison),
            "tally": tally(comparison),
            "grade": grade_of_comparison(comparison),
            "grades": {one.manifest.run: msgspec.to_builtins(one.grade) for one in comparison.analyses},
        }
        _dump(output, {"summary_version": SUMMARY_VERSION, **said})

    def write_fleet(self, report: FleetReport, output: Path) -> None:
        _dump(output, fleet_document(report))


def _dump(output: Path, content: dict[str, Any]) -> None:
    output.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", "utf-8", "backslashreplace")


def summary_of(analysis: Analysis) -> dict[str, Any]:
    """The object: values in base units, ratios as backend over baseline, None for what does not exist."""
    run, manifest, names = analysis.run, analysis.manifest, names_of(analysis)
    return {
        "summary_version": SUMMARY_VERSION,
        "run": manifest.run,
        "directory": str(run.path),
        "suite": suite_title(analysis),
        "status": str(manifest.status),
        "seed": manifest.seed,
        str(NoteCode.PRIMED): [dict(event.details) for event in run.events if event.note_code == NoteCode.PRIMED],
        "started_utc": manifest.started_utc,
        "ended_utc": manifest.ended_utc,
        "host": {fact.name: fact.text for fact in manifest.host},
        "host_virtualization": host_virtualization(manifest),
        "baseline": analysis.baseline.name if analysis.baseline is not None else None,
        "margin": analysis.margin,
        "backends": {
            backend.name: {
                "label": backend.label,
                "emulated_apart": backend.is_fenced,
                "facts": manifest.backends[backend.name].texts if backend.name in manifest.backends else {},
                "available": backend.name not in manifest.unavailable,
            }
            for backend in analysis.backends
        },
        "headline": headline.headline(analysis),
        "grade": msgspec.to_builtins(analysis.grade),
        "not_measured": headline.fences(analysis),
        "requirements": [_requirement(names, one) for one in judge_requirements(analysis)],
        "caveats": msgspec.to_builtins(caveats(analysis)),
        "doubts": msgspec.to_builtins(doubts(analysis)),
        "results": [_result(names, *place) for place in analysis.cells],
        "noise": msgspec.to_builtins(analysis.noise),
        "claims": msgspec.to_builtins(judge(analysis)),
        "flags": msgspec.to_builtins(flags_of(analysis)),
        "failures": [
            {"instance": event.instance, "cell": event.cell, "message": event.message, "at_utc": event.utc}
            for event in analysis.failures
        ],
        "warnings": run.warnings,
    }


def _result(names: Names, subject: Subject, row: Row, cell: CellResult) -> dict[str, Any]:
    return {
        "experiment": subject.experiment,
        "workload": subject.workload,
        "params": dict(subject.params),
        "key": key_of(subject, row, cell),
        "metric": row.metric.name,
        "name": names.row(subject, row),
        "size": row.size,
        "unit": str(row.metric.unit),
        "direction": str(row.metric.direction),
        "backend": cell.backend.name,
        "label": cell.backend.label,
        "value": cell.estimate.centre,
        "value_low": cell.estimate.low,
        "value_high": cell.estimate.high,
        "blocks": cell.n_blocks,
        "instances": cell.n_instances,
        "iterations": cell.n_iterations,
        "quantile": row.quantile,
        "is_leading": row.is_leading,
        "warm_up": msgspec.to_builtins(cell.warm_up),
        "precision": msgspec.to_builtins(cell.precision),
        "noise_floor": msgspec.to_builtins(row.noise_floor),
        "comparison": msgspec.to_builtins(cell.comparison),
    }


def _requirement(names: Names, judged: Judged) -> dict[str, Any]:
    """A requirement with its answers; ``value``, ``low`` and ``high`` are in the requirement's unit."""
    return {
        **msgspec.to_builtins(judged.requirement),
        "name": requirement_name(names, judged),
        "answers": [
            {
                "backend": one.backend.name,
                "standing": one.standing.value,
                "probability": one.probability,
                "value": one.value,
                "low": one.low,
                "high": one.high,
                "settling": msgspec.to_builtins(one.settling),
                "why": one.why,
            }
            for one in judged.judgements
        ],
    }
