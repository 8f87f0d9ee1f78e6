"""The contracts between the harness and its plug-ins: backends, workloads, experiments, reporters.

A plug-in registers a class in the entry-point group ``tare.backends``, ``tare.workloads``, ``tare.experiments`` or
``tare.reporters``; the built-ins do the same. ``tare.bench.testing`` holds what a backend has to pass.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Annotated, Any, ClassVar, Protocol

import msgspec

from tare.bench.engine import EngineShare
from tare.bench.errors import UnsupportedError
from tare.bench.ledger import Ledger
from tare.bench.model import (
    Availability,
    BackendDescription,
    Command,
    Commands,
    Completed,
    Diagnosis,
    Envelope,
    Footprint,
    Histogram,
    Image,
    InstanceSpec,
    Measurement,
    Metric,
    StartTimeline,
    Usage,
)
from tare.bench.network_path import ServerPlace
from tare.bench.traits import Category, ExperimentTraits, Parameter


class NoOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The options or parameters of a plug-in that has none."""


class BackendContext(msgspec.Struct, frozen=True):
    """What a backend gets from the harness.

    ``work_directory`` lies on the suite's storage; overlays, disks and scratch folders go there, each
    entered in ``ledger`` before it is made. ``cache_directory`` outlives runs (proofs, probes).
    ``options`` is a value of the backend's ``Options``. ``housekeeping_cpus`` are the host CPUs that are
    not the envelope's: helpers that are not part of an instance's cost belong there.
    """

    ledger: Ledger
    work_directory: Path
    cache_directory: Path
    options: Any
    housekeeping_cpus: tuple[int, ...]


class Proved(msgspec.Struct, frozen=True):
    """What a backend tried out on this host: its outcome, and by name all that was seen, for whoever was not there."""

    outcome: Availability
    texts: Mapping[str, str] = {}


class Terminal(Protocol):
    """The user's terminal, in raw mode: what is typed goes to the instance as it is."""

    def size(self) -> bytes:
        """Its size as a ``struct winsize``, which a terminal inside begins with."""

    def relay(self, pty: int, ended: int) -> None:
        """Pass bytes both ways between the user and the master side ``pty`` of a terminal, and sizes to it.

        Until the descriptor ``ended`` is readable; what is left in ``pty`` is passed on first. Returns earlier if the
        user's terminal is gone.
        """


class Instance(ABC):
    """One live isolated environment. Made by ``Backend.start``; not thread-safe.

    ``address`` is the IPv4 address at which other instances of its backend reach it, and so does the backend's host
    side: one of its own, or the host's loopback where it shares the host's network. None where none reaches it.
    """

    timeline: StartTimeline
    address: str | None = None

    @abstractmethod
    def execute(self, command: Command) -> Completed:
        """Run ``command`` to its end and return how it ended.

        stdin, stdout and stderr are binary; of a stream beyond ``KEPT_BYTES``, ``Completed.whole`` has all
        (``tare.bench.spool``). A program that does not exist ends with
        returncode 127, one that is not executable with 126. On timeout the whole process tree of the
        command is killed and the instance stays usable. Raises BackendError if the instance itself failed, and
        WorkloadError if the command printed more than ``MAX_OUTPUT_BYTES``; the instance is of no use then.
        """

    def interact(self, command: Command, terminal: Terminal) -> Completed:
        """Run ``command`` on a terminal inside, relayed to the user's ``terminal``, to its end; without a timeout.

        Optional: backends that have it say so by ``Backend.interactive``. What it prints is not kept. Raises
        UnsupportedError, or what ``execute`` raises.
        """
        del command, terminal
        raise UnsupportedError("this backend's instances have no terminal", remedy="use `tare exec`")

    def end(self) -> None:  # noqa: B027 - optional
        """Begin to end it and return at once; leaving its context then has less to wait for.

        For whoever stops many: all of them end at the same time. It is of no use from now on.
        """

    def await_idle(self) -> None:  # noqa: B027 - optional
        """Wait until memory that only its start needed is given back, if that takes a moment."""

    def gone_descriptor(self) -> int | None:
        """A descriptor that polls as readable once the instance has ended by itself; None if there is none.

        Optional, for whoever keeps many: it stays the instance's, and says nothing while a command runs.
        """
        return None

    @abstractmethod
    def usage(self) -> Usage:
        """What this instance has cost the host since it started, everything included."""

    def engine_share(self) -> EngineShare | None:
        """What the engine that made it costs, its helpers' part and its daemons'; None where there is no engine."""
        return None

    def engine_running_s(self) -> float | None:
        """When the engine itself calls it running, by its state or an event, on the host's monotonic clock.

        None where there is no engine, or it does not say. Raises BackendError.
        """
        return None

    def time_exec(self) -> float | None:
        """Seconds of one ``/bin/true`` by the engine's own exec; None where there is no engine, or it has none.

        Raises BackendError.
        """
        return None

    def guest_steal_s(self) -> float | None:
        """CPU time that others had when it wanted it, as its own kernel counts since it started; None without one.

        Asks the guest: for before and after a measured command. Raises BackendError if it does not answer.
        """
        return None

    @abstractmethod
    def footprint(self) -> Footprint:
        """What this instance holds on the host now."""


