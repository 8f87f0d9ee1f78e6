"""What a run's reports must say, computed from its files by other code: plain Python, ``statistics`` and scipy.

Nothing of tare's is imported. The arithmetic is the page's own section on method: an instance is the median of its
iterations, a block the median of its instances, a comparison the mean of the blocks' log ratios with Student's t
interval. It is for runs whose blocks do not depend on one another, and cells whose warm-up is what the suite states.
"""

import itertools
import json
import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy import optimize, stats

LEVEL = 0.95
POWER = 0.9


class Recomputed:
    """A run read as anybody could. A *subject* is (experiment, workload, params as JSON, metric)."""

    def __init__(self, run: Path) -> None:
        self.manifest = json.loads((run / "manifest.json").read_text("utf-8"))
        self.events = [json.loads(line) for line in _lines(run / "events.jsonl")]
        last: dict[str, int] = {}
        for event in self.events:
            if event["kind"] == "instance_started":
                planned, attempt = _attempt(event["instance"])
                last[planned] = max(last.get(planned, 1), attempt)
        read = [json.loads(line) for line in _lines(run / "samples.jsonl")]
        self.samples = [one for one in read if _attempt(one["instance"])[1] == last[_attempt(one["instance"])[0]]]
        self.cells: dict[tuple[str, ...], dict[str, dict[int, float]]] = defaultdict(dict)
        """By subject and backend: the value of each block."""
        nested: dict[Any, list[float]] = defaultdict(list)
        for one in self.samples:
            if not one["warmup"]:
                nested[subject_of(one), one["backend"], one["block"], one["instance"]].append(one["value"])
        self.counts: dict[Any, tuple[int, int, int]] = {}
        by_block: dict[Any, list[float]] = defaultdict(list)
        iterations: dict[Any, int] = defaultdict(int)
        for (subject, backend, block, _), values in nested.items():
            by_block[subject, backend, block].append(statistics.median(values))
            iterations[subject, backend] += len(values)
        instances: dict[Any, int] = defaultdict(int)
        for (subject, backend, block), medians in by_block.items():
            self.cells[subject].setdefault(backend, {})[block] = statistics.median(medians)
            instances[subject, backend] += len(medians)
        for subject, backends in self.cells.items():
            for backend, blocks in backends.items():
                key = subject, backend
                self.counts[key] = len(blocks), instances[key], iterations[key]

    def value(self, subject: tuple[str, ...], backend: str) -> "Centre":
        """The typical value of a cell."""
        return Centre.of([math.log(value) for value in self.cells[subject][backend].values()])

    def comparison(self, subject: tuple[str, ...], backend: str) -> "Centre":
        """A cell over the baseline's, block by block."""
        own, base = self.cells[subject][backend], self.cells[subject][self.manifest["baseline"]]
        return Centre.of([math.log(own[block] / base[block]) for block in sorted(own.keys() & base.keys())])

    def detectable(self, subject: tuple[str, ...], margin: float) -> float:
        """The smallest ratio that the baseline's blocks would have shown with 90 % power, by their neighbours."""
        blocks = self.cells[subject][self.manifest["baseline"]]
        ordered = [math.log(blocks[block]) for block in sorted(blocks)]
        steps = [after - before for before, after in itertools.pairwise(ordered)]
        noise = math.sqrt(statistics.fmean(step**2 for step in steps))
        n, error = len(ordered), noise / math.sqrt(len(ordered))
        assert n < 8, "from 8 blocks on a dependence found by chance takes some of the power"
        draws = np.random.default_rng(99).standard_normal((30_000, n))
        sizes = np.quantile(np.sqrt((np.diff(draws) ** 2).sum(axis=1) / (2 * (n - 1))), np.arange(0.5, 500) / 500)
        critical = stats.t.ppf((1 + LEVEL) / 2, n - 1)
        if n >= 5:
            one_sided = stats.skew(draws, axis=1, bias=False).clip(min=0).mean()
            critical += one_sided * (1 + 2 * critical**2) / (12 * math.sqrt(n))

        def power(delta: float) -> float:
            return float(stats.nct.sf(critical, n - 1, np.minimum(delta * sizes, 40 * critical)).mean())

        shift = optimize.brentq(lambda delta: power(delta) - POWER, 0.1, 500.0)
        beyond = optimize.brentq(lambda delta: stats.norm.cdf(delta * sizes).mean() - POWER, 0.1, 500.0)
        return math.exp(max(shift * error, math.log(1 + margin) + beyond * error))


