"""The procedures that can be run over backends, by the name a suite calls them."""

from bench.experiments.base import Experiment, InstanceRun
from bench.experiments.boot import Boot
from bench.experiments.density import Density
from bench.experiments.interference import Interference
from bench.experiments.limits import Limits
from bench.experiments.steady import Steady

EXPERIMENTS: dict[str, type[Experiment]] = {kind.name: kind for kind in (Boot, Density, Interference, Limits, Steady)}

__all__ = ["EXPERIMENTS", "Experiment", "InstanceRun"]
