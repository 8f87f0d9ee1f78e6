"""What people call things: metrics, workloads, parameters, backends. The ids stay in tooltips, CSV and JSON.

A run's manifest holds the names that its workloads and experiments declared. For runs from before there were names, the
plug-ins of this tare are asked, where they still have such a metric; else the id is shown.
"""

import functools
import re
from collections.abc import Mapping

import msgspec

from tare.bench.analysis import Analysis, MeasuredBackend, Row, Subject
from tare.bench.analysis.estimates import OWN_CONTAINER
from tare.bench.catalogue import RATIO_PREFIX, SHAM_PREFIX, VALUE_PREFIX
from tare.bench.model import IsolationKind, Metric
from tare.bench.readable import one_line
from tare.bench.records import Manifest
from tare.bench.registry import find_experiments, find_workloads
from tare.bench.traits import Category, Parameter

AREAS: Mapping[str, str] = {
    "start": "Start",
    Category.CPU: "CPU work",
    Category.MEMORY: "Memory access",
    Category.KERNEL: "System calls",
    Category.STORAGE: "Disk access",
    Category.NETWORK: "Network traffic",
    Category.APPLICATION: "Applications",
}
"""What the areas of ``tare.bench.analysis.answer`` are called, in headline, picture and requirements alike."""


def area_title(area: str) -> str:
    """An area within a sentence: ``disk access``, ``CPU work``."""
    title = AREAS.get(area, area)
    return title if title[:2].isupper() else f"{title[:1].lower()}{title[1:]}"


_OF_VICTIMS = {
    VALUE_PREFIX: "",
    RATIO_PREFIX: ", compared with alone",
    SHAM_PREFIX: ", next to idle neighbours compared with alone",
}
_PLACE = re.compile(r"\{(\w+)\}")


class Names:
    """The names of one run."""

    def __init__(self, manifest: Manifest) -> None:
        self._manifest = manifest

    def metric(self, subject: Subject, metric: Metric) -> str:
        """``Random 4 KiB reads per second``; the id with what it is of where nobody named it."""
        return self.metric_of(subject.experiment, subject.workload, subject.params, metric)

    def metric_of(self, experiment: str, workload: str, params: Mapping[str, object], metric: Metric) -> str:
        """The same, by what a comparison of two runs knows of a subject."""
        name, _, quantile = metric.name.partition(" ")
        title = metric.title or _declared_titles().get((workload or experiment, name), "")
        title = title or _declared_titles().get((experiment, name), "")
        for prefix, compared in _OF_VICTIMS.items():
            if not title and name.startswith(prefix):
                title = _declared_titles().get((workload, name.removeprefix(prefix)), "")
                title = f"{title}{compared}" if title else title
        if not title:
            return one_line(" ".join(part for part in (workload, metric.name) if part), 80)
        words = {one.name: one for one in self._parameters(experiment, workload)}

        def value(match: re.Match[str]) -> str:
            given = params.get(match[1], _declared_defaults().get(workload, {}).get(match[1]))
            known = words.get(match[1])
            return "" if given is None else one_line(_value(given, known), 40)

        text = " ".join(_PLACE.sub(value, title).split())
        return f"{text[:1].upper()}{text[1:]}{f' ({quantile})' if quantile else ''}"

    def row(self, subject: Subject, row: Row) -> str:
        """A metric's name, and the size that is meant of one that grows."""
        name = self.metric(subject, row.metric)
        return name if row.size is None else f"{name}, {row.size:,} {one_line(subject.traits.grows_with, 40)}"

    def area(self, subject: Subject, area: str | None) -> str:
        """``Disk access``; of a workload without a category its own name."""
        own = self.subject(subject)
        return own if area is None or area == Category.APPLICATION else AREAS.get(area, own)

    def subject(self, subject: Subject) -> str:
        """``Disk (fio)``; an experiment's title where there is no workload."""
        return self.subject_of(subject.experiment, subject.workload)

    def subject_of(self, experiment: str, workload: str) -> str:
        """The same, by its parts."""
        of_experiment = one_line(self._manifest.traits_of(experiment).title)
        if not workload:
            return of_experiment
        title = self.workload(workload)
        return title if self._manifest.traits_of(experiment).of_workload else f"{of_experiment}: {title}"

    def workload(self, workload: str) -> str:
        """``Disk (fio)``, whatever the experiment."""
        traits = self._manifest.workloads.get(workload)
        title = (traits.title if traits is not None else "") or _declared_workloads().get(workload, "")
        return one_line(title or workload)

    def params(self, subject: Subject) -> list[tuple[str, str]]:
        """Its parameters with their values in words, in the order in which they are declared."""
        return self.params_of(subject.experiment, subject.workload, subject.params)

    def params_of(self, experiment: str, workload: str, params: Mapping[str, object]) -> list[tuple[str, str]]:
        """The same, by its parts."""
        known = {one.name: one for one in self._parameters(experiment, workload)}
        order = [*(name for name in known if name in params), *(name for name in params if name not in known)]
        return [
            (
                one_line(known[name].title if name in known else name),
                one_line(_value(params[name], known.get(name)), 60),
            )
            for name in order
        ]

    def params_line(self, experiment: str, workload: str, params: Mapping[str, object]) -> str:
        """The same on one line."""
        return ", ".join(f"{title} {value}" for title, value in self.params_of(experiment, workload, params))

    def told_apart(self, subject: Subject, subjects: list[Subject]) -> str:
        """The parameters by which a subject differs from others of its kind, in words; empty for the only one."""
        alike = [one for one in subjects if (one.experiment, one.workload) == (subject.experiment, subject.workload)]
        known = {one.name: one for one in self._parameters(subject.experiment, subject.workload)}
        varying = {
            name for name in subject.params if len({_value(one.params.get(name), known.get(name)) for one in alike}) > 1
        }
        given = {name: value for name, value in subject.params.items() if name in varying}
        told = self.params_of(subject.experiment, subject.workload, given)
        return ", ".join(f"{title[:1].lower()}{title[1:]} {value}" for title, value in told)

    def _parameters(self, experiment: str, workload: str) -> tuple[Parameter, ...]:
        traits = self._manifest.workloads.get(workload)
        own = traits.parameters if traits is not None else ()
        return (*(own or _declared_parameters().get(workload, ())), *self._manifest.traits_of(experiment).parameters)


