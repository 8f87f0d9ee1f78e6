"""``tare plan``: how many instances fit on a host, what runs out first, how many hosts a demand needs.

A plan as tables for a terminal, as Markdown, and as JSON.
"""

import io
import json
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tare.bench.analysis.density import DensityResult, analyse_density
from tare.bench.capacity.fleet import DemandSection, Fleet, load_fleet, read_host
from tare.bench.capacity.hosts import OVERCOMMITTED, HostType, Resource, find_measured_host
from tare.bench.capacity.instances import Basis, InstanceType, make_type
from tare.bench.capacity.packing import Demand, Packing, pack
from tare.bench.capacity.plan import HostPlan, Use, plan_host
from tare.bench.capacity.words import host_sentence, instances_words, interval_words, notes_of, plan_notes
from tare.bench.cli.output import chosen_output, say_where, whole_file
from tare.bench.cli.values import suite_of_options, typed_values
from tare.bench.errors import ExitCode, RunDirectoryError, SuiteError, UnknownNameError
from tare.bench.readable import one_line, readable
from tare.bench.records import Manifest
from tare.bench.store import LoadedRun, load_run
from tare.bench.units import format_size

PLACE = Path("tare plan")
FORMS = ("table", "json", "markdown")
_RIGHT = ("per host", "fits", "hosts")
_CAPACITY_HEAD = ("resource", "by", "one takes", "there is", "fits", "95 % interval", "binds")
_PACKING_HEAD = ("hosts", "type of host", "holds", "used then")
_TOGETHER = "All of them together"


class PlanRequest(msgspec.Struct, frozen=True):
    """What was asked for on the command line, as it was written."""

    runs: tuple[Path, ...]
    fleet: Path | None = None
    cpus: float | None = None
    memory: str = ""
    disk: str = ""
    overcommit: tuple[str, ...] = ()
    reserve: tuple[str, ...] = ()
    instances: int | None = None
    backends: tuple[str, ...] = ()
    basis: str = Basis.AUTO.value
    raised: tuple[str, ...] = ()
    form: str = "table"
    output: Path | None = None


class Plan(msgspec.Struct, frozen=True):
    """Each type on each host, and the packing of a fleet's mix."""

    hosts: tuple[HostType, ...]
    plans: tuple[HostPlan, ...]
    packing: Packing | None = None


def plan_command(request: PlanRequest) -> ExitCode:
    """Plan, and print it or write it to a file."""
    if request.form not in FORMS:
        raise UnknownNameError(f"a plan has no form {request.form!r}; there are: {', '.join(FORMS)}")
    plan = make_plan(request)
    output = chosen_output(request.output)
    if request.form == "table" and request.output is None:
        print_plan(Console(soft_wrap=not sys.stdout.isatty()), plan)
        return ExitCode.OK
    match request.form:
        case "json":
            text = json.dumps(plan_document(plan), indent=2) + "\n"
        case "markdown":
            text = plan_markdown(plan)
        case _:
            text = plan_text(plan)
    with whole_file(output) as part:
        part.write_text(text, "utf-8")
    say_where(output)
    return ExitCode.OK


def make_plan(request: PlanRequest) -> Plan:
    """The plan. Raises RunDirectoryError, UnknownNameError or SuiteError with what cannot be used."""
    if request.fleet is not None:
        return _fleet_plan(load_fleet(request.fleet), request)
    if not request.runs:
        raise SuiteError(
            "tare plan", "names neither a run nor a --fleet", remedy="tare plan RUN --cpus 64 --memory 512GiB"
        )
    if request.instances is not None and request.instances < 1:
        raise SuiteError("--instances", f"must be 1 or more, not {request.instances}")
    loaded = [_load(path) for path in request.runs]
    _check_backends(request.backends, loaded)
    try:
        basis = Basis(request.basis)
    except ValueError:
        raise SuiteError("--basis", f"there is no {request.basis!r}; there are: {', '.join(Basis)}") from None
    met = {one.resource for _, results in loaded for result in results for one in result.cell.endings if one.resource}
    if unknown := sorted(set(request.raised) - met):
        known = ", ".join(sorted(met)) or "nothing that has a name"
        raise SuiteError("--raised", f"no ramp ended at {unknown[0]!r}; they ended at: {known}")
    host = _host(request, loaded[0][0].manifest)
    types = [
        make_type(
            result,
            run.manifest,
            str(run.path),
            basis=basis,
            cpu_by_limit=Resource.CPU in host.overcommit,
            raised=request.raised,
        )
        for run, results in loaded
        for result in results
        if not request.backends or result.cell.backend in request.backends
    ]
    return Plan((host,), tuple(plan_host(kind, host, demand=request.instances) for kind in types))


