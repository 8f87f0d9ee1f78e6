"""When a fleet is full: demand that grows by a rate, or as its past says, against what the hosts hold.

A rate is what the user states, and is taken as exact. The logarithm of past demand is fitted as a structural time
series (Harvey, *Forecasting, Structural Time Series Models and the Kalman Filter*, 1989) by statsmodels: steady growth
with noise, a level that wanders with steady growth, or growth that changes; and the season of a year where at least two
are known. Paths are drawn from each model in proportion to its Akaike weight (AICc), with what is uncertain about its
level and growth, and with errors as wide as so few months leave them; they are compared with the capacity, itself drawn
from its interval.
"""

import csv
import io
import math
import re
from datetime import date
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from tare.bench.errors import SuiteError, UnavailableError

HORIZON_MONTHS = 60
"""How far a plan looks ahead. What lasts longer is said to last at least as long."""
LEAST_MONTHS = 8
"""Past months without which no trend is estimated."""
PATHS = 4000
_SEASON = 12
_RATE = re.compile(r"\s*(-?\d+(?:\.\d+)?)\s*%\s*(?:/|a|per)?\s*(month|year)?\s*")

_Values = npt.NDArray[np.float64]


class Held(msgspec.Struct, frozen=True):
    """What hosts hold of a demand, with its 95 % interval; ``most`` is None where that has no end."""

    instances: float
    fewest: float | None
    most: float | None


class Projection(msgspec.Struct, frozen=True):
    """Demand to come: possible paths, a row each, a column a month from the next one on. ``model`` says from what."""

    model: str
    paths: _Values

    @property
    def expected(self) -> tuple[tuple[float, float, float], ...]:
        """Of each month the middle and the ends of the 95 % interval."""
        ends = np.quantile(self.paths, (0.5, 0.025, 0.975), axis=0).T
        return tuple((float(middle), float(low), float(high)) for middle, low, high in ends)


class Exhaustion(msgspec.Struct, frozen=True):
    """When demand exceeds what the hosts hold, in months from the last known one: 1 is the next.

    None for ``months`` and ``latest`` where it does not within the horizon, in the middle and at the upper end of the
    95 % interval; ``earliest`` is None where not even its lower end does.
    """

    months: int | None
    earliest: int | None
    latest: int | None


