"""The design of a run: complete blocks in balanced random order, interleaved over the backends, from a seed.

In a block every cell has its instances once. Scenarios come in random order, and the backends of one scenario
directly after one another, so that what is compared lies close together in time. Their order is balanced over the
blocks: a drift of the host, or a cost of being first, falls on all of them alike.
"""

import functools
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
    shuffled = list(scenarios)
    random.Random(f"{suite.seed}/{block}").shuffle(shuffled)  # noqa: S311 - a design has to be reproducible
    plan: list[PlannedInstance] = []
    for scenario in shuffled:
        for index in range(scenario.sampling.instances):
            row = block * scenario.sampling.instances + index
            order = balanced_order(len(suite.backends), row, f"{suite.seed}/{scenario.key}")
            cells = [scenario.cell(suite.backends[place].name) for place in order]
            plan.extend(PlannedInstance(_name(block, index, cell), block, index, cell) for cell in cells)
    return plan


def balanced_order(count: int, row: int, seed: str) -> tuple[int, ...]:
    """Row ``row`` (from 0) of an endless sequence of orders of ``count`` things, random by ``seed`` and balanced.

    Of any two things each is before the other once in every two rows, from an even row on; this holds also for those
    that are left when others drop out. In a whole cycle (``count`` rows if that is even, else twice as many) each thing
    has each place equally often, and follows directly on each other one equally often (Williams 1949).
    """
    rows = _cycle(count, row // _cycle_length(count), seed)
    return rows[row % len(rows)]


def _cycle_length(count: int) -> int:
    return max(1, count if count % 2 == 0 else 2 * count)


@functools.lru_cache(maxsize=4096)
def _cycle(count: int, number: int, seed: str) -> tuple[tuple[int, ...], ...]:
    """The rows of a Williams design with its things named at random: pairs of a row and its reverse, shuffled.

    The first row takes things from the two ends in turn (0, 1, n-1, 2, n-2, ...), and the others add 1 each to it. Of
    an even number the reverse of each row is among them; of an odd one the reverses are the other half of the design.
    """
    chance = random.Random(f"{seed}/{number}")  # noqa: S311 - a design has to be reproducible
    names = chance.sample(range(count), count)
    first = [(place + 1) // 2 if place % 2 else -(place // 2) for place in range(count)]
    rows = [tuple(names[(thing + shift) % count] for thing in first) for shift in range(_cycle_length(count) // 2)]
    chance.shuffle(rows)
    pairs = [chance.sample((row, row[::-1]), 2) for row in rows]
    return tuple(row for pair in pairs for row in pair) or (tuple(names),)


def _name(block: int, index: int, cell: Cell) -> str:
    """A name that is stable over a resume, safe in a file name, and short enough for a domain or cgroup."""
    digest = hashlib.sha256(cell.key.encode()).hexdigest()[:8]
    return f"b{block:02d}i{index:02d}-{digest}"
