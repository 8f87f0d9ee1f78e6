"""A program of one's own in an OCI archive: imported, and measured on bare metal and in a container."""

import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from tare.bench.store import load_run

pytestmark = [
    pytest.mark.root,
    pytest.mark.tools,
    pytest.mark.skipif(os.geteuid() != 0, reason="instances need root"),
    pytest.mark.skipif(shutil.which("gcc") is None, reason="there is no gcc to compile the program with"),
]

PROGRAM = r"""
#include <stdio.h>
int main(int count, char **arguments)
{
	printf("{\"rate\": %s, \"note\": \"%d arguments\"}\n", arguments[count - 1], count - 1);
	return 0;
}
"""
SUITE = """
[suite]
name = "own"
[image]
use = "mine"
[envelope]
cpus = 1
memory = "64MiB"
scratch = "16MiB"
[sampling]
blocks = 2
iterations = 2
warmup = 0
[[backend]]
type = "bare-metal"
[[backend]]
type = "native"
[[workload]]
name = "mine"
command = ["/app/bench", "--rate", "@rate@"]
params = { rate = 42.5 }
[[workload.metric]]
name = "rate"
unit = "k/s"
direction = "higher"
description = "What the program says."
json = "rate"
[[experiment]]
kind = "steady"
workload = "mine"
params = { rate = [42.5, 43.25] }
"""


def write_archive(path: Path, program: Path) -> None:
    """An OCI image layout with two layers, of which the second replaces a file of the first."""
    blobs: dict[str, bytes] = {}

    def blob(content: bytes, kind: str) -> dict:
        digest = hashlib.sha256(content).hexdigest()
        blobs[f"blobs/sha256/{digest}"] = content
        return {"mediaType": f"application/vnd.oci.image.{kind}", "digest": f"sha256:{digest}", "size": len(content)}

    layers = [layer({"app/bench": b"#!/nothing\n", "usr/empty": b""}), layer({"app/bench": program.read_bytes()})]
    config = blob(json.dumps({"config": {"Entrypoint": ["/app/bench"]}}).encode(), "config.v1+json")
    manifest = {"schemaVersion": 2, "config": config, "layers": [blob(one, "layer.v1.tar") for one in layers]}
    index = {"schemaVersion": 2, "manifests": [blob(json.dumps(manifest).encode(), "manifest.v1+json")]}
    files = {"oci-layout": b'{"imageLayoutVersion": "1.0.0"}', "index.json": json.dumps(index).encode(), **blobs}
    path.write_bytes(layer(files))


def layer(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), 0o755
            tar.addfile(entry, io.BytesIO(content))
    return out.getvalue()


def test_a_program_in_an_oci_archive_is_measured_without_python_or_a_shell_in_it(tmp_path):
    (tmp_path / "bench.c").write_text(PROGRAM)
    subprocess.run(["gcc", "-static", "-Os", "-o", "bench", "bench.c"], cwd=tmp_path, check=True, timeout=60)
    write_archive(tmp_path / "mine.tar", tmp_path / "bench")
    (tmp_path / "suite.toml").write_text(SUITE)
    environment = {**os.environ, "TARE_CACHE_DIR": str(tmp_path / "cache")}
    for argv in (
        ["image", "import", "mine.tar", "--name", "mine"],
        ["run", "suite.toml", "--output", "run", "--no-report"],
    ):
        done = subprocess.run(
            [sys.executable, "-m", "tare", *argv],
            cwd=tmp_path,
            env={**environment, "PYTHONPATH": str(Path(__file__).parents[2])},
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
    run = load_run(tmp_path / "run")
    measured = {
        (sample.backend, sample.params["rate"], sample.value) for sample in run.samples if sample.metric == "rate"
    }
    assert measured == {(backend, rate, 1000 * rate) for backend in ("bare-metal", "native") for rate in (42.5, 43.25)}
