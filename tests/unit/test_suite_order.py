"""Subjects stand in a report as the suite states them, not as chance measured them."""

import itertools

import pytest

from tare.bench.analysis.cells import in_suite_order
from tare.bench.samples import params_text

SUITE = {
    "experiment": [
        {"kind": "steady", "workload": "redis", "params": {"clients": [100, 1], "requests": 5000}},
        {"kind": "steady", "workload": "nginx", "params": {}, "options": {"server": ["same", "host"]}},
        {"kind": "boot", "workload": "", "params": {}},
        {"kind": "density", "workload": None},
    ]
}
ORDER = [
    ("boot", "", params_text({})),
    ("steady", "redis", params_text({"clients": 100, "requests": 5000})),
    ("steady", "redis", params_text({"requests": 5000, "clients": 1})),
    ("steady", "nginx", params_text({"server": "same"})),
    ("steady", "nginx", params_text({"server": "host"})),
    ("density", "", params_text({})),
    ("steady", "unknown", params_text({})),
]


@pytest.mark.parametrize("given", list(itertools.permutations(ORDER))[::397])
def test_the_order_is_the_suite_s_whatever_was_measured_first(given):
    assert in_suite_order(SUITE, given) == ORDER


@pytest.mark.parametrize(
    "suite", [{}, {"experiment": 3}, {"experiment": [None, {"params": [1], "options": {"a": []}}, {"kind": 2}]}]
)
def test_a_manifest_that_states_anything_else_leaves_the_order_as_measured(suite):
    keys = [key for key in ORDER if key[0] != "boot"]
    assert in_suite_order(suite, keys) == keys


def test_a_manifest_that_states_more_than_can_be_run_is_not_followed_to_its_end():
    many = {"experiment": [{"kind": "steady", "params": {str(name): list(range(100)) for name in range(20)}}]}
    assert in_suite_order(many, ORDER[1:]) == ORDER[1:]
