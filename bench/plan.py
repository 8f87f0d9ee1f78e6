"""The design of a run: randomised complete blocks, interleaved over the backends, from a seed.

In a block every cell has its instances once. Subjects come in random order, and the backends of one subject
directly after one another in random order, so that a drift of the host falls on all of them alike, and what is
compared lies close together in time.
"""

import hashlib
import random

from bench.model import Cell, PlannedInstance
from bench.suite import Suite


def make_plan(suite: Suite) -> list[PlannedInstance]:
    """Every instance of the run in the order in which they run. The same suite and seed give the same plan."""
    plan: list[PlannedInstance] = []
    for block in range(max(subject.sampling.blocks for subject in suite.subjects)):
        order = random.Random(f"{suite.sampling.seed}/{block}")  # noqa: S311 - a design has to be reproducible
        subjects = [subject for subject in suite.subjects if block < subject.sampling.blocks]
        order.shuffle(subjects)
        for subject in subjects:
            for index in range(subject.sampling.instances):
                cells = [subject.cell(choice.name) for choice in suite.backends]
                order.shuffle(cells)
                plan.extend(PlannedInstance(_name(block, index, cell), block, index, cell) for cell in cells)
    return plan


def _name(block: int, index: int, cell: Cell) -> str:
    """A name that is stable over a resume, safe in a file name, and short enough for a domain or cgroup."""
    digest = hashlib.sha256(cell.key.encode()).hexdigest()[:8]
    return f"b{block:02d}i{index:02d}-{digest}"