def _fleet_plan(fleet: Fleet, request: PlanRequest) -> Plan:
    given = {
        "RUN": request.runs, "--cpus": request.cpus, "--memory": request.memory, "--disk": request.disk,
        "--overcommit": request.overcommit, "--reserve": request.reserve, "--instances": request.instances,
        "--backend": request.backends, "--raised": request.raised,
    }  # fmt: skip
    for name, value in given.items():
        if value:
            raise SuiteError("--fleet", f"cannot be combined with {name}: the file states it")
    cpu_by_limit = any(Resource.CPU in host.overcommit for host in fleet.hosts)
    loaded = {run: _load(Path(run)) for run in dict.fromkeys(one.run for one in fleet.demands)}
    demands = [
        Demand(_wanted(one, *loaded[one.run], cpu_by_limit=cpu_by_limit), one.instances) for one in fleet.demands
    ]
    plans = tuple(plan_host(one.type, host, demand=one.instances) for host in fleet.hosts for one in demands)
    return Plan(fleet.hosts, plans, pack(demands, fleet.hosts))


def _wanted(
    wanted: DemandSection, run: LoadedRun, results: Sequence[DensityResult], *, cpu_by_limit: bool
) -> InstanceType:
    _check_backends((wanted.backend,), [(run, results)])
    found = [result for result in results if result.cell.backend == wanted.backend]
    own = [result for result in found if wanted.workload in (None, result.cell.workload)]
    if len(own) != 1:
        known = ", ".join(repr(result.cell.workload) for result in found)
        problem = "no ramp" if not own else f"{len(own)} ramps"
        raise UnknownNameError(
            f"demand {wanted.name!r}: {wanted.run} has {problem} of that workload on "
            f"{wanted.backend}; there are: {known}",
        )
    kind = make_type(
        own[0],
        run.manifest,
        str(run.path),
        basis=wanted.basis,
        limits=wanted.limits,
        cpu_by_limit=cpu_by_limit,
        raised=wanted.raised,
    )
    return msgspec.structs.replace(kind, name=wanted.name)


def _load(path: Path) -> tuple[LoadedRun, tuple[DensityResult, ...]]:
    run = load_run(path)
    results = analyse_density(run.samples, run.events)
    if not results:
        raise RunDirectoryError(
            f"{path} has no density data: nothing is known of what an instance costs",
            remedy="measure it with `tare density BACKEND`, or name a run of a suite with the experiment density",
        )
    return run, results


def _check_backends(names: Sequence[str], loaded: Sequence[tuple[LoadedRun, Sequence[DensityResult]]]) -> None:
    known = sorted({result.cell.backend for _, results in loaded for result in results})
    for name in names:
        if name not in known:
            raise UnknownNameError(
                f"no ramp of the backend {name!r} is in what was named; there are: {', '.join(known)}"
            )


def _host(request: PlanRequest, manifest: Manifest) -> HostType:
    """The host of the options; what they leave out is the measured host's."""
    stated = {"cpus": request.cpus, "memory": request.memory or None, "disk": request.disk or None}
    given: dict[str, Any] = {"name": "the host"}
    if measured := find_measured_host(manifest):
        name = measured.name if request.cpus is None and not request.memory else given["name"]
        given = {"name": name, "cpus": measured.cpus, "memory": measured.memory}
    given |= {key: value for key, value in stated.items() if value is not None}
    if not {"cpus", "memory"} <= given.keys():
        problem = "the run does not say its host's CPUs and memory"
        raise SuiteError(str(PLACE), problem, remedy="state --cpus and --memory")
    given["overcommit"] = typed_values("--overcommit", _parts(request.overcommit))
    given["reserve"] = typed_values("--reserve", _parts(request.reserve))
    with suite_of_options(PLACE):
        return read_host(given, PLACE)


