"""``tare list``: what a suite can name."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import Enum
from typing import Any

import msgspec
import typer
from rich.console import Console
from rich.table import Table

from tare.bench.errors import ExitCode, UnknownNameError
from tare.bench.interfaces import Backend, Experiment, Workload
from tare.bench.model import Metric
from tare.bench.readable import as_markup
from tare.bench.ready_suites import describe_ready_suites
from tare.bench.registry import Plugins, find_backends, find_experiments, find_reporters, find_workloads
from tare.bench.units import Duration, Size


class Choice(msgspec.Struct, frozen=True):
    """One thing that a suite can name. ``details`` are values of JSON; ``failure`` says why it cannot be loaded."""

    name: str
    summary: str
    details: Mapping[str, Any] = {}
    failure: str = ""


def list_command(what: str, *, verbose: bool, as_json: bool) -> ExitCode:
    """Print the tables asked for. Raises UnknownNameError for a kind of thing that does not exist."""
    if what not in {*_KINDS, "all"}:
        raise UnknownNameError(f"there is nothing called {what!r} to list; there are: {', '.join(_KINDS)}, all")
    found = {kind: _KINDS[kind]() for kind in (_KINDS if what == "all" else (what,))}
    if as_json:
        typer.echo(json.dumps(msgspec.to_builtins(found), indent=2))
        return ExitCode.OK
    for kind, listed in found.items():
        _print(kind.capitalize(), listed, verbose=verbose)
    return ExitCode.OK


def _print(title: str, listed: Sequence[Choice], *, verbose: bool) -> None:
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("name", no_wrap=True)
    table.add_column("what it is", overflow="fold")
    if verbose and any(one.details for one in listed):
        table.add_column("details", overflow="fold")
    for one in listed:
        text = one.failure or one.summary
        details = [as_markup("\n".join(_as_lines(one.details)))] if len(table.columns) > 2 else []
        table.add_row(as_markup(one.name), as_markup(text), *details)
    Console().print(table)


def _as_lines(details: Mapping[str, Any]) -> Iterator[str]:
    for name, value in details.items():
        if name == "metrics":
            for metric in value:
                direction = f", {metric['direction']} is better" if metric["direction"] else ""
                yield f"{metric['name']} ({metric['unit']}{direction}): {metric['description']}"
        elif isinstance(value, Mapping):
            given = ", ".join(key + ("" if one is None else f" = {one}") for key, one in value.items())
            yield f"{name}: {given or 'none'}"
        else:
            yield f"{name.replace('_', ' ')}: {', '.join(value) if isinstance(value, tuple) else value}"


def _plugins(found: Plugins[Any], details: Callable[[Any], Mapping[str, Any]]) -> list[Choice]:
    loaded = [Choice(name, plugin.summary, details(plugin)) for name, plugin in sorted(found.loaded.items())]
    return loaded + [
        Choice(failure.name, "", failure=f"cannot be loaded ({failure.value}): {failure.reason}")
        for failure in found.failures.values()
    ]


def _backends() -> list[Choice]:
    def details(backend: type[Backend]) -> Mapping[str, Any]:
        least = f"{backend.minimum_memory_bytes // 2**20}MiB"
        return {"least_memory": least, "options": _describe_fields(backend.Options)}

    return _plugins(find_backends(), details)


def _workloads() -> list[Choice]:
    def details(workload: type[Workload]) -> Mapping[str, Any]:
        licence, packages = workload.licence or "not stated", tuple(workload.packages) or ("none",)
        params = _describe_fields(workload.Params)
        return {"metrics": _metrics(workload.metrics), "params": params, "packages": packages, "licence": licence}

    return _plugins(find_workloads(), details)


def _experiments() -> list[Choice]:
    def details(experiment: type[Experiment]) -> Mapping[str, Any]:
        return {"metrics": _metrics(experiment.metrics), "options": _describe_fields(experiment.Options)}

    return _plugins(find_experiments(), details)


def _reporters() -> list[Choice]:
    return _plugins(find_reporters(), lambda reporter: {"suffix": reporter.suffix})


def _suites() -> list[Choice]:
    return [Choice(name, question) for name, question in describe_ready_suites().items()]


def _metrics(metrics: Sequence[Metric]) -> list[Mapping[str, str]]:
    fields = ("name", "unit", "direction", "description")
    return [{field: str(getattr(metric, field) or "") for field in fields} for metric in metrics]


def _describe_fields(kind: type[msgspec.Struct]) -> Mapping[str, str | None]:
    """The fields of a struct by their names in a suite, with their defaults as TOML; None where there is none."""
    return {
        field.encode_name: None if field.default is msgspec.NODEFAULT else _as_in_a_suite(field.default)
        for field in msgspec.structs.fields(kind)
    }


def _as_in_a_suite(default: Any) -> str:
    """A default as it is written in TOML, with what else a choice has."""
    if isinstance(default, Enum):
        return " or ".join(
            repr(choice.value) for choice in (default, *(one for one in type(default) if one != default))
        )
    if isinstance(default, (Size, Duration)):
        return repr(str(default))
    return str(default).lower() if isinstance(default, bool) else repr(default)


_KINDS: Mapping[str, Callable[[], list[Choice]]] = {
    "backends": _backends,
    "workloads": _workloads,
    "experiments": _experiments,
    "reporters": _reporters,
    "suites": _suites,
}
"""What there is to list, and how it is found."""
