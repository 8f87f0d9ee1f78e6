"""Whether the cost of an instance, fitted on the beginning of a ramp, tells what the host holds at its end.

    python -m benchmarks.capacity_holdout [--backend native] [--backend vm] [--json]
    python -m benchmarks.capacity_holdout --size 64MiB --size 192MiB --size 512MiB --held-out 320MiB [--json]

Each backend is ramped well beyond what is fitted (native: fitted to 100 of 1,000, vm: to half of 8), and the
memory that is no longer available at the end is compared with what the fit says. Needs root and a quiet host: beside it
stands the same for attributed memory (PSS, slab, the kernel's other objects), which minds other programs less.

With sizes, guests are ramped once a size; the line through their overheads is asked for the size that was held out,
and compared with a ramp of that size.

Bars: 5 % of containers' memory, 10 % of guests' (both with ten times, or twice, as many as fitted); 10 % of the
overhead at the size that was held out.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

from rich.console import Console

from tare.bench.analysis.density import DensityCell, analyse_density, find_density, fit_instance_cost
from tare.bench.capacity.hosts import Resource
from tare.bench.capacity.instances import InstanceType, make_type
from tare.bench.capacity.overhead import sized_overheads
from tare.bench.catalogue import DensityMetric
from tare.bench.cli.density import DensityRequest, make_request
from tare.bench.progress import RunDisplay
from tare.bench.session import start_run
from tare.bench.store import load_run
from tare.bench.units import format_size, parse_size

RAMPS = {"native": (100, 1000), "bare-metal": (100, 1000), "vm": (4, 8)}
"""Fitted up to the first population, asked about the second."""
READINGS = 10
"""Of memory, up to the first population: a ramp has to be quicker than what else the host does."""
ALLOWED = {"native": 0.05, "bare-metal": 0.05, "vm": 0.10}
SIZE_ALLOWED = 0.10
"""Of the overhead of guests of a size that was held out."""


def main() -> int:
    """Ramp, fit, compare; 1 if an error is larger than allowed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", action="append", choices=sorted(RAMPS), help="native and vm unless given")
    parser.add_argument("--memory", default="192MiB", help="memory of an instance")
    parser.add_argument("--size", action="append", help="memory of guests: a ramp a size")
    parser.add_argument("--held-out", help="a size between; its overhead is predicted, then measured")
    parser.add_argument("--guests", type=int, default=3, help="guests of each size")
    parser.add_argument("--json", action="store_true", help="print one JSON object; progress goes to stderr")
    arguments = parser.parse_args()
    if arguments.size:
        return hold_out_size(arguments)
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


def hold_out_size(arguments: argparse.Namespace) -> int:
    """The overhead of a size that no ramp had, beside that of a ramp; 1 if it is further off than ``SIZE_ALLOWED``."""
    with tempfile.TemporaryDirectory(prefix="tare-holdout-") as folder:
        ramps = {size: guests(size, arguments.guests, Path(folder)) for size in (*arguments.size, arguments.held_out)}
    (line,) = sized_overheads([ramps[size] for size in arguments.size])
    wanted = parse_size(arguments.held_out)
    predicted = line.at(wanted)
    seen = next(need for need in ramps[arguments.held_out].needs if need.resource is Resource.MEMORY and need.by_limit)
    measured = seen.each.per_instance - wanted
    found = {
        "sizes": {size: next(one.overhead.per_instance for one in line.measured if one.size == parse_size(size))
                  for size in arguments.size},
        "held_out": wanted,
        "predicted": predicted.per_instance,
        "low": predicted.low,
        "high": predicted.high,
        "measured": measured,
        "error": abs(predicted.per_instance - measured) / abs(measured),
    }  # fmt: skip
    if arguments.json:
        print(json.dumps(found, indent=2))
    else:
        print(
            f"guests of {arguments.held_out}: overhead predicted {format_size(predicted.per_instance)}, measured "
            f"{format_size(measured)}: {100 * found['error']:.1f} % off"
        )
    return int(found["error"] > SIZE_ALLOWED)


def guests(size: str, count: int, folder: Path) -> InstanceType:
    """A ramp of guests of one size."""
    request = DensityRequest(("vm",), {"count": count, "batch": 1}, {"memory": size}, "", (), {"seed": 1}, None)
    made = make_request(request)
    with RunDisplay(Console(stderr=True)) as display:
        path = start_run(type(made)(made.suite, folder / size, source=made.source), display).path
    run = load_run(path)
    (result,) = analyse_density(run.samples, run.events)
    if result.cell.population < count:
        sys.exit(f"{size}: the ramp ended early: {result.cell.endings[0].message}")
    return make_type(result, run.manifest, str(path))


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