def _parts(given: Sequence[str]) -> list[str]:
    return [part for one in given for part in one.split(",")]


def print_plan(console: Console, plan: Plan) -> None:
    """Tables, a host type each, and what has to be known about them."""
    for host in plan.hosts:
        own = [one for one in plan.plans if one.host is host]
        console.print()
        console.print(Text(readable(host_sentence(host)), style="bold"))
        console.print(_table(_summary_head(own), _summary_rows(own)))
        for one in own:
            console.print(Text(readable(f"\n{one.type.name}"), style="bold"))
            console.print(_table(_CAPACITY_HEAD, _capacity_rows(one)))
    if plan.packing is not None:
        console.print()
        console.print(Text(_TOGETHER, style="bold"))
        console.print(_table(_PACKING_HEAD, _packing_rows(plan.packing)))
        for line in _packing_sentences(plan.packing):
            console.print(Text(readable(line)))
    console.print()
    for line in notes_of(plan.plans):
        console.print(Text(readable(f"- {line}")))


def plan_text(plan: Plan) -> str:
    """The tables as text without colours."""
    console = Console(width=120, record=True, file=io.StringIO(), color_system=None)
    print_plan(console, plan)
    return console.export_text()


def plan_markdown(plan: Plan) -> str:
    """The same as Markdown."""
    lines = ["# Capacity plan"]
    for host in plan.hosts:
        own = [one for one in plan.plans if one.host is host]
        lines += ["", f"## {_escaped(host.name)}", "", _escaped(host_sentence(host)), ""]
        lines += _markdown(_summary_head(own), _summary_rows(own))
        for one in own:
            lines += ["", f"**{_escaped(one.type.name)}**", "", *_markdown(_CAPACITY_HEAD, _capacity_rows(one))]
    if plan.packing is not None:
        lines += ["", f"## {_TOGETHER}", "", *_markdown(_PACKING_HEAD, _packing_rows(plan.packing)), ""]
        lines += [f"{_escaped(line)}\n" for line in _packing_sentences(plan.packing)]
    return "\n".join([*lines, "", *(f"- {_escaped(line)}" for line in notes_of(plan.plans)), ""])


def plan_document(plan: Plan) -> dict[str, Any]:
    """The same as JSON, in base units."""
    return {
        "hosts": [_host_document(host) for host in plan.hosts],
        "plans": [_one_document(one) for one in plan.plans],
        "packing": None if plan.packing is None else _packing_document(plan.packing),
    }


def _one_document(plan: HostPlan) -> dict[str, Any]:
    kind, cell = plan.type, plan.type.result.cell
    return {
        "type": kind.name,
        "backend": cell.backend,
        "workload": cell.workload,
        "run": kind.run,
        "emulated": kind.is_emulated,
        "bound": kind.basis.value,
        "measured_population": cell.population,
        "host": plan.host.name,
        "instances": plan.instances,
        "instances_interval": None if plan.fewest is None else [plan.fewest, plan.most],
        "binds": plan.binds,
        "remedy": plan.remedy,
        "extrapolated": plan.is_extrapolated,
        "rooms": msgspec.to_builtins(plan.capacities),
        "headroom": [_use_document(use) for use in plan.headroom],
        "demand": plan.demand,
        "hosts_needed": plan.hosts,
        "hosts_interval": None if plan.hosts_fewest is None else [plan.hosts_fewest, plan.hosts_most],
        "scaling": msgspec.to_builtins(kind.result.scaling),
        "notes": plan_notes(plan),
    }


def _packing_document(packing: Packing) -> dict[str, Any]:
    filled = [
        {
            **msgspec.to_builtins(one),
            "shares": {
                f"{resource} promised" if by_limit else resource: share for resource, by_limit, share in one.shares
            },
            "headroom": [_use_document(use) for use in one.headroom],
        }
        for one in packing.filled
    ]
    return {**msgspec.to_builtins(packing), "filled": filled}


def _host_document(host: HostType) -> dict[str, Any]:
    reserve = {resource.value: host.reserved(resource) for resource in OVERCOMMITTED}
    return {**msgspec.to_builtins(host), "reserve": reserve}


