"""Tests of order: right where scipy can tell, quiet where nothing is there, loud where something is."""

import itertools

import numpy as np
import pytest
from scipy import stats as scipy_stats
from scipy.stats import false_discovery_control

from tare.bench.stats.series import drift, serial_correlation


def autoregressive(random, rows: int, length: int, rho: float):
    noise = random.standard_normal((rows, length + 50))
    values = noise.copy()
    for place in range(1, length + 50):
        values[:, place] = rho * values[:, place - 1] + noise[:, place]
    return values[:, 50:]


@pytest.mark.parametrize("n", [5, 8, 20, 50])
def test_drift_agrees_with_kendall_s_tau(n):
    random = np.random.default_rng(n)
    values = 10 + random.standard_normal(n)
    assert drift(values).p_value == pytest.approx(
        scipy_stats.kendalltau(np.arange(n), values, method="exact").pvalue, rel=1e-9
    )


def test_drift_with_ties_has_their_variance():
    values = np.array([1, 1, 2, 2, 2, 3, 5, 4, 5, 6], dtype=float)
    tau = scipy_stats.kendalltau(np.arange(10), values, method="asymptotic")
    ours = drift(values)
    # scipy applies no continuity correction: ours is a little larger, never smaller.
    assert tau.pvalue < ours.p_value < 2.5 * tau.pvalue


def test_drift_says_how_far():
    assert drift(np.linspace(1.0, 1.1, 11)).size == pytest.approx(0.1 / 1.05)
    assert drift(np.linspace(1.1, 1.0, 11)).size == pytest.approx(-0.1 / 1.05)
    assert drift(np.linspace(1.0, 1.1, 5001)).size == pytest.approx(0.1 / 1.05, rel=0.01)


def test_too_little_or_nothing_says_nothing():
    assert drift(np.array([1.0, 2.0, 3.0, 4.0])) is None
    assert drift(np.ones(30)) is None
    assert drift(np.array([0.0, 0, 0, 0, 0, 1, 2])) is None
    assert drift(np.array([])) is None
    assert serial_correlation(np.arange(3.0), np.zeros(3, dtype=int)) is None
    assert serial_correlation(np.ones(100), np.zeros(100, dtype=int)) is None
    assert serial_correlation(np.array([]), np.array([], dtype=int)) is None


def test_the_moments_are_those_of_all_orders():
    """Over every order of 5 ranks the statistic has mean 0 and variance 1, up to the p-value's resolution."""
    sizes = [
        serial_correlation(np.tile(order, 4).astype(float), np.repeat(np.arange(4), 5)).size
        for order in itertools.permutations(range(5))
    ]
    assert np.mean(sizes) == pytest.approx(0, abs=1e-12)
    # One group's variance is 4(n-2)(5n²-2n-9) / (5n(n+1)(n-1)²) = 0.53, and size is minus half of the ratio.
    assert np.var(sizes) == pytest.approx(4 * 3 * 106 / (5 * 5 * 6 * 16) / 4)


def test_levels_of_instances_are_no_correlation():
    random = np.random.default_rng(4)
    values = random.standard_normal((20, 10)) + 100 * random.standard_normal((20, 1))
    groups = np.repeat(np.arange(20), 10)
    assert serial_correlation(values.ravel(), groups).p_value > 0.05


@pytest.mark.parametrize("rho", [0.6, -0.6])
def test_correlation_is_found_with_its_sign(rho):
    random = np.random.default_rng(5)
    groups = np.repeat(np.arange(8), 15)
    found = [serial_correlation(autoregressive(random, 8, 15, rho).ravel(), groups) for _ in range(100)]
    assert sum(test.p_value < 0.01 for test in found) >= 95
    assert np.sign(np.median([test.size for test in found])) == np.sign(rho)


def _heavy(random, shape):
    return random.standard_t(2, shape)


def _skewed(random, shape):
    return random.exponential(1.0, shape)


def _rounded(random, shape):
    return np.round(random.standard_normal(shape))


@pytest.mark.parametrize("draw", [_heavy, _skewed, _rounded])
@pytest.mark.parametrize(("instances", "iterations"), [(5, 5), (10, 10), (3, 40)])
def test_false_alarms_of_single_tests(draw, instances, iterations):
    """At a level of 5 % in 1,000 runs: 5 % with a standard error of 0.7."""
    random = np.random.default_rng(6)
    groups = np.repeat(np.arange(instances), iterations)
    tests = [serial_correlation(draw(random, instances * iterations), groups, seed=i) for i in range(1000)]
    assert 0.025 < np.mean([test.p_value < 0.05 for test in tests]) < 0.07
    blocks = [drift(5 + draw(random, 12)) for _ in range(1000)]
    assert np.mean([test is not None and test.p_value < 0.05 for test in blocks]) < 0.07


def test_false_alarms_of_whole_runs():
    """16 cells without any order in them: at most one run in twenty has a false alarm (standard error 1.8 %)."""
    random = np.random.default_rng(7)
    groups = np.repeat(np.arange(6), 8)
    alarms = 0
    for _ in range(150):
        p_values = []
        for _ in range(16):
            values = random.standard_t(3, (6, 8)) + random.standard_normal((6, 1))
            tests = serial_correlation(values.ravel(), groups), drift(100 + np.median(values, axis=1))
            p_values += [test.p_value for test in tests if test is not None]
        alarms += bool(false_discovery_control(p_values).min() <= 0.05)
    assert alarms / 150 <= 0.085
