"""``tare list``: what a suite can name."""

from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table

from tare.bench.errors import ExitCode, UnknownNameError
from tare.bench.interfaces import Backend, Experiment, Workload
from tare.bench.readable import as_markup
from tare.bench.registry import Plugins, find_backends, find_experiments, find_reporters, find_workloads
from tare.bench.units import Duration, Size


def list_command(what: str, *, verbose: bool) -> ExitCode:
    """Print the tables asked for. Raises UnknownNameError for a kind of thing that does not exist."""
    if what not in {*_KINDS, "all"}:
        raise UnknownNameError(f"there is nothing called {what!r} to list; there are: {', '.join(_KINDS)}, all")
    for kind in _KINDS if what == "all" else (what,):
        find, details = _KINDS[kind]
        _print(kind.capitalize(), find(), details if verbose else None)
    return ExitCode.OK


def _print(title: str, plugins: Plugins[Any], details: Callable[[Any], str] | None) -> None:
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("name", no_wrap=True)
    table.add_column("what it is", overflow="fold")
    if details:
        table.add_column("details", overflow="fold")
    for name, plugin in sorted(plugins.loaded.items()):
        table.add_row(name, as_markup(plugin.summary), *([as_markup(details(plugin))] if details else []))
    for failure in plugins.failures.values():
        table.add_row(as_markup(failure.name), as_markup(f"cannot be loaded ({failure.value}): {failure.reason}"))
    Console().print(table)


def _backend_details(backend: type[Backend]) -> str:
    least = f"least memory {backend.minimum_memory_bytes // 2**20}MiB"
    return f"{least}\noptions: {_describe_fields(backend.Options)}"


def _workload_details(workload: type[Workload]) -> str:
    lines = [
        f"{metric.name} ({metric.unit}, {metric.direction} is better): {metric.description}"
        for metric in workload.metrics
    ]
    lines.append(f"params: {_describe_fields(workload.Params)}")
    lines.append(f"packages: {', '.join(workload.packages) or 'none'}; licence: {workload.licence or 'not stated'}")
    return "\n".join(lines)


def _experiment_details(experiment: type[Experiment]) -> str:
    lines = [f"{metric.name} ({metric.unit}): {metric.description}" for metric in experiment.metrics]
    return "\n".join([*lines, f"options: {_describe_fields(experiment.Options)}"])


def _describe_fields(kind: type[msgspec.Struct]) -> str:
    shown = []
    for field in msgspec.structs.fields(kind):
        default = "" if field.default is msgspec.NODEFAULT else f" = {_as_in_a_suite(field.default)}"
        shown.append(field.encode_name + default)
    return ", ".join(shown) or "none"


def _as_in_a_suite(default: Any) -> str:
    """A default as it is written in TOML, with what else a choice has."""
    if isinstance(default, Enum):
        return " or ".join(
            repr(choice.value) for choice in (default, *(one for one in type(default) if one != default))
        )
    if isinstance(default, (Size, Duration)):
        return repr(str(default))
    return str(default).lower() if isinstance(default, bool) else repr(default)


_KINDS: Mapping[str, tuple[Callable[[], Plugins[Any]], Callable[[Any], str] | None]] = {
    "backends": (find_backends, _backend_details),
    "workloads": (find_workloads, _workload_details),
    "experiments": (find_experiments, _experiment_details),
    "reporters": (find_reporters, None),
}
"""What there is to list: how it is found, and the details of one that ``--verbose`` adds."""
