"""Reads a suite: a TOML file becomes a resolved, checked value, or one message with the file and the key.

A suite states the image, the envelope, the sampling policy, the backends and the experiments once, for every
backend alike. Lists in ``params`` make one cell a value, lists in the options of a backend one backend a value.
"""

import difflib
import itertools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from tare.bench.errors import SuiteError, TareError, UnknownNameError
from tare.bench.interfaces import Backend, Experiment, NoOptions, Workload
from tare.bench.model import Cell, Commands, Envelope, Metric
from tare.bench.own_workloads import with_own_workloads
from tare.bench.registry import Plugins, find_experiments
from tare.bench.settings import quantiles_of
from tare.bench.suite_file import (
    BackendSection,
    EnvelopeSection,
    ExperimentSection,
    ImageSection,
    Sampling,
    SuiteFile,
    SuiteHead,
)
from tare.bench.suite_reading import convert, read_toml
from tare.bench.units import parse_duration, parse_size

_T = TypeVar("_T")


class BackendChoice(msgspec.Struct, frozen=True):
    """A backend of the suite, its class and its checked options; ``key`` is its section's in the file."""

    name: str
    type: type[Backend]
    options: Any
    key: str = ""


class Subject(msgspec.Struct, frozen=True):
    """What is compared across backends: an experiment with one workload and one set of parameters.

    ``params`` is a value of the workload's ``Params`` and ``options`` one of the experiment's ``Options``; ``given`` is
    what the suite stated of both, for names and records.
    """

    experiment: type[Experiment]
    workload: type[Workload] | None
    params: Any
    given: Mapping[str, Any]
    sampling: Sampling
    options: Any = NoOptions()

    def cell(self, backend: str) -> Cell:
        """The cell of this subject on one backend."""
        return Cell(self.experiment.name, self.workload.name if self.workload else "", self.given, backend)

    @property
    def owner(self) -> str:
        """What its metrics are called after: the workload, or the experiment where there is none."""
        return self.workload.name if self.workload else self.experiment.name

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """All that it measures: the workload's own metrics first."""
        own = self.workload.metrics if self.workload else ()
        return (*own, *self.experiment.metrics_with(self.workload))


class Suite(msgspec.Struct, frozen=True):
    """A suite, resolved: every name found, every value checked, every default filled in."""

    path: Path
    head: SuiteHead
    image: ImageSection
    envelope: Envelope
    storage: Path | None
    sampling: Sampling
    backends: tuple[BackendChoice, ...]
    subjects: tuple[Subject, ...]
    source: Mapping[str, Any]
    baseline: str = ""

    def packages(self) -> tuple[str, ...]:
        """The packages that the image needs: the suite's own, the backends' and the workloads'."""
        needed = set(self.image.packages)
        for choice in self.backends:
            needed.update(choice.type.packages(choice.options))
        for subject in self.subjects:
            needed.update(subject.workload.packages if subject.workload else ())
        return tuple(sorted(needed))


def load_suite(
    path: Path,
    backends: Plugins[Backend],
    workloads: Plugins[Workload],
    *,
    only: Sequence[str] = (),
    seed: int | None = None,
) -> Suite:
    """Read and resolve a suite file. ``only`` keeps these backends, ``seed`` replaces the suite's.

    Raises SuiteError with the file and the key, whatever is wrong.
    """
    return resolve_suite(read_toml(path), path, backends, workloads, only=only, seed=seed)


def resolve_suite(
    raw: Mapping[str, Any],
    path: Path,
    backends: Plugins[Backend],
    workloads: Plugins[Workload],
    *,
    only: Sequence[str] = (),
    seed: int | None = None,
) -> Suite:
    """Resolve a suite that was read from ``path``: a file, or the manifest of a run that goes on."""
    file = convert(raw, SuiteFile, path, "")
    workloads, own = with_own_workloads(path, file.workload, workloads)
    file = msgspec.structs.replace(file, workload=own)
    if seed is not None:
        file = msgspec.structs.replace(file, sampling=msgspec.structs.replace(file.sampling, seed=seed))
    variants = _each_variant(path, file.backend)
    baseline = _find_baseline(path, file.report.baseline, [variant.name for variant in variants])
    if only:
        variants = _keep(path, variants, only)
        baseline = baseline if baseline in [variant.name for variant in variants] else ""
        file = msgspec.structs.replace(file, report=msgspec.structs.replace(file.report, baseline=baseline))
    file = msgspec.structs.replace(file, backend=tuple(variant.section for variant in variants))
    _check_counts(path, "sampling", file.sampling)
    envelope = _resolve_envelope(path, file.envelope)
    subjects = tuple(_resolve_subjects(path, file.experiment, workloads, file.sampling, envelope))
    _check_metrics(path, file, subjects)
    choices = tuple(_resolve_backends(path, variants, backends, envelope))
    _check_servers(path, choices, subjects)
    return Suite(
        path=path,
        head=file.suite,
        image=file.image,
        envelope=envelope,
        storage=_resolve_storage(path, file.envelope.storage),
        sampling=file.sampling,
        backends=choices,
        subjects=subjects,
        source=msgspec.to_builtins(file),
        baseline=baseline,
    )


