"""How good the packing is: against the optimum of small random mixes, and how long a large one takes.

The optimum is an integer program (scipy.optimize.milp, HiGHS): instances of each type on each host, hosts used or not.
A mix whose optimum HiGHS does not prove in time is counted as unproved, and its bound is checked against HiGHS' own.
"""

import argparse
import json
import math
import time

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp

from tare.bench.analysis.cost import Estimate
from tare.bench.analysis.density import DensityCell, fit_cell
from tare.bench.capacity.hosts import HostType, Resource
from tare.bench.capacity.instances import Basis, InstanceLimits, InstanceType, Need
from tare.bench.capacity.packing import Demand, pack
from tare.bench.model import BackendDescription, IsolationKind

BARE = {Resource.MEMORY: 0.0, Resource.CPU: 0.0, Resource.DISK: 0.0}
TIME_LIMIT_S = 10.0


def make_demand(name: str, memory: float, cpu: float, instances: int) -> Demand:
    """Instances that take exactly ``memory`` bytes and ``cpu`` CPUs each."""
    result = fit_cell(DensityCell("native", "", {}, ({"density.start": ((50, 0.1),)},), ()))
    needs = tuple(
        Need(resource, Estimate(each, each, each), by_limit=False)
        for resource, each in ((Resource.MEMORY, memory), (Resource.CPU, cpu))
    )
    return Demand(
        InstanceType(
            name=name,
            result=result,
            backend=BackendDescription("native", IsolationKind.CONTAINER),
            run="",
            basis=Basis.MEASURED,
            limits=InstanceLimits(1.0, 1.0, 1.0),
            needs=needs,
            host_limits=(),
            cpus_measured=1,
        ),
        instances,
    )


def random_mix(random: np.random.Generator) -> tuple[list[Demand], HostType]:
    """Two to four types, six to thirty instances, on hosts of 32 CPUs and 64 units of memory."""
    host = HostType("h", 32, 64, reserve=BARE)
    types = int(random.integers(2, 5))
    return [
        make_demand(
            str(place), float(random.integers(2, 33)), float(random.integers(1, 17)), int(random.integers(2, 9))
        )
        for place in range(types)
    ], host


def optimum(demands: list[Demand], host: HostType, most: int) -> tuple[int, float]:
    """The fewest hosts, at most ``most``, and the bound that is proved. Both are the optimum where it is proved."""
    each = np.array([[need.each.per_instance for need in one.type.needs] for one in demands])
    there = np.array([host.memory, host.cpus], dtype=float)
    wanted = np.array([one.instances for one in demands])
    types, hosts = len(demands), most
    size = hosts * types + hosts
    cost = np.concatenate([np.zeros(hosts * types), np.ones(hosts)])
    rows, low, high = [], [], []
    for place in range(types):
        row = np.zeros(size)
        row[[number * types + place for number in range(hosts)]] = 1
        rows.append(row), low.append(wanted[place]), high.append(wanted[place])
    for number in range(hosts):
        for pool in range(len(there)):
            row = np.zeros(size)
            row[number * types : (number + 1) * types] = each[:, pool]
            row[hosts * types + number] = -there[pool]
            rows.append(row), low.append(-np.inf), high.append(0)
    for number in range(1, hosts):  # hosts are alike: the used ones come first
        row = np.zeros(size)
        row[hosts * types + number], row[hosts * types + number - 1] = 1, -1
        rows.append(row), low.append(-np.inf), high.append(0)
    upper = np.concatenate([np.tile(wanted, hosts), np.ones(hosts)])
    found = milp(
        cost,
        constraints=LinearConstraint(np.array(rows), low, high),
        integrality=np.ones(size),
        bounds=Bounds(0, upper),
        options={"time_limit": TIME_LIMIT_S},
    )
    best = most if found.fun is None else round(found.fun)
    return best, float(best if found.status == 0 else found.mip_dual_bound)


def small_mixes(seed: int, mixes: int) -> dict[str, float]:
    """Of random mixes, how far the packing is from the optimum, and whether the stated bound ever lies above it."""
    random = np.random.default_rng(seed)
    above, unproved, wrong = [], 0, 0
    for _ in range(mixes):
        demands, host = random_mix(random)
        packing = pack(demands, [host])
        best, bound = optimum(demands, host, packing.hosts)
        unproved += bound < best
        wrong += packing.bound is not None and packing.bound > best
        above.append(packing.hosts - math.ceil(bound - 1e-6))
    within = float(np.mean(np.array(above) <= 1))
    return {
        "mixes": mixes,
        "within_one_host": within,
        "optimal": float(np.mean(np.array(above) == 0)),
        "most_above": max(above),
        "bound_above_optimum": wrong,
        "unproved": unproved,
    }


def large_mix(seed: int) -> dict[str, float]:
    """50,000 instances of 12 types on 8 types of hosts."""
    random = np.random.default_rng(seed)
    demands = [
        make_demand(
            str(place),
            float(random.uniform(0.25, 16)),
            float(random.uniform(0.1, 4)),
            50_000 // 12 + (place < 50_000 % 12),
        )
        for place in range(12)
    ]
    hosts = [
        HostType(
            f"h{place}",
            float(random.integers(16, 129)),
            int(random.integers(64, 1025)),
            count=None if place == 7 else 200,
            reserve=BARE,
        )
        for place in range(8)
    ]
    start = time.perf_counter()
    packing = pack(demands, hosts)
    return {"seconds": time.perf_counter() - start, "hosts": packing.hosts, "left": sum(packing.left.values())}


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--mixes", type=int, default=1000)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found = {"small": small_mixes(options.seed, options.mixes), "large": large_mix(options.seed)}
    if options.json:
        print(json.dumps(found, indent=2))
        return
    small, large = found["small"], found["large"]
    print(
        f"within one host of the optimum: {100 * small['within_one_host']:.1f} % of {options.mixes} mixes (bar: 95 %)"
    )
    print(f"optimal: {100 * small['optimal']:.1f} %; most above: {small['most_above']}; unproved: {small['unproved']}")
    print(f"stated bound above the optimum: {small['bound_above_optimum']} (bar: 0)")
    print(f"50,000 instances, 12 types, 8 host types: {large['seconds']:.2f} s (bar: 10), {large['hosts']:,.0f} hosts")


if __name__ == "__main__":
    main()
