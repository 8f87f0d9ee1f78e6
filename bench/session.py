"""One execution of a suite from end to end: clean, probe, image, prepare, measure, close.

Everything the command line's ``run`` does except printing; raises what it cannot go on from.
"""

import contextlib
import os
import re
import secrets
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from tare.bench.adaptive import Sampler, run_until_precise
from tare.bench.cleaning import clean_up
from tare.bench.design import make_design
from tare.bench.errors import BackendError, RunDirectoryError, StoreError, SuiteError, TareError, UnavailableError
from tare.bench.history.bridges import bridged_suite, require_bridge
from tare.bench.host import host_confounds, host_fingerprint, read_facts, summarise
from tare.bench.host_lock import measuring
from tare.bench.image import ImageStore, Recipe
from tare.bench.interfaces import Backend, BackendContext
from tare.bench.interrupts import check, held, interruptible
from tare.bench.ledger import Ledger, work_folder
from tare.bench.linux.cpus import format_cpus
from tare.bench.linux.files import HostRoots
from tare.bench.locations import cache_directory, free_bytes, ledger_directory, runs_directory, work_directory
from tare.bench.model import Availability, BackendDescription, Confound, Envelope, Image, IsolationKind, named_facts
from tare.bench.priming import prime
from tare.bench.readable import readable
from tare.bench.records import SCHEMA_VERSION, EventKind, Manifest, Origin, RunStatus
from tare.bench.registry import find_backends, find_workloads, origins_of
from tare.bench.runner import Display, Outcome, Runner, make_event
from tare.bench.service import resolve_service
from tare.bench.store import LoadedRun, Progress, RunStore, find_progress, load_manifest, load_run
from tare.bench.suite import BackendChoice, Suite, bind_suite, resolve_suite
from tare.bench.suite_file import read_source
from tare.bench.traits import WorkloadTraits
from tare.bench.tune.journal import journal_file, tuned_facts
from tare.bench.version import commit_of, tare_commit, tare_version

_NO_ORIGIN = Origin()


class RunRequest(msgspec.Struct, frozen=True):
    """What the user asked for.

    ``output`` is the folder of the run, made if missing; None means ``DATE-SUITE`` in the folder of runs. ``source`` is
    a suite without a file; ``suite`` is then what its errors name as their place. Of ``origin`` what the suite's file
    does not say. ``bridge`` is an earlier run, whose image and options are measured next to the suite's in every block.
    """

    suite: Path
    output: Path | None = None
    only: tuple[str, ...] = ()
    seed: int | None = None
    source: Mapping[str, Any] | None = None
    origin: Origin = Origin()
    bridge: Path | None = None


class RunResult(msgspec.Struct, frozen=True):
    """A run that ended: where it lies and how it went."""

    path: Path
    outcome: Outcome
    unavailable: Mapping[str, Availability]


def start_run(request: RunRequest, display: Display) -> RunResult:
    """Run a suite from its beginning. Raises TareError for what no cell can be measured without."""
    source = read_source(request.suite) if request.source is None else request.source
    plugins = find_backends(), find_workloads()
    spec = resolve_suite(source, request.suite, *plugins, only=request.only, seed=request.seed)
    origin, bridged = _origin(request), None
    if request.bridge is not None:
        bridged = load_manifest(request.bridge)
        names = tuple(choice.name for choice in spec.backends)
        spec = resolve_suite(bridged_suite(spec.file.written(), names, bridged), request.suite, *plugins)
        origin = msgspec.structs.replace(origin, bridges=bridged.run)
    suite = bind_suite(spec)
    name = re.sub(r"[^a-z0-9]+", "-", suite.file.suite.name.lower()).strip("-")[:40] or "suite"
    name += "-bridge" if bridged is not None else ""
    path = request.output or runs_directory() / f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{name}"
    return run_suite(suite, path, display, origin, bridged)


def _origin(request: RunRequest) -> Origin:
    if request.source is not None:
        return request.origin
    file = request.suite.absolute()
    return msgspec.structs.replace(
        request.origin, suite_file=readable(str(file)), revision=commit_of(file.resolve().parent)
    )


