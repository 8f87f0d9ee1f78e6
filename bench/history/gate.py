"""Judges the newest night of a suite against its history: what changed, what could not be judged, what it was blind to.

A finding is told once: ``told.json`` next to the index holds what was told by which run. A level alone never fails a
gate: only changes of ratios to the bare metal of the same blocks do.
"""

import contextlib
import datetime as dt
from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from tare.bench.catalogue import DECIDES_NOTHING
from tare.bench.errors import ExitCode, RunDirectoryError
from tare.bench.history.acks import AckFile
from tare.bench.history.changes import FALSE_DISCOVERIES, LEAST_BEFORE, Scan, expected_detectable, scan, scan_ratios
from tare.bench.history.entries import RunEntry
from tare.bench.history.epochs import EpochMark, find_marks, image_findings
from tare.bench.history.findings import (
    Finding,
    State,
    host_findings,
    make_finding,
    make_spread_finding,
)
from tare.bench.history.index import History, save_beside
from tare.bench.history.nights import Nights, load_nights
from tare.bench.history.reruns import Confirmation, choose_suspicious, confirm
from tare.bench.records import RunStatus
from tare.bench.stats.comparisons import Floats

TOLD = "told.json"
OTHER_FAMILIES = FALSE_DISCOVERIES / 4
"""Level for bare metal's levels, and for the spread of blocks: they are told, and fail nothing."""
LEAST_JUDGED = 0.5
"""Share of the series of a night that have to be judged for the night to be green."""
LARGEST_UNSEEN = 0.25
"""A night whose middling series could have lost this much unseen is blind."""
_SAME_CHANGE_NIGHTS = 3

Mask = NDArray[np.bool_]


class Verdict(StrEnum):
    """What the gate says of a night, the first that applies."""

    REGRESSION = "regression"
    INCOMPLETE = "incomplete"
    ENVIRONMENT = "environment-changed"
    BLIND = "too-little-judged"
    GREEN = "nothing-to-report"

    @property
    def exit_code(self) -> ExitCode:
        """How `tare gate` ends."""
        return {
            Verdict.REGRESSION: ExitCode.REGRESSION,
            Verdict.INCOMPLETE: ExitCode.INCOMPLETE_RUN,
            Verdict.ENVIRONMENT: ExitCode.ENVIRONMENT_CHANGED,
            Verdict.BLIND: ExitCode.TOO_LITTLE_JUDGED,
            Verdict.GREEN: ExitCode.OK,
        }[self]


class Unjudged(msgspec.Struct, frozen=True):
    """Series that were not judged, and why."""

    reason: str
    series: tuple[str, ...]


class Judgement(msgspec.Struct, frozen=True):
    """What the gate says of a run.

    ``detectable`` is the smallest change that would be found within five nights nine times in ten, by the name of the
    series. ``expected`` is that of a middling series after ten nights, by the scatter of this night's blocks; None once
    series are judged. ``suspicious`` are series that a rerun could decide. ``outliers`` are series of which this night
    alone is far off, with its ratio to the nights before: no change so far.
    """

    run: RunEntry
    verdict: Verdict
    findings: tuple[Finding, ...]
    n_nights: int
    n_series: int
    n_judged: int
    unjudged: tuple[Unjudged, ...]
    detectable: Mapping[str, float]
    suspicious: tuple[str, ...]
    marks: tuple[EpochMark, ...]
    confirmations: tuple[Confirmation, ...] = ()
    outliers: Mapping[str, float] = {}
    notes: tuple[str, ...] = ()
    expected: float | None = None

    @property
    def middling(self) -> float | None:
        """The smallest change that a middling series could have shown."""
        sizes = list(self.detectable.values())
        return float(np.median(sizes)) if sizes else None

    def of_state(self, *states: State) -> list[Finding]:
        """The findings in these states."""
        return [one for one in self.findings if one.state in states]


class Told(msgspec.Struct, frozen=True):
    """A finding as it was first told: that it is told once, and keeps its name while its place is still refined."""

    identifier: str
    series: str
    kind: str
    up: bool
    since: str
    first_told: str
    resolved: str = ""
    finding: Finding | None = None


class Families(msgspec.Struct, frozen=True):
    """The values that a night is judged by (NaN where a night does not count for a series) and what was found."""

    ratios: Floats
    isolation: Scan
    plain: Scan
    q: Floats
    base_levels: Floats
    host: Scan
    host_q: Floats
    spreads: Floats
    spread: Scan
    spread_q: Floats


def load_judged(history: History, run: RunEntry, acks: AckFile) -> Nights:
    """The nights up to ``run``. Raises as ``load_nights``."""
    return load_nights(history, run, renamed=acks.new_names)


