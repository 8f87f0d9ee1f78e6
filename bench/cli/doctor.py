"""``tare doctor``: what works here, what does not, why, and how to get it."""

import contextlib
import json
import os
import secrets
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgspec
import typer
from rich.console import Console
from rich.table import Table

from tare.bench.cli.host_report import host_report
from tare.bench.cli.output import STDOUT, whole_file
from tare.bench.errors import CleanUpError, ExitCode, MissingToolError, TareError
from tare.bench.host import host_confounds, read_facts, summarise
from tare.bench.image import ImageStore
from tare.bench.interfaces import Backend, BackendContext, Proved
from tare.bench.ledger import Ledger, work_folder
from tare.bench.linux.files import HostRoots
from tare.bench.locations import (
    CACHE_VARIABLE,
    STATE_VARIABLE,
    WORK_VARIABLE,
    cache_directory,
    free_bytes,
    ledger_directory,
    work_directory,
)
from tare.bench.model import Image
from tare.bench.packages import load_packages, remedy_for
from tare.bench.process import find_tool, run
from tare.bench.readable import as_markup
from tare.bench.registry import find_backends, find_experiments, find_reporters, find_workload_kinds, find_workloads
from tare.bench.session import defects_named, probe_backend
from tare.bench.suite import BackendChoice
from tare.bench.tune.journal import journal_file, tuned_facts

_NEEDED = frozenset(("image", "vm", "native"))
"""Uses whose host packages tare itself needs."""


class Check(msgspec.Struct, frozen=True):
    """One thing looked at. ``needed`` is False for what only some uses need; it does not change the exit code."""

    name: str
    works: bool
    detail: str
    remedy: str = ""
    needed: bool = True
    exit_code: ExitCode = ExitCode.NOT_READY


def doctor_command(*, as_json: bool) -> ExitCode:
    """Look at everything, print it, and return 0 if all that is needed works, else 1."""
    console = Console()
    facts = read_facts(work_directory())
    checks = [*_check_host(), *_check_backends(), _check_image(), *_check_plugins(), *_check_packages()]
    failed = [check for check in checks if not check.works and check.needed]
    code = max((check.exit_code for check in failed), default=ExitCode.OK)
    caveats = [confound.detail for confound in host_confounds(facts, tuple(sorted(os.sched_getaffinity(0)))[-1:])]
    if as_json:
        document = {"host": summarise(facts), "checks": msgspec.to_builtins(checks), "caveats": caveats}
        typer.echo(json.dumps(document, indent=2))
        return code
    console.print(as_markup(summarise(facts)), soft_wrap=True)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in ("", "what", "status"):
        table.add_column(column, overflow="fold")
    for check in checks:
        mark = "works" if check.works else ("missing" if check.needed else "not here")
        text = check.detail + (f"\nwhat to do: {check.remedy}" if check.remedy and not check.works else "")
        table.add_row(mark if check.works else f"[bold]{mark}[/bold]", as_markup(check.name), as_markup(text))
    console.print(table)
    for caveat in caveats:
        console.print(f"caveat: {as_markup(caveat)}", soft_wrap=True)
    for fact in tuned_facts(journal_file(), HostRoots()):
        console.print(f"tuned by tare: {as_markup(fact.text)}; put back with `tare tune restore`", soft_wrap=True)
    console.print("everything works here" if not failed else f"{len(failed)} of {len(checks)} checks failed")
    return code


