"""Capacity by type of host, from the density ramps of a fleet's hosts, and the fleet file that a plan begins with."""

import math
from collections.abc import Iterator, Mapping, Sequence

import msgspec

from tare.bench.analysis.density import DensityResult
from tare.bench.analysis.fleet import FleetAnalysis
from tare.bench.capacity.hosts import HostType, find_measured_host
from tare.bench.capacity.instances import make_type
from tare.bench.capacity.plan import plan_host
from tare.bench.errors import SuiteError
from tare.bench.records import Manifest
from tare.bench.stats.comparisons import Interval, exponential
from tare.bench.stats.hosts import HostValue, combine_hosts

_OF_95 = 1.959964


class HostCapacity(msgspec.Struct, frozen=True):
    """How many instances of a type one host holds by its own ramp; ``run`` is the run's folder.

    ``is_extrapolated``: too many more than it measured to be an answer.
    """

    host: str
    run: str
    instances: int
    fewest: int | None
    most: int | None
    binds: str
    is_extrapolated: bool


class TypeCapacity(msgspec.Struct, frozen=True):
    """Instances of one type (of a backend, with what it ran) on hosts of one type.

    ``typical`` is over hosts, ``new_host`` for one that nobody measured (None for too few hosts), both in instances;
    None where fewer than two hosts answer with an interval.
    """

    host_type: str
    instance: str
    backend: str
    workload: str
    hosts: tuple[HostCapacity, ...]
    typical: Interval | None
    new_host: Interval | None


class MeasuredType(msgspec.Struct, frozen=True):
    """A type of host with what its hosts have; ``sizes`` are all that were seen, if they are not alike."""

    host: HostType
    sizes: tuple[tuple[float, int], ...]


class FleetReport(msgspec.Struct, frozen=True):
    """Everything that the report of a fleet says.

    ``differences`` are conditions in which hosts differ, each with the hosts by value. ``links`` are the reports of
    single runs by host, relative to the fleet's ``folder``; hosts whose run has no report have none.
    """

    name: str
    suite: str
    folder: str
    started_utc: str
    analysis: FleetAnalysis
    capacities: tuple[TypeCapacity, ...] = ()
    types: tuple[MeasuredType, ...] = ()
    differences: Mapping[str, Mapping[str, tuple[str, ...]]] = {}
    links: Mapping[str, str] = {}
    warnings: tuple[str, ...] = ()


class CapacityCollector:
    """Takes one host's density results after another."""

    def __init__(self) -> None:
        self._sizes: dict[str, list[HostType]] = {}
        self._found: dict[tuple[str, str, str, str], list[HostCapacity]] = {}

    def add(self, name: str, host_type: str, manifest: Manifest, run: str, results: Sequence[DensityResult]) -> None:
        """One host: what it is, and what its ramps say."""
        host = find_measured_host(manifest)
        if host is None:
            return
        self._sizes.setdefault(host_type, []).append(host)
        for result in results:
            kind = make_type(result, manifest, run)
            plan = plan_host(kind, host)
            if plan.instances is None or kind.is_emulated:
                continue
            key = (host_type, kind.name, result.cell.backend, result.cell.workload)
            one = HostCapacity(
                name, run, plan.instances, plan.fewest, plan.most, plan.binds, is_extrapolated=plan.is_extrapolated
            )
            self._found.setdefault(key, []).append(one)

    def capacities(self) -> tuple[TypeCapacity, ...]:
        """By type of host and of instance."""
        return tuple(TypeCapacity(*key, tuple(hosts), *_over_hosts(hosts)) for key, hosts in self._found.items())

    def types(self) -> tuple[MeasuredType, ...]:
        """The types of hosts, each as large as its smallest host."""
        return tuple(
            MeasuredType(
                HostType(
                    name or "host", min(one.cpus for one in hosts), min(one.memory for one in hosts), count=len(hosts)
                ),
                tuple(sorted({(one.cpus, one.memory) for one in hosts})),
            )
            for name, hosts in self._sizes.items()
        )


def _over_hosts(hosts: Sequence[HostCapacity]) -> tuple[Interval | None, Interval | None]:
    values = [
        HostValue(math.log(one.instances), math.log(one.most / one.fewest) / 2 / _OF_95)
        for one in hosts
        if not one.is_extrapolated and one.fewest and one.most and one.most > one.fewest
    ]
    if len(values) < 2:
        return None, None
    found = combine_hosts(values)
    return exponential(found.typical), None if found.new_host is None else exponential(found.new_host)


def fleet_file(report: FleetReport, instances: int | None) -> str:
    """A file for ``tare plan --fleet``: the measured types of hosts, and each type of instance as a demand.

    A demand has the run of the host that is in the middle of those of its kind. Raises SuiteError without ramps, or
    without the number of instances that are wanted.
    """
    if not report.capacities:
        raise SuiteError(
            report.name, "no host measured a density ramp", remedy="its suite needs the experiment density"
        )
    if instances is None:
        raise SuiteError("--instances", "is needed: how many of each type of instance are wanted")
    lines = [f"# Hosts and costs as the fleet {report.name} measured them.", "# tare plan --fleet THIS-FILE", ""]
    for one in report.types:
        lines += [*_host_lines(one), ""]
    by_instance: dict[tuple[str, str, str], list[HostCapacity]] = {}
    for capacity in report.capacities:
        key = (capacity.instance, capacity.backend, capacity.workload)
        by_instance.setdefault(key, []).extend(capacity.hosts)
    for (name, backend, workload), hosts in by_instance.items():
        lines += [*_demand_lines(name, backend, workload, hosts, instances), ""]
    return "\n".join(lines)


def _host_lines(one: MeasuredType) -> Iterator[str]:
    host = one.host
    yield "[[host]]"
    yield f"name = {_text(host.name)}"
    yield f"cpus = {host.cpus:g}"
    yield f'memory = "{host.memory}B"'
    unlike = "" if len(one.sizes) == 1 else f"; {len(one.sizes)} sizes were seen, this is the smallest"
    yield f"count = {host.count}  # hosts of this type that were measured{unlike}"


def _demand_lines(
    name: str, backend: str, workload: str, hosts: Sequence[HostCapacity], instances: int
) -> Iterator[str]:
    middle = sorted(hosts, key=lambda one: one.instances)[(len(hosts) - 1) // 2]
    yield "[[demand]]"
    yield f"name = {_text(name)}"
    yield f"run = {_text(middle.run)}  # of the host {middle.host}, the middle one of {len(hosts)}"
    yield f"backend = {_text(backend)}"
    if workload:
        yield f"workload = {_text(workload)}"
    yield f"instances = {instances}"


def _text(text: str) -> str:
    """A text as TOML writes it: JSON's escapes are TOML's."""
    return msgspec.json.encode(text).decode()