def run_suite(
    suite: Suite, path: Path, display: Display, origin: Origin = _NO_ORIGIN, bridged: Manifest | None = None
) -> RunResult:
    """Run a resolved suite from its beginning into the empty or new folder ``path``. Raises as ``start_run``.

    ``bridged`` is the earlier run that a bridge measures again.
    """
    with contextlib.suppress(NotADirectoryError):  # said below, with what else cannot be written to
        if path.exists() and any(path.iterdir()):
            remedy = "choose another --output, or resume it with --resume"
            raise RunDirectoryError(f"{path} is not empty", remedy=remedy)
    return _Session(suite, path, display, None, origin, bridged).run()


def resume_run(path: Path, display: Display) -> RunResult:
    """Go on with a run where it stopped. Raises RunDirectoryError if this host or image is not the run's."""
    earlier = load_run(path)
    if earlier.manifest.status is RunStatus.COMPLETE:
        missing = earlier.manifest.planned_instances - len(find_progress(earlier).done)
        if missing <= 0:
            raise RunDirectoryError(f"{path} is complete; there is nothing to resume")
        display.step(f"{path} says that it is complete, and {missing} instances are not: they are measured again")
    place = path / "manifest.json"
    suite = bind_suite(resolve_suite(earlier.manifest.suite, place, find_backends(), find_workloads()))
    return _Session(suite, path, display, earlier, earlier.manifest.origin).run()


