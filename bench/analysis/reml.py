"""Restricted maximum likelihood for the differences between successive readings, over a grid of variance ratios.

The covariance of differences is tridiagonal: each has a part of its own, and the error of the reading that it shares
with its neighbour. So all is done by recurrences along the ramp, at every point of the grid at once.
"""

import math
from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

LEAST_FREEDOM = 2
"""With fewer degrees of freedom there is no interval."""
_STEP_LEVEL = 0.01
_MOST_STEPS = 5
_RATIOS = np.concatenate(([0.0], np.geomspace(1e-3, 1e4, 15)))
_HOST_RATIOS = np.concatenate(([0.0], np.geomspace(1e-2, 1e4, 7)))
_EXACT = 1e-20


class Differences(msgspec.Struct, frozen=True):
    """The differences of all ramps below one another: of the readings, the populations and the times.

    ``ramp`` is the number of the ramp, ``first`` marks those that begin one, ``before`` and ``after`` are populations.
    """

    y: Floats
    n: Floats
    t: Floats
    ramp: NDArray[np.int64]
    first: NDArray[np.bool_]
    before: Floats
    after: Floats


class Fit(msgspec.Struct, frozen=True):
    """At each point of the grid: the coefficients, the standard error of the first, the scale, the weight."""

    coefficients: Floats
    error: Floats
    scale: Floats
    weight: Floats
    freedom: int


def make_columns(differences: Differences, drifting: Sequence[bool]) -> Floats:
    """The cost's column, then one of the drift of each ramp that stood still for a while (``drifting``)."""
    drifts = [np.where(differences.ramp == number, differences.t, 0.0) for number, yes in enumerate(drifting) if yes]
    return np.stack([differences.n, *drifts], axis=1)


