"""``tare density``: one ramp a backend, and what an instance costs by it."""

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tare.bench.analysis import RunResults
from tare.bench.analysis.cost import Estimate
from tare.bench.analysis.density import DensityCell, DensityResult
from tare.bench.catalogue import Builtin
from tare.bench.cli.run import exit_code, write_report
from tare.bench.cli.values import suite_of_options, typed_values
from tare.bench.errors import ExitCode, SuiteError
from tare.bench.progress import RunDisplay
from tare.bench.readable import readable
from tare.bench.records import Event, EventKind, Manifest
from tare.bench.session import RunRequest, start_run
from tare.bench.store import LoadedRun, load_run
from tare.bench.units import format_duration, format_size

PLACE = Path("tare density")
"""What errors name as the place of a suite that was made from options."""
_NO_CPU = 1e-7
"""A CPU that is busy for three seconds a year: less is the arithmetic's, not the instance's."""

_COST_TITLE = "Cost of one more instance (95 % interval; 84 to 91 % where a few instances cost far more than most)"


class DensityRequest(msgspec.Struct, frozen=True):
    """What was asked for on the command line: a suite's file, or backends with options."""

    targets: tuple[str, ...]
    options: Mapping[str, Any]
    envelope: Mapping[str, Any]
    workload: str
    params: tuple[str, ...]
    sampling: Mapping[str, Any]
    output: Path | None


def density_command(request: DensityRequest, *, as_json: bool, report: bool) -> ExitCode:
    """Run it through a session, print the costs, return the exit code."""
    console = Console(stderr=as_json, soft_wrap=not sys.stdout.isatty())
    with suite_of_options(PLACE), RunDisplay(console) as display:
        result = start_run(make_request(request), display)
        display.step("fitting the costs")
    run = load_run(result.path)
    found = RunResults(run)
    write_report(found, "parquet", result.path / "samples.parquet")
    if report:
        write_report(found, "html", result.path / "report.html")
    results = found.analysis.density
    if as_json:
        typer.echo(json.dumps(costs_document(run, results), indent=2))
    else:
        if results:
            print_costs(Console(), run.manifest, results)
        print_failures(Console(), run.events)
        typer.echo(f"\nRun: {result.path.absolute()}")
    return exit_code(result)


def make_request(request: DensityRequest) -> RunRequest:
    """A suite's file as it is, or a suite of one experiment from the options."""
    if len(request.targets) == 1 and request.targets[0].endswith(".toml"):
        return RunRequest(Path(request.targets[0]), request.output, seed=request.sampling.get("seed"))
    experiment: dict[str, Any] = {"kind": Builtin.DENSITY, "options": dict(request.options)}
    if request.workload:
        experiment |= {"workload": request.workload, "params": typed_values("--param", request.params)}
    elif request.params:
        raise SuiteError("--param", "no --workload is named that this could apply to")
    elif "objective" in request.options:
        raise SuiteError("--objective", "no --workload is named whose p99 it could be compared with")
    source = {
        "suite": {"name": Builtin.DENSITY, "description": "How many instances fit, and what does one more cost?"},
        "envelope": dict(request.envelope),
        "sampling": {"blocks": 1, "iterations": 1, "warmup": 0, **request.sampling},
        "backend": [{"type": name} for name in request.targets],
        "experiment": [experiment],
    }
    return RunRequest(PLACE, request.output, source=source)


def costs_document(run: LoadedRun, results: Sequence[DensityResult]) -> dict[str, Any]:
    """The costs as JSON, in base units."""
    backends = run.manifest.backends
    return {
        "run": str(run.path.absolute()),
        "cells": [
            {
                "backend": cell.backend,
                "label": backends[cell.backend].label,
                "workload": cell.workload,
                "params": dict(cell.params),
                "population": cell.population,
                "endings": msgspec.to_builtins(cell.endings),
                "cost": msgspec.to_builtins(cost),
                "kernel_bytes": cost.kernel and cost.kernel.per_instance,
                "kernel_interval": _interval(cost.kernel),
                "accounted_bytes": cost.attributed and cost.attributed.per_instance,
                "accounted_interval": _interval(cost.attributed),
                "shared_bytes": cost.shared,
            }
            for cell, cost in ((result.cell, result.cost) for result in results)
        ],
        "failures": [
            {"cell": event.cell, "message": event.message, "remedy": event.details.get("remedy")}
            for event in run.events
            if event.kind is EventKind.INSTANCE_FAILED
        ],
    }


