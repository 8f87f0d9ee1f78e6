"""The commands of ``tare``."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tare.bench.cli.guard import Debug, complain, guard, make_app
from tare.bench.cli.streams import lasting_streams
from tare.bench.configuration import configured_defaults, option_error
from tare.bench.errors import ExitCode, TareError

if TYPE_CHECKING:
    from tare.bench.ledger import Cleaned

app = make_app(
    "tare", "Measure what isolation costs: the same work on bare metal, in a container and in a virtual machine."
)

RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run.")]
NewFolder = Annotated[Path | None, typer.Option("--output", "-o", help="Folder of the run (runs/DATE-NAME).")]
OutputFile = Annotated[Path | None, typer.Option("--output", "-o", help="File to write; - for standard output.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object; progress goes to stderr.")]
WriteReport = Annotated[bool, typer.Option("--report/--no-report", help="Write report.html into the run's folder.")]
OnlyBackends = Annotated[list[str] | None, typer.Option("--backend", "-b", help="Only this backend. Repeatable.")]
Memory = Annotated[str | None, typer.Option(help="Memory of an instance (512MiB).")]
Cpus = Annotated[int | None, typer.Option(help="CPUs of an instance (1).")]
ImageName = Annotated[str, typer.Option(help="Image, by digest prefix or name (the newest).")]


def every_command() -> typer.Typer:
    """All commands, those of the groups too. To be called once."""
    from tare.bench.cli.completion import completion
    from tare.bench.cli.fleet import app as fleet_app
    from tare.bench.cli.gate import app as gate_app
    from tare.bench.cli.history import app as history_app
    from tare.bench.cli.image import app as image_app
    from tare.bench.cli.suite import app as suite_app
    from tare.bench.cli.tune import app as tune_app

    for group in (fleet_app, gate_app, history_app, image_app, suite_app, tune_app):
        app.add_typer(group)
    app.command()(completion)
    return app


def run_app() -> None:
    """Run the command that the arguments name, with streams that last as long as it does."""
    from tare.bench.cli.completion import COMPLETING

    every_command()
    if COMPLETING in os.environ:
        from typer.completion import completion_init  # type: ignore[attr-defined]  # typer re-exports it

        completion_init()
    with lasting_streams():
        app(default_map=_defaults())


def _defaults() -> dict[str, dict[str, Any]]:
    """What the user's configuration gives as defaults of options, as click wants it: by the names of parameters."""
    try:
        given = configured_defaults()
        if not given:
            return {}
        commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]  # it is a group
        defaults: dict[str, dict[str, Any]] = {}
        for name, options in given.items():
            if name not in commands:
                raise option_error(name, "there is no such command", list(commands))
            known = {flag[2:]: one for one in commands[name].params for flag in one.opts if flag.startswith("--")}
            if unknown := next((option for option in options if option not in known), None):
                raise option_error(name, f"there is no option --{unknown}", list(known))
            defaults[name] = {str(known[option].name): value for option, value in options.items()}
    except TareError as error:
        complain(error.message, error.remedy)
        raise SystemExit(error.exit_code) from None
    return defaults


def _given(**options: Any) -> dict[str, Any]:
    """Without the options that were left out: their defaults are those of what is made of them."""
    given = {name: value for name, value in options.items() if value is not None}
    return {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}


def _print_version(value: bool) -> None:  # noqa: FBT001 - typer's callback
    if value:
        from importlib.metadata import version

        typer.echo(f"tare {version('tarebench')}")
        raise typer.Exit(ExitCode.OK)


