"""``tare compare``."""

import sys
import tempfile
from pathlib import Path

import typer

from tare.bench.analysis.comparison import ComparisonRequest, RunComparison, compare_request
from tare.bench.cli.run import terminal_width
from tare.bench.errors import TareError, UnknownNameError
from tare.bench.registry import find_reporters
from tare.bench.reporter import Reporter


def compare_command(request: ComparisonRequest, form: str, output: Path) -> None:
    """Write a comparison to a file, or to standard output for ``-``."""
    reporter = find_reporters().get(form)
    if not reporter.compares:
        known = ", ".join(sorted(name for name, one in find_reporters().loaded.items() if one.compares))
        raise UnknownNameError(f"the form {form!r} has no comparison; these have: {known}")
    comparison = compare_request(request)
    if str(output) != "-":
        _write_whole(reporter, comparison, output)
        typer.echo(str(output))
        return
    with tempfile.TemporaryDirectory(prefix="tare-compare-") as folder:
        part = Path(folder) / f"comparison{reporter.suffix}"
        writer = reporter()
        writer.width = terminal_width()
        writer.write_comparison(comparison, part)
        sys.stdout.write(part.read_text("utf-8"))
        sys.stdout.flush()


def _write_whole(reporter: type[Reporter], comparison: RunComparison, output: Path) -> None:
    """Complete or not at all."""
    part = output.with_name(f".{output.name}.part")
    try:
        reporter().write_comparison(comparison, part)
        part.replace(output)
    except OSError as error:
        raise TareError(f"cannot write {output}: {error.strerror}", remedy="choose another --output") from error
    finally:
        part.unlink(missing_ok=True)