class Backend(ABC):
    """Makes instances of one kind of isolation. One object serves one run.

    ``minimum_memory_bytes`` is the least an envelope may state for it; a smaller one is refused when
    the suite is read.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    Options: ClassVar[type[msgspec.Struct]] = NoOptions
    minimum_memory_bytes: ClassVar[int] = 16 * 2**20
    optional: ClassVar[bool] = False
    """Whether a host is complete without it: `tare doctor` names it then, and does not count it as a failure."""
    interactive: ClassVar[bool] = False
    """Whether its instances have ``interact``."""
    concurrent_starts: ClassVar[int] = 1
    """From how many threads at most ``start`` may be entered at the same time."""

    def __init__(self, context: BackendContext) -> None:
        self.context = context

    def expect_starts(self, at_once: int) -> None:  # noqa: B027 - most backends need nothing
        """Make what this many starts at the same time need, so that its cost is not charged to an instance."""

    @classmethod
    def packages(cls, options: Any) -> tuple[str, ...]:  # noqa: ARG003 - for overriding
        """The Debian packages that instances with ``options`` (a value of ``Options``) need in the image."""
        return ()

    @classmethod
    def check_server(cls, options: Any, place: ServerPlace) -> None:
        """Called when the suite is read: raises ValueError, with the option's name, where ``place`` cannot be reached.

        For ``options`` (a value of ``Options``), and a workload whose services are to run there.
        """
        del options, place

    @classmethod
    def check(cls, options: Any, envelope: Envelope) -> None:
        """Refuse ``options`` that cannot be had in ``envelope`` on this host, before anything is started.

        Raises ValueError that begins with the key. What ``Options`` refuses by itself needs no envelope.
        """
        del options, envelope

    @abstractmethod
    def probe(self) -> Availability:
        """Whether this backend can work here. Never raises for absence: says why not, and how to get it."""

    def facilities(self) -> tuple[tuple[str, Availability], ...]:
        """What its options can use on this host, by name, for whoever looks at the host. Never raises for absence."""
        return ()

    def prove(self, image: Image | None, *, verbose: bool = False) -> Proved | None:
        """Try out now what ``prepare`` finds out once a host, whatever is known; None if there is nothing like that.

        ``image`` is what it is tried with, None if there is none yet. ``verbose`` asks for all that can be seen of it.
        Never raises for absence.
        """
        del image, verbose
        return None

    def forget(self) -> None:  # noqa: B027 - most backends know nothing of the host
        """Forget what was found out about this host, so that the next ``prepare`` finds it out again."""

    @abstractmethod
    def prepare(self, image: Image, envelope: Envelope) -> BackendDescription:
        """Everything done once per run (helpers started, proofs made); not part of any measured start.

        Raises UnavailableError or BackendError.
        """

    @abstractmethod
    def start(self, spec: InstanceSpec) -> AbstractContextManager[Instance]:
        """Start a fresh instance; leaving the context stops it and removes all it had.

        On entry the timeline holds requested, created, first_instruction and ready, each later than the one before, as
        they were read and not as they should have been; after exit also stop_requested,
        process_gone where it can be distinguished from what follows, and stopped. Raises BackendError with evidence,
        having undone what was done.
        """

    def host_side(self, spec: InstanceSpec) -> AbstractContextManager[Instance]:
        """An environment on the host, on the same network as this backend's instances and without their isolation.

        For the other end of what is measured: it runs programs of the image on the housekeeping CPUs, and what it costs
        is no cost of an instance. Optional: raises UnsupportedError where the instances have no network.
        """
        del spec
        raise UnsupportedError(f"the backend {self.name} offers no environment on the host's side of its network")

    def explain(self, spec: InstanceSpec) -> list[str]:
        """The steps of starting ``spec``, in their order and in words, taking none of them; empty if it offers none.

        Needs neither ``prepare`` nor privileges. Paths stand for those of a real start.
        """
        del spec
        return []

    @classmethod
    def reclaim(cls, target: str) -> bool:
        """Remove what this backend entered in the ledger as ``target``, after its owner was killed.

        For what no ResourceKind describes, such as a container that a daemon keeps: entered with
        ``ledger.enter("container", target, backend=cls.name)`` before it is made. ``target`` alone has to suffice:
        there are no options. Called for dead owners only, perhaps more than once, by ``tare clean`` and by every
        command that starts instances. Returns whether it was there. If it raises, the entry is kept and the error is
        shown.
        """
        raise UnsupportedError(f"the backend {cls.name} does not take {target} back")

    def close(self) -> None:  # noqa: B027 - nothing to end is the common case
        """End what ``prepare`` started. Safe to call at any time, more than once."""


class Workload(ABC):
    """Builds the commands to run and parses their output. Pure: executes nothing, touches no file.

    ``packages`` are the Debian packages that the image needs for it; one of PyPI is named with its version, like
    ``pypi:pyperf==2.10.0`` (pure Python, without its dependencies). ``metrics`` declares every metric
    that ``parse`` can return, the one that says most first. ``category`` is the section of the report that it stands
    in. ``fixed_time`` says that the measured command takes the time it was told to, so that how long it took is no
    result. ``title`` is what reports call it, ``parameters`` what they call its parameters.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    title: ClassVar[str] = ""
    parameters: ClassVar[tuple[Parameter, ...]] = ()
    metrics: ClassVar[tuple[Metric, ...]]
    packages: ClassVar[tuple[str, ...]] = ()
    licence: ClassVar[str] = ""
    category: ClassVar[Category] = Category.APPLICATION
    fixed_time: ClassVar[bool] = False
    Params: ClassVar[type[msgspec.Struct]] = NoOptions

    @abstractmethod
    def commands(self, params: Any, envelope: Envelope) -> Commands:
        """The commands for ``params`` (a value of ``Params``) within ``envelope``.

        Called when the suite is read, too: raises WorkloadError or ValueError, with the key, for what does not fit.
        """

    @abstractmethod
    def parse(self, completed: Completed) -> list[Measurement]:
        """The measurements in one iteration's output, in base units.

        Raises ParseError with the offending text if the output is not what the tool's known versions
        print; never returns a guess.
        """

    def histograms(self, completed: Completed) -> list[Histogram]:  # noqa: ARG002 - for overriding
        """The distributions in one iteration's output that ``parse`` has accepted, in base units. Raises ParseError."""
        return []

    def diagnose(self, completed: Completed) -> Diagnosis | None:  # noqa: ARG002 - for overriding
        """Why one of its commands failed, where its output shows a cause that is known; None if it does not."""
        return None

    @classmethod
    def duration_s(cls, params: Any) -> float:  # noqa: ARG003 - for overriding
        """About how long the measured command takes on bare metal, for the progress display's first estimate."""
        return 1.0


class WorkloadSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The keys that every ``[[workload]]`` of a suite may have, whatever its kind.

    ``packages`` are the Debian packages that the image needs for it, ``category`` is its section in the report, and
    ``title`` what the report calls it.
    """

    name: Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$", max_length=40)]
    summary: str = ""
    packages: tuple[str, ...] = ()
    category: Category = Category.APPLICATION
    licence: str = ""
    title: str = ""


class WorkloadKind(ABC):
    """Makes workloads of what suites state under ``[[workload]]``, so that a user needs no Python.

    A section is of the kind whose ``name`` is one of its keys. ``Section`` has the keys that it may have, and refuses
    wrong values by itself: ``ValueError`` in ``__post_init__``, beginning with the key.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    Section: ClassVar[type[WorkloadSection]]

    def complete(self, section: Any, folder: Path) -> Any:
        """``section`` with all that it takes from files (relative to ``folder``, the suite's) read into it.

        What is returned is kept in the manifest, and makes the same workload where the files are gone. Raises
        ValueError that begins with the key, OSError.
        """
        del folder
        return section

    @abstractmethod
    def make(self, section: Any) -> type[Workload]:
        """The workload of a complete ``section`` (a value of ``Section``)."""


class InstanceRun(Protocol):
    """One planned instance, as the runner offers it to an experiment.

    ``iterations`` counts the warm-ups too; ``is_warmup`` tells them apart. ``options`` is a value of the
    experiment's ``Options``. ``concurrent_starts`` is that of the cell's backend.
    """

    image: Image
    workload: Workload | None
    params: Any
    options: Any
    envelope: Envelope
    iterations: int
    concurrent_starts: int

    def is_warmup(self, iteration: int) -> bool:
        """Whether this iteration is a warm-up: kept, flagged, left out of estimates."""

    def start(self, envelope: Envelope | None = None) -> AbstractContextManager[Instance]:
        """Start an instance, in ``envelope`` where it is not the suite's. Leaving the context stops it.

        May be called again while earlier ones live, and entered from ``concurrent_starts`` threads at a time; all
        that enter together have one envelope, and one thread leaves them.
        """

    def expect_starts(self, at_once: int) -> None:
        """See ``Backend.expect_starts``."""

    def balanced_order(self, count: int) -> tuple[int, ...]:
        """An order of the numbers below ``count`` for what is measured in turn in one instance.

        Balanced over the blocks as that of backends is, random by the run's seed, and in a block the same on each.
        """

    def start_host_side(self) -> AbstractContextManager[Instance]:
        """The host's side of the cell's backend (``Backend.host_side``); what it costs is not counted.

        Raises UnsupportedError where the backend has none.
        """

    def execute(self, instance: Instance, command: Command, role: str) -> tuple[Completed, str]:
        """Run a command, keep its whole output, and return how it ended with the name of the kept output.

        Raises WorkloadError if it failed or timed out.
        """

    def keep(self, command: Command, completed: Completed, role: str) -> str:
        """Keep what ``Instance.execute`` returned elsewhere, as ``execute`` does; returns the name of the output.

        Raises WorkloadError if it failed or timed out. For one thread, whichever ran the command.
        """

    def note(self, code: str, message: str, details: Mapping[str, Any]) -> None:
        """Keep an observation that is no number, as an event. ``code`` is stable: what it is about."""

    def record(self, metric: Metric, value: float | None, *, iteration: int | None = None, raw: str = "") -> None:
        """Keep a value of a metric, of one iteration or (None) of the instance as a whole.

        None is a value that this host cannot know: nothing is kept, the reason is among the confounds. Raises
        WorkloadError if it is not a finite number.
        """

    def record_histogram(self, histogram: Histogram, *, iteration: int, raw: str) -> None:
        """Keep a distribution that the tool reported in one iteration."""


