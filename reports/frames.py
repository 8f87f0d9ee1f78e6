"""A run's samples as one flat pandas frame: a row a sample."""

from typing import TYPE_CHECKING, Any

from tare.bench.store import LoadedRun

if TYPE_CHECKING:
    import pandas as pd


def sample_frame(run: LoadedRun) -> "pd.DataFrame":
    """Every sample, warm-ups included, in the order in which it was measured.

    Text columns are categories; ``params`` is JSON with sorted keys. ``value`` is in ``unit``.
    """
    import pandas as pd

    table = run.samples
    columns: dict[str, Any] = {}
    for name, column in table.texts.items():
        values, codes = column.written()
        columns[name] = pd.Categorical.from_codes(codes, categories=pd.Index(values, dtype="str"))
    columns |= table.numbers
    order = ("block", "instance", "experiment", "workload", "params", "backend", "metric", "unit", "value")
    return pd.DataFrame({name: columns[name] for name in (*order, "iteration", "warmup", "raw")})
