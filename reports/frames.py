"""A run's samples as one flat pandas frame: a row a sample."""

import json
from collections.abc import Iterable, Iterator, Mapping
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from bench.store import LoadedRun

if TYPE_CHECKING:
    import pandas as pd

TEXT_COLUMNS = ("instance", "experiment", "workload", "params", "backend", "metric", "unit", "raw")


def sample_frame(run: LoadedRun) -> "pd.DataFrame":
    """Every sample, warm-ups included, in the order in which it was measured.

    Text columns are categories; ``params`` is JSON with sorted keys. ``value`` is in ``unit``.
    """
    import pandas as pd

    samples = run.samples
    columns: dict[str, Any] = {
        name: _category(map(attrgetter(name), samples)) for name in TEXT_COLUMNS if name not in ("params", "unit")
    }
    columns["params"] = _category(_params_texts(run))
    columns["unit"] = _category(sample.unit.value for sample in samples)
    columns["block"] = pd.Series([sample.block for sample in samples], dtype="int64")
    columns["iteration"] = pd.Series([sample.iteration for sample in samples], dtype="int64")
    columns["value"] = pd.Series([sample.value for sample in samples], dtype="float64")
    columns["warmup"] = pd.Series([sample.warmup for sample in samples], dtype="bool")
    order = ("block", "instance", "experiment", "workload", "params", "backend", "metric", "unit", "value")
    return pd.DataFrame({name: columns[name] for name in (*order, "iteration", "warmup", "raw")})


def params_text(params: Mapping[str, Any]) -> str:
    """Parameters as JSON with sorted keys."""
    return json.dumps(params, sort_keys=True, ensure_ascii=False)


def _category(texts: Iterable[str]) -> "pd.Categorical":
    """A column of few different texts. Numbered here, as pandas would first copy a million texts to Arrow."""
    import numpy as np
    import pandas as pd

    numbers: dict[str, int] = {}
    codes = np.fromiter((numbers.setdefault(text, len(numbers)) for text in texts), dtype=np.int32)
    return pd.Categorical.from_codes(codes, categories=pd.Index(list(numbers), dtype="str"))


def _params_texts(run: LoadedRun) -> Iterator[str]:
    # A cell's parameters repeat in each of its samples: the text is made once for each instance.
    known: dict[tuple[str, str], str] = {}
    for sample in run.samples:
        key = (sample.instance, sample.workload)
        text = known.get(key)
        if text is None:
            text = known[key] = params_text(sample.params)
        yield text