class _Session:
    """One execution of a suite. ``ready`` and ``descriptions`` hold the backends that work, ``missing`` the others."""

    def __init__(
        self,
        suite: Suite,
        path: Path,
        display: Display,
        earlier: LoadedRun | None,
        origin: Origin = _NO_ORIGIN,
        bridged: Manifest | None = None,
    ) -> None:
        self.suite = suite
        self.origin = origin
        self.bridged = bridged
        self.path = path
        self.display = display
        self.earlier = earlier
        self.ready: dict[str, Backend] = {}
        self.descriptions: dict[str, BackendDescription] = {}
        self.missing: dict[str, Availability] = {}
        self.images: dict[str, Image] = {}

    def run(self) -> RunResult:
        try:
            free_bytes(self.path)
        except OSError as error:
            problem = f"cannot write to the run directory {self.path}: {error.strerror}"
            raise StoreError(problem, remedy="choose another folder with --output, or make it writable") from error
        with (
            measuring(self.path),
            start_workplace(self.suite, self.display.step) as context,
            contextlib.ExitStack() as stack,
        ):
            work, images = context.work_directory, ImageStore(cache_directory(), context.ledger)
            candidates = self._probe(context)
            image = self._find_or_build_image(images)
            require_services(self.suite, image)
            stack.enter_context(images.hold(image))
            self._find_own_images(images, stack)
            self._prepare(candidates, image, stack)
            with RunStore(self.path, self._make_manifest(work.parent, image)) as store:
                outcome = self._measure(image, store, work.name)
                status = RunStatus.INTERRUPTED if outcome.interrupted else RunStatus.COMPLETE
                store.add_event(make_event(EventKind.RUN_ENDED, status.value))
                store.sync()
                store.save_manifest(msgspec.structs.replace(store.manifest, status=status, ended_utc=_now()))
            self.display.step("removing what the run used")
        return RunResult(self.path, outcome, self.missing)

    def _probe(self, context: BackendContext) -> list[tuple[BackendChoice, Backend]]:
        """The backends that can work here. Raises UnavailableError if none does."""
        candidates = []
        for choice in self.suite.backends:
            try:
                backend, here = probe_backend(choice, context)
            except BackendError as error:
                self.missing[choice.name] = Availability(available=False, reason=error.message, remedy=error.remedy)
                continue
            if here.available:
                candidates.append((choice, backend))
            else:
                self.missing[choice.name] = here
        if not candidates:
            raise self._nothing("works here")
        for name, here in self.missing.items():
            self.display.step(f"{name} is not available: {here.reason}")
        return candidates

    def _find_or_build_image(self, images: ImageStore) -> Image:
        """The image of the suite: the one it names, or the one of its packages, built if it is not in the cache."""
        used = self.suite.file.image
        if used.is_archive:
            with interruptible():
                return images.import_once(Path(used.use), progress=lambda text: self.display.step(f"  {text}"))
        if used.use:
            return images.get(used.use)
        with defects_named("packages"):
            recipe = Recipe.of(self.suite.packages())
        if (found := images.find(recipe)) is not None:
            self.display.step(f"image {found.digest[:12]} is in the cache")
            return found
        self.display.step("building the image (once; it is kept in the cache)")
        with interruptible():
            image = images.build(recipe, progress=lambda text: self.display.step(f"  {text}"))
        self.display.step(f"image {image.digest[:12]} is built")
        return image

    def _find_own_images(self, images: ImageStore, stack: contextlib.ExitStack) -> None:
        """The images of backends that have one of their own. Raises ImageError for one that is not here."""
        for choice in self.suite.backends:
            if choice.image:
                self.images[choice.name] = images.get(choice.image)
                stack.enter_context(images.hold(self.images[choice.name]))

    def _prepare(
        self, candidates: Sequence[tuple[BackendChoice, Backend]], image: Image, stack: contextlib.ExitStack
    ) -> None:
        """Prepare the backends; each is closed with ``stack``. Raises UnavailableError if none could be."""
        for choice, backend in candidates:
            check()
            stack.enter_context(closing(backend))
            try:
                own = self.images.get(choice.name)
                description = describe_backend(backend, own or image, self.suite.envelope)
                if own is not None:
                    description = _with_own_image(description, own)
            except TareError as error:
                self.missing[choice.name] = Availability(available=False, reason=error.message, remedy=error.remedy)
                self.display.step(f"{choice.name} is not available: {error.message}")
                continue
            label = description.label if choice.name == choice.type.name else f"{choice.name}: {description.label}"
            # A backend knows its type only, and the suite may have several of it.
            confounds = tuple(msgspec.structs.replace(found, backend=choice.name) for found in description.confounds)
            self.ready[choice.name] = backend
            self.descriptions[choice.name] = msgspec.structs.replace(description, label=label, confounds=confounds)
            self.display.step(f"{label} is ready")
        if not self.ready:
            raise self._nothing("could be prepared")

    def _nothing(self, worked: str) -> UnavailableError:
        reasons = "\n".join(f"  {name}: {here.reason}" for name, here in self.missing.items())
        remedies = "; ".join(dict.fromkeys(here.remedy for here in self.missing.values() if here.remedy))
        return UnavailableError(f"no backend of the suite {worked}:\n{reasons}", remedy=remedies or None)

    def _make_manifest(self, storage: Path, image: Image) -> Manifest:
        """Raises RunDirectoryError if a run that goes on began under other conditions."""
        suite, descriptions = self.suite, self.descriptions
        facts = (*read_facts(storage), *tuned_facts(journal_file(), HostRoots()))
        bare = (name for name, one in descriptions.items() if one.kind is IsolationKind.BARE_METAL)
        of_backends = (found for description in descriptions.values() for found in description.confounds)
        sizes = {name: path.stat().st_size for name, path in image.guest_files.items()}
        workloads = {one.workload.name: one.workload for one in suite.scenarios if one.workload is not None}
        manifest = Manifest(
            schema_version=SCHEMA_VERSION,
            run=readable(self.path.name),
            tare_version=tare_version(),
            status=RunStatus.RUNNING,
            seed=suite.seed,
            started_utc=_now(),
            ended_utc="",
            suite=suite.file.written(),
            envelope=suite.envelope,
            # sizes in bytes: of the tree, and of each other file
            image={**msgspec.to_builtins(image, enc_hook=str), "sizes": sizes | {"rootfs": image.rootfs_bytes}},
            host=facts,
            host_summary=summarise(facts),
            backends=descriptions,
            unavailable=self.missing,
            confounds=(*host_confounds(facts, suite.envelope.cpus), *of_backends),
            metrics={f"{one.owner}/{metric.name}": metric for one in suite.scenarios for metric in one.metrics},
            planned_instances=len(make_design(suite)),
            command_line=tuple(map(readable, sys.argv)),
            baseline=suite.file.report.baseline or (*bare, *descriptions)[0],
            workloads={
                name: WorkloadTraits(one.category, one.fixed_time, one.title, one.parameters)
                for name, one in workloads.items()
            },
            fingerprint=host_fingerprint(),
            experiments={one.experiment.name: one.experiment.traits for one in suite.scenarios},
            tare_commit=tare_commit(),
            plugins=origins_of(suite.plugins()),
            precision={one.key: one.sampling.precision for one in suite.scenarios if one.sampling.precision},
            origin=self.origin,
        )
        _require_storable(manifest, "an experiment or a workload has traits or metrics")
        if self.bridged is not None:
            require_bridge(manifest, self.bridged)
        if self.earlier is None:
            return manifest
        before = self.earlier.manifest
        _refuse_other_conditions(self.path, before, manifest)
        kept = {name: getattr(before, name) for name in ("started_utc", "run", "baseline")}
        return msgspec.structs.replace(manifest, **kept)

    def _measure(self, image: Image, store: RunStore, identity: str) -> Outcome:
        suite = self.suite
        progress = find_progress(self.earlier) if self.earlier else Progress(frozenset(), {})
        done, attempts = progress.done, progress.attempts
        plan = [planned for planned in make_design(suite) if planned.identifier not in done]
        kind = EventKind.RUN_RESUMED if self.earlier else EventKind.RUN_STARTED
        begins = {"instances": len(plan), "cpus": suite.envelope.cpus, "identity": identity}
        store.add_event(make_event(kind, details=begins))
        try:
            prime(suite, image, self.ready, store, self.display.step, identity, self.images)
        except KeyboardInterrupt:
            return Outcome(0, 0, interrupted=True)
        sampler = Sampler(suite, store.manifest.baseline)
        if self.earlier is not None and sampler.is_wanted:
            sampler.catch_up(self.earlier.samples, self.earlier.events)
        runner = Runner(
            suite,
            image,
            self.ready,
            store,
            self.display,
            identity=identity,
            unavailable={name: here.reason for name, here in self.missing.items()},
            listener=sampler,
            images=self.images,
        )
        self.display.begin(suite, plan, {name: one.label for name, one in self.descriptions.items()})
        try:
            outcome = runner.run(plan, attempts)
            if sampler.is_wanted:
                return run_until_precise(
                    sampler, runner, store, self.display.extend, outcome=outcome, attempts=attempts, done=done
                )
            return outcome
        finally:
            self.display.finished()


