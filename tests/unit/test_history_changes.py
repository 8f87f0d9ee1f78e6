"""The change decision as pure functions: what is found, what is not, and how much was there to see."""

import numpy as np
import pytest
from scipy import stats

from tare.bench.history import changes
from tare.bench.history.changes import FALSE_DISCOVERIES, LEAST_BEFORE, adjusted, moderated, scan
from tare.bench.stats.comparisons import Floats

SIGMA = 0.02


def quiet(nights: int = 25, series: int = 100, seed: int = 1) -> Floats:
    return np.random.default_rng(seed).standard_normal((nights, series)) * SIGMA


def found(values: Floats) -> list[int]:
    return np.flatnonzero(scan(values).q <= FALSE_DISCOVERIES).tolist()


def test_nothing_is_found_where_nothing_changed() -> None:
    assert found(quiet()) == []


@pytest.mark.parametrize("size", [0.08, -0.08])
def test_a_step_is_found_with_its_series_and_size(size: float) -> None:
    values = quiet()
    values[20:, 7] += size
    result = scan(values)
    assert found(values) == [7]
    assert result.window[7] in (4, 5)
    assert result.size[7] == pytest.approx(size, abs=4 * result.error[7])


def test_one_night_far_off_is_no_change_and_two_are_suspicious_only_at_first() -> None:
    values = quiet()
    values[-1, 3] += 0.25
    result = scan(values)
    assert found(values) == []
    assert result.is_astray[3]
    assert result.alone[3] < 1e-6
    values[-2, 3] += 0.25
    assert found(values) == [3]  # no night of this history ever went astray
    # A history in which every thirtieth night does explains two in a row.
    astray = quiet() + np.where(np.random.default_rng(2).random((25, 100)) < 0.03, 0.25, 0.0)
    astray[-5:, 3] = quiet()[-5:, 3]
    astray[-2:, 3] += 0.25
    assert found(astray) == []


def test_correlated_nights_weigh_less() -> None:
    random = np.random.default_rng(3)
    values = np.empty((40, 100))
    values[0] = random.standard_normal(100)
    for night in range(1, 40):
        values[night] = 0.7 * values[night - 1] + random.standard_normal(100) * np.sqrt(1 - 0.49)
    result = scan(values * SIGMA)
    assert result.noise.correlation.mean() == pytest.approx(0.7, abs=0.1)
    assert found(values * SIGMA) == []
    assert scan(quiet(40)).noise.correlation.mean() < 0.1
    assert np.nanmedian(result.detectable()) > 1.5 * np.nanmedian(scan(quiet(40)).detectable())


def test_the_p_value_is_that_of_a_t_test_where_all_series_are_alike() -> None:
    """With the variance moderated to what all series show: between Student's with its own and with endless freedom."""
    values = quiet(series=400)
    values[21:, 0] += 0.03
    result = scan(values)
    after, before = values[-4:, 0], values[:-4, 0]
    error = SIGMA * np.sqrt(1 / 4 + 1 / 21)
    normal = 2 * stats.norm.sf(abs(after.mean() - before.mean()) / error)
    ours = float(changes._Aligned(values).compared(4, result.noise).p[0])
    assert ours == pytest.approx(normal, rel=0.35)


def test_gaps_and_short_series_do_not_matter_to_others() -> None:
    values = quiet()
    values[20:, 7] += 0.08
    gaps = values.copy()
    gaps[::3, 8] = np.nan
    gaps[:20, 9] = np.nan
    gaps[:, 10] = np.nan
    result = scan(gaps)
    assert found(gaps) == [7]
    assert result.counts[8:11].tolist() == [16, 5, 0]
    assert result.is_judged[8:11].tolist() == [True, False, False]
    assert result.p[9] == result.p[10] == 1


@pytest.mark.parametrize("shape", [(0, 5), (1, 5), (LEAST_BEFORE, 1), (30, 0), (30, 1)])
def test_any_shape_is_judged(shape: tuple[int, int]) -> None:
    result = scan(np.zeros(shape))
    assert result.q.shape == (shape[1],)
    assert (result.q == 1).all()


def test_series_without_any_spread_and_coarse_ones() -> None:
    values = quiet()
    values[:, 0] = 0.5
    values[:, 1] = np.round(values[:, 1] / 0.05) * 0.05
    assert found(values) == []


