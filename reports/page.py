"""Lays a run out as a page: everything the template shows, already in words, numbers and figures.

The template only places; what is said is decided here and in ``sections``, ``findings``, ``phases`` and ``evidence``.
"""

import datetime as dt
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from tare.bench.analysis import Analysis
from tare.bench.readable import one_line
from tare.bench.samples import params_text
from tare.bench.stats import MANY_BLOCKS
from tare.bench.units import Unit, format_duration, format_size, format_value
from tare.reports import claims, findings
from tare.reports.capacity import capacity_view
from tare.reports.density_costs import costs_view
from tare.reports.evidence import command_views, failure_views, raw_view
from tare.reports.flags import Flag, disturbances_in
from tare.reports.interference_heat import heat_view
from tare.reports.limits_held import held_view
from tare.reports.phases import phase_view
from tare.reports.published import published_views
from tare.reports.sections import SectionView, section_views
from tare.reports.wording import noise_sentence, percent, plural

LONGEST_QUESTION = 200
MOST_FLAGS = 200


class FilterView(msgspec.Struct, frozen=True):
    """What a reader can narrow the page to: backends by place, workloads and parameters by a short key."""

    workloads: dict[str, str]
    params: dict[str, str]
    subjects: dict[str, str]

    @property
    def is_useful(self) -> bool:
        """Whether there is anything to choose from beside the backends."""
        return len(self.workloads) > 1 or len(self.params) > 1


class FlagView(msgspec.Struct, frozen=True):
    """A flag as a line of a table."""

    kind: str
    where: str
    backend: str
    sentence: str


def page_context(analysis: Analysis, beside: Path | None = None) -> dict[str, Any]:
    """Everything the template needs. ``beside`` is the folder that the page will lie in, if it is known."""
    sections = section_views(analysis)
    found = findings.caveats(analysis)
    flags = disturbances_in(analysis)
    manifest = analysis.manifest
    title, description = findings.suite_title(analysis), _suite_description(manifest.suite)
    asks = 0 < len(description) <= LONGEST_QUESTION
    return {
        "title": title,
        "heading": description if asks else title,
        "kicker": title if asks else "What isolation costs",
        "description": "" if asks else description,
        "question": findings.question(analysis),
        "findings": findings.findings(analysis),
        "caveats": [caveat for caveat in found if caveat.weight > 1],
        "details": [caveat for caveat in found if caveat.weight <= 1],
        "manifest": manifest,
        "baseline": analysis.baseline,
        "backends": analysis.backends,
        "backend_facts": {name: backend.texts for name, backend in manifest.backends.items()},
        "virtualization": findings.host_virtualization(analysis),
        "sections": sections,
        "subjects_present": bool(sections),
        "compared": bool(analysis.comparisons),
        "leading_rows": [row for section in sections for _, row in section.leading],
        "noise": noise_sentence(analysis),
        "own_margins": any(one.margin != analysis.margin for *_, one in analysis.comparisons),
        "filters": _filters(sections),
        "phases": phase_view(analysis),
        "capacity": capacity_view(analysis),
        "costs": costs_view(analysis),
        "heat": heat_view(analysis),
        "held": held_view(analysis),
        "claims": claims.judge(analysis) if analysis.subjects else [],
        "published": published_views(analysis),
        "flags": _flag_views(flags, analysis),
        "flag_count": len(flags),
        "failures": failure_views(analysis),
        "commands": command_views(analysis.run.events),
        "raw": raw_view(analysis, beside),
        "envelope": _envelope_lines(analysis),
        "design": _design_line(analysis),
        "when": _when(manifest.started_utc, manifest.ended_utc),
        "suite_text": json.dumps(msgspec.to_builtins(manifest.suite), indent=2, ensure_ascii=False),
        "image": _flat(manifest.image),
        "packages": manifest.image.get("packages") or {},
        "margin": percent(analysis.margin),
        "comparisons": len([one for *_, one in analysis.comparisons if one.p_value is not None]),
        "downgraded": sum(one.verdict is not one.verdict_adjusted for *_, one in analysis.comparisons),
        "many_blocks": MANY_BLOCKS,
        "warmup_samples": analysis.warmup_samples,
        "warmup_found": analysis.warmup_found,
        "sample_count": len(analysis.run.samples),
    }