def month_after(last: date, months: int) -> date:
    """The first day of the month that is ``months`` after ``last``."""
    number = last.year * 12 + last.month - 1 + months
    return date(number // 12, number % 12 + 1, 1)


def parse_rate(text: str) -> float:
    """A monthly rate as a share, from ``8 % a month`` or ``40 %/year``. Raises ValueError."""
    found = _RATE.fullmatch(text)
    if found is None:
        raise ValueError(f"must be a rate such as '8 % a month' or '40 % a year', not {text!r}")
    rate = float(found[1]) / 100
    if rate <= -1:
        raise ValueError(f"must be more than -100 %, not {text!r}")
    return rate if found[2] != "year" else (1 + rate) ** (1 / 12) - 1


def read_demand(path: Path) -> tuple[date, _Values]:
    """The last month and the monthly demand of a CSV with the columns ``month`` (2026-11) and ``instances``.

    Raises SuiteError with the line: for a month that is missing or there twice, a number that is none, too few months.
    """
    months: list[int] = []
    values: list[float] = []
    try:
        text = path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise SuiteError(str(path), f"cannot be read: {error}") from None
    rows = csv.DictReader(io.StringIO(text))
    if not {"month", "instances"} <= set(rows.fieldnames or ()):
        raise SuiteError(f"{path}: line 1", "must have the columns month and instances")
    for row in rows:
        place = f"{path}: line {rows.line_num}"
        found = re.fullmatch(r"(\d{4})-(\d{2})(-\d{2})?", (row["month"] or "").strip())
        if found is None or not 1 <= int(found[2]) <= 12:
            raise SuiteError(f"{place}: month", f"must be like 2026-11, not {row['month']!r}")
        number = int(found[1]) * 12 + int(found[2]) - 1
        if months and number != months[-1] + 1:
            gap = "a month is missing before it" if number > months[-1] else "months must rise, each once"
            raise SuiteError(
                f"{place}: month", f"{row['month']}: {gap}", remedy="give each month one line, a quiet one too"
            )
        try:
            value = float(row["instances"])
        except (TypeError, ValueError):
            value = math.nan
        if not (math.isfinite(value) and value > 0):
            raise SuiteError(f"{place}: instances", f"must be a number above 0, not {row['instances']!r}")
        months.append(number)
        values.append(value)
    if len(values) < LEAST_MONTHS:
        raise SuiteError(str(path), f"has {len(values)} months; a trend needs at least {LEAST_MONTHS}")
    return date(months[-1] // 12, months[-1] % 12 + 1, 1), np.array(values)


def project_rate(now: float, rate: float) -> Projection:
    """Demand ``now`` that grows by the share ``rate`` each month."""
    growing: _Values = now * (1 + rate) ** np.arange(1.0, HORIZON_MONTHS + 1)
    return Projection(f"{100 * rate:.3g} % a month, as stated", growing[None, :])


def project_history(history: _Values, *, seed: int = 1) -> Projection:
    """Demand that goes on as ``history`` (a value a month) did. Raises UnavailableError without statsmodels."""
    model, paths = _forecast(history, seed)
    return Projection(model, paths)


def find_exhaustion(projection: Projection, held: Held, *, seed: int = 1) -> Exhaustion:
    """When the projected demand exceeds what is held; both as uncertain as they are."""
    capacities = _drawn(held, PATHS, np.random.default_rng([seed, 7]))
    exceeded = np.broadcast_to(projection.paths, (PATHS, HORIZON_MONTHS)) > capacities[:, None]
    # Once it is full it is full: what comes back below does not make the month undone.
    first = np.where(exceeded.any(axis=1), exceeded.argmax(axis=1) + 1, HORIZON_MONTHS + 1)
    ends = (int(found) for found in np.quantile(first, (0.5, 0.025, 0.975), method="nearest"))
    return Exhaustion(*(None if month > HORIZON_MONTHS else month for month in ends))


def _drawn(held: Held, number: int, random: np.random.Generator) -> _Values:
    """Capacities whose middle 95 % are the interval: two halves of normal distributions, one a side."""
    below = 0.0 if held.fewest is None else (held.instances - held.fewest) / 1.96
    above = 0.0 if held.fewest is None else (math.inf if held.most is None else (held.most - held.instances) / 1.96)
    deviations = random.standard_normal(number)
    with np.errstate(invalid="ignore"):
        spread = np.where(deviations < 0, deviations * below, np.where(deviations > 0, deviations * above, 0.0))
    drawn: _Values = held.instances + np.nan_to_num(spread, nan=0.0, posinf=math.inf)
    return drawn


def _forecast(history: _Values, seed: int) -> tuple[str, _Values]:
    """The better of the models by AICc, and paths that go on from it: as many rows as paths, a column a month."""
    try:
        from statsmodels.tsa.statespace.structural import UnobservedComponents
    except ImportError:
        raise UnavailableError(
            "past demand is extrapolated by statsmodels, which is not installed",
            remedy="pip install 'tarebench[forecast]', or state a rate: --growth '8 % a month'",
        ) from None
    season = _SEASON if len(history) >= 2 * _SEASON else None
    options = {"seasonal": season, "stochastic_seasonal": False} if season else {}
    fits = [
        UnobservedComponents(np.log(history), level, **options).fit(disp=False, method="powell", maxiter=300)
        for level in _LEVELS
    ]
    criteria = np.array([float(fit.aicc) for fit in fits])
    weights = np.exp((criteria.min() - criteria) / 2)
    random = np.random.default_rng(seed)
    shares = random.multinomial(PATHS, weights / weights.sum())
    found = [_paths(fit, len(history), int(share), random) for fit, share in zip(fits, shares, strict=True) if share]
    best = list(_LEVELS.values())[int(criteria.argmin())]
    named = f"{best}{', with the season of a year' if season else ''}, from {len(history)} months"
    return named, np.exp(random.permutation(np.concatenate(found)))


_LEVELS = {
    "dtrend": "steady growth",
    "rwdrift": "a level that wanders, with steady growth",
    "lltrend": "growth that changes",
}
"""statsmodels' names of the models: deterministic trend, random walk with drift, local linear trend."""


def _paths(fit: Any, months: int, number: int, random: np.random.Generator) -> _Values:
    """Paths of a fitted linear Gaussian state space model, from the states that the end of the history leaves open."""
    ssm = fit.model.ssm
    transition, design = ssm["transition"], ssm["design"][0]
    states = random.multivariate_normal(
        fit.filtered_state[:, -1], fit.filtered_state_cov[:, :, -1], number, method="svd"
    )
    # The variances are estimates from few months: each path has its own, as the sum of squares leaves them.
    degrees = max(2, months - len(states[0]) - len(fit.params))
    wider = np.sqrt(degrees / random.chisquare(degrees, number))[:, None]
    states = fit.filtered_state[:, -1] + (states - fit.filtered_state[:, -1]) * wider
    shocks = np.linalg.cholesky(ssm["state_cov"] + 1e-300 * np.eye(len(ssm["state_cov"])))
    found = np.empty((number, HORIZON_MONTHS))
    for month in range(HORIZON_MONTHS):
        moved = random.standard_normal((number, len(shocks))) @ shocks.T @ ssm["selection"].T
        states = states @ transition.T + moved * wider
        found[:, month] = (
            states @ design + random.standard_normal(number) * math.sqrt(ssm["obs_cov"][0, 0]) * wider[:, 0]
        )
    return found
