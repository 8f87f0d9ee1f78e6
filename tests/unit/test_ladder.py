"""The layers of an engine's start and memory: they add up, each with its interval, and what is not known is said."""

import json
import re
from io import StringIO
from pathlib import Path

import msgspec
import numpy as np
import pytest
from rich.console import Console

from tare.bench.analysis import analyse
from tare.bench.analysis.ladder import ends_of, memory_of, starts_of
from tare.bench.experiments.boot import Boot
from tare.bench.records import Sample
from tare.bench.store import load_run
from tare.reports.html import render_page
from tare.reports.ladder import ladder_view
from tare.reports.markdown import render_markdown
from tare.reports.text import render_text
from tests.synthetic import Recipe, write_run
from tests.written import markdown_rows

BLOCKS = 6
STARTS_MS = {"native": 9.0, "runc": 80.0, "containerd": 101.0, "docker": 340.0}
RETURNED_MS = {"runc": 82.0, "containerd": 104.0, "docker": 352.0}
MIB = 2**20


def run_of(folder: Path, *, backends=tuple(STARTS_MS), without=(), blocks=BLOCKS, apart_ms=0.5, types=None):
    """A run with the ends of starts and the memory of ``backends``; ``without`` are blocks that docker lacks."""
    path = write_run(folder / "run", Recipe(backends=backends, blocks=blocks))
    manifest = json.loads((path / "manifest.json").read_text())
    known = {metric.name: metric for metric in Boot.metrics}
    noise = np.random.default_rng(7)
    with (path / "samples.jsonl").open("ab") as file:
        for block in range(blocks):
            host = noise.standard_normal() * 5
            for backend in backends:
                if backend == "docker" and block in without:
                    continue
                start = STARTS_MS[backend] + host + noise.standard_normal() * apart_ms
                values = {"boot.by_instruction": start * 1e-3, "boot.pss": 12 * MIB}
                if backend in RETURNED_MS:
                    values["boot.by_return"] = (start + RETURNED_MS[backend] - STARTS_MS[backend]) * 1e-3
                    values["host.memory_engine"] = 10 * MIB if backend in ("containerd", "docker") else 0
                if backend == "docker":
                    values["host.memory_daemon"] = 80 * MIB
                for name, value in values.items():
                    manifest["metrics"][f"boot/{name}"] = msgspec.to_builtins(known[name])
                    sample = Sample(
                        instance=f"x{block}{backend}",
                        block=block,
                        backend=backend,
                        experiment="boot",
                        workload="",
                        params={},
                        metric=name,
                        unit=known[name].unit,
                        value=value,
                        iteration=0,
                        warmup=False,
                        raw="",
                    )
                    file.write(msgspec.json.encode(sample) + b"\n")
    if types:
        manifest["suite"]["backend"] = [{"name": name, **more} for name, more in types.items()]
    (path / "manifest.json").write_text(json.dumps(manifest))
    return analyse(load_run(path))


def boot(analysis):
    return next(subject for subject in analysis.subjects if subject.experiment == "boot")


def layers(waterfalls, backend):
    (found,) = (one for one in waterfalls if one.backend.name == backend)
    return found


def test_the_layers_of_a_start_add_up_to_the_whole(tmp_path):
    analysis = run_of(tmp_path)
    found = layers(starts_of(analysis, boot(analysis)), "docker")
    assert [layer.name for layer in found.layers] == [
        "kernel: native",
        "runtime: runc",
        "shim: containerd",
        "daemon: docker",
        "call: until the engine's command has returned",
    ]
    assert sum(layer.found.centre for layer in found.layers) == pytest.approx(found.total, rel=1e-12)
    returned = next(row for row in boot(analysis).rows if row.metric.name == "boot.by_return")
    values = next(cell.blocks.values for cell in returned.cells if cell.backend.name == "docker")
    assert found.total == pytest.approx(values.mean(), rel=1e-12)
    # What the host does to a whole block is in no difference: ten times less than in the values themselves.
    for layer, expected in zip(found.layers[1:], (71, 21, 239, 12), strict=True):
        assert layer.found.centre == pytest.approx(expected * 1e-3, abs=1.5e-3)
        assert layer.found.low < expected * 1e-3 + 1e-9
        assert layer.found.high - layer.found.low < 5e-3
        assert layer.is_told