def fix_command(*, ask: bool) -> None:
    """Install the host packages that the image, guests and containers need and that are missing.

    Raises MissingToolError with the command where it cannot be run here or nobody can be asked, ToolFailedError.
    """
    missing = [package for package in load_packages() if set(package.needed_by) & _NEEDED and not package.is_present()]
    if not missing:
        typer.echo("no host package is missing")
        return
    names = [package.name for package in missing]
    command = remedy_for(names)
    if os.geteuid() != 0 or find_tool("apt-get") is None:
        reason = "this is not root" if os.geteuid() != 0 else "this host has no apt"
        raise MissingToolError(f"host packages are missing, and {reason}: {', '.join(names)}", remedy=command)
    for package in missing:
        typer.echo(f"{package.name}: {package.why}")
    if ask:
        if not sys.stdin.isatty():
            raise MissingToolError(
                "host packages are missing, and nobody can be asked here", remedy=f"{command}, or --yes"
            )
        typer.confirm(f"Install them? ({command})", abort=True)
    quiet = {"DEBIAN_FRONTEND": "noninteractive"}
    run(("apt-get", "update", "-q"), timeout_s=300, env=quiet)
    run(("apt-get", "install", "-y", "--no-install-recommends", *names), timeout_s=1800, env=quiet)


def forget_command() -> None:
    """Have every backend forget what it found out about this host."""
    with _backends() as found:
        for _name, backend in found:
            with defects_named("forget"):
                backend.forget()
    Console(stderr=True).print("forgotten: the next run proves KVM again")


def prove_command(report: Path | None) -> ExitCode:
    """Prove what can be proved; print it or, with ``report``, write all that was seen. 0 if all of it works, else 1."""
    if report is None:
        proofs = _prove(verbose=False)
    else:
        # Opened first: who waited minutes for a proof is not told then that its file cannot be written.
        with whole_file(report, remedy="choose another --report") as part:
            proofs = _prove(verbose=True)
            checks = [*_check_host(), *_check_backends(), _check_image(), *_check_plugins(), *_check_packages()]
            listed = {check.name: ("works: " if check.works else "not here: ") + check.detail for check in checks}
            part.write_text(host_report(listed, proofs), "utf-8", "replace")
        if report != STDOUT:
            said = as_markup(f"{report} holds what was seen; read it before you send it")
            Console(stderr=True).print(said, soft_wrap=True)
    works = all(proved.outcome.available for proved in proofs.values())
    return ExitCode.OK if works else ExitCode.NOT_READY


def _prove(*, verbose: bool) -> dict[str, Proved]:
    """What each backend has to prove, proved now and said."""
    console = Console(stderr=True)
    proofs = {}
    with _backends() as found:
        image = _newest_image()
        for name, backend in found:
            with defects_named("prove"):
                proved = backend.prove(image, verbose=verbose)
            if proved is not None:
                proofs[name] = proved
                said = proved.outcome
                console.print(as_markup(f"{name}: {said.reason}"), soft_wrap=True)
                if not said.available and said.remedy:
                    console.print(as_markup(f"what to do: {said.remedy}"), soft_wrap=True)
    return proofs


def _newest_image() -> Image | None:
    """What guests are proved with."""
    with _ledger() as ledger:
        images = ImageStore(cache_directory(), ledger)
        usable = [entry for entry in images.list() if not entry.problem]
        return images.get(usable[0].digest) if usable else None


@contextlib.contextmanager
def _backends() -> Iterator[list[tuple[str, Backend]]]:
    """Every backend that loads, with its default options."""
    with _ledger() as ledger, _folder(ledger) as folder:
        cpus = tuple(sorted(os.sched_getaffinity(0)))
        found = []
        for name, kind in sorted(find_backends().loaded.items()):
            with defects_named("Options"):
                context = BackendContext(ledger, folder, cache_directory(), kind.Options(), cpus)
                found.append((name, kind(context)))
        yield found


def _check_host() -> Iterator[Check]:
    root = os.geteuid() == 0
    detail = "running as root" if root else "not running as root: of the built-in backends only native works then"
    yield Check("root", root, detail, "run tare as root (sudo)")
    cpus = sorted(os.sched_getaffinity(0))
    detail = f"{len(cpus)} usable" if len(cpus) > 1 else "only one: tare itself disturbs what it measures"
    yield Check("CPUs", len(cpus) > 1, detail, "use a host with two CPUs or more", needed=False)
    yield _check_folder(work_directory(), WORK_VARIABLE)
    yield _check_folder(cache_directory(), CACHE_VARIABLE)
    yield _check_folder(ledger_directory(), STATE_VARIABLE)


