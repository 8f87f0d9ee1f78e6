"""A program that is left running in an instance while other commands run there.

The command that starts it leaves it behind, so it is a process of its instance and of nothing else: whatever ends the
instance (the end of the cell, an interrupt, the death of tare) ends it.
"""

from tare.bench.errors import WorkloadError
from tare.bench.interfaces import Instance
from tare.bench.model import SCRATCH, Command, Completed

_START = 'log=$1; shift; "$@" >"$log" 2>&1 </dev/null & echo $!'
_TAIL_LINES = "12"


class Background:
    """A program that runs in ``instance`` until that is stopped. One thread at a time, as the instance."""

    def __init__(self, instance: Instance, what: str, name: str, command: Command) -> None:
        """Start it. ``what`` is how errors call it; ``name`` names its log in the scratch folder.

        Raises WorkloadError if it could not be started.
        """
        self._instance = instance
        self._what = what
        self._log = f"{SCRATCH}/{name}.log"
        argv = ("sh", "-c", _START, "sh", self._log, *command.argv)
        started = instance.execute(Command(argv, env=command.env, cwd=command.cwd))
        pid = started.stdout.strip()
        if started.returncode != 0 or not pid.isdigit():
            raise WorkloadError(f"{what} could not be started", evidence=_said(started))
        self._pid = pid.decode()

    def is_alive(self) -> bool:
        """Whether it still runs."""
        return self._instance.execute(Command(("sh", "-c", f"kill -0 {self._pid}"))).returncode == 0

    def said(self) -> str:
        """The last lines of what it printed."""
        return _said(self._instance.execute(Command(("tail", "-n", _TAIL_LINES, self._log))))


def _said(completed: Completed) -> str:
    return (completed.stdout + completed.stderr).decode(errors="replace").strip()