def _filters(sections: list[SectionView]) -> FilterView:
    """Short keys for what is filtered by: ``subjects`` maps a subject's identifier to all of its keys."""
    workloads: dict[str, str] = {}
    params: dict[str, str] = {}
    subjects = {}
    for section in sections:
        for subject in section.subjects:
            name = section.title if subject.title == "Every metric" else subject.title
            own = workloads.setdefault(name, f"w{len(workloads)}")
            given = [params.setdefault(text, f"v{len(params)}") for text in subject.filters]
            subjects[subject.identifier] = " ".join((own, *given))
    return FilterView(
        {key: name for name, key in workloads.items()}, {key: name for name, key in params.items()}, subjects
    )


def _flag_views(flags: list[Flag], analysis: Analysis) -> list[FlagView]:
    labels = {backend.name: backend.label for backend in analysis.backends}
    views = []
    for flag in flags[:MOST_FLAGS]:
        params = params_text(flag.params) if flag.params else ""
        where = " ".join(one_line(part) for part in (flag.workload or flag.experiment, params) if part)
        views.append(FlagView(str(flag.kind), where, labels.get(flag.backend, flag.backend), flag.sentence))
    return views


def _envelope_lines(analysis: Analysis) -> list[tuple[str, str]]:
    envelope = analysis.manifest.envelope
    asked = {
        "Swap": format_size(envelope.swap_bytes) if envelope.swap_bytes else None,
        "CPU quota": None if envelope.cpu_quota is None else f"{envelope.cpu_quota:g} CPUs",
        "CPU weight": envelope.cpu_weight,
        "Read at most": _rates(envelope.io_read_bytes_per_s, envelope.io_read_ops_per_s),
        "Written at most": _rates(envelope.io_write_bytes_per_s, envelope.io_write_ops_per_s),
    }
    return [
        ("CPUs", ", ".join(str(cpu) for cpu in envelope.cpus)),
        ("Memory", format_size(envelope.memory_bytes)),
        ("Scratch folder", format_size(envelope.scratch_bytes)),
        ("Most processes", f"{envelope.pids_max:,}"),
        *((name, str(value)) for name, value in asked.items() if value is not None),
    ]


def _rates(bytes_per_s: int | None, ops_per_s: int | None) -> str | None:
    rates = []
    if bytes_per_s is not None:
        rates.append(f"{format_size(bytes_per_s)}/s")
    if ops_per_s is not None:
        rates.append(f"{ops_per_s:,} operations/s")
    return ", ".join(rates) or None


def _design_line(analysis: Analysis) -> str:
    samples = analysis.run.samples
    blocks, instances = len(samples.distinct("block")), len(samples.distinct("instance"))
    return (
        f"{plural(blocks, 'block')}, {plural(instances, 'instance')} of "
        f"{analysis.manifest.planned_instances:,} planned, "
        f"seed {analysis.manifest.seed}"
    )


def _when(started: str, ended: str) -> str:
    """When a run was, and how long it took; as written where that is not a time."""
    try:
        first = dt.datetime.fromisoformat(started)
        text = f"{first:%d %B %Y, %H:%M:%S} UTC".lstrip("0")
        took = (dt.datetime.fromisoformat(ended) - first).total_seconds() if ended else None
    except (ValueError, TypeError):
        return f"{started} {ended}".strip()
    return text if took is None else f"{text}, {format_duration(took)}"


def _suite_description(suite: Mapping[str, Any]) -> str:
    head = suite.get("suite")
    found = head.get("description") if isinstance(head, dict) else suite.get("description")
    return str(found or "")


def _flat(image: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The image's own facts, without its long list of packages."""
    size = image.get("size_bytes")
    lines = [(str(name), str(value)) for name, value in image.items() if not isinstance(value, dict | list)]
    return [
        (name, format_value(float(size), Unit.BYTE) if name == "size_bytes" and size is not None else value)
        for name, value in lines
    ]