def require_services(suite: Suite, image: Image) -> None:
    """Raises SuiteError for a workload that is the image's service, where the image has none such."""
    for scenario in suite.scenarios:
        request = None
        if scenario.workload is not None:
            request = scenario.workload().commands(scenario.params, suite.envelope).image_service
        if request is not None:
            try:
                resolve_service(request, image.process)
            except ValueError as error:
                raise SuiteError(f"{suite.path}: workload {request.name}", str(error)) from None


@contextlib.contextmanager
def defects_named(call: str) -> Iterator[None]:
    """Whatever a plug-in's ``call`` raises that is no TareError becomes a BackendError with its place."""
    try:
        yield
    except TareError:
        raise
    except (Exception, SystemExit) as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        raise BackendError(
            f"{call}() raised {type(error).__name__}: {error} ({place.filename}:{place.lineno})",
            remedy="tell the authors of that plug-in; `tare --debug` shows the whole traceback",
        ) from error


def probe_backend(choice: BackendChoice, context: BackendContext) -> tuple[Backend, Availability]:
    """A backend of these options and whether it works here. Raises BackendError for a defect of it."""
    with defects_named("probe"):
        backend = choice.type(msgspec.structs.replace(context, options=choice.options))
        found: Any = backend.probe()
    if not isinstance(found, Availability):
        raise BackendError(f"probe() returned {found!r}, not an Availability")
    return backend, found


def describe_backend(backend: Backend, image: Image, envelope: Envelope) -> BackendDescription:
    """Prepare a backend. A defect in ``prepare`` ends that backend, not the run. Raises BackendError with its place."""
    with defects_named("prepare"):
        found: Any = backend.prepare(image, envelope)
    if not isinstance(found, BackendDescription):
        raise BackendError(f"prepare() returned {found!r}, not a BackendDescription")
    _require_storable(found, "prepare() returned a BackendDescription")
    return found