def test_a_coarse_series_that_is_mostly_the_same_has_no_change_in_its_other_values() -> None:
    """Private pages of real starts, 33 nights on a busy host: 4 of 5, now and then 3 of 5, 4 of 4 or 3 of 4."""
    pages = "AABAABCAABAABACAACBACAAACAAADBCAAB"
    ratios = np.log([{"A": 0.8, "B": 1.0, "C": 0.6, "D": 0.75}[one] for one in pages])
    others = np.random.default_rng(3).standard_normal((len(pages), 19)) * 0.1
    values = np.column_stack([ratios, others])
    for night in range(12, len(pages) + 1):
        assert scan(values[:night]).q[0] > 0.05


def test_a_lone_series_is_judged_by_its_own_spread() -> None:
    values = quiet(series=1)
    assert found(values) == []
    values[20:, 0] += 0.15
    assert found(values) == [0]


def test_moderated_variances_lie_between_their_own_and_the_common_one() -> None:
    random = np.random.default_rng(4)
    true = 4 / random.chisquare(4, 500)
    freedom = np.full(500, 10.0)
    seen = true * random.chisquare(10, 500) / 10
    drawn, prior = moderated(seen, freedom, np.ones(500, dtype=bool))
    assert prior == pytest.approx(4, rel=0.4)
    assert np.abs(np.log(drawn / true)).mean() < np.abs(np.log(seen / true)).mean()
    alike, much = moderated(random.chisquare(10, 500) / 10, freedom, np.ones(500, dtype=bool))
    assert much > 100
    assert alike.std() < 0.1


def test_the_closed_forms_are_the_sums_they_stand_for() -> None:
    rho = np.array([0.0, 0.3, 0.9])
    for n in (1, 4, 20):
        lags = np.arange(1, n)
        summed = [(1 + 2 * ((1 - lags / n) * r**lags).sum()) / n for r in rho]
        assert changes._variance_of_mean(n, rho) == pytest.approx(summed)
    k, b = 3, 5
    direct = [np.mean([r ** ((b + i) - j) for i in range(k) for j in range(b)]) for r in rho]
    assert changes._covariance(k, np.full(3, b), rho) == pytest.approx(direct)


def test_false_discoveries_are_controlled_over_the_judged_alone() -> None:
    p = np.array([0.01, 0.02, 0.5, 0.0001])
    judged = np.array([True, True, True, False])
    assert adjusted(p, judged)[:3] == pytest.approx(stats.false_discovery_control(p[:3]))
    assert adjusted(p, judged)[3] == 1


def test_the_detectable_change_is_found_nine_times_in_ten() -> None:
    """The stated blindness, against changes of exactly that size: within a wide margin, as it is one number of many."""
    seen, total = 0, 0
    for seed in range(12):
        values = quiet(25, 60, seed=100 + seed)
        size = float(np.nanmedian(scan(values[:20]).detectable()))
        values[20:, :2] += size
        hits = {column for n in range(22, 26) for column in found(values[:n])}
        seen += len(hits & {0, 1})
        total += 2
    assert 0.75 <= seen / total <= 1


def test_series_that_are_all_the_same_are_judged() -> None:
    same = np.repeat(quiet(series=1), 20, axis=1)
    assert scan(same).q.min() == 1 or found(same) == []


def test_nights_are_surely_astray_by_no_chance_and_by_nothing_of_tonight():
    """One night that is sure to be astray has the gate wait for a second night before it believes reruns."""
    random = np.random.default_rng(11)
    plain = [random.normal(0.0, 0.02, (21, 300)) for _ in range(40)]
    noises = [scan(values).noise for values in plain]
    assert sum(one.astray > 0 for one in noises) >= 3, "five deviations happen by chance where the scale came out low"
    assert [one.surely_astray for one in noises] == [0.0] * 40
    tonight = plain[0].copy()
    tonight[-1, :5] += 0.22
    assert scan(tonight).noise.surely_astray == 0.0
    off = plain[1] + 0.22 * (random.random((21, 300)) < 0.03)
    assert scan(off).noise.surely_astray == pytest.approx(0.03 * 20 / 21, abs=0.006)
