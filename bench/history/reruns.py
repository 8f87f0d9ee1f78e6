"""Which cells of a night are measured again, and what the reruns say.

A night's series that look changed, at a level at which many do by chance, are suspicious. Each rerun is a run of its
own of just their cells and baselines, interleaved. A change is confirmed if the reruns alone differ from the nights
before it, in the direction that was suspected; the night's own value, which was chosen for being far off, does not
count. Where nights are correlated they have a state that reruns of a night share: there the nights have to speak too.
"""

import math
from collections.abc import Collection, Mapping, Sequence

import msgspec
import numpy as np

from tare.bench.history.changes import LEAST_BEFORE, Scan, adjusted
from tare.bench.stats.comparisons import Floats

MOST_RERUN = 0.10
"""Share of a night's cells that are measured again at most, baselines included."""
LEAST_RERUN = 4
"""Series that may be measured again however small the suite is."""
CONFIRMED = 1 / 100
"""Level of the false discovery control over the series of a night that were measured again."""
MOST_RERUNS = 10
_SUSPICIOUS_ALONE = 0.07
_SUSPICIOUS = 0.03
_LEAST_RERUNS = 2
_ENOUGH_TO_DISMISS = 3
_DISMISSED = 0.2
_LOOKS = 3.0
"""The reruns are looked at after each from the second on: five looks, which share most of what they see."""
_STATE = 0.15
_SHORTEST = (2, 3, 5, 7, 10)


class Confirmation(msgspec.Struct, frozen=True):
    """What the reruns of one series say. ``size`` is the log of the change that they show, ``q`` its adjusted p."""

    column: int
    reruns: int
    size: float
    p: float
    q: float
    suspected_up: bool
    nights_in_favour: int
    nights_needed: int

    @property
    def is_confirmed(self) -> bool:
        """Whether the reruns alone show the change, on as many nights as single nights astray make necessary."""
        return self.reruns >= _LEAST_RERUNS and self.q <= CONFIRMED and self.nights_in_favour >= self.nights_needed

    @property
    def is_decided(self) -> bool:
        """Whether more reruns are not worth their time: confirmed, or the reruns show next to nothing of it."""
        return self.is_confirmed or (self.reruns >= _ENOUGH_TO_DISMISS and self.p > _DISMISSED)

    @property
    def withholds(self) -> bool:
        """Whether the change is not told tonight although its nights alone would speak for it."""
        return self.reruns >= _LEAST_RERUNS and not self.is_confirmed


def choose_suspicious(ratios: Floats, found: Scan, known: Collection[int] = ()) -> list[int]:
    """The columns to measure again, the most suspicious first, within ``MOST_RERUN`` or ``LEAST_RERUN``.

    ``known`` are columns of which a change was told before: measuring again what everybody knows is a waste.
    """
    judged = found.is_judged.copy()
    tonight = int(np.isfinite(ratios[-1]).sum())
    judged[list(known)] = False
    looks = judged & ((found.alone <= _SUSPICIOUS_ALONE) | (found.p <= _SUSPICIOUS))
    rank = np.minimum(found.alone / _SUSPICIOUS_ALONE, found.p / _SUSPICIOUS)
    order = sorted(np.flatnonzero(looks).tolist(), key=lambda column: rank[column])
    # A series costs its own cell and, at worst, a baseline nobody else needs; a night has three cells for two series.
    most = int(MOST_RERUN * 1.5 * tonight / 2)
    return order[: max(LEAST_RERUN, most)]


def confirm(again: Mapping[int, Floats], ratios: Floats, found: Scan, suspicious: Sequence[int]) -> list[Confirmation]:
    """What the reruns of tonight say of tonight's suspicious series, with those of the nights since the change.

    ``again`` has the ratios of the reruns of each night, a row a rerun; ``found`` is the plain scan of ``ratios``.
    """
    tonight = len(ratios) - 1
    if tonight not in again:
        return []
    drafts = []
    for column in suspicious:
        rounds = {
            night: values[:, column][~np.isnan(values[:, column])]
            for night, values in again.items()
            if np.isfinite(values[:, column]).any()
        }
        if tonight in rounds:
            drafts.append(judge_reruns(ratios[:, column], column, rounds, found))
    if not drafts:
        return []
    q = adjusted(np.array([one.p for one in drafts]) * _LOOKS, np.ones(len(drafts), dtype=bool))
    by_nights = found.q
    return [
        msgspec.structs.replace(
            one, q=max(float(value), float(by_nights[one.column]) if _is_shared(found, one.column) else 0.0)
        )
        for one, value in zip(drafts, q, strict=True)
    ]


def _is_shared(found: Scan, column: int) -> bool:
    """Whether nights of a series have a state that reruns of a night share: then its nights have to speak too."""
    return float(found.noise.correlation[column]) > _STATE


def judge_reruns(values: Floats, column: int, rounds: dict[int, Floats], found: Scan) -> Confirmation:
    """Compare the reruns of the nights since the suspected change with all nights; ``q`` is still the p.

    With all, as a series is suspicious in part because the nights before happened to lie on the other side. Without a
    change the mean of all nights is independent of the difference that made it suspicious.
    """
    from scipy.special import bdtrc, stdtr

    here = np.flatnonzero(~np.isnan(values))
    window = int(found.window[column]) if found.p[column] <= _SUSPICIOUS else 1
    window = min(max(1, window), len(here) - LEAST_BEFORE)
    first = here[-window]
    before, after = values[here[:-window]], values[here[-window:]]
    deviation, rho = float(found.deviation[column]), float(found.noise.correlation[column])
    middle = float(np.median(before))
    centre = float(np.clip(before, middle - 3 * deviation, middle + 3 * deviation).mean())
    counted = [again for night, again in rounds.items() if night >= first]
    n = np.array([len(again) for again in counted], dtype=float)
    astray = found.noise.surely_astray
    left_out = _astray_reruns(int(n.sum()), astray)
    up = float(after.mean()) > centre
    everything = (len(before) * centre + window * float(after.mean())) / len(here)
    apart = np.sort(np.concatenate(counted) - everything)
    kept = (apart[: len(apart) - left_out] if up else apart[left_out:]) if left_out < len(apart) else apart[:0]
    size = float(kept.mean()) if len(kept) else 0.0
    shared = min(1.0, 2 * rho)
    spread = shared / len(n) * (1 + rho) / (1 - rho) + (1 - shared) / max(1, len(kept))
    spread += (1 + rho) / (1 - rho) / len(here)
    t = size / (deviation * math.sqrt(spread)) * (1 if up else -1)
    p = float(stdtr(float(found.freedom[column]), -t))
    nights_in_favour = int((((after - centre) > 0) == up).sum())
    needed = 1
    series = max(1, int(found.is_judged.sum()))
    while astray > 0 and series * float(bdtrc(needed - 1, needed, astray)) > 0.01 and needed < 10:
        needed += 1
    return Confirmation(column, int(n.sum()), size, p, p, up, nights_in_favour, needed)


def _astray_reruns(n: int, astray: float) -> int:
    """Reruns that may have gone astray by chance, over the series that a night measures again."""
    from scipy.special import bdtrc

    found = 0
    while astray > 0 and found < n and 20 * float(bdtrc(found, n, astray)) > 0.01:
        found += 1
    return found
