"""Samples of several hosts: blocks and instances are paired within a host, whatever their numbers and names are."""

from dataclasses import replace

import msgspec
import numpy as np
import pytest

from tare.bench.analysis import analyse
from tare.bench.samples import SampleTable, Texts
from tare.bench.store import load_run
from tests.synthetic import QUICK, SUBJECTS, write_run


def on_two_hosts(run, factor):
    """The same samples again as another host's, ``factor`` times as large."""
    table = run.samples
    texts = {name: Texts(np.tile(column.codes, 2), column.kinds) for name, column in table.texts.items()}
    texts["host"] = Texts(np.repeat(np.array([0, 1], dtype=np.int32), len(table)), ("one", "other"))
    numbers = {name: np.tile(column, 2) for name, column in table.numbers.items()}
    numbers["value"] = np.concatenate((table.numbers["value"], factor * table.numbers["value"]))
    return msgspec.structs.replace(run, samples=SampleTable(texts, numbers))


def test_what_differs_between_hosts_cancels_in_the_ratios(tmp_path):
    run = load_run(write_run(tmp_path / "run", replace(QUICK, subjects=SUBJECTS[:1], blocks=4, iterations=1)))
    one, two = analyse(run), analyse(on_two_hosts(run, 3.0))
    for (*_, before, alone), (*_, after, found) in zip(one.comparisons, two.comparisons, strict=True):
        assert (found.n_blocks, found.n_instances) == (2 * alone.n_blocks, 2 * alone.n_instances)
        assert found.ratio == pytest.approx(alone.ratio)
        assert after.points.instance_names == before.points.instance_names * 2
        assert after.blocks.values.tolist() == pytest.approx([*before.blocks.values, *(3 * before.blocks.values)])
