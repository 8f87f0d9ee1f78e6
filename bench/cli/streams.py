"""Standard streams that cannot end a command: missing ones, those nobody reads any more, full disks, old terminals."""

import contextlib
import errno
import io
import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import typer

from tare.bench.errors import ExitCode


class _Output(io.FileIO):
    """Standard output or error. What cannot be written any more goes to /dev/null, and the command goes on.

    ``lost`` says why, unless it is only that the reader went away, which is its right.
    """

    lost = ""

    def write(self, data: "bytes | memoryview", /) -> int:  # type: ignore[override]  # any buffer, as FileIO does
        try:
            return super().write(data)
        except BlockingIOError:
            raise
        except OSError as error:
            number = self.fileno()
            if not _has_no_reader(error, number):
                self.lost = error.strerror or str(error)
            with Path(os.devnull).open("wb") as null:
                os.dup2(null.fileno(), number)
            if self.lost and number == 1:
                typer.echo(f"tare: standard output cannot be written ({self.lost}); the command goes on", err=True)
            return len(data)


def _has_no_reader(error: OSError, number: int) -> bool:
    """A closed pipe, or a terminal that is gone."""
    if error.errno == errno.EIO:
        return not stat.S_ISREG(os.fstat(number).st_mode)
    return error.errno in {errno.EPIPE, errno.ECONNRESET}


@contextlib.contextmanager
def lasting_streams() -> Iterator[None]:
    """Standard streams for the length of a program. Raises SystemExit if output was lost and nothing else failed.

    ``COLUMNS=0`` or ``LINES=0``, which some terminals and CI systems set, mean nothing: tables would have no room.
    """
    for size in ("COLUMNS", "LINES"):
        if os.environ.get(size, "").strip() and not os.environ[size].strip("0 "):
            del os.environ[size]
    _open_missing()
    out = _Output(1, "w", closefd=False)
    sys.stdin = sys.stdin or io.TextIOWrapper(io.FileIO(0, "r", closefd=False))
    sys.stdout = _text(out, sys.stdout)
    sys.stderr = _text(_Output(2, "w", closefd=False), sys.stderr)
    code: object = ExitCode.OK
    try:
        yield
    except SystemExit as ending:
        code = ending.code
        raise
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        if out.lost and not code:
            raise SystemExit(ExitCode.ENVIRONMENT)


def _open_missing() -> None:
    """Let the numbers 0 to 2 be open: what is opened next would be taken for a standard stream."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)
            os.dup2(null, number)  # also if it is the same: children inherit it
            if null != number:
                os.close(null)


def _text(raw: io.FileIO, before: TextIO | None) -> TextIO:
    """A text stream as Python makes it, which replaces what its encoding has no character for."""
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=before.encoding if before else "utf-8",
        errors="replace",
        line_buffering=raw.fileno() == 2 or raw.isatty(),
        write_through=isinstance(before, io.TextIOWrapper) and before.write_through,
    )
