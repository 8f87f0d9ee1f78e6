"""Finds plug-ins through entry points. The built-ins come through the same door as anybody's."""

import inspect
import itertools
from collections.abc import Collection, Mapping, Sequence
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, TypeVar

import msgspec

from tare.bench.errors import UnavailableError, UnknownNameError
from tare.bench.history.forms import GateForm, HistorySite
from tare.bench.interfaces import Backend, Experiment, Workload, WorkloadKind
from tare.bench.readable import readable
from tare.bench.reporter import Reporter

_Plugin = TypeVar("_Plugin")
_OURS = "tarebench"


class PluginFailure(msgspec.Struct, frozen=True):
    """A plug-in that is registered and cannot be used."""

    name: str
    value: str
    reason: str


class Plugins(Generic[_Plugin]):
    """The plug-ins of one kind: those that load by name, and those that do not with the reason."""

    def __init__(
        self,
        kind: str,
        loaded: Mapping[str, type[_Plugin]],
        failures: Mapping[str, PluginFailure],
        origins: Mapping[str, str] | None = None,
    ) -> None:
        self.kind = kind
        self.loaded = loaded
        self.failures = failures
        self.origins = origins or {}
        """The distributions of those that do not come with tare, with their versions, by the plug-in's name."""

    def get(self, name: str) -> type[_Plugin]:
        """The class registered as ``name``.

        Raises UnknownNameError with the known names, UnavailableError if it failed to load.
        """
        if name in self.loaded:
            return self.loaded[name]
        if name in self.failures:
            failure = self.failures[name]
            raise UnavailableError(f"the {self.kind} {name!r} ({failure.value}) cannot be loaded: {failure.reason}")
        known = ", ".join(sorted(self.loaded)) or "none"
        raise UnknownNameError(f"there is no {self.kind} {name!r}; there are: {known}")


def find_backends() -> Plugins[Backend]:
    """Every registered backend."""
    return _load("backend", Backend)  # type: ignore[type-abstract]  # the class is only compared with, never made


def find_workloads() -> Plugins[Workload]:
    """Every registered workload."""
    return _load("workload", Workload)  # type: ignore[type-abstract]  # as above


def find_workload_kinds() -> Plugins[WorkloadKind]:
    """Every registered kind of ``[[workload]]``."""
    return _load("workload_kind", WorkloadKind)  # type: ignore[type-abstract]  # as above


def find_experiments() -> Plugins[Experiment]:
    """Every registered experiment."""
    return _load("experiment", Experiment)  # type: ignore[type-abstract]  # as above


def find_reporters() -> Plugins[Reporter]:
    """Every registered reporter."""
    return _load("reporter", Reporter)  # type: ignore[type-abstract]  # as above


def find_gate_forms() -> Plugins[GateForm]:
    """Every registered form of a gate's judgement."""
    return _load("gate_form", GateForm)  # type: ignore[type-abstract]  # as above


def find_history_sites() -> Plugins[HistorySite]:
    """Every registered form of a history's pages."""
    return _load("history_site", HistorySite)  # type: ignore[type-abstract]  # as above


def origins_of(used: Collection[type]) -> dict[str, str]:
    """Which distributions brought these classes, with their versions: ``{"workload mine": "my-plugins 1.2"}``.

    What comes with tare is left out.
    """
    every: tuple[Plugins[Any], ...] = (find_backends(), find_workloads(), find_workload_kinds(), find_experiments())
    return {
        f"{plugins.kind} {name}": origin
        for plugins in every
        for name, origin in plugins.origins.items()
        if plugins.loaded[name] in used
    }


def _load(kind: str, base: type[_Plugin]) -> Plugins[_Plugin]:
    loaded: dict[str, type[_Plugin]] = {}
    failures: dict[str, PluginFailure] = {}
    origins: dict[str, str] = {}
    found = sorted(entry_points(group=f"tare.{kind}s"), key=lambda point: point.name)
    for name, same in itertools.groupby(found, key=lambda point: point.name):
        points = tuple(same)
        try:
            loaded[name] = _load_one(points, base)
        except Exception as error:  # noqa: BLE001 - whatever somebody's module raises must not stop the others
            reason = readable(f"{type(error).__name__}: {error}")
            failures[name] = PluginFailure(name, " and ".join(point.value for point in points), reason)
        else:
            if points[0].dist and points[0].dist.name != _OURS:
                origins[name] = _origin(points[0])
    return Plugins(kind.replace("_", " "), loaded, failures, origins)


def _origin(point: EntryPoint) -> str:
    return f"{point.dist.name} {point.dist.version}" if point.dist else ""


def _load_one(points: Sequence[EntryPoint], base: type[_Plugin]) -> type[_Plugin]:
    if len(points) > 1:
        both = " and ".join(map(_origin, points))
        raise TypeError(f"{both} both register this name; uninstall all but one of them")
    (point,) = points
    plugin = point.load()
    if not (isinstance(plugin, type) and issubclass(plugin, base)):
        raise TypeError(f"{point.value} is not a subclass of {base.__module__}.{base.__name__}")
    missing: frozenset[str] = getattr(plugin, "__abstractmethods__", frozenset())
    if missing:
        raise TypeError(f"{point.value} does not implement {', '.join(sorted(missing))}")
    undeclared = [name for name in inspect.get_annotations(base) if not hasattr(plugin, name)]
    if undeclared:
        raise TypeError(f"{point.value} does not declare {', '.join(undeclared)}")
    return plugin
