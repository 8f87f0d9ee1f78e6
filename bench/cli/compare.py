"""``tare compare``."""

from pathlib import Path

import typer

from tare.bench.analysis.comparison import ComparisonRequest, compare_request
from tare.bench.cli.output import terminal_width, whole_file
from tare.bench.errors import UnknownNameError
from tare.bench.registry import find_reporters


def compare_command(request: ComparisonRequest, form: str, output: Path) -> None:
    """Write a comparison to a file, or to standard output for ``-``."""
    reporter = find_reporters().get(form)
    if not reporter.compares:
        known = ", ".join(sorted(name for name, one in find_reporters().loaded.items() if one.compares))
        raise UnknownNameError(f"the form {form!r} has no comparison; these have: {known}")
    comparison = compare_request(request)
    writer = reporter()
    writer.width = terminal_width() if str(output) == "-" else None
    with whole_file(output, reporter.suffix) as part:
        writer.write_comparison(comparison, part)
    if str(output) != "-":
        typer.echo(str(output))
