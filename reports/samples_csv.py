"""The samples as CSV (RFC 4180 but for plain line ends, UTF-8): a row a sample, for spreadsheets and scripts."""

from pathlib import Path

from tare.bench.errors import TareError
from tare.bench.interfaces import Reporter
from tare.bench.store import load_run

_FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""What a spreadsheet takes for the beginning of a formula."""


class CsvReporter(Reporter):
    """Every sample, warm-ups included; ``value`` in base units (``unit``), ``params`` as JSON.

    A name that a spreadsheet would execute as a formula gets an apostrophe before it.
    """

    name = "csv"
    summary = "every sample, a row each, in base units (CSV)"
    suffix = ".csv"

    def write(self, run: Path, output: Path) -> None:
        """Write the table. Raises RunDirectoryError, TareError if the file cannot be written."""
        from tare.reports.frames import sample_frame

        frame = sample_frame(load_run(run))
        for name in frame.select_dtypes("category"):
            frame[name] = frame[name].cat.rename_categories(_inert)
        try:
            frame.to_csv(output, index=False, lineterminator="\n")
        except OSError as error:
            raise TareError(f"cannot write {output}: {error.strerror or error}") from error


def _inert(text: str) -> str:
    return f"'{text}" if text.startswith(_FORMULA) else text
