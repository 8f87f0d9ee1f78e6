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
from tare.bench.interfaces import Backend, Experiment, NoOptions, Workload, WorkloadKind
from tare.bench.model import Cell, Commands, Envelope, Metric
from tare.bench.registry import Plugins, find_experiments, find_workload_kinds
from tare.bench.suite_file import (
    BackendSection,
    EnvelopeSection,
    ExperimentSection,
    Sampling,
    SuiteFile,
    convert,
    read_toml,
)
from tare.bench.units import format_size

_T = TypeVar("_T")


class BackendChoice(msgspec.Struct, frozen=True):
    """A backend of the suite, its class and its checked options; ``key`` is its section's in the file."""

    name: str
    type: type[Backend]
    options: Any
    key: str = ""


class Scenario(msgspec.Struct, frozen=True):
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
        """The cell of this scenario on one backend."""
        return Cell(self.experiment.name, self.workload.name if self.workload else "", self.given, backend)

    @property
    def key(self) -> str:
        """The ``subject`` of its cells."""
        return self.cell("").subject

    @property
    def owner(self) -> str:
        """What its metrics are called after: the workload, or the experiment where there is none."""
        return self.workload.name if self.workload else self.experiment.name

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """All that it measures: the workload's own metrics first."""
        own = self.workload.metrics if self.workload else ()
        return (*own, *self.experiment.metrics_with(self.workload))


class SuiteSpec(msgspec.Struct, frozen=True):
    """A suite, resolved without a look at any host: every name found, every value checked, every default filled in.

    ``file`` holds the backends that are kept, one for each combination of options, and the suite's own workloads with
    all that they take from files.
    """

    path: Path
    file: SuiteFile
    backends: tuple[BackendChoice, ...]
    scenarios: tuple[Scenario, ...]

    @property
    def sampling(self) -> Sampling:
        """``[sampling]``."""
        return self.file.sampling

    def packages(self) -> tuple[str, ...]:
        """The packages that the image needs: the suite's own, the backends' and the workloads'."""
        needed = set(self.file.image.packages)
        for choice in self.backends:
            needed.update(choice.type.packages(choice.options))
        for scenario in self.scenarios:
            needed.update(scenario.workload.packages if scenario.workload else ())
        return tuple(sorted(needed))


class Suite(SuiteSpec, frozen=True):
    """A suite bound to a host: on these CPUs of it, with instances in this folder (tare's own if None)."""

    envelope: Envelope
    storage: Path | None


class HostOffer(msgspec.Struct, frozen=True):
    """What a host has for instances: the CPUs that tare may use, and its memory (None: not known)."""

    cpus: tuple[int, ...]
    memory_bytes: int | None


def this_host() -> HostOffer:
    """What this host offers."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return HostOffer(tuple(sorted(os.sched_getaffinity(0))), memory if memory > 0 else None)


def bind_suite(spec: SuiteSpec, host: HostOffer | None = None) -> Suite:
    """The suite on a host, this one unless given. Raises SuiteError for what the host does not offer."""
    host = host or this_host()
    section = spec.file.envelope
    envelope = section.on(_choose_cpus(spec.path, section.cpus, host.cpus))
    if host.memory_bytes is not None and envelope.memory_bytes > host.memory_bytes:
        problem = f"asks for {section.memory_bytes}; this host has {format_size(host.memory_bytes)}"
        raise SuiteError(f"{spec.path}: envelope.memory", problem)
    for choice in spec.backends:
        try:
            choice.type.check(choice.options, envelope)
        except ValueError as error:
            raise SuiteError(f"{spec.path}: {choice.key}.options", str(error)) from None
    storage = Path(section.storage).expanduser() if section.storage else None
    if storage is not None and not storage.is_dir():
        raise SuiteError(f"{spec.path}: envelope.storage", f"{storage} is not a folder")
    fields = {name: getattr(spec, name) for name in SuiteSpec.__struct_fields__}
    return Suite(**fields, envelope=envelope, storage=storage)


def read_suite(
    path: Path,
    backends: Plugins[Backend],
    workloads: Plugins[Workload],
    *,
    only: Sequence[str] = (),
    seed: int | None = None,
) -> SuiteSpec:
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
) -> SuiteSpec:
    """Resolve a suite that was read from ``path``: a file, the manifest of a run that goes on, or a command's name."""
    file = convert(raw, SuiteFile, path, "")
    workloads, own = _with_own_workloads(path, file.workload, workloads)
    sampling, report = file.sampling, file.report
    if seed is not None:
        sampling = convert(msgspec.to_builtins(sampling, enc_hook=str) | {"seed": seed}, Sampling, path, "sampling")
    variants = _each_variant(path, file.backend)
    _check_baseline(path, report.baseline, variants)
    if only:
        variants = _keep(path, variants, only)
        kept = any(variant.name == report.baseline for variant in variants)
        report = report if kept else msgspec.structs.replace(report, baseline="")
    sections = tuple(variant.section for variant in variants)
    file = msgspec.structs.replace(file, workload=own, sampling=sampling, report=report, backend=sections)
    _check_precision(path, "sampling", sampling)
    envelope = _nominal_envelope(path, file.envelope)
    choices = tuple(_resolve_backends(path, variants, backends, envelope))
    scenarios = tuple(_resolve_scenarios(path, file.experiment, workloads, sampling, envelope))
    _check_metrics(path, file, scenarios)
    _check_servers(path, choices, scenarios)
    return SuiteSpec(path, file, choices, scenarios)


