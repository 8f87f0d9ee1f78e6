"""The design of a run: randomised complete blocks, interleaved over the backends, from a seed.

In a block every cell has its instances once. Scenarios come in random order, and the backends of one scenario
directly after one another in random order, so that a drift of the host falls on all of them alike, and what is
compared lies close together in time.
"""

import hashlib
import random
from collections.abc import Collection, Sequence

from tare.bench.records import Cell, PlannedInstance
from tare.bench.suite import Scenario, Suite


def make_design(suite: Suite) -> list[PlannedInstance]:
    """Every instance of the run in the order in which they run. The same suite and seed give the same plan.

    Where the suite asks for a precision, these are the blocks that are run in any case.
    """
    return [
        planned
        for block in range(fixed_blocks(suite))
        for planned in _block(suite, block, [one for one in suite.scenarios if block < one.sampling.blocks])
    ]


def fixed_blocks(suite: Suite) -> int:
    """How many blocks are run in any case."""
    return max(scenario.sampling.blocks for scenario in suite.scenarios)


def further_block(suite: Suite, block: int, cells: Collection[str]) -> list[PlannedInstance]:
    """A block beyond the fixed ones, of the given cells (by key).

    Their order is that of a block of all cells that are sampled for a precision: it follows from the seed alone, what
    was measured decides only who takes part.
    """
    scenarios = [scenario for scenario in suite.scenarios if scenario.sampling.precision]
    return [planned for planned in _block(suite, block, scenarios) if planned.cell.key in cells]


def _block(suite: Suite, block: int, scenarios: Sequence[Scenario]) -> list[PlannedInstance]:
    order = random.Random(f"{suite.sampling.seed}/{block}")  # noqa: S311 - a design has to be reproducible
    shuffled = list(scenarios)
    order.shuffle(shuffled)
    plan: list[PlannedInstance] = []
    for scenario in shuffled:
        for index in range(scenario.sampling.instances):
            cells = [scenario.cell(choice.name) for choice in suite.backends]
            order.shuffle(cells)
            plan.extend(PlannedInstance(_name(block, index, cell), block, index, cell) for cell in cells)
    return plan


def _name(block: int, index: int, cell: Cell) -> str:
    """A name that is stable over a resume, safe in a file name, and short enough for a domain or cgroup."""
    digest = hashlib.sha256(cell.key.encode()).hexdigest()[:8]
    return f"b{block:02d}i{index:02d}-{digest}"