@app.callback()
def common(
    *,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of a failure.")] = False,
    version: Annotated[  # noqa: ARG001 - handled by its callback
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Options before the command."""
    Debug.enabled = debug


@app.command()
def run(
    suite: Annotated[
        Path | None, typer.Argument(help="Suite: a TOML file, or the name of a ready one (tare list suites).")
    ] = None,
    *,
    output: NewFolder = None,
    backend: OnlyBackends = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the random order (the suite's, or drawn).")] = None,
    resume: Annotated[Path | None, typer.Option(metavar="RUN", help="Resume this run where it stopped.")] = None,
    label: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="Label of the run (commit=abc123). Repeatable.")
    ] = None,
    bridge: Annotated[
        Path | None,
        typer.Option(metavar="RUN", help="Measure the image and options of this earlier run too, in the same blocks."),
    ] = None,
    as_json: AsJson = False,
    report: WriteReport = True,
) -> None:
    """Run a suite and write its report."""
    with guard():
        from tare.bench.cli.run import run_command
        from tare.bench.cli.values import named_values

        if (suite is None) == (resume is None):
            raise typer.BadParameter("name a suite to run, or a run to --resume")
        if resume is not None and bridge is not None:
            raise typer.BadParameter("a bridge that was stopped goes on with --resume alone: leave out --bridge")
        if resume is not None and label:
            raise typer.BadParameter("a run keeps its labels when it is resumed: leave out --label")
        code = run_command(
            suite,
            resume,
            output=output,
            only=tuple(backend or ()),
            seed=seed,
            labels=named_values("--label", label or ()),
            bridge=bridge,
            as_json=as_json,
            report=report,
        )
        raise typer.Exit(code)


@app.command()
def report(
    run: RunFolder,
    *,
    form: Annotated[
        str,
        typer.Option(
            "--format",
            "-f",
            help="html, answer, text, json, markdown, junit, csv, parquet, pyperf, openmetrics or a plug-in.",
        ),
    ] = "html",
    output: OutputFile = None,
    index: Annotated[bool, typer.Option("--index", help="Page over all runs in the folder RUN.")] = False,
) -> None:
    """Write a report of a run, complete or not."""
    with guard():
        from tare.bench.cli.run import index_command, report_command

        if index:
            index_command(run, output)
        else:
            report_command(run, form, output)


@app.command()
def compare(
    runs: Annotated[str, typer.Argument(metavar="RUN[,RUN...]", help="Run folder, or several of one side.")],
    others: Annotated[
        str | None,
        typer.Argument(metavar="[OTHER[,OTHER...]]", help="Second run, or several.", show_default=False),
    ] = None,
    *,
    backends: Annotated[
        tuple[str, str] | None, typer.Option(metavar="A B", help="Two backends of RUN, as the suite names them.")
    ] = None,
    by: Annotated[
        tuple[str, str, str] | None,
        typer.Option(metavar="PARAM A B", help="Two values of a workload parameter in RUN."),
    ] = None,
    allow: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FIELD",
            help="Condition, or group of them, that may differ: it is reported as a confound. Repeatable.",
        ),
    ] = None,
    margin: Annotated[
        float | None, typer.Option(min=0, help="Ratios up to 1 + MARGIN are equivalent (the run's margin).")
    ] = None,
    form: Annotated[str, typer.Option("--format", "-f", help="text, json, markdown or a plug-in.")] = "text",
    output: OutputFile = None,
) -> None:
    """Compare two runs, two sets of runs, two backends or two parameter values.

    Ratios are the second over the first. Between runs, what isolation costs is compared; levels, which hold the host's
    part, have a verdict only with three runs a side. Runs made under different conditions are refused (exit code 7).
    Examples: tare compare runs/mon runs/tue; tare compare a1,a2,a3 b1,b2,b3; tare compare runs/mon --backends native
    vm; tare compare runs/mon --by block_size 4KiB 64KiB.
    """
    with guard():
        from tare.bench.analysis.comparison import ComparisonRequest
        from tare.bench.cli.run import compare_command, run_folders

        if sum(one is not None for one in (others, backends, by)) != 1:
            raise typer.BadParameter("name a second run, or --backends A B, or --by PARAM A B")
        first, second = run_folders(runs), run_folders(others or "")
        if not second and len(first) > 1:
            raise typer.BadParameter("--backends and --by compare within one run: name one RUN")
        request = ComparisonRequest(first, second, backends, by, tuple(allow or ()), margin)
        compare_command(request, form, output)


@app.command()
def density(
    targets: Annotated[list[str], typer.Argument(metavar="BACKEND... | SUITE", help="Backends, or a suite file.")],
    *,
    count: Annotated[int, typer.Option(help="Number of instances to stop at.")] = 50,
    batch: Annotated[
        int | None, typer.Option(help="Starts between two memory readings.", show_default="a fiftieth of --count")
    ] = None,
    rate: Annotated[float | None, typer.Option(help="Starts per second; one after another without.")] = None,
    memory_floor: Annotated[
        str | None, typer.Option(help="Memory to keep available on the host (a tenth of it, at least 1GiB).")
    ] = None,
    start_limit: Annotated[
        str | None, typer.Option(help="Stop after three successive starts that take longer than this, e.g. 5s.")
    ] = None,
    objective: Annotated[
        str | None, typer.Option(help="Stop when the worst p99 of the workload exceeds this, e.g. 20ms.")
    ] = None,
    workload: Annotated[str, typer.Option(help="Workload that every instance runs (none: idle).")] = "",
    param: Annotated[list[str] | None, typer.Option(help="Parameter of the workload, name=value. Repeatable.")] = None,
    memory: Memory = None,
    cpus: Cpus = None,
    blocks: Annotated[int | None, typer.Option(help="Ramps per backend, interleaved (1).")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the random order (drawn).")] = None,
    output: NewFolder = None,
    as_json: AsJson = False,
    report: WriteReport = True,
) -> None:
    """Start instances until a resource runs out; report their cost."""
    with guard():
        from tare.bench.cli.density import DensityRequest, density_command

        batch = max(1, count // 50) if batch is None else batch
        options = _given(count=count, batch=batch, rate=rate, memory_floor=memory_floor)
        options |= _given(start_limit=start_limit, objective=objective)
        envelope, sampling = _given(memory=memory, cpus=cpus), _given(blocks=blocks, seed=seed)
        params = tuple(param or ())
        request = DensityRequest(tuple(targets), options, envelope, workload, params, sampling, output)
        raise typer.Exit(density_command(request, as_json=as_json, report=report))


@app.command()
def plan(
    runs: Annotated[
        list[Path] | None, typer.Argument(metavar="[RUN]...", help="Folders of density runs.", show_default=False)
    ] = None,
    *,
    cpus: Annotated[float | None, typer.Option(help="CPUs of a host (as on the measured host).")] = None,
    memory: Annotated[str, typer.Option(help="Memory of a host (as on the measured host).")] = "",
    disk: Annotated[str, typer.Option(help="Disk of a host (none: disk is not a limit).")] = "",
    overcommit: Annotated[
        list[str] | None, typer.Option(help="Overcommit factor per resource, e.g. cpu=4. Repeatable.")
    ] = None,
    reserve: Annotated[
        list[str] | None,
        typer.Option(
            help="Amount reserved for the host, e.g. memory=2GiB (a tenth, at least 1GiB), cpu=2 (a twentieth, at "
            "least 0.5), disk=50GiB (a tenth). Repeatable."
        ),
    ] = None,
    instances: Annotated[
        int | None, typer.Option(help="Number of instances to place: report how many hosts they need.")
    ] = None,
    backend: OnlyBackends = None,
    basis: Annotated[str, typer.Option(help="Plan by measured use, limits, or auto (guests: limits).")] = "auto",
    raised: Annotated[list[str] | None, typer.Option(help="Ignore this limit when planning. Repeatable.")] = None,
    fleet: Annotated[Path | None, typer.Option(help="Fleet, a TOML file of host types and demands.")] = None,
    hosts: Annotated[int | None, typer.Option(min=1, help="Number of hosts there are, for --growth.")] = None,
    spare: Annotated[int | None, typer.Option(min=0, help="Number of hosts whose loss must be survived.")] = None,
    domain: Annotated[str, typer.Option(help="Failure domains, e.g. rack=4: the loss of one must be survived.")] = "",
    maintenance: Annotated[float | None, typer.Option(help="Share of the hosts in maintenance, e.g. 0.05.")] = None,
    growth: Annotated[str, typer.Option(help="Growth of --instances, e.g. '8 % a month'.")] = "",
    demand: Annotated[Path | None, typer.Option(help="Past demand, a CSV file: month,instances.")] = None,
    prices: Annotated[Path | None, typer.Option(help="Prices, a TOML file: report costs and break-even.")] = None,
    size: Annotated[str, typer.Option(help="Report the overhead of instances of this memory.")] = "",
    what_if: Annotated[Path | None, typer.Option(help="Cases, a TOML file: one table over all of them.")] = None,
    audit: Annotated[Path | None, typer.Option(metavar="PLAN", help="Kept plan (JSON): compare it with RUN.")] = None,
    export: Annotated[str, typer.Option(help="Write kubernetes, nomad or systemd settings instead.")] = "",
    form: Annotated[str, typer.Option("--format", "-f", help="table, json, markdown or html.")] = "table",
    output: OutputFile = None,
) -> None:
    """Plan instances per host, and hosts, from density runs.

    Examples: tare plan runs/density --cpus 64 --memory 512GiB --disk 4TiB --overcommit cpu=4 --instances 5000;
    tare plan --fleet fleet.toml.
    """
    given = locals()  # the options are the fields of a request, by the same names
    with guard():
        from tare.bench.cli.plan import PlanRequest, plan_command

        raise typer.Exit(plan_command(PlanRequest(**_given(**given))))


@app.command("list")
def list_(
    what: Annotated[str, typer.Argument(help="backends, workloads, experiments, reporters, suites or all.")] = "all",
    *,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Metrics, parameters, packages, licences.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object, details included.")] = False,
) -> None:
    """List what a suite can name, plug-ins included."""
    with guard():
        from tare.bench.cli.listing import list_command

        raise typer.Exit(list_command(what, verbose=verbose, as_json=as_json))


@app.command()
def doctor(
    *,
    noise: Annotated[
        bool,
        typer.Option(
            "--noise", help="Measure bare metal against itself: the smallest difference that can be detected here."
        ),
    ] = False,
    time: Annotated[str, typer.Option(help="With --noise: duration of the measurement.")] = "2m",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="With --noise: folder to keep the run in.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    fix: Annotated[bool, typer.Option("--fix", help="Install the missing host packages, after asking.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="With --fix: do not ask.")] = False,
    prove_kvm: Annotated[
        bool, typer.Option("--prove-kvm", help="Boot a guest under KVM now, whatever was found before.")
    ] = False,
    forget_kvm: Annotated[
        bool, typer.Option("--forget-kvm", help="Forget what was found about KVM; the next run proves it again.")
    ] = False,
    report: Annotated[
        Path | None,
        typer.Option(
            "--report",
            metavar="FILE",
            help="Prove KVM, and write all that helps to understand this host from afar; no secrets, - for standard "
            "output.",
        ),
    ] = None,
) -> None:
    """Check what works on this host, and how to get what does not.

    The exit code is 1 if anything does not work. With --noise: how noisy this host is, why, and what helps.
    """
    with guard():
        if noise and (prove_kvm or forget_kvm or report is not None):
            raise typer.BadParameter("--noise goes with none of --prove-kvm, --forget-kvm and --report")
        if noise:
            from tare.bench.cli.noise import noise_command

            raise typer.Exit(noise_command(time, output, as_json=as_json))
        if output is not None:
            raise typer.BadParameter("--output belongs to --noise")
        from tare.bench.cli.doctor import doctor_command, fix_command, forget_command, prove_command

        if fix:
            fix_command(ask=not yes)

        if forget_kvm:
            forget_command()
        if prove_kvm or report is not None:
            raise typer.Exit(prove_command(report))
        if forget_kvm:
            raise typer.Exit
        raise typer.Exit(doctor_command(as_json=as_json))


@app.command("exec", context_settings={"ignore_unknown_options": True})
def exec_(
    backend: Annotated[str, typer.Argument(help="bare-metal, native, vm or a plug-in.")],
    command: Annotated[list[str] | None, typer.Argument(help="Program and its arguments, after --.")] = None,
    *,
    memory: Memory = None,
    cpus: Cpus = None,
    image: ImageName = "",
    timeout: Annotated[str, typer.Option(help="Time after which the command is killed.")] = "10m",
    stdin: Annotated[bool, typer.Option("--stdin", "-i", help="Pass standard input on to the command.")] = False,
    option: Annotated[list[str] | None, typer.Option(help="Option of the backend, name=value. Repeatable.")] = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="Print the steps of the start without taking them.")
    ] = False,
) -> None:
    """Run a command in a fresh instance, with its output and exit code."""
    with guard():
        from tare.bench.cli.exec import InstanceRequest, exec_command, explain_command

        request = InstanceRequest(backend, _given(memory=memory, cpus=cpus), image, tuple(option or ()))
        if explain:
            raise typer.Exit(explain_command(request))
        raise typer.Exit(exec_command(request, command or (), timeout=timeout, stdin=stdin))


@app.command(context_settings={"ignore_unknown_options": True})
def shell(
    backend: Annotated[str, typer.Argument(help="bare-metal, native or a plug-in.")],
    command: Annotated[list[str] | None, typer.Argument(help="Program to run instead of the shell, after --.")] = None,
    *,
    memory: Memory = None,
    cpus: Cpus = None,
    image: ImageName = "",
) -> None:
    """Open a shell in a fresh instance; ends with its exit code."""
    with guard():
        from tare.bench.cli.exec import InstanceRequest
        from tare.bench.cli.shell import shell_command

        request = InstanceRequest(backend, _given(memory=memory, cpus=cpus), image)
        raise typer.Exit(shell_command(request, tuple(command or ())))


@app.command()
def clean(*, as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False) -> None:
    """Remove what killed runs left behind; live runs are not touched."""
    with guard():
        from tare.bench.cleaning import clean_up

        cleaned = clean_up()
        if as_json:
            import json

            failed = {str(entry): reason for entry, reason in cleaned.failed}
            removed, unjudged = list(map(str, cleaned.removed)), list(map(str, cleaned.unjudged))
            typer.echo(json.dumps({"removed": removed, "failed": failed, "left_alone": unjudged}, indent=2))
        else:
            _print_cleaned(cleaned)
        if failure := cleaned.failure():
            raise failure


def _print_cleaned(cleaned: "Cleaned") -> None:
    for entry in cleaned.removed:
        typer.echo(f"removed {entry}")
    for path in cleaned.unjudged:
        typer.echo(
            f"left alone: {path} is another host's, another user's or tare 0.1's, or its file system has no locks",
            err=True,
        )
    if not (cleaned.removed or cleaned.failed or cleaned.unjudged):
        typer.echo("nothing was left behind")
