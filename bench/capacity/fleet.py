"""Fleet files: several types of hosts, and a mix of instance types with how many of each are wanted."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from tare.bench.capacity.hosts import OVERCOMMITTED, HostType
from tare.bench.capacity.instances import Basis
from tare.bench.errors import SuiteError
from tare.bench.suite_file import Count, Section, convert, read_toml
from tare.bench.units import Size

Positive = Annotated[float, Meta(gt=0, le=1e9)]


class OvercommitSection(Section, frozen=True):
    """``overcommit``: the overcommit factor of each resource."""

    cpu: Positive | None = None
    memory: Positive | None = None
    disk: Positive | None = None


class ReserveSection(Section, frozen=True):
    """``reserve``: what a host keeps, in CPUs or bytes."""

    cpu: Annotated[float, Meta(ge=0)] | None = None
    memory: Size | None = None
    disk: Size | None = None


class HostSection(Section, frozen=True):
    """``[[host]]``: sizes are written like ``512GiB``."""

    name: str
    cpus: Positive
    memory: Size
    disk: Size | None = None
    count: Count | None = None
    overcommit: OvercommitSection = OvercommitSection()
    reserve: ReserveSection = ReserveSection()


class DemandSection(Section, frozen=True):
    """``[[demand]]``: ``run`` is a folder of a density run, in the file relative to it.

    ``cpus``, ``memory`` and ``disk`` are limits of its instances, where those are others than when they were measured.
    """

    name: str
    run: str
    backend: str
    instances: Count
    workload: str | None = None
    cpus: Positive | None = None
    memory: Size | None = None
    disk: Size | None = None
    basis: Basis = Basis.AUTO
    raised: tuple[str, ...] = ()

    @property
    def limits(self) -> dict[str, float]:
        """The limits that are stated."""
        given = {"cpus": self.cpus, "memory": self.memory, "disk": self.disk}
        return {name: float(value) for name, value in given.items() if value is not None}


class _FleetFile(Section, frozen=True):
    host: Annotated[tuple[HostSection, ...], Meta(min_length=1)]
    demand: Annotated[tuple[DemandSection, ...], Meta(min_length=1)]


class Fleet(msgspec.Struct, frozen=True):
    """A fleet file, checked."""

    hosts: tuple[HostType, ...]
    demands: tuple[DemandSection, ...]


def load_fleet(path: Path) -> Fleet:
    """Read a fleet file. Raises SuiteError with the file and the key."""
    file = convert(read_toml(path), _FleetFile, path, "")
    for key, names in (("host", [one.name for one in file.host]), ("demand", [one.name for one in file.demand])):
        double = next((name for name in names if names.count(name) > 1), None)
        if double is not None:
            raise SuiteError(f"{path}: {key}", f"two are named {double!r}")
    return Fleet(
        tuple(_host(section, f"{path}: host[{number}]") for number, section in enumerate(file.host)),
        tuple(msgspec.structs.replace(one, run=str(path.parent / one.run)) for one in file.demand),
    )


def read_host(given: Mapping[str, Any], place: Path) -> HostType:
    """A host from the values of a ``[[host]]`` that stands at ``place``. Raises SuiteError with the key."""
    return _host(convert(dict(given), HostSection, place, "host[0]"), f"{place}: host[0]")


def _host(section: HostSection, place: str) -> HostType:
    host = HostType(
        name=section.name,
        cpus=section.cpus,
        memory=int(section.memory),
        disk=None if section.disk is None else int(section.disk),
        count=section.count,
        overcommit=_by_resource(section.overcommit),
        reserve=_by_resource(section.reserve),
    )
    for resource in OVERCOMMITTED:
        if host.reserved(resource) >= host.has(resource):
            raise SuiteError(f"{place}.reserve.{resource}", "leaves nothing of it for instances")
    return host


def _by_resource(section: OvercommitSection | ReserveSection) -> dict[Any, float]:
    found = {resource: getattr(section, resource.value) for resource in OVERCOMMITTED}
    return {resource: float(value) for resource, value in found.items() if value is not None}
