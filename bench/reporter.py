"""The contract of a reporter: the entry points ``tare.reporters``, tare's own like anybody's."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from tare.bench.analysis import RunResults
    from tare.bench.analysis.comparison import RunComparison
    from tare.bench.capacity.by_host import FleetReport
    from tare.bench.capacity.planned import Plan


class Reporter(ABC):
    """Writes one form of a run's report; also of a comparison, a capacity plan, a fleet.

    The last three if it ``compares``, ``plans``, has ``fleets``.

    What it raises for a file that cannot be written is an OSError; the command line says what and where.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    suffix: ClassVar[str]
    compares: ClassVar[bool] = False
    plans: ClassVar[bool] = False
    fleets: ClassVar[bool] = False
    width: int | None = None
    """Columns of the terminal that is written to; None for a file."""

    @abstractmethod
    def write(self, results: "RunResults", output: Path) -> None:
        """Write the report of a run to the file ``output``.

        ``results.run`` holds manifest, samples and events as stored; ``results.analysis`` all that was estimated from
        them, computed once for every form that asks for it.
        """

    def write_comparison(self, comparison: "RunComparison", output: Path) -> None:
        """Write a comparison to the file ``output``, if this form ``compares``."""
        raise NotImplementedError(f"{self.name} writes no comparison of {comparison.first} to {output}")

    def write_plan(self, plan: "Plan", output: Path) -> None:
        """Write a capacity plan to the file ``output``, if this form ``plans``."""
        raise NotImplementedError(f"{self.name} writes no plan of {len(plan.plans)} types to {output}")

    def write_fleet(self, report: "FleetReport", output: Path) -> None:
        """Write the report of a fleet to the file ``output``, if this form has ``fleets``."""
        raise NotImplementedError(f"{self.name} writes no report of the fleet {report.name} to {output}")

    def write_index(self, folder: Path, output: Path) -> None:
        """Write a page over the runs in ``folder`` to the file ``output``, if this form has one."""
        raise NotImplementedError(f"{self.name} writes no index of {folder} to {output}")
