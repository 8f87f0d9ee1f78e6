"""What engines do differently, on tare's own runtime and on one engine: starts at once, and layers of the image."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tare.bench.process import find_tool
from tare.bench.store import load_run

pytestmark = [
    pytest.mark.root,
    pytest.mark.image,
    pytest.mark.tools,
    pytest.mark.skipif(find_tool("runc") is None, reason="runc is not installed"),
]

LOOK = (
    "open('/etc/hostname', 'a').write('x'); "
    "options = open('/proc/self/mountinfo').read().split('lowerdir=')[1].split(',')[0]; "
    "print(options.count(':') + 1)"
)
SUITE = f"""
suite = {{ name = "differences" }}
envelope = {{ memory = "64MiB", scratch = "16MiB", pids = 64 }}
sampling = {{ blocks = 1, iterations = 1, warmup = 0, prime = false }}
backend = [{{ type = "native", options = {{ layers = [1, 8] }} }}, {{ type = "runc", options = {{ layers = [1, 8] }} }}]

[[workload]]
name = "look"
command = ["python3", "-c", "{LOOK}"]
metric = [{{ name = "layers", unit = "1", direction = "lower", description = "Of the root.", regex = '(\\d+)' }}]

[[experiment]]
kind = "steady"
workload = "look"

[[experiment]]
kind = "density"
options = {{ count = 4, batch = [1, 4], settle_deadline = "1s" }}
"""


@pytest.fixture(scope="module")
def run(image, tmp_path_factory):
    folder = tmp_path_factory.mktemp("differences")
    (folder / "suite.toml").write_text(SUITE)
    done = subprocess.run(
        [sys.executable, "-m", "tare", "run", "suite.toml", "--output", "run", "--no-report"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return load_run(folder / "run")


@pytest.mark.parametrize("backend", ["native", "runc"])
def test_the_image_lies_below_as_many_layers_as_are_asked_for(run, backend):
    found = {one.backend: one.value for one in run.samples if one.metric == "layers"}
    assert found[f"{backend}:layers=1"] == 1
    assert found[f"{backend}:layers=8"] == 8


@pytest.mark.parametrize("backend", ["native", "runc"])
def test_starts_one_at_a_time_and_at_once_are_cells_of_their_own(run, backend):
    for batch in (1, 4):
        starts = [
            one.iteration
            for one in run.samples
            if one.metric == "density.start" and one.backend == f"{backend}:layers=1" and one.params["batch"] == batch
        ]
        assert sorted(starts) == [1, 2, 3, 4], (batch, starts)
    assert all(one.value > 0 for one in run.samples if one.metric == "instance.stop")
