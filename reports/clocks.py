"""Flags on commands that a guest's clock and the host's give different durations to, beyond what the runner allows."""

from collections.abc import Iterator, Mapping
from typing import Any

from tare.bench.catalogue import NoteCode
from tare.bench.model import Event
from tare.bench.store import LoadedRun
from tare.reports.flags import CellName, Flag, FlagKind, make_flag


def clock_flags(run: LoadedRun, cells: Mapping[str, CellName]) -> Iterator[Flag]:
    """A flag for each cell with such commands. ``cells`` are those of the instances that gave samples."""
    found: dict[CellName, list[Event]] = {}
    for event in run.events:
        is_told = event.note_code == NoteCode.CLOCK and "guest_s" in event.details
        if is_told and event.instance in cells:
            found.setdefault(cells[event.instance], []).append(event)
    for cell, events in found.items():
        yield _flag(cell, events, sum(one == cell for one in cells.values()))


def _flag(cell: CellName, events: list[Event], n_instances: int) -> Flag:
    instances = tuple(dict.fromkeys(event.instance for event in events))
    worst = max((event.details for event in events), key=_difference)
    times = "a command's duration" if len(events) == 1 else f"the durations of {len(events)} commands"
    return make_flag(
        cell,
        kind=FlagKind.GUEST_CLOCK,
        instances=instances,
        n_instances=n_instances,
        value=_difference(worst),
        sentence=(
            f"In {len(instances)} of {n_instances} instances the guest's clock and the host's disagree about {times}, "
            f"at worst {worst['guest_s']:.3f} s and {worst['host_s']:.3f} s ({worst['allowed_s']:.3f} s may lie "
            "between them): what a tool timed inside cannot be believed there."
        ),
    )


def _difference(told: Mapping[str, Any]) -> float:
    """As a share of the host's duration."""
    return abs(float(told["guest_s"]) - float(told["host_s"])) / max(float(told["host_s"]), 1e-9)