def judged_families(nights: Nights, acks: AckFile, day: dt.date) -> Families:
    """Scan the ratios (or levels without bare metal), bare metal's levels, and the scatter of blocks."""
    counted = nights.is_tonight_epoch & (nights.failed == 0)
    has_base = nights.baseline_of >= 0
    is_base = np.array([one.is_baseline for one in nights.series], dtype=bool)
    shown = np.where(has_base & ~is_base, nights.ratios, np.where(is_base, np.nan, nights.levels))
    ratios = np.where(counted, shown, np.nan)
    _move_baselines(nights, ratios, acks, day)
    base_levels = np.where(counted & is_base, nights.levels, np.nan)
    spreads = np.where(np.isnan(ratios) | (nights.blocks < 3), np.nan, nights.spreads)
    # Subjects by their baseline's column; a series without one is its own.
    subjects = np.where(has_base, nights.baseline_of, len(has_base) + np.arange(len(has_base)))
    isolation, plain = scan_ratios(_of_tonight(ratios), subjects)
    host, spread = scan(_of_tonight(base_levels)), scan(_of_tonight(spreads))
    return Families(ratios, isolation, plain, isolation.q, base_levels, host, host.q, spreads, spread, spread.q)


def _of_tonight(values: Floats) -> Floats:
    """Without the series that tonight does not have."""
    return np.where(np.isnan(values[-1]), np.nan, values)


def _move_baselines(nights: Nights, ratios: Floats, acks: AckFile, day: dt.date) -> None:
    """Nights before an acknowledged change count no more, in place."""
    columns = {one.identifier: column for column, one in enumerate(nights.series)}
    rows = {one.run: row for row, one in enumerate(nights.entries)}
    for ack in acks.acknowledged:
        if ack.series in columns and ack.since in rows and ack.is_in_force(day):
            ratios[: rows[ack.since], columns[ack.series]] = np.nan


def judge(history: History, run: RunEntry, acks: AckFile, *, day: dt.date | None = None) -> Judgement:
    """Judge a run. ``day`` is the date by which acknowledgements expire, today unless given."""
    day = day or dt.datetime.now(dt.UTC).date()
    nights = load_judged(history, run, acks)
    families = judged_families(nights, acks, day)
    told = load_told(history)
    suspicious = choose_suspicious(families.ratios, families.isolation, _known_columns(nights, told))
    again = {night: ratios for night, (ratios, _) in nights.reruns.items()}
    confirmations = confirm(again, families.ratios, families.plain, suspicious)
    marks = tuple(find_marks(history, nights))
    found = [*_findings(nights, families, confirmations), *image_findings(nights, marks)]
    findings = _with_states(nights, found, told, acks, day, {one.column: one for one in confirmations})
    unjudged = tuple(_unjudged(nights, families))
    judged = families.isolation.is_judged
    sizes = families.isolation.detectable()
    names = [one.name for one in nights.series]
    judgement = Judgement(
        run=run,
        verdict=Verdict.GREEN,
        findings=tuple(findings),
        n_nights=len(nights.entries),
        n_series=int(judged.sum()) + sum(len(one.series) for one in unjudged),
        n_judged=int(judged.sum()),
        unjudged=unjudged,
        detectable={names[column]: float(np.expm1(sizes[column])) for column in np.flatnonzero(judged)},
        suspicious=tuple(nights.series[column].identifier for column in suspicious),
        marks=marks,
        confirmations=tuple(confirmations),
        outliers=_outliers(nights, families, {one.series for one in findings}),
        notes=tuple(_notes(history, nights, acks, day)),
        expected=None if judged.any() else _expected(nights, families),
    )
    return msgspec.structs.replace(judgement, verdict=_verdict(judgement))


def _expected(nights: Nights, families: Families) -> float | None:
    """What a middling series will show after ten nights, by the scatter of this night's blocks."""
    known = np.isfinite(families.spreads[-1])
    if not known.any():
        return None
    deviation = np.exp(families.spreads[-1, known]) / np.sqrt(nights.blocks[-1, known])
    return float(np.expm1(np.median(expected_detectable(deviation))))


def _verdict(one: Judgement) -> Verdict:
    if any(finding.is_regression for finding in one.findings):
        return Verdict.REGRESSION
    if one.run.status is not RunStatus.COMPLETE or one.run.failed:
        return Verdict.INCOMPLETE
    if any(mark.run == one.run.run for mark in one.marks):
        return Verdict.ENVIRONMENT
    middling = one.middling
    if one.n_judged < LEAST_JUDGED * max(1, one.n_series) or middling is None or middling > LARGEST_UNSEEN:
        return Verdict.BLIND
    return Verdict.GREEN