def names_of(analysis: Analysis) -> Names:
    """The names of a run."""
    return Names(analysis.manifest)


def plural_of(backend: MeasuredBackend, analysis: Analysis) -> str:
    """How a headline calls a backend's instances: by their kind, and whose, where no other compared one is of it."""
    described = analysis.manifest.backends.get(backend.name)
    kinds = [
        analysis.manifest.backends[one.name].kind
        for one in analysis.backends
        if one.name in analysis.manifest.backends and not one.is_baseline and not one.is_fenced
    ]
    whose = "tare" if OWN_CONTAINER in backend.label else backend.name
    words = {IsolationKind.CONTAINER: f"Containers ({whose})", IsolationKind.VIRTUAL_MACHINE: "Virtual machines"}
    if described is not None and described.kind in words and kinds.count(described.kind) == 1:
        return words[described.kind]
    return backend.label


def _value(value: object, known: Parameter | None) -> str:
    text = str(value)
    if known is not None and text in known.values:
        return known.values[text]
    if isinstance(value, bool):
        return "yes" if value else "no"
    return re.sub(r"^(\d+(?:\.\d+)?)([KMGT]iB|B|ms|s|min|h)$", "\\1 \\2", text)


@functools.cache
def _declared_titles() -> Mapping[tuple[str, str], str]:
    declared: dict[tuple[str, str], str] = {}
    for plugins in (find_experiments(), find_workloads()):
        for name, one in plugins.loaded.items():
            declared |= {(name, metric.name): metric.title for metric in one.metrics}
    return declared


@functools.cache
def _declared_workloads() -> Mapping[str, str]:
    return {name: one.title for name, one in find_workloads().loaded.items()}


@functools.cache
def _declared_defaults() -> Mapping[str, Mapping[str, object]]:
    """What a parameter is that a suite does not state, by workload."""
    return {
        name: {
            field.name: field.default
            for field in msgspec.structs.fields(one.Params)
            if field.default is not msgspec.NODEFAULT
        }
        for name, one in find_workloads().loaded.items()
    }


@functools.cache
def _declared_parameters() -> Mapping[str, tuple[Parameter, ...]]:
    return {name: one.parameters for name, one in find_workloads().loaded.items()}
