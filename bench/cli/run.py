"""``tare run``, ``tare report`` and ``tare compare``."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from tare.bench.cli.output import STDOUT, chosen_output, say_where, terminal_width, whole_file
from tare.bench.errors import ExitCode, RunDirectoryError, UnknownNameError
from tare.bench.progress import RunDisplay
from tare.bench.ready_suites import find_suite
from tare.bench.records import Origin
from tare.bench.registry import find_reporters
from tare.bench.session import RunRequest, RunResult, resume_run, start_run
from tare.bench.store import load_run

if TYPE_CHECKING:
    from tare.bench.analysis import RunResults
    from tare.bench.analysis.comparison import ComparisonRequest

_TO_STDOUT = ("answer", "text", "json", "markdown")
_SAMPLES = ("csv", "parquet")
"""Forms that are tables of samples and no reports."""


def run_command(
    suite: Path | None,
    resume: Path | None,
    *,
    output: Path | None,
    only: tuple[str, ...],
    seed: int | None,
    labels: Mapping[str, str],
    bridge: Path | None = None,
    as_json: bool,
    report: bool,
) -> ExitCode:
    """Run or resume, then write the reports that a run always gets. Returns the exit code."""
    console = Console(stderr=as_json, soft_wrap=not sys.stdout.isatty())
    with RunDisplay(console) as display:
        if resume is not None:
            result = resume_run(resume, display)
        elif suite is not None:
            origin = Origin(labels=labels)
            request = RunRequest(find_suite(suite), output, only, seed, origin=origin, bridge=bridge)
            result = start_run(request, display)
        else:
            raise RunDirectoryError("neither a suite nor a run was named")
        display.step("writing the report")
    results = _results_of(result.path)
    write_report(results, "parquet", result.path / "samples.parquet")
    html = result.path / "report.html"
    if report:
        write_report(results, "html", html)
    write_report(results, "json" if as_json else "answer", STDOUT)
    if not as_json:
        _print_ending(console, result, html if report else None)
    return exit_code(result)


def report_command(run: Path, form: str, output: Path | None) -> None:
    """Write one form of a run's report to its usual place, a file, or standard output."""
    results = _results_of(run)
    reporter = find_reporters().get(form)
    if output is not None or form in _TO_STDOUT:
        output = chosen_output(output)
    else:
        output = run / f"{'samples' if form in _SAMPLES else 'report'}{reporter.suffix}"
    write_report(results, form, output)
    say_where(output)


def run_folders(text: str) -> tuple[Path, ...]:
    """The run folders of one side, separated by commas; one whose own name has a comma stands alone."""
    if Path(text).exists():
        return (Path(text),) if text else ()
    return tuple(Path(part) for part in text.split(",") if part)


def index_command(folder: Path, output: Path | None) -> None:
    """Write the page over the runs in a folder, into it unless an output is named."""
    output = folder / "index.html" if output is None else chosen_output(output)
    with whole_file(output, ".html") as part:
        find_reporters().get("html")().write_index(folder, part)
    say_where(output)


def compare_command(request: "ComparisonRequest", form: str, output: Path | None) -> None:
    """Write a comparison to a file, or to standard output for None and ``-``."""
    from tare.bench.analysis.comparison import compare_request

    reporter = find_reporters().get(form)
    if not reporter.compares:
        known = ", ".join(sorted(name for name, one in find_reporters().loaded.items() if one.compares))
        raise UnknownNameError(f"the form {form!r} has no comparison; these have: {known}")
    comparison = compare_request(request)
    writer, output = reporter(), chosen_output(output)
    writer.width = terminal_width() if output == STDOUT else None
    with whole_file(output, reporter.suffix) as part:
        writer.write_comparison(comparison, part)
    say_where(output)


def _results_of(run: Path) -> "RunResults":
    """The run, read and analysed once for all forms. Raises RunDirectoryError."""
    from tare.bench.analysis import RunResults

    return RunResults(load_run(run))


def write_report(results: "RunResults", form: str, output: Path) -> None:
    """Write a report to a file, complete or not at all; ``-`` is standard output."""
    reporter = find_reporters().get(form)()
    reporter.width = terminal_width() if output == STDOUT else None
    again = f"tare report {results.run.path} --format {form} --output FILE"
    remedy = f"the run itself is kept; write the report again with `{again}`"
    with whole_file(output, reporter.suffix, remedy=remedy) as part:
        reporter.write(results, part)


def _print_ending(console: Console, result: RunResult, html: Path | None) -> None:
    outcome = result.outcome
    if outcome.interrupted:
        console.print(f"\nInterrupted after {outcome.done + outcome.failed} instances; everything measured is kept.")
        console.print(f"Go on with: tare run --resume {result.path}", soft_wrap=True, highlight=False)
    if outcome.failed:
        many = "" if outcome.failed == 1 else "s"
        console.print(f"\n{outcome.failed} instance{many} failed; the report says why.")
    if html is not None:
        console.print(f"\nReport: {html.absolute()}", soft_wrap=True, highlight=False)


def exit_code(result: RunResult) -> ExitCode:
    """How `tare` ends after a run."""
    if result.outcome.interrupted:
        return ExitCode.INTERRUPTED
    if result.outcome.failed:
        return ExitCode.FAILED_CELLS
    return ExitCode.OK
