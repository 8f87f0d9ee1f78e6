"""``tare fleet report`` and ``tare fleet audit``: what the runs of a fleet's hosts say together."""

from pathlib import Path
from typing import Annotated

import typer

from tare.bench.cli.guard import guard

FLEET_FILE_FORM = "fleet-file"
"""The form that is a file for ``tare plan --fleet``."""

_Folder = Annotated[Path, typer.Argument(metavar="FLEET", help="Folder of a fleet.")]


def report(
    folder: _Folder,
    *,
    form: Annotated[
        str, typer.Option("--format", "-f", help="text, html, markdown, json, fleet-file or a plug-in's.")
    ] = "text",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File; - for standard output. html: fleet.html in FLEET.")
    ] = None,
    margin: Annotated[float | None, typer.Option(help="Differences up to this share count as the same.")] = None,
    instances: Annotated[int | None, typer.Option(min=1, help="fleet-file: how many instances of each type.")] = None,
) -> None:
    """Report what isolation costs over the hosts of a fleet, and on a host that nobody measured."""
    with guard():
        from tare.bench.capacity.by_host import fleet_file
        from tare.bench.cli.output import chosen_output, say_where, terminal_width, whole_file
        from tare.bench.errors import UnknownNameError
        from tare.bench.fleet.collection import load_collection
        from tare.bench.fleet.report import make_report, report_path
        from tare.bench.registry import find_reporters

        reporters = {name: one for name, one in find_reporters().loaded.items() if one.fleets}
        if form != FLEET_FILE_FORM and form not in reporters:
            known = ", ".join((*sorted(reporters), FLEET_FILE_FORM))
            raise UnknownNameError(f"a fleet's report has no form {form!r}; there are: {known}")
        collection = load_collection(folder)
        found = make_report(collection, margin=margin)
        target = chosen_output(report_path(collection, ".html") if output is None and form == "html" else output)
        if form == FLEET_FILE_FORM:
            text = fleet_file(found, instances)
            with whole_file(target, ".toml") as part:
                part.write_text(text, "utf-8")
        else:
            reporter = reporters[form]()
            reporter.width = terminal_width() if target == Path("-") else None
            with whole_file(target, reporter.suffix) as part:
                reporter.write_fleet(found, part)
        say_where(target)


def audit(
    plan: Annotated[Path, typer.Argument(help="Plan, from `tare plan --format json -o FILE`.")],
    folder: _Folder,
    *,
    host: Annotated[list[str] | None, typer.Option(help="Only this host of the fleet. Repeatable.")] = None,
    form: Annotated[str, typer.Option("--format", "-f", help="table, markdown or json.")] = "table",
    output: Annotated[Path | None, typer.Option("--output", "-o", help="File; - for standard output.")] = None,
) -> None:
    """Audit a plan with the density ramps of a fleet's hosts: predicted against reached. The outcomes are kept."""
    with guard():
        import json

        import msgspec

        from tare.bench.capacity.audit import keep_audit, kept_audits
        from tare.bench.capacity.tables import AUDIT_HEAD, audit_rows
        from tare.bench.cli.output import chosen_output, say_where, whole_file
        from tare.bench.cli.plan import FORMS, audits_file
        from tare.bench.cli.plan_forms import as_form
        from tare.bench.errors import UnknownNameError
        from tare.bench.fleet.audits import audit_hosts, coverage_words
        from tare.bench.fleet.collection import load_collection

        if form not in FORMS:
            raise UnknownNameError(f"an audit has no form {form!r}; there are: {', '.join(FORMS)}")
        found = audit_hosts(plan, load_collection(folder), host or ())
        for one in found.audits.values():
            keep_audit(one, audits_file())
        kept = kept_audits(audits_file())
        lines = [*(f"{name}: not audited: {why}" for name, why in found.left_out.items()), *coverage_words(kept)]
        if form == "json":
            document = {
                "plan": str(plan),
                "audits": {name: msgspec.to_builtins(one) for name, one in found.audits.items()},
                "left_out": found.left_out,
                "coverage": coverage_words(kept),
            }
            text = json.dumps(document, indent=2) + "\n"
        else:
            rows = [[name, *row] for name, one in found.audits.items() for row in audit_rows(one)]
            text = as_form(form, f"Audit of {plan} by {folder}", ("host", *AUDIT_HEAD), rows, lines)
        target = chosen_output(output)
        with whole_file(target) as part:
            part.write_text(text, "utf-8")
        say_where(target)
