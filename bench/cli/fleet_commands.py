"""``tare fleet run``, ``status``, ``collect`` and ``stop``."""

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import typer

from tare.bench.cli.fleet_display import FleetDisplay, console_of, view_of
from tare.bench.errors import ExitCode, MissingToolError, RunDirectoryError, SuiteError
from tare.bench.fleet.collection import FleetManifest, HostState, load_fleet_manifest
from tare.bench.fleet.hosts import Host, load_hosts
from tare.bench.fleet.purpose import Purpose
from tare.bench.fleet.setup import (
    SUITE_FILE,
    choose_hosts,
    holding,
    is_held,
    listening_address,
    new_manifest,
    read_fleet_suite,
    resumed,
)
from tare.bench.locations import runs_directory
from tare.bench.ready_suites import find_suite
from tare.bench.trees import replace_file
from tare.bench.units import Duration


class RunOptions(msgspec.Struct, frozen=True):
    """The options of ``tare fleet run``. ``times`` are texts by the options' names."""

    suite: Path | None
    hosts: Path
    output: Path | None
    resume: Path | None
    keys: Path | None
    address: str
    types: tuple[str, ...]
    labels: Mapping[str, str]
    times: Mapping[str, str]


def run_command(options: RunOptions, *, as_json: bool) -> ExitCode:
    """Run a suite on hosts, or go on with a fleet. Returns the exit code."""
    hosts = load_hosts(options.hosts)
    if options.resume is not None:
        folder, written = options.resume, _load_suite(options.resume)
        manifest = load_fleet_manifest(folder)
        chosen = tuple(host for host in hosts if host.name in {row.name for row in manifest.hosts})
        address = listening_address(options.address or manifest.address, chosen, encrypted=options.keys is not None)
        manifest = msgspec.structs.replace(resumed(manifest, chosen), address=address)
    else:
        suite = read_fleet_suite(find_suite(options.suite or Path()))
        chosen = choose_hosts(hosts, suite, options.types, options.labels)
        address = listening_address(options.address, chosen, encrypted=options.keys is not None)
        manifest, written = new_manifest(suite, chosen, address), suite.file.written()
        folder = options.output or runs_directory() / f"fleet-{manifest.fleet}"
        if folder.exists() and any(folder.iterdir()):
            raise RunDirectoryError(f"{folder} is not empty", remedy="choose another --output, or --resume it")
    with holding(folder):
        replace_file(folder / SUITE_FILE, msgspec.json.encode(written))
        return _conduct(folder, manifest, chosen, written, options.keys, options.times, Purpose.RUN, as_json=as_json)


def visit_command(
    folder: Path, hosts: Path, keys: Path | None, wait: str, purpose: Purpose, *, as_json: bool
) -> ExitCode:
    """Collect from the hosts of a fleet, or stop them. Returns the exit code."""
    manifest, written = load_fleet_manifest(folder), _load_suite(folder)
    left = {row.name for row in manifest.hosts if row.state is not HostState.COLLECTED}
    chosen = tuple(host for host in load_hosts(hosts) if host.name in left)
    if not chosen:
        typer.echo(
            "every run is collected" if not left else f"none of {', '.join(sorted(left))} is in {hosts}", err=True
        )
        return _code(manifest)
    address = listening_address(manifest.address, chosen, encrypted=keys is not None)
    manifest = msgspec.structs.replace(resumed(manifest, chosen), address=address)
    with holding(folder):
        times = {"wait": wait, "patience": wait}
        return _conduct(folder, manifest, chosen, written, keys, times, purpose, as_json=as_json)


def status_command(folder: Path, *, as_json: bool) -> ExitCode:
    """Print how the hosts stand."""
    manifest = load_fleet_manifest(folder)
    if as_json:
        typer.echo(json.dumps({**msgspec.to_builtins(manifest), "watched": is_held(folder)}, indent=2))
        return _code(manifest)
    console = console_of()
    console.print(view_of(manifest), soft_wrap=True)
    if not is_held(folder) and not all(row.state is HostState.COLLECTED for row in manifest.hosts):
        console.print(f"Nothing follows this fleet now; go on with: tare fleet run --resume {folder}", soft_wrap=True)
    return _code(manifest)


def _conduct(
    folder: Path,
    manifest: FleetManifest,
    hosts: tuple[Host, ...],
    suite: Mapping[str, Any],
    keys: Path | None,
    times: Mapping[str, str],
    purpose: Purpose,
    *,
    as_json: bool,
) -> ExitCode:
    try:
        from tare.bench.fleet.conductor import Conductor, FleetRequest
        from tare.bench.fleet.ssh import SshStarter
    except ImportError as error:
        raise missing_extra(error) from error
    from tare.bench.fleet.keys import require_credentials
    from tare.bench.fleet.tasks import hello_here

    credentials = None if keys is None else require_credentials(keys / "user")
    request = FleetRequest(
        folder,
        hosts,
        suite,
        credentials,
        purpose,
        **{f"{_FIELDS[name]}_s": float(_duration(name, text)) for name, text in times.items()},
        goes_on=bool(manifest.ended_utc) or (purpose is Purpose.RUN and (folder / "fleet.json").exists()),
    )
    with FleetDisplay(console_of(stderr=as_json), manifest) as display:
        conductor = Conductor(request, manifest, display, SshStarter(keys))
        try:
            ended = asyncio.run(conductor.conduct(hello_here()))
        except KeyboardInterrupt:
            if purpose is Purpose.RUN:
                display.step(f"Runs go on on their hosts; go on with: tare fleet run --resume {folder}")
            raise
    if as_json:
        typer.echo(json.dumps(msgspec.to_builtins(ended), indent=2))
    else:
        console = console_of()
        console.print(view_of(ended), soft_wrap=True)
        for difference in ended.differences:
            values = "; ".join(f"{', '.join(names)}: {value}" for value, names in difference.hosts.items())
            console.print(f"differs  {difference.name}: {values}", markup=False, highlight=False, soft_wrap=True)
        console.print(f"\nFleet: {folder.absolute()}", soft_wrap=True, highlight=False)
    return _code(ended, stopping=purpose is Purpose.STOP)


_FIELDS = {"wait": "wait", "patience": "patience", "progress": "interval"}


def missing_extra(error: ImportError) -> MissingToolError:
    """What to install where the libraries for fleets are missing."""
    return MissingToolError(
        f"fleets need a library that is not installed: {error.name}",
        remedy="install tare with its extra: pipx install './[fleet]' (from the checkout)",
    )


def _code(manifest: FleetManifest, *, stopping: bool = False) -> ExitCode:
    if stopping:
        silent = {HostState.SILENT, HostState.LOST}
        return ExitCode.HOSTS_MISSING if any(row.state in silent for row in manifest.hosts) else ExitCode.OK
    if any(row.state is not HostState.COLLECTED for row in manifest.hosts):
        return ExitCode.HOSTS_MISSING
    return ExitCode.FAILED_CELLS if any(row.failed for row in manifest.hosts) else ExitCode.OK


def _load_suite(folder: Path) -> Mapping[str, Any]:
    load_fleet_manifest(folder)
    try:
        found: Mapping[str, Any] = msgspec.json.decode((folder / SUITE_FILE).read_bytes(), type=dict[str, Any])
    except (OSError, msgspec.DecodeError) as error:
        raise RunDirectoryError(f"{folder / SUITE_FILE} cannot be read: {error}") from None
    return found


def _duration(option: str, text: str) -> Duration:
    try:
        return Duration(text)
    except ValueError as error:
        raise SuiteError(f"--{option}", str(error)) from None