def _known_columns(nights: Nights, told: Sequence[Told]) -> list[int]:
    """The series of which an earlier run told a change that was not resolved."""
    columns = {one.identifier: column for column, one in enumerate(nights.series)}
    runs = {one.run for one in nights.entries[:-1]}
    return [
        columns[one.series] for one in told if one.first_told in runs and not one.resolved and one.series in columns
    ]


def _outliers(nights: Nights, families: Families, told: set[str]) -> dict[str, float]:
    found = {}
    for column in np.flatnonzero(families.isolation.is_astray).tolist():
        if nights.series[column].identifier not in told:
            before = families.ratios[:-1, column]
            found[nights.series[column].name] = float(np.exp(families.ratios[-1, column] - np.nanmedian(before)))
    return found


def _findings(nights: Nights, families: Families, confirmations: Sequence[Confirmation]) -> list[Finding]:
    confirmed = {one.column for one in confirmations if one.is_confirmed}
    withheld = {one.column for one in confirmations if one.withholds}
    columns = (set(np.flatnonzero(families.q <= FALSE_DISCOVERIES).tolist()) | confirmed) - withheld
    q = {one.column: one.q for one in confirmations if one.is_confirmed}
    again = {night: ratios for night, (ratios, _) in nights.reruns.items()}
    found = [
        make_finding(
            nights,
            families.ratios,
            column,
            families.isolation,
            min(q.get(column, 1.0), float(families.q[column])),
            again=again if column in confirmed else None,
        )
        for column in sorted(columns)
    ]
    moved = np.flatnonzero(families.host_q <= OTHER_FAMILIES).tolist()
    found += host_findings(nights, families.base_levels, moved, families.host, families.host_q)
    scattered = np.flatnonzero(families.spread_q <= OTHER_FAMILIES).tolist()
    return found + [
        make_spread_finding(nights, families.spreads, column, families.spread, float(families.spread_q[column]))
        for column in scattered
    ]


def load_told(history: History) -> list[Told]:
    """What earlier gates have told. A file that cannot be read is taken for none: findings are then told again."""
    with contextlib.suppress(OSError, msgspec.DecodeError):
        return msgspec.json.decode((history.folder / TOLD).read_bytes(), type=list[Told])
    return []


def save_told(history: History, judgement: Judgement) -> None:
    """Remember what this judgement told. Raises StoreError."""
    told = {(one.identifier): one for one in load_told(history)}
    for finding in judgement.findings:
        known = told.get(finding.identifier)
        resolved = judgement.run.run if finding.state is State.RESOLVED else ""
        first = known.first_told if known else judgement.run.run
        told[finding.identifier] = Told(
            finding.identifier,
            finding.series,
            str(finding.kind),
            finding.shift.ratio > 1,
            known.since if known else finding.since,
            first,
            (known.resolved if known else "") or resolved,
            finding,
        )
    save_beside(history, TOLD, msgspec.json.encode(list(told.values())))


def _with_states(
    nights: Nights,
    found: Sequence[Finding],
    told: Sequence[Told],
    acks: AckFile,
    day: dt.date,
    confirmations: Mapping[int, Confirmation],
) -> list[Finding]:
    rows = {one.run: row for row, one in enumerate(nights.entries)}
    tonight = nights.entries[-1].run
    known_here = [one for one in told if one.since in rows and one.first_told in rows]
    earlier = [one for one in known_here if one.first_told != tonight]
    columns = {one.identifier: column for column, one in enumerate(nights.series)}
    states, seen = [], set()
    for finding in found:
        known = _same(finding, earlier, rows)
        confirmation = confirmations.get(columns.get(finding.series, -1))
        agreed = confirmation is not None and confirmation.is_confirmed
        extra = {"reruns": confirmation.reruns} if confirmation is not None and agreed else {}
        if known is None:
            state = State.CONFIRMED if agreed else State.NEW
            states.append(msgspec.structs.replace(finding, state=state, first_told=tonight, **extra))
            continue
        seen.add(known.identifier)
        states.append(
            msgspec.structs.replace(
                finding, identifier=known.identifier, state=State.CONFIRMED, first_told=known.first_told, **extra
            )
        )
    acknowledged = {one.finding: one for one in acks.acknowledged if one.is_in_force(day)}
    for one in known_here:
        if one.identifier in seen or one.finding is None or not _belongs(one.finding, nights):
            continue
        if ack := acknowledged.get(one.identifier):
            note = f"acknowledged{f' by {ack.who}' if ack.who else ''}: {ack.reason}"
            states.append(msgspec.structs.replace(one.finding, state=State.ACKNOWLEDGED, note=note))
        elif one in earlier and (one.resolved in ("", tonight) or one.resolved not in rows):
            states.append(msgspec.structs.replace(one.finding, state=State.RESOLVED))
    return states


def _belongs(finding: Finding, nights: Nights) -> bool:
    """Whether a finding is of this host and suite."""
    return finding.series in _known_series(nights)


