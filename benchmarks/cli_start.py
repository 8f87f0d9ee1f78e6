"""How long ``tare --help`` takes, in starts of the same environment's Python: at most 12 are wanted.

Run it with the Python of an ordinary installation, ``python -m venv E; E/bin/pip install WHEEL; E/bin/python
benchmarks/cli_start.py``: an editable install makes every start of Python slower, and so hides what tare takes.
"""

import statistics
import subprocess
import sys
import time
from pathlib import Path

ROUNDS = 25
WANTED = 12


def main() -> None:
    """Start both alternately, and print the medians and their ratio; the exit code says whether it is small enough."""
    python, tare = Path(sys.executable), Path(sys.executable).with_name("tare")
    if not tare.exists():
        sys.exit(f"{tare} is missing: run this with the Python of the environment that tare is installed in")
    commands = {"python3 -I -c pass": [python, "-I", "-c", "pass"], "tare --help": [tare, "--help"]}
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(ROUNDS):
        for name, command in commands.items():
            begun = time.perf_counter()
            subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
            seconds[name].append(time.perf_counter() - begun)
    empty, help_page = (statistics.median(values) for values in seconds.values())
    print(f"python3 -I -c pass: {1000 * empty:.1f} ms, tare --help: {1000 * help_page:.1f} ms")
    print(f"ratio: {help_page / empty:.1f} (at most {WANTED})")
    sys.exit(help_page / empty > WANTED)


if __name__ == "__main__":
    main()