def _use_document(use: Use) -> dict[str, Any]:
    return {**msgspec.to_builtins(use), "share": use.share if use.usable else None, "left": use.left}


def _summary_head(plans: Sequence[HostPlan]) -> list[str]:
    demand = ["wanted", "hosts"] if any(plan.demand is not None for plan in plans) else []
    return ["instances", "per host", "95 % interval", "runs out first", "used then", *demand]


def _summary_rows(plans: Sequence[HostPlan]) -> Iterator[list[str]]:
    """A line a type: how many fit, what runs out, how full the host is then, hosts for the demand."""
    for plan in plans:
        interval = interval_words(plan.fewest, plan.most)
        row = [plan.type.name, instances_words(plan), interval, plan.binds or "–", _shares(plan)]
        if plan.demand is not None:
            hosts = "–" if plan.hosts is None else f"{plan.hosts:,}"
            if plan.hosts_most is not None:
                fewest = "?" if plan.hosts_fewest is None else f"{plan.hosts_fewest:,}"
                hosts += f" ({fewest} to {plan.hosts_most:,})"
            row += [f"{plan.demand:,}", hosts]
        yield row


def _shares(plan: HostPlan) -> str:
    """How full the host is, by the needs that fill it."""
    binding = {(one.resource, one.by_limit) for one in plan.capacities if one.binds}
    shown = [use for use in plan.headroom if use.resource in OVERCOMMITTED and (use.resource, use.by_limit) in binding]
    named = ((f"{use.resource} {'limits' if use.by_limit else 'measured'}", use) for use in shown)
    return ", ".join(f"{name} {100 * use.share:.0f} %" if use.usable else f"{name}: none there" for name, use in named)


def _capacity_rows(plan: HostPlan) -> list[list[str]]:
    """A line a resource: what one takes, and how many that is enough for."""
    rows = [
        [
            one.name,
            one.source,
            _amount(one.resource, one.each),
            "not stated" if math.isinf(one.usable) else _amount(one.resource, one.usable),
            "no end" if one.instances is None else f"{one.instances:,}",
            "–" if one.instances is None or one.fewest == one.most else interval_words(one.fewest, one.most),
            "yes" if one.binds else "no",
        ]
        for one in plan.capacities
        if one.resource in OVERCOMMITTED
    ]
    limits = plan.type.host_limits
    return rows + [[one.resource, "the ramp ended there", "", "", f"{one.population:,}", "–", "yes"] for one in limits]


def _amount(resource: Resource, value: float) -> str:
    return f"{value:.3g}" if resource is Resource.CPU else format_size(value)


def _packing_rows(packing: Packing) -> list[list[str]]:
    """A line a kind of filled host."""
    return [
        [
            f"{one.hosts:,}",
            one.host,
            ", ".join(f"{count:,} {name}" for name, count in one.instances.items()),
            ", ".join(
                f"{resource}{' limits' if by_limit else ''} {100 * share:.0f} %"
                for resource, by_limit, share in one.shares
                if resource is not Resource.CGROUPS
            ),
        ]
        for one in packing.filled
    ]


def _packing_sentences(packing: Packing) -> Iterator[str]:
    """How good the packing is, and what found no place."""
    interval = ""
    if packing.hosts_fewest is not None and packing.hosts_most is not None:
        interval = f" ({packing.hosts_fewest:,} to {packing.hosts_most:,} by the intervals of the costs)"
    yield f"{packing.hosts:,} hosts{interval}, packed by first fit decreasing, a heuristic: an upper bound."
    if packing.bound is not None:
        yield f"No packing needs fewer than {packing.bound:,}: each resource alone, as if instances could be cut."
    for name, count in packing.left.items():
        yield f"{count:,} of {name} find no place."


def _table(head: Sequence[str], rows: Iterator[list[str]] | list[list[str]]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    for name in head:
        table.add_column(name, overflow="fold", justify="right" if name in _RIGHT else "left")
    for row in rows:
        table.add_row(*(Text(readable(cell)) for cell in row))
    return table


def _markdown(head: Sequence[str], rows: Iterator[list[str]] | list[list[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return [f"| {' | '.join(_escaped(cell) for cell in line)} |" for line in lines]


def _escaped(text: str) -> str:
    return one_line(text).replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")
