"""How long the report of many hosts takes, and how much memory: recorded runs of hosts that nobody has.

    python -m benchmarks.fleet_report [--hosts 200] [--form html] [--json]

A fleet's folder is made with a run a host (three workloads and starts, two backends, 8 blocks, 6 iterations), then a
process of its own reads it, combines the hosts and writes the report. Bars at 200 hosts: 60 s of wall-clock time on a
quiet machine, and 1 GB; ``cpu_s`` is what of it was work. Scheduling and fetching are ``benchmarks/fleet_local.py``'s.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

from tare.bench.process import Popen
from tests.fleets import Fleet, write_fleet

MOST_SECONDS, MOST_BYTES = 60.0, 1e9
_PROGRAM = """
import json, resource, sys
from pathlib import Path
from tare.bench.fleet.collection import load_collection
from tare.bench.fleet.report import make_report
from tare.bench.registry import find_reporters
found = make_report(load_collection(Path(sys.argv[1])))
find_reporters().loaded[sys.argv[2]]().write_fleet(found, Path(sys.argv[3]))
used = resource.getrusage(resource.RUSAGE_SELF)
said = {"cpu_s": used.ru_utime + used.ru_stime, "peak_bytes": used.ru_maxrss * 1024}
print(json.dumps({**said, "counted": len(found.analysis.counted), "rows": len(found.analysis.rows)}))
"""


def main() -> int:
    """Print the figures; 1 if a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hosts", type=int, default=200)
    parser.add_argument("--form", default="html")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tare-fleet-report-") as folder:
        started = time.monotonic()
        path = write_fleet(Path(folder) / "fleet", Fleet(hosts=options.hosts, types=("large", "small")))
        written = time.monotonic()
        output = Path(folder) / "report"
        command = [sys.executable, "-c", _PROGRAM, str(path), options.form, str(output)]
        with Popen(command, stdout=-1, encoding="utf-8") as process:
            text, _ = process.communicate()
        ended = time.monotonic()
        if process.returncode:
            return 1
        figures = {
            "hosts": options.hosts,
            "raw_bytes": sum(one.stat().st_size for one in path.rglob("*") if one.is_file()),
            "writing_s": written - started,
            "report_s": ended - written,
            "report_bytes": output.stat().st_size,
            **json.loads(text),
        }
    print(json.dumps(figures, indent=2) if options.json else "\n".join(f"{k}: {v:,.6g}" for k, v in figures.items()))
    return int(figures["report_s"] > MOST_SECONDS or figures["peak_bytes"] > MOST_BYTES)


if __name__ == "__main__":
    sys.exit(main())
