"""A run's samples as one flat pandas frame: a row a sample."""

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tare.bench.store import LoadedRun

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray

    from tare.bench.samples import Texts


def sample_frame(run: LoadedRun) -> "pd.DataFrame":
    """Every sample, warm-ups included, in the order in which it was measured.

    Text columns are categories; ``params`` is JSON with sorted keys. ``value`` is in ``unit``.
    """
    import pandas as pd

    table = run.samples
    columns: dict[str, Any] = {}
    for name, column in table.texts.items():
        values, codes = _categories(column)
        columns[name] = pd.Categorical.from_codes(codes, categories=pd.Index(values, dtype="str"))
    columns |= table.numbers
    order = ("block", "instance", "experiment", "workload", "params", "backend", "metric", "unit", "value")
    return pd.DataFrame({name: columns[name] for name in (*order, "iteration", "warmup", "raw")})


def params_text(params: Mapping[str, Any]) -> str:
    """Parameters as JSON with sorted keys."""
    return json.dumps(params, sort_keys=True, ensure_ascii=False)


def _categories(column: "Texts") -> "tuple[list[str], NDArray[np.int32]]":
    """The distinct texts of a column and the codes into them: parameters that differ only in their order are one."""
    import numpy as np

    texts = [params_text(value) if isinstance(value, Mapping) else str(value) for value in column.kinds]
    places = {text: place for place, text in enumerate(dict.fromkeys(texts))}
    if len(places) == len(texts):
        return texts, column.codes
    return list(places), np.array([places[text] for text in texts], dtype=np.int32)[column.codes]
