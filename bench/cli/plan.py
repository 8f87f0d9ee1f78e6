"""``tare plan``: how many instances fit on a host, what runs out first, how many hosts a demand needs."""

import itertools
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta
from rich.console import Console

from tare.bench.analysis import analyse
from tare.bench.analysis.density import DensityResult, analyse_density
from tare.bench.capacity.audit import Audit, audit_plan, keep_audit, kept_audits, track_record
from tare.bench.capacity.fleet import DemandSection, Fleet, load_fleet, project_growth, read_host
from tare.bench.capacity.growth import Projection, project_history, read_demand
from tare.bench.capacity.hosts import HostType, Resource, find_measured_host
from tare.bench.capacity.instances import Basis, InstanceType, make_type
from tare.bench.capacity.orchestrators import export
from tare.bench.capacity.overhead import sized_overheads
from tare.bench.capacity.packing import Demand, pack
from tare.bench.capacity.plan import HostPlan, plan_host
from tare.bench.capacity.planned import Plan, outlook_of_mix, outlook_of_type
from tare.bench.capacity.prices import BreakEven, Prices, break_even, cost_of, load_prices
from tare.bench.capacity.reserves import Reserve
from tare.bench.cli.output import chosen_output, say_where, whole_file
from tare.bench.cli.plan_forms import audit_text, plan_document, plan_markdown, plan_text, print_plan, what_if_text
from tare.bench.cli.values import suite_of_options, typed_values
from tare.bench.errors import ExitCode, RunDirectoryError, SuiteError, UnknownNameError
from tare.bench.locations import state_directory
from tare.bench.readable import readable
from tare.bench.records import Manifest
from tare.bench.registry import find_reporters
from tare.bench.store import LoadedRun, load_run
from tare.bench.suite_file import Count, Section, convert, read_toml
from tare.bench.units import parse_size

PLACE = Path("tare plan")
FORMS = ("table", "json", "markdown")
_OF_COMPARISONS = ("no-baseline", "nothing-compared", "only-emulated", "false-alarms", "unanswered", "wide")
"""Concerns about a run's verdicts, of which a plan has none: it states its own intervals and marks what is emulated."""


class PlanRequest(msgspec.Struct, frozen=True):
    """What was asked for on the command line, as it was written."""

    runs: tuple[Path, ...] = ()
    fleet: Path | None = None
    cpus: float | None = None
    memory: str = ""
    disk: str = ""
    overcommit: tuple[str, ...] = ()
    reserve: tuple[str, ...] = ()
    instances: int | None = None
    backend: tuple[str, ...] = ()
    basis: str = Basis.AUTO.value
    raised: tuple[str, ...] = ()
    hosts: int | None = None
    spare: int | None = None
    domain: str = ""
    maintenance: float | None = None
    growth: str = ""
    demand: Path | None = None
    prices: Path | None = None
    export: str = ""
    size: str = ""
    what_if: Path | None = None
    audit: Path | None = None
    form: str = "table"
    output: Path | None = None


def plan_command(request: PlanRequest) -> ExitCode:
    """Plan, and print it or write it to a file."""
    output = chosen_output(request.output)
    if not request.export and request.form not in FORMS:
        return _write_page(request, output)
    if request.form not in FORMS:
        raise UnknownNameError(f"this has no form {request.form!r}; there are: {', '.join(FORMS)}")
    if request.what_if is not None:
        return _write(output, what_if_text(_cases(request, request.what_if), request.form))
    if request.audit is not None:
        return _write(output, audit_text(_audit(request, request.audit), request.form))
    if request.export:
        return _write(output, export(make_plan(request).plans, request.export))
    plan = _graded(make_plan(request))
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
    return _write(output, text)


def _graded(plan: Plan) -> Plan:
    """The plan with the grades of its runs."""
    runs = dict.fromkeys(one.type.run for one in plan.plans)
    grades = {run: analyse(load_run(Path(run))).grade.without(_OF_COMPARISONS) for run in runs}
    return msgspec.structs.replace(plan, grades=grades)


