"""Was a plan right? Compares its predictions with what a later ramp measured; outcomes are kept for each user.

A plan is its JSON form, as ``tare plan --format json --output FILE`` wrote it. A later ramp, on the same or another
host, is compared by what one instance takes of memory and CPU, which carries over between hosts; and, where it was on a
host of the planned size and really ran out of something, by how many fitted.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from tare.bench.capacity.hosts import HostType, Resource
from tare.bench.capacity.instances import InstanceType
from tare.bench.capacity.plan import interval_of
from tare.bench.errors import SuiteError, UnknownNameError

SAME_SIZE = 0.02
"""Hosts whose CPUs and memory differ by no more than this share are of one size."""


class Checked(msgspec.Struct, frozen=True):
    """One prediction: of ``what`` for ``type``, with its interval, and what the later ramp measured.

    ``held`` says whether the measured value lies in the interval; None where the ramp could not tell (``why``).
    """

    type: str
    what: str
    predicted: float
    low: float | None
    high: float | None
    measured: float | None
    held: bool | None
    why: str = ""

    @property
    def error(self) -> float | None:
        """By what share the prediction was off."""
        return None if not self.measured else self.predicted / self.measured - 1


class Audit(msgspec.Struct, frozen=True):
    """All that a ramp says of a plan."""

    plan: str
    run: str
    at_utc: str
    checked: tuple[Checked, ...]


def audit_plan(plan: Path, types: Sequence[InstanceType], run: str, host: HostType | None) -> Audit:
    """Compare a plan's file with the types of a later ramp, on ``host`` if that is known.

    Raises SuiteError if the file is no plan, UnknownNameError if the ramp has none of its types.
    """
    entries = _read(plan)
    checked: list[Checked] = []
    for entry in entries:
        for kind in types:
            cell = kind.result.cell
            if (cell.backend, cell.workload) == (entry["backend"], entry["workload"]):
                checked += [*_costs(entry, kind), _count(entry, kind, host)]
    if not checked:
        known = ", ".join(f"{entry['backend']} {entry['workload'] or 'idle'}" for entry in entries)
        raise UnknownNameError(f"{run} measured nothing that {plan} plans, which is: {known}")
    return Audit(str(plan), run, datetime.now(UTC).isoformat(timespec="seconds"), tuple(checked))


def planned_runs(plan: Path) -> tuple[str, ...]:
    """The folders of the runs that a plan's file was made from. Raises SuiteError if it is no plan."""
    return tuple(dict.fromkeys(str(entry.get("run", "")) for entry in _read(plan)))


def keep_audit(audit: Audit, file: Path) -> None:
    """Append an audit to the file of all of them, one a line."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("ab") as kept:
        kept.write(msgspec.json.encode(audit) + b"\n")


def kept_audits(file: Path) -> tuple[Audit, ...]:
    """All audits that were kept, the last one of each plan by each run; lines that cannot be read are left out."""
    found: dict[tuple[str, str], Audit] = {}
    try:
        lines = file.read_bytes().splitlines()
    except FileNotFoundError:
        return ()
    for line in lines:
        try:
            one = msgspec.json.decode(line, type=Audit)
        except msgspec.DecodeError:
            continue
        found[one.plan, one.run] = one
    return tuple(found.values())


def track_record(audits: Sequence[Audit]) -> str:
    """How past plans did, in a sentence; empty without audits that could tell."""
    decided = [one for audit in audits for one in audit.checked if one.held is not None]
    if not decided:
        return ""
    held = sum(one.held is True for one in decided)
    errors = sorted(abs(one.error) for one in decided if one.error is not None)
    typical = f"; the middle one was off by {100 * errors[len(errors) // 2]:.0f} %" if errors else ""
    plural = "s" if len(decided) > 1 else ""
    return f"Past plans: {held} of {len(decided)} audited prediction{plural} lay within their 95 % interval{typical}."


def _costs(entry: Mapping[str, Any], kind: InstanceType) -> Iterator[Checked]:
    """What one instance takes, predicted for as many others as the ramp had, against what the ramp measured."""
    for room in entry["rooms"]:
        resource, by_limit = room["resource"], room["promised"]
        need = next((one for one in kind.needs if (one.resource, one.by_limit) == (resource, by_limit)), None)
        if by_limit or resource not in {Resource.MEMORY, Resource.CPU} or need is None:
            continue
        low, high, other = room.get("each_low"), room.get("each_high"), interval_of(need, max(1, need.measured_on))
        # Both are estimates: a prediction is refuted by a ramp whose own interval lies outside of it.
        known = None not in (low, high, other.low, other.high)
        held = bool(low <= other.high and other.low <= high) if known else None
        why = "" if known else "one of them has no interval"
        yield Checked(
            entry["type"], f"{resource} of an instance", room["each"], low, high, need.each.per_instance, held, why
        )


def _count(entry: Mapping[str, Any], kind: InstanceType, host: HostType | None) -> Checked:
    """How many fitted, where the ramp can say it."""
    interval = entry["instances_interval"] or [None, None]
    low, high = interval

    def checked(measured: float | None, *, held: bool | None = None, why: str = "") -> Checked:
        predicted = float(entry["instances"] or 0)
        return Checked(entry["type"], "instances per host", predicted, low, high, measured, held, why)

    endings = [one for one in kind.result.cell.endings if not one.was_asked_for]
    reached = max((one.population for one in kind.result.cell.endings), default=kind.result.cell.population)
    planned = entry.get("host_size") or {}
    if host is None or not _alike(planned.get("cpus"), host.cpus) or not _alike(planned.get("memory"), host.memory):
        return checked(None, why="the ramp was on a host of another size")
    if low is None:
        return checked(reached, why="the plan has no interval")
    if endings:
        return checked(reached, held=low <= reached and (high is None or reached <= high))
    if high is not None and reached > high:
        return checked(reached, held=False, why="the ramp was stopped and already had more")
    return checked(reached, why=f"the ramp was stopped at {reached}, before anything ran out")


def _alike(planned: float | None, there: float) -> bool:
    return planned is not None and abs(planned / there - 1) <= SAME_SIZE


def _read(plan: Path) -> list[dict[str, Any]]:
    try:
        document = json.loads(plan.read_text("utf-8"))
        sizes = {host["name"]: host for host in document["hosts"]}
        entries = [{**entry, "host_size": sizes.get(entry["host"])} for entry in document["plans"]]
        for entry in entries:
            _ = entry["backend"], entry["workload"], entry["rooms"], entry["instances"], entry["instances_interval"]
    except OSError as error:
        raise SuiteError(str(plan), f"cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError) as error:
        problem = f"is no plan ({type(error).__name__}: {error})"
        raise SuiteError(
            str(plan), problem, remedy="write one with: tare plan RUN --format json --output FILE"
        ) from None
    return entries
