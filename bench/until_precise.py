"""Runs further blocks after the fixed ones, as the sampler asks for them, and writes down where the run stands."""

from collections.abc import Collection, Mapping, Sequence
from typing import Protocol

import msgspec

from tare.bench.adaptive import CellStanding, Sampler
from tare.bench.model import EventKind, PlannedInstance
from tare.bench.runner import Outcome, Runner, make_event
from tare.bench.stats import Standing
from tare.bench.store import RunStore


class ShowsBlocks(Protocol):
    """What is told of blocks that were not planned; the progress display is one."""

    def extend(self, plan: Sequence[PlannedInstance], standing: str) -> None:
        """Show that a block follows that was not planned, and how the run stands."""


def run_until_precise(
    sampler: Sampler,
    runner: Runner,
    store: RunStore,
    display: ShowsBlocks,
    *,
    outcome: Outcome,
    attempts: Mapping[str, int],
    done: Collection[str],
) -> Outcome:
    """Go on from the ``outcome`` of the fixed blocks. ``done`` ended before this session, in a run that goes on.

    The manifest's number of planned instances grows with the blocks. The last event says where each cell stands.
    """
    further = 0
    while not outcome.interrupted:
        block = sampler.next_block(further, done)
        if not block:
            break
        further += 1
        planned = store.manifest.planned_instances + len(block)
        store.save_manifest(msgspec.structs.replace(store.manifest, planned_instances=planned))
        plan = [one for one in block if one.identifier not in done]
        if not plan:
            continue
        display.extend(plan, describe(sampler.standings()))
        before = outcome.done + outcome.failed
        found = runner.run(plan, attempts, before=before)
        outcome = Outcome(outcome.done + found.done, outcome.failed + found.failed, found.interrupted)
    standings = sampler.standings()
    store.add_event(make_event(EventKind.NOTE, describe(standings), details=sampler.record()))
    return outcome


def describe(standings: Sequence[CellStanding]) -> str:
    """How many cells are as precise as asked for, and the one that is farthest from it."""
    reached = sum(one.precision.standing is Standing.REACHED for one in standings)
    text = f"{reached} of {len(standings)} cells are as precise as asked for"
    open_ones = [one for one in standings if one.precision.standing is Standing.NOT_REACHED]
    known = [(one.precision.half_width, one) for one in open_ones if one.precision.half_width is not None]
    if known:
        half, worst = max(known, key=lambda entry: entry[0])
        found = worst.precision
        text += (
            f"; {worst.cell}: ±{100 * half:.2g} % of ±{100 * found.wanted:.2g} % after {found.n_blocks} blocks, "
            f"about {found.needed} needed"
        )
    impossible = sum(one.precision.standing is Standing.CANNOT for one in standings)
    return text + (f"; {impossible} cannot be" if impossible else "")
