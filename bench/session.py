"""One execution of a suite from end to end: clean, probe, image, prepare, measure, close.

Everything the command line's ``run`` does except printing; raises what it cannot go on from.
"""

import contextlib
import os
import re
import secrets
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import msgspec

from tare.bench.adaptive import Sampler
from tare.bench.cleaning import clean_up
from tare.bench.design import make_design
from tare.bench.errors import BackendError, CleanUpError, RunDirectoryError, TareError, UnavailableError
from tare.bench.fingerprint import host_fingerprint
from tare.bench.host import host_confounds, read_facts, summarise
from tare.bench.image import ImageStore, Recipe
from tare.bench.interfaces import Backend, BackendContext
from tare.bench.ledger import Ledger, ResourceKind, remove
from tare.bench.linux.files import HostRoots
from tare.bench.locations import cache_directory, ledger_directory, work_directory
from tare.bench.model import (
    SCHEMA_VERSION,
    Availability,
    BackendDescription,
    Envelope,
    EventKind,
    Image,
    IsolationKind,
    Manifest,
    Metric,
    PlannedInstance,
    RunStatus,
    WorkloadTraits,
)
from tare.bench.registry import find_backends, find_workloads
from tare.bench.runner import Observer, Outcome, Runner, make_event
from tare.bench.store import LoadedRun, RunStore, attempt_of, done_instances, load_run
from tare.bench.suite import BackendChoice, Suite, bind_suite, resolve_suite
from tare.bench.suite_file import read_toml
from tare.bench.trees import make_work_folder
from tare.bench.tune import journal_file, tuned_facts
from tare.bench.until_precise import ShowsBlocks, Watched, run_until_precise


class Display(Observer, ShowsBlocks, Protocol):
    """What a session tells a person."""

    def step(self, text: str) -> None:
        """Say what is being done before or after the measuring."""

    def plan(self, suite: Suite, plan: Sequence[PlannedInstance], labels: Mapping[str, str]) -> None:
        """Begin showing a plan."""

    def finished(self) -> None:
        """The measuring is over."""


class RunRequest(msgspec.Struct, frozen=True):
    """What the user asked for. ``output`` is the folder of the run, made if missing; None means ``runs/DATE-SUITE``.

    ``source`` is a suite that stands in no file; ``suite`` is then what its errors name as their place.
    """

    suite: Path
    output: Path | None = None
    only: tuple[str, ...] = ()
    seed: int | None = None
    source: Mapping[str, Any] | None = None


class RunResult(msgspec.Struct, frozen=True):
    """A run that ended: where it lies and how it went."""

    path: Path
    outcome: Outcome
    unavailable: Mapping[str, Availability]


class Prepared(msgspec.Struct, frozen=True):
    """The backends of a run: those that are ready with what they are, and those that are not with the reason."""

    ready: Mapping[str, Backend]
    descriptions: Mapping[str, BackendDescription]
    unavailable: Mapping[str, Availability]


def start_run(request: RunRequest, display: Display) -> RunResult:
    """Run a suite from its beginning. Raises TareError for what no cell can be measured without."""
    source = read_toml(request.suite) if request.source is None else request.source
    plugins = find_backends(), find_workloads()
    suite = bind_suite(resolve_suite(source, request.suite, *plugins, only=request.only, seed=request.seed))
    name = re.sub(r"[^a-z0-9]+", "-", suite.file.suite.name.lower()).strip("-")[:40] or "suite"
    path = request.output or Path("runs") / f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{name}"
    return run_suite(suite, path, display)


def run_suite(suite: Suite, path: Path, display: Display) -> RunResult:
    """Run a resolved suite from its beginning into the empty or new folder ``path``. Raises as ``start_run``."""
    if path.exists() and any(path.iterdir()):
        raise RunDirectoryError(f"{path} is not empty", remedy="choose another --output, or go on with it by --resume")
    return _execute(suite, path, display, earlier=None)


def resume_run(path: Path, display: Display) -> RunResult:
    """Go on with a run where it stopped. Raises RunDirectoryError if this host or image is not the run's."""
    earlier = load_run(path)
    if earlier.manifest.status is RunStatus.COMPLETE:
        raise RunDirectoryError(f"{path} is complete; there is nothing to resume")
    place = path / "manifest.json"
    suite = bind_suite(resolve_suite(earlier.manifest.suite, place, find_backends(), find_workloads()))
    return _execute(suite, path, display, earlier=earlier)


