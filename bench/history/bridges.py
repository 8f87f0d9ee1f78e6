"""Old and new in the same blocks: the suite of a bridge, and whether what is old can still be had here.

A changed image or other options of a backend begin an epoch of the history. A bridge measures each backend twice in
every block, as the suite has it and as an earlier run had it (its image by digest, its options), so that the size of
the step is known with an interval. What is old on the host itself (its kernel, the version of an engine) cannot be had
next to the new: such a step stays confounded.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec
import numpy as np

from tare.bench.comparability import ABSENT, Difference, conditions
from tare.bench.errors import NotComparableError, RunDirectoryError
from tare.bench.history.entries import RunEntry
from tare.bench.history.findings import Shift, as_shift
from tare.bench.history.index import History
from tare.bench.records import Manifest
from tare.bench.stats.comparisons import Floats

OLD = "-old"
"""What the names of backends as the earlier run had them end in."""
FEWEST = 8
"""Blocks of a bridge, if the suite asks for fewer."""
_OWN = ("image.digest", "tare.commit", "schema")
"""What may differ: the image is the old one for the old side, and a commit of tare is no condition of an epoch."""


def old_name(name: str) -> str:
    """What a backend is called in a bridge as the earlier run had it."""
    return f"{name}{OLD}"


def bridged_suite(source: Mapping[str, Any], backends: tuple[str, ...], old: Manifest) -> dict[str, Any]:
    """The suite with each of its ``backends`` a second time, as ``old`` had it. ``source`` has one section a backend.

    Raises RunDirectoryError if the runs have no backend in common, or nothing that could be bridged differs.
    """
    digest = str(old.image.get("digest", ""))
    shared = [section for section in old.suite.get("backend", ()) if _name(section) in backends]
    if not shared or old.baseline not in backends:
        raise RunDirectoryError(
            f"{old.run} has no backends that the suite has too, with the baseline {old.baseline} among them",
            remedy="name a run of the same suite",
        )
    olds = [
        {**section, "name": old_name(_name(section)), "image": section.get("image") or digest} for section in shared
    ]
    news = [section for section in source["backend"] if _name(section) in {_name(one) for one in shared}]
    sampling = dict(source.get("sampling") or {})
    sampling |= {"precision": 0, "max_blocks": None, "blocks": max(FEWEST, int(sampling.get("blocks") or 0))}
    experiments = [
        {**section, "precision": None, "max_blocks": None, "blocks": None} for section in source["experiment"]
    ]
    report = {**(source.get("report") or {}), "baseline": old.baseline}
    return {
        **source,
        "backend": [*news, *olds],
        "sampling": sampling,
        "experiment": experiments,
        "report": report,
        "requirement": [],
    }


def require_bridge(now: Manifest, old: Manifest) -> None:
    """Whether the old side is what ``old`` measured. Raises NotComparableError with what cannot be had any more.

    Raises RunDirectoryError if old and new do not differ at all.
    """
    names = [name for name in old.backends if old_name(name) in now.backends]
    if not names or old_name(old.baseline) not in now.backends:
        raise RunDirectoryError(f"none of the backends of {old.run} works here with its image", remedy="see above")
    lost = [one for name in names for one in _lost(now, old, name)]
    if lost:
        listed = "\n".join(f"  {one.field}: {one.first} then, {one.second} now" for one in dict.fromkeys(lost))
        raise NotComparableError(
            f"what {old.run} measured cannot be had on this host any more, because these differ:\n{listed}",
            remedy="the step between the epochs stays confounded; `tare gate` shows it and calls it no regression",
        )
    same_image = now.image.get("digest") == old.image.get("digest")
    if same_image and not any(_options(now, name) != _options(now, old_name(name)) for name in names):
        raise RunDirectoryError(
            f"nothing differs between {old.run} and the suite now that could be measured side by side",
            remedy="a bridge needs another image, or other options of a backend",
        )


def _lost(now: Manifest, old: Manifest, name: str) -> Iterator[Difference]:
    before = conditions(old, {name})
    renamed = {
        field.replace(f"backend.{old_name(name)}.", f"backend.{name}.", 1): text
        for field, text in conditions(now, {old_name(name)}).items()
    }
    label, image = f"backend.{name}.label", f"backend.{name}.image"
    for field in dict.fromkeys((*before, *renamed)):
        if field in (*_OWN, label, image) or before.get(field) == renamed.get(field):
            continue
        yield Difference(field, before.get(field, ABSENT), renamed.get(field, ABSENT))


def _options(manifest: Manifest, name: str) -> Any:
    return next((one.get("options") or {} for one in manifest.suite["backend"] if _name(one) == name), {})


class Bridged(msgspec.Struct, frozen=True):
    """What a bridge says of a series: its step between two epochs, from blocks that held both sides.

    ``shift`` is of the ratio to bare metal; of the level for bare metal itself.
    """

    run: str
    series: str
    before: str
    after: str
    shift: Shift


def load_bridges(history: History, entry: RunEntry) -> list[Bridged]:
    """The steps that bridges of a run's suite on its host have measured, those of later bridges last."""
    bridges = [one for one in history.entries if one.bridges and (one.host, one.suite) == (entry.host, entry.suite)]
    if not bridges:
        return []
    numbers = {one.run: one.number for one in history.entries}
    olds = [numbers[one.bridges] for one in bridges if one.bridges in numbers]
    listed = ", ".join(map(str, {*(one.number for one in bridges), *olds}))
    with history.start_query() as connection:
        found = connection.execute(
            f"SELECT number, subject, backend, series, epoch, blocks, medians FROM cells WHERE number IN ({listed})"  # noqa: S608 - numbers
        ).fetchall()
    rows: dict[int, dict[tuple[str, str], _Row]] = {}
    for number, subject, backend, *values in found:
        rows.setdefault(number, {})[subject, backend] = _Row(*values)
    return [
        step
        for one in bridges
        if numbers.get(one.bridges) in rows
        for step in _steps(one, rows.get(one.number, {}), rows[numbers[one.bridges]])
    ]