def test_only_blocks_that_all_rungs_have_count(tmp_path):
    analysis = run_of(tmp_path, without=(0, 3))
    found = starts_of(analysis, boot(analysis))
    assert layers(found, "docker").blocks == BLOCKS - 2
    assert layers(found, "containerd").blocks == BLOCKS


def test_a_rung_that_was_not_measured_is_part_of_the_next(tmp_path):
    analysis = run_of(tmp_path, backends=("native", "runc", "docker"))
    names = [layer.name for layer in layers(starts_of(analysis, boot(analysis)), "docker").layers]
    assert names[:3] == ["kernel: native", "runtime: runc", "shim and daemon: docker"]


def test_without_a_floor_or_a_runtime_nothing_is_made_up(tmp_path):
    analysis = run_of(tmp_path, backends=("docker",))
    assert starts_of(analysis, boot(analysis)) == []
    analysis = run_of(tmp_path / "other", backends=("native", "docker"))
    names = [layer.name for layer in layers(starts_of(analysis, boot(analysis)), "docker").layers]
    assert names[1] == "runtime and shim and daemon: docker"


def test_the_runtime_is_the_one_that_the_engine_uses(tmp_path):
    types = {
        "native": {"type": "native"},
        "runc": {"type": "crun"},
        "docker": {"type": "docker", "options": {"runtime": "crun"}},
    }
    analysis = run_of(tmp_path, backends=("native", "runc", "docker"), types=types)
    assert layers(starts_of(analysis, boot(analysis)), "docker").layers[1].name == "runtime: runc"


def test_what_cannot_be_told_says_so(tmp_path):
    analysis = run_of(tmp_path, apart_ms=60.0)
    found = layers(starts_of(analysis, boot(analysis)), "docker")
    shim = next(layer for layer in found.layers if layer.name.startswith("shim"))
    assert not shim.is_told
    view = ladder_view(analysis, boot(analysis))
    (shown,) = (one for one in view.starts if one.backend.name == "docker")
    assert next(one for one in shown.layers if one.name.startswith("shim")).note == "could not tell it from nothing"
    single = run_of(tmp_path / "one", blocks=1)
    view = ladder_view(single, boot(single))
    assert {layer.note for one in view.starts for layer in one.layers[1:]} == {"no interval: one block"}


def test_memory_is_the_container_s_the_helpers_and_the_daemon_s(tmp_path):
    analysis = run_of(tmp_path)
    found = memory_of(analysis, boot(analysis))
    assert [one.backend.name for one in found] == ["runc", "containerd", "docker"]
    assert [layer.found.centre / MIB for layer in layers(found, "docker").layers] == [2, 10, 80]
    assert layers(found, "docker").total == 92 * MIB
    assert layers(found, "runc").total == 12 * MIB


def test_the_page_shows_the_definitions_next_to_one_another_and_the_layers(tmp_path):
    analysis = run_of(tmp_path)
    assert [set(one.found) for one in ends_of(analysis, boot(analysis))] == [
        {"boot.by_instruction"},
        *[{"boot.by_return", "boot.by_instruction"}] * 3,
    ]
    page = render_page(analysis)
    assert "By 2 definitions" in page
    assert page.count('class="total"') == 6
    assert re.search(r"shim: containerd</td>.*?\+2\d(\.\d+)? ms", page, re.DOTALL)
    widths = [float(width) for width in re.findall(r"margin-left: [\d.]+%; width: ([\d.]+)%", page)]
    assert all(0 <= width <= 100.01 for width in widths)


def test_text_and_markdown_have_the_layers_too(tmp_path):
    analysis = run_of(tmp_path)
    (whole,) = [one for one in ladder_view(analysis, boot(analysis)).starts if one.backend.name == "docker"]
    rows = {tuple(row) for row in markdown_rows(render_markdown(analysis))}
    drawn = Console(width=160, file=StringIO())
    drawn.print(render_text(analysis))
    lines = [" ".join(line.split()) for line in drawn.file.getvalue().splitlines()]
    for layer in whole.layers:
        interval = "; ".join(part for part in (layer.interval, layer.note) if part)
        assert ("docker", layer.name, layer.value, interval) in rows
        assert f"docker {layer.name} {layer.value} {interval}".strip() in lines
    assert f"docker together {whole.total}" in lines


def test_a_run_without_any_of_it_shows_none(tmp_path):
    analysis = analyse(load_run(write_run(tmp_path / "plain")))
    assert ladder_view(analysis, boot(analysis)) is None
    assert "definitions" not in render_page(analysis)