def find_or_build_image(suite: Suite, ledger: Ledger, display: Display) -> Image:
    """The image of a suite: the one it names, or the one of its packages, built if it is not in the cache."""
    images = ImageStore(cache_directory(), ledger)
    if suite.file.image.use:
        return images.get(suite.file.image.use)
    recipe = Recipe.of(suite.packages())
    found = images.find(recipe)
    if found is not None:
        display.step(f"image {found.digest[:12]} is in the cache")
        return found
    display.step("building the image (once; it is kept in the cache)")
    image = images.build(recipe, progress=lambda text: display.step(f"  {text}"))
    display.step(f"image {image.digest[:12]} is built")
    return image


def _execute(suite: Suite, path: Path, display: Display, earlier: LoadedRun | None) -> RunResult:
    with start_workplace(suite, display.step) as context, contextlib.ExitStack() as stack:
        ledger, work = context.ledger, context.work_directory
        candidates, unavailable = _probe(suite, context)
        image = find_or_build_image(suite, ledger, display)
        stack.enter_context(ImageStore(cache_directory(), ledger).hold(image))
        prepared = _prepare(suite, candidates, unavailable, image, display, stack)
        manifest = _make_manifest(suite, path, work.parent, image, prepared, earlier)
        with RunStore(path, manifest) as store:
            outcome = _measure(suite, image, prepared, store, display, work.name, earlier)
            status = RunStatus.INTERRUPTED if outcome.interrupted else RunStatus.COMPLETE
            store.add_event(make_event(EventKind.RUN_ENDED, status.value))
            store.sync()
            store.save_manifest(msgspec.structs.replace(store.manifest, status=status, ended_utc=_now()))
        display.step("removing what the run used")
    return RunResult(path, outcome, prepared.unavailable)


def _measure(
    suite: Suite,
    image: Image,
    prepared: Prepared,
    store: RunStore,
    display: Display,
    identity: str,
    earlier: LoadedRun | None,
) -> Outcome:
    done = done_instances(earlier.events) if earlier else set()
    attempts = Counter(
        attempt_of(event.instance)[0]
        for event in (earlier.events if earlier else ())
        if event.kind is EventKind.INSTANCE_STARTED
    )
    plan = [planned for planned in make_design(suite) if planned.identifier not in done]
    kind = EventKind.RUN_RESUMED if earlier else EventKind.RUN_STARTED
    store.add_event(make_event(kind, details={"instances": len(plan), "cpus": suite.envelope.cpus}))
    labels = {name: description.label for name, description in prepared.descriptions.items()}
    reasons = {name: availability.reason for name, availability in prepared.unavailable.items()}
    sampler = Sampler(suite, store.manifest.baseline)
    if earlier is not None and sampler.is_wanted:
        sampler.catch_up(earlier.samples, earlier.events)
    watched = Watched(display, sampler)
    runner = Runner(
        suite,
        image,
        prepared.ready,
        store,
        watched,
        identity=identity,
        unavailable=reasons,
        on_sample=sampler.add,
    )
    display.plan(suite, plan, labels)
    try:
        outcome = runner.run(plan, attempts)
        if sampler.is_wanted:
            outcome = run_until_precise(sampler, runner, store, display, outcome=outcome, attempts=attempts, done=done)
        return outcome
    finally:
        display.finished()


def _probe(
    suite: Suite, context: BackendContext
) -> tuple[list[tuple[BackendChoice, Backend]], dict[str, Availability]]:
    """Ask every backend whether it works here. Raises UnavailableError if none does."""
    candidates, unavailable = [], {}
    for choice in suite.backends:
        backend = choice.type(msgspec.structs.replace(context, options=choice.options))
        availability = backend.probe()
        if availability.available:
            candidates.append((choice, backend))
        else:
            unavailable[choice.name] = availability
    if not candidates:
        lines = "\n".join(f"  {name}: {here.reason}" for name, here in unavailable.items())
        remedies = "; ".join(dict.fromkeys(here.remedy for here in unavailable.values() if here.remedy))
        raise UnavailableError(f"no backend of the suite works here:\n{lines}", remedy=remedies or None)
    return candidates, unavailable


