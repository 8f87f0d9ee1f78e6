"""The results of a run as one JSON object, for programs: what ``tare run --json`` prints."""

import json
from pathlib import Path
from typing import Any

import msgspec

from tare.bench.analysis import Analysis, CellResult, Row, RunResults, Subject
from tare.bench.analysis.comparison import RunComparison
from tare.bench.reporter import Reporter
from tare.reports import findings
from tare.reports.claims import judge
from tare.reports.compare import notes_of, tally
from tare.reports.flags import flags_of

SUMMARY_VERSION = 1


class JsonReporter(Reporter):
    """Ratios, intervals, verdicts, findings and caveats as one JSON object."""

    name = "json"
    summary = "ratios, intervals, verdicts and caveats as one JSON object"
    suffix = ".json"
    compares = True

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
        }
        _dump(output, {"summary_version": SUMMARY_VERSION, **said})


def _dump(output: Path, content: dict[str, Any]) -> None:
    output.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", "utf-8", "backslashreplace")


def summary_of(analysis: Analysis) -> dict[str, Any]:
    """The object: values in base units, ratios as backend over baseline, None for what does not exist."""
    run, manifest = analysis.run, analysis.manifest
    return {
        "summary_version": SUMMARY_VERSION,
        "run": manifest.run,
        "directory": str(run.path),
        "suite": findings.suite_title(analysis),
        "status": str(manifest.status),
        "seed": manifest.seed,
        "started_utc": manifest.started_utc,
        "ended_utc": manifest.ended_utc,
        "host": {fact.name: fact.text for fact in manifest.host},
        "host_virtualization": findings.host_virtualization(analysis),
        "baseline": analysis.baseline.name if analysis.baseline is not None else None,
        "margin": analysis.margin,
        "backends": {
            backend.name: {
                "label": backend.label,
                "facts": manifest.backends[backend.name].texts if backend.name in manifest.backends else {},
                "available": backend.name not in manifest.unavailable,
            }
            for backend in analysis.backends
        },
        "findings": findings.findings(analysis),
        "caveats": msgspec.to_builtins(findings.caveats(analysis)),
        "results": [_result(*place) for place in analysis.cells],
        "noise": msgspec.to_builtins(analysis.noise),
        "claims": msgspec.to_builtins(judge(analysis)),
        "flags": msgspec.to_builtins(flags_of(analysis)),
        "failures": [
            {"instance": event.instance, "cell": event.cell, "message": event.message, "at_utc": event.utc}
            for event in analysis.failures
        ],
        "warnings": run.warnings,
    }


def _result(subject: Subject, row: Row, cell: CellResult) -> dict[str, Any]:
    return {
        "experiment": subject.experiment,
        "workload": subject.workload,
        "params": dict(subject.params),
        "metric": row.metric.name,
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
