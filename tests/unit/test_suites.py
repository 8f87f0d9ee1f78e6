"""The ready suites: each can be read with what tare itself has, and says what it is for and how long it takes."""

import re
from pathlib import Path

import pytest

from bench.registry import find_backends, find_workloads
from bench.suite import load_suite

SUITES = sorted((Path(__file__).parents[2] / "suites").glob("*.toml"))


@pytest.mark.parametrize("path", SUITES, ids=lambda path: path.stem)
def test_a_ready_suite_can_be_read_and_says_what_it_is_for(path):
    suite = load_suite(path, find_backends(), find_workloads())
    assert suite.head.name == path.stem
    assert suite.head.description.endswith("?"), "the question that its report answers"
    comment = "".join(re.findall(r"\A((?:#.*\n)+)", path.read_text("utf-8")))
    assert re.search("minutes?|hour", comment), "how long it takes"