def _write_page(request: PlanRequest, output: Path) -> ExitCode:
    """Write the plan in the form of a reporter."""
    reporters = {name: one for name, one in find_reporters().loaded.items() if one.plans}
    if request.form not in reporters:
        known = ", ".join((*FORMS, *sorted(reporters)))
        raise UnknownNameError(f"a plan has no form {request.form!r}; there are: {known}")
    plan, reporter = _graded(make_plan(request)), reporters[request.form]
    if request.what_if is not None:
        plan = msgspec.structs.replace(plan, cases=tuple(_cases(request, request.what_if)))
    if request.audit is not None:
        plan = msgspec.structs.replace(plan, audit=_audit(request, request.audit))
    with whole_file(output, reporter.suffix) as part:
        reporter().write_plan(plan, part)
    say_where(output)
    return ExitCode.OK


def _write(output: Path, text: str) -> ExitCode:
    with whole_file(output) as part:
        part.write_text(text, "utf-8")
    say_where(output)
    return ExitCode.OK


class WhatIfCase(Section, frozen=True):
    """``[[case]]`` of a what-if file: options of ``tare plan`` by their names, instead of those of the command line."""

    name: str
    fleet: str = ""
    cpus: float | None = None
    memory: str = ""
    disk: str = ""
    overcommit: tuple[str, ...] = ()
    reserve: tuple[str, ...] = ()
    instances: Count | None = None
    backend: tuple[str, ...] = ()
    basis: str = ""
    prices: str = ""


class _WhatIfFile(Section, frozen=True):
    case: Annotated[tuple[WhatIfCase, ...], Meta(min_length=1)]


def _cases(request: PlanRequest, path: Path) -> list[tuple[str, Plan]]:
    """The plan of each case. Raises SuiteError with the file and the case."""
    found = []
    for number, case in enumerate(convert(read_toml(path), _WhatIfFile, path, "").case):
        given = {name: getattr(case, name) for name in case.__struct_fields__ if name != "name" and getattr(case, name)}
        given |= {name: path.parent / given[name] for name in ("fleet", "prices") if name in given}
        if "fleet" in given:
            given |= {"runs": ()}
        try:
            found.append((case.name, make_plan(msgspec.structs.replace(request, **given))))
        except SuiteError as error:
            raise SuiteError(f"{path}: case[{number}]", error.message, remedy=error.remedy) from None
    return found


def _audit(request: PlanRequest, plan: Path) -> Audit:
    """Compare a kept plan with the ramp of the one run that is named, and keep the outcome."""
    if len(request.runs) != 1:
        raise SuiteError("--audit", "needs one run: the later ramp", remedy="tare plan RUN --audit PLAN.json")
    run, results = _load(request.runs[0])
    types = [make_type(result, run.manifest, str(run.path)) for result in results]
    found = audit_plan(plan, types, str(run.path), find_measured_host(run.manifest))
    keep_audit(found, audits_file())
    return found


def _size(given: str) -> int:
    try:
        return parse_size(given)
    except ValueError as error:
        raise SuiteError("--size", str(error)) from None


def audits_file() -> Path:
    """Where the outcomes of audits are kept."""
    return state_directory() / "audits.jsonl"


def make_plan(request: PlanRequest) -> Plan:
    """The plan, with what it costs if there are prices. Raises as ``_plan`` does."""
    plan = _plan(request)
    size = None if not request.size else _size(request.size)
    overheads = sized_overheads([one.type for one in plan.plans if one.host is plan.hosts[0]])
    if size is not None and not overheads:
        problem = "needs ramps of one backend with two sizes or more"
        raise SuiteError("--size", problem, remedy="tare density BACKEND --memory SIZE, once a size; name all the runs")
    for one in overheads if size is not None else ():
        one.at(size or 0)  # raises for a size outside of what was measured
    record = track_record(kept_audits(audits_file()))
    plan = msgspec.structs.replace(plan, overheads=overheads, size=size, track_record=record)
    if request.prices is None:
        return plan
    prices = load_prices(request.prices)
    costs = tuple(cost_of(one, prices) for one in plan.plans)
    if not any(costs):
        known = ", ".join(one.name for one in prices.host)
        raise SuiteError(
            f"{request.prices}: host",
            f"none of the plan's hosts has a price, or nothing bounds the instances; there are prices of: {known}",
            remedy="name host types in a --fleet file as the prices do, or give a file with the price of one host",
        )
    source = f"{readable(str(request.prices))}: {prices.source}, {prices.date}"
    return msgspec.structs.replace(
        plan, costs=costs, price_source=source, break_evens=tuple(_break_evens(plan.plans, prices, request.instances))
    )