def _find_baseline(path: Path, wanted: str, names: Sequence[str]) -> str:
    if wanted and wanted not in names:
        raise SuiteError(f"{path}: report.baseline", f"no backend is called {wanted!r}; there are: {', '.join(names)}")
    return wanted


class _Variant(msgspec.Struct, frozen=True):
    """A backend of the suite, with one value for each option; ``given`` is the name of the section it comes from."""

    key: str
    given: str
    section: BackendSection

    @property
    def name(self) -> str:
        """What the suite calls it."""
        return self.section.name or self.section.type


def _each_variant(path: Path, sections: Sequence[BackendSection]) -> list[_Variant]:
    """A list among the options is a dimension: one backend a value, which its name then holds."""
    variants = []
    for index, section in enumerate(sections):
        key, given = f"backend[{index}]", section.name or section.type
        for option, value in section.options.items():
            if value == []:
                raise SuiteError(f"{path}: {key}.options.{option}", "is a list without a value")
        several = [option for option, value in section.options.items() if isinstance(value, list) and len(value) > 1]
        for options in _each_combination(section.options):
            named = ",".join(f"{option}={_as_written(options[option])}" for option in several)
            name = f"{given}:{named}" if named else section.name
            variants.append(_Variant(key, given, msgspec.structs.replace(section, name=name, options=options)))
    return variants


