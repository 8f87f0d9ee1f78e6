"""Subjects in the order in which the suite states them; a run measures them in a random one."""

import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from tare.reports.cell_tables import SubjectKey
from tare.reports.frames import params_text

_MOST = 100_000
"""More combinations than any run has; a manifest can state anything."""


def in_suite_order(suite: Mapping[str, Any], keys: Iterable[SubjectKey]) -> list[SubjectKey]:
    """Starts first, then as stated, then what the suite does not state, in the order given."""
    places: dict[SubjectKey, int] = {}
    for key in itertools.islice(_stated(suite), _MOST):
        places.setdefault(key, len(places))
    return sorted(keys, key=lambda key: (key[0] != "boot", places.get(key, len(places))))


def _stated(suite: Mapping[str, Any]) -> Iterator[SubjectKey]:
    """Every combination of parameters and options that the suite's experiments have: a list is a dimension."""
    sections = suite.get("experiment")
    for section in sections if isinstance(sections, list) else ():
        if not isinstance(section, dict):
            continue
        dimensions: dict[str, Any] = {}
        for name in ("params", "options"):
            given = section.get(name)
            dimensions |= given if isinstance(given, dict) else {}
        values = [value if isinstance(value, list) else [value] for value in dimensions.values()]
        for combination in itertools.product(*values):
            params = dict(zip(dimensions, combination, strict=True))
            yield str(section.get("kind")), str(section.get("workload") or ""), params_text(params)