def _check_folder(folder: Path, variable: str) -> Check:
    try:
        gib = free_bytes(folder) / 2**30
    except OSError as error:
        remedy = f"make it a folder that can be written to, or set {variable} to one"
        return Check(
            f"folder {folder}", works=False, detail=str(error.strerror), remedy=remedy, exit_code=ExitCode.ENVIRONMENT
        )
    return Check(f"folder {folder}", gib >= 2, f"{gib:.1f} GiB free", "make 2 GiB of room")


def _check_packages() -> Iterator[Check]:
    """The host's packages; the first one missing has the command that installs all of them."""
    packages = load_packages()
    missing = [package for package in packages if not package.is_present()]
    remedy = remedy_for([package.name for package in missing])
    for package in packages:
        needed = bool(_NEEDED & set(package.needed_by))
        detail = f"{package.why} (for: {', '.join(package.needed_by)})"
        first = package in missing[:1]
        yield Check(f"package {package.name}", package not in missing, detail, remedy if first else "", needed)


def _check_backends() -> Iterator[Check]:
    plugins = find_backends()
    with _ledger() as ledger, _folder(ledger) as folder:
        for name, backend in sorted(plugins.loaded.items()):
            cpus = tuple(sorted(os.sched_getaffinity(0)))
            try:
                with defects_named("Options"):
                    choice = BackendChoice(name, backend, backend.Options())
                live, here = probe_backend(choice, BackendContext(ledger, folder, cache_directory(), None, cpus))
                with defects_named("facilities"):
                    facilities = list(live.facilities())
            except TareError as error:
                detail, needed = error.message, not backend.optional
                yield Check(f"backend {name}", works=False, detail=detail, remedy=error.remedy or "", needed=needed)
                continue
            more = f"\nfor more: {here.remedy}" if here.available and here.remedy else ""
            needed = not backend.optional
            yield Check(f"backend {name}", here.available, here.reason + more, here.remedy or "", needed)
            for facility, found in facilities:
                yield Check(f"{name}: {facility}", found.available, found.reason, found.remedy or "", needed=False)


@contextlib.contextmanager
def _folder(ledger: Ledger) -> Iterator[Path]:
    """A folder where instances would live; where that cannot be written, which has a check of its own, elsewhere."""
    work = work_directory()
    try:
        free_bytes(work)
    except OSError:
        work = Path(tempfile.gettempdir())
    folder = work / f"tare-doctor-{secrets.token_hex(6)}"
    with work_folder(ledger, folder):
        yield folder


@contextlib.contextmanager
def _ledger() -> Iterator[Ledger]:
    """The user's ledger; where there can be none, one that is gone afterwards, so that the rest is looked at."""
    with contextlib.ExitStack() as stack:
        try:
            ledger = Ledger(ledger_directory())
        except CleanUpError:
            ledger = Ledger(Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tare-doctor-"))))
        yield stack.enter_context(ledger)


def _check_plugins() -> Iterator[Check]:
    finders = (find_backends, find_experiments, find_workloads, find_workload_kinds, find_reporters)
    for plugins in (find() for find in finders):
        for failure in plugins.failures.values():
            name = f"{plugins.kind} {failure.name} ({failure.value})"
            yield Check(name, works=False, detail=failure.reason, remedy="repair or uninstall that package")


def _check_image() -> Check:
    remedy = "nothing needs doing: `tare run` builds it; `tare image build` does so now"
    try:
        with _ledger() as ledger:
            images = [entry for entry in ImageStore(cache_directory(), ledger).list() if not entry.problem]
    except TareError as error:
        return Check("image", works=False, detail=error.message, remedy=error.remedy or "", needed=False)
    detail = f"{len(images)} in {cache_directory()}" if images else "none in the cache yet"
    return Check("image", bool(images), detail, remedy, needed=False)
