"""``tare plan``: how many instances fit on a host, what runs out first, how many hosts a demand needs."""

import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec
import typer
from rich.console import Console

from tare.bench.analysis.density import DensityResult, analyse_density
from tare.bench.capacity.fleet import Fleet, WantedType, checked, load_fleet, parse_overcommit, parse_reserve
from tare.bench.capacity.hosts import HostType, Resource, find_measured_host
from tare.bench.capacity.instance_types import Bound, InstanceType, make_type
from tare.bench.capacity.packing import Demand, Packing, pack
from tare.bench.capacity.plan import HostPlan, plan_host
from tare.bench.cli.plan_forms import plan_document, plan_markdown, print_plan
from tare.bench.cli.values import named_values
from tare.bench.errors import ExitCode, RunDirectoryError, SuiteError, TareError, UnknownNameError
from tare.bench.model import Manifest
from tare.bench.store import LoadedRun, load_run
from tare.bench.units import parse_size

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
    bound: str = Bound.AUTO.value
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
    if request.form == "table" and request.output is None:
        print_plan(Console(soft_wrap=not sys.stdout.isatty()), plan.plans, plan.packing)
        return ExitCode.OK
    match request.form:
        case "json":
            text = json.dumps(plan_document(plan.hosts, plan.plans, plan.packing), indent=2) + "\n"
        case "markdown":
            text = plan_markdown(plan.plans, plan.packing)
        case _:
            console = Console(width=120, record=True, file=io.StringIO(), color_system=None)
            print_plan(console, plan.plans, plan.packing)
            text = console.export_text()
    if request.output is None or str(request.output) == "-":
        typer.echo(text, nl=False)
    else:
        _write(request.output, text)
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
            bound=_bound(request.bound),
            cpu_is_promised=Resource.CPU in host.overcommit,
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
            raise SuiteError("--fleet", f"stands beside {name}, which the file states")
    promised = any(Resource.CPU in host.overcommit for host in fleet.hosts)
    demands = [Demand(_wanted(one, promised=promised), one.instances) for one in fleet.demands]
    plans = tuple(plan_host(one.type, host, demand=one.instances) for host in fleet.hosts for one in demands)
    return Plan(fleet.hosts, plans, pack(demands, fleet.hosts))


def _wanted(wanted: WantedType, *, promised: bool) -> InstanceType:
    run, results = _load(wanted.run)
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
        bound=wanted.bound,
        promise=wanted.promise,
        cpu_is_promised=promised,
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


def _bound(name: str) -> Bound:
    try:
        return Bound(name)
    except ValueError:
        raise SuiteError("--bound", f"there is no {name!r}; there are: {', '.join(Bound)}") from None


def _host(request: PlanRequest, manifest: Manifest) -> HostType:
    """The host of the options; what they leave out is the measured host's."""
    measured = find_measured_host(manifest)
    cpus, memory = (None, None) if measured is None else (measured.cpus, measured.memory)
    cpus = cpus if request.cpus is None else request.cpus
    memory = _size("--memory", request.memory) if request.memory else memory
    if cpus is None or memory is None:
        raise SuiteError(
            "tare plan", "the run does not tell its host's CPUs and memory", remedy="state --cpus and --memory"
        )
    host = HostType(
        name=measured.name if measured and request.cpus is None and not request.memory else "the host",
        cpus=cpus,
        memory=memory,
        disk=_size("--disk", request.disk) if request.disk else None,
        overcommit=parse_overcommit(_pairs("--overcommit", request.overcommit), "--overcommit"),
        reserve=parse_reserve(_pairs("--reserve", request.reserve), "--reserve"),
    )
    return checked(host, "--", join="")


def _pairs(option: str, given: Sequence[str]) -> dict[str, str]:
    return named_values(option, [part for one in given for part in one.split(",")])


def _size(option: str, text: str) -> int:
    try:
        return parse_size(text)
    except ValueError as error:
        raise SuiteError(option, str(error)) from None


def _write(output: Path, text: str) -> None:
    part = output.with_name(f".{output.name}.part")
    try:
        part.write_text(text, "utf-8")
        part.replace(output)
    except OSError as error:
        raise TareError(f"cannot write {output}: {error.strerror}", remedy="choose another --output") from error
    finally:
        part.unlink(missing_ok=True)
    typer.echo(str(output))