class Centre:
    """The mean of logarithms as a value, with its interval and the p-value of its being 1."""

    def __init__(
        self, value: float, low: float | None, high: float | None, p_value: float | None, p_skewed: float | None = None
    ) -> None:
        self.value, self.low, self.high, self.p_value, self.p_skewed = value, low, high, p_value, p_skewed

    @classmethod
    def of(cls, logs: list[float]) -> "Centre":
        """Student's t over the blocks, from 5 on wider to the skewed side; none below 2 blocks or without spread."""
        mean = statistics.fmean(logs)
        if len(logs) < 2 or max(logs) - min(logs) < 1e-12:
            return cls(math.exp(mean), None, None, None)
        error = statistics.stdev(logs) / math.sqrt(len(logs))
        skewness = float(stats.skew(logs, bias=False)) if len(logs) >= 5 else 0.0

        def reach(tail: float, side: int) -> float:
            quantile = stats.t.isf(tail, len(logs) - 1)
            extra = max(0.0, side * skewness) * (1 + 2 * quantile**2) / (12 * math.sqrt(len(logs)))
            return float((quantile + extra) * error)

        def beyond(far: Callable[[float], float]) -> float:
            if abs(mean) <= far(0.5):
                return 1.0
            return 2 * math.exp(optimize.brentq(lambda log: far(math.exp(log)) - abs(mean), -300, math.log(0.5)))

        towards, n = -1 if mean > 0 else 1, max(3, len(logs))
        hidden = max(0.0, towards * skewness + math.sqrt(6 * n * (n - 1) / (n - 2) / (n + 1) / (n + 3)))

        def hidden_reach(tail: float) -> float:
            quantile = stats.t.isf(tail, len(logs) - 1)
            return float((quantile + hidden * (1 + 2 * quantile**2) / (6 * math.sqrt(len(logs)))) * error)

        tail = (1 - LEVEL) / 2
        p_values = beyond(lambda at: reach(at, towards)), beyond(hidden_reach)
        return cls(math.exp(mean), math.exp(mean - reach(tail, -1)), math.exp(mean + reach(tail, 1)), *p_values)

    def verdict(self, direction: str, margin: float) -> str:
        """By the rule that the page states."""
        assert self.low is not None
        assert self.high is not None
        if 1 / (1 + margin) <= self.low and self.high <= 1 + margin:
            return "equivalent"
        outside = self.value > 1 + margin or self.value < 1 / (1 + margin)
        if outside and (self.low > 1 or self.high < 1):
            return "slower" if (self.value > 1) == (direction == "lower") else "faster"
        return "inconclusive"


class OfFamily(NamedTuple):
    """A comparison of a family: its p-value, the log ratios of each pair, whether its metric leads the ``reading``."""

    p_value: float
    pairs: list[list[float]]
    reading: str
    leads: bool


def family_q_values(family: list[OfFamily]) -> list[float]:
    """Benjamini and Hochberg in the leading metrics, and in the others, each at half; one of a reading is counted."""
    stands_for = list(range(len(family)))
    for place in sorted(stands_for, key=lambda place: not family[place].leads):
        kept = [other for other in range(len(family)) if other != place and stands_for[other] == other]
        earlier = [other for other in kept if (not family[other].leads, other) < (not family[place].leads, place)]
        same = [other for other in earlier if _one_reading(family[other], family[place])]
        stands_for[place] = min(same, key=lambda other: (not family[other].leads, other), default=place)
    counted = [place for place in range(len(family)) if stands_for[place] == place]
    tiers = [[place for place in counted if family[place].leads is leads] for leads in (True, False)]
    n_tiers = sum(bool(tier) for tier in tiers)
    found: dict[int, float] = {}
    for tier in tiers:
        smallest = 1.0
        for rank, place in reversed(list(enumerate(sorted(tier, key=lambda place: family[place].p_value), start=1))):
            smallest = min(smallest, n_tiers * family[place].p_value * len(tier) / rank)
            found[place] = smallest
    return [found[stands_for[place]] for place in range(len(family))]


def _one_reading(first: OfFamily, second: OfFamily) -> bool:
    pairs = [(a, b) for a, b in zip(first.pairs, second.pairs, strict=True) if len(a) == len(b) >= 2]
    if first.reading != second.reading or not pairs:
        return False
    shares = []
    for ours, theirs in pairs:
        apart = min(max(abs(a - sign * b) for a, b in zip(ours, theirs, strict=True)) for sign in (1, -1))
        varies = min(max(logs) - min(logs) for logs in (ours, theirs))
        shares.append(apart / varies if varies else math.inf)
    return statistics.fmean(shares) <= (0.25 if min(len(a) for a, _ in pairs) >= 4 else 0.05)


def subject_of(one: Mapping[str, Any]) -> tuple[str, ...]:
    """The subject of a sample, or of a result in a JSON report."""
    return one["experiment"], one["workload"], json.dumps(one["params"], sort_keys=True), one["metric"]


def _attempt(instance: str) -> tuple[str, int]:
    planned, _, attempt = instance.partition("~")
    return planned, int(attempt or 1)


def _lines(file: Path) -> Iterator[str]:
    *whole, rest = file.read_text("utf-8").split("\n")
    assert not rest or file.name == "samples.jsonl"
    return iter(whole)