def _check_baseline(path: Path, wanted: str, variants: "Sequence[_Variant]") -> None:
    names = [variant.name for variant in variants]
    if wanted and wanted not in names:
        raise SuiteError(f"{path}: report.baseline", f"no backend is called {wanted!r}; there are: {', '.join(names)}")


def _nominal_envelope(path: Path, section: EnvelopeSection) -> Envelope:
    """The envelope on the CPUs that it names, or on as many as it asks for: what needs no host is checked with it."""
    if section.cpu_quota is not None and section.cpu_quota > section.cpu_count:
        problem = f"must be from 0.01 to {section.cpu_count}, the envelope's CPUs, not {section.cpu_quota:g}"
        raise SuiteError(f"{path}: envelope.cpu_quota", problem)
    return section.on(tuple(range(section.cpus)) if isinstance(section.cpus, int) else section.cpus)


def _choose_cpus(path: Path, wanted: int | tuple[int, ...], usable: tuple[int, ...]) -> tuple[int, ...]:
    """Host CPUs for the instances: the last ones that this process may use, so that the first stay tare's own."""
    if isinstance(wanted, int):
        if wanted > len(usable):
            raise SuiteError(f"{path}: envelope.cpus", f"asks for {wanted} CPUs; this host offers {len(usable)}")
        return usable[-wanted:]
    missing = sorted(set(wanted) - set(usable))
    if missing or len(set(wanted)) != len(wanted):
        problem = f"CPU {missing[0]} is not usable here ({list(usable)})" if missing else "must name each CPU once"
        raise SuiteError(f"{path}: envelope.cpus", problem)
    return tuple(sorted(wanted))


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


def _check_precision(path: Path, key: str, sampling: Sampling) -> None:
    precision, most = sampling.precision, sampling.max_blocks
    if most is not None and precision and most < sampling.blocks:
        raise SuiteError(f"{path}: {key}.max_blocks", f"must be at least {sampling.blocks}, as many as blocks")
    if most is not None and precision is None:
        raise SuiteError(f"{path}: {key}.max_blocks", "has a meaning only together with a precision")


def _check_metrics(path: Path, file: SuiteFile, scenarios: Sequence[Scenario]) -> None:
    """Every metric that the suite says something about is one that its experiments measure."""
    known = {f"{scenario.owner}/{metric.name}": metric.name for scenario in scenarios for metric in scenario.metrics}
    for name in file.metric:
        if name not in known and name not in known.values():
            close = difflib.get_close_matches(name, [*known, *known.values()], n=3)
            listed = ", ".join(close or dict.fromkeys(known.values()))
            problem = "nothing in this suite measures that"
            raise SuiteError(f'{path}: metric."{name}"', problem, remedy=f"measured are: {listed}")


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
        choices.append(BackendChoice(name, plugin, options, key))
    return choices


