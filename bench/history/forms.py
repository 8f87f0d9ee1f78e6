"""The contracts of the forms in which a gate's judgement and a history are written; entry points as for reporters."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from tare.bench.history.gate import Judgement
    from tare.bench.history.story import Story


class GateForm(ABC):
    """Writes what the gate says of a night (entry points ``tare.gate_forms``)."""

    name: ClassVar[str]
    summary: ClassVar[str]
    suffix: ClassVar[str]

    @abstractmethod
    def write(self, judgement: "Judgement", output: Path, *, link: str = "") -> None:
        """Write to the file ``output``. ``link`` is where the published history is, empty if it is nowhere.

        Raises OSError if the file cannot be written.
        """


class HistorySite(ABC):
    """Writes a history as pages (entry points ``tare.history_sites``)."""

    name: ClassVar[str]
    summary: ClassVar[str]

    @abstractmethod
    def write(self, story: "Story", folder: Path, *, title: str, address: str = "") -> None:
        """Write the pages into ``folder``, which exists. ``address`` is where they will be found, for the feed.

        Raises OSError if a file cannot be written.
        """
