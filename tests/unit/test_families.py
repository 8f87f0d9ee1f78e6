"""Families: what is certain in one pair of backends or in details lends nothing to the rest; a reading counts once."""

import math

import msgspec
import numpy as np
import pytest

from tare.bench.model import Direction
from tare.bench.stats.comparisons import CellBlocks, Verdict, compare
from tare.bench.stats.families import Member, control_false_discoveries

DIFFERENT = (Verdict.FASTER, Verdict.SLOWER)


def cell(logs):
    ones = np.ones(len(logs), dtype=np.int64)
    return CellBlocks(np.arange(len(logs)), np.exp(logs), ones, ones)


def member(logs, name="metric", *, is_leading=False, reading="fio"):
    found = compare(cell(logs), cell(np.zeros(len(logs))), direction=Direction.LOWER)
    return Member(found, name, reading, is_leading, (np.asarray(logs),))


def of_p(p_value, name, *, is_leading=False):
    found = member([0.1, 0.11, 0.09, 0.1]).found
    return Member(msgspec.structs.replace(found, p_value=p_value), name, name, is_leading)


def test_certain_details_do_not_lower_what_a_leading_metric_needs():
    details = [of_p(1e-9, f"detail {place}") for place in range(40)]
    leading = [of_p(0.03, "events", is_leading=True), of_p(0.6, "iops", is_leading=True)]
    *_, events, _ = control_false_discoveries([*details, *leading])
    assert events.q_value == pytest.approx(0.12)
    assert events.verdict_adjusted is Verdict.INCONCLUSIVE
    assert control_false_discoveries(leading)[0].q_value == pytest.approx(0.06), "no second tier, no halving"


def test_many_details_do_not_raise_what_a_leading_metric_needs():
    details = [of_p(0.5, f"detail {place}") for place in range(500)]
    (events, *_) = control_false_discoveries([of_p(0.02, "events", is_leading=True), *details], "native over bare")
    assert (events.q_value, events.verdict_adjusted, events.family) == (0.04, Verdict.SLOWER, "native over bare")


def test_a_verdict_is_tentative_by_what_the_correction_asks_for():
    logs = 0.06 + 0.03 * np.random.default_rng(28).standard_normal(8)
    (alone,) = control_false_discoveries([member(logs, is_leading=True)])
    assert 5 * alone.p_value < alone.p_skewed < 0.01
    assert (alone.verdict_adjusted, alone.is_tentative) == (Verdict.SLOWER, False)
    others = [of_p(0.9, f"m{place}", is_leading=True) for place in range(60)]
    close, *_ = control_false_discoveries([member(logs, is_leading=True), *others])
    assert (close.verdict_adjusted, close.is_tentative) == (Verdict.SLOWER, True)
    lost, *_ = control_false_discoveries([member(logs, is_leading=True), *others * 8])
    assert (lost.verdict_adjusted, lost.is_tentative) == (Verdict.INCONCLUSIVE, False)


def test_a_reading_counts_once_whatever_is_made_of_it():
    random = np.random.default_rng(5)
    rate = 0.2 + 0.02 * random.standard_normal(6)
    other = member(0.01 * random.standard_normal(6), "p99")
    restated = [
        member(-rate + 1e-4 * random.standard_normal(6), "time"),
        member(rate, "bandwidth"),
        member(rate, "iops", is_leading=True),
        member(rate, "iops of another", reading="other"),
        other,
    ]
    found = control_false_discoveries(restated)
    assert [one.restates for one in found] == ["iops", "iops", "", "", ""]
    assert {one.q_value for one in found[:3]} == {found[2].q_value}
    alone = control_false_discoveries(restated[2:])
    assert [one.q_value for one in alone] == [one.q_value for one in found[2:]], "counting changes nothing else"


def test_what_only_resembles_is_another_reading():
    random = np.random.default_rng(6)
    rate = 0.2 + 0.02 * random.standard_normal(6)
    near = rate + 0.02 * random.standard_normal(6)
    found = control_false_discoveries([member(rate, "mean"), member(near, "p50"), member(rate + 0.05, "shifted")])
    assert {one.restates for one in found} == {""}
    two = [0.1, 0.2]
    found = control_false_discoveries([member(two, "one"), member([0.11, 0.2], "two"), member([0.1, 0.2001], "three")])
    assert [one.restates for one in found] == ["", "", "one"], "of two blocks more is asked"


@pytest.mark.parametrize("certain", [47])
def test_a_family_beside_a_certain_one_has_as_few_false_differences(certain):
    random, reports = np.random.default_rng(7), 200
    false = 0
    sure = [member(2 + 0.05 * random.standard_normal(6), f"v{place}", reading=f"v{place}") for place in range(certain)]
    for _ in range(reports):
        null = [
            member(0.05 * random.standard_normal(6), f"m{place}", is_leading=place < 6, reading=f"m{place}")
            for place in range(47)
        ]
        families = {"native": null, "vm": sure}
        found = {name: control_false_discoveries(members, name) for name, members in families.items()}
        false += any(one.verdict_adjusted in DIFFERENT for one in found["native"])
        assert all(one.verdict_adjusted is Verdict.SLOWER for one in found["vm"])
    assert false / reports <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / reports)


def test_readings_of_fewer_backends_are_readings_of_their_own():
    logs = np.asarray([0.1, 0.11, 0.09, 0.1, 0.12])
    both = msgspec.structs.replace(member(logs, "first"), evidence=(logs, logs))
    engine = msgspec.structs.replace(member(logs, "of an engine alone"), evidence=(logs,))
    first, second = control_false_discoveries([both, engine])
    assert first.q_value == second.q_value == pytest.approx(first.p_value)
    (alone,) = control_false_discoveries([both])
    assert alone.q_value == pytest.approx(first.p_value)