def _prepare(
    suite: Suite,
    candidates: Sequence[tuple[BackendChoice, Backend]],
    unavailable: Mapping[str, Availability],
    image: Image,
    display: Display,
    stack: contextlib.ExitStack,
) -> Prepared:
    ready: dict[str, Backend] = {}
    descriptions: dict[str, BackendDescription] = {}
    missing = dict(unavailable)
    for name, here in unavailable.items():
        display.step(f"{name} is not available: {here.reason}")
    for choice, backend in candidates:
        stack.callback(backend.close)
        try:
            description = _describe(backend, image, suite.envelope)
        except TareError as error:
            missing[choice.name] = Availability(available=False, reason=error.message, remedy=error.remedy)
            display.step(f"{choice.name} is not available: {error.message}")
            continue
        label = description.label
        if choice.name != choice.type.name:
            label = f"{choice.name}: {label}"
        ready[choice.name] = backend
        # A backend knows its type only, and the suite may have several of it.
        confounds = tuple(msgspec.structs.replace(found, backend=choice.name) for found in description.confounds)
        descriptions[choice.name] = msgspec.structs.replace(description, label=label, confounds=confounds)
        display.step(f"{label} is ready")
    if not ready:
        reasons = "\n".join(f"  {name}: {here.reason}" for name, here in missing.items())
        raise UnavailableError(f"no backend of the suite could be prepared:\n{reasons}")
    return Prepared(ready, descriptions, missing)


def _describe(backend: Backend, image: Image, envelope: Envelope) -> BackendDescription:
    """Prepare a backend. A defect in ``prepare`` ends that backend, not the run. Raises BackendError with its place."""
    try:
        found: Any = backend.prepare(image, envelope)
    except TareError:
        raise
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        said = f"prepare() raised {type(error).__name__}: {error} ({place.filename}:{place.lineno})"
        raise BackendError(said) from error
    if not isinstance(found, BackendDescription):
        raise BackendError(f"prepare() returned {found!r}, not a BackendDescription")
    return found


def _make_manifest(
    suite: Suite, path: Path, storage: Path, image: Image, prepared: Prepared, earlier: LoadedRun | None
) -> Manifest:
    facts = (*read_facts(storage), *tuned_facts(journal_file(), HostRoots()))
    confounds = list(host_confounds(facts, suite.envelope.cpus))
    for description in prepared.descriptions.values():
        confounds += description.confounds
    metrics: dict[str, Metric] = {}
    for subject in suite.subjects:
        metrics |= {f"{subject.owner}/{metric.name}": metric for metric in subject.metrics}
    manifest = Manifest(
        schema_version=SCHEMA_VERSION,
        run=path.name,
        tare_version=version("tarebench"),
        status=RunStatus.RUNNING,
        seed=suite.sampling.seed,
        started_utc=_now(),
        ended_utc="",
        suite=suite.file.written(),
        envelope=suite.envelope,
        image=_image_record(image),
        host=facts,
        host_summary=summarise(facts),
        backends=prepared.descriptions,
        unavailable=prepared.unavailable,
        confounds=tuple(confounds),
        metrics=metrics,
        planned_instances=len(make_design(suite)),
        command_line=tuple(sys.argv),
        baseline=_baseline(suite, prepared),
        workloads={
            one.name: WorkloadTraits(one.category, one.fixed_time)
            for subject in suite.subjects
            if (one := subject.workload) is not None
        },
        fingerprint=host_fingerprint(),
        experiments={subject.experiment.name: subject.experiment.traits for subject in suite.subjects},
        precision={
            subject.cell("").subject: subject.sampling.precision
            for subject in suite.subjects
            if subject.sampling.precision
        },
    )
    if earlier is None:
        return manifest
    _refuse_other_conditions(path, earlier.manifest, manifest)
    return msgspec.structs.replace(manifest, started_utc=earlier.manifest.started_utc, run=earlier.manifest.run)