def _known_series(nights: Nights) -> set[str]:
    """What findings of this host and suite may be of: the series, and the levels of bare metal."""
    host = nights.entries[-1].host
    return {one.identifier for one in nights.series} | {f"host {host}", f"image {host}"}


def _same(finding: Finding, earlier: Sequence[Told], rows: Mapping[str, int]) -> Told | None:
    """The earlier telling of the same change: of the series, the same way, begun within a few nights."""
    for one in earlier:
        alike = (one.series, one.kind == "spread", one.up) == (
            finding.series,
            finding.kind == "spread",
            finding.shift.ratio > 1,
        )
        if alike and not one.resolved and abs(rows[one.since] - rows[finding.since]) <= _SAME_CHANGE_NIGHTS:
            return one
    return None


def _unjudged(nights: Nights, families: Families) -> list[Unjudged]:
    """The series that are in the history and were not judged, by reason."""
    reasons: dict[str, list[str]] = {}
    last = max(0, len(nights.entries) - 2)
    for column, series in enumerate(nights.series):
        if series.is_baseline or families.isolation.is_judged[column]:
            continue
        seen = np.flatnonzero(nights.epochs[:, column] >= 0)
        if nights.epochs[-1, column] < 0:
            if seen[-1] < last:
                continue  # it was not measured last night either: it is no part of the suite any more
            reason = "not measured in this run, but in the one before"
        elif nights.failed[-1, column]:
            reason = "instances failed"
        elif np.isnan(families.ratios[-1, column]):
            reason = "a value of 0, or no block that holds bare metal too"
        else:
            n = int(families.isolation.counts[column])
            reason = f"{n} night{'' if n == 1 else 's'} under these conditions; {LEAST_BEFORE + 2} are needed"
        reasons.setdefault(reason, []).append(series.name)
    return [Unjudged(reason, tuple(names)) for reason, names in reasons.items()]


def _notes(history: History, nights: Nights, acks: AckFile, day: dt.date) -> list[str]:
    """What the reader should know of the history that was judged by."""
    notes = []
    if nights.entries[-1].host_emulated:
        notes.append(f"the host's own processor is emulated: what is found here {DECIDES_NOTHING}")
    others = {one.host for one in history.entries} - {nights.entries[-1].host}
    if others:
        notes.append(
            f"runs of {len(others)} other host{'s' if len(others) > 1 else ''} are in this folder and left out"
        )
    known = _known_series(nights)
    for ack in acks.acknowledged:
        if ack.series not in known:
            notes.append(
                f"the acknowledgement of {ack.finding} is of a series that this history does not have: {ack.series}"
            )
        elif not ack.is_in_force(day):
            notes.append(f"the acknowledgement of {ack.finding} expired on {ack.until}")
    notes += _renamings(nights)
    backwards = [
        (before.run, after.run)
        for before, after in zip(nights.entries, nights.entries[1:], strict=False)
        if before.number > after.number
    ]
    if backwards:
        notes.append(
            f"runs are in the order of their starts; {backwards[0][0]} was entered after {backwards[0][1]}, which "
            "began later: a clock may have gone backwards, or a folder was copied in"
        )
    return notes


def _renamings(nights: Nights) -> list[str]:
    """Series that came with this run while others of the same backend and metric went: they may be the same."""
    if len(nights.entries) < 2:
        return []
    here = nights.epochs >= 0
    came = [one for one, seen in zip(nights.series, here.T, strict=True) if seen[-1] and not seen[:-1].any()]
    went = [one for one, seen in zip(nights.series, here.T, strict=True) if seen[-2] and not seen[-1]]
    pairs = [(old, new) for new in came for old in went if (old.backend, old.metric) == (new.backend, new.metric)]
    return [
        f"{new.name} ({new.identifier}) is new and {old.name} ({old.identifier}) is gone: if it was renamed, a "
        "[[renamed]] entry in the file of acknowledgements lets it go on"
        for old, new in pairs[:_MOST_RENAMINGS]
    ]


_MOST_RENAMINGS = 4


def find_run(history: History, run: Path | str | None) -> RunEntry:
    """The entry of a run by its folder or name; the newest night without. Raises RunDirectoryError."""
    nights = [one for one in history.entries if one.is_night]
    if not nights:
        raise RunDirectoryError(f"{history.runs_folder} holds no run that can be judged", remedy="`tare run` makes one")
    if run is None:
        return nights[-1]
    name = Path(run).name
    for one in history.entries:
        if name in (one.run, one.folder):
            return one
    raise RunDirectoryError(
        f"{run} is not in the history of {history.runs_folder}",
        remedy=f"`tare history update {history.runs_folder}`, which says why a run is left out",
    )
