"""``lines``: a line for each comparison of a run, for a chat or a log."""

from pathlib import Path

from tare.bench.analysis import RunResults
from tare.bench.readable import one_line
from tare.bench.reporter import Reporter


class Lines(Reporter):
    """Subject, metric, backend, verdict and ratio to the baseline, separated by tabs."""

    name = "lines"
    summary = "one line for each comparison, for a chat or a log"
    suffix = ".lines.txt"

    def write(self, results: RunResults, output: Path) -> None:
        """Write the lines of all comparisons of the run."""
        lines = []
        for subject in results.analysis.subjects:
            for row in subject.rows:
                for cell in row.cells:
                    if (found := cell.comparison) is not None and found.ratio is not None:
                        texts = (
                            subject.name,
                            row.name,
                            cell.backend.name,
                            found.verdict_adjusted,
                            f"{found.ratio:.4g}",
                        )
                        lines.append("\t".join(one_line(text) for text in texts))
        output.write_text("\n".join([*lines, ""]), "utf-8")
