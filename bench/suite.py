"""Reads a suite: a TOML file becomes a resolved, checked value, or one message with the file and the key.

A suite states the image, the envelope, the sampling policy, the backends and the experiments once, for every
backend alike. Lists in ``params`` make one cell a value, lists in the options of a backend one backend a value.
"""

import contextlib
import difflib
import itertools
import os
import secrets
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from tare.bench.errors import SuiteError, TareError, UnknownNameError, WorkloadError
from tare.bench.interfaces import Backend, Experiment, NoOptions, Workload, WorkloadKind
from tare.bench.model import Envelope, Metric
from tare.bench.records import Cell
from tare.bench.registry import Plugins, find_experiments, find_workload_kinds
from tare.bench.suite_file import (
    BackendSection,
    EnvelopeSection,
    ExperimentSection,
    Sampling,
    SuiteFile,
    convert,
    read_source,
)
from tare.bench.units import format_size, parse_bound

_MOST_INSTANCES = 1_000_000
"""Instances of a run: at a millisecond each they would take a quarter of an hour, at a minute two years."""

_SEEDS = 10**9
"""Of these a seed is drawn: short enough to be typed again."""


class BackendChoice(msgspec.Struct, frozen=True):
    """A backend of the suite, its class and its checked options; ``key`` is its section's in the file.

    ``image`` names an image of its own; empty for the suite's.
    """

    name: str
    type: type[Backend]
    options: Any
    key: str = ""
    image: str = ""


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

    def plugins(self) -> set[type]:
        """The classes of its backends, experiments and workloads, and of what made workloads of the suite's own."""
        used: set[type] = {choice.type for choice in self.backends}
        for scenario in self.scenarios:
            used |= {type(scenario.experiment), type(scenario.workload)}
        return used | {
            kind for name, kind in find_workload_kinds().loaded.items() for own in self.file.workload if name in own
        }

    def packages(self) -> tuple[str, ...]:
        """The packages that the image needs: the suite's own, the backends' and the workloads'."""
        needed = set(self.file.image.packages)
        for choice in self.backends:
            needed.update(choice.type.packages(choice.options))
        for scenario in self.scenarios:
            needed.update(scenario.workload.packages if scenario.workload else ())
        return tuple(sorted(needed))


class Suite(SuiteSpec, frozen=True):
    """A suite bound to a host: on these CPUs of it, with instances in this folder (tare's own if None).

    ``seed`` decides on the order of the run. It is drawn if the file states none, and stands in ``file`` then.
    """

    envelope: Envelope
    storage: Path | None
    seed: int


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
        except Exception as error:
            raise SuiteError(f"{spec.path}: {choice.key}.options", _said(error)) from error
    storage = Path(section.storage).expanduser() if section.storage else None
    if storage is not None and not storage.is_dir():
        raise SuiteError(f"{spec.path}: envelope.storage", f"{storage} is not a folder")
    sampling = spec.sampling
    seed = secrets.randbelow(_SEEDS) if sampling.seed is None else sampling.seed
    file = msgspec.structs.replace(spec.file, sampling=msgspec.structs.replace(sampling, seed=seed))
    return Suite(spec.path, file, spec.backends, spec.scenarios, envelope, storage, seed)


def read_suite(path: Path, backends: Plugins[Backend], workloads: Plugins[Workload]) -> SuiteSpec:
    """Read and resolve a suite file. Raises SuiteError with the file and the key, whatever is wrong."""
    return resolve_suite(read_source(path), path, backends, workloads)


def resolve_suite(
    raw: Mapping[str, Any],
    path: Path,
    backends: Plugins[Backend],
    workloads: Plugins[Workload],
    *,
    only: Sequence[str] = (),
    seed: int | None = None,
) -> SuiteSpec:
    """Resolve a suite that was read from ``path``: a file, the manifest of a run that goes on, or a command's name.

    ``only`` keeps these backends, ``seed`` replaces the suite's. Raises as ``read_suite``.
    """
    if seed is not None and isinstance(raw.get("sampling", {}), Mapping):
        raw = {**raw, "sampling": {**raw.get("sampling", {}), "seed": seed}}
    if isinstance(raw.get("image"), str):
        raw = {**raw, "image": {"use": raw["image"]}}
    return _Resolver(path, convert(raw, SuiteFile, path, "")).resolved(backends, workloads, only)


class _Variant(NamedTuple):
    """A backend of the suite, with one value for each option; ``given`` is the name of the section it comes from."""

    key: str
    given: str
    section: BackendSection

    @property
    def name(self) -> str:
        return self.section.name or self.section.type


