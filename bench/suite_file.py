"""The sections of a suite file as they are written, with their defaults; ``suite`` checks and resolves them."""

from collections.abc import Mapping
from typing import Any

import msgspec

from tare.bench.settings import DEFAULT_MARGIN


class Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of the sections of a suite file: unknown keys are refused."""


class SuiteHead(Section, frozen=True):
    """``[suite]``: what the report is called and says it asks."""

    name: str
    description: str = ""


class ImageSection(Section, frozen=True):
    """``[image]``: packages beyond what the workloads declare, or an image that was imported or built before."""

    packages: tuple[str, ...] = ()
    use: str = ""


class EnvelopeSection(Section, frozen=True):
    """``[envelope]``: the resources of an instance. ``cpus`` is a number of CPUs, or a list of host CPU numbers."""

    cpus: int | tuple[int, ...] = 1
    memory: str = "512MiB"
    scratch: str = "256MiB"
    pids: int = 512
    storage: str = ""
    swap: str = "0"
    cpu_quota: float | None = None
    cpu_weight: int | None = None
    io_read_bytes_per_s: str | None = None
    io_write_bytes_per_s: str | None = None
    io_read_ops_per_s: int | None = None
    io_write_ops_per_s: int | None = None


class Sampling(Section, frozen=True):
    """``[sampling]``: blocks, fresh instances of a cell in a block, iterations in an instance, warm-ups before them.

    With a ``precision`` (0 or None: without), ``blocks`` is the least, and more follow until the leading metric of each
    cell is known so exactly, ``max_time`` of measuring is spent, or ``max_blocks`` were run.
    """

    seed: int = 1
    blocks: int = 5
    instances: int = 1
    iterations: int = 3
    warmup: int = 1
    precision: float | None = None
    max_time: str = "10m"
    max_blocks: int | None = None


class ReportSection(Section, frozen=True):
    """``[report]``: the margin of metrics that have none of their own, and the backend that others are compared with.

    Without a ``baseline``: bare metal if there is any, else the first backend.
    """

    margin: float = DEFAULT_MARGIN
    baseline: str = ""


class MetricSection(Section, frozen=True):
    """``[metric."fio/read.iops"]``: a metric's own margin, and quantiles to estimate beside its median."""

    margin: float | None = None
    quantile: float | tuple[float, ...] = ()


class BackendSection(Section, frozen=True):
    """``[[backend]]``: ``type`` is a registered backend, ``name`` what this suite calls it (the type unless given)."""

    type: str
    name: str = ""
    options: Mapping[str, Any] = {}


class ExperimentSection(Section, frozen=True):
    """``[[experiment]]``: a procedure, the workload it needs, and counts where they differ from ``[sampling]``."""

    kind: str
    workload: str = ""
    params: Mapping[str, Any] = {}
    options: Mapping[str, Any] = {}
    blocks: int | None = None
    instances: int | None = None
    iterations: int | None = None
    warmup: int | None = None
    precision: float | None = None
    max_blocks: int | None = None


class SuiteFile(Section, frozen=True):
    """A suite file as written."""

    suite: SuiteHead
    backend: tuple[BackendSection, ...]
    experiment: tuple[ExperimentSection, ...]
    image: ImageSection = ImageSection()
    envelope: EnvelopeSection = EnvelopeSection()
    sampling: Sampling = Sampling()
    report: ReportSection = ReportSection()
    metric: Mapping[str, MetricSection] = {}
    workload: tuple[Mapping[str, Any], ...] = ()
    """``[[workload]]``: the suite's own, each with the keys of its kind (``tare.bench.own_workloads``)."""
