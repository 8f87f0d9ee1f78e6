"""How long a report takes, how much memory, and how large its page is: of a synthetic run with any number of samples.

The report is written by a process of its own (``tare report``), so that the memory is its alone. ``seconds`` is CPU
time, user and system, with all imports; ``first_paint_s`` is how long Chromium takes from the navigation to the first
pixels, where playwright and a Chromium are installed.
"""

import argparse
import json
import multiprocessing
import shutil
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tare.bench.process import run as run_tool
from tests.synthetic import QUICK, write_run

SAMPLES_AN_ITERATION = 15
BLOCKS = 20
REPORT = """
import json, resource, sys
from tare.bench.cli.run import report_command
from pathlib import Path
report_command(Path(sys.argv[1]), "html", Path(sys.argv[2]))
used = resource.getrusage(resource.RUSAGE_SELF)
print(json.dumps({"seconds": round(used.ru_utime + used.ru_stime, 2), "peak_bytes": used.ru_maxrss * 1024}))
"""


def main() -> None:
    """Make the run, write its report, print what it took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=1_000_000, help="about how many samples the run has")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tare-report-size-") as folder:
        found = measure(Path(folder) / "run", arguments.samples)
    if arguments.json:
        print(json.dumps(found))
        return
    for name, value in found.items():
        print(f"{name:14} {value}")


def measure(run: Path, samples: int) -> dict[str, float | int | None]:
    """Seconds of CPU, bytes of memory at most, bytes of the page."""
    # In another process: a child's peak begins with the size of the process that it came from.
    iterations = max(2, round(samples / (SAMPLES_AN_ITERATION * len(QUICK.backends) * BLOCKS)))
    writer = multiprocessing.get_context("spawn").Process(
        target=write_run, args=(run, replace(QUICK, blocks=BLOCKS, iterations=iterations))
    )
    writer.start()
    writer.join()
    with (run / "samples.jsonl").open("rb") as file:
        count = sum(1 for _ in file)
    page = run / "report.html"
    used = json.loads(
        run_tool([sys.executable, "-c", REPORT, str(run), str(page)], timeout_s=900).stdout.splitlines()[-1]
    )
    return {"samples": count, **used, "page_bytes": page.stat().st_size, "first_paint_s": first_paint(page)}


def first_paint(page: Path) -> float | None:
    """Seconds from the navigation to the first pixels; None without a browser."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        return None
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        return None
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        tab = browser.new_page()
        tab.goto(page.as_uri())
        painted = tab.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")
        browser.close()
    return round(painted / 1000, 3)


if __name__ == "__main__":
    main()
