"""Fleet files: several types of hosts, and a mix of instance types with how many of each are wanted."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from tare.bench.capacity.growth import Projection, parse_rate, project_history, project_rate, read_demand
from tare.bench.capacity.hosts import OVERCOMMITTED, HostType
from tare.bench.capacity.instances import Basis
from tare.bench.capacity.reserves import Reserve
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


class SpareSection(Section, frozen=True):
    """``[spare]``: losses to survive: hosts, or one of ``domains`` failure domains; and hosts in maintenance."""

    hosts: Annotated[int, Meta(ge=0, le=1000)] = 0
    domain: str = "domain"
    domains: Annotated[int, Meta(ge=2, le=1000)] | None = None
    maintenance: Annotated[float, Meta(ge=0, lt=1, description="a share such as 0.05")] = 0.0

    @property
    def reserve(self) -> Reserve:
        """The same, as it is planned for."""
        return Reserve(self.hosts, self.domains, self.domain, self.maintenance)


class DemandSection(Section, frozen=True):
    """``[[demand]]``: ``run`` is a folder of a density run, in the file relative to it.

    It grows by the rate ``growth``, or as the CSV file ``history`` says, which is relative to the file too. ``cpus``,
    ``memory`` and ``disk`` are limits of its instances, where those are others than when they were measured.
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
    growth: str = ""
    history: str = ""

    @property
    def limits(self) -> dict[str, float]:
        """The limits that are stated."""
        given = {"cpus": self.cpus, "memory": self.memory, "disk": self.disk}
        return {name: float(value) for name, value in given.items() if value is not None}


class _FleetFile(Section, frozen=True):
    host: Annotated[tuple[HostSection, ...], Meta(min_length=1)]
    demand: Annotated[tuple[DemandSection, ...], Meta(min_length=1)]
    spare: SpareSection | None = None


class Fleet(msgspec.Struct, frozen=True):
    """A fleet file, checked. ``projections`` go with the demands; None where one does not grow."""

    hosts: tuple[HostType, ...]
    demands: tuple[DemandSection, ...]
    projections: tuple[Projection | None, ...]
    reserve: Reserve | None


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
        tuple(_projection(one, path, f"{path}: demand[{number}]") for number, one in enumerate(file.demand)),
        None if file.spare is None else file.spare.reserve,
    )


def _projection(demand: DemandSection, path: Path, place: str) -> Projection | None:
    if demand.growth and demand.history:
        raise SuiteError(f"{place}.growth", "and history exclude each other")
    if demand.history:
        return project_history(read_demand(path.parent / demand.history)[1])
    return project_growth(demand.instances, demand.growth, f"{place}.growth") if demand.growth else None


def project_growth(now: float, rate: str, place: str) -> Projection:
    """Demand ``now`` that grows by a rate as it is written. Raises SuiteError at ``place``."""
    try:
        return project_rate(now, parse_rate(rate))
    except ValueError as error:
        raise SuiteError(place, str(error)) from None


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
