"""``files``: how long it takes to make and to list more and more files in one folder of an instance."""

from typing import Annotated

import msgspec
from tare.bench.interfaces import Experiment, InstanceRun
from tare.bench.model import Command, lower
from tare.bench.traits import ExperimentTraits
from tare.bench.units import Unit

MAKE = 'mkdir -p "$1" && cd "$1" && seq "$2" "$3" | xargs touch'
MADE = lower("files.made", Unit.SECOND, "Making the files that were not there yet, as one command.")
LISTED = lower("files.listed", Unit.SECOND, "Listing all files of the folder.")


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``[experiment.options]`` of ``files``: there are ``most`` files at the end, ``step`` more at a time."""

    most: Annotated[int, msgspec.Meta(ge=1, le=100_000)] = 1000
    step: Annotated[int, msgspec.Meta(ge=1)] = 250


class Files(Experiment):
    """One instance; ``iteration`` of each sample is the number of files."""

    name = "files"
    summary = "making and listing more and more files in one folder"
    traits = ExperimentTraits("Many files", leading=("files.listed",), warms_up=False, grows_with="files")
    needs_workload = False
    metrics = (MADE, LISTED)
    Options = Options

    def run(self, run: InstanceRun) -> None:
        """Start the instance, fill the folder, stop the instance."""
        with run.start() as instance:
            for number in range(run.options.step, run.options.most + 1, run.options.step):
                first = str(number - run.options.step + 1)
                make = Command(("sh", "-c", MAKE, "sh", "/tmp/files", first, str(number)))
                completed, raw = run.execute(instance, make, f"make-{number}")
                run.record(MADE, completed.duration_s, iteration=number, raw=raw)
                completed, raw = run.execute(instance, Command(("ls", "-f", "/tmp/files")), f"list-{number}")
                run.record(LISTED, completed.duration_s, iteration=number, raw=raw)