def _check_servers(path: Path, choices: Sequence[BackendChoice], scenarios: Sequence[Scenario]) -> None:
    """Every backend has a way to where the services of each experiment are to run."""
    places = dict.fromkeys(scenario.experiment.server_place(scenario.options) for scenario in scenarios)
    for choice, place in itertools.product(choices, places):
        try:
            choice.type.check_server(choice.options, place)
        except ValueError as error:
            problem = f"with server = {place.value!r} no way leads there from the backend {choice.name!r}: {error}"
            raise SuiteError(f"{path}: {choice.key}.options", problem) from None


def _resolve_scenarios(
    path: Path,
    sections: Sequence[ExperimentSection],
    workloads: Plugins[Workload],
    sampling: Sampling,
    envelope: Envelope,
) -> list[Scenario]:
    if not sections:
        raise SuiteError(f"{path}: experiment", "the suite names no experiment")
    experiments = find_experiments()
    scenarios: list[Scenario] = []
    for index, section in enumerate(sections):
        key = f"experiment[{index}]"
        experiment = _look_up(experiments, section.kind, f"{path}: {key}.kind")
        own = _own_sampling(sampling, section)
        _check_precision(path, key, own)
        choices = [
            (options, convert(options, experiment.Options, path, f"{key}.options"))
            for options in _each_combination(section.options)
        ]
        workload = _find_workload(path, key, section, experiment, workloads)
        if workload is None:
            scenarios += [Scenario(experiment, None, None, chosen, own, options) for chosen, options in choices]
            continue
        _refuse_shared_names(path, key, section)
        for given in _each_combination(section.params):
            params = convert(given, workload.Params, path, f"{key}.params")
            commands = _check_commands(path, key, workload, params, envelope)
            for _, options in choices:
                _check_options(path, key, experiment, options, commands)
            scenarios += [
                Scenario(experiment, workload, params, {**given, **chosen}, own, options) for chosen, options in choices
            ]
    names = [scenario.cell("").key for scenario in scenarios]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise SuiteError(f"{path}: experiment", f"{twice.rstrip('/')} is there twice")
    return scenarios


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
    given = {name: getattr(section, name, None) for name in Sampling.__struct_fields__}
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


def _with_own_workloads(
    path: Path, sections: Sequence[Mapping[str, Any]], registered: Plugins[Workload]
) -> tuple[Plugins[Workload], tuple[Mapping[str, Any], ...]]:
    """The registered workloads and the suite's own, and the sections with all that they take from files read in.

    A section is of the kind (``tare.workload_kinds``) whose name is one of its keys.
    """
    if not sections:
        return registered, ()
    kinds = find_workload_kinds()
    own: dict[str, type[Workload]] = {}
    complete = []
    for index, raw in enumerate(sections):
        key = f"workload[{index}]"
        kind = _kind_of(path, key, raw, kinds)
        section = convert(raw, kind.Section, path, key)
        for names, where in (
            (registered.loaded, "tare has"),
            (registered.failures, "tare has"),
            (own, "the suite has"),
        ):
            if section.name in names:
                raise SuiteError(f"{path}: {key}.name", f"{where} a workload {section.name!r} already")
        try:
            section = kind().complete(section, path.parent)
        except ValueError as error:
            raise SuiteError(f"{path}: {key}", str(error)) from None
        except OSError as error:
            raise SuiteError(f"{path}: {key}.{kind.name}", f"{error.filename}: {error.strerror}") from None
        own[section.name] = kind().make(section)
        complete.append(msgspec.to_builtins(section, enc_hook=str))
    return Plugins(registered.kind, {**registered.loaded, **own}, registered.failures), tuple(complete)


def _kind_of(path: Path, key: str, section: Mapping[str, Any], kinds: Plugins[WorkloadKind]) -> type[WorkloadKind]:
    stated = sorted(set(section) & {*kinds.loaded, *kinds.failures})
    if len(stated) == 1:
        return kinds.get(stated[0])
    known = ", ".join(f"{name} ({kind.summary})" for name, kind in sorted(kinds.loaded.items()))
    problem = f"{' and '.join(stated)} are there, and only one can be" if stated else "says nothing of what it runs"
    raise SuiteError(f"{path}: {key}", problem, remedy=f"state one of: {known}")


def _look_up(plugins: Plugins[_T], name: str, place: str) -> type[_T]:
    try:
        return plugins.get(name)
    except UnknownNameError as error:
        raise SuiteError(place, error.message) from None
