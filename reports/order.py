"""Flags on the order of values: serial correlation of iterations within instances, drift of a cell over the blocks.

The tests are those of ``bench.stats.series``; false discoveries are controlled over all of a run's tests (Benjamini and
Hochberg 1995), and an effect has to be large enough to matter to anybody.
"""

from collections.abc import Iterator
from typing import NamedTuple

from tare.bench.analysis import Analysis
from tare.bench.readable import one_line
from tare.bench.samples import params_text
from tare.bench.stats import adjust_p_values
from tare.bench.stats.series import SeriesTest, drift, serial_correlation
from tare.reports.flags import CellName, Flag, FlagKind, make_flag

FALSE_DISCOVERIES = 0.05
SMALLEST_CORRELATION = 0.2
SMALLEST_DRIFT = 0.02


class _Tested(NamedTuple):
    kind: FlagKind
    cell: CellName
    metric: str
    test: SeriesTest
    n_instances: int


def order_flags(analysis: Analysis) -> Iterator[Flag]:
    """Every flag on the order of a run's values."""
    tested = list(_order_tests(analysis))
    if not tested:
        return
    q_values = adjust_p_values([one.test.p_value for one in tested]).tolist()
    kept: dict[tuple[FlagKind, CellName], list[tuple[_Tested, float]]] = {}
    for one, q in zip(tested, q_values, strict=True):
        smallest = SMALLEST_DRIFT if one.kind is FlagKind.DRIFT else SMALLEST_CORRELATION
        if q <= FALSE_DISCOVERIES and abs(one.test.size) >= smallest:
            kept.setdefault((one.kind, one.cell), []).append((one, q))
    for (kind, cell), each in kept.items():
        each.sort(key=lambda entry: -abs(entry[0].test.size))
        worst, q = each[0]
        yield make_flag(
            cell,
            kind=kind,
            metrics=tuple(one.metric for one, _ in each),
            n_instances=worst.n_instances,
            value=worst.test.size,
            q_value=q,
            sentence=_order_sentence(worst, len(each) - 1),
        )


def _order_tests(analysis: Analysis) -> Iterator[_Tested]:
    """Every test of order that a run's samples allow, warm-up left out.

    Serial correlation only where iterations repeat the same thing: in a ramp each is another step.
    """
    seed = analysis.manifest.seed
    for subject in analysis.subjects:
        params = params_text(subject.params)
        for row in subject.rows:
            if row.quantile is not None:
                continue
            for result in row.cells:
                cell = CellName(subject.experiment, subject.workload, params, result.backend.name)
                if subject.traits.warms_up:
                    test = serial_correlation(result.points.iterations, result.points.instance_of, seed=seed)
                    if test is not None:
                        yield _Tested(FlagKind.AUTOCORRELATION, cell, row.metric.name, test, result.n_instances)
                test = drift(result.points.blocks.values)
                if test is not None:
                    yield _Tested(FlagKind.DRIFT, cell, row.metric.name, test, result.n_instances)


def _order_sentence(worst: _Tested, others: int) -> str:
    name = one_line(worst.metric, 60)
    also = f" (and {others} more metric{'s' if others > 1 else ''})" if others else ""
    size = worst.test.size
    if worst.kind is FlagKind.DRIFT:
        way = "up" if size > 0 else "down"
        return (
            f"{name}{also} drifted {way} by {abs(size):.0%} from the first block to the last; a drift that all "
            "backends share cancels in the ratios, the typical value alone does not hold for the whole run."
        )
    how = "like the one before it" if size > 0 else "unlike the one before it"
    return (
        f"Iterations of {name}{also} are {how} (rank correlation {size:+.2f}): they tell less than their number "
        "suggests; intervals rest on blocks and are not changed by it."
    )
