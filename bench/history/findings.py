"""What a change is (step, drift, change of spread), since when, how large, and whose it is.

Bare metal was measured in the blocks of every night. What moved it and left the ratios is the host's; what moved a
ratio is the isolation's, unless bare metal alone moved; what cannot be separated is said to be so.
"""

import math
from collections.abc import Mapping
from enum import StrEnum

import msgspec
import numpy as np
from numpy.typing import NDArray

from tare.bench.history.changes import LEAST_BEFORE, Scan
from tare.bench.history.entries import digest_of
from tare.bench.history.nights import Nights, Series
from tare.bench.model import Direction
from tare.bench.stats.comparisons import Floats


class Kind(StrEnum):
    """What happened to a series."""

    STEP = "step"
    DRIFT = "drift"
    SPREAD = "spread"


class Cause(StrEnum):
    """Whose change it is."""

    HOST = "host"
    ISOLATION = "isolation"
    WORKLOAD = "workload"
    UNKNOWN = "cannot-tell"


class State(StrEnum):
    """How a finding stands: told for the first time, borne out since, known to somebody, or gone again."""

    NEW = "new"
    CONFIRMED = "confirmed"
    ACKNOWLEDGED = "acknowledged"
    RESOLVED = "resolved"


class Shift(msgspec.Struct, frozen=True):
    """How far something moved, as a ratio of after to before, with its 95 % interval."""

    ratio: float
    low: float
    high: float

    @property
    def is_clear(self) -> bool:
        """Whether the interval excludes 1."""
        return self.low > 1 or self.high < 1


class Finding(msgspec.Struct, frozen=True):
    """A change of one series, or of bare metal in several subjects (``subjects``).

    ``since`` is the run of the first changed night, ``first_told`` that in which it was found. ``shift`` is of the
    ratio to bare metal, or of the level where ``cause`` is the host or there is no bare metal. ``worse`` is None for a
    change of spread. ``figures`` are the shifts of what it was attributed by. ``q`` is the adjusted p-value.
    """

    identifier: str
    series: str
    name: str
    backend: str
    metric: str
    direction: Direction
    kind: Kind
    cause: Cause
    reason: str
    since: str
    since_utc: str
    nights: int
    shift: Shift
    worse: bool | None
    q: float
    state: State = State.NEW
    first_told: str = ""
    figures: Mapping[str, Shift] = {}
    subjects: tuple[str, ...] = ()
    note: str = ""
    reruns: int = 0

    @property
    def is_open(self) -> bool:
        """Whether somebody has to look at it."""
        return self.state in (State.NEW, State.CONFIRMED)

    @property
    def is_regression(self) -> bool:
        """Whether it fails a gate: open, worse, and not a matter of levels alone."""
        return self.is_open and self.worse is True and self.cause is Cause.ISOLATION


class Located(msgspec.Struct, frozen=True):
    """A change of a column: ``row`` is its first changed night, ``nights`` how many there are since."""

    row: int
    nights: int
    kind: Kind
    size: float
    error: float


def locate(values: Floats, column: int, found: Scan, *, again: Mapping[int, Floats] | None = None) -> Located:
    """Where the change that ``found`` has in a column of ``values`` began, and what it looks like.

    The place is the split with the least squares (ruptures' exact search), within three times the window that speaks
    most for the change.
    """
    rows = np.flatnonzero(~np.isnan(values[:, column]))
    logs = values[rows, column]
    window = max(2, int(found.window[column]))
    start = max(0, len(logs) - 3 * window - LEAST_BEFORE)
    deviation = float(found.deviation[column])
    if again is None:
        split = start + _split(_drawn_in(logs[start:], window, deviation))
    else:
        split = _split_by_reruns(rows, logs, column, again)
    after, before = logs[split:], logs[:split]
    kind = Kind.DRIFT if window >= LEAST_BEFORE and _is_ramp(logs[start:]) else Kind.STEP
    rho = float(found.noise.correlation[column])
    inflation = (1 + rho) / (1 - rho)
    size = _centre(after) - _centre(before)
    error = deviation * math.sqrt(inflation * (1 / len(after) + 1 / len(before)))
    return Located(int(rows[split]), len(after), kind, size, error)


