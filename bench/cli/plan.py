"""``tare plan``: how many instances fit on a host, what runs out first, how many hosts a demand needs."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import typer
from rich.console import Console

from tare.bench.analysis.density import DensityResult, analyse_density
from tare.bench.capacity.fleet import DemandSection, Fleet, load_fleet, read_host
from tare.bench.capacity.hosts import HostType, Resource, find_measured_host
from tare.bench.capacity.instances import Basis, InstanceType, make_type
from tare.bench.capacity.packing import Demand, pack
from tare.bench.capacity.plan import plan_host
from tare.bench.cli.output import whole_file
from tare.bench.cli.plan_forms import Plan, plan_document, plan_markdown, plan_text, print_plan
from tare.bench.cli.values import suite_of_options, typed_values
from tare.bench.errors import ExitCode, RunDirectoryError, SuiteError, UnknownNameError
from tare.bench.records import Manifest
from tare.bench.store import LoadedRun, load_run

PLACE = Path("tare plan")
FORMS = ("table", "json", "markdown")


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


def plan_command(request: PlanRequest) -> ExitCode:
    """Plan, and print it or write it to a file."""
    if request.form not in FORMS:
        raise UnknownNameError(f"a plan has no form {request.form!r}; there are: {', '.join(FORMS)}")
    plan = make_plan(request)
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
    output = request.output or Path("-")
    with whole_file(output) as part:
        part.write_text(text, "utf-8")
    if str(output) != "-":
        typer.echo(str(output))
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
    host = _host(request, loaded[0][0].manifest)
    types = [
        make_type(
            result,
            run.manifest,
            str(run.path),
            basis=_basis(request.basis),
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


def _basis(name: str) -> Basis:
    try:
        return Basis(name)
    except ValueError:
        raise SuiteError("--basis", f"there is no {name!r}; there are: {', '.join(Basis)}") from None


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
