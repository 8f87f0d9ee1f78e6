"""``tare fleet``: one suite on many hosts, and what it says about hosts that nobody measured."""

from pathlib import Path
from typing import Annotated

import typer

from tare.bench.cli.fleet_report import audit, report
from tare.bench.cli.guard import guard, make_app

app = make_app("fleet", "Run a suite on many hosts; report what they say together, audit plans.")

Hosts = Annotated[Path, typer.Option("--hosts", metavar="FILE", help="Hosts, a TOML file.")]
FleetFolder = Annotated[Path, typer.Argument(metavar="FLEET", help="Folder of a fleet.")]
Keys = Annotated[Path | None, typer.Option("--keys", metavar="DIR", help="Folder that `tare fleet keys` made.")]
Wait = Annotated[str, typer.Option(help="Time within which a host has to answer.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object; progress goes to stderr.")]


@app.command("run")
def run(
    suite: Annotated[
        Path | None, typer.Argument(help="Suite: a TOML file, or the name of a ready one.", show_default=False)
    ] = None,
    *,
    hosts: Hosts,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder of the fleet (runs/fleet-DATE-NAME).")
    ] = None,
    resume: Annotated[Path | None, typer.Option(metavar="FLEET", help="Go on with this fleet.")] = None,
    keys: Keys = None,
    address: Annotated[str, typer.Option(help="ADDRESS[:PORT] of this machine at which hosts connect.")] = "",
    type_: Annotated[list[str] | None, typer.Option("--type", help="Only hosts of this type. Repeatable.")] = None,
    label: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="Only hosts with this label. Repeatable.")
    ] = None,
    wait: Wait = "2m",
    patience: Annotated[str, typer.Option(help="Time to wait for a host that went away.")] = "1h",
    progress: Annotated[str, typer.Option(help="Time between two reports of a host.")] = "10s",
    as_json: AsJson = False,
) -> None:
    """Run a suite on every host, and collect the runs.

    Ctrl-C ends this command only: the runs go on, and --resume takes up what the hosts have.
    Example: tare fleet run quickstart --hosts hosts.toml --keys fleet-keys
    """
    with guard():
        from tare.bench.cli.fleet_commands import RunOptions, run_command
        from tare.bench.cli.values import named_values

        if (suite is None) == (resume is None):
            raise typer.BadParameter("name a suite to run, or a fleet to --resume")
        labels = named_values("--label", label or ())
        times = {"wait": wait, "patience": patience, "progress": progress}
        options = RunOptions(suite, hosts, output, resume, keys, address, tuple(type_ or ()), labels, times)
        raise typer.Exit(run_command(options, as_json=as_json))


@app.command("status")
def status(fleet: FleetFolder, *, as_json: AsJson = False) -> None:
    """Show how the hosts of a fleet stand, as far as this side knows."""
    with guard():
        from tare.bench.cli.fleet_commands import status_command

        raise typer.Exit(status_command(fleet, as_json=as_json))


@app.command("collect")
def collect(fleet: FleetFolder, *, hosts: Hosts, keys: Keys = None, wait: Wait = "2m", as_json: AsJson = False) -> None:
    """Fetch the complete runs that are still on their hosts."""
    with guard():
        from tare.bench.cli.fleet_commands import visit_command
        from tare.bench.fleet.purpose import Purpose

        raise typer.Exit(visit_command(fleet, hosts, keys, wait, Purpose.COLLECT, as_json=as_json))


@app.command("stop")
def stop(fleet: FleetFolder, *, hosts: Hosts, keys: Keys = None, wait: Wait = "2m", as_json: AsJson = False) -> None:
    """Stop the runs of a fleet on its hosts; what they measured is kept."""
    with guard():
        from tare.bench.cli.fleet_commands import visit_command
        from tare.bench.fleet.purpose import Purpose

        raise typer.Exit(visit_command(fleet, hosts, keys, wait, Purpose.STOP, as_json=as_json))


@app.command("worker")
def worker(
    address: Annotated[str, typer.Argument(help="Address that `tare fleet run` prints (tls://192.0.2.1:8786).")],
    *,
    name: Annotated[str, typer.Option(help="Name of this host in the hosts file.")],
    keys: Annotated[
        Path | None, typer.Option("--keys", metavar="DIR", help="Folder of this host's certificate (hosts/NAME).")
    ] = None,
    patience: Annotated[str, typer.Option(help="Time to try to connect before giving up.")] = "1h",
    detach: Annotated[bool, typer.Option("--detach", help="Return once the worker runs; it stays.")] = False,
) -> None:
    """Work for a fleet on this host, until the fleet needs it no more."""
    with guard():
        from tare.bench.cli.fleet_worker import detach_command, worker_command

        raise typer.Exit((detach_command if detach else worker_command)(address, name, keys, patience))


@app.command("keys")
def keys_(
    *,
    hosts: Hosts,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the keys.")] = Path("fleet-keys"),
    days: Annotated[int, typer.Option(min=1, max=3650, help="Days for which the certificates are valid.")] = 365,
) -> None:
    """Make the certificates with which hosts and this machine know one another."""
    with guard():
        from tare.bench.fleet.hosts import load_hosts
        from tare.bench.fleet.keys import make_keys

        for line in make_keys(output, [host.name for host in load_hosts(hosts)], days):
            typer.echo(line)


app.command()(report)
app.command()(audit)