def _drawn_in(logs: Floats, window: int, deviation: float) -> Floats:
    """Without what single nights that went astray could do to the place of a change."""
    before, after = logs[:-window], logs[-window:]
    reach = 3 * deviation
    parts = (np.clip(part, np.median(part) - reach, np.median(part) + reach) for part in (before, after))
    return np.concatenate(list(parts))


def _split(logs: Floats) -> int:
    import ruptures

    search = ruptures.KernelCPD(kernel="linear", min_size=2).fit(logs.reshape(-1, 1))
    return int(search.predict(n_bkps=1)[0])


def _split_by_reruns(rows: NDArray[np.int64], logs: Floats, column: int, again: Mapping[int, Floats]) -> int:
    """The split with the least squares where a night weighs as many runs as it had; it may leave a single night."""
    sums, weights = logs.copy(), np.ones(len(logs))
    for night, ratios in again.items():
        known = ratios[:, column][~np.isnan(ratios[:, column])]
        place = np.flatnonzero(rows == night)
        sums[place] += known.sum()
        weights[place] += len(known)
    splits = np.arange(max(LEAST_BEFORE, len(logs) - _FURTHEST), len(logs))
    before, heavy = np.cumsum(sums)[splits - 1], np.cumsum(weights)[splits - 1]
    apart = before / heavy - (sums.sum() - before) / (weights.sum() - heavy)
    return int(splits[np.argmax(apart**2 * heavy * (weights.sum() - heavy))])


_FURTHEST = 15
"""Nights within which a change is sought that reruns found."""


def _is_ramp(logs: Floats) -> bool:
    """Whether a level that turns into a slope fits better than two levels do; both tried at up to forty places."""
    n = np.arange(len(logs), dtype=float)
    places = np.unique(np.linspace(2, len(logs) - 2, 40).astype(int)).tolist()
    flat = min(_squares(logs[:k]) + _squares(logs[k:]) for k in places)
    ramps = []
    for turn in places:
        slope = np.maximum(0, n - turn + 1)
        apart = slope - slope.mean()
        ramps.append(_squares(logs) - float(apart @ logs) ** 2 / float(apart @ apart))
    return min(ramps) < 0.9 * flat


def _squares(logs: Floats) -> float:
    return float(((logs - logs.mean()) ** 2).sum())


def _centre(logs: Floats) -> float:
    """The mean of a few, the mean without the outer fifths of more."""
    from scipy.stats import trim_mean

    return float(trim_mean(logs, 0.2)) if len(logs) >= 5 else float(np.median(logs) if len(logs) == 3 else logs.mean())


def shift_of(values: Floats, row: int) -> Shift | None:
    """How far a column of logs moved at a row, by the spread of its nights on either side; None with too few."""
    if (step := _step(values, row)) is None:
        return None
    from scipy.special import stdtrit

    size, error, freedom = step
    return as_shift(size, float(stdtrit(freedom, 0.975)) * error)


def step_p(values: Floats, row: int) -> float:
    """The p-value of the step of a column of logs at a row, as ``shift_of`` has it; NaN with too few nights."""
    if (step := _step(values, row)) is None:
        return math.nan
    from scipy.special import stdtr

    size, error, freedom = step
    return 2 * float(stdtr(freedom, -abs(size) / error)) if error > 0 else float(size == 0)


def _step(values: Floats, row: int) -> tuple[float, float, int] | None:
    """The size of a step with its standard error and degrees of freedom."""
    before, after = values[:row], values[row:]
    before, after = before[~np.isnan(before)], after[~np.isnan(after)]
    if len(before) < 3 or not len(after):
        return None
    freedom = len(before) + len(after) - 2
    middle = float(np.median(before))
    robust = 1.4826 * float(np.median(np.abs(before - middle)))
    inside = np.clip(before, middle - 3 * robust, middle + 3 * robust) if robust > 0 else before
    spread = math.sqrt((_squares(inside) + _squares(after)) / freedom)
    return _centre(after) - _centre(inside), spread * math.sqrt(1 / len(before) + 1 / len(after)), freedom


