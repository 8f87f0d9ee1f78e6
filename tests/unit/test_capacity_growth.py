"""When hosts are full: by hand for a stated rate, by simulation for past demand, and what is refused."""

import math
from datetime import date

import numpy as np
import pytest

from tare.bench.capacity.growth import (
    HORIZON_MONTHS,
    Held,
    find_exhaustion,
    month_after,
    parse_rate,
    project_history,
    project_rate,
    read_demand,
)
from tare.bench.errors import SuiteError


@pytest.mark.parametrize(
    ("text", "monthly"),
    [
        ("8 % a month", 0.08),
        ("8%", 0.08),
        ("2.5 %/month", 0.025),
        ("100 % a year", 2 ** (1 / 12) - 1),
        ("12% per year", 1.12 ** (1 / 12) - 1),
        ("-3 % a month", -0.03),
    ],
)
def test_a_rate_is_read_as_it_is_written(text, monthly):
    assert parse_rate(text) == pytest.approx(monthly)


@pytest.mark.parametrize("text", ["", "8", "8 % a week", "much", "-100 %", "8 % a month or so"])
def test_what_is_no_rate_is_refused(text):
    with pytest.raises(ValueError, match="must be"):
        parse_rate(text)


@pytest.mark.parametrize(("rate", "held"), [(0.08, 200), (0.03, 150), (0.5, 110), (0.001, 200)])
def test_a_stated_rate_fills_the_hosts_when_it_does_by_hand(rate, held):
    found = find_exhaustion(project_rate(100, rate), Held(held, None, None))
    month = math.floor(math.log(held / 100) / math.log(1 + rate)) + 1
    by_hand = month if month <= HORIZON_MONTHS else None
    assert (found.months, found.earliest, found.latest) == (by_hand,) * 3


def test_what_the_hosts_hold_has_its_own_interval():
    found = find_exhaustion(project_rate(100, 0.05), Held(200, 150, 260))
    at = [math.floor(math.log(held / 100) / math.log(1.05)) + 1 for held in (150, 200, 260)]
    assert found.earliest == at[0]
    assert found.months == at[1]
    assert found.latest == at[2]
    assert find_exhaustion(project_rate(100, 0.05), Held(200, 150, None)).latest is None


def test_demand_that_shrinks_never_fills_them():
    found = find_exhaustion(project_rate(100, -0.02), Held(120, 110, 130))
    assert (found.months, found.earliest, found.latest) == (None, None, None)


def test_a_month_is_a_date():
    assert month_after(date(2026, 11, 1), 1) == date(2026, 12, 1)
    assert month_after(date(2026, 11, 1), 14) == date(2028, 1, 1)


def test_steady_growth_goes_on_as_it_was():
    random = np.random.default_rng(1)
    past = 100 * 1.04 ** np.arange(24) * np.exp(random.normal(0, 0.02, 24))
    projection = project_history(past, seed=2)
    middle, low, high = projection.expected[11]
    truth = 100 * 1.04**35
    assert low < truth < high
    assert abs(middle / truth - 1) < 0.15
    assert projection.model.endswith("from 24 months")
    assert project_history(past, seed=2).expected == projection.expected, "the same seed, the same paths"


def test_the_season_of_a_year_is_in_it():
    months = np.arange(36)
    random = np.random.default_rng(3)
    season = 0.3 * np.sin(2 * np.pi * months / 12)
    past = 100 * np.exp(0.01 * months + season + random.normal(0, 0.02, 36))
    projection = project_history(past, seed=1)
    assert "season of a year" in projection.model
    peak, trough = projection.expected[3][0], projection.expected[9][0]
    assert peak / trough > 1.4, "April's peak and October's trough: e^0.6 apart, less half a year of growth"


def test_past_demand_is_read_with_its_last_month(tmp_path):
    file = tmp_path / "web.csv"
    rows = "".join(f"2026-{month:02d},{100 + month}\n" for month in range(1, 12))
    file.write_text("instances,month\n".replace("instances,month", "month,instances") + rows)
    last, values = read_demand(file)
    assert last == date(2026, 11, 1)
    assert list(values) == [100 + month for month in range(1, 12)]


GOOD = [f"{2025 + month // 12}-{month % 12 + 1:02d},{10 + month}" for month in range(14)]


@pytest.mark.parametrize(
    ("change", "place", "problem"),
    [
        (lambda rows: rows.pop(4), "line 6: month", "a month is missing before it"),
        (lambda rows: rows.insert(4, rows[3]), "line 6: month", "each once"),
        (lambda rows: rows.__setitem__(2, "2025-13,4"), "line 4: month", "must be like 2026-11"),
        (lambda rows: rows.__setitem__(2, "2025-03,many"), "line 4: instances", "above 0"),
        (lambda rows: rows.__setitem__(2, "2025-03,0"), "line 4: instances", "above 0"),
        (lambda rows: rows.__setitem__(2, "2025-03"), "line 4: instances", "above 0"),
        (lambda rows: rows.__delitem__(slice(5, None)), "demand.csv", "has 5 months"),
        (lambda rows: rows.__setitem__(slice(None), []), "demand.csv", "has 0 months"),
    ],
)
def test_a_wrong_file_is_named_with_its_line(tmp_path, change, place, problem):
    rows = list(GOOD)
    change(rows)
    file = tmp_path / "demand.csv"
    file.write_text("month,instances\n" + "\n".join(rows))
    with pytest.raises(SuiteError) as refused:
        read_demand(file)
    assert place in refused.value.message
    assert problem in refused.value.message


def test_other_columns_are_named(tmp_path):
    (tmp_path / "demand.csv").write_text("when,how many\n")
    with pytest.raises(SuiteError, match="columns month and instances"):
        read_demand(tmp_path / "demand.csv")
    with pytest.raises(SuiteError, match="cannot be read"):
        read_demand(tmp_path / "nowhere.csv")
