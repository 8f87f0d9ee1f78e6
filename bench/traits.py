"""What analysis and reports have to know of workloads and experiments; stored with each run."""

from collections.abc import Mapping
from enum import StrEnum

from tare.bench.model import Struct


class Category(StrEnum):
    """What a workload loads, and so the section of a report that it stands in."""

    CPU = "cpu"
    MEMORY = "memory"
    KERNEL = "kernel"
    STORAGE = "storage"
    NETWORK = "network"
    APPLICATION = "application"


class Parameter(Struct, frozen=True):
    """What people call the parameter ``name`` of a workload or experiment: ``Block size``.

    ``values`` are words for single values (``randread``: ``random``), to be used inside a metric's title.
    """

    name: str
    title: str
    values: Mapping[str, str] = {}


class WorkloadTraits(Struct, frozen=True):
    """What a report has to know of a workload. ``fixed_time``: its command takes the time it was told to take.

    ``title`` is what people call it, ``parameters`` what they call its parameters.
    """

    category: Category
    fixed_time: bool
    title: str = ""
    parameters: tuple[Parameter, ...] = ()


class ExperimentTraits(Struct, frozen=True):
    """What analysis and reports have to know of an experiment; metrics by name, or by a beginning that ends with a dot.

    ``title`` heads its section. With ``of_workload`` its values are the workload's own, and stand in the section of the
    workload's category. ``known_by`` is the metric by which a cell is judged as a whole (precision, noise floor,
    warm-up); empty for the first declared. ``leading`` are the metrics of the first table; empty for that one.
    ``details`` are metrics that are told without figures.

    With ``warms_up`` iterations repeat the same thing, so that the first may be warm-up. Where ``grows_with`` is not
    empty, the ``iteration`` of a sample is a size, and this is what it counts ("instances alive"). A metric is then
    estimated at the largest size that all backends reached, but for those ``of_each_step``, which have a typical value.
    ``parameters`` are what people call its options.
    """

    title: str
    of_workload: bool = False
    known_by: str = ""
    leading: tuple[str, ...] = ()
    details: tuple[str, ...] = ()
    warms_up: bool = True
    grows_with: str = ""
    of_each_step: tuple[str, ...] = ()
    parameters: tuple[Parameter, ...] = ()

    def is_sized(self, metric: str) -> bool:
        """Whether a metric's value depends on the size that ``iteration`` counts."""
        return bool(self.grows_with) and metric not in self.of_each_step