def located_at(values: Floats, row: int) -> Located:
    """A step that is known to have begun at a row. There have to be nights enough for ``shift_of``."""
    step = _step(values, row)
    assert step is not None
    return Located(row, int((~np.isnan(values[row:])).sum()), Kind.STEP, step[0], step[1])


def as_shift(size: float, half: float) -> Shift:
    """A change of logs with half the width of its interval."""
    return Shift(math.exp(size), math.exp(size - half), math.exp(size + half))


def attribute(nights: Nights, values: Floats, column: int, located: Located) -> tuple[Cause, str, dict[str, Shift]]:
    """Whose change of a ratio it is, why, and the figures: bare metal's level, its own, and the others' ratios.

    ``values`` are the ratios as they were judged.
    """
    series, base = nights.series[column], int(nights.baseline_of[column])
    if base < 0:
        return Cause.UNKNOWN, "no bare metal was measured next to it: the change may be the host's", {}
    here = ~np.isnan(values[:, column])
    levels = np.where(here[:, None], nights.levels, np.nan)
    figures = {}
    base_name = nights.series[base].backend
    for name, place in ((base_name, base), (series.backend, column)):
        if (shift := shift_of(levels[:, place], located.row)) is not None:
            figures[f"level of {name}"] = shift
    others = _other_ratios(nights, values, column, located.row)
    figures |= {f"ratio of {name}": shift for name, shift in others.items()}
    ratio = math.exp(located.size)
    bare, own = figures.get(f"level of {base_name}"), figures.get(f"level of {series.backend}")
    if _moved_alone(ratio, bare, own, list(others.values())):
        reason = f"{base_name} itself moved against everything measured in the same blocks, which kept its level"
        return Cause.UNKNOWN, reason, figures
    reason = f"the ratio of {series.backend} to {base_name}, measured in the same blocks, moved"
    if bare is not None and not bare.is_clear:
        reason += f"; {base_name} did not"
    return Cause.ISOLATION, reason, figures


def _other_ratios(nights: Nights, values: Floats, column: int, row: int) -> dict[str, Shift]:
    series = nights.series[column]
    found = {}
    for place, other in enumerate(nights.series):
        if other.subject == series.subject and place != column and not other.is_baseline:
            shift = shift_of(values[:, place], row)
            if shift is not None:
                found[other.backend] = shift
    return found


def _moved_alone(ratio: float, bare: Shift | None, own: Shift | None, others: list[Shift]) -> bool:
    """Whether bare metal moved the other way while this backend kept its level and all other ratios moved alike."""
    if bare is None or own is None or not bare.is_clear:
        return False
    alike = all(shift.is_clear and (shift.ratio > 1) == (ratio > 1) for shift in others)
    moved, kept = math.log(bare.ratio), math.log(own.ratio)
    # By its interval alone bare metal would seem to move in every twentieth finding.
    explains = moved * math.log(ratio) < 0 and abs(moved) > 0.5 * abs(math.log(ratio)) > abs(kept)
    return alike and explains


def is_worse(direction: Direction, ratio: float) -> bool:
    """Whether a ratio of after to before is a loss."""
    return ratio > 1 if direction is Direction.LOWER else ratio < 1


def identify(series: str, kind: Kind, ratio: float, since: str) -> str:
    """A finding's name: eight characters, the same for the same change of the same series."""
    return digest_of([series, "spread" if kind is Kind.SPREAD else "mean", ratio > 1, since])[:8]


