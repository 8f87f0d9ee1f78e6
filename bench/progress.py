"""Shows how a run goes on: a live display in a terminal, plain lines in a file or a pipe.

The time left is the sum, over the instances still to come, of what their like has taken so far in this run; before
there is a like one, of a prior from the workload's own idea of its duration. What is shown follows that sum in steps,
so that the first guest of a run does not make one minute three.
"""

import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Self

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Column
from rich.text import Text

from tare.bench.readable import as_markup, one_line
from tare.bench.records import PlannedInstance
from tare.bench.suite import Suite
from tare.bench.units import format_duration

_PRIOR_START_S = 2.0
MOST_STEP = 1.5
"""By what factor the time left may change with one instance, apart from the time that the instance took."""


class TimeLeft:
    """Estimates the seconds that the rest of a plan takes."""

    def __init__(self, suite: Suite, plan: Sequence[PlannedInstance]) -> None:
        self._left = list(plan)
        self._seen: dict[str, list[float]] = defaultdict(list)
        self._by_backend: dict[str, list[float]] = defaultdict(list)
        self._prior: dict[str, float] = {}
        for scenario in suite.scenarios:
            iterations = scenario.sampling.warmup + scenario.sampling.iterations
            work = scenario.workload.duration_s(scenario.params) * iterations if scenario.workload else 0.0
            self._prior[scenario.key] = work
        self._shown = self._sum(self._left)

    def extend(self, plan: Sequence[PlannedInstance]) -> None:
        """More instances follow those that are left."""
        self._left.extend(plan)
        self._shown += self._sum(plan)

    def ended(self, planned: PlannedInstance, seconds: float) -> None:
        """Take note of how long an instance took; it is the first of those left."""
        self._left.pop(0)
        self._seen[planned.cell.key].append(seconds)
        overhead = max(0.0, seconds - self._prior.get(planned.cell.subject, 0.0))
        self._by_backend[planned.cell.backend].append(overhead)
        expected = max(0.0, self._shown - seconds)
        most = MOST_STEP * max(expected, self._shown / 2)
        self._shown = min(most, max(expected / MOST_STEP, self._sum(self._left))) if self._left else 0.0

    def seconds(self) -> float:
        """The estimate now, in seconds."""
        return self._shown

    def _sum(self, plan: Iterable[PlannedInstance]) -> float:
        return sum(self._one(planned) for planned in plan)

    def _one(self, planned: PlannedInstance) -> float:
        if seen := self._seen[planned.cell.key]:
            return fmean(seen)
        overhead = fmean(self._by_backend[planned.cell.backend] or [_PRIOR_START_S])
        return self._prior.get(planned.cell.subject, 0.0) + overhead


class _TwoLines(Progress):
    """The bar, and below it what runs now, on as many lines as it needs."""

    def get_renderables(self) -> Iterable[RenderableType]:
        """What rich shows."""
        yield self.make_tasks_table(self.tasks)
        for task in self.tasks:
            yield Text.from_markup(f"  {task.description}", overflow="fold")


class RunDisplay:
    """The observer of a run that a person watches. Use as a context manager."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._live: Progress | None = None
        self._task = TaskID(0)
        self._left: TimeLeft | None = None
        self._blocks = 0
        self._until_precise = False
        self._labels: Mapping[str, str] = {}
        self._started = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.finished()

    def step(self, text: str) -> None:
        """Say what is being done before or after the measuring."""
        elapsed = time.monotonic() - self._started
        self.console.print(f"[dim]{elapsed:6.1f} s[/dim]  {as_markup(text)}", highlight=False, soft_wrap=True)

    def begin(self, suite: Suite, plan: Sequence[PlannedInstance], labels: Mapping[str, str]) -> None:
        """Begin showing a plan; ``labels`` are what the backends turned out to be, by name."""
        self._left = TimeLeft(suite, plan)
        self._labels = labels
        self._blocks = max((planned.block for planned in plan), default=0) + 1
        self._until_precise = any(scenario.sampling.precision for scenario in suite.scenarios)
        if self.console.is_terminal:
            self._live = _TwoLines(
                SpinnerColumn(),
                # As wide as there is room: what runs now, on the line below, is never cut for it.
                BarColumn(bar_width=None, table_column=Column(min_width=10, ratio=1)),
                MofNCompleteColumn(table_column=Column(no_wrap=True)),
                TimeElapsedColumn(table_column=Column(no_wrap=True)),
                TextColumn("[dim]{task.fields[left]}[/dim]", table_column=Column(no_wrap=True)),
                expand=True,
                console=self.console,
                transient=True,
            )
            self._live.start()
            self._task = self._live.add_task("starting", total=len(plan), left="")

    def extend(self, plan: Sequence[PlannedInstance], standing: str) -> None:
        """Show that a block follows that was not planned, and how the run stands."""
        self._blocks = plan[0].block + 1
        if self._left is not None:
            self._left.extend(plan)
        if self._live is not None:
            (task,) = self._live.tasks
            self._live.update(task.id, total=(task.total or 0) + len(plan))
        self.step(f"block {self._blocks}: {standing}")

    def instance_started(self, planned: PlannedInstance, position: int, total: int) -> None:
        """Show what runs now and about how much time is left."""
        self._position = f"[{position:{len(str(total))}}/{total}]"
        if self._live is not None:
            self._live.update(self._task, description=as_markup(self._describe(planned)), left=self._left_text())

    def instance_ended(self, planned: PlannedInstance, failure: str | None, seconds: float) -> None:
        """Show how it ended."""
        if self._left is not None:
            self._left.ended(planned, seconds)
        if self._live is not None:
            self._live.advance(self._task)
            if failure:
                line = f"[bold]failed[/bold]  {as_markup(self._describe(planned))}: {as_markup(failure)}"
                self.console.print(line, highlight=False)
            return
        result = f"failed: {failure}" if failure else format_duration(seconds)
        line = f"{self._position} {self._describe(planned)}: {result}, {self._left_text()}"
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def finished(self) -> None:
        """End the live display."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _describe(self, planned: PlannedInstance) -> str:
        cell = planned.cell
        label = self._labels.get(cell.backend, cell.backend)
        given = " ".join(f"{name}={value}" for name, value in cell.params.items())
        what = " ".join(part for part in (cell.workload or cell.experiment, given) if part)
        return f"block {planned.block + 1}/{self._blocks}  {one_line(what)} on {one_line(label)}"

    def _left_text(self) -> str:
        seconds = self._left.seconds() if self._left else 0.0
        if seconds < 0.5:
            return "how precise is it now?" if self._until_precise else "done"
        shown = format_duration(seconds) if seconds >= 120 else f"{seconds:.0f} s"
        return f"about {shown} to the next look" if self._until_precise else f"about {shown} left"