class _Row(msgspec.Struct, frozen=True):
    series: str
    epoch: str
    blocks: list[int]
    medians: list[float]

    @property
    def logs(self) -> dict[int, float]:
        pairs = zip(self.blocks, self.medians, strict=True)
        return {block: math.log(value) if value > 0 else math.nan for block, value in pairs}


def _steps(
    entry: RunEntry, rows: Mapping[tuple[str, str], _Row], earlier: Mapping[tuple[str, str], _Row]
) -> Iterator[Bridged]:
    for (subject, backend), new in rows.items():
        old, first = rows.get((subject, old_name(backend))), earlier.get((subject, backend))
        if old is None or first is None:
            continue
        sides = [new.logs, old.logs]
        if backend != entry.baseline:
            base = rows.get((subject, entry.baseline)), rows.get((subject, old_name(entry.baseline)))
            if base[0] is None or base[1] is None:
                continue
            sides += [base[0].logs, base[1].logs]
        blocks = sorted(set.intersection(*(set(side) for side in sides)))
        values = np.array([[side[block] for block in blocks] for side in sides])
        logs = values[0] - values[1] - (values[2] - values[3] if len(sides) > 2 else 0)
        if len(logs) > 1 and np.isfinite(logs).all():
            yield Bridged(entry.run, new.series, first.epoch, new.epoch, _shift(logs))


def _shift(logs: Floats) -> Shift:
    from scipy.special import stdtrit

    half = float(stdtrit(len(logs) - 1, 0.975) * logs.std(ddof=1) / math.sqrt(len(logs)))
    return as_shift(float(logs.mean()), half)


def _name(section: Mapping[str, Any]) -> str:
    return str(section.get("name") or section.get("type"))
