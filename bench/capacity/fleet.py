"""Fleet files: several types of hosts, and a mix of instance types with how many of each are wanted."""

import re
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec

from tare.bench.capacity.hosts import OVERCOMMITTED, HostType, Resource, find_problem
from tare.bench.capacity.instance_types import Bound
from tare.bench.capacity.needs import Promise
from tare.bench.errors import SuiteError
from tare.bench.units import parse_size

_PLACE = re.compile(r"^(?P<problem>.*?)(?: - at `\$\.?(?P<key>.*)`)?$", re.DOTALL)
RESERVED = OVERCOMMITTED


class _Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Unknown keys are refused."""


class _HostSection(_Section, frozen=True):
    """``[[host]]``: sizes are written like ``512GiB``."""

    name: str
    cpus: float
    memory: str
    disk: str = ""
    count: int | None = None
    overcommit: Mapping[str, float] = {}
    reserve: Mapping[str, str | float] = {}


class _DemandSection(_Section, frozen=True):
    """``[[demand]]``: ``run`` is a folder of a density run, relative to the file."""

    name: str
    run: str
    backend: str
    instances: int
    workload: str | None = None
    cpus: float | None = None
    memory: str = ""
    disk: str = ""
    bound: Bound = Bound.AUTO
    raised: tuple[str, ...] = ()


class _FleetFile(_Section, frozen=True):
    host: tuple[_HostSection, ...]
    demand: tuple[_DemandSection, ...]


class WantedType(msgspec.Struct, frozen=True):
    """One demand of a fleet file: where its instances were measured, and how many are wanted."""

    name: str
    run: Path
    backend: str
    workload: str | None
    instances: int
    promise: Promise
    bound: Bound
    raised: tuple[str, ...]


class Fleet(msgspec.Struct, frozen=True):
    """A fleet file, checked."""

    hosts: tuple[HostType, ...]
    demands: tuple[WantedType, ...]


def load_fleet(path: Path) -> Fleet:
    """Read a fleet file. Raises SuiteError with the file and the key."""
    try:
        source = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise SuiteError(
            str(path), error.strerror or str(error), remedy="name a fleet file, see docs/plan.md"
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SuiteError(str(path), f"not TOML: {error}") from None
    try:
        file = msgspec.convert(source, _FleetFile)
    except msgspec.ValidationError as error:
        match = _PLACE.match(str(error))
        assert match is not None
        place = f"{path}: {match['key']}" if match["key"] else str(path)
        raise SuiteError(place, match["problem"], remedy="docs/plan.md has an example with all keys") from None
    for key, names in (("host", [one.name for one in file.host]), ("demand", [one.name for one in file.demand])):
        if not names:
            raise SuiteError(f"{path}: {key}", "is empty")
        double = next((name for name in names if names.count(name) > 1), None)
        if double is not None:
            raise SuiteError(f"{path}: {key}", f"two are named {double!r}")
    return Fleet(
        tuple(_host(section, f"{path}: host[{number}]") for number, section in enumerate(file.host)),
        tuple(_demand(section, f"{path}: demand[{number}]", path.parent) for number, section in enumerate(file.demand)),
    )


def _host(section: _HostSection, place: str) -> HostType:
    host = HostType(
        name=section.name,
        cpus=section.cpus,
        memory=_size(section.memory, f"{place}.memory"),
        disk=_size(section.disk, f"{place}.disk") if section.disk else None,
        count=section.count,
        overcommit=parse_overcommit(section.overcommit, f"{place}.overcommit"),
        reserve=parse_reserve(section.reserve, f"{place}.reserve"),
    )
    return checked(host, place)


def checked(host: HostType, place: str, join: str = ".") -> HostType:
    """The host, if it makes sense. Raises SuiteError with the key."""
    if problem := find_problem(host):
        raise SuiteError(f"{place}{join}{problem[0]}", problem[1])
    return host


def _demand(section: _DemandSection, place: str, folder: Path) -> WantedType:
    if section.instances < 1:
        raise SuiteError(f"{place}.instances", f"must be 1 or more, not {section.instances}")
    if section.cpus is not None and not section.cpus > 0:
        raise SuiteError(f"{place}.cpus", f"must be more than 0, not {section.cpus:g}")
    promise = Promise(
        section.cpus,
        _size(section.memory, f"{place}.memory") if section.memory else None,
        _size(section.disk, f"{place}.disk") if section.disk else None,
    )
    return WantedType(
        name=section.name,
        run=folder / section.run,
        backend=section.backend,
        workload=section.workload,
        instances=section.instances,
        promise=promise,
        bound=section.bound,
        raised=section.raised,
    )


def parse_overcommit(given: Mapping[str, str | float], place: str) -> dict[Resource, float]:
    """Factors by resource. Raises SuiteError with the key."""
    return _by_resource(given, place, lambda _, value: float(value))


def parse_reserve(given: Mapping[str, str | float], place: str) -> dict[Resource, float]:
    """What a host keeps, in CPUs or bytes, by resource. Raises SuiteError with the key."""

    def read(resource: Resource, value: str | float) -> float:
        amount = float(value) if resource is Resource.CPU else float(parse_size(str(value)))
        if not amount >= 0:
            raise ValueError(f"must be 0 or more, not {value}")
        return amount

    return _by_resource(given, place, read)


def _by_resource(
    given: Mapping[str, str | float], place: str, read: Callable[[Resource, str | float], float]
) -> dict[Resource, float]:
    known = {resource.value: resource for resource in RESERVED}
    found = {}
    for name, value in given.items():
        if name not in known:
            raise SuiteError(f"{place}.{name}", f"there is no such resource; there are: {', '.join(known)}")
        try:
            found[known[name]] = read(known[name], value)
        except ValueError as error:
            raise SuiteError(f"{place}.{name}", str(error)) from None
    return found


def _size(text: str, place: str) -> int:
    try:
        return parse_size(text)
    except ValueError as error:
        raise SuiteError(place, str(error)) from None
