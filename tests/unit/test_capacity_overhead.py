"""Overhead by size: the line by another solver, coverage between sizes in simulation, and no word beyond them."""

import msgspec
import numpy as np
import pytest
from scipy.optimize import curve_fit

from tare.bench.analysis.cost import Estimate
from tare.bench.capacity.overhead import Measured, fit_overhead, sized_overheads
from tare.bench.errors import SuiteError
from tests.unit.test_capacity_plan import GIB, MIB, only, write_density

SIZES = (64 * MIB, 128 * MIB, 256 * MIB, 512 * MIB)


def measured(size, value, half):
    return Measured(size, Estimate(value, value - half, value + half), "run")


def test_the_line_is_that_of_another_solver():
    values, halves = (40 * MIB, 43 * MIB, 47 * MIB, 58 * MIB), (2 * MIB, 1 * MIB, 3 * MIB, 2 * MIB)
    line = fit_overhead("vm", [measured(*one) for one in zip(SIZES, values, halves, strict=True)])
    sizes, sigma = np.array(SIZES) / MIB, np.array(halves) / MIB / 1.96
    found, covariance = curve_fit(
        lambda x, a, b: a + b * x, sizes, np.array(values) / MIB, sigma=sigma, absolute_sigma=True
    )
    assert line.base / MIB == pytest.approx(found[0], rel=1e-6)
    assert line.share == pytest.approx(found[1], rel=1e-6)
    assert line.covariance[0][0] / MIB**2 == pytest.approx(covariance[0, 0] * max(1, line.misfit) ** 2, rel=1e-6)
    assert line.at(200 * MIB).per_instance / MIB == pytest.approx(found[0] + 200 * found[1], rel=1e-6)


@pytest.mark.parametrize("sizes", [SIZES, SIZES[::3]])
def test_a_size_between_is_covered_as_often_as_it_says(sizes):
    random = np.random.default_rng(5)
    hits, runs, error = 0, 2000, 2 * MIB
    for _ in range(runs):
        truth = 40 * MIB + 0.03 * np.array(sizes)
        values = truth + random.normal(0, error, len(sizes))
        line = fit_overhead("vm", [measured(*one, 1.96 * error) for one in zip(sizes, values, strict=True)])
        found = line.at(320 * MIB)
        hits += found.low <= 40 * MIB + 0.03 * 320 * MIB <= found.high
    assert 0.93 <= hits / runs <= 0.975


def test_a_line_that_does_not_fit_is_wider():
    straight = [measured(size, 40 * MIB + 0.03 * size, MIB) for size in SIZES]
    bent = [*straight[:2], measured(SIZES[2], 90 * MIB, MIB), straight[3]]
    assert fit_overhead("vm", straight).misfit == pytest.approx(0, abs=1e-6)
    assert fit_overhead("vm", bent).misfit > 10
    assert (
        fit_overhead("vm", bent).at(300 * MIB).half_width > 10 * fit_overhead("vm", straight).at(300 * MIB).half_width
    )


@pytest.mark.parametrize("size", [63 * MIB, 513 * MIB])
def test_a_size_outside_of_the_fitted_range_is_refused(size):
    line = fit_overhead("vm", [measured(one, 40 * MIB, MIB) for one in SIZES])
    with pytest.raises(SuiteError, match=r"outside of what was measured \(64.0 MiB to 512 MiB\)"):
        line.at(size)


def test_ramps_of_one_backend_with_several_sizes_make_a_line(tmp_path):
    kind = only(write_density(tmp_path / "vm", accel="kvm", each=300 * MIB, touched=200 * MIB))
    assert sized_overheads([kind]) == ()
    larger = msgspec.structs.replace(kind.limits, memory=512.0 * MIB)
    need = kind.needs[1]
    each = Estimate(*(end + (512 - 256) * MIB for end in (need.each.per_instance, need.each.low, need.each.high)))
    grown = (kind.needs[0], msgspec.structs.replace(need, each=each), *kind.needs[2:])
    (line,) = sized_overheads([msgspec.structs.replace(kind, limits=larger, needs=grown), kind])
    assert [one.size for one in line.measured] == [256 * MIB, 512 * MIB]
    assert line.share == pytest.approx(0, abs=1e-6), "the same overhead with twice the memory"
    assert line.at(384 * MIB).per_instance == pytest.approx(need.each.per_instance - 256 * MIB)
    assert line.at(384 * MIB).per_instance < GIB