class _Resolver:
    """Looks up and checks what a suite file says. Whatever is wrong is a SuiteError with the file and the key."""

    def __init__(self, path: Path, file: SuiteFile) -> None:
        self.path = path
        self.file = file
        self.envelope = self._nominal_envelope(file.envelope)

    def refusal(self, key: str, problem: str, remedy: str | None = None) -> SuiteError:
        return SuiteError(f"{self.path}: {key}", problem, remedy=remedy)

    @contextlib.contextmanager
    def refused_at(self, key: str) -> Iterator[None]:
        """What a plug-in refuses is refused at ``key``."""
        try:
            yield
        except (WorkloadError, UnknownNameError) as error:
            raise self.refusal(key, error.message) from None
        except (TareError, OSError):
            raise
        except Exception as error:
            raise self.refusal(key, _said(error)) from error

    def resolved(self, backends: Plugins[Backend], workloads: Plugins[Workload], only: Sequence[str]) -> SuiteSpec:
        file = self.file
        workloads, own = self._with_own_workloads(workloads)
        variants, baseline = self._variants(only)
        self._check_precision("sampling", file.sampling)
        choices = tuple(self._backends(variants, backends))
        scenarios = tuple(self._scenarios(workloads))
        self._check_size(choices, scenarios)
        self._check_metrics(scenarios)
        self._check_requirements(scenarios)
        self._check_servers(choices, scenarios)
        file = msgspec.structs.replace(
            file,
            image=file.image.located(self.path.parent),
            workload=own,
            backend=tuple(variant.section for variant in variants),
            report=msgspec.structs.replace(file.report, baseline=baseline),
        )
        return SuiteSpec(self.path, file, choices, scenarios)

    def _nominal_envelope(self, section: EnvelopeSection) -> Envelope:
        """On the CPUs that the section names, or on as many as it asks for: what needs no host is checked with it."""
        cpus = tuple(range(section.cpus)) if isinstance(section.cpus, int) else section.cpus
        if section.cpu_quota is not None and section.cpu_quota > len(cpus):
            problem = f"must be from 0.01 to {len(cpus)}, the envelope's CPUs, not {section.cpu_quota:g}"
            raise self.refusal("envelope.cpu_quota", problem)
        if len(set(cpus)) != len(cpus):
            raise self.refusal("envelope.cpus", "must name each CPU once")
        return section.on(cpus)

    def _variants(self, only: Sequence[str]) -> tuple[list[_Variant], str]:
        """The backends that ``only`` keeps, one by one or all of a section, and the baseline if it is among them."""
        variants = [
            one for index, section in enumerate(self.file.backend) for one in self._each_variant(index, section)
        ]
        names = [variant.name for variant in variants]
        baseline = self.file.report.baseline
        if baseline and baseline not in names:
            known = ", ".join(names)
            raise self.refusal("report.baseline", f"no backend is called {baseline!r}; there are: {known}")
        for name in only:
            if not any(name in {variant.name, variant.given} for variant in variants):
                raise self.refusal("backend", f"--backend {name}: the suite has {', '.join(names)}")
        kept = [one for one in variants if not only or not {one.name, one.given}.isdisjoint(only)]
        return kept, baseline if any(one.name == baseline for one in kept) else ""

    def _each_variant(self, index: int, section: BackendSection) -> Iterator[_Variant]:
        """A list among the options is a dimension: one backend a value, which its name then holds."""
        key, given = f"backend[{index}]", section.name or section.type
        for option, value in section.options.items():
            if value == []:
                raise self.refusal(f"{key}.options.{option}", "is a list without a value")
        several = [option for option, value in section.options.items() if isinstance(value, list) and len(value) > 1]
        for options in _each_combination(section.options):
            named = ",".join(f"{option}={_as_written(options[option])}" for option in several)
            name = f"{given}:{named}" if named else section.name
            yield _Variant(key, given, msgspec.structs.replace(section, name=name, options=options))

    def _backends(self, variants: Sequence[_Variant], plugins: Plugins[Backend]) -> Iterator[BackendChoice]:
        if not variants:
            raise self.refusal("backend", "the suite names no backend")
        names: set[str] = set()
        for variant in variants:
            key, section, name = variant.key, variant.section, variant.name
            with self.refused_at(f"{key}.type"):
                plugin = plugins.get(section.type)
            if name in names:
                raise self.refusal(f"{key}.name", f"{name!r} is there twice; give each its own name")
            names.add(name)
            if self.envelope.memory_bytes < plugin.minimum_memory_bytes:
                least = f"{plugin.minimum_memory_bytes // 2**20}MiB"
                given = f"{self.envelope.memory_bytes // 2**20}MiB"
                raise self.refusal(
                    "envelope.memory",
                    f"{given} is too little for the backend {name!r}, which needs {least}",
                    f"state at least {least}, or leave that backend out",
                )
            options = convert(section.options, plugin.Options, self.path, f"{key}.options")
            yield BackendChoice(name, plugin, options, key, section.image)

    def _scenarios(self, workloads: Plugins[Workload]) -> list[Scenario]:
        if not self.file.experiment:
            raise self.refusal("experiment", "the suite names no experiment")
        experiments = find_experiments()
        scenarios: list[Scenario] = []
        for index, section in enumerate(self.file.experiment):
            key = f"experiment[{index}]"
            with self.refused_at(f"{key}.kind"):
                experiment = experiments.get(section.kind)
            scenarios += self._scenarios_of(
                key, section, experiment, self._workload(key, section, experiment, workloads)
            )
        names = Counter(scenario.key for scenario in scenarios)
        twice = [name for name, count in names.items() if count > 1]
        if twice:
            raise self.refusal("experiment", f"{twice[0]} is there twice")
        return scenarios

    def _scenarios_of(
        self, key: str, section: ExperimentSection, experiment: type[Experiment], workload: type[Workload] | None
    ) -> Iterator[Scenario]:
        """One for each combination of the workload's parameters and the experiment's options."""
        own = {name: getattr(section, name, None) for name in Sampling.__struct_fields__}
        stated = {name: value for name, value in own.items() if value is not None}
        sampling = msgspec.structs.replace(self.file.sampling, **stated)
        self._check_precision(key, sampling)
        for name, values in {"params": section.params, "options": section.options}.items():
            if empty := [one for one, value in values.items() if value == []]:
                raise self.refusal(f"{key}.{name}.{empty[0]}", "is a list without a value")
        choices = [
            (chosen, convert(chosen, experiment.Options, self.path, f"{key}.options"))
            for chosen in _each_combination(section.options)
        ]
        for given in _each_combination(section.params):
            params = convert(given, workload.Params, self.path, f"{key}.params") if workload else None
            commands = None
            if workload is not None:
                with self.refused_at(f"{key}.params"):  # workloads are pure: what they refuse is known already
                    commands = workload().commands(params, self.envelope)
            for _, options in choices:
                with self.refused_at(f"{key}.options"):
                    experiment.check(options, commands)
            for chosen, options in choices:
                yield Scenario(experiment, workload, params, {**given, **chosen}, sampling, options)

    def _workload(
        self, key: str, section: ExperimentSection, experiment: type[Experiment], workloads: Plugins[Workload]
    ) -> type[Workload] | None:
        if not section.workload:
            if experiment.needs_workload:
                raise self.refusal(f"{key}.workload", f"the experiment {section.kind!r} needs a workload")
            if section.params:
                raise self.refusal(f"{key}.params", "no workload is named that these could apply to")
            return None
        if not (experiment.needs_workload or experiment.takes_workload):
            raise self.refusal(f"{key}.workload", f"the experiment {section.kind!r} runs no workload")
        shared = sorted(set(section.params) & set(section.options))
        if shared:  # both stand in a cell's name and records, where they have to be told apart
            raise self.refusal(f"{key}.options", f"{shared[0]!r} is also a parameter of the workload")
        with self.refused_at(f"{key}.workload"):
            return workloads.get(section.workload)

    def _check_precision(self, key: str, sampling: Sampling) -> None:
        precision, most = sampling.precision, sampling.max_blocks
        if most is not None and precision and most < sampling.blocks:
            raise self.refusal(f"{key}.max_blocks", f"must be at least {sampling.blocks}, as many as blocks")
        if most is not None and precision is None:
            raise self.refusal(f"{key}.max_blocks", "is allowed only together with a precision")

    def _check_size(self, choices: Sequence[BackendChoice], scenarios: Sequence[Scenario]) -> None:
        """The design, which is held in memory, fits there."""
        instances = len(choices) * sum(one.sampling.blocks * one.sampling.instances for one in scenarios)
        if instances > _MOST_INSTANCES:
            problem = f"the blocks and instances of all cells make {instances}, more than the {_MOST_INSTANCES} allowed"
            raise self.refusal("sampling", problem, "lower blocks or instances")

    def _check_metrics(self, scenarios: Sequence[Scenario]) -> None:
        """Every metric that the suite says something about is one that its experiments measure."""
        known = {
            f"{scenario.owner}/{metric.name}": metric.name for scenario in scenarios for metric in scenario.metrics
        }
        for name in self.file.metric:
            if name not in known and name not in known.values():
                close = difflib.get_close_matches(name, [*known, *known.values()], n=3)
                listed = ", ".join(close or dict.fromkeys(known.values()))
                raise self.refusal(f'metric."{name}"', "nothing in this suite measures that", f"measured are: {listed}")

    def _check_requirements(self, scenarios: Sequence[Scenario]) -> None:
        """Every bound of a requirement is on a metric that is measured, in that metric's unit."""
        measured = [(one.owner, metric) for one in scenarios for metric in one.metrics]
        for place, required in enumerate(self.file.requirement):
            if not required.metric:
                continue
            key = f"requirement[{place}]"
            found = [metric for owner, metric in measured if required.metric in (f"{owner}/{metric.name}", metric.name)]
            if not found:
                names = list(dict.fromkeys(f"{owner}/{metric.name}" for owner, metric in measured))
                close = difflib.get_close_matches(required.metric, names, n=3)
                remedy = f"measured are: {', '.join(close or names)}"
                raise self.refusal(f"{key}.metric", "nothing in this suite measures that", remedy)
            for name in ("at_most", "at_least"):
                with self.refused_at(f"{key}.{name}"):
                    parse_bound(getattr(required, name), found[0].unit)

    def _check_servers(self, choices: Sequence[BackendChoice], scenarios: Sequence[Scenario]) -> None:
        """Every backend has a network route to where the services of each experiment are to run."""
        places = dict.fromkeys(scenario.experiment.server_place(scenario.options) for scenario in scenarios)
        for choice, place in itertools.product(choices, places):
            try:
                choice.type.check_server(choice.options, place)
            except ValueError as error:
                problem = f"the backend {choice.name!r} has no network route to server = {place.value!r}: {error}"
                raise self.refusal(f"{choice.key}.options", problem) from None

    def _with_own_workloads(
        self, registered: Plugins[Workload]
    ) -> tuple[Plugins[Workload], tuple[Mapping[str, Any], ...]]:
        """The registered workloads and the suite's own, and the sections with all that they take from files read in.

        A section is of the kind (``tare.workload_kinds``) whose name is one of its keys.
        """
        own: dict[str, type[Workload]] = {}
        complete = []
        kinds = find_workload_kinds() if self.file.workload else Plugins("workload kind", {}, {})
        for index, raw in enumerate(self.file.workload):
            key = f"workload[{index}]"
            kind = self._kind_of(key, raw, kinds)
            section = convert(raw, kind.Section, self.path, key)
            known = {**registered.loaded, **registered.failures}
            if section.name in known or section.name in own:
                where = "tare" if section.name in known else "the suite"
                raise self.refusal(f"{key}.name", f"{where} has a workload {section.name!r} already")
            try:
                with self.refused_at(key):
                    section = kind().complete(section, self.path.parent)
            except OSError as error:
                raise self.refusal(f"{key}.{kind.name}", f"{error.filename}: {error.strerror}") from None
            own[section.name] = kind().make(section)
            complete.append(msgspec.to_builtins(section, enc_hook=str))
        return Plugins(registered.kind, {**registered.loaded, **own}, registered.failures), tuple(complete)

    def _kind_of(self, key: str, section: Mapping[str, Any], kinds: Plugins[WorkloadKind]) -> type[WorkloadKind]:
        shared = {key for kind in kinds.loaded.values() for key in _keys_of(kind) if key != kind.name}
        stated = sorted(
            name
            for name in {*kinds.loaded, *kinds.failures}.intersection(section)
            if name not in shared or section[name] is True
        )
        if len(stated) == 1:
            return kinds.get(stated[0])
        known = ", ".join(f"{name} ({kind.summary})" for name, kind in sorted(kinds.loaded.items()))
        problem = (
            f"{' and '.join(stated)} are given, and only one is allowed" if stated else "does not say what it runs"
        )
        raise self.refusal(key, problem, f"state one of: {known}")