class Experiment(ABC):
    """A procedure that turns one fresh instance into samples.

    ``traits`` is what reports know of it. ``metrics`` are the metrics that the experiment itself measures, next to the
    workload's. Where ``needs_workload`` is False, ``takes_workload`` says whether it can do with one. ``Options`` is
    what a suite can choose about it.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    needs_workload: ClassVar[bool]
    takes_workload: ClassVar[bool] = False
    traits: ClassVar[ExperimentTraits]
    metrics: ClassVar[tuple[Metric, ...]]
    Options: ClassVar[type[msgspec.Struct]] = NoOptions

    @classmethod
    def metrics_with(cls, workload: type[Workload] | None) -> tuple[Metric, ...]:  # noqa: ARG003 - few depend on it
        """``metrics``, and those that follow from the workload's."""
        return cls.metrics

    @classmethod
    def check(cls, options: Any, commands: Commands | None) -> None:
        """Called when the suite is read: raises ValueError, with the option's name, for what does not fit.

        ``commands`` are the workload's; None without one.
        """
        del options, commands

    @classmethod
    def server_place(cls, options: Any) -> ServerPlace:
        """Where a workload's services are to run."""
        del options
        return ServerPlace.SAME_INSTANCE

    def prime(self, run: InstanceRun) -> None:
        """Use once what measured instances will use: before the first block, on each backend, for one of its cells.

        What it records is not kept, ``run.start`` may return an instance that was used, and ``run.iterations`` is 1. By
        default an instance executes one command. Raises as ``run`` does.
        """
        with run.start() as instance:
            if not run.image.lacks("bin/true"):
                run.execute(instance, Command(("/bin/true",)), "prime")

    @abstractmethod
    def run(self, run: InstanceRun) -> None:
        """Start the instance, measure, stop it. Raises BackendError or WorkloadError if it could not."""