def fit_with_steps(differences: Differences, columns: Floats) -> tuple[Fit, list[tuple[int, float]]]:
    """Fit, and give each difference that stands out a parameter of its own: which, and its size."""
    found: list[int] = []
    most = min(_MOST_STEPS, len(differences.y) // 10)
    while True:
        dummies = np.zeros((len(differences.y), len(found)))
        dummies[found, range(len(found))] = 1.0
        design = np.concatenate((columns, dummies), axis=1)
        fit = _fit(differences, design)
        if len(found) >= most or (step := _find_step(differences, design, fit, found)) is None:
            break
        found.append(step)
    means = (fit.weight[:, None] * fit.coefficients).sum(axis=0)
    sizes = means[columns.shape[1] :]
    return fit, list(zip(found, sizes.tolist(), strict=True))


def _grid() -> tuple[Floats, Floats]:
    own, host = np.meshgrid(_RATIOS, _HOST_RATIOS, indexing="ij")
    return own.reshape(-1), host.reshape(-1)


def _variances(differences: Differences, own: Floats, host: Floats) -> tuple[Floats, Floats]:
    """The diagonal (differences by grid) and the one beside it, in units of a reading's variance."""
    n, t = np.abs(differences.n), np.abs(differences.t)
    diagonal = 2.0 + own * (n / (n.mean() or 1.0))[:, None] + host * (t / (t.mean() or 1.0))[:, None]
    beside = np.where(differences.first, 0.0, -1.0)
    return diagonal, beside


def _fit(differences: Differences, design: Floats) -> Fit:
    """Generalised least squares at every point of the grid at once, by the LDL' of a tridiagonal matrix."""
    own, host = _grid()
    diagonal, beside = _variances(differences, own, host)
    rows, width = len(differences.y), design.shape[1]
    data = np.concatenate((design, differences.y[:, None]), axis=1)
    products = np.zeros((len(own), width + 1, width + 1))
    log_determinant = np.zeros(len(own))
    pivot, whitened = np.ones(len(own)), np.zeros((len(own), width + 1))
    for k in range(rows):
        factor = beside[k] / pivot
        pivot = diagonal[k] - factor * beside[k]
        whitened = data[k] - factor[:, None] * whitened
        products += whitened[:, :, None] * whitened[:, None, :] / pivot[:, None, None]
        log_determinant += np.log(pivot)
    information, cross = products[:, :width, :width], products[:, :width, width]
    inverse = np.linalg.pinv(information, hermitian=True)
    coefficients = np.einsum("gij,gj->gi", inverse, cross)
    residual = np.maximum(products[:, width, width] - np.einsum("gi,gi->g", coefficients, cross), 0.0)
    freedom = max(rows - width, 1)
    residual = np.maximum(residual, _EXACT)
    _, log_information = np.linalg.slogdet(information)
    likelihood = -0.5 * (log_determinant + log_information + freedom * np.log(residual))
    weight = np.exp(likelihood - likelihood.max())
    scale = np.sqrt(residual / freedom)
    error = scale * np.sqrt(np.maximum(inverse[:, 0, 0], 0.0))
    return Fit(coefficients, error, scale, weight / weight.sum(), rows - width)


def _find_step(differences: Differences, design: Floats, fit: Fit, found: Sequence[int]) -> int | None:
    """The difference that stands out most of those not yet ``found``, if it does, where the variances are likeliest."""
    from scipy.special import stdtr

    freedom = fit.freedom
    best = int(np.argmax(fit.weight))
    if freedom < 3 or fit.scale[best] ** 2 * freedom <= _EXACT:
        return None
    own, host = _grid()
    diagonal, beside = _variances(differences, own[best : best + 1], host[best : best + 1])
    inverse_diagonal, solved = _solve(diagonal[:, 0], beside, np.concatenate((design, differences.y[:, None]), axis=1))
    half = solved[:, :-1]
    middle = np.linalg.pinv(design.T @ half, hermitian=True)
    own_variance = inverse_diagonal - np.einsum("ki,ij,kj->k", half, middle, half)
    projected = solved[:, -1] - half @ (middle @ (half.T @ differences.y))
    usable = own_variance > 1e-9 * own_variance.max()
    own_variance[~usable] = 1.0
    inside = np.where(usable, projected / np.sqrt(own_variance) / fit.scale[best], 0.0)
    left = np.maximum(freedom - inside**2, 1e-12)
    outside = np.abs(inside) * np.sqrt((freedom - 1) / left)
    # What is left of one that has a parameter of its own is rounding, however large it is studentised.
    outside[list(found)] = 0.0
    step = int(np.argmax(outside))
    p_value = 2 * float(stdtr(freedom - 1, -float(outside[step]))) * len(differences.y)
    return step if p_value < _STEP_LEVEL else None


def _solve(diagonal: Floats, beside: Floats, right: Floats) -> tuple[Floats, Floats]:
    """For a symmetric tridiagonal matrix: the diagonal of its inverse, and its inverse times ``right``.

    ``beside[k]`` stands between rows ``k - 1`` and ``k``.
    """
    rows = len(diagonal)
    down, up, solved = diagonal.copy(), diagonal.copy(), right.copy()
    for k in range(1, rows):
        factor = beside[k] / down[k - 1]
        down[k] -= factor * beside[k]
        solved[k] -= factor * solved[k - 1]
    solved[-1] /= down[-1]
    for k in range(rows - 2, -1, -1):
        up[k] -= beside[k + 1] ** 2 / up[k + 1]
        solved[k] = (solved[k] - beside[k + 1] * solved[k + 1]) / down[k]
    return 1.0 / (down + up - diagonal), solved


def mixture_interval(fit: Fit, estimate: float, level: float) -> tuple[float | None, float | None, str]:
    """The quantiles of the mixture of Student's t over the grid."""
    if fit.freedom < LEAST_FREEDOM:
        return None, None, f"{fit.freedom} degrees of freedom: no interval"
    method = f"REML over {fit.freedom} degrees of freedom"
    if float(fit.error.max()) <= math.sqrt(_EXACT):
        return estimate, estimate, method
    tail = (1 - level) / 2
    return _quantile(fit, tail), _quantile(fit, 1 - tail), method


def _quantile(fit: Fit, probability: float) -> float:
    from scipy.special import stdtr

    centres, errors = fit.coefficients[:, 0], np.maximum(fit.error, 1e-300)
    counted = fit.weight > 1e-9
    reach = 1e3 * float(errors[counted].max())
    low, high = float(centres[counted].min()) - reach, float(centres[counted].max()) + reach
    for _ in range(80):
        middle = (low + high) / 2
        below = float((fit.weight * stdtr(fit.freedom, (middle - centres) / errors)).sum())
        low, high = (middle, high) if below < probability else (low, middle)
    return (low + high) / 2