def make_finding(
    nights: Nights, values: Floats, column: int, found: Scan, q: float, *, again: Mapping[int, Floats] | None = None
) -> Finding:
    """The finding of a ratio (or of a level that has none) that was judged to have changed.

    ``again`` are the ratios of the reruns, by night, where they decided; None where its nights did.
    """
    series, located = nights.series[column], locate(values, column, found, again=again)
    cause, reason, figures = attribute(nights, values, column, located)
    return _finding(nights, series, located, cause, reason, q, figures, _half_of(located, found, column))


def make_spread_finding(nights: Nights, values: Floats, column: int, found: Scan, q: float) -> Finding:
    """The finding of a changed scatter of blocks within a night."""
    series, located = nights.series[column], locate(values, column, found)
    located = msgspec.structs.replace(located, kind=Kind.SPREAD)
    reason = "blocks of a night scatter differently than before; the centre is another matter"
    half = _half_of(located, found, column)
    return _finding(nights, series, located, Cause.UNKNOWN, reason, q, {}, half)


def _half_of(located: Located, found: Scan, column: int) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(max(1.0, float(found.freedom[column])), 0.975)) * located.error


def _finding(
    nights: Nights,
    series: Series,
    located: Located,
    cause: Cause,
    reason: str,
    q: float,
    figures: Mapping[str, Shift],
    half: float,
) -> Finding:
    shift, since = as_shift(located.size, half), nights.entries[located.row]
    return Finding(
        identifier=identify(series.identifier, located.kind, shift.ratio, since.run),
        series=series.identifier,
        name=series.name,
        backend=series.backend,
        metric=series.metric,
        direction=series.direction,
        kind=located.kind,
        cause=cause,
        reason=reason,
        since=since.run,
        since_utc=since.started_utc,
        nights=located.nights,
        shift=shift,
        worse=None if located.kind is Kind.SPREAD else is_worse(series.direction, shift.ratio),
        q=q,
        figures=figures,
    )


def host_findings(nights: Nights, values: Floats, columns: list[int], found: Scan, q: Floats) -> list[Finding]:
    """Bare metal's changes: those of several subjects that began together are one finding."""
    placed = sorted(((locate(values, column, found), column) for column in columns), key=lambda one: one[0].row)
    groups: list[list[tuple[Located, int]]] = []
    for located, column in placed:
        if groups and located.row - groups[-1][0][0].row <= 2:
            groups[-1].append((located, column))
        else:
            groups.append([(located, column)])
    return [_host_finding(nights, group, found, q) for group in groups]


def _host_finding(nights: Nights, group: list[tuple[Located, int]], found: Scan, q: Floats) -> Finding:
    name = nights.series[group[0][1]].backend
    reason = f"{name} moved in {len(group)} subject{'s' if len(group) > 1 else ''}; ratios to it are judged apart"
    moved = [(located, column, float(q[column])) for located, column in group]
    return level_finding(nights, moved, Cause.HOST, reason, of=f"host {nights.entries[-1].host}", found=found)


def level_finding(
    nights: Nights,
    moved: list[tuple[Located, int, float]],
    cause: Cause,
    reason: str,
    *,
    of: str,
    found: Scan | None = None,
) -> Finding:
    """One finding for the levels of bare metal in several subjects, each with its adjusted p-value.

    Figures are those of the subject that shows it best. ``of`` is what it is a series of. With ``found`` its interval
    has the degrees of freedom of the scan.
    """
    located, column, q = min(moved, key=lambda one: one[2])
    series = nights.series[column]
    losses = [is_worse(nights.series[place].direction, math.exp(one.size)) for one, place, _ in moved]
    subjects = tuple(nights.series[place].subject_name for _, place, _ in moved)
    half = 1.96 * located.error if found is None else _half_of(located, found, column)
    one = _finding(nights, series, located, cause, reason, q, {}, half)
    return msgspec.structs.replace(
        one,
        identifier=identify(of, one.kind, one.shift.ratio, one.since),
        series=of,
        name=f"{series.backend} ({subjects[0]}{f' and {len(subjects) - 1} more' if len(subjects) > 1 else ''})",
        worse=sum(losses) * 2 > len(losses),
        subjects=subjects,
    )
