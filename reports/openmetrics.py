"""Estimates, ratios and verdicts in OpenMetrics' text format, for a Prometheus textfile collector or a push gateway.

Written by hand, since client libraries expose a process's live counters and not a finished table. Follows the
OpenMetrics specification 1.0 (units as suffixes of names, label values escaped, ``# EOF`` at the end, no timestamps) as
far as Prometheus' own text format goes too: everything is a gauge, because node_exporter refuses ``info`` and
``stateset``.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from tare.bench.analysis import Analysis, CellResult, GradeLevel, Row, RunResults, Subject
from tare.bench.readable import one_line
from tare.bench.reporter import Reporter
from tare.bench.samples import params_text
from tare.bench.stats.comparisons import Verdict
from tare.bench.units import Unit
from tare.reports.claims import ClaimVerdict, judge

_UNITS = {
    Unit.SECOND: "seconds",
    Unit.BYTE: "bytes",
    Unit.BYTES_PER_SECOND: "bytes_per_second",
    Unit.OPERATIONS_PER_SECOND: "per_second",
    Unit.COUNT: "",
    Unit.RATIO: "ratio",
    Unit.SHARE: "ratio",
    Unit.CPU: "cpus",
}
_OWN = ("tare_run_info", "tare_grade", "tare_failed_instances", "tare_claim", "tare_comparison", "tare_verdict")
_RESERVED = ("_total", "_created", "_count", "_sum", "_bucket", "_info", "_gcount", "_gsum")
"""Suffixes that the format gives to samples of other types."""

_Labels = tuple[tuple[str, str], ...]


class OpenMetricsReporter(Reporter):
    """A gauge for each metric with its interval, ratios to the baseline; verdicts and claims: 1 for what holds."""

    name = "openmetrics"
    summary = "estimates, ratios and verdicts for Prometheus (OpenMetrics text)"
    suffix = ".prom"

    def write(self, results: RunResults, output: Path) -> None:
        output.write_text(render_openmetrics(results.analysis), "utf-8")


class _Family(msgspec.Struct):
    """A metric family, a gauge: samples by their labels, so that no two have the same."""

    name: str
    unit: str
    about: str
    samples: dict[_Labels, float]

    def add(self, labels: _Labels, centre: float | None, low: float | None, high: float | None) -> None:
        """The values that exist, each with its name as a label."""
        for bound, value in (("centre", centre), ("low", low), ("high", high)):
            if value is not None:
                self.samples[*labels, ("bound", bound)] = value

    def lines(self) -> Iterable[str]:
        yield f"# TYPE {self.name} gauge"
        if self.unit:
            yield f"# UNIT {self.name} {self.unit}"
        # Prometheus' parser refuses an escaped quote here.
        yield f"# HELP {self.name} {_escape_help(self.about)}"
        for labels, value in self.samples.items():
            shown = ",".join(f'{name}="{_escape(text)}"' for name, text in labels)
            yield f"{self.name}{{{shown}}} {value!r}"


def render_openmetrics(analysis: Analysis) -> str:
    """The exposition of a run."""
    families = {
        family.name: family
        for family in (_about_the_run(analysis), _grade(analysis), _failed(analysis), _claims(analysis))
    }
    ratio = _Family("tare_comparison_ratio", "ratio", "Backend over baseline, with its 95 % interval", {})
    verdict = _Family("tare_verdict", "", "The verdict after correction for many comparisons", {})
    for subject, row, cell in analysis.cells:
        labels, own, found = _labels(analysis, subject, row, cell), cell.estimate, cell.comparison
        _family_of(row, families).add(labels, own.centre, own.low, own.high)
        if found is not None:
            ratio.add(labels, found.ratio, found.low, found.high)
            for state in Verdict:
                verdict.samples[*labels, ("tare_verdict", state.value)] = float(found.verdict_adjusted is state)
    kept = [family for family in (*families.values(), ratio, verdict) if family.samples]
    return "\n".join([*(line for family in kept for line in family.lines()), "# EOF"]) + "\n"


def _family_of(row: Row, families: dict[str, _Family]) -> _Family:
    unit = _UNITS[row.metric.unit]
    name = re.sub(r"[^a-zA-Z0-9_]+", "_", f"tare_{row.metric.name}").strip("_").removesuffix(f"_{unit}")
    if name in _OWN or (not unit and name.endswith((*_RESERVED, *(f"_{one}" for one in _UNITS.values() if one)))):
        name = f"{name}_value"
    name = f"{name}_{unit}" if unit else name
    return families.setdefault(name, _Family(name, unit, one_line(row.metric.description), {}))


def _labels(analysis: Analysis, subject: Subject, row: Row, cell: CellResult) -> _Labels:
    """The metric's own name is a label too, since different names may become one name of a family."""
    described = analysis.manifest.backends.get(cell.backend.name)
    labels = {
        "run": analysis.manifest.run,
        "experiment": subject.experiment,
        "workload": subject.workload,
        "params": params_text(subject.params) if subject.params else "",
        "metric": row.metric.name,
        "backend": cell.backend.name,
        "label": cell.backend.label,
        "acceleration": described.accelerator if described is not None else "",
        **({"size": str(row.size)} if row.size is not None else {}),
        **_parameters(subject.params),
    }
    return tuple((name, one_line(text)) for name, text in labels.items())


def _parameters(params: Mapping[str, Any]) -> dict[str, str]:
    """Each parameter as a label of its own; ``params`` has them all, also where two names become one label."""
    return {f"param_{re.sub(r'[^a-zA-Z0-9_]', '_', name)}": str(value) for name, value in params.items()}


def _grade(analysis: Analysis) -> _Family:
    run = ("run", one_line(analysis.manifest.run))
    found = analysis.grade.level
    samples: dict[_Labels, float] = {(run, ("tare_grade", one.value)): float(one is found) for one in GradeLevel}
    return _Family("tare_grade", "", "How far the run can be relied on", samples)


def _about_the_run(analysis: Analysis) -> _Family:
    manifest = analysis.manifest
    labels = {
        "run": manifest.run,
        "status": manifest.status.value,
        "started": manifest.started_utc,
        "host": manifest.host_summary,
        "image": str(manifest.image.get("digest", "")),
        "tare": manifest.tare_version,
        "baseline": manifest.baseline,
    }
    key = tuple((name, one_line(text)) for name, text in labels.items())
    return _Family("tare_run_info", "", "The run that these values come from", {key: 1})


def _failed(analysis: Analysis) -> _Family:
    key = (("run", one_line(analysis.manifest.run)),)
    return _Family("tare_failed_instances", "", "Instances that failed", {key: len(analysis.failures)})


def _claims(analysis: Analysis) -> _Family:
    run = ("run", one_line(analysis.manifest.run))
    samples: dict[_Labels, float] = {
        (run, ("claim", one.id), ("tare_claim", state.value)): float(one.verdict is state)
        for one in judge(analysis)
        for state in ClaimVerdict
    }
    return _Family("tare_claim", "", "What the run says of each claim of the field", samples)


def _escape(text: str) -> str:
    return text.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


def _escape_help(text: str) -> str:
    return text.replace("\\", r"\\").replace("\n", r"\n")