def _baseline(suite: Suite, prepared: Prepared) -> str:
    """What the others are compared with: what the suite names, else bare metal, else the first backend."""
    if suite.file.report.baseline:
        return suite.file.report.baseline
    kinds = {name: description.kind for name, description in prepared.descriptions.items()}
    return next((name for name, kind in kinds.items() if kind is IsolationKind.BARE_METAL), next(iter(kinds)))


def _refuse_other_conditions(path: Path, earlier: Manifest, now: Manifest) -> None:
    """A run goes on only where it began: other conditions in the middle would be a confound that nobody sees."""
    differ = []
    origin, here = earlier.fingerprint, now.fingerprint
    if origin.digest and origin.digest != here.digest:
        parts = [name for name, part in origin.made_from.items() if part != here.made_from.get(name)]
        differ.append(f"host: {origin.digest} then, {here.digest} now ({', '.join(parts)})")
    names = ("host name", "cpu model", "cpus", "memory", "kernel", "storage file system")
    before, after = ({fact.name: fact.text for fact in one.host} for one in (earlier, now))
    differ += [
        f"{name}: {before.get(name)} then, {after.get(name)} now"
        for name in names
        if before.get(name) != after.get(name)
    ]
    if earlier.image["digest"] != now.image["digest"]:
        differ.append(f"image: {earlier.image['digest'][:19]} then, {now.image['digest'][:19]} now")
    if earlier.envelope != now.envelope:
        differ.append(f"envelope: {earlier.envelope} then, {now.envelope} now")
    for name, description in earlier.backends.items():
        label = now.backends[name].label if name in now.backends else "not available"
        if label != description.label:
            differ.append(f"backend {name}: {description.label} then, {label} now")
    if differ:
        listed = "\n".join(f"  {line}" for line in differ)
        raise RunDirectoryError(f"{path} cannot go on here, because these differ:\n{listed}", remedy="start a new run")


def _image_record(image: Image) -> dict[str, object]:
    """What the manifest keeps of an image. ``sizes`` are bytes: of the tree's files, and of each file beside it."""
    record = {name: getattr(image, name) for name in image.__struct_fields__}
    sizes = {name: path.stat().st_size for name, path in image.guest_files.items()} | {"rootfs": image.rootfs_bytes}
    return {name: str(value) if isinstance(value, Path) else value for name, value in record.items()} | {"sizes": sizes}


@contextlib.contextmanager
def start_workplace(suite: Suite, say: Callable[[str], None] = lambda _: None) -> Iterator[BackendContext]:
    """Where backends make the instances of a suite: what killed runs left is removed, tare is off the instances' CPUs.

    The work folder is removed on every way out. Its name is the run's own on this host.
    """
    cleaned = clean_up()
    for entry in cleaned.removed:
        say(f"removed what a killed run left: {entry}")
    if failure := cleaned.failure():
        say(str(failure))
    work = (suite.storage or work_directory()) / secrets.token_hex(3)
    with (
        _kept_off(suite.envelope.cpus) as housekeeping,
        Ledger(ledger_directory()) as ledger,
        work_folder(ledger, work),
    ):
        yield BackendContext(ledger, work, cache_directory(), None, housekeeping)


@contextlib.contextmanager
def _kept_off(instance_cpus: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """Keep this process, and all it starts, off the instances' CPUs; the CPUs it stays on.

    Afterwards it may run where it could before: reports and another run in it have all CPUs.
    """
    usable = os.sched_getaffinity(0)
    own = sorted(usable - set(instance_cpus)) or sorted(usable)
    os.sched_setaffinity(0, own)
    try:
        yield tuple(own)
    finally:
        os.sched_setaffinity(0, usable)


@contextlib.contextmanager
def work_folder(ledger: Ledger, work: Path) -> Iterator[None]:
    """The folder that instances live in, removed on every way out that this process survives."""
    entry = ledger.enter(ResourceKind.DIRECTORY, work)
    try:
        make_work_folder(work)
        yield
    finally:
        try:
            remove(entry)
        except OSError as error:
            reason = f"{error.filename or work}: {error.strerror}"
            raise CleanUpError(f"could not remove the work folder: {reason}", remedy="run `tare clean`") from error
        ledger.strike(entry)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
