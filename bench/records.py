"""What is stored of a run, as immutable values: its manifest, and the lines of its samples, distributions and events.

All times called ``*_s`` that are points in time are readings of the host's CLOCK_MONOTONIC.
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import Any

from tare.bench.catalogue import ConfoundCode
from tare.bench.model import Availability, BackendDescription, Confound, Envelope, Fact, Histogram, Metric, Struct
from tare.bench.traits import ExperimentTraits, WorkloadTraits
from tare.bench.units import Unit

SCHEMA_VERSION = 2
"""Of the stored run: it rises when what is stored changes its meaning (``stored`` reads what is older)."""


class Cell(Struct, frozen=True):
    """One point of the design. ``backend`` is its name in the suite; ``workload`` is empty for ``boot``.

    ``host`` is the fingerprint of the host, empty where there is only one.
    """

    experiment: str
    workload: str
    params: Mapping[str, Any]
    backend: str
    host: str = ""

    @property
    def key(self) -> str:
        """A stable identifier of the cell within its run."""
        return f"{self.subject}/{self.backend}"

    @property
    def subject(self) -> str:
        """What is compared across backends: the cell without its backend."""
        given = ",".join(f"{name}={value}" for name, value in sorted(self.params.items()))
        return "/".join(part for part in (self.experiment, self.workload, given) if part)


class PlannedInstance(Struct, frozen=True):
    """One fresh instance of a cell in a block: the unit of replication, and of resuming."""

    identifier: str
    block: int
    index: int
    cell: Cell


class Sample(Struct, frozen=True, omit_defaults=True):
    """One value of one metric of one iteration, as a line of ``samples.jsonl``.

    ``iteration`` counts from 0; ``warmup`` iterations are kept and left out of estimates. ``raw`` names
    the file under the run directory that holds the command's whole output, or is empty where the value
    value came from a mark or a meter. ``host`` is the fingerprint of its host, which the manifest holds and no line.
    ``number`` counts the samples of the instance from 1, so that no line counts twice; it is in the file only, and 0 in
    runs from before there was one.
    """

    instance: str
    block: int
    experiment: str
    workload: str
    params: Mapping[str, Any]
    backend: str
    metric: str
    unit: Unit
    value: float
    iteration: int
    warmup: bool
    raw: str = ""
    host: str = ""
    number: int = 0


class HistogramRecord(Struct, frozen=True):
    """A distribution of one iteration, as a line of ``histograms.jsonl``. The fields are those of ``Sample``."""

    instance: str
    block: int
    experiment: str
    workload: str
    params: Mapping[str, Any]
    backend: str
    iteration: int
    warmup: bool
    histogram: Histogram
    raw: str = ""
    number: int = 0


class EventKind(StrEnum):
    """What an event line tells."""

    RUN_STARTED = "run_started"
    RUN_RESUMED = "run_resumed"
    RUN_ENDED = "run_ended"
    INSTANCE_STARTED = "instance_started"
    INSTANCE_DONE = "instance_done"
    INSTANCE_FAILED = "instance_failed"
    COMMAND = "command"
    NOTE = "note"


class Event(Struct, frozen=True):
    """One line of ``events.jsonl``: what happened, when (host monotonic and UTC), to which instance."""

    kind: EventKind
    at_s: float
    utc: str
    instance: str = ""
    cell: str = ""
    message: str = ""
    details: Mapping[str, Any] = {}

    @property
    def note_code(self) -> str:
        """What a note is about; empty for other events and for notes without a code."""
        return str(self.details.get("code", "")) if self.kind is EventKind.NOTE else ""


class RunStatus(StrEnum):
    """How a run stands."""

    RUNNING = "running"
    COMPLETE = "complete"
    INTERRUPTED = "interrupted"


class Fingerprint(Struct, frozen=True):
    """Which host a run was made on: ``digest`` names it, ``made_from`` says by what."""

    digest: str = ""
    made_from: Mapping[str, str] = {}


class Origin(Struct, frozen=True):
    """What a run was made for.

    ``labels`` are the user's own. ``suite_file`` is where the suite was read, ``revision`` the git commit of its
    folder, with ``-dirty`` if files differ from it; empty outside a checkout. ``confirms`` names the run whose
    suspicious cells this one measured again, ``bridges`` the earlier run whose image and options it measured next to
    the present ones.
    """

    labels: Mapping[str, str] = {}
    suite_file: str = ""
    revision: str = ""
    confirms: str = ""
    bridges: str = ""


class Manifest(Struct, frozen=True):
    """``manifest.json``: everything about a run that is not a sample.

    ``suite`` is the suite as resolved (defaults filled in). ``backends`` is keyed by the backend's name
    in the suite; a backend that was asked for and is not available stands in ``unavailable``.
    ``metrics`` is keyed by ``workload/metric`` or ``experiment/metric``, ``workloads`` and ``experiments`` by name;
    ``workloads`` is empty in runs from before there were traits. ``precision`` is what was asked of the subjects
    (``Cell.subject``) that are sampled until they reach it. ``fingerprint`` is the host's; it is empty in runs of
    schema 1. ``tare_commit`` is empty outside a checkout. ``plugins`` says which distributions brought the plug-ins
    that were used (``{"workload mine": "my-plugins 1.2"}``). ``origin`` says what the run was made for.
    """

    schema_version: int
    run: str
    tare_version: str
    status: RunStatus
    seed: int
    started_utc: str
    ended_utc: str
    suite: Mapping[str, Any]
    envelope: Envelope
    image: Mapping[str, Any]
    host: tuple[Fact, ...]
    host_summary: str
    backends: Mapping[str, BackendDescription]
    unavailable: Mapping[str, Availability]
    confounds: tuple[Confound, ...]
    metrics: Mapping[str, Metric]
    planned_instances: int
    command_line: tuple[str, ...] = ()
    baseline: str = "bare-metal"
    workloads: Mapping[str, WorkloadTraits] = {}
    precision: Mapping[str, float] = {}
    fingerprint: Fingerprint = Fingerprint()
    experiments: Mapping[str, ExperimentTraits] = {}
    tare_commit: str = ""
    plugins: Mapping[str, str] = {}
    origin: Origin = Origin()

    @property
    def is_host_emulated(self) -> bool:
        """Whether the host's own processor is a program: no time measured there says anything about hardware."""
        return any(found.code == ConfoundCode.HOST_EMULATED for found in self.confounds)

    def traits_of(self, experiment: str) -> ExperimentTraits:
        """The traits of one of its experiments; of one that it does not have, those of no particular kind."""
        return self.experiments.get(experiment) or ExperimentTraits(
            experiment.replace("_", " ").capitalize(), warms_up=False
        )
