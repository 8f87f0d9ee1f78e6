"""The procedures that can be run over backends, by the name a suite calls them."""

from tare.bench.experiments.base import Experiment, InstanceRun
from tare.bench.experiments.boot import Boot
from tare.bench.experiments.density import Density
from tare.bench.experiments.interference import Interference
from tare.bench.experiments.limits import Limits
from tare.bench.experiments.steady import Steady

EXPERIMENTS: dict[str, type[Experiment]] = {kind.name: kind for kind in (Boot, Density, Interference, Limits, Steady)}

__all__ = ["EXPERIMENTS", "Experiment", "InstanceRun"]