def _interval(estimate: Estimate | None) -> tuple[float, float] | None:
    if estimate is None or estimate.low is None or estimate.high is None:
        return None
    return estimate.low, estimate.high


def print_failures(console: Console, events: Sequence[Event]) -> None:
    """What could not be measured, why, and what to do."""
    for event in events:
        if event.kind is EventKind.INSTANCE_FAILED:
            console.print(Text(readable(f"\n{event.cell}: {event.message}")))
            if event.details.get("remedy"):
                console.print(Text(readable(f"  what to do: {event.details['remedy']}")))


def print_costs(console: Console, manifest: Manifest, results: Sequence[DensityResult]) -> None:
    """One table: a column a cell, a row a meter; below it, why each ramp ended."""
    table = Table(title=_COST_TITLE, title_justify="left", title_style="bold", box=None)
    table.add_column("by", no_wrap=True)
    labels = [_label(manifest, result.cell) for result in results]
    for label in labels:
        table.add_column(Text(readable(label)), overflow="fold")
    columns = [_rows(result) for result in results]
    for name in columns[0]:
        shown = [column[name] for column in columns]
        if any(shown):
            table.add_row(name, *(Text(readable(text or "not measured")) for text in shown))
    console.print()
    console.print(table)
    for label, result in zip(labels, results, strict=True):
        for line in _remarks(label, result):
            console.print(Text(readable(line)))


def _remarks(label: str, result: DensityResult) -> Iterator[str]:
    """Why each ramp of a cell ended, and what limits its costs."""
    for ending in result.cell.endings:
        runs_out = f"; the resource that ran out is {ending.resource}" if ending.resource else ""
        yield f"\n{label}: ended with {ending.population}: {ending.message}{runs_out}"
        if ending.remedy:
            yield f"  what to do: {ending.remedy}"
        if ending.dead:
            yield f"  {ending.dead} of them were dead at the end"
    if result.cost.host_noise_dominates:
        yield "  MemAvailable cannot be used here: the host's own changes were larger than the instances'."
        yield "  Repeat it on a quiet host, with more instances or with --blocks 5."
    if result.cost.memory is not None and (steps := result.cost.memory.steps):
        listed = ", ".join(f"{format_size(step.size)} at {step.population_after}" for step in steps)
        yield f"  steps of memory that no instance explains are excluded: {listed}"


def _label(manifest: Manifest, cell: DensityCell) -> str:
    label = manifest.backends[cell.backend].label
    given = " ".join(f"{name}={value}" for name, value in cell.params.items() if name != "count")
    return " ".join(part for part in (label, cell.workload, given) if part)


def _rows(result: DensityResult) -> dict[str, str]:
    """What the table says of one cell, by meter; empty where it was not measured."""
    cost, start = result.cost, result.cost.start
    trend = "" if start is None else _interval_text(start.per_instance_s, start.low, start.high, format_duration)
    return {
        "instances": str(result.cell.population),
        "memory (MemAvailable)": _estimate(cost.memory),
        "  processes (PSS)": _estimate(cost.pss),
        "    private": _estimate(cost.private),
        "    RAM of the guest": _estimate(cost.guest),
        "    only shared (RSS less PSS)": "" if cost.shared is None else format_size(cost.shared),
        "  kernel (the rest)": _estimate(cost.kernel),
        "    slab": _estimate(cost.slab),
        "    stacks, page tables, per-CPU": _estimate(cost.kernel_other),
        "attributed memory": _estimate(cost.attributed),
        "memory (cgroup charge)": _estimate(cost.charge),
        "disk": _estimate(cost.disk),
        "CPUs while idle": _estimate(cost.idle_cpu, lambda cpus: f"{cpus:.2g}" if abs(cpus) >= _NO_CPU else "0"),
        "start": f"{format_duration(start.first_s)} first, {format_duration(start.last_s)} last" if start else "",
        "start, longer by": trend,
    }


def _estimate(cost: Estimate | None, form: Callable[[float], str] = format_size) -> str:
    return "" if cost is None else _interval_text(cost.per_instance, cost.low, cost.high, form)


def _interval_text(value: float, low: float | None, high: float | None, form: Callable[[float], str]) -> str:
    interval = "no interval" if low is None or high is None else f"{form(low)} to {form(high)}"
    return f"{form(value)}  ({interval})"
