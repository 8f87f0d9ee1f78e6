"""What hosts say together: the typical one, the spread, a host that nobody measured, the odd one."""

import math

import numpy as np
import pytest
from scipy import optimize, stats

from tare.bench.stats.hosts import ENOUGH_HOSTS, HostValue, combine_hosts


def hosts(values, errors=0.01):
    return [HostValue(value, error) for value, error in zip(values, np.broadcast_to(errors, len(values)), strict=True)]


def fleet(n, spread, error=0.01, seed=1):
    random = np.random.default_rng(seed)
    return hosts((0.3 + random.normal(0, np.hypot(spread, error), n)).tolist(), error)


def test_the_typical_host_is_the_mean_with_students_t_over_hosts():
    values = [0.1, 0.12, 0.09, 0.15, 0.11]
    found = combine_hosts(hosts(values, [0.01, 0.02, 0.01, 0.05, 0.001])).typical
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert found.centre == pytest.approx(np.mean(values))


def test_the_spread_is_where_q_is_its_expectation_and_its_ends_where_q_is_a_quantile():
    chosen = fleet(8, 0.05, [0.01, 0.02, 0.03, 0.01, 0.02, 0.01, 0.04, 0.01])
    values, variances = np.array([one.log_ratio for one in chosen]), np.array([one.error**2 for one in chosen])

    def spread_at(target):
        def excess(squared):
            weights = 1 / (variances + squared)
            return float((weights * (values - np.average(values, weights=weights)) ** 2).sum() - target)

        return math.sqrt(optimize.brentq(excess, 0, 10)) if excess(0) > 0 else 0.0

    found = combine_hosts(chosen).spread
    expected = (spread_at(7), spread_at(stats.chi2.ppf(0.975, 7)), spread_at(stats.chi2.ppf(0.025, 7)))
    assert (found.centre, found.low, found.high) == pytest.approx(expected, rel=1e-6)


def test_hosts_that_differ_by_no_more_than_their_errors_have_no_spread_but_may_have_one():
    found = combine_hosts(hosts([0.100, 0.101, 0.099, 0.1005, 0.0995], 0.01)).spread
    assert found.centre == found.low == 0
    assert combine_hosts(hosts([0.10, 0.11, 0.09, 0.105, 0.095], 0.01)).spread.high > 0


def test_a_prediction_is_that_of_students_t_where_the_errors_of_the_hosts_are_nothing():
    values = [0.1, 0.2, 0.15, 0.3, 0.12, 0.18]
    found = combine_hosts(hosts(values, 1e-6)).new_host
    half = stats.t.ppf(0.975, 5) * np.std(values, ddof=1) * math.sqrt(1 + 1 / 6)
    assert found.high - found.centre == pytest.approx(half, rel=0.02)


def test_a_new_host_is_less_sure_than_the_typical_one():
    together = combine_hosts(fleet(12, 0.05))
    assert together.new_host.low < together.typical.low < together.typical.high < together.new_host.high


def test_few_hosts_predict_nothing_and_one_has_no_interval():
    assert combine_hosts(fleet(ENOUGH_HOSTS - 1, 0.05)).new_host is None
    assert combine_hosts(fleet(ENOUGH_HOSTS, 0.05)).new_host is not None
    alone = combine_hosts(fleet(1, 0.05))
    assert (alone.typical.low, alone.spread, alone.new_host, alone.odd) == (None, None, None, ())


def test_the_odd_host_is_known_by_its_distance_from_the_others():
    chosen = fleet(8, 0.02)
    moved = [*chosen[:3], HostValue(1.0, 0.01), *chosen[3:]]
    odd = combine_hosts(moved).odd
    assert np.argmin(odd) == 3
    assert odd[3] < 0.05 / 9 < sorted(odd)[1]


def test_a_host_that_is_not_well_known_is_not_odd():
    chosen = [*fleet(8, 0.02), HostValue(0.6, 0.3)]
    assert combine_hosts(chosen).odd[-1] > 0.1


def test_hosts_with_the_same_reading_have_no_interval():
    assert combine_hosts(hosts([0.1] * 6)).typical.low is None


@pytest.mark.parametrize("bad", [[], [HostValue(0.1, 0.0)], [HostValue(math.nan, 0.1)], [HostValue(0.1, math.inf)]])
def test_what_cannot_be_combined_is_refused(bad):
    with pytest.raises(ValueError, match="host"):
        combine_hosts(bad)


def test_coverage():
    """300 fleets: a share of 95 % is uncertain by 1.3 points; the benchmark has more of both."""
    random = np.random.default_rng(5)
    typical = new = 0
    for _ in range(300):
        *truths, other = random.normal(0.2, 0.02, 7)
        seen = combine_hosts(hosts((np.array(truths) + random.normal(0, 0.01, 6)).tolist()))
        typical += seen.typical.low <= 0.2 <= seen.typical.high
        new += seen.new_host.low <= other <= seen.new_host.high
    assert 0.925 <= typical / 300 <= 0.975
    assert 0.925 <= new / 300 <= 0.975


def test_errors_that_are_known_from_few_blocks_explain_more_of_the_spread():
    values = [0.10, 0.14, 0.08, 0.12, 0.17, 0.09]
    few = combine_hosts([HostValue(value, 0.02, freedom=7) for value in values])
    known = combine_hosts([HostValue(value, 0.02) for value in values])
    wider = combine_hosts([HostValue(value, 0.02 * math.sqrt(7 / 5)) for value in values])
    assert few.spread == wider.spread
    assert few.spread.centre < known.spread.centre
    assert (few.typical, few.new_host) == (known.typical, known.new_host), "only the spread is about it"
