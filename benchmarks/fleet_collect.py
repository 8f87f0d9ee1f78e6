"""What collecting a run directory of 1 GiB takes: the most memory that each side has at once, and the time.

Run: ``python benchmarks/fleet_collect.py [--size 1GiB] [--files 2000]``. A worker and ``tare fleet collect`` talk over
loopback; the same with a run of 1 MiB is what both need anyway. The bar: neither side holds the run in memory.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec

from tare.bench.fleet.collection import FLEET_SCHEMA_VERSION, FleetManifest, HostRow, HostState, save_fleet_manifest
from tare.bench.fleet.listing import digest_of, list_run
from tare.bench.fleet.on_host import Order, utc_now
from tare.bench.model import Envelope
from tare.bench.records import SCHEMA_VERSION, Manifest, RunStatus
from tare.bench.units import Size

MOST_MIB = 64
"""How much more than for a small run either side may have: some pieces of 4 MiB, each a few times on its way."""
FLEET, HOST, ADDRESS = "f-1", "a", "tcp://127.0.0.1:8799"
RUN = f"{FLEET}.{HOST}"


def write_run(folder: Path, size: int, files: int) -> None:
    """A complete run of this size, nine tenths of it in one file, which does not compress."""
    manifest = Manifest(
        schema_version=SCHEMA_VERSION,
        run=RUN,
        tare_version="0",
        status=RunStatus.COMPLETE,
        seed=1,
        started_utc="",
        ended_utc="",
        suite={},
        envelope=Envelope((0,), 2**26, 2**20, 64),
        image={},
        host=(),
        host_summary="",
        backends={},
        unavailable={},
        confounds=(),
        metrics={},
        planned_instances=0,
    )
    (folder / "raw" / "b00").mkdir(parents=True)
    (folder / "manifest.json").write_bytes(msgspec.json.encode(manifest))
    (folder / "events.jsonl").touch()
    (folder / "histograms.jsonl").touch()
    block = random.Random(1).randbytes(2**20)
    with (folder / "samples.jsonl").open("wb") as file:
        for _ in range(max(1, size * 9 // 10 // len(block))):
            file.write(block)
    for number in range(files):
        content = block[number % 512 :][: size // 10 // files]
        (folder / "raw" / "b00" / f"{number:05d}.gz").write_bytes(content)


def collected(base: Path, size: int, files: int) -> dict[str, Any]:
    """Collect a run of this size; the peak of both sides in bytes, and the time in seconds."""
    state, here = base / "state", base / "collected"
    run = state / "fleet" / FLEET / HOST / RUN
    write_run(run, size, files)
    row = HostRow(HOST, "127.0.0.1", state=HostState.FINISHED, run=RUN)
    manifest = FleetManifest(FLEET_SCHEMA_VERSION, FLEET, "s", "0", utc_now(), (row,), address=ADDRESS)
    save_fleet_manifest(here, manifest)
    (here / "suite.json").write_bytes(msgspec.json.encode(Order(FLEET, HOST, RUN, {}).suite))
    hosts = base / "hosts.toml"
    hosts.write_text(f'[[host]]\nname = "{HOST}"\naddress = "127.0.0.1"\nstart = "hand"\n')
    tare = [sys.executable, "-m", "tare", "fleet"]
    environment = {**os.environ, "TARE_STATE_DIR": str(state)}
    quiet: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL}
    began = time.monotonic()
    worker = subprocess.Popen(
        [*tare, "worker", ADDRESS, "--name", HOST, "--patience", "2m"],
        env=environment,
        stderr=subprocess.DEVNULL,
        **quiet,
    )
    command = subprocess.Popen([*tare, "collect", str(here), "--hosts", str(hosts)], **quiet)
    peaks = {}
    for name, process in (("user", command), ("host", worker)):
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        peaks[name] = used.ru_maxrss * 1024
    if command.returncode or digest_of(list_run(here / "hosts" / HOST / RUN)) != digest_of(list_run(run)):
        raise RuntimeError(f"the run did not come back; `tare fleet collect` ended with {command.returncode}")
    return {"size": size, "files": files, "seconds": round(time.monotonic() - began, 1), "peak_bytes": peaks}


def main() -> None:
    """Parse the command line, measure, print; ends with 1 if a side held more than it may."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=Size, default=Size("1GiB"))
    parser.add_argument("--files", type=int, default=2000)
    asked = parser.parse_args()
    results = []
    for size, files in ((2**20, 10), (int(asked.size), asked.files)):
        with tempfile.TemporaryDirectory(
            prefix="tare-collect-", dir="/var/tmp"
        ) as folder:  # a run is too much for /tmp
            results.append(collected(Path(folder), size, files))
    small, large = (one["peak_bytes"] for one in results)
    more = {side: round((large[side] - small[side]) / 2**20, 1) for side in small}
    print(json.dumps({"runs": results, "more_mib": more, "most_mib": MOST_MIB}, indent=2))
    sys.exit(1 if max(more.values()) > MOST_MIB else 0)


if __name__ == "__main__":
    main()
