"""How often the interval of the month of exhaustion holds the true month, in simulated demands with a known future."""

import argparse
import json

import numpy as np

from tare.bench.capacity.growth import HORIZON_MONTHS, Held, find_exhaustion, project_history

WORLDS = ("steady", "wandering", "season", "changing")
HEADROOM = 1.6
"""What the hosts hold, as a multiple of the last known demand; known to 10 %."""


def demand(world: str, months: int, random: np.random.Generator) -> np.ndarray:
    """Monthly demand that grows by about 3 % a month."""
    time, noise = np.arange(months), random.normal(0, 0.03, months)
    match world:
        case "steady":
            logs = 0.03 * time + noise
        case "wandering":
            logs = np.cumsum(0.03 + noise)
        case "season":
            logs = 0.03 * time + 0.15 * np.sin(2 * np.pi * time / 12) + noise
        case _:
            logs = np.cumsum(0.03 + np.cumsum(random.normal(0, 0.004, months))) + noise * 2 / 3
    return 100 * np.exp(logs)


def coverage(world: str, months: int, repetitions: int, seed: int) -> dict[str, float]:
    """The share of simulated demands that exhaust the hosts within the interval, and its median width in months."""
    random = np.random.default_rng([seed, months, WORLDS.index(world)])
    hits, widths = 0, []
    for repetition in range(repetitions):
        values = demand(world, months + HORIZON_MONTHS, random)
        held = values[months - 1] * HEADROOM
        true_held = held + random.normal(0, 0.1 * held / 1.96)
        beyond = np.flatnonzero(values[months:] > true_held)
        truth = int(beyond[0]) + 1 if beyond.size else HORIZON_MONTHS + 1
        found = find_exhaustion(project_history(values[:months], seed=repetition), Held(held, 0.9 * held, 1.1 * held))
        low, high = (HORIZON_MONTHS + 1 if end is None else end for end in (found.earliest, found.latest))
        hits += low <= truth <= high
        widths.append(high - low)
    return {"coverage": hits / repetitions, "median_width_months": float(np.median(widths))}


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--repetitions", type=int, default=200)
    parser.add_argument("--months", type=int, nargs="+", default=[12, 24, 36])
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found = {
        f"{world}, {months} months": coverage(world, months, options.repetitions, options.seed)
        for world in WORLDS
        for months in options.months
    }
    if options.json:
        print(json.dumps(found, indent=2))
        return
    for name, figures in found.items():
        print(
            f"{name:24} coverage {figures['coverage']:.3f}, interval {figures['median_width_months']:.0f} months wide"
        )


if __name__ == "__main__":
    main()