def _as_written(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _keep(path: Path, variants: Sequence[_Variant], only: Sequence[str]) -> list[_Variant]:
    """Those that ``only`` names: one by one, or all that come from a section."""
    for name in only:
        if not any(name in {variant.name, variant.given} for variant in variants):
            known = ", ".join(variant.name for variant in variants)
            raise SuiteError(f"{path}: backend", f"--backend {name}: the suite has {known}")
    return [variant for variant in variants if not {variant.name, variant.given}.isdisjoint(only)]


def _resolve_storage(path: Path, storage: str) -> Path | None:
    if not storage:
        return None
    folder = Path(storage).expanduser()
    if not folder.is_dir():
        raise SuiteError(f"{path}: envelope.storage", f"{folder} is not a folder")
    return folder


def _check_counts(path: Path, key: str, sampling: Sampling) -> None:
    for name in ("blocks", "instances", "iterations"):
        if getattr(sampling, name) < 1:
            raise SuiteError(f"{path}: {key}.{name}", f"must be at least 1, not {getattr(sampling, name)}")
    if sampling.seed < 0:
        raise SuiteError(f"{path}: {key}.seed", f"must be at least 0, not {sampling.seed}")
    if sampling.warmup < 0:
        raise SuiteError(f"{path}: {key}.warmup", f"must be at least 0, not {sampling.warmup}")
    _check_precision(path, key, sampling)


def _check_precision(path: Path, key: str, sampling: Sampling) -> None:
    precision, most = sampling.precision, sampling.max_blocks
    if precision is not None and not 0 <= precision < 1:
        problem = f"must be a share such as 0.02, or 0 for a fixed number of blocks, not {precision:g}"
        raise SuiteError(f"{path}: {key}.precision", problem)
    if most is not None and precision and most < sampling.blocks:
        raise SuiteError(f"{path}: {key}.max_blocks", f"must be at least {sampling.blocks}, as many as blocks")
    if most is not None and precision is None:
        raise SuiteError(f"{path}: {key}.max_blocks", "has a meaning only together with a precision")
    try:
        seconds = parse_duration(sampling.max_time)
    except ValueError as error:
        raise SuiteError(f"{path}: {key}.max_time", str(error)) from None
    if seconds <= 0:
        raise SuiteError(f"{path}: {key}.max_time", "must be more than 0")


def _check_metrics(path: Path, file: SuiteFile, subjects: Sequence[Subject]) -> None:
    """Every metric that the suite says something about is one that its experiments measure."""
    if not 0 <= file.report.margin < 1:
        raise SuiteError(f"{path}: report.margin", f"must be a share such as 0.02, not {file.report.margin:g}")
    known = {f"{subject.owner}/{metric.name}": metric.name for subject in subjects for metric in subject.metrics}
    for name, section in file.metric.items():
        place = f'{path}: metric."{name}"'
        if name not in known and name not in known.values():
            close = difflib.get_close_matches(name, [*known, *known.values()], n=3)
            listed = ", ".join(close or dict.fromkeys(known.values()))
            raise SuiteError(place, "nothing in this suite measures that", remedy=f"measured are: {listed}")
        if section.margin is not None and not 0 <= section.margin < 1:
            raise SuiteError(f"{place}.margin", f"must be a share such as 0.05, not {section.margin:g}")
        for quantile in quantiles_of(section.quantile):
            if not 0 < quantile < 1:
                raise SuiteError(f"{place}.quantile", f"must lie between 0 and 1, not {quantile:g}")


_LEAST_QUOTA = 0.01
_MOST_WEIGHT = 10_000
_LEAST_BYTES_PER_S = 4096
"""A page a second: at less an instance cannot even read its programs."""


def _resolve_envelope(path: Path, section: EnvelopeSection) -> Envelope:
    if section.pids < 16:
        raise SuiteError(f"{path}: envelope.pids", f"must be at least 16, not {section.pids}")
    cpus = _choose_cpus(path, section.cpus)
    quota, weight = section.cpu_quota, section.cpu_weight
    if quota is not None and not _LEAST_QUOTA <= quota <= len(cpus):
        problem = f"must be from {_LEAST_QUOTA:g} to {len(cpus)}, the envelope's CPUs, not {quota:g}"
        raise SuiteError(f"{path}: envelope.cpu_quota", problem)
    if weight is not None and not 1 <= weight <= _MOST_WEIGHT:
        raise SuiteError(f"{path}: envelope.cpu_weight", f"must be from 1 to {_MOST_WEIGHT}, not {weight}")
    return Envelope(
        cpus,
        _envelope_size(path, "memory", section.memory),
        _envelope_size(path, "scratch", section.scratch),
        section.pids,
        swap_bytes=_envelope_size(path, "swap", section.swap),
        cpu_quota=quota,
        cpu_weight=weight,
        io_read_bytes_per_s=_io_rate(path, "io_read_bytes_per_s", section.io_read_bytes_per_s),
        io_write_bytes_per_s=_io_rate(path, "io_write_bytes_per_s", section.io_write_bytes_per_s),
        io_read_ops_per_s=_io_rate(path, "io_read_ops_per_s", section.io_read_ops_per_s),
        io_write_ops_per_s=_io_rate(path, "io_write_ops_per_s", section.io_write_ops_per_s),
    )


def _envelope_size(path: Path, key: str, text: str) -> int:
    try:
        return parse_size(text)
    except ValueError as error:
        raise SuiteError(f"{path}: envelope.{key}", str(error)) from None


def _io_rate(path: Path, key: str, given: str | int | None) -> int | None:
    """A rate of bytes (a size as text) or of operations."""
    if given is None:
        return None
    rate, least = (given, 1) if isinstance(given, int) else (_envelope_size(path, key, given), _LEAST_BYTES_PER_S)
    if rate < least:
        raise SuiteError(f"{path}: envelope.{key}", f"must be at least {least} a second, not {given}")
    return rate


def _choose_cpus(path: Path, wanted: int | tuple[int, ...]) -> tuple[int, ...]:
    """Host CPUs for the instances: the last ones that this process may use, so that the first stay tare's own."""
    usable = sorted(os.sched_getaffinity(0))
    if isinstance(wanted, int):
        if not 1 <= wanted <= len(usable):
            raise SuiteError(f"{path}: envelope.cpus", f"asks for {wanted} CPUs; this host offers {len(usable)}")
        return tuple(usable[-wanted:])
    missing = sorted(set(wanted) - set(usable))
    if missing or not wanted or len(set(wanted)) != len(wanted):
        problem = f"CPU {missing[0]} is not usable here ({usable})" if missing else "must name each CPU once"
        raise SuiteError(f"{path}: envelope.cpus", problem)
    return tuple(sorted(wanted))


def _resolve_backends(
    path: Path, variants: Sequence[_Variant], plugins: Plugins[Backend], envelope: Envelope
) -> list[BackendChoice]:
    if not variants:
        raise SuiteError(f"{path}: backend", "the suite names no backend")
    choices: list[BackendChoice] = []
    for variant in variants:
        key, section, name = variant.key, variant.section, variant.name
        plugin = _look_up(plugins, section.type, f"{path}: {key}.type")
        if any(choice.name == name for choice in choices):
            raise SuiteError(f"{path}: {key}.name", f"{name!r} is there twice; give each its own name")
        if envelope.memory_bytes < plugin.minimum_memory_bytes:
            least = f"{plugin.minimum_memory_bytes // 2**20}MiB"
            raise SuiteError(
                f"{path}: envelope.memory",
                f"{envelope.memory_bytes // 2**20}MiB is too little for the backend {name!r}, which needs {least}",
                remedy=f"state at least {least}, or leave that backend out",
            )
        options = convert(section.options, plugin.Options, path, f"{key}.options")
        try:
            plugin.check(options, envelope)
        except ValueError as error:
            raise SuiteError(f"{path}: {key}.options", str(error)) from None
        choices.append(BackendChoice(name, plugin, options, key))
    return choices


def _check_servers(path: Path, choices: Sequence[BackendChoice], subjects: Sequence[Subject]) -> None:
    """Every backend has a way to where the services of each experiment are to run."""
    places = dict.fromkeys(subject.experiment.server_place(subject.options) for subject in subjects)
    for choice, place in itertools.product(choices, places):
        try:
            choice.type.check_server(choice.options, place)
        except ValueError as error:
            problem = f"with server = {place.value!r} no way leads there from the backend {choice.name!r}: {error}"
            raise SuiteError(f"{path}: {choice.key}.options", problem) from None


def _resolve_subjects(
    path: Path,
    sections: Sequence[ExperimentSection],
    workloads: Plugins[Workload],
    sampling: Sampling,
    envelope: Envelope,
) -> list[Subject]:
    if not sections:
        raise SuiteError(f"{path}: experiment", "the suite names no experiment")
    experiments = find_experiments()
    subjects: list[Subject] = []
    for index, section in enumerate(sections):
        key = f"experiment[{index}]"
        experiment = _look_up(experiments, section.kind, f"{path}: {key}.kind")
        own = _own_sampling(sampling, section)
        _check_counts(path, key, own)
        choices = [
            (options, convert(options, experiment.Options, path, f"{key}.options"))
            for options in _each_combination(section.options)
        ]
        workload = _find_workload(path, key, section, experiment, workloads)
        if workload is None:
            subjects += [Subject(experiment, None, None, chosen, own, options) for chosen, options in choices]
            continue
        _refuse_shared_names(path, key, section)
        for given in _each_combination(section.params):
            params = convert(given, workload.Params, path, f"{key}.params")
            commands = _check_commands(path, key, workload, params, envelope)
            for _, options in choices:
                _check_options(path, key, experiment, options, commands)
            subjects += [
                Subject(experiment, workload, params, {**given, **chosen}, own, options) for chosen, options in choices
            ]
    names = [subject.cell("").key for subject in subjects]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise SuiteError(f"{path}: experiment", f"{twice.rstrip('/')} is there twice")
    return subjects


def _find_workload(
    path: Path, key: str, section: ExperimentSection, experiment: type[Experiment], workloads: Plugins[Workload]
) -> type[Workload] | None:
    if section.workload:
        if not (experiment.needs_workload or experiment.takes_workload):
            raise SuiteError(f"{path}: {key}.workload", f"the experiment {section.kind!r} runs no workload")
        return _look_up(workloads, section.workload, f"{path}: {key}.workload")
    if experiment.needs_workload:
        raise SuiteError(f"{path}: {key}.workload", f"the experiment {section.kind!r} needs a workload")
    if section.params:
        raise SuiteError(f"{path}: {key}.params", "no workload is named that they could be for")
    return None


def _refuse_shared_names(path: Path, key: str, section: ExperimentSection) -> None:
    """Both stand in a cell's name and records, where they have to be told apart."""
    shared = sorted(set(section.params) & set(section.options))
    if shared:
        raise SuiteError(f"{path}: {key}.options", f"{shared[0]!r} is also a parameter of the workload")


def _own_sampling(sampling: Sampling, section: ExperimentSection) -> Sampling:
    names = ("blocks", "instances", "iterations", "warmup", "precision", "max_blocks")
    given = {name: getattr(section, name) for name in names}
    return msgspec.structs.replace(sampling, **{name: value for name, value in given.items() if value is not None})


def _each_combination(params: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every combination of the values given: a list is a dimension, one cell a value."""
    values = [value if isinstance(value, list) else [value] for value in params.values()]
    return [dict(zip(params, combination, strict=True)) for combination in itertools.product(*values)]


def _check_commands(path: Path, key: str, workload: type[Workload], params: Any, envelope: Envelope) -> Commands:
    """Workloads are pure, so what they refuse is known before anything runs."""
    try:
        return workload().commands(params, envelope)
    except (TareError, ValueError) as error:
        message = error.message if isinstance(error, TareError) else str(error)
        raise SuiteError(f"{path}: {key}.params", message) from None


def _check_options(path: Path, key: str, experiment: type[Experiment], options: Any, commands: Commands) -> None:
    try:
        experiment.check(options, commands)
    except ValueError as error:
        raise SuiteError(f"{path}: {key}.options", str(error)) from None


def _look_up(plugins: Plugins[_T], name: str, place: str) -> type[_T]:
    try:
        return plugins.get(name)
    except UnknownNameError as error:
        raise SuiteError(place, error.message) from None
