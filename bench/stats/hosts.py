"""Several hosts: what is typical of them, how far they lie apart, and what a host that nobody measured would show.

Each host gives one log ratio with its standard error. The host is a random effect: true log ratios of hosts of one kind
are normal around a centre, with a standard deviation between hosts, the *spread*; what was measured has the host's own
error in addition. Methods were chosen by simulation (``benchmarks/fleet_hosts.py``, decision 0235):

- *typical*: the mean over hosts, each counted once, with Student's t over hosts. It needs no estimate of the spread,
  of which a few hosts say little, and no host decides alone because it was quiet.
- *spread*: that of Paule and Mandel (1982), where Cochran's generalised Q is its expectation; its interval is the
  Q-profile (Viechtbauer 2007, Statistics in Medicine 26:37).
- *new host*: the spread is not known, so it is taken as distributed as Q says (Nagashima et al. 2019, Statistical
  Methods in Medical Research 28:1689; here over a grid, without random numbers): a mixture of normal distributions
  around the mean, of which the interval is the middle part. Below ``ENOUGH_HOSTS`` hosts there is none.
- *odd host*: a host against the mean of the others, as a deleted residual with Student's t.

Everything is on the log scale. Importing this module imports numpy; scipy is imported where it is used.
"""

import math
from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from tare.bench.stats.comparisons import LEVEL, Interval

Floats = NDArray[np.float64]

ENOUGH_HOSTS = 5
"""Hosts from which there is an interval for one that nobody measured."""
LEAST_FOR_ODD = 4
"""Hosts from which one of them can be told to differ from the others."""
_GRID = 120
_STEPS = 100
_EXACT = 1e-9


class HostValue(msgspec.Struct, frozen=True):
    """A host's log ratio and its standard error, which is above 0, with its degrees of freedom."""

    log_ratio: float
    error: float
    freedom: float = math.inf


class HostsTogether(msgspec.Struct, frozen=True):
    """What hosts say together, on the log scale.

    ``typical`` has no ends for one host. ``spread`` is the standard deviation between hosts with its interval; None for
    one host. ``new_host`` is None below ``ENOUGH_HOSTS``. ``odd`` holds a two-sided p-value a host, in their order, of
    being one of the others' kind; empty below ``LEAST_FOR_ODD``.
    """

    n_hosts: int
    typical: Interval
    spread: Interval | None
    new_host: Interval | None
    odd: tuple[float, ...]


def combine_hosts(hosts: Sequence[HostValue], *, level: float = LEVEL) -> HostsTogether:
    """What these hosts say together. Raises ValueError without a host, and for an error that is not above 0."""
    values, variances = np.array([one.log_ratio for one in hosts]), np.array([one.error**2 for one in hosts])
    if not len(values):
        raise ValueError("there is no host to combine")
    if not (np.isfinite(values).all() and np.isfinite(variances).all() and (variances > 0).all()):
        raise ValueError("each host needs a finite log ratio, and a standard error above 0")
    n = len(values)
    if n == 1:
        return HostsTogether(1, Interval(float(values[0]), None, None, None, "one host"), None, None, ())
    return HostsTogether(
        n,
        _typical(values, level),
        _spread(values, variances * np.array([_inflation(one.freedom) for one in hosts]), level),
        _new_host(values, variances, level) if n >= ENOUGH_HOSTS else None,
        tuple(_odd(values, variances)) if n >= LEAST_FOR_ODD else (),
    )


def _typical(values: Floats, level: float) -> Interval:
    from scipy.special import stdtr, stdtrit

    n, centre = len(values), float(values.mean())
    error = float(values.std(ddof=1)) / math.sqrt(n)
    if np.ptp(values) == 0:
        return Interval(centre, None, None, None, f"{n} hosts with the same reading: no interval")
    half = float(stdtrit(n - 1, (1 + level) / 2)) * error
    return Interval(
        centre, centre - half, centre + half, 2 * float(stdtr(n - 1, -abs(centre) / error)), f"t over {n} hosts"
    )


def _inflation(freedom: float) -> float:
    """What an estimated variance is multiplied by, so that its reciprocal is that of the true one on average.

    Without it, hosts that do not differ at all seem to in a fifth of fleets of 20 hosts of 8 blocks.
    """
    return 1 + 2 / max(freedom - 2, 1.0)


def _spread(values: Floats, variances: Floats, level: float) -> Interval:
    from scipy.special import chdtri

    freedom = len(values) - 1
    wanted = np.array([freedom, float(chdtri(freedom, (1 - level) / 2)), float(chdtri(freedom, (1 + level) / 2))])
    centre, low, high = np.sqrt(_spread_where(values, variances, wanted)).tolist()
    return Interval(centre, low, high, None, f"Paule and Mandel, Q-profile over {len(values)} hosts")


def _new_host(values: Floats, variances: Floats, level: float) -> Interval:
    from scipy.special import chdtri

    n, centre = len(values), float(values.mean())
    of_q = np.asarray(chdtri(n - 1, 1 - (np.arange(_GRID) + 0.5) / _GRID))
    spread = _spread_where(values, variances, of_q)
    half = _half_of_mixture(np.sqrt(spread + (spread + variances.mean()) / n), level)
    return Interval(centre, centre - half, centre + half, None, f"prediction over {n} hosts")


def _half_of_mixture(deviations: Floats, level: float) -> float:
    """Half of the interval that holds ``level`` of a mixture of normal distributions around one centre."""
    from scipy.optimize import brentq
    from scipy.special import ndtr, ndtri

    share = (1 + level) / 2
    widest = float(ndtri(share) * deviations.max())
    return float(brentq(lambda half: float(ndtr(half / deviations).mean()) - share, 0.0, 1.001 * widest))


def _spread_where(values: Floats, variances: Floats, wanted: Floats) -> Floats:
    """The squared spreads at which the generalised Q is as wanted; 0 where it is less without any spread.

    Q falls as the spread grows, ever more slowly: Newton's steps from 0 never go too far (DerSimonian and Kacker 2007).
    """
    spreads = np.zeros(len(wanted))
    for _ in range(_STEPS):
        weights = 1 / (variances + spreads[:, np.newaxis])
        centres = (weights * values).sum(axis=1) / weights.sum(axis=1)
        shares = weights * (values - centres[:, np.newaxis]) ** 2
        missing = shares.sum(axis=1) - wanted
        steps = np.divide(missing, (weights * shares).sum(axis=1), out=np.zeros(len(wanted)), where=missing > 0)
        spreads += steps
        if (steps <= _EXACT * spreads).all():
            break
    return spreads


def _odd(values: Floats, variances: Floats) -> list[float]:
    """Of each host the p-value of its distance from the mean of the others."""
    from scipy.special import stdtr

    n, found = len(values), []
    for place in range(n):
        others, errors = np.delete(values, place), np.delete(variances, place)
        scatter = float(others.var(ddof=1))
        spread = float(_spread_where(others, errors, np.array([n - 2.0]))[0])
        error = math.sqrt(max(scatter, spread + float(variances[place])) + scatter / (n - 1))
        found.append(2 * float(stdtr(n - 2, -abs(float(values[place] - others.mean())) / error)))
    return found
