"""Whether the cost of an instance, fitted on the beginning of a ramp, tells what the host holds at its end.

    python benchmarks/capacity_holdout.py [--backend native] [--backend vm] [--json]

Each backend is ramped well beyond what is fitted (native: fitted to 50 of 500, vm: to half of 8), and the
memory that is no longer available at the end is compared with what the fit says. Needs root and a quiet host: beside it
stands the same for attributed memory (PSS, slab, the kernel's other objects), which minds other programs less.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

from rich.console import Console

from tare.bench.analysis.density import DensityCell, find_density, fit_instance_cost
from tare.bench.catalogue import DensityMetric
from tare.bench.cli.density import DensityRequest, make_request
from tare.bench.progress import RunDisplay
from tare.bench.session import start_run
from tare.bench.store import load_run
from tare.bench.units import format_size

RAMPS = {"native": (50, 500), "bare-metal": (50, 500), "vm": (4, 8)}
"""Fitted up to the first population, asked about the second."""
READINGS = 10
"""Of memory, up to the first population: a ramp has to be quicker than what else the host does."""
ALLOWED = {"native": 0.05, "bare-metal": 0.05, "vm": 0.10}


def main() -> int:
    """Ramp, fit, compare; 1 if an error is larger than allowed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", action="append", choices=sorted(RAMPS), help="native and vm unless given")
    parser.add_argument("--memory", default="192MiB", help="memory of an instance")
    parser.add_argument("--json", action="store_true", help="print one JSON object; progress goes to stderr")
    arguments = parser.parse_args()
    results = {name: measure(name, arguments.memory) for name in arguments.backend or ("native", "vm")}
    errors = {name: result["error"] for name, result in results.items()}
    if arguments.json:
        print(json.dumps({"errors": errors, "details": results}, indent=2))
    else:
        for name, result in results.items():
            print(
                f"{name}: fitted to {result['fitted']}, at {result['population']} the host should have "
                f"{format_size(result['predicted'])} less and has {format_size(result['measured'])} less: "
                f"{100 * result['error']:.1f} % off; of attributed memory "
                f"{format_size(result['attributed_predicted'])} and {format_size(result['attributed_measured'])}: "
                f"{100 * result['attributed_error']:.1f} % off"
            )
    return int(any(error > ALLOWED[name] for name, error in errors.items()))


def measure(backend: str, memory: str) -> dict[str, float]:
    """One ramp of a backend: what the fit says of its end, and what the host said."""
    fitted, count = RAMPS[backend]
    options = {"count": count, "batch": max(1, fitted // READINGS)}
    request = DensityRequest((backend,), options, {"memory": memory}, "", (), {"seed": 1}, None)
    with tempfile.TemporaryDirectory(prefix="tare-holdout-") as folder:
        made = make_request(request)
        with RunDisplay(Console(stderr=True)) as display:
            path = start_run(type(made)(made.suite, Path(folder) / "run", source=made.source), display).path
        run = load_run(path)
    (cell,) = find_density(run.samples, run.events)
    if cell.population < count:
        sys.exit(f"{backend}: the ramp ended early: {cell.endings[0].message}")
    (ramp,) = cell.ramps_of(DensityMetric.MEMORY_AVAILABLE)
    used = float(ramp.values[ramp.population == 0].mean() - ramp.values[-3:].mean())
    beginning = fit_instance_cost(cell.between(0, fitted))
    cost, attributed = beginning.memory, beginning.attributed
    assert cost is not None
    assert attributed is not None
    predicted, attributed_predicted = cost.per_instance * count, attributed.per_instance * count
    attributed_used = sum(grown(cell, metric) for metric in ("density.slab", "density.kernel_other"))
    attributed_used += float(cell.ramps_of("density.pss")[0].values[-1])
    return {
        "fitted": fitted,
        "population": count,
        "predicted": predicted,
        "measured": used,
        "error": abs(predicted - used) / abs(used),
        "attributed_predicted": attributed_predicted,
        "attributed_measured": attributed_used,
        "attributed_error": abs(attributed_predicted - attributed_used) / abs(attributed_used),
    }


def grown(cell: DensityCell, metric: str) -> float:
    """What the host had more of it at the end of the ramp than before it."""
    (ramp,) = cell.ramps_of(metric)
    return float(ramp.values[-3:].mean() - ramp.values[ramp.population == 0].mean())


if __name__ == "__main__":
    sys.exit(main())