def _break_evens(plans: Sequence[HostPlan], prices: Prices, instances: int | None) -> Iterator[BreakEven]:
    """Of each two types on the same host."""
    for first, second in itertools.combinations(plans, 2):
        if first.host is second.host:
            most = max(instances or 0, 10 * max(first.instances or 0, second.instances or 0))
            if most and (found := break_even((first, second), prices, most=most)):
                yield found


def _plan(request: PlanRequest) -> Plan:
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
    _check_backends(request.backend, loaded)
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
        if not request.backend or result.cell.backend in request.backend
    ]
    reserve, projection = _reserve(request), _projection(request)
    plans = tuple(plan_host(kind, host, demand=request.instances) for kind in types)
    outlooks = (outlook_of_type(one, reserve, projection) for one in plans)
    return Plan((host,), plans, outlooks=tuple(one for one in outlooks if one is not None))


def _reserve(request: PlanRequest) -> Reserve | None:
    """The losses to survive, if any are stated."""
    if request.spare is None and not request.domain and request.maintenance is None:
        return None
    if request.instances is None:
        raise SuiteError("--spare", "needs --instances: what must survive the loss of hosts")
    if request.maintenance is not None and not 0 <= request.maintenance < 1:
        raise SuiteError("--maintenance", f"must be a share below 1 such as 0.05, not {request.maintenance:g}")
    name, _, number = request.domain.partition("=")
    if request.domain and not (name and number.isdecimal() and 2 <= int(number) <= 1000):
        raise SuiteError("--domain", f"must be a name and a number from 2 on, such as rack=4, not {request.domain!r}")
    domains = int(number) if request.domain else None
    return Reserve(request.spare or 0, domains, name, request.maintenance or 0.0)


def _projection(request: PlanRequest) -> Projection | None:
    """The demand to come, if it is stated how it grows."""
    if request.growth and request.demand is not None:
        raise SuiteError("--growth", "and --demand exclude each other")
    if request.hosts is None and (request.growth or request.demand is not None):
        raise SuiteError("--growth" if request.growth else "--demand", "needs --hosts: how many hosts there are")
    if request.demand is not None:
        return project_history(read_demand(request.demand)[1])
    if not request.growth:
        return None
    if request.instances is None:
        raise SuiteError("--growth", "needs --instances: how many there are now")
    return project_growth(request.instances, request.growth, "--growth")


def _fleet_plan(fleet: Fleet, request: PlanRequest) -> Plan:
    given = {
        "RUN": request.runs, "--cpus": request.cpus, "--memory": request.memory, "--disk": request.disk,
        "--overcommit": request.overcommit, "--reserve": request.reserve, "--instances": request.instances,
        "--backend": request.backend, "--raised": request.raised, "--hosts": request.hosts, "--spare": request.spare,
        "--domain": request.domain, "--maintenance": request.maintenance, "--growth": request.growth,
        "--demand": request.demand,
    }  # fmt: skip
    for name, value in given.items():
        if value not in (None, "", ()):
            raise SuiteError("--fleet", f"cannot be combined with {name}: the file states it")
    cpu_by_limit = any(Resource.CPU in host.overcommit for host in fleet.hosts)
    loaded = {run: _load(Path(run)) for run in dict.fromkeys(one.run for one in fleet.demands)}
    demands = [
        Demand(_wanted(one, *loaded[one.run], cpu_by_limit=cpu_by_limit), one.instances) for one in fleet.demands
    ]
    plans = tuple(plan_host(one.type, host, demand=one.instances) for host in fleet.hosts for one in demands)
    packing = pack(demands, fleet.hosts)
    named = zip(demands, fleet.projections, strict=True)
    projections = {demand.type.name: one for demand, one in named if one is not None}
    outlook = outlook_of_mix(demands, fleet.hosts, packing, fleet.reserve, projections)
    return Plan(fleet.hosts, plans, packing, () if outlook is None else (outlook,))


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
    if request.hosts is not None:
        given["count"] = request.hosts
    given["overcommit"] = typed_values("--overcommit", _parts(request.overcommit))
    given["reserve"] = typed_values("--reserve", _parts(request.reserve))
    with suite_of_options(PLACE):
        return read_host(given, PLACE)


def _parts(given: Sequence[str]) -> list[str]:
    return [part for one in given for part in one.split(",")]