@contextlib.contextmanager
def closing(backend: Backend) -> Iterator[None]:
    """Close a backend at the end of the block. Raises BackendError for a defect of it."""
    try:
        yield
    finally:
        with defects_named("close"):
            backend.close()


def _with_own_image(description: BackendDescription, image: Image) -> BackendDescription:
    """A backend that has not the suite's image: the image is a fact of it, and a confound."""
    facts = {**description.facts, **named_facts({"image": image.digest})}
    problem = f"it runs the image {image.digest[:12]}, not the suite's: what differs may be the image's"
    confounds = (*description.confounds, Confound("own-image", problem))
    return msgspec.structs.replace(description, facts=facts, confounds=confounds)


def _require_storable(value: msgspec.Struct, what: str) -> None:
    """A plug-in may put anything into a struct; a run must be readable. Raises BackendError."""
    try:
        msgspec.convert(msgspec.to_builtins(value), type(value))
    except (msgspec.ValidationError, TypeError) as error:
        raise BackendError(f"{what} that no run can keep: {error}") from None


def _refuse_other_conditions(path: Path, earlier: Manifest, now: Manifest) -> None:
    """A run goes on only where it began: other conditions in the middle would be a confound that nobody sees."""
    here = _conditions(now)
    differ = [
        f"  {name}: {then} then, {here.get(name, 'not available')} now"
        for name, then in _conditions(earlier).items()
        if then != here.get(name)
    ]
    if differ:
        listed = "\n".join(differ)
        raise RunDirectoryError(
            f"{path} cannot be resumed here, because these differ:\n{listed}", remedy="start a new run"
        )


def _conditions(run: Manifest) -> dict[str, Any]:
    facts = {fact.name: fact.text for fact in run.host}
    names = ("host name", "cpu model", "cpus", "memory", "kernel", "storage file system")
    host = {"host": run.fingerprint.digest} if run.fingerprint.digest else {}  # runs of schema 1 have none
    backends = {f"backend {name}": description.label for name, description in run.backends.items()}
    fixed = {"image": run.image["digest"][:19], "envelope": run.envelope}
    return host | {name: facts.get(name) for name in names} | fixed | backends


@contextlib.contextmanager
def start_workplace(suite: Suite, say: Callable[[str], None] = lambda _: None) -> Iterator[BackendContext]:
    """Where backends make the instances of a suite: what killed runs left is removed, tare is off the instances' CPUs.

    The work folder is removed on every way out. Its name is the run's own on this host. A signal interrupts only at the
    waits that say so (``tare.bench.interrupts``).
    """
    with held():
        cleaned = clean_up()
        for entry in cleaned.removed:
            say(f"removed what a killed run left: {entry}")
        if failure := cleaned.failure():
            say(str(failure))
        work = (suite.storage or work_directory()) / secrets.token_hex(3)
        try:
            with (
                _kept_off(suite.envelope.cpus) as housekeeping,
                Ledger(ledger_directory()) as ledger,
                work_folder(ledger, work),
            ):
                yield BackendContext(ledger, work, cache_directory(), None, housekeeping)
        finally:
            clean_up()  # an interruption in the middle of a start leaves its entries open


@contextlib.contextmanager
def _kept_off(instance_cpus: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """Keep this process, and all it starts, off the instances' CPUs; the CPUs it stays on.

    Afterwards it may run where it could before: reports and another run in it have all CPUs. Raises TareError.
    """
    usable = os.sched_getaffinity(0)
    own = sorted(usable - set(instance_cpus)) or sorted(usable)
    try:
        os.sched_setaffinity(0, own)
    except OSError as error:
        raise TareError(
            f"tare may not choose its CPUs (sched_setaffinity to {format_cpus(own)}: {error.strerror}), so neither it "
            "nor an instance would stay where it belongs",
            remedy="allow sched_setaffinity in the seccomp profile that tare runs under, or give its cpuset these CPUs",
        ) from error
    try:
        yield tuple(own)
    finally:
        with contextlib.suppress(OSError):  # the CPUs may have gone meanwhile
            os.sched_setaffinity(0, usable)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