def _keys_of(kind: type[WorkloadKind]) -> tuple[str, ...]:
    return tuple(field.encode_name for field in msgspec.structs.fields(kind.Section))


def _said(error: Exception) -> str:
    """What a plug-in says by ValueError is for the user; anything else is a defect of it."""
    return str(error) if isinstance(error, ValueError) else f"the plug-in is at fault: {type(error).__name__}: {error}"


def _choose_cpus(path: Path, wanted: int | tuple[int, ...], usable: tuple[int, ...]) -> tuple[int, ...]:
    """Host CPUs for the instances: the last ones that this process may use, so that the first stay tare's own."""
    if isinstance(wanted, int):
        if wanted > len(usable):
            raise SuiteError(f"{path}: envelope.cpus", f"asks for {wanted} CPUs; this host offers {len(usable)}")
        return usable[-wanted:]
    if missing := sorted(set(wanted) - set(usable)):
        raise SuiteError(f"{path}: envelope.cpus", f"CPU {missing[0]} is not usable here ({list(usable)})")
    return tuple(sorted(wanted))


def _each_combination(params: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every combination of the values given: a list is a dimension, one cell a value."""
    values = [value if isinstance(value, list) else [value] for value in params.values()]
    return [dict(zip(params, combination, strict=True)) for combination in itertools.product(*values)]


def _as_written(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
