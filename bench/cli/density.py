"""``tare density``: one ramp a backend, and what an instance costs by it."""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tare.bench.analysis import RunResults
from tare.bench.analysis.cost import Estimate
from tare.bench.analysis.density import DensityCell, DensityResult, StartTrend
from tare.bench.catalogue import Builtin
from tare.bench.cli.run import write_report
from tare.bench.cli.values import suite_of_options, typed_values
from tare.bench.errors import ExitCode, SuiteError
from tare.bench.model import Event, EventKind, Manifest
from tare.bench.progress import RunDisplay
from tare.bench.session import RunRequest, start_run
from tare.bench.store import LoadedRun, load_run
from tare.bench.units import format_duration, format_size

PLACE = Path("tare density")
"""What errors name as the place of a suite that was made from options."""


_NO_CPU = 1e-7
"""A CPU that is busy for three seconds a year: less is the arithmetic's, not the instance's."""


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
    if result.outcome.interrupted:
        return ExitCode.INTERRUPTED
    return ExitCode.FAILED_CELLS if result.outcome.failed else ExitCode.OK


def make_request(request: DensityRequest) -> RunRequest:
    """A suite's file as it is, or a suite of one experiment from the options."""
    if len(request.targets) == 1 and request.targets[0].endswith(".toml"):
        return RunRequest(Path(request.targets[0]), request.output, seed=request.sampling.get("seed"))
    experiment: dict[str, Any] = {"kind": Builtin.DENSITY, "options": dict(request.options)}
    if request.workload:
        experiment |= {"workload": request.workload, "params": typed_values("--param", request.params)}
    elif request.params:
        raise SuiteError("--param", "no --workload is named that it could be for")
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
            console.print(Text(f"\n{event.cell}: {event.message}"))
            if event.details.get("remedy"):
                console.print(Text(f"  what to do: {event.details['remedy']}"))


def print_costs(console: Console, manifest: Manifest, results: Sequence[DensityResult]) -> None:
    """One table: a column a cell, a row a meter; below it, why each ramp ended."""
    table = Table(title="Cost of one more instance (95 % interval)", title_justify="left", title_style="bold", box=None)
    table.add_column("by", no_wrap=True)
    labels = [_label(manifest, result.cell) for result in results]
    for label in labels:
        table.add_column(Text(label), overflow="fold")
    for name, show in _ROWS:
        shown = [show(result) for result in results]
        if any(shown):
            table.add_row(name, *(Text(text or "not measured") for text in shown))
    console.print()
    console.print(table)
    for label, result in zip(labels, results, strict=True):
        cost = result.cost
        for ending in result.cell.endings:
            runs_out = f"; what runs out is {ending.resource}" if ending.resource else ""
            console.print(Text(f"\n{label}: ended with {ending.population}: {ending.message}{runs_out}"))
            if ending.remedy:
                console.print(Text(f"  what to do: {ending.remedy}"))
            if ending.dead:
                console.print(Text(f"  {ending.dead} of them were dead at the end"))
        if cost.host_noise_dominates:
            console.print(
                Text(
                    "  MemAvailable says nothing about it: the host did more meanwhile than the instances. "
                    "Run it on a quiet host, with more instances or with --blocks 5"
                )
            )
        if cost.memory is not None and cost.memory.steps:
            jumps = ", ".join(f"{format_size(step.size)} at {step.population_after}" for step in cost.memory.steps)
            console.print(Text(f"  jumps of memory that no instance explains are left out: {jumps}"))


def _label(manifest: Manifest, cell: DensityCell) -> str:
    label = manifest.backends[cell.backend].label
    given = " ".join(f"{name}={value}" for name, value in cell.params.items() if name != "count")
    return " ".join(part for part in (label, cell.workload, given) if part)


def _size(cost: Estimate | None) -> str:
    if cost is None:
        return ""
    return _with_interval(cost.per_instance, cost.low, cost.high, format_size)


def _cpus(cost: Estimate | None) -> str:
    return "" if cost is None else _with_interval(cost.per_instance, cost.low, cost.high, _cpu_text)


def _cpu_text(value: float) -> str:
    return f"{value:.2g}" if abs(value) >= _NO_CPU else "0"


def _with_interval(value: float, low: float | None, high: float | None, form: Callable[[float], str]) -> str:
    interval = "no interval" if low is None or high is None else f"{form(low)} to {form(high)}"
    return f"{form(value)}  ({interval})"


def _difference(value: float | None) -> str:
    return "" if value is None else format_size(value)


def _start(trend: StartTrend | None) -> str:
    if trend is None:
        return ""
    return f"{format_duration(trend.first_s)} first, {format_duration(trend.last_s)} last"


def _start_slope(trend: StartTrend | None) -> str:
    if trend is None:
        return ""
    return _with_interval(trend.per_instance_s, trend.low, trend.high, format_duration)


_ROWS: tuple[tuple[str, Callable[[DensityResult], str]], ...] = (
    ("instances", lambda result: str(result.cell.population)),
    ("memory (MemAvailable)", lambda result: _size(result.cost.memory)),
    ("  processes (PSS)", lambda result: _size(result.cost.pss)),
    ("    private", lambda result: _size(result.cost.private)),
    ("    RAM of the guest", lambda result: _size(result.cost.guest)),
    ("    only shared (RSS less PSS)", lambda result: _difference(result.cost.shared)),
    ("  kernel (the rest)", lambda result: _size(result.cost.kernel)),
    ("    slab", lambda result: _size(result.cost.slab)),
    ("    stacks, page tables, per-CPU", lambda result: _size(result.cost.kernel_other)),
    ("memory that has a name", lambda result: _size(result.cost.attributed)),
    ("memory (cgroup charge)", lambda result: _size(result.cost.charge)),
    ("disk", lambda result: _size(result.cost.disk)),
    ("CPUs while idle", lambda result: _cpus(result.cost.idle_cpu)),
    ("start", lambda result: _start(result.cost.start)),
    ("start, longer by", lambda result: _start_slope(result.cost.start)),
)
