"""Turns what the libraries raise into one clear message and a documented exit code."""

import contextlib
import sys
import traceback
from collections.abc import Iterator

import typer

from tare.bench.errors import ExitCode, TareError, lack_of_descriptors
from tare.bench.interrupts import heed, interruptible


def make_app(name: str, purpose: str) -> typer.Typer:
    """A group of commands. Help is plain text: pages drawn by rich double the time of ``tare --help``."""
    return typer.Typer(
        name=name,
        help=purpose,
        no_args_is_help=True,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        add_completion=False,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
    )


class Debug:
    """Whether ``--debug`` was given: then a failure is shown with its traceback."""

    enabled = False


@contextlib.contextmanager
def guard() -> Iterator[None]:
    """Run the body of a command: failures are printed to standard error, signals end it once and cleanly."""
    try:
        with heed(), interruptible():
            yield
    except KeyboardInterrupt:
        _clean_up()
        complain("interrupted")
        raise typer.Exit(ExitCode.INTERRUPTED) from None
    except (TareError, OSError, UnicodeEncodeError) as raised:
        from tare.bench.locations import folder_failure

        error = lack_of_descriptors(raised) or folder_failure(raised) or raised
        if not isinstance(error, TareError):
            _report_bug()
            raise typer.Exit(ExitCode.BUG) from None
        if Debug.enabled:
            traceback.print_exc()
        complain(error.message, error.remedy)
        raise typer.Exit(error.exit_code) from None
    except (typer.Exit, typer.Abort, typer.BadParameter):
        raise
    except Exception:  # noqa: BLE001 - the last resort: a bug is shown with its traceback and its own exit code
        _report_bug()
        raise typer.Exit(ExitCode.BUG) from None


def _clean_up() -> None:
    """Remove what an interruption in the middle of something left of this process, whose ledger is closed by now."""
    from tare.bench.cleaning import clean_up

    with contextlib.suppress(TareError, OSError):  # the next command names what cannot be removed
        clean_up()


def _report_bug() -> None:
    traceback.print_exc()
    complain("this is a bug in tare; please report it with the lines above")


def complain(message: str, remedy: str | None = None) -> None:
    """One message on standard error."""
    typer.echo(f"tare: {message}", sys.stderr)  # the stream as it is: typer writes UTF-8 where a terminal has ASCII
    if remedy:
        typer.echo(f"  what to do: {remedy}", sys.stderr)
