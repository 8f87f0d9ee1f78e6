"""Where the command line writes what it was asked for: a file, complete or not at all, or standard output."""

import contextlib
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tare.bench.errors import TareError


def terminal_width() -> int | None:
    """Columns of the terminal that standard output is, or None."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


@contextlib.contextmanager
def whole_file(output: Path, suffix: str = "", *, remedy: str = "choose another --output") -> Iterator[Path]:
    """A file to write, which then becomes ``output``, or is printed if that is ``-``. Raises TareError."""
    to_stdout = str(output) == "-"
    try:
        descriptor, name = tempfile.mkstemp(dir=None if to_stdout else output.parent, prefix=".tare-", suffix=suffix)
        os.close(descriptor)
        part = Path(name)
        try:
            yield part
            if to_stdout:
                sys.stdout.write(part.read_text("utf-8"))
                sys.stdout.flush()
            else:
                part.chmod(0o644)
                part.replace(output)
        finally:
            part.unlink(missing_ok=True)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise TareError(f"cannot write {error.filename or output}: {error.strerror}", remedy=remedy) from error
