"""Where the command line writes what it was asked for: a file, complete or not at all, or standard output."""

import contextlib
import os
import secrets
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import typer

from tare.bench.errors import TareError

STDOUT = Path("-")


def terminal_width() -> int | None:
    """Columns of the terminal that standard output is, or None."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def chosen_output(output: Path | None) -> Path:
    """What ``--output`` names: ``-`` also for none and for a name of standard output, such as /dev/stdout."""
    if output is None:
        return STDOUT
    with contextlib.suppress(OSError, ValueError):
        if os.path.samestat(output.stat(), os.fstat(sys.stdout.fileno())):
            return STDOUT
    return output


def say_where(output: Path) -> None:
    """Print the name of the file that was written; standard output says so itself."""
    if output != STDOUT:
        typer.echo(str(output))


@contextlib.contextmanager
def whole_file(output: Path, suffix: str = "", *, remedy: str = "choose another --output") -> Iterator[Path]:
    """A file to write, whose content then is that of ``output``, or is printed if that is ``-``. Raises TareError.

    A regular file is replaced as a whole and keeps its owner and mode; of a link, the target is. Anything else (a
    FIFO, a device) is opened and written to.
    """
    try:
        target = None if output == STDOUT else Path(os.path.realpath(output))
        before = _find_status(target)
        beside = target if target is not None and (before is None or stat.S_ISREG(before.st_mode)) else None
        if beside is not None:
            with _start_part(beside, suffix, before) as part:
                yield part
                _put_in_place(part, beside, before)
            return
        with tempfile.TemporaryFile() as unnamed:
            part = Path(f"/proc/self/fd/{unnamed.fileno()}")
            yield part
            if target is not None:
                _write_into(target, part.read_bytes())
            else:
                _print(part.read_bytes())
    except OSError as error:
        raise TareError(f"cannot write {error.filename or output}: {error.strerror}", remedy=remedy) from error


def _find_status(target: Path | None) -> os.stat_result | None:
    try:
        return None if target is None else target.stat()
    except FileNotFoundError:
        return None


@contextlib.contextmanager
def _start_part(beside: Path, suffix: str, before: os.stat_result | None) -> Iterator[Path]:
    """An empty file next to the one it becomes, private while it takes the place of one. In the ledger if there is one.

    Who may only read runs and has nowhere to keep a ledger can write reports too.
    """
    from tare.bench.ledger import Ledger, ResourceKind
    from tare.bench.locations import ledger_directory

    part = beside.with_name(f".tare-{secrets.token_hex(6)}{suffix}").absolute()
    mode = 0o666 if before is None else 0o600
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(TareError):
            ledger = stack.enter_context(Ledger(ledger_directory()))
            stack.callback(ledger.strike, ledger.enter(ResourceKind.FILE, part))
        stack.callback(part.unlink, missing_ok=True)
        os.close(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode))
        yield part


def _put_in_place(part: Path, target: Path, before: os.stat_result | None) -> None:
    if before is not None:
        if (before.st_uid, before.st_gid) != (os.geteuid(), os.getegid()):
            with contextlib.suppress(PermissionError):
                os.chown(part, before.st_uid, before.st_gid)
        part.chmod(stat.S_IMODE(before.st_mode))
    part.replace(target)


def _write_into(target: Path, content: bytes) -> None:
    """Write to what is no regular file, as a shell would; a FIFO's reader may have enough before the end."""
    with contextlib.suppress(BrokenPipeError), target.open("wb") as file:
        file.write(content)


def _print(content: bytes) -> None:
    """Print a document: on a terminal in its encoding, elsewhere as it is."""
    if sys.stdout.isatty():
        sys.stdout.write(content.decode("utf-8", "replace"))
    else:
        sys.stdout.flush()
        sys.stdout.buffer.write(content)
    sys.stdout.flush()
